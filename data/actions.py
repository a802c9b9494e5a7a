"""What the numbers of an action mean: absolute targets, steps, or offsets from where the robot is.

Imports without torch.

``a (-) b`` below is the offset that leads from ``b`` to ``a``, and ``b (+) d`` applies it: subtraction for plain
components, the shortest way round for angles, ``T_b^-1 T_a`` and ``T_b T_d`` for poses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from array_api_compat import array_namespace

from visuomotor.data.angles import wrap
from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.rotations import matrix_to_rot6d, rot6d_to_matrix

__all__ = ["ACTION_MODES", "ActionConfig", "ActionTransform"]

Array = Any  # numpy.ndarray or torch.Tensor, floating; the result is of the same kind, dtype and device

ACTION_MODES = ("absolute", "delta", "relative")
_POSE_SIZE = 9  # xyz and the first two rows of the rotation matrix


@dataclass(kw_only=True, slots=True)
class ActionConfig:
    """How the actions of a dataset are expressed to the policy.

    Attributes:
        mode: ``absolute``: as stored. ``relative``: each action as an offset from the observation at the present
            step (UMI, Chi et al. 2024). ``delta``: each action as an offset from its neighbour nearer to the present.
        reference_key: observation that actions are offsets from; needed unless ``absolute``.
        reference_dims: for each action component outside ``absolute_dims``, in order, its component in the
            reference; None takes the one of the same index.
        angle_dims: action components that are angles [rad].
        pose_groups: groups of nine action components: position, then 6-D rotation (rows). The reference must hold a
            pose of the same form.
        absolute_dims: action components that stay absolute in every mode, such as a gripper width.

    Raises:
        ConfigError: unknown mode, missing reference, or components used twice.
    """

    mode: str = "absolute"
    reference_key: str | None = None
    reference_dims: list[int] | None = None
    angle_dims: list[int] = field(default_factory=list)
    pose_groups: list[list[int]] = field(default_factory=list)
    absolute_dims: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.mode not in ACTION_MODES:
            raise ConfigError(f"unknown action mode {self.mode!r}. {nearest(self.mode, ACTION_MODES)}")
        if self.mode != "absolute" and self.reference_key is None:
            raise ConfigError(
                f"action mode {self.mode!r} needs reference_key: the observation that actions are offsets from"
            )
        wrong = [g for g in self.pose_groups if len(g) != _POSE_SIZE]
        if wrong:
            raise ConfigError(
                f"pose group {wrong[0]} has {len(wrong[0])} components: expected 9 (xyz and 6-D rotation)"
            )
        used = [*self.angle_dims, *self.absolute_dims, *(i for g in self.pose_groups for i in g)]
        twice = sorted({i for i in used if used.count(i) > 1})
        if twice:
            raise ConfigError(
                f"action components {twice} are named twice among angle_dims, pose_groups and absolute_dims"
            )


class ActionTransform:
    """Actions as stored to actions as the policy sees them, and back.

    Args:
        config: the mode and the meaning of each component.
        action_size: ``Da``.
        n_obs: ``To``; the present is step ``k = n_obs - 1`` of the window, and ``reference`` is observed there.
        reference_size: ``Dref``, the components of the reference; None in absolute mode.

    Raises:
        ConfigError: a component that does not exist in the action or the reference.
    """

    def __init__(
        self, config: ActionConfig, *, action_size: int, n_obs: int, reference_size: int | None = None
    ) -> None:
        self.config = config
        self._present = n_obs - 1
        self._poses = [list(g) for g in config.pose_groups]
        self._angles = list(config.angle_dims)
        self._absolute = list(config.absolute_dims)
        special = {*self._angles, *self._absolute, *(i for g in self._poses for i in g)}
        outside = sorted(i for i in special if not 0 <= i < action_size)
        if outside:
            raise ConfigError(
                f"action components {outside} do not exist: the action has components 0..{action_size - 1}"
            )
        self._plain = [i for i in range(action_size) if i not in special]
        order = [*self._absolute, *self._plain, *self._angles, *(i for g in self._poses for i in g)]
        self._restore = [order.index(i) for i in range(action_size)]
        self._reference_index = [] if config.mode == "absolute" else self._index(action_size, reference_size)

    def _index(self, action_size: int, reference_size: int | None) -> list[int]:
        """Component of the reference for each action component; absolute ones read component 0 and ignore it."""
        moving = [i for i in range(action_size) if i not in self._absolute]
        dims = moving if self.config.reference_dims is None else list(self.config.reference_dims)
        if len(dims) != len(moving):
            raise ConfigError(
                f"reference_dims names {len(dims)} components, but {len(moving)} of {action_size} action components"
                " are not in absolute_dims: expected one for each"
            )
        size = 0 if reference_size is None else reference_size
        outside = [i for i in dims if not 0 <= i < size]
        if outside:
            raise ConfigError(
                f"component {outside[0]} does not exist in the reference {self.config.reference_key!r}, which has"
                f" {size}; reference_dims says which of them belong to the action"
            )
        return [dict(zip(moving, dims, strict=True)).get(i, 0) for i in range(action_size)]

    def forward(self, action: Array, reference: Array | None = None) -> Array:
        """Stored ``action [B, H, Da]`` to the policy's, given ``reference [B, Dref]`` at the present step.

        ``relative``: ``d_t = a_t (-) ref``. ``delta``: ``d_k = a_k (-) ref`` at the present ``k``, then away from it
        ``d_t = a_t (-) a_{t-1}`` after and ``d_t = a_t (-) a_{t+1}`` before, so that a wrong past, which is never
        executed, does not enter the sum that is executed.
        """
        if self.config.mode == "absolute":
            return action
        ref = self._aligned(reference)
        if self.config.mode == "relative":
            return self._minus(action, ref)
        k = self._present
        neighbour = array_namespace(action).concat([action[:, 1 : k + 1], ref, action[:, k:-1]], axis=1)
        return self._minus(action, neighbour)

    def inverse(self, offset: Array, reference: Array | None = None) -> Array:
        """The policy's ``[B, H, Da]`` back to stored actions; exact inverse of :meth:`forward`.

        Angles come back on the branch of the reference (equal modulo 2 pi), so a joint does not jump at the seam;
        rotations come back orthonormal.
        """
        if self.config.mode == "absolute":
            return offset
        ref = self._aligned(reference)
        if self.config.mode == "relative":
            return self._plus(ref, offset)
        k = self._present
        steps = [self._plus(ref, offset[:, k : k + 1])]
        for t in range(k + 1, offset.shape[1]):
            steps.append(self._plus(steps[-1], offset[:, t : t + 1]))
        for t in range(k - 1, -1, -1):
            steps.insert(0, self._plus(steps[0], offset[:, t : t + 1]))
        return array_namespace(offset).concat(steps, axis=1)

    def _aligned(self, reference: Array | None) -> Array:
        """Reference ``[B, Dref]`` to ``[B, 1, Da]``: the components that belong to the action, in its order."""
        if reference is None:
            raise ConfigError(f"action mode {self.config.mode!r} needs the observation {self.config.reference_key!r}")
        return reference[:, None, self._reference_index]

    def _minus(self, a: Array, b: Array) -> Array:
        xp = array_namespace(a, b)
        parts = [a[..., self._absolute], a[..., self._plain] - b[..., self._plain]]
        parts.append(wrap(a[..., self._angles] - b[..., self._angles]))
        parts += [_pose_minus(a[..., g], b[..., g]) for g in self._poses]
        return xp.concat(parts, axis=-1)[..., self._restore]

    def _plus(self, b: Array, d: Array) -> Array:
        xp = array_namespace(b, d)
        parts = [d[..., self._absolute], b[..., self._plain] + d[..., self._plain]]
        parts.append(b[..., self._angles] + d[..., self._angles])
        parts += [_pose_plus(b[..., g], d[..., g]) for g in self._poses]
        return xp.concat(parts, axis=-1)[..., self._restore]


def _pose_minus(a: Array, b: Array) -> Array:
    """``T_b^-1 T_a`` of poses ``[..., 9]``."""
    xp = array_namespace(a, b)
    R_b_inv = xp.matrix_transpose(rot6d_to_matrix(b[..., 3:]))
    position = xp.matmul(R_b_inv, (a[..., :3] - b[..., :3])[..., None])[..., 0]
    return xp.concat([position, matrix_to_rot6d(xp.matmul(R_b_inv, rot6d_to_matrix(a[..., 3:])))], axis=-1)


def _pose_plus(b: Array, d: Array) -> Array:
    """``T_b T_d`` of poses ``[..., 9]``."""
    xp = array_namespace(b, d)
    R_b = rot6d_to_matrix(b[..., 3:])
    position = b[..., :3] + xp.matmul(R_b, d[..., :3, None])[..., 0]
    return xp.concat([position, matrix_to_rot6d(xp.matmul(R_b, rot6d_to_matrix(d[..., 3:])))], axis=-1)
