"""Rotations as six numbers: the first two columns of the matrix (Zhou et al. 2019, "On the
Continuity of Rotation Representations in Neural Networks").
"""

from __future__ import annotations

import torch

DEGENERATE = 1e-4
"""Below this length a vector has no direction; for the second column, this sine of its angle to the
first."""


def to_six(rotation: torch.Tensor) -> torch.Tensor:
    """(..., 3, 3) -> (..., 6)."""
    return rotation[..., :2].transpose(-1, -2).flatten(-2)


def from_six(six: torch.Tensor) -> torch.Tensor:
    """(..., 6), any numbers -> rotation matrices (..., 3, 3), by Gram-Schmidt.

    Where the numbers name no direction the nearest axis stands in and passes no gradient: six zeros
    are the identity. Where one of them is NaN or infinite there is no rotation, and all is NaN.
    """
    first, second = six.unflatten(-1, (2, 3)).unbind(-2)
    x = _direction(
        first, instead=torch.eye(3, dtype=six.dtype, device=six.device)[0].expand_as(first)
    )
    second = _direction(second, instead=torch.zeros_like(second))
    other = torch.roll(
        torch.nn.functional.one_hot(x.detach().abs().argmax(-1), 3).to(six.dtype), 1, dims=-1
    )
    across = _direction(_perpendicular(other, x), instead=other)
    y = _direction(_perpendicular(second, x), instead=across)
    return torch.stack([x, y, torch.linalg.cross(x, y)], dim=-1)


def angle(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Geodesic angle between rotation matrices (..., 3, 3), radians in [0, pi]; exact near both
    ends, where acos is not."""
    between = a.transpose(-1, -2) @ b
    sine = torch.linalg.vector_norm(between - between.transpose(-1, -2), dim=(-2, -1)) / 8**0.5
    cosine = (between.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return torch.atan2(sine, cosine)


def part_of_turn(rotation: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Rotation matrices (..., 3, 3) about the same axes, by `share` (...,) times their angles: what
    a steady turn makes of them in another time. The angles must be below half a circle; at half a
    circle, where the axis has two directions, they are left as they are."""
    skew = (rotation - rotation.transpose(-1, -2)) / 2
    axis_sine = torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], dim=-1)
    sine = torch.linalg.vector_norm(axis_sine, dim=-1)
    cosine = (rotation.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    angle_rad = torch.atan2(sine, cosine)
    has_axis = sine > 1e-12
    unit = skew / torch.where(has_axis, sine, 1)[..., None, None]
    part = (share * angle_rad)[..., None, None]
    eye = torch.eye(3, dtype=rotation.dtype, device=rotation.device)
    turned = eye + part.sin() * unit + (1 - part.cos()) * (unit @ unit)
    return torch.where(has_axis[..., None, None], turned, rotation)


def mean_rotation(total: torch.Tensor) -> torch.Tensor:
    """The rotation nearest to a sum of rotation matrices, (3, 3): their chordal mean. The identity
    for a sum of none."""
    u, _, v = torch.linalg.svd(total)
    flip = torch.ones(3, dtype=total.dtype)
    flip[2] = torch.linalg.det(u @ v)
    return u @ (flip[:, None] * v)


def _direction(vector: torch.Tensor, instead: torch.Tensor) -> torch.Tensor:
    """`vector` at length one, or `instead` where it has none; both (..., 3). NaN stays NaN: it is
    no length below any."""
    has_direction = ~(torch.linalg.vector_norm(vector, dim=-1, keepdim=True) <= DEGENERATE)
    # Replaced before the division too: a division by zero makes the gradient NaN even where its
    # result is not taken.
    vector = torch.where(has_direction, vector, 1)
    return torch.where(
        has_direction, vector / torch.linalg.vector_norm(vector, dim=-1, keepdim=True), instead
    )


def _perpendicular(vector: torch.Tensor, axis: torch.Tensor) -> torch.Tensor:
    """The part of `vector` (..., 3) that is perpendicular to the unit vector `axis` (..., 3)."""
    return vector - (vector * axis).sum(-1, keepdim=True) * axis
