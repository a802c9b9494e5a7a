"""Rotations in three dimensions, for numpy and torch alike. Imports without torch.

Conventions: all functions are batch-first, ``[..., 4]`` and so on. Quaternions are ``q_wxyz``, Hamilton product, unit
length; ``q`` and ``-q`` are the same rotation. A matrix ``R_ab`` maps coordinates in frame ``b`` to frame ``a``. The
6-D form (Zhou et al. 2019, "On the Continuity of Rotation Representations in Neural Networks") is the first two
**rows** of the matrix, end to end, as in pytorch3d, robomimic and Diffusion Policy; the paper itself takes columns. An
axis-angle vector is the unit axis times the angle [rad].
"""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace

__all__ = [
    "axis_angle_to_quat",
    "matrix_to_quat",
    "matrix_to_rot6d",
    "quat_multiply",
    "quat_to_axis_angle",
    "quat_to_matrix",
    "rot6d_to_matrix",
]

Array = Any  # numpy.ndarray or torch.Tensor, floating; the result is of the same kind, dtype and device

# Below this norm a direction is undefined; the square is still representable in float32.
_TINY = 1e-12


def _unit(x: Array) -> Array:
    xp = array_namespace(x)
    norm = xp.sqrt(xp.sum(x * x, axis=-1, keepdims=True))
    return x / xp.where(norm > _TINY, norm, xp.ones_like(norm))


def quat_multiply(p_wxyz: Array, q_wxyz: Array) -> Array:
    """Hamilton product ``p q`` of ``[..., 4]``: first rotate by ``q``, then by ``p``."""
    xp = array_namespace(p_wxyz, q_wxyz)
    pw, px, py, pz = (p_wxyz[..., i] for i in range(4))
    qw, qx, qy, qz = (q_wxyz[..., i] for i in range(4))
    return xp.stack(
        [
            pw * qw - px * qx - py * qy - pz * qz,
            pw * qx + px * qw + py * qz - pz * qy,
            pw * qy - px * qz + py * qw + pz * qx,
            pw * qz + px * qy - py * qx + pz * qw,
        ],
        axis=-1,
    )


def quat_to_matrix(q_wxyz: Array) -> Array:
    """Quaternion ``[..., 4]``, normalised here, to matrix ``[..., 3, 3]``."""
    xp = array_namespace(q_wxyz)
    q = _unit(q_wxyz)
    w, x, y, z = (q[..., i] for i in range(4))
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_to_quat(matrix: Array) -> Array:
    """Rotation matrix ``[..., 3, 3]`` to the quaternion ``[..., 4]`` with ``w >= 0``; accurate at every angle.

    The entries of the matrix give all of ``4 q q^T``. Its row with the largest diagonal entry is a multiple of ``q``
    that is at least of length 2, so nothing is divided by a small number (Shepperd 1978).
    """
    xp = array_namespace(matrix)
    m = [[matrix[..., i, j] for j in range(3)] for i in range(3)]
    xw, yw, zw = m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]
    xy, xz, yz = m[1][0] + m[0][1], m[0][2] + m[2][0], m[2][1] + m[1][2]
    diagonal = [
        1 + m[0][0] + m[1][1] + m[2][2],
        1 + m[0][0] - m[1][1] - m[2][2],
        1 - m[0][0] + m[1][1] - m[2][2],
        1 - m[0][0] - m[1][1] + m[2][2],
    ]
    rows = [
        [diagonal[0], xw, yw, zw],
        [xw, diagonal[1], xy, xz],
        [yw, xy, diagonal[2], yz],
        [zw, xz, yz, diagonal[3]],
    ]
    outer = xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)  # [..., 4, 4]
    largest = xp.argmax(xp.stack(diagonal, axis=-1), axis=-1)
    pick = xp.stack([largest == i for i in range(4)], axis=-1)[..., None]  # [..., 4, 1]
    q = _unit(xp.sum(xp.where(pick, outer, xp.zeros_like(outer)), axis=-2))
    return xp.where(q[..., :1] < 0, -q, q)


def matrix_to_rot6d(matrix: Array) -> Array:
    """Matrix ``[..., 3, 3]`` to its first two rows ``[..., 6]``."""
    xp = array_namespace(matrix)
    return xp.concat([matrix[..., 0, :], matrix[..., 1, :]], axis=-1)


def rot6d_to_matrix(rot6d: Array) -> Array:
    """Any ``[..., 6]`` to a rotation matrix ``[..., 3, 3]`` by Gram-Schmidt.

    Two zero or parallel rows name no rotation: the result is then finite but singular.
    """
    xp = array_namespace(rot6d)
    row0 = _unit(rot6d[..., :3])
    rest = rot6d[..., 3:]
    row1 = _unit(rest - xp.sum(row0 * rest, axis=-1, keepdims=True) * row0)
    return xp.stack([row0, row1, xp.linalg.cross(row0, row1, axis=-1)], axis=-2)


def axis_angle_to_quat(axis_angle: Array) -> Array:
    """Axis-angle ``[..., 3]`` [rad] to quaternion ``[..., 4]``."""
    xp = array_namespace(axis_angle)
    angle = xp.sqrt(xp.sum(axis_angle * axis_angle, axis=-1, keepdims=True))
    safe = xp.where(angle > _TINY, angle, xp.ones_like(angle))
    half_sinc = xp.where(angle > _TINY, xp.sin(safe / 2) / safe, xp.full_like(angle, 0.5))
    return xp.concat([xp.cos(angle / 2), half_sinc * axis_angle], axis=-1)


def quat_to_axis_angle(q_wxyz: Array) -> Array:
    """Quaternion ``[..., 4]`` to axis-angle ``[..., 3]``, angle in ``[0, pi]``; at pi the axis has either sign."""
    xp = array_namespace(q_wxyz)
    q = _unit(q_wxyz)
    q = xp.where(q[..., :1] < 0, -q, q)
    vector = q[..., 1:]
    sin_half = xp.sqrt(xp.sum(vector * vector, axis=-1, keepdims=True))
    safe = xp.where(sin_half > _TINY, sin_half, xp.ones_like(sin_half))
    scale = xp.where(sin_half > _TINY, 2 * xp.atan2(safe, q[..., :1]) / safe, xp.full_like(sin_half, 2.0))
    return scale * vector
