"""`services`: the local S3 and MLflow servers."""

import json
import shlex
from typing import Annotated

import typer

from hmtl_dist.errors import UserError

app = typer.Typer(no_args_is_help=True)


@app.command("start")
def start() -> None:
    """Start both servers on this machine, and wait until they answer."""
    from hmtl_dist.config.io import home
    from hmtl_dist.services import start_services

    info = start_services(home())
    for name, label, url in (("s3", "S3", info.endpoint), ("mlflow", "MLflow", info.tracking_uri)):
        typer.echo(f"{label:<7} {url}  {'started' if name in info.started else 'was already running'}")
    typer.echo(f"bucket  {info.bucket_url}")
    typer.echo("hmtl-dist uses them where no other S3 or MLflow is set")
    typer.echo('other programs of this shell:  eval "$(hmtl-dist services env)"')


@app.command("stop")
def stop() -> None:
    """Stop both servers; what they hold stays."""
    from hmtl_dist.config.io import home
    from hmtl_dist.services import stop_services

    stopped = stop_services(home())
    typer.echo(f"stopped {' and '.join(stopped)}" if stopped else "nothing was running")


@app.command("status")
def status(as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False) -> None:
    """Say which server runs where; exit code 1 unless both answer."""
    from hmtl_dist.config.io import home
    from hmtl_dist.services import services_status

    found = services_status(home())
    if as_json:
        answer = {
            service.name: {
                "running": service.running,
                "ready": service.ready,
                "url": service.url,
                "pid": service.pid,
                "log": str(service.log),
            }
            for service in found
        }
        typer.echo(json.dumps(answer, indent=2))
    else:
        for service in found:
            state = "ready" if service.ready else "not answering" if service.running else "stopped"
            place = f"  {service.url}  pid {service.pid}  log {service.log}" if service.running else ""
            typer.echo(f"{service.name:<7} {state}{place}")
    if not all(service.ready for service in found):
        raise typer.Exit(1)


@app.command("env")
def env(as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False) -> None:
    """Print the variables that lead clients to the servers, credentials among them, for `eval` in a shell."""
    from hmtl_dist.config.io import home
    from hmtl_dist.services import running

    info = running(home())
    if info is None:
        raise UserError("the local services are not running: run `hmtl-dist services start`")
    variables = info.env()
    if as_json:
        typer.echo(json.dumps(variables, indent=2))
        return
    for name, value in variables.items():
        typer.echo(f"export {name}={shlex.quote(value)}")
