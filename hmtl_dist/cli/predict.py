"""`predict`: what a trained model says of pictures."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hmtl_dist.cli.export import AsJson, ModelName
from hmtl_dist.cli.train import Weights
from hmtl_dist.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from hmtl_dist.export.pictures import Answer
    from hmtl_dist.inference.info import ModelInfo

app = typer.Typer()

NO_DETECTOR = "each picture is taken as the face: its centre is cropped as in evaluation, no face is looked for"


@app.command()
def predict(
    model: ModelName,
    pictures: Annotated[list[str], typer.Argument(help="Files, folders or s3:// URLs.", metavar="PICTURES...")],
    weights: Annotated[
        Weights | None, typer.Option(help="Which of a run's weights; the averaged ones if it kept some, if empty.")
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="File to write all values to, a row a picture.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a model sees in pictures; ends with 1 where some could not be read."""
    from hmtl_dist.console import Console
    from hmtl_dist.export.pictures import find_pictures, predict_files
    from hmtl_dist.launch.models import predictor_of
    from hmtl_dist.services.store import known_mlflow

    if csv_file is not None and not csv_file.absolute().parent.is_dir():
        raise UserError(f"--csv {csv_file}: there is no folder '{csv_file.parent}'")
    files, passed_over = find_pictures(pictures)
    with Console() as console:
        chosen = None if weights is None else weights.value
        with predictor_of(model, known_mlflow(), chosen) as predictor:
            with console.counted("predict", quiet=as_json) as show:
                answers = list(predict_files(predictor, files, show))
            info = predictor.info
        if csv_file is not None:
            _write_csv(csv_file, answers, info)
        failed = [answer for answer in answers if answer.error]
        if as_json:
            console.say(json.dumps(_as_dict(model, answers, info)))
        else:
            if csv_file is not None:
                console.say(f"written    {csv_file}")
            elif len(failed) < len(answers):
                console.show(_table(answers, info))
            console.say(f"pictures: {len(answers) - len(failed):,}; {NO_DETECTOR}")
            if passed_over:
                console.say(f"passed over, no pictures by their name: {passed_over:,}")
            for answer in failed:
                console.warn(f"{answer.name}: {answer.error}")
        if failed:
            raise typer.Exit(1)


def _by_head(values: Mapping[str, float], info: "ModelInfo") -> dict[str, dict[str, float]]:
    return {task: {name: values[f"{task}.{name}"] for name in head.names} for task, head in info.tasks.items()}


def _table(answers: "Sequence[Answer]", info: "ModelInfo") -> "Table":
    from rich.table import Table

    table = Table("picture", *info.tasks)
    table.columns[0].overflow = "fold"
    for answer in answers:
        if answer.error:
            continue
        cells: list[str] = []
        for task, values in _by_head(answer.values, info).items():
            if info.tasks[task].type == "classification":
                best = max(values, key=values.__getitem__)
                cells.append(f"{best} {values[best]:.0%}")
            else:
                cells.append("  ".join(f"{name} {value:.1f}" for name, value in values.items()))
        table.add_row(answer.name, *cells)
    return table


def _as_dict(model: str, answers: "Sequence[Answer]", info: "ModelInfo") -> dict[str, object]:
    return {
        "model": model,
        "taken_as_face": True,
        "pictures": [{"file": one.name, **_by_head(one.values, info)} for one in answers if not one.error],
        "failed": [{"file": one.name, "error": one.error} for one in answers if one.error],
    }


def _write_csv(path: Path, answers: "Sequence[Answer]", info: "ModelInfo") -> None:
    from hmtl_dist.inference.info import output_columns

    columns = output_columns(info)
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file", *columns, "error"])
            for answer in answers:
                writer.writerow([answer.name, *(answer.values.get(column, "") for column in columns), answer.error])
    except OSError as error:
        raise UserError(f"--csv {path}: {(error.strerror or str(error)).lower()}") from error
