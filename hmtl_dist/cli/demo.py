"""`demo`: the whole product once, on this machine, with drawn faces."""

import os
import time
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hmtl_dist.console import Console

app = typer.Typer()

SAMPLES, IDENTITIES, IMAGE_SIZE = 4000, 1000, 80
SPLITS = {"train": 0.9, "val": 0.1}


@app.command()
def demo(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings over the recipe `demo`, such as train.epochs=8.", metavar="[KEY=VALUE]..."),
    ] = None,
) -> None:
    """Start the services, draw faces, train on two Ray workers from S3, evaluate on unseen people."""
    from hmtl_dist.cli.train import run, tell
    from hmtl_dist.config.io import home, load_tree
    from hmtl_dist.console import Console
    from hmtl_dist.run_config import RunConfig
    from hmtl_dist.services.registry import start_services

    begin = time.monotonic()
    with Console() as console:
        console.say("S3 (SeaweedFS) and MLflow on this machine: started, if they do not run yet")
        services = start_services(home())
        os.environ.update(services.env())
        name = time.strftime("demo-%Y%m%d-%H%M%S")
        config = load_tree(RunConfig, "demo", [f"name={name}", *(overrides or ())])
        draw(config.data.url, console)
        finished = run(config, console)
        tell(finished, console, config, again=f"`hmtl-dist demo name={config.name}`")
        word = "done in" if finished.outcome.status == "FINISHED" else "stopped after"
        console.say(f"demo {word} {time.monotonic() - begin:.0f} s; compare runs at {services.tracking_uri}")
        console.say("the services go on running: `hmtl-dist services stop` ends them")
    if finished.outcome.status != "FINISHED":
        raise typer.Exit(130)


def draw(url: str, console: "Console") -> None:
    """Draw the demo's faces into shards; those that an earlier demo left are kept."""
    from hmtl_dist.data.dataset.build import BuildSettings, build
    from hmtl_dist.data.dataset.pool import default_workers
    from hmtl_dist.data.drawn.faces import SyntheticAdapter, SyntheticSettings
    from hmtl_dist.data.storage import open_storage

    adapter = SyntheticAdapter(SyntheticSettings(SAMPLES, IDENTITIES, IMAGE_SIZE))
    settings = BuildSettings(dataset="demo-faces", splits=SPLITS, shard_samples=250)
    # Processes take seconds to start: too long for looking whether all is there.
    num_workers = 1 if open_storage(url).exists("dataset.json") else default_workers()
    with console.counted(f"draw {url}") as show:
        report = build(adapter, url, settings, num_workers=num_workers, on_progress=show)
    counts = ", ".join(f"{header.num_samples} {split}" for split, header in report.headers.items())
    console.say(f"{url}: {counts} pictures; no person is in both")
