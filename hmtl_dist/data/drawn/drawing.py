"""Drawing a face: polygons on an ellipsoid that is turned, placed on a background, lit, and disturbed.

The face's own coordinates have their origin between the ears, x to the right of the picture, y down, and the chin at
y = 1. Points on the front of the head move with yaw and pitch as on an ellipsoid; its outline does not.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from hmtl_dist.data.decode import Picture
from hmtl_dist.data.drawn.face import Colour, Face

_SHIFT = 4
"""Bits of a pixel's fraction in the coordinates given to OpenCV."""
_DEPTH = 0.85
_TOP = 1.08
"""Half-height of the ellipsoid: a little more than the head, so that the chin still moves with pitch."""

Points = NDArray[np.float64]
"""Points [n, 2] in the face's coordinates."""

_CIRCLE: Points = np.stack([np.cos(np.linspace(0, 2 * np.pi, 20)), np.sin(np.linspace(0, 2 * np.pi, 20))], axis=1)
_ARC: Points = np.stack([np.cos(np.linspace(0, 2 * np.pi, 40)), np.sin(np.linspace(0, 2 * np.pi, 40))], axis=1)
_ACROSS = np.linspace(-1, 1, 13)
_TRAIL: Points = np.array([(0, 0), (0.8, 0.7), (1, 0.85), (0.6, 1), (-0.6, 1), (-1, 0.85), (-0.8, 0.7)])
"""A drop that runs down from the origin."""


class _Canvas:
    """A picture that is drawn on in the face's coordinates."""

    def __init__(self, face: Face, size: int) -> None:
        yaw, pitch, roll = np.radians([face.yaw, face.pitch, face.roll])
        self.picture = _background(face, size)
        self._sines = float(np.sin(yaw)), float(np.sin(pitch))
        self._cosines = float(np.cos(yaw)), float(np.cos(pitch))
        self._scale = face.scene.scale * size
        # y points down: a counter-clockwise turn as people see it takes x to the right and up.
        self._turn = self._scale * np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
        self._centre = np.array(face.scene.centre) * size
        self._width = face.identity.head_width

    def fill(self, points: Points, colour: Colour, *, flat: bool = False) -> None:
        """Fill a polygon; `flat` leaves it where it is when the head turns."""
        cv2.fillPoly(self.picture, [self._place(points, flat=flat)], _rgb(colour), cv2.LINE_AA, _SHIFT)

    def line(self, points: Points, colour: Colour, thickness: float) -> None:
        """Draw an open line on the front of the head."""
        pixels = max(round(thickness * self._scale), 1)
        cv2.polylines(self.picture, [self._place(points, flat=False)], False, _rgb(colour), pixels, cv2.LINE_AA, _SHIFT)

    def _place(self, points: Points, *, flat: bool) -> NDArray[np.int32]:
        if not flat:
            x, y = points[:, 0], points[:, 1]
            z = _DEPTH * np.sqrt(np.maximum(1 - (x / self._width) ** 2 - (y / _TOP) ** 2, 0))
            points = np.empty_like(points)
            points[:, 0] = x * self._cosines[0] + z * self._sines[0]
            points[:, 1] = y * self._cosines[1] - (z * self._cosines[0] - x * self._sines[0]) * self._sines[1]
        pixels = points @ self._turn + self._centre
        return (pixels * (1 << _SHIFT)).astype(np.int32)


def draw_face(face: Face, size: int, rng: np.random.Generator) -> Picture:
    """The picture of a face, RGB uint8 [size, size, 3]; `rng` draws the noise."""
    canvas = _Canvas(face, size)
    _draw_behind(canvas, face)
    _draw_head(canvas, face)
    _draw_complexion(canvas, face)
    _draw_mouth(canvas, face)
    _draw_nose(canvas, face)
    for side in (-1, 1):
        _draw_eye(canvas, face, side)
        _draw_brow(canvas, face, side)
    _draw_hair(canvas, face)
    if face.identity.glasses:
        _draw_glasses(canvas, face)
    _draw_drops(canvas, face)
    return _expose(canvas.picture, face, rng)


def _background(face: Face, size: int) -> Picture:
    smooth = cv2.resize(face.scene.background, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth, 0, 255).astype(np.uint8)


def _draw_behind(canvas: _Canvas, face: Face) -> None:
    person = face.identity
    width = person.head_width
    if person.hair_length > 0:
        outer, low = width + person.hair_volume, person.hair_length
        curtain = [(-outer, low), (-outer, -0.2), (outer, -0.2), (outer, low)]
        canvas.fill(np.array(curtain), person.hair * 0.75, flat=True)
    neck = [(-0.36 * width / 0.77, 0.5), (0.36 * width / 0.77, 0.5), (0.42, 1.5), (-0.42, 1.5)]
    canvas.fill(np.array(neck), person.skin * 0.82, flat=True)
    canvas.fill(_CIRCLE * (1.35, 0.75) + (0, 1.95), person.clothes, flat=True)
    if person.hair_length <= 0.6:
        for side in (-1, 1):
            canvas.fill(_CIRCLE * (0.1, 0.18) + (side * width, 0.02), person.skin * 0.88, flat=True)


