"""Where a camera is mounted, from poses of the hand and what the camera sees of a board: ``A X = X B``.

The rotation by Park and Martin 1994 ("Robot sensor calibration: solving AX=XB on the Euclidean group"), the position by
least squares; then all poses together, board included, by Levenberg-Marquardt on the measured board poses. OpenCV has
``calibrateHandEye`` in some of its versions and not in others; this depends on none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from visuomotor.data.errors import UserError
from visuomotor.data.rotations import axis_angle_to_quat, matrix_to_quat, quat_to_axis_angle, quat_to_matrix

__all__ = ["HandEye", "hand_eye", "transform"]

_LEAST_POSES = 3
_LEAST_TURN = 0.1  # [rad] between two poses, and between the axes of two such turns
_ITERATIONS = 50


@dataclass(frozen=True)
class HandEye:
    """Result of :func:`hand_eye`.

    Attributes:
        camera: pose ``[4, 4]`` of the camera in the frame that carries it: the hand, or the base.
        board: pose ``[4, 4]`` of the board in the other frame: the base, or the hand.
        position_m, turn_rad: root mean square of how far the board's poses differ from what all of them say together.
        residuals: the same for every pose ``[P, 2]``: [m] and [rad].
    """

    camera: np.ndarray
    board: np.ndarray
    position_m: float
    turn_rad: float
    residuals: np.ndarray


def transform(pos: np.ndarray, rot: np.ndarray) -> np.ndarray:
    """Homogeneous matrix ``[4, 4]``."""
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = rot, pos
    return out


def hand_eye(carrier: Sequence[np.ndarray], board: Sequence[np.ndarray]) -> HandEye:
    """The camera's pose on what carries it.

    Args:
        carrier: poses ``[4, 4]`` of what carries the camera, in the frame where the board stands still. For a camera on
            the hand: of the hand in the base. For a camera beside the arm, whose board is held by the hand: of the base
            in the hand.
        board: poses ``[4, 4]`` of the board in the camera's frame, of the same moments.

    Raises:
        UserError: too few poses, or turns about one axis only, from which no position can be told.
    """
    if len(carrier) != len(board) or len(carrier) < _LEAST_POSES:
        raise UserError(f"{len(carrier)} poses of the hand, {len(board)} of the board; expected as many, 3 at least")
    pairs = [
        (np.linalg.inv(carrier[j]) @ carrier[i], board[j] @ np.linalg.inv(board[i]))
        for i, j in combinations(range(len(carrier)), 2)
    ]
    turns = [(_log(a[:3, :3]), _log(b[:3, :3]), a, b) for a, b in pairs]
    turns = [t for t in turns if _LEAST_TURN < np.linalg.norm(t[0]) < np.pi - _LEAST_TURN]
    axes = np.array([t[0] / np.linalg.norm(t[0]) for t in turns]).reshape(-1, 3)
    spread = np.linalg.svd(axes, compute_uv=False) if len(axes) else np.zeros(3)
    if len(spread) < 2 or spread[1] < _LEAST_TURN * np.sqrt(len(axes)):
        raise UserError(
            "the poses turn about one axis only, or hardly at all: turn the hand by 20 degrees and more about two axes"
        )
    moment = sum(np.outer(b, a) for a, b, _, _ in turns)
    u, _, vt = np.linalg.svd(moment)
    rot = vt.T @ np.diag([1.0, 1.0, np.linalg.det(vt.T @ u.T)]) @ u.T  # nearest rotation with a = R b
    left = np.concatenate([a[:3, :3] - np.eye(3) for _, _, a, _ in turns])
    right = np.concatenate([rot @ b[:3, 3] - a[:3, 3] for _, _, a, b in turns])
    pos = np.linalg.lstsq(left, right, rcond=None)[0]
    return _refined(transform(pos, rot), list(carrier), list(board))


def _refined(camera: np.ndarray, carrier: list[np.ndarray], seen: list[np.ndarray]) -> HandEye:
    """Camera and board that agree best with all poses, from a good start."""
    boards = [c @ camera @ b for c, b in zip(carrier, seen, strict=True)]
    mean = transform(np.mean([b[:3, 3] for b in boards], 0), _mean_rotation([b[:3, :3] for b in boards]))
    x, damping = (camera, mean), 1e-3
    error = _errors(x, carrier, seen)
    for _ in range(_ITERATIONS):
        jac = np.stack([(_errors(_moved(x, d), carrier, seen) - error) / 1e-6 for d in 1e-6 * np.eye(12)], 1)
        square = jac.T @ jac
        step = -np.linalg.solve(square + damping * np.diag(np.diag(square) + 1e-12), jac.T @ error)
        tried = _moved(x, step)
        new = _errors(tried, carrier, seen)
        if new @ new < error @ error:
            x, error, damping = tried, new, damping / 3
            if np.abs(step).max() < 1e-10:
                break
        else:
            damping *= 5
    each = error.reshape(-1, 2, 3)
    residuals = np.linalg.norm(each, axis=2)
    rms = np.sqrt((residuals**2).mean(0))
    return HandEye(x[0], x[1], float(rms[0]), float(rms[1]), residuals)


def _errors(x: tuple[np.ndarray, np.ndarray], carrier: list[np.ndarray], seen: list[np.ndarray]) -> np.ndarray:
    """Position [m] and turn [rad] of each board pose seen against the one expected, end to end."""
    out = []
    for c, b in zip(carrier, seen, strict=True):
        expected = np.linalg.inv(c @ x[0]) @ x[1]
        out += [b[:3, 3] - expected[:3, 3], _log(b[:3, :3] @ expected[:3, :3].T)]
    return np.concatenate(out)


def _moved(x: tuple[np.ndarray, np.ndarray], step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    def move(pose: np.ndarray, by: np.ndarray) -> np.ndarray:
        turn = quat_to_matrix(axis_angle_to_quat(by[3:]))
        return transform(pose[:3, 3] + by[:3], turn @ pose[:3, :3])

    return move(x[0], step[:6]), move(x[1], step[6:])


def _log(rot: np.ndarray) -> np.ndarray:
    vector: np.ndarray = quat_to_axis_angle(matrix_to_quat(rot))
    return vector


def _mean_rotation(rots: list[np.ndarray]) -> np.ndarray:
    u, _, vt = np.linalg.svd(np.mean(rots, 0))
    mean: np.ndarray = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    return mean
