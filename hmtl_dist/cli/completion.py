"""Names that a shell completes."""


def recipes(incomplete: str) -> list[str]:
    """Names of shipped recipes that begin so; the shell itself completes files."""
    from hmtl_dist.config.io import list_shipped

    return [name for name in list_shipped("recipes") if name.startswith(incomplete)]


def runs(incomplete: str) -> list[str]:
    """Names of runs that were started here."""
    from hmtl_dist.config.io import home

    return sorted(path.name for path in (home() / "runs").glob("*") if path.name.startswith(incomplete))
