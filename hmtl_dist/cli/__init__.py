"""The command line. Parse, call, print: no logic, and nothing heavy is imported before a command needs it."""

import os
import sys

from hmtl_dist import garbage


def main() -> None:
    """Run the command line `hmtl-dist`."""
    garbage.collect_rarely()
    try:
        _run()
    except ModuleNotFoundError as error:
        missing = (error.name or "hmtl_dist").partition(".")[0]
        if missing == "hmtl_dist":
            raise
        print(  # noqa: T201  # typer may be what is missing, on a node of a cluster for example
            f"error: the package '{missing}' is not installed for {sys.executable}; install what this program needs: "
            "pip install -c constraints.txt .",
            file=sys.stderr,
        )
        raise SystemExit(2) from error
    finally:
        garbage.collect_no_more()


def _run() -> None:
    from hmtl_dist.cli.app import Commands, app

    try:
        app(prog_name="hmtl-dist")
    except SystemExit:
        if Commands.interrupted:  # at once: Python itself would wait for uploads under way, which may have stalled
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(130)
        raise