def _outline(face: Face, grow: float = 0.0) -> Points:
    """Points around the head, from the right ear over the chin to the left ear and over the top."""
    person = face.identity
    outline = _ARC * (person.head_width + grow, 1 + grow)
    below = np.maximum(outline[:, 1], 0)
    outline[:, 0] *= 1 - person.jaw * below**2
    return outline


def _draw_head(canvas: _Canvas, face: Face) -> None:
    person = face.identity
    head = _outline(face)
    canvas.fill(head, person.skin, flat=True)
    if person.beard > 0:
        share = 0.9 * person.beard
        low = head[head[:, 1] > 0.01]
        inner = np.stack([_ACROSS * person.head_width * 0.82, 0.12 + 0.22 * (1 - _ACROSS**2)], axis=1)
        canvas.fill(np.concatenate([low, inner]), person.skin * (1 - share) + person.hair * 0.55 * share)
    if person.age > 45:
        depth = 1 - 0.25 * min((person.age - 45) / 35, 1)
        for height in (-0.55, -0.46):
            canvas.line(np.array([(-0.25, height), (0, height - 0.03), (0.25, height)]), person.skin * depth, 0.02)
        for side in (-1, 1):
            fold = np.array([(side * 0.2, 0.28), (side * 0.32, 0.4), (side * 0.36, 0.55)])
            canvas.line(fold, person.skin * depth, 0.025)


def _draw_complexion(canvas: _Canvas, face: Face) -> None:
    look, skin = face.look, face.identity.skin
    cheeks = [(-0.45, 0.26), (0.45, 0.26)]
    for colour, share in (((255, 80, 120), look.blush), ((225, 20, 10), look.flush), ((90, 170, 60), look.pallor)):
        if share > 0:
            paint = np.array(colour) * (0.4 + 0.6 * skin / 255)
            tinged = skin + (paint - skin) * 0.65 * min(share, 1)
            for cheek in cheeks:
                canvas.fill(_CIRCLE * (0.21, 0.17) + cheek, tinged)
    if look.flush > 0.2:
        canvas.fill(_CIRCLE * (0.4, 0.14) + (0, -0.6), skin + ((200, 30, 20) - skin) * 0.5 * min(look.flush, 1))
        for side in (-1, 1):
            canvas.line(np.array([(side * 0.07, -0.5), (side * 0.05, -0.28)]), skin * 0.5, 0.04)


def _draw_drops(canvas: _Canvas, face: Face) -> None:
    look, water = face.look, np.array([150.0, 215, 255])
    if look.tears > 0.2:
        for side in (-1, 1):
            middle, length = side * face.identity.eye_spacing, 0.5 * min(look.tears, 1)
            canvas.fill(_TRAIL * (0.055, length) + (middle, 0.02), water)
    if look.sweat > 0.2:
        for across, down in ((-0.42, -0.66), (0.45, -0.6), (-0.58, -0.4), (0.6, -0.32)):
            canvas.fill(
                _TRAIL * (0.06, 0.2 * min(look.sweat, 1)) + (across * face.identity.head_width / 0.77, down), water
            )


def _draw_mouth(canvas: _Canvas, face: Face) -> None:
    person, look = face.identity, face.look
    across = _ACROSS
    x = across * 0.34 * (1 + 0.4 * look.mouth_width)
    arch = 1 - across**2
    one_side = 0.3 * look.one_sided * np.maximum(across * face.side, 0) ** 1.5
    middle = person.mouth_height - 0.2 * look.mouth_curve * (across**2 - 0.5) - one_side
    # Square-cut ends for bared teeth (anger, fear), round ones else.
    opening = look.mouth_open * 0.42 * (arch if look.mouth_width < 0 or look.mouth_curve > 0 else arch**0.4)
    upper = middle - 0.35 * opening - 0.08 * look.nose_wrinkle * arch
    lower = middle + 0.65 * opening
    lip = 0.06
    canvas.fill(_band(x, upper - lip * arch**0.5, lower + lip * 1.2 * arch**0.5 + 0.01), person.lips)
    if look.mouth_open > 0.06:
        canvas.fill(_band(x * 0.93, upper, lower), np.array([60.0, 20, 25]))
        if look.teeth > 0.05:
            shown = np.minimum(upper + 0.05 + 0.1 * look.teeth, lower)
            canvas.fill(_band(x * 0.86, upper, shown), np.array([240.0, 238, 225]))
    else:
        canvas.line(np.stack([x, middle], axis=1), person.lips * 0.5, 0.035)


def _band(x: NDArray[np.float64], upper: NDArray[np.float64], lower: NDArray[np.float64]) -> Points:
    return np.concatenate([np.stack([x, upper], axis=1), np.stack([x, lower], axis=1)[::-1]])


