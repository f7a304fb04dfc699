"""What a drawn face is: the numbers that decide every stroke.

Lengths are in half-heights of the head, colours are RGB from 0 to 255.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Colour = NDArray[np.float64]


@dataclass(frozen=True)
class Look:
    """An expression as the placement of features; zero is a relaxed face."""

    brow_inner: float = 0.0
    """Lift of the inner ends of the brows, -1 to 1."""
    brow_outer: float = 0.0
    """Lift of the outer ends, -1 to 1."""
    eye_open: float = 0.0
    """Opening of the eyes beyond the relaxed one, -1 to 1."""
    mouth_curve: float = 0.0
    """Lift of the corners of the mouth, -1 to 1."""
    mouth_open: float = 0.0
    """Opening of the mouth, 0 to 1."""
    mouth_width: float = 0.0
    """Width beyond the relaxed one, -1 to 1."""
    teeth: float = 0.0
    """How much of the teeth shows, 0 to 1."""
    one_sided: float = 0.0
    """Lift of one corner of the mouth and one brow only, 0 to 1."""
    nose_wrinkle: float = 0.0
    """Wrinkles beside the nose and a raised upper lip, 0 to 1."""
    blush: float = 0.0
    """Pink of the cheeks, 0 to 1."""
    flush: float = 0.0
    """Red of the forehead and the cheeks, with furrows between the brows, 0 to 1."""
    pallor: float = 0.0
    """Green of the cheeks, 0 to 1."""
    tears: float = 0.0
    """Tears under the eyes, 0 to 1."""
    sweat: float = 0.0
    """Drops of sweat on the forehead, 0 to 1."""


EXPRESSIONS = {
    "neutral": Look(),
    "happy": Look(
        brow_inner=0.1,
        brow_outer=0.1,
        eye_open=-0.3,
        mouth_curve=1.0,
        mouth_open=0.45,
        mouth_width=0.8,
        teeth=1.0,
        blush=1.0,
    ),
    "sad": Look(brow_inner=1.0, brow_outer=-0.7, eye_open=-0.4, mouth_curve=-1.0, mouth_width=-0.3, tears=1.0),
    "surprise": Look(brow_inner=1.0, brow_outer=1.0, eye_open=0.9, mouth_open=1.0, mouth_width=-0.8),
    "fear": Look(
        brow_inner=0.9,
        brow_outer=0.1,
        eye_open=0.8,
        mouth_curve=-0.5,
        mouth_open=0.45,
        mouth_width=0.6,
        teeth=0.5,
        sweat=1.0,
    ),
    "disgust": Look(
        brow_inner=-0.5,
        brow_outer=-0.2,
        eye_open=-0.7,
        mouth_curve=-0.6,
        mouth_open=0.3,
        mouth_width=-0.1,
        teeth=0.3,
        nose_wrinkle=1.0,
        pallor=1.0,
    ),
    "anger": Look(
        brow_inner=-1.0,
        brow_outer=0.5,
        eye_open=0.1,
        mouth_curve=-0.5,
        mouth_open=0.35,
        mouth_width=0.2,
        teeth=1.0,
        flush=1.0,
    ),
    "contempt": Look(eye_open=-0.35, mouth_width=0.1, one_sided=1.0),
}
"""The eight expressions of AffectNet (Mollahosseini et al. 2017), in its order, by what tells them apart."""


@dataclass(frozen=True)
class Identity:
    """What all pictures of a person share."""

    female: bool
    age: float
    """Years."""
    skin: Colour
    hair: Colour
    iris: Colour
    lips: Colour
    clothes: Colour
    head_width: float
    jaw: float
    """How much the head narrows towards the chin."""
    eye_spacing: float
    eye_size: float
    nose_length: float
    mouth_height: float
    brow_thickness: float
    hairline: float
    """Height of the hairline above the middle of the face; more than 1 is bald."""
    hair_length: float
    """How far down the hair falls, below the middle of the face."""
    hair_volume: float
    beard: float
    """Strength of the beard, 0 to 1."""
    lashes: float
    """Length of the lashes, 0 to 1."""
    eye_shadow: float
    """Strength of the paint on the lids, 0 to 1."""
    glasses: bool


@dataclass(frozen=True)
class Scene:
    """What surrounds a face in one picture."""

    centre: tuple[float, float]
    """Middle of the head as a share of the picture's side, from the left and from the top."""
    scale: float
    """Half-height of the head as a share of the picture's side."""
    background: NDArray[np.float32]
    """Colours of a coarse grid that the background blends between [g, g, 3]."""
    light: tuple[float, float, float]
    """Gain in the middle, and its change from left to right and from top to bottom."""
    tint: Colour
    """Gain by colour."""
    noise: float
    """Standard deviation of the noise, in grey levels."""
    blur: float
    """Standard deviation of the blur as a share of the side."""


@dataclass(frozen=True)
class Face:
    """One picture."""

    expression: str
    identity_number: int
    identity: Identity
    look: Look
    """The expression as it turned out: weaker or stronger, and never twice the same."""
    side: int
    """Which side a one-sided expression is on, -1 or 1."""
    yaw: float
    pitch: float
    roll: float
    scene: Scene
