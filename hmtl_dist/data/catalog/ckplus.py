"""CK+, the extended Cohn-Kanade set: posed sequences from neutral to the peak of an expression (Lucey et al. 2010).

    cohn-kanade-images/S005/001/S005_001_00000001.png ...
    Emotion/S005/001/S005_001_00000011_emotion.txt         one code; only 327 of the 593 sequences have one
    Landmarks/S005/001/S005_001_00000001_landmarks.txt     68 lines of x and y, for the crop

The usual protocol: the last three frames of a labelled sequence show its expression, and the first may serve as
neutral. Codes are 1 anger, 2 contempt, 3 disgust, 4 fear, 5 happy, 6 sadness, 7 surprise. The group is the subject:
frames of one sequence are near-duplicates, so nothing else may decide the side of a split. Sequences without a code are
passed over.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from pydantic import Field as Limits
from typing_extensions import override

from hmtl_dist.config.base import Section
from hmtl_dist.data.catalog.originals import (
    OriginalsAdapter,
    expression_field,
    first_of,
    landmark_box,
    numbers,
    pictures_under,
)
from hmtl_dist.data.catalog.registry import DataSet
from hmtl_dist.data.dataset.adapter import Box, Rejected, SampleRef
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.errors import UserError

_CODES = {1: "anger", 2: "contempt", 3: "disgust", 4: "fear", 5: "happy", 6: "sad", 7: "surprise"}
_POINTS = 68


class Options(Section):
    """How CK+ is read."""

    frames: int = Limits(default=3, ge=1)
    """Last frames of a sequence that are taken to show its expression."""
    neutral: bool = False
    """Take the first frame of each labelled sequence as neutral; eight classes instead of seven."""
    crop: bool = True
    """Cut faces out by the published landmarks."""
    margin: float = Limits(default=0.1, ge=0, le=2)
    """Added on every side of the face, as a share of its longer side."""


class CKPlus(OriginalsAdapter):
    """Labelled frames of CK+."""

    def __init__(self, source: Path, options: Options) -> None:
        images = first_of(source, "cohn-kanade-images", "extended-cohn-kanade-images/cohn-kanade-images", what="CK+")
        super().__init__(images)
        self._emotions = first_of(source, "Emotion", "Emotion_labels/Emotion", what="labels of CK+")
        self._options = options
        self._landmarks = source / "Landmarks"
        if options.crop and not self._landmarks.is_dir():
            raise UserError(f"crop: no folder {self._landmarks}; unpack the landmarks of CK+, or give --no-crop")

    @property
    @override
    def fields(self) -> Mapping[str, Field]:
        names = [*_CODES.values(), "neutral"] if self._options.neutral else list(_CODES.values())
        return {"expression": expression_field(names)}

    @property
    @override
    def group(self) -> str:
        return "subject"

    @override
    def refs(self) -> Iterator[SampleRef | Rejected]:
        for file in sorted(self._emotions.glob("*/*/*_emotion.txt")):
            if file.name.startswith("."):
                continue
            sequence = file.parent.relative_to(self._emotions).as_posix()
            try:
                yield from self._frames(sequence, _expression(file))
            except ValueError as error:
                yield Rejected(sequence, str(error))

    def _frames(self, sequence: str, expression: str) -> Iterator[SampleRef | Rejected]:
        frames = [path.relative_to(self._root).as_posix() for path in pictures_under(self._root / sequence)]
        last = frames[-self._options.frames :]
        if not last:
            raise ValueError("the sequence has a label and no pictures")
        chosen = [(name, expression) for name in last]
        if self._options.neutral and frames[0] not in last:
            chosen.insert(0, (frames[0], "neutral"))
        for name, label in chosen:
            try:
                yield SampleRef(name, {"expression": label}, sequence.split("/", maxsplit=1)[0], box=self._box(name))
            except ValueError as error:
                yield Rejected(name, str(error))

    def _box(self, name: str) -> Box | None:
        if not self._options.crop:
            return None
        file = (self._landmarks / name).with_name(f"{Path(name).stem}_landmarks.txt")
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise ValueError("the landmarks are missing") from None
        points = np.array(numbers(text, 2 * _POINTS, "the file of landmarks")[: 2 * _POINTS]).reshape(-1, 2)
        return landmark_box(points).grown(self._options.margin)


def _expression(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        text = ""
    try:
        return _CODES[int(float(text))]  # written as 3.0000000e+00
    except (ValueError, OverflowError, KeyError):
        raise ValueError(f"emotion is {text!r}, not 1 to 7") from None


DATASET = DataSet(
    name="ckplus",
    title="CK+ (2010)",
    labels=("expression",),
    licence="research only, on signed request",
    url="http://www.jeffcohn.net/Resources/",
    splits="train=0.8,val=0.2",
    group="subject",
    options=Options,
    open=CKPlus,
)
