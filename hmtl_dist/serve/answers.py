"""What goes over HTTP, and what goes between the front and the model. Imports nothing heavy: the front has no torch."""

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, Field


class Head(BaseModel):
    """One supervised head."""

    kind: Literal["classes", "numbers"]
    """Whether it says probabilities of classes, or numbers."""
    names: tuple[str, ...]
    """Its classes or numbers."""
    units: dict[str, str] = {}
    """Units of numbers, where they are known."""


class About(BaseModel):
    """What is served."""

    model: str
    """As it was named at the start."""
    heads: dict[str, Head]
    image_size: int
    """Height and width of what the model sees, in pixels."""
    crop: float
    """It sees the central square of this share of a picture's shorter side."""
    explains: bool
    """Whether `/explain` can be asked."""
    max_bytes: int
    """Of a picture's file."""
    run: str = ""
    """The run that trained it."""
    sha256: str = ""
    """Of its weights."""


class Classes(BaseModel):
    """What a head says of a picture's class."""

    kind: Literal["classes"] = "classes"
    label: str
    """The likeliest class."""
    probabilities: dict[str, float]
    """Of every class; they add up to 1."""


class Numbers(BaseModel):
    """What a head measures in a picture."""

    kind: Literal["numbers"] = "numbers"
    values: dict[str, float]
    """By label, in the units that `/model` names."""


class Prediction(BaseModel):
    """What a model says of a picture, which is taken as the face: none is looked for."""

    heads: dict[str, Annotated[Classes | Numbers, Field(discriminator="kind")]]


class Explanation(BaseModel):
    """Which region of a picture spoke for an output (Grad-CAM)."""

    head: str
    name: str
    """The class or number that is explained."""
    crop: float
    """The map lies over the central square of this share of the picture's shorter side."""
    map: list[list[float]]
    """Rows from the top, each from the left, 0 to 1; all 0 where nothing spoke for it."""


class Trouble(BaseModel):
    """Why a request was not answered, in one sentence."""

    detail: str


@dataclass(frozen=True)
class Answer:
    """What the model's process says of one picture."""

    values: dict[str, float]
    """By column, `HEAD.NAME`."""
    batch_size: int
    """Pictures that were computed together with it."""
    first: bool
    """Whether it was the first of them: so that batches can be counted."""


@dataclass(frozen=True)
class Refusal:
    """Why the model's process says nothing of a picture."""

    status: int
    """As HTTP counts them."""
    reason: str


class BusyError(Exception):
    """There is no more room in the model's queue."""


class UnavailableError(Exception):
    """No process has the model at the moment."""


class Backend(Protocol):
    """The model as the front sees it.

    Its methods raise BusyError and UnavailableError.
    """

    async def predict(self, picture: bytes) -> Answer | Refusal:
        """Say what the model sees in a picture file."""
        ...

    async def explain(self, picture: bytes, head: str, name: str) -> Explanation | Refusal:
        """Say which region spoke for an output of a head; an empty name means the likeliest class or first number."""
        ...

    async def alive(self) -> bool:
        """Whether some process has the model."""
        ...


def prediction(about: About, values: dict[str, float]) -> Prediction:
    """Put the columns `HEAD.NAME` of a picture in order."""
    heads: dict[str, Classes | Numbers] = {}
    for task, head in about.heads.items():
        of_head = {name: values[f"{task}.{name}"] for name in head.names}
        if head.kind == "classes":
            heads[task] = Classes(label=max(of_head, key=of_head.__getitem__), probabilities=of_head)
        else:
            heads[task] = Numbers(values=of_head)
    return Prediction(heads=heads)
