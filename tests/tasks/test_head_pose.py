import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation  # pyright: ignore[reportMissingTypeStubs]  # it has none

from hmtl_dist.augment import AugmentConfig, GeometricTransform
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.errors import UserError
from hmtl_dist.tasks.base import Inputs, Prepared, SingleRank
from hmtl_dist.tasks.head_pose import HeadPose, HeadPoseConfig
from hmtl_dist.tasks.so3 import matrix_from_angles
from tests.tasks.batches import around, make_inputs
from tests.tasks.reference import Array, check_loss, log_softmax

DEGREES = Field(kind="number", unit="degrees")
FIELDS = {"yaw": DEGREES, "pitch": DEGREES, "roll": DEGREES}
ANGLES = np.array(
    [[10, -5, 3], [-62, 20, -30], [np.nan, 0, 0], [99.5, 0, 0], [0, 1, 2], [-98.9, -99, 98.9]], dtype=np.float64
)
WEIGHT = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 1.0])
COUNTED = [0, 1, 5]
"""Those with a label within 99 degrees and a weight."""


def task(**settings: object) -> HeadPose:
    return HeadPoseConfig.model_validate(settings).build("pose", around(FIELDS))


def inputs() -> Inputs:
    labels = {name: torch.tensor(ANGLES[:, i]) for i, name in enumerate(FIELDS)}
    return make_inputs(num_samples=6, labels=labels, weight=torch.tensor(WEIGHT))


def test_the_rotation_loss_is_the_mean_angle_between_rotations() -> None:
    def reference(output: Array) -> float:
        first, second = output[:, :3] + np.eye(3)[0], output[:, 3:] + np.eye(3)[1]
        x = first / np.linalg.norm(first, axis=1, keepdims=True)
        y = second - (x * second).sum(1, keepdims=True) * x
        y /= np.linalg.norm(y, axis=1, keepdims=True)
        said = Rotation.from_matrix(np.stack([x, y, np.cross(x, y)], 2)[COUNTED])
        true = Rotation.from_euler("yxz", ANGLES[COUNTED] * (1, -1, 1), degrees=True)
        return float((said.inv() * true).magnitude().mean())

    check_loss(task(), inputs(), reference, np.random.default_rng(0).normal(0, 0.5, (6, 6)))


@pytest.mark.parametrize(("distance", "alpha"), [("l2", 0.01), ("l1", 0.5)])
def test_the_binned_loss_is_cross_entropy_and_distance_of_the_expected_angle(distance: str, alpha: float) -> None:
    middles = np.arange(66) * 3 - 97.5

    def reference(output: Array) -> float:
        logs = log_softmax(output.reshape(6, 3, 66))[COUNTED]
        true = ANGLES[COUNTED]
        bins = np.digitize(true, np.arange(-99, 99, 3)) - 1
        entropy = -np.take_along_axis(logs, bins[:, :, None], 2)[:, :, 0]
        away = np.abs((np.exp(logs) * middles).sum(2) - true)
        return float((entropy + alpha * (away if distance == "l1" else away**2)).mean())

    output = np.random.default_rng(1).normal(0, 1, (6, 198))
    check_loss(task(method="binned", distance=distance, alpha=alpha), inputs(), reference, output)


def test_metrics_are_degrees_of_the_samples_that_count() -> None:
    frontal = torch.zeros(6, 6, dtype=torch.float64)

    metrics = task().loss({"clean": frontal}, Prepared(), inputs(), SingleRank()).metrics

    sums = np.abs(ANGLES[COUNTED]).sum(0)
    assert [float(metrics[f"mae_{name}"][0]) for name in FIELDS] == pytest.approx(sums.tolist())
    assert [float(metrics[f"mae_{name}"][1]) for name in FIELDS] == [3, 3, 3]


def test_the_right_rotation_is_read_as_its_angles() -> None:
    angles = torch.tensor([[31.0, -17.0, 24.0], [-80.0, 40.0, -5.0]])
    columns = matrix_from_angles(angles)[:, :, :2].transpose(1, 2).flatten(1)

    said = task().predictions(columns - torch.tensor([1.0, 0, 0, 0, 1.0, 0]))

    assert said.numpy() == pytest.approx(angles.numpy(), abs=1e-4)


def test_sure_bins_are_read_as_their_middles() -> None:
    logits = torch.full((1, 3, 66), -1e4)
    logits[0, [0, 1, 2], [0, 33, 65]] = 0

    assert task(method="binned").predictions(logits.flatten(1)).numpy().tolist() == [[-97.5, 1.5, 97.5]]


def test_a_mirrored_picture_shows_a_mirrored_pose() -> None:
    geometry = HeadPoseConfig().label_geometry("pose")
    transform = GeometricTransform(AugmentConfig(preset="none", flip=1.0), 24, geometry, seed=0, train=True)
    labels = {name: np.array([value], np.float32) for name, value in zip(FIELDS, (30.0, 10.0, -20.0), strict=True)}
    transform.labels(labels, transform.draw(0, np.array([0])))

    targets = task().targets({name: torch.tensor(values) for name, values in labels.items()})

    assert targets.numpy().tolist() == [[-30.0, 10.0, 20.0]]


def test_an_angle_that_the_shards_lack_is_named() -> None:
    with pytest.raises(UserError, match=r"^tasks\.pose: 'roll' is not one of pitch, yaw"):
        HeadPoseConfig().build("pose", around({"yaw": DEGREES, "pitch": DEGREES}))


def test_angles_in_radians_are_refused() -> None:
    with pytest.raises(UserError, match=r"^tasks\.pose: label 'yaw' is in radians, not in degrees"):
        HeadPoseConfig().build("pose", around({**FIELDS, "yaw": Field(kind="number", unit="radians")}))
