"""What stands beside a stored model's weights, in `model.json`: how to feed it, how to read it, where it comes from."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, ValidationError

from hmtl_dist.augment import AugmentConfig
from hmtl_dist.config.base import Section
from hmtl_dist.data.dataset.schema import Field as LabelField
from hmtl_dist.errors import UserError
from hmtl_dist.model.hmtl import ModelConfig
from hmtl_dist.tasks.reading import HeadOutput

INFO_FILE = "model.json"
Format = Literal["safetensors", "onnx", "pt2"]
Weights = Literal["last", "ema", "best"]


class TestSet(Section):
    """Which pictures a model was evaluated on."""

    dataset: str
    """Name of the data set."""
    url: str
    """Where it was read."""
    split: str
    """Split of it."""
    digest: str
    """Equal for equal pictures and labels: of the split's index, and of the fold where it is one."""
    num_samples: int
    """Pictures."""


class Origin(Section):
    """Where a model comes from."""

    run: str
    """Name of the run."""
    global_step: int
    """Optimizer steps it was trained for."""
    weights: Weights
    """Which of the run's weights these are: the last, their moving average, or the best evaluation's."""
    dataset: str
    """Name of the data set it was trained on."""
    data_digest: str
    """Digest of that set's training split."""
    fields: dict[str, LabelField]
    """Labels of the data."""
    test_set: TestSet
    """What its figures were taken on."""
    metrics: dict[str, float]
    """The run's last evaluation, as it was logged."""
    recipe: dict[str, Any]
    """The run's configuration, without where it ran and where it was recorded."""
    versions: dict[str, str]
    """Versions of the packages it was trained with."""


class Parity(Section):
    """How far an exported model was found from the model that was trained."""

    num_samples: int
    """Pictures of the test set that both were asked."""
    max_difference: float
    """Largest difference: of a probability, or of a number in the unit that its head computes in."""
    tolerance: float
    """What was allowed."""


class Found(Section):
    """A figure of the stored model itself, on the whole test set."""

    metric: Annotated[str, Field(validation_alias=AliasChoices("metric", "figure"))]
    """`accuracy`, or `mean error` in the labels' units, or in scales where their units differ."""
    value: float
    low: float | None
    """Of a 95 % interval; None where it is open: of a single group, or of groups with one and the same error."""
    high: float | None
    num_samples: int
    """Pictures that have the label."""
    num_groups: int
    """Groups they belong to, such as people; the interval takes these for independent, not the pictures."""


class Quantized(Section):
    """What it cost to compute in 8-bit integers."""

    calibrated_on: int
    """Pictures of the training split that gave the activations' ranges."""
    float32: dict[str, float]
    """The figure of each head before, if it was asked for; what it is now stands in `found`."""


class ModelInfo(Section):
    """Everything but the weights."""

    format_version: Literal[1] = 1
    """Version of this layout."""
    format: Format = "safetensors"
    """What kind of file the weights are in."""
    sha256: str = ""
    """Of that file, hexadecimal."""
    num_parameters: int = 0
    """Learned numbers of backbone and heads."""
    image_size: int
    """Height and width of the pictures the model was trained on, in pixels."""
    mean: tuple[float, ...] = ()
    """Subtracted from the channels of pictures in [0, 1]; done inside the model."""
    std: tuple[float, ...] = ()
    """What the rest is divided by; done inside the model."""
    model: ModelConfig
    """The backbone."""
    augment: AugmentConfig
    """Decides how a picture is cropped for evaluation: the central square of `eval_crop` of its shorter side."""
    tasks: dict[str, HeadOutput]
    """The supervised heads by task name: classes or labels, and how they are read."""
    origin: Origin | None = None
    """Where the model comes from."""
    parity: Parity | None = None
    """How far it was from the trained model when it was exported, before any quantization."""
    found: dict[str, Found] = Field(default_factory=dict[str, Found])
    """What it was found to be worth then, by task."""
    quantized: Quantized | None = None
    """Set where it computes in 8-bit integers."""


def read_info(folder: Path) -> ModelInfo:
    """Read what stands beside the weights.

    Raises:
        UserError: the folder holds no model, or one of another version.
    """
    try:
        return ModelInfo.model_validate_json((folder / INFO_FILE).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder}: no model here ({INFO_FILE} is missing); give a folder with a model") from error
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        said = f"not readable at '{where}'; written by another version?" if where else "is no JSON; export it again"
        raise UserError(f"{folder / INFO_FILE}: {said}") from error


def write_info(folder: Path, info: ModelInfo) -> None:
    """Write what stands beside the weights."""
    (folder / INFO_FILE).write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")


def output_columns(info: ModelInfo) -> list[str]:
    """Name the columns of a prediction: `TASK.CLASS` for probabilities, `TASK.LABEL` for numbers in their units."""
    return [f"{task}.{name}" for task, head in info.tasks.items() for name in head.names]
