"""`ui`: MLflow's page on the right store, with saved views."""

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from hmtl_dist.errors import UserError

if TYPE_CHECKING:
    from hmtl_dist.tracking.config import TrackingConfig

app = typer.Typer()

_LOOK_SECONDS = 0.2
"""How often it is looked whether somebody asked to stop."""


@app.command()
def ui(
    experiment: Annotated[
        str | None, typer.Argument(help="MLflow experiment; the one with the newest run if empty.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open a browser, where there is one.")] = True,
) -> None:
    """Show MLflow's page with charts that compare the runs of an experiment.

    MLFLOW_TRACKING_URI says which MLflow; else it is the local server if that runs, else the database of this machine,
    which is served until Ctrl-C.
    """
    import os
    import time
    import webbrowser

    from hmtl_dist.config.io import home
    from hmtl_dist.console import Console
    from hmtl_dist.launch.signals import StopRequest
    from hmtl_dist.services.page import shown
    from hmtl_dist.services.store import known_mlflow, looked_up
    from hmtl_dist.tracking.config import TrackingConfig, tracking_uri
    from hmtl_dist.tracking.redact import redact

    known = config = known_mlflow()
    store = tracking_uri(config)
    with Console() as console, ExitStack() as stack:
        stop: StopRequest | None = None
        if not store.startswith("http"):
            console.say(f"starting MLflow's server on {redact(store)}")
            stop = stack.enter_context(StopRequest())  # whatever signal comes from here on, the server is ended
            config = TrackingConfig(uri=stack.enter_context(shown(store, home() / "services")))
        with looked_up(known):
            links = _links(config, experiment)
        for name, url in links:
            console.say(f"{name}: {url}")
            if browser and console.is_terminal and (os.environ.get("DISPLAY") or os.uname().sysname == "Darwin"):
                webbrowser.open(url)
                browser = False
        if stop is not None:
            console.say("Ctrl-C ends it")
            while not stop.requested:
                time.sleep(_LOOK_SECONDS)


def _links(config: "TrackingConfig", experiment: str | None) -> list[tuple[str, str]]:
    """Save the views and return (name, URL) of each."""
    from hmtl_dist.tracking.history import History
    from hmtl_dist.tracking.views import save_views, view_url, views_of

    history = History(config)
    known = history.experiments()
    name = experiment or history.newest()
    if name is None:
        raise UserError(f"MLflow at {history.address} has no runs yet; train something first")
    if name not in known:
        raise UserError(f"{name}: MLflow at {history.address} has no such experiment, only {', '.join(known)}")
    runs = history.of_experiment(name)
    if not runs:
        raise UserError(f"{name}: MLflow at {history.address} has no runs in this experiment yet")
    views = views_of(history, runs)
    save_views(config, known[name], views)
    return [(f"{name}, {view.name}", view_url(history.address, known[name], view)) for view in views]
