"""`serve`: a trained model behind HTTP."""

from typing import Annotated

import typer

from hmtl_dist.cli.export import ModelName
from hmtl_dist.cli.train import Weights

app = typer.Typer()


@app.command()
def serve(  # noqa: PLR0913, PLR0917  # each is an option
    model: ModelName,
    weights: Annotated[
        Weights | None, typer.Option(help="Which of a run's weights; the averaged ones if it kept some, if empty.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; only this machine can reach 127.0.0.1.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.")] = 8000,
    num_replicas: Annotated[int, typer.Option(help="Processes that compute.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Pictures computed together at most; 1: each alone.")] = 16,
    batch_wait_ms: Annotated[float, typer.Option(help="Milliseconds a batch waits for more pictures.")] = 5.0,
    max_queued: Annotated[int, typer.Option(help="Requests that may wait; one more is answered with 503.")] = 64,
    max_bytes: Annotated[int, typer.Option(help="Bytes of a picture; more is answered with 413.")] = 16 << 20,
    read_timeout: Annotated[
        float, typer.Option(help="Seconds a picture may take to arrive; longer is answered with 408.")
    ] = 10.0,
    max_requests_per_second: Annotated[
        float, typer.Option(help="Of one client; more is answered with 429. 0: no limit.")
    ] = 0.0,
) -> None:
    """Serve a model over HTTP, with a page to try it on; Ctrl-C stops it."""
    from hmtl_dist.config.addresses import is_loopback
    from hmtl_dist.config.io import home
    from hmtl_dist.console import Console
    from hmtl_dist.errors import UserError
    from hmtl_dist.export.folder import open_model
    from hmtl_dist.launch.models import model_folder
    from hmtl_dist.serve.model import describe
    from hmtl_dist.serve.settings import Limits, Settings
    from hmtl_dist.services.store import known_mlflow
    from hmtl_dist.tracking.redact import redact

    try:
        from hmtl_dist.serve.app import serve_model
    except ModuleNotFoundError as error:
        raise UserError(
            f"serving needs a package that is not installed ({error.name}); pip install 'hmtl-dist[serve]'"
        ) from error
    settings = Settings(
        host=host,
        port=port,
        num_replicas=num_replicas,
        batch_size=batch_size,
        batch_wait_ms=batch_wait_ms,
        max_queued=max_queued,
        limits=Limits(max_bytes, read_timeout, max_requests_per_second),
    )
    settings.check()
    chosen = None if weights is None else weights.value
    log = home() / "serve" / "log.txt"
    with Console() as console, model_folder(model, known_mlflow(), chosen) as folder:
        about = describe(open_model(folder), model, max_bytes)
        if not is_loopback(host):
            console.warn(f"anyone who can reach {host} may use this server: it knows no passwords and encrypts nothing")
        with console.capture(log, redact):
            serve_model(
                folder,
                about,
                settings,
                on_ready=lambda address: console.say(f"serving {model} at {address} (Ctrl-C stops)"),
                on_stop=lambda: console.interrupt("stopping"),
            )
        console.say("stopped")
