"""Pictures and tables of a run's results. `matplotlib` is imported when the first one is drawn."""

import csv
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hmtl_dist.tracking.jsonl import read_events

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CURVES = 12
_COLOURS = {"train": "tab:blue", "eval": "tab:orange"}


def write_confusion_matrix(folder: Path, task: str, matrix: NDArray[np.int64], classes: Sequence[str]) -> list[Path]:
    """Write `confusion_TASK.csv` and `confusion_TASK.png` into `folder`.

    Args:
        folder: Made if it does not exist.
        task: Name of the classification task.
        matrix: Counts `[K, K]`: rows are true classes, columns predicted ones.
        classes: The K class names.

    Returns:
        The two files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / f"confusion_{task}.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["true \\ predicted", *classes])
        rows.writerows([name, *row] for name, row in zip(classes, matrix.tolist(), strict=True))
    picture = folder / f"confusion_{task}.png"
    Image.fromarray(draw_confusion_matrix(task, matrix, classes)).save(picture)
    return [table, picture]


def draw_confusion_matrix(task: str, matrix: NDArray[np.int64], classes: Sequence[str]) -> NDArray[np.uint8]:
    """Draw counts, coloured by their share of the true class; returns uint8 `[H, W, 3]`."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.55 * len(classes)
    figure = _figure(side, side)
    axes: Any = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(title=task, xlabel="predicted", ylabel="true")
    for row, column in np.ndindex(matrix.shape):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour, fontsize=8)
    return _pixels(figure)


def draw_learning_curves(curves: Mapping[str, Sequence[tuple[int, float]]]) -> NDArray[np.uint8]:
    """Draw curves of (step, value) by the names of their figures; returns uint8 `[H, W, 3]`.

    A frame is of a figure of a task: in training (`train/loss/TASK`, `train/TASK/METRIC`) and in evaluations
    (`eval/TASK/METRIC`). Only the first dozen frames are drawn: losses first, then what both have.
    """
    frames: dict[str, dict[str, Sequence[tuple[int, float]]]] = {}
    for name, points in curves.items():
        if placed := _placed(name):
            title, phase = placed
            frames.setdefault(title, {})[phase] = points
    titles = sorted(frames, key=lambda title: (not title.endswith("loss"), len(frames[title]) < 2))[:MAX_CURVES]
    columns = min(3, max(1, len(titles)))
    lines = max(1, -(-len(titles) // columns))
    figure = _figure(4.0 * columns, 2.6 * lines)
    for place, title in enumerate(titles, start=1):
        axes: Any = figure.add_subplot(lines, columns, place)
        for phase, found in frames[title].items():
            points = sorted(found)
            marker = "." if len(points) < 30 else ""
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, marker=marker, label=phase, color=_COLOURS[phase])
        axes.set_title(title, fontsize=9)
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    return _pixels(figure)


def _placed(name: str) -> tuple[str, str] | None:
    """Say in which frame, and as which curve there, a figure is drawn; None where it tells nothing of a task."""
    phase, _, rest = name.partition("/")
    if phase == "train" and rest.startswith("loss/"):
        return f"{rest.removeprefix('loss/')} loss", phase
    if phase in ("train", "eval") and rest.count("/") == 1:
        return rest.replace("/", " "), phase
    return None


def read_curves(journal: Path) -> dict[str, list[tuple[int, float]]]:
    """Read the metrics of a journal as (step, value) by name, one value a step: the last one written."""
    curves: dict[str, dict[int, float]] = {}
    for event, _ in read_events(journal):
        if event["event"] == "metrics":
            for name, value in event["values"].items():
                curves.setdefault(name, {})[event["step"]] = value
    return {name: sorted(values.items()) for name, values in curves.items()}


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # without pyplot: no global state, safe in any thread

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def _pixels(figure: "Figure") -> NDArray[np.uint8]:
    buffer = BytesIO()
    cast(Any, figure).savefig(buffer, format="png")
    return np.asarray(Image.open(buffer).convert("RGB"))
