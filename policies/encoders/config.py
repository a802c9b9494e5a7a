"""Which observations a policy reads, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
        keys: arrays of the store, in the order of the features.
        angles: components of a key that are angles [rad]; each becomes its sine and cosine, so that there is no seam.
        norm: how components are normalised, for keys without an entry in ``norm_by_key``.
        norm_by_key: how the components of one key are normalised; component numbers count after the angles.
        image: how cameras are encoded.
        points: which keys are point clouds, or depth images to turn into them, and how they are encoded.
        text: which keys are texts, and how they are encoded.
        goal: what of the observations is also given as a goal.
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
            self._check_observed(setting, getattr(self, setting))
        for setting, keys in (("points.keys", self.points.keys), ("text.keys", self.text.keys)):
            self._check_observed(setting, keys)

    def _check_observed(self, setting: str, keys: list[str] | dict[str, object]) -> None:
        for key in keys:
            if key not in self.keys:
                raise ConfigError(f"obs.{setting} names {key!r}, which is not observed. {nearest(key, self.keys)}")

    def kinds(self, specs: Mapping[str, ArraySpec]) -> dict[str, list[str]]:
        """Observed keys by kind (``vector``, ``image``, ``points``, ``text``), from the settings and the shapes."""
        out: dict[str, list[str]] = {"vector": [], "image": [], "points": [], "text": []}
        for key in self.keys:
            if key in self.points.keys:
                out["points"].append(key)
            elif key in self.text.keys:
                out["text"].append(key)
            else:
                out["image" if specs[key].is_image else "vector"].append(key)
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
