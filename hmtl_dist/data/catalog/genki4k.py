"""GENKI-4K: 4000 faces from the web, smiling or not (Machine Perception Laboratory, UC San Diego, 2009).

    files/file0001.jpg ... file4000.jpg
    labels.txt        line n for picture n: smile (1 or 0), then yaw, pitch and roll in radians

The README does not say which way the angles count, so they are left out unless asked for, and then only turned into
degrees: compare a few pictures before they are mixed with other sets.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from typing_extensions import override

from hmtl_dist.config.base import Section
from hmtl_dist.data.catalog.originals import DEGREES, SMILE, OriginalsAdapter, code, first_of, numbers, read_lines
from hmtl_dist.data.catalog.registry import DataSet
from hmtl_dist.data.dataset.adapter import Rejected, SampleRef
from hmtl_dist.data.dataset.schema import Field, LabelValue

_CODES: dict[str, str | None] = {"0": "no", "1": "yes"}
_ANGLES = ("yaw", "pitch", "roll")


class Options(Section):
    """How GENKI-4K is read."""

    pose: bool = False
    """Take the angles too, in degrees, with the signs as published, which nobody has documented."""


class Genki4k(OriginalsAdapter):
    """The pictures in the order of their labels."""

    def __init__(self, source: Path, options: Options) -> None:
        self._labels = first_of(source, "labels.txt", "genki4k/labels.txt", what="GENKI-4K")
        super().__init__(self._labels.parent)
        self._options = options

    @property
    @override
    def fields(self) -> Mapping[str, Field]:
        return {"smile": SMILE, **(dict.fromkeys(_ANGLES, DEGREES) if self._options.pose else {})}

    @override
    def refs(self) -> Iterator[SampleRef | Rejected]:
        for line, text in enumerate(read_lines(self._labels, keep_empty=True), start=1):
            name = f"files/file{line:04d}.jpg"
            try:
                labels: dict[str, LabelValue] = {"smile": code(text.partition(" ")[0], _CODES, "smile")}
                if self._options.pose:
                    angles = numbers(text, 4, "the line")[1:4]
                    labels |= {key: round(math.degrees(angle), 4) for key, angle in zip(_ANGLES, angles, strict=True)}
                yield SampleRef(name, labels)
            except ValueError as error:
                yield Rejected(name, str(error))


DATASET = DataSet(
    name="genki4k",
    title="GENKI-4K (2009)",
    labels=("smile", "yaw", "pitch", "roll"),
    licence="free for research, with acknowledgement",
    url="https://inc.ucsd.edu/mplab/398/",
    splits="train=0.8,val=0.2",
    options=Options,
    open=Genki4k,
)
