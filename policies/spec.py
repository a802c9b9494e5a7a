"""What a policy was trained on: the observations, the actions, their rate and the shape of a chunk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from visuomotor.data.actions import ActionConfig
from visuomotor.data.errors import CheckpointError, nearest
from visuomotor.data.spec import ArraySpec
from visuomotor.data.windows import WindowConfig

__all__ = ["PolicySpec"]


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """The contract between a policy and whatever feeds it. Saved with every checkpoint; a mismatch is refused.

    Attributes:
        obs: the observations the policy reads, by key; shapes are of one step.
        action_key: name of the action array in the store.
        action: the action as commanded (before any transform).
        fps: control steps per second, or None when the dataset does not say.
        window: observed, predicted and executed steps.
        action_config: what the numbers of an action mean to the policy (absolute, delta, relative).
        constant_keys: observations that stay the same for a whole episode (goals ``goal/<key>`` and texts): the policy
            is given one step of them, ``[B, 1, ...]``, and whoever starts an episode supplies them.
    """

    obs: Mapping[str, ArraySpec]
    action_key: str
    action: ArraySpec
    fps: float | None
    window: WindowConfig
    action_config: ActionConfig
    constant_keys: frozenset[str] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form (inverse: :meth:`from_dict`)."""
        return {
            "obs": {k: v.to_dict() for k, v in self.obs.items()},
            "action_key": self.action_key,
            "action": self.action.to_dict(),
            "fps": self.fps,
            "window": asdict(self.window),
            "action_config": asdict(self.action_config),
            "constant_keys": sorted(self.constant_keys),
        }

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> PolicySpec:
        """Inverse of :meth:`to_dict`."""
        return cls(
            obs={k: ArraySpec.from_dict(v) for k, v in d["obs"].items()},
            action_key=d["action_key"],
            action=ArraySpec.from_dict(d["action"]),
            fps=d["fps"],
            window=WindowConfig(**d["window"]),
            action_config=ActionConfig(**d["action_config"]),
            constant_keys=frozenset(d.get("constant_keys", ())),
        )

    def check_source(self, obs: Mapping[str, ArraySpec], action: ArraySpec, fps: float | None, *, source: str) -> None:
        """Refuse a store, environment or robot that this policy cannot work with.

        Goals and texts (``constant_keys``) need not be among ``obs``: they are supplied with each episode.

        Raises:
            CheckpointError: naming the first observation, shape, unit or rate that differs.
        """
        for key, mine in self.obs.items():
            if key in self.constant_keys and key not in obs:
                continue
            if key not in obs:
                raise CheckpointError(f"the policy observes {key!r}, which {source} does not have. {nearest(key, obs)}")
            _check_array(f"observation {key!r}", mine, obs[key], source)
        _check_array(f"action {self.action_key!r}", self.action, action, source)
        if fps is not None and self.fps is not None and abs(fps - self.fps) > 1e-6 * self.fps:
            raise CheckpointError(f"the policy was trained at {self.fps:g} Hz, {source} runs at {fps:g} Hz")


def _check_array(what: str, mine: ArraySpec, theirs: ArraySpec, source: str) -> None:
    if mine.shape != theirs.shape:
        raise CheckpointError(f"{what}: the policy expects shape {mine.shape}, {source} gives {theirs.shape}")
    if mine.is_image != theirs.is_image or (mine.dtype == "uint8") != (theirs.dtype == "uint8"):
        raise CheckpointError(f"{what}: the policy expects {mine.dtype}, {source} gives {theirs.dtype}")
    for name in ("unit", "names"):
        a, b = getattr(mine, name), getattr(theirs, name)
        if a is not None and b is not None and a != b:
            raise CheckpointError(f"{what}: the policy expects {name} {a}, {source} gives {b}")
