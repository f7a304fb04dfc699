"""What an adapter of a data set is: it names the samples of a folder of originals and loads their pictures."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from hmtl_dist.data.dataset.schema import Field, LabelValue


class RejectedError(Exception):
    """A sample cannot be used; the message says why. It is reported and left out, and the rest is done."""


@dataclass(frozen=True)
class Box:
    """A face in a picture, in pixels from its upper left corner; it may reach over the picture's edges."""

    left: float
    top: float
    width: float
    height: float

    def grown(self, margin: float) -> "Box":
        """The box with `margin` times its longer side added on every side."""
        pixels = margin * max(self.width, self.height)
        return Box(self.left - pixels, self.top - pixels, self.width + 2 * pixels, self.height + 2 * pixels)


@dataclass(frozen=True)
class SampleRef:
    """A sample that is known, but not yet loaded."""

    name: str
    """What the adapter loads it by; unique, and readable for people (for example a path)."""
    labels: Mapping[str, LabelValue]
    """Its labels; those it has none of may be left out."""
    group: str | None = None
    """Who or what it belongs to: all samples of a group fall to one split. None: to none."""
    split: str | None = None
    """Which of the adapter's published splits it is in; None when there are none."""
    box: Box | None = None
    """The part of the picture to keep, as a square around it; None keeps the whole picture."""


@dataclass(frozen=True)
class Rejected:
    """A sample that was left out."""

    name: str
    """Which one."""
    reason: str
    """Why, for people."""


class Adapter(Protocol):
    """A source of samples. Pickled into worker processes, so it holds no open files or connections."""

    @property
    def fields(self) -> Mapping[str, Field]:
        """The labels that samples may carry."""
        ...

    @property
    def group(self) -> str | None:
        """What a group is (for example `subject`); None when the samples have no groups."""
        ...

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that the authors of the set have published, training first; () when there are none."""
        return ()

    def refs(self) -> Iterator[SampleRef | Rejected]:
        """Every sample once, in an order that is always the same; cheap, without loading pictures."""
        ...

    def stamp(self, ref: SampleRef) -> str:
        """What changes when the original does: its size and time, or its entity tag; "" where there is none to look at.

        A build that goes on makes those shards again whose originals have another stamp than when they were written.
        """
        del ref
        return ""

    def load(self, ref: SampleRef) -> bytes:
        """The encoded picture of a sample (any format that Pillow reads).

        Raises:
            RejectedError: when this sample cannot be loaded, while others may.
        """
        ...
