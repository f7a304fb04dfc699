"""Rotations of a head: angles in degrees, matrices, and the continuous 6D form.

Axes: x to the right edge of the picture, y up, z from the picture to the viewer (right-handed). A head at rest looks
along +z. Yaw is positive when it looks to the right edge, pitch when it looks up, roll when it is turned
counter-clockwise as the viewer sees it. Yaw is applied first, roll last:

    R = R_z(roll) R_x(-pitch) R_y(yaw),   `Rotation.from_euler("yxz", [yaw, -pitch, roll], degrees=True)` of SciPy.

Roll last means that turning the picture only adds to roll; a mirror image negates yaw and roll. In this order yaw is
unique up to 180 degrees; only pitch beyond 90 degrees has another name.

Shape legend: B samples.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from hmtl_dist.augment import LabelGeometry

GEOMETRY = {"yaw": LabelGeometry(mirrors=True), "roll": LabelGeometry(mirrors=True, turns=True)}
"""How the angles of a head, by their usual names, follow its picture."""
DEGREES = 180.0 / torch.pi
EPSILON = 1e-12
"""Added to a squared length, so that the root has a gradient at 0; an error of 1e-6 radians."""


def matrix_from_angles(angles: Tensor) -> Tensor:
    """Turn yaw, pitch and roll in degrees, `[B, 3]`, into rotation matrices `[B, 3, 3]`."""
    yaw, pitch, roll = (angles / DEGREES).unbind(1)
    sy, cy, sx, cx, sz, cz = yaw.sin(), yaw.cos(), (-pitch).sin(), pitch.cos(), roll.sin(), roll.cos()
    rows = [
        torch.stack([cz * cy - sz * sx * sy, -sz * cx, cz * sy + sz * sx * cy], 1),
        torch.stack([sz * cy + cz * sx * sy, cz * cx, sz * sy - cz * sx * cy], 1),
        torch.stack([-cx * sy, sx, cx * cy], 1),
    ]
    return torch.stack(rows, 1)


def angles_from_matrix(matrices: Tensor) -> Tensor:
    """Return yaw, pitch and roll in degrees, `[B, 3]`, of `[B, 3, 3]`: pitch in ±90, yaw and roll in ±180."""
    yaw = torch.atan2(-matrices[:, 2, 0], matrices[:, 2, 2])
    pitch = -torch.atan2(matrices[:, 2, 1], matrices[:, :2, 1].square().sum(1).sqrt())
    roll = torch.atan2(-matrices[:, 0, 1], matrices[:, 1, 1])
    return torch.stack([yaw, pitch, roll], 1) * DEGREES


def matrix_from_sixd(output: Tensor) -> Tensor:
    """Turn six numbers, `[B, 6]`, into rotation matrices `[B, 3, 3]` by Gram and Schmidt's method.

    Source: Zhou et al., "On the continuity of rotation representations in neural networks", CVPR 2019, eq. 15: the six
    are the first two columns before they are made orthonormal, the third is their cross product. Here the identity is
    added first, so that a head that says nothing yet says frontal.
    """
    first, second = output[:, :3], output[:, 3:]
    identity = torch.eye(3, dtype=output.dtype, device=output.device)
    x = F.normalize(first + identity[0], dim=1)
    second = second + identity[1]
    y = F.normalize(second - (x * second).sum(1, keepdim=True) * x, dim=1)
    return torch.stack([x, y, torch.cross(x, y, dim=1)], 2)


def geodesic(matrices: Tensor, others: Tensor) -> Tensor:
    """Return the angle of the rotation between two rotations, radians in 0 to pi, `[B]` from twice `[B, 3, 3]`.

    The angle of D = A^T B has cosine (tr D - 1) / 2, and as sine half the length of the axis vector of D - D^T. Taken
    from both, it is exact at 0 and pi, where the derivative of the arc cosine alone is infinite.
    """
    between = matrices.transpose(1, 2) @ others
    cosine = (between.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    skew = between - between.transpose(1, 2)
    axis = torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], 1) / 2
    return torch.atan2((axis.square().sum(1) + EPSILON).sqrt(), cosine)


def geometry_of(labels: Iterable[str]) -> dict[str, LabelGeometry]:
    """Say which of these labels follow a picture that is mirrored or turned."""
    return {label: GEOMETRY[label] for label in labels if label in GEOMETRY}


def wrap(degrees: Tensor) -> Tensor:
    """Bring angles into [-180, 180)."""
    return torch.remainder(degrees + 180.0, 360.0) - 180.0