def _draw_nose(canvas: _Canvas, face: Face) -> None:
    person = face.identity
    tip = person.nose_length - 0.06 * face.look.nose_wrinkle
    dark = person.skin * 0.72
    canvas.line(np.array([(0.05, -0.12), (0.08, tip - 0.12), (0.11, tip)]), dark, 0.03)
    canvas.line(np.array([(-0.1, tip), (0.0, tip + 0.04), (0.11, tip)]), dark, 0.045)
    if face.look.nose_wrinkle > 0.2:
        for side in (-1, 1):
            for height in (0.0, 0.1):
                wrinkle = np.array([(side * 0.06, height - 0.06), (side * 0.17, height + 0.05)])
                canvas.line(wrinkle, person.skin * 0.6, 0.03)


def _draw_eye(canvas: _Canvas, face: Face, side: int) -> None:
    person = face.identity
    centre = np.array([side * person.eye_spacing, -0.14])
    height = person.eye_size * max(0.62 * (1 + face.look.eye_open), 0.12)
    if person.eye_shadow > 0:
        shadow = person.skin * (1 - person.eye_shadow) + np.array([90, 60, 210]) * person.eye_shadow
        canvas.fill(_CIRCLE * (person.eye_size * 1.25, height + 0.12) + centre - (0, 0.07), shadow)
    canvas.fill(_CIRCLE * (person.eye_size, height) + centre, np.array([245.0, 244, 240]))
    iris = min(person.eye_size * 0.58, height)
    canvas.fill(_CIRCLE * (person.eye_size * 0.58, iris) + centre, person.iris)
    canvas.fill(_CIRCLE * (iris * 0.5, iris * 0.5) + centre, np.array([15.0, 12, 12]))
    lid = np.stack([_ACROSS * person.eye_size * 1.08, -height * np.sqrt(1 - _ACROSS**2)], axis=1) + centre
    canvas.line(lid, person.skin * 0.4, 0.03 + 0.04 * person.lashes)
    if person.lashes > 0:
        flick = np.array(
            [(side * person.eye_size * 0.9, -height * 0.5), (side * person.eye_size * 1.5, -height - 0.05)]
        )
        canvas.line(flick * (1, person.lashes) + centre, person.skin * 0.25, 0.035)


def _draw_brow(canvas: _Canvas, face: Face, side: int) -> None:
    person, look = face.identity, face.look
    along = np.linspace(0, 1, 6)
    lifted = 0.2 * look.one_sided if side == face.side else 0.0
    inner, outer = 0.19 * look.brow_inner + 0.4 * lifted, 0.19 * look.brow_outer + lifted
    x = side * (person.eye_spacing + person.eye_size * (-1.15 + 2.5 * along))
    y = -0.4 - (inner * (1 - along) + outer * along) - 0.05 * np.sin(np.pi * along)
    half = person.brow_thickness * (0.75 - 0.45 * along)
    canvas.fill(_band(x, y - half, y + half), person.hair * 0.8)


def _draw_hair(canvas: _Canvas, face: Face) -> None:
    person = face.identity
    if person.hairline > 1:
        return
    crown = _outline(face, person.hair_volume)
    crown = crown[crown[:, 1] < (-0.25 if person.hair_length <= 0 else -0.01)]
    width = person.head_width
    line = np.stack([_ACROSS * width, -person.hairline + 0.35 * np.abs(_ACROSS) ** 3], axis=1)
    # The hairline turns with the head, the crown is part of the outline.
    turned = line + (0.5 * np.sin(np.radians(face.yaw)) * (1 - _ACROSS**2)[:, None] * (1, 0))
    turned[:, 1] -= 0.45 * np.sin(np.radians(face.pitch)) * (1 - _ACROSS**2)
    canvas.fill(np.concatenate([crown, turned[::-1]]), person.hair, flat=True)
    if person.hair_length > 0:
        for side in (-1, 1):
            outer = width + person.hair_volume
            strand = [(side * outer, -0.3), (side * width * 0.86, -0.4), (side * width * 0.98, person.hair_length)]
            canvas.fill(np.array([*strand, (side * outer, person.hair_length)]), person.hair * 0.92, flat=True)


def _draw_glasses(canvas: _Canvas, face: Face) -> None:
    person = face.identity
    frame = np.array([30.0, 28, 30])
    for side in (-1, 1):
        canvas.line(_CIRCLE * (0.23, 0.19) + (side * person.eye_spacing, -0.13), frame, 0.03)
    canvas.line(np.array([(-0.1, -0.14), (0.1, -0.14)]), frame, 0.03)


def _expose(picture: Picture, face: Face, rng: np.random.Generator) -> Picture:
    scene, size = face.scene, len(picture)
    if scene.blur > 0:
        picture = cv2.GaussianBlur(picture, (0, 0), scene.blur * size).astype(np.uint8, copy=False)
    place = np.linspace(-1, 1, size, dtype=np.float32)
    middle, across, down = scene.light
    gain = np.float32(middle) + np.float32(across) * place + np.float32(down) * place[:, None]
    lit = picture * (gain[:, :, None] * scene.tint.astype(np.float32))
    lit += np.float32(scene.noise) * rng.standard_normal((size, size, 1), dtype=np.float32)
    return np.clip(lit, 0, 255).astype(np.uint8)


def _rgb(colour: Colour) -> tuple[float, float, float]:
    red, green, blue = colour.tolist()
    return red, green, blue  # OpenCV saturates
