"""The command line. Parse, call, print: no logic, and nothing heavy is imported before a command needs it."""


def main() -> None:
    """Run the command line `hmtl-dist`."""
    from hmtl_dist.cli.app import app

    app(prog_name="hmtl-dist")
