"""`export`: a trained model to take away."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hmtl_dist.cli.train import Weights

app = typer.Typer()

ModelName = Annotated[
    str,
    typer.Argument(
        help="Name, folder or URL of a run or checkpoint; folder of an exported model; models:/NAME@ALIAS.",
        metavar="MODEL",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


class FormatName(StrEnum):
    """What the weights are written as."""

    SAFETENSORS = "safetensors"
    ONNX = "onnx"
    ONNX_INT8 = "onnx-int8"
    PT2 = "pt2"


@app.command()
def export(
    model: ModelName,
    form: Annotated[FormatName, typer.Option("--format", help="What the weights are written as.")] = (
        FormatName.SAFETENSORS
    ),
    weights: Annotated[
        Weights | None, typer.Option(help="Which of a run's weights; the averaged ones if it kept some, if empty.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; NAME-FORMAT in the working directory if empty.")
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Head to keep; may be given again; all supervised ones if empty."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Where the test set of a stored model is now; where it was if empty.")
    ] = None,
    metrics: Annotated[
        bool, typer.Option(help="Ask about the whole test set, for figures with intervals in the model card.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Export backbone and supervised heads, compared with the trained model on pictures of its test set."""
    from hmtl_dist.console import Console
    from hmtl_dist.export.card import metric_rows
    from hmtl_dist.launch.export import export_model
    from hmtl_dist.services.store import known_mlflow

    with Console() as console:
        chosen = None if weights is None else weights.value
        with console.counted("test set", quiet=as_json) as on_progress:
            found = export_model(
                model,
                form=form.value,
                out=out,
                weights=chosen,
                heads=tuple(head or ()),
                data=data,
                measure=metrics,
                tracking=known_mlflow(),
                on_progress=on_progress,
            )
        info = found.info
        if as_json:
            console.say(json.dumps({"folder": found.folder, **info.model_dump(mode="json")}))
            return
        console.say(f"exported   {found.folder}")
        console.say(f"heads      {', '.join(info.tasks)}; {info.num_parameters:,} parameters")
        if info.parity:
            console.say(
                f"parity     {info.parity.max_difference:.2g} at most on {info.parity.num_samples} pictures of the "
                f"test set, allowed {info.parity.tolerance:g}{', in float32' if info.quantized else ''}"
            )
        for task, metric, bounds, before in metric_rows(info):
            rest = (f" ({bounds})" if bounds else "") + (f", {before} in float32" if before else "")
            console.say(f"{task:10} {metric}{rest}")
        console.say(f"sha256     {info.sha256}")
