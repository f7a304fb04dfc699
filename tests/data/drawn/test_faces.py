"""Drawn faces: always the same, labelled truly, and no task for a linear model."""

from dataclasses import replace
from typing import Any, cast

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from hmtl_dist.data.dataset.adapter import SampleRef
from hmtl_dist.data.decode import Picture, decode
from hmtl_dist.data.drawn.drawing import draw_face
from hmtl_dist.data.drawn.face import EXPRESSIONS, Face, Look
from hmtl_dist.data.drawn.faces import SyntheticAdapter, SyntheticSettings, face_at, face_jpeg
from hmtl_dist.errors import UserError

SIZE = 96


def studio(number: int, **changes: float) -> Face:
    """A face from the front, in the middle, evenly lit and without noise, with some things changed."""
    face = face_at(0, number, 1000)
    scene = replace(
        face.scene,
        centre=(0.5, 0.5),
        background=np.full((2, 2, 3), 128, dtype=np.float32),
        light=(1.0, 0.0, 0.0),
        tint=np.ones(3),
        noise=0.0,
        blur=0.0,
    )
    front = replace(face, look=Look(), yaw=0.0, pitch=0.0, roll=0.0, scene=scene)
    return replace(front, **cast(Any, changes))


def draw(face: Face) -> Picture:
    return draw_face(face, SIZE, np.random.default_rng(0))


def centre_of_change(before: Picture, after: Picture) -> tuple[float, float]:
    """Where, from the left and from the top, two pictures differ."""
    weight = np.abs(before.astype(float) - after).sum(axis=2)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return float((weight * columns).sum() / weight.sum()), float((weight * rows).sum() / weight.sum())


def mouth_of(number: int, **pose: float) -> tuple[float, float]:
    """Where the mouth of a face is: what changes when it opens."""
    face = studio(number, **pose)
    return centre_of_change(draw(face), draw(replace(face, look=Look(mouth_open=0.5))))


def test_a_picture_follows_from_seed_and_index() -> None:
    assert face_jpeg(3, 17, 10, SIZE) == face_jpeg(3, 17, 10, SIZE)


def test_no_two_pictures_are_the_same() -> None:
    assert len({face_jpeg(seed, index, 4, 32) for seed in range(2) for index in range(20)}) == 40


def test_pictures_of_a_person_share_what_belongs_to_the_person() -> None:
    one, other = face_at(0, 3, 10), face_at(0, 13, 10)
    assert one.identity_number == other.identity_number
    assert vars(one.identity).keys() == vars(other.identity).keys()
    for name, value in vars(one.identity).items():
        np.testing.assert_array_equal(value, vars(other.identity)[name])


def test_pictures_of_a_person_differ_in_pose() -> None:
    assert face_at(0, 3, 10).yaw != face_at(0, 13, 10).yaw


def test_every_expression_and_gender_comes_up_evenly() -> None:
    faces = [face_at(0, index, 800) for index in range(800)]
    counts = [sum(face.expression == name for face in faces) for name in EXPRESSIONS]
    assert min(counts) > 70
    assert 340 < sum(face.identity.female for face in faces) < 460


@pytest.mark.parametrize("number", [1, 2, 3])
def test_positive_roll_turns_the_head_counter_clockwise(number: int) -> None:
    # OpenCV's angles are counter-clockwise as people see the picture.
    turn = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), 25, 1)
    upright = draw(studio(number))
    turned = cv2.warpAffine(upright, turn, (SIZE, SIZE), borderValue=(128, 128, 128)).astype(float)
    middle = np.s_[20:-20, 20:-20]
    drawn = draw(studio(number, roll=25.0)).astype(float)[middle]
    away = draw(studio(number, roll=-25.0)).astype(float)[middle]
    assert np.abs(drawn - turned[middle]).mean() < 0.4 * np.abs(away - turned[middle]).mean()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_positive_yaw_looks_to_the_right_edge(number: int) -> None:
    assert mouth_of(number, yaw=25.0)[0] > mouth_of(number)[0] + 3
    assert mouth_of(number, yaw=-25.0)[0] < mouth_of(number)[0] - 3


@pytest.mark.parametrize("number", [1, 2, 3])
def test_positive_pitch_looks_up(number: int) -> None:
    assert mouth_of(number, pitch=20.0)[1] < mouth_of(number)[1] - 2
    assert mouth_of(number, pitch=-20.0)[1] > mouth_of(number)[1] + 2


def test_the_adapter_names_the_true_labels() -> None:
    adapter = SyntheticAdapter(SyntheticSettings(samples=12, identities=5, seed=9))
    ref = list(adapter.refs())[7]
    face = face_at(9, 7, 5)
    assert ref == SampleRef(
        "9-7",
        {
            "expression": face.expression,
            "gender": "female" if face.identity.female else "male",
            "age": round(face.identity.age, 1),
            "yaw": round(face.yaw, 2),
            "pitch": round(face.pitch, 2),
            "roll": round(face.roll, 2),
        },
        "000002",
    )


def test_the_adapter_loads_the_picture_that_it_named() -> None:
    adapter = SyntheticAdapter(SyntheticSettings(samples=12, identities=5, image_size=48, seed=9))
    refs = [ref for ref in adapter.refs() if isinstance(ref, SampleRef)]
    assert adapter.load(refs[7]) == face_jpeg(9, 7, 5, 48)


@pytest.mark.parametrize(("samples", "identities", "size"), [(5, 6, 64), (5, 0, 64), (5, 5, 8)])
def test_impossible_sets_are_refused(samples: int, identities: int, size: int) -> None:
    with pytest.raises(UserError, match="give"):
        SyntheticAdapter(SyntheticSettings(samples=samples, identities=identities, image_size=size))


def _pixels(first: int, last: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Pixels at 32 x 32, with a constant, and expressions of some pictures of 400 people."""
    names = list(EXPRESSIONS)
    labels = np.array([names.index(face_at(1, index, 400).expression) for index in range(first, last)])
    pictures = [decode(face_jpeg(1, index, 400, 64)) for index in range(first, last)]
    small = [cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float64) for picture in pictures]
    return np.stack([np.append(picture / 255 - 0.5, 1.0) for picture in small]), labels


@pytest.mark.nightly
def test_a_linear_model_of_pixels_knows_at_most_forty_percent() -> None:
    # Ridge regression on the classes; its strength is the best of several, chosen on the test pictures in its favour.
    train, train_labels = _pixels(0, 2000)
    test, test_labels = _pixels(2000, 2400)
    gram, product = train @ train.T, test @ train.T
    wanted = np.eye(8)[train_labels]
    accuracies: list[float] = []
    for strength in (10.0, 100.0, 1000.0):
        weights = np.linalg.solve(gram + strength * np.eye(2000), wanted).astype(np.float64)
        right: NDArray[np.bool_] = np.argmax(product @ weights, axis=1) == test_labels
        accuracies.append(float(right.mean()))
    assert 0.15 < max(accuracies) <= 0.4
