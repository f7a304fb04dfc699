"""Drawn faces with known expression, gender, age, identity and pose: a data set that needs no download.

An identity is drawn once (skin, hair, shape of the face, …); each of its pictures has its own expression with its own
intensity, pose, place, size, light, background and noise. Everything follows from (seed, index).

Angles are in degrees as people see the picture: yaw is positive when the face looks to the right edge of the picture,
pitch when it looks up, roll when the head is turned counter-clockwise.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from hmtl_dist.data.dataset.adapter import Adapter, Rejected, SampleRef
from hmtl_dist.data.dataset.pictures import encode_jpeg
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.data.drawn.drawing import draw_face
from hmtl_dist.data.drawn.face import EXPRESSIONS, Face, Identity, Look, Scene
from hmtl_dist.errors import UserError

_IDENTITY, _SAMPLE = 1, 2
_SKINS = np.array([[255, 224, 196], [241, 194, 125], [224, 172, 105], [198, 134, 66], [141, 85, 36], [92, 56, 30]])
_HAIRS = np.array([[35, 28, 24], [75, 50, 32], [120, 80, 45], [190, 150, 90], [150, 65, 35]])
_IRISES = np.array([[90, 60, 30], [60, 95, 130], [70, 110, 70], [50, 40, 35]])
_GREY = np.array([190, 190, 188])


@dataclass(frozen=True)
class SyntheticSettings:
    """Which faces are drawn."""

    samples: int
    """Pictures."""
    identities: int
    """People; picture i shows person i modulo this."""
    image_size: int = 96
    """Pixels of the side."""
    seed: int = 0
    """Another seed gives other people."""


class SyntheticAdapter(Adapter):
    """Drawn faces as a source of samples, with the person as the group.

    Raises:
        UserError: when fewer samples than people, or pictures too small to show a face, are asked for.
    """

    def __init__(self, settings: SyntheticSettings) -> None:
        if not 1 <= settings.identities <= settings.samples:
            raise UserError(
                f"{settings.samples} samples of {settings.identities} identities: give at least one identity, and as "
                "many samples as identities"
            )
        if not 16 <= settings.image_size <= 1024:
            raise UserError(f"image size {settings.image_size} is not allowed: give 16 to 1024 pixels")
        self._settings = settings

    @property
    @override
    def fields(self) -> Mapping[str, Field]:
        degrees = Field(kind="number", unit="degrees")
        return {
            "expression": Field(kind="category", classes=tuple(EXPRESSIONS)),
            "gender": Field(kind="category", classes=("female", "male")),
            "age": Field(kind="number", unit="years"),
            "yaw": degrees,
            "pitch": degrees,
            "roll": degrees,
        }

    @property
    @override
    def group(self) -> str:
        return "identity"

    @override
    def refs(self) -> Iterator[SampleRef | Rejected]:
        for index in range(self._settings.samples):
            face = face_at(self._settings.seed, index, self._settings.identities)
            labels = {
                "expression": face.expression,
                "gender": "female" if face.identity.female else "male",
                "age": round(face.identity.age, 1),
                "yaw": round(face.yaw, 2),
                "pitch": round(face.pitch, 2),
                "roll": round(face.roll, 2),
            }
            yield SampleRef(f"{self._settings.seed}-{index}", labels, f"{face.identity_number:06d}")

    @override
    def load(self, ref: SampleRef) -> bytes:
        index = int(ref.name.rpartition("-")[2])
        return face_jpeg(self._settings.seed, index, self._settings.identities, self._settings.image_size)


def face_jpeg(seed: int, index: int, identities: int, image_size: int) -> bytes:
    """The JPEG of picture `index`."""
    rng = np.random.default_rng([seed, index, _SAMPLE, image_size])
    picture = draw_face(face_at(seed, index, identities), image_size, rng)
    return encode_jpeg(picture, int(rng.integers(80, 96)))


def face_at(seed: int, index: int, identities: int) -> Face:
    """What picture `index` shows."""
    number = index % identities
    rng = np.random.default_rng([seed, index, _SAMPLE])
    expression = list(EXPRESSIONS)[int(rng.integers(len(EXPRESSIONS)))]
    yaw, pitch, roll = np.clip(rng.normal(0, (13, 8, 11)), (-40, -24, -35), (40, 24, 35)).tolist()
    return Face(
        expression=expression,
        identity_number=number,
        identity=_identity(seed, number),
        look=_look(EXPRESSIONS[expression], rng),
        side=int(rng.integers(2)) * 2 - 1,
        yaw=yaw,
        pitch=pitch,
        roll=roll,
        scene=_scene(rng),
    )


def _look(typical: Look, rng: np.random.Generator) -> Look:
    intensity = rng.uniform(0.6, 1.15)
    values = np.array([*vars(typical).values()]) * intensity
    # Nobody is ever wholly relaxed: without this, neutral would be recognised by its exactness.
    values[:6] += rng.normal(0, 0.1, 6)
    values[4] = max(values[4], 0)
    return Look(*values.tolist())


def _scene(rng: np.random.Generator) -> Scene:
    centre_x, centre_y = (0.5 + rng.uniform(-0.12, 0.12, 2)).tolist()
    across, down = rng.uniform(-0.3, 0.3, 2).tolist()
    grid = rng.uniform(20, 235, 3) + rng.normal(0, 35, (int(rng.integers(2, 7)),) * 2 + (3,))
    return Scene(
        centre=(centre_x, centre_y),
        scale=float(rng.uniform(0.33, 0.43)),
        background=np.clip(grid, 0, 255).astype(np.float32),
        light=(float(rng.uniform(0.75, 1.2)), across, down),
        tint=rng.uniform(0.8, 1.2, 3),
        noise=float(rng.uniform(1, 6)),
        blur=float(rng.choice([0.0, 0.0, 0.0, 0.008])),
    )


def _identity(seed: int, number: int) -> Identity:
    """A person. Gender shows in several cues of which each alone is often wrong, as with people."""
    rng = np.random.default_rng([seed, number, _IDENTITY])
    female = bool(rng.integers(2))
    age = float(rng.uniform(18, 80))
    skin = _blend(_SKINS, rng)
    grey = np.clip((age - 40) / 35 + rng.normal(0, 0.25), 0, 0.9)
    hair = _blend(_HAIRS, rng) * (1 - grey) + _GREY * grey
    redness = np.clip(rng.normal(0.75 if female else 0.1, 0.15), 0, 0.95)
    bald = not female and rng.random() < 0.1 + 0.3 * (age > 45)
    long_hair = rng.random() < (0.92 if female else 0.06)
    bearded = not female and rng.random() < 0.7
    return Identity(
        female=female,
        age=age,
        skin=skin,
        hair=hair,
        iris=_blend(_IRISES, rng),
        lips=skin * (0.85, 0.68, 0.65) * (1 - redness) + np.array([215, 15, 70]) * redness,
        clothes=rng.uniform(20, 230, 3),
        head_width=float(np.clip(rng.normal(0.74 if female else 0.8, 0.04), 0.64, 0.92)),
        jaw=float(np.clip(rng.normal(0.3 if female else 0.14, 0.07), 0, 0.45)),
        eye_spacing=float(rng.normal(0.35, 0.025)),
        eye_size=float(np.clip(rng.normal(0.19 if female else 0.165, 0.013), 0.13, 0.23)),
        nose_length=float(rng.normal(0.3, 0.04)),
        mouth_height=float(rng.normal(0.52, 0.025)),
        brow_thickness=float(np.clip(rng.normal(0.055 if female else 0.095, 0.015), 0.035, 0.13)),
        hairline=1.2 if bald else float(rng.uniform(0.55, 0.8)),
        hair_length=float(rng.uniform(0.7, 1.4)) if long_hair else float(rng.uniform(-0.4, 0.1)),
        hair_volume=float(rng.uniform(0.06, 0.18) + 0.08 * long_hair),
        beard=float(rng.uniform(0.6, 1)) if bearded else 0.0,
        lashes=float(rng.uniform(0.5, 1)) if rng.random() < (0.92 if female else 0.06) else 0.0,
        eye_shadow=float(rng.uniform(0.6, 1)) if female and rng.random() < 0.85 else 0.0,
        glasses=bool(rng.random() < 0.15),
    )


def _blend(palette: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    place = rng.uniform(0, len(palette) - 1)
    share = place % 1
    return palette[int(place)] * (1 - share) + palette[int(place) + 1] * share + rng.normal(0, 4, 3)
