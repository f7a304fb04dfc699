"""Rotations beside SciPy's."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation  # pyright: ignore[reportMissingTypeStubs]  # it has none

from hmtl_dist.data.drawn.drawing import (  # the drawing itself, before any noise is laid over it
    _DEPTH,  # pyright: ignore[reportPrivateUsage]
    _SHIFT,  # pyright: ignore[reportPrivateUsage]
    _TOP,  # pyright: ignore[reportPrivateUsage]
    _Canvas,  # pyright: ignore[reportPrivateUsage]
)
from hmtl_dist.data.drawn.faces import face_at
from hmtl_dist.tasks.so3 import angles_from_matrix, geodesic, matrix_from_angles, matrix_from_sixd, wrap
from tests.tasks.reference import Array

GENERATOR = np.random.default_rng(0)
ANGLES = GENERATOR.uniform((-99, -89, -99), (99, 89, 99), (50, 3))


def scipy_rotation(angles: Array) -> Rotation:
    """Yaw about y first, then pitch up about x, then roll about z, all axes those of the picture."""
    return Rotation.from_euler("yxz", angles * (1, -1, 1), degrees=True)


def matrices(angles: Array) -> torch.Tensor:
    return matrix_from_angles(torch.tensor(angles))


def test_matrices_are_scipys_of_yaw_then_pitch_then_roll() -> None:
    assert matrices(ANGLES).numpy() == pytest.approx(scipy_rotation(ANGLES).as_matrix(), abs=1e-12)


def test_angles_come_back_from_their_matrix() -> None:
    assert angles_from_matrix(matrices(ANGLES)).numpy() == pytest.approx(ANGLES, abs=1e-9)


@pytest.mark.parametrize(
    ("angles", "looks"), [((90, 0, 0), (1, 0, 0)), ((0, 90, 0), (0, 1, 0)), ((0, 0, 90), (0, 0, 1))]
)
def test_positive_yaw_looks_right_and_positive_pitch_up(
    angles: tuple[float, ...], looks: tuple[float, float, float]
) -> None:
    nose = matrices(np.array([angles], float))[0] @ torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)

    assert nose.numpy() == pytest.approx(looks, abs=1e-12)


def test_positive_roll_takes_the_right_side_up() -> None:
    right = matrices(np.array([[0.0, 0.0, 90.0]]))[0] @ torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)

    assert right.numpy() == pytest.approx((0, 1, 0), abs=1e-12)


def test_a_turned_picture_adds_to_roll_and_a_mirrored_one_negates_yaw_and_roll() -> None:
    turn = Rotation.from_euler("z", 20, degrees=True).as_matrix()
    mirror = np.diag([-1.0, 1.0, 1.0])
    rotations = scipy_rotation(ANGLES).as_matrix()

    turned, mirrored = (
        angles_from_matrix(torch.tensor(m)).numpy() for m in (turn @ rotations, mirror @ rotations @ mirror)
    )

    assert turned == pytest.approx(ANGLES + np.array([0, 0, 20]), abs=1e-9)
    assert mirrored == pytest.approx(ANGLES * (-1, 1, -1), abs=1e-9)


def test_six_numbers_are_the_first_two_columns_made_orthonormal() -> None:
    sixd = GENERATOR.normal(0, 1, (20, 6))

    made = matrix_from_sixd(torch.tensor(sixd)).numpy()

    for six, matrix in zip(sixd, made, strict=True):
        raw = six.reshape(2, 3).T + np.eye(3)[:, :2]
        q, r = np.linalg.qr(raw)
        columns = q * np.sign(np.diag(r))
        assert matrix[:, :2] == pytest.approx(columns, abs=1e-12)
        assert np.linalg.det(matrix) == pytest.approx(1)


def test_a_head_that_says_nothing_says_frontal() -> None:
    assert torch.equal(matrix_from_sixd(torch.zeros(1, 6))[0], torch.eye(3))


def test_the_distance_is_the_angle_of_scipys_rotation_between_the_two() -> None:
    others = ANGLES[::-1].copy()

    found = geodesic(matrices(ANGLES), matrices(others)).numpy()

    expected = (scipy_rotation(ANGLES).inv() * scipy_rotation(others)).magnitude()
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("degrees", [0.0, 180.0])
def test_the_distance_has_a_finite_gradient_at_0_and_at_180_degrees(degrees: float) -> None:
    yaw = torch.tensor([[degrees, 0.0, 0.0]], requires_grad=True)

    angle = geodesic(matrix_from_angles(yaw), torch.eye(3)[None])
    (gradient,) = torch.autograd.grad(angle.sum(), yaw)

    assert angle.item() == pytest.approx(np.radians(degrees), abs=1e-5)
    assert torch.isfinite(gradient).all()


def test_angles_wrap_into_half_a_turn() -> None:
    assert wrap(torch.tensor([190.0, -180.0, 180.0, 725.0])).numpy().tolist() == [-170.0, -180.0, -180.0, 5.0]


def test_drawn_faces_turn_as_the_rotations_say() -> None:
    yaw, pitch, roll, size = 31.0, -17.0, 24.0, 1000
    face = dataclasses.replace(face_at(0, 3, 10), yaw=yaw, pitch=pitch, roll=roll)
    points = np.array([[0.0, 0.0], [0.3, -0.2], [-0.25, 0.4]])  # y down, on the front of the head
    depth = _DEPTH * np.sqrt(1 - (points[:, 0] / face.identity.head_width) ** 2 - (points[:, 1] / _TOP) ** 2)

    canvas = _Canvas(face, size)
    drawn = canvas._place(points, flat=False) / (1 << _SHIFT)  # pyright: ignore[reportPrivateUsage]

    ahead = np.stack([points[:, 0], -points[:, 1], depth], 1)
    turned = ahead @ matrices(np.array([[yaw, pitch, roll]]))[0].numpy().T
    expected = np.array(face.scene.centre) * size + turned[:, :2] * (1, -1) * face.scene.scale * size
    assert drawn == pytest.approx(expected, abs=0.1)
