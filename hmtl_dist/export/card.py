"""The model card of an exported model: what it is for, what it was trained on, how good it was found, its limits.

The sections follow Mitchell et al., "Model cards for model reporting" (FAT* 2019).
"""

import textwrap
from collections.abc import Iterator
from pathlib import Path

import yaml

from hmtl_dist.data.catalog.registry import data_sets
from hmtl_dist.export.folder import FILES
from hmtl_dist.inference.info import ModelInfo, Origin

CARD_FILE = "README.md"
UNKNOWN = "not known to this program: ask whoever made the data set"
RECIPE_PARTS = ("tasks", "model", "augment", "weighting", "optim", "engine", "train", "data", "seed")


def write_card(folder: Path, info: ModelInfo) -> None:
    """Write the card beside a model."""
    (folder / CARD_FILE).write_text("\n\n".join(_card(info)) + "\n", encoding="utf-8")


def _card(info: ModelInfo) -> Iterator[str]:
    origin = info.origin
    yield f"# {origin.run if origin else 'A face model'}"
    yield _text(
        f"A face model: {info.model.backbone}, {info.num_parameters:,} parameters, trained by hybrid multi-task "
        "learning ([arXiv 2105.06421](https://arxiv.org/abs/2105.06421)). Pretext heads are left out: it costs what "
        "the plain backbone with the same heads costs."
    )
    heads = [
        f"| {task} | {'probabilities' if head.type == 'classification' else 'numbers'} | {', '.join(head.names)} |"
        for task, head in info.tasks.items()
    ]
    yield _lines("| head | says | of |", "|---|---|---|", *heads)
    yield from _use(info)
    if origin:
        yield from _data(origin)
    yield from _found(info)
    if origin:
        yield from _metrics(origin, info)
    yield from _limits()
    yield from _files(info)
    if origin:
        yield from _recipe(origin)


def _use(info: ModelInfo) -> Iterator[str]:
    size = info.image_size
    yield "## Use"
    yield "    hmtl-dist predict FOLDER PICTURES"
    yield _text(
        f"A picture is taken as the face: the central square of {info.augment.eval_crop:g} of its shorter side, scaled "
        f"to {size} x {size} RGB in [0, 1]. It is normalised inside the model (mean {_numbers(info.mean)}, deviation "
        f"{_numbers(info.std)})."
    )
    if info.format != "safetensors":
        yield _text(
            f"The graph takes `images`, float32 `[N, 3, {size}, {size}]` in [0, 1] with N free, and gives an output a "
            "head, by its name, `[N, classes or labels]`."
        )


def _data(origin: Origin) -> Iterator[str]:
    known = data_sets().get(origin.dataset)
    licence = known.licence if known and known.licence else UNKNOWN
    test = origin.test_set
    yield "## Data"
    yield _lines(
        f"- Trained on {known.title if known else origin.dataset}, digest `{origin.data_digest}`.",
        f"- Licence: {licence}. A model may be bound by the licence of what it was trained on.",
        f"- Evaluated on {test.num_samples:,} pictures of {test.dataset}/{test.split}, digest `{test.digest}`.",
    )


def metric_rows(info: ModelInfo) -> Iterator[tuple[str, str, str, str]]:
    """Yield of each head its name, its figure with what it is, the interval, and what it was before quantization."""
    float32 = info.quantized.float32 if info.quantized else {}
    for task, found in info.found.items():
        bounds = [_said(bound, found.metric) for bound in (found.low, found.high) if bound is not None]
        before = _said(float32[task], found.metric) if task in float32 else ""
        yield task, f"{found.metric} {_said(found.value, found.metric)}", " to ".join(bounds), before


def _said(value: float, metric: str) -> str:
    return f"{value:.1%}" if metric == "accuracy" else f"{value:.4g}"


def _found(info: ModelInfo) -> Iterator[str]:
    """Lay out what the exported model itself is worth on its whole test set."""
    if info.quantized:
        yield "## 8-bit integers"
        told = "" if info.found else " What that costs was not measured."
        yield _text(
            f"It computes in 8-bit integers. {info.quantized.calibrated_on} pictures of the training split gave the "
            f"ranges of its activations.{told}"
        )
    if not info.found:
        return
    yield "## What it is worth"
    columns = ("head", "figure", "95 % interval", "pictures", "groups", *(("in float32",) if info.quantized else ()))
    rows = [
        (
            task,
            metric,
            bounds,
            f"{found.num_samples:,}",
            f"{found.num_groups:,}",
            *((before,) if info.quantized else ()),
        )
        for (task, metric, bounds, before), found in zip(metric_rows(info), info.found.values(), strict=True)
    ]
    yield _lines(*("| " + " | ".join(row) + " |" for row in (columns, ("---",) * len(columns), *rows)))
    yield _text(
        "Found with this very file on the whole test set. The interval is where the figure would lie for other groups "
        "(people, where they are known; else pictures) of the same kind, trained as it is: another training with "
        "another seed may differ by more."
    )


def _metrics(origin: Origin, info: ModelInfo) -> Iterator[str]:
    """Lay out the figures of the heads that were kept, for the weights that were kept."""
    kind = origin.weights if any(name.startswith(f"{origin.weights}/") for name in origin.metrics) else "eval"
    rows = [
        f"| {name.removeprefix(f'{kind}/')} | {value:.4g} |"
        for name, value in sorted(origin.metrics.items())
        if name.startswith(f"{kind}/") and any(f"/{task}/" in name for task in info.tasks)
    ]
    yield "## Figures of the run"
    then = ", then in float32" if info.quantized else ""
    yield _text(
        f"As the run logged them at its last evaluation (`{kind}/`); the model has the weights `{origin.weights}` of "
        f"step {origin.global_step:,}{then}. Figures of groups (`group/`), where groups were told apart, show for whom "
        "it works less well."
    )
    yield _lines("| figure | value |", "|---|---|", *rows) if rows else "None were logged."


def _limits() -> Iterator[str]:
    yield "## Intended use and limits"
    yield _text(
        "For research on face representations, and for pictures like those it was trained on. It finds no faces: a "
        "picture without one gets an answer too. Expression is how a face looks, not what a person feels; gender is "
        "what annotators saw, not who a person is. Figures hold for the test set above and may be far lower on other "
        "people, cameras and light. It is not made to decide on persons, to identify them or to watch them."
    )


def _files(info: ModelInfo) -> Iterator[str]:
    yield "## Files"
    yield _lines(
        f"- `{FILES[info.format]}`: the weights, sha256 `{info.sha256}`",
        "- `model.json`: input size, normalisation, class names, origin, digests",
    )
    if info.parity:
        yield _text(
            f"Compared with the trained model on {info.parity.num_samples} pictures of the test set when it was "
            f"exported{', before it was quantized' if info.quantized else ''}: largest difference "
            f"{info.parity.max_difference:.2g}, allowed {info.parity.tolerance:g}."
        )


def _recipe(origin: Origin) -> Iterator[str]:
    parts = {name: origin.recipe[name] for name in RECIPE_PARTS if name in origin.recipe}
    yield "## Recipe"
    yield _lines("```yaml", yaml.safe_dump(parts, sort_keys=False, width=110).rstrip(), "```")


def _text(text: str) -> str:
    return textwrap.fill(text, 110, break_long_words=False, break_on_hyphens=False)


def _lines(*lines: str) -> str:
    return "\n".join(lines)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
