"""Which observations a policy reads, and how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from visuomotor.data.batches import goal_key
from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.normalize import KeyNorm
from visuomotor.data.spec import ArraySpec
from visuomotor.policies.encoders.goal import GoalConfig
from visuomotor.policies.encoders.images import ImageConfig
from visuomotor.policies.encoders.points import PointsConfig
from visuomotor.policies.encoders.text import TextConfig

__all__ = ["ObservationConfig", "sin_cos_components"]


@dataclass(kw_only=True, slots=True)
class ObservationConfig:
    """Which observations a policy reads, and how.

    Attributes:
        keys: arrays of the store, and columns with texts, in the order of the features.
        angles: components of a key that are angles [rad]; each becomes its sine and cosine, so that there is no seam.
        norm: how components are normalised, for keys without an entry in ``norm_by_key``.
        norm_by_key: how the components of one key are normalised; component numbers count after the angles.
        image: how cameras are encoded.
        points: which keys are point clouds, or depth images to turn into them, and how they are encoded.
        text: which keys are texts, and how they are encoded.
        goal: which arrays are also, or only, given as a goal.
    """

    keys: list[str] = field(default_factory=lambda: ["state"])
    angles: dict[str, list[int]] = field(default_factory=dict)
    norm: KeyNorm = field(default_factory=KeyNorm)
    norm_by_key: dict[str, KeyNorm] = field(default_factory=dict)
    image: ImageConfig = field(default_factory=ImageConfig)
    points: PointsConfig = field(default_factory=PointsConfig)
    text: TextConfig = field(default_factory=TextConfig)
    goal: GoalConfig = field(default_factory=GoalConfig)

    def __post_init__(self) -> None:
        if not self.keys:
            raise ConfigError("obs.keys is empty: name at least one observation array")
        twice = sorted({k for k in self.keys if self.keys.count(k) > 1})
        if twice:
            raise ConfigError(f"obs.keys names {twice} more than once")
        for setting in ("angles", "norm_by_key"):
            self._check_known(setting, getattr(self, setting), [*self.keys, *self.goal.keys])
        for setting, keys in (("points.intrinsics_keys and points.pose_keys", self.points.calibration_keys),
                              ("text.keys", self.text.keys)):  # fmt: skip
            self._check_known(setting, keys, self.keys)
        self._check_known("points.keys", self.points.keys, [*self.keys, *self.goal.keys])
        self._check_known("image.depth_keys", self.image.depth_keys, [*self.keys, *self.goal.keys])
        for camera in (k for k in self.goal.keys if k in self.points.keys):
            for needed in (self.points.intrinsics_keys.get(camera), self.points.pose_keys.get(camera)):
                if needed is not None and needed not in self.goal.keys:
                    raise ConfigError(f"obs.goal.keys names the depth image {camera!r}, but not {needed!r}: name both")
        texts = [k for k in self.goal.keys if k in self.text.keys]
        if texts:
            raise ConfigError(f"obs.goal.keys names the text {texts[0]!r}: texts are hidden with the goal as they are")
        if not self.step_keys:
            raise ConfigError(f"obs.keys {self.keys} are all texts: name at least one array that changes")
        if self.goal.dropout and not self.constant_keys:
            raise ConfigError(f"obs.goal.dropout={self.goal.dropout}: there is neither a goal nor a text to hide")

    @staticmethod
    def _check_known(setting: str, keys: Iterable[str], known: list[str]) -> None:
        for key in keys:
            if key not in known:
                raise ConfigError(f"obs.{setting} names {key!r}, which is not observed. {nearest(key, known)}")

    @property
    def store_keys(self) -> list[str]:
        """Arrays of the store that observations and goals are read from."""
        return list(dict.fromkeys([*self.step_keys, *self.goal.keys]))

    @property
    def step_keys(self) -> list[str]:
        """Arrays that are observed at every step."""
        return [k for k in self.keys if k not in self.text.keys]

    @property
    def constant_keys(self) -> frozenset[str]:
        """Observations that stay the same for a whole episode: goals and texts."""
        return frozenset([*map(goal_key, self.goal.keys), *self.text.keys])

    def kinds(self, specs: Mapping[str, ArraySpec]) -> dict[str, list[str]]:
        """Observed keys by kind (``vector``, ``image``, ``points``, ``text``), from the settings and the shapes."""
        return self._sorted(self.keys, specs)

    def goal_kinds(self, specs: Mapping[str, ArraySpec]) -> dict[str, list[str]]:
        """Keys of the goal by kind, as :meth:`kinds`; ``specs`` are of the keys themselves."""
        return self._sorted(self.goal.keys, specs)

    def _sorted(self, keys: list[str], specs: Mapping[str, ArraySpec]) -> dict[str, list[str]]:
        out: dict[str, list[str]] = {"vector": [], "image": [], "points": [], "text": []}
        calibration = self.points.calibration_keys
        for key in keys:
            if key in self.points.keys:
                out["points"].append(key)
            elif key in self.text.keys:
                out["text"].append(key)
            elif key not in calibration:
                out["image" if specs[key].is_image or key in self.image.depth_keys else "vector"].append(key)
        return out

    def norm_of(self, key: str) -> KeyNorm:
        """Normalisation of ``key``, with sine and cosine left as they are unless the key has settings of its own."""
        if key in self.norm_by_key or key not in self.angles:
            return self.norm_by_key.get(key, self.norm)
        n = self.norm
        identity = sorted({*n.dims.get("identity", []), *sin_cos_components(self.angles[key])})
        return KeyNorm(mode=n.mode, dims={**n.dims, "identity": identity}, range_eps=n.range_eps, clip=n.clip)


def sin_cos_components(dims: list[int]) -> list[int]:
    """Where sine and cosine of the angles ``dims`` stand after :func:`visuomotor.data.angles.sin_cos`."""
    out: list[int] = []
    for earlier, i in enumerate(sorted(dims)):
        out += [i + earlier, i + earlier + 1]
    return out
