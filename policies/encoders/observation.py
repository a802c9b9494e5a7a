"""From raw observations to features per observed step, and to tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from visuomotor.data.batches import goal_key
from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.normalize import Normalizer
from visuomotor.data.spec import ArraySpec
from visuomotor.policies.base import Observed
from visuomotor.policies.draws import Draws
from visuomotor.policies.encoders.config import ObservationConfig
from visuomotor.policies.encoders.goal import GoalEncoder
from visuomotor.policies.encoders.images import ImageConfig, ImageEncoder
from visuomotor.policies.encoders.part import EncoderPart, array_of
from visuomotor.policies.encoders.points import PointsEncoder
from visuomotor.policies.encoders.state import StateEncoder
from visuomotor.policies.encoders.text import TextEncoder

__all__ = ["ObservationEncoder"]


class ObservationEncoder(nn.Module):
    """All observed keys: each kind by its own part, features side by side, tokens one after another.

    Texts and the goal come first, in features and tokens alike, so that they can be hidden in what was encoded.

    Args:
        config: the keys and their treatment.
        specs: shape of one step of each key, goals included (``goal/<key>``).

    Raises:
        ConfigError: a key that no part can encode as the settings ask.
    """

    def __init__(self, config: ObservationConfig, specs: Mapping[str, ArraySpec]) -> None:
        super().__init__()
        self.config = config
        self._first_key = config.step_keys[0]
        kinds = config.kinds(specs)
        goal_specs = {k: specs[goal_key(k)] for k in config.goal.keys}
        goal_kinds = config.goal_kinds(goal_specs)
        _check_cameras(config.image, [*kinds["image"], *goal_kinds["image"]])
        self.vector_keys = list(dict.fromkeys(kinds["vector"] + goal_kinds["vector"]))
        by_kind = {kind: _part(kind, keys, specs, config) for kind, keys in kinds.items() if keys}
        self.text = by_kind.pop("text", None)
        self.parts = nn.ModuleList(by_kind.values())
        self.goal = _goal_encoder(goal_kinds, by_kind, goal_specs, config) if config.goal.keys else None

        parts = self._parts()
        self.token_dim = max((p.token_dim for p in parts), default=0)
        self.token_maps = nn.ModuleList(  # tokens of different parts, as wide as the widest
            nn.Identity() if p.token_dim in (0, self.token_dim) else nn.Linear(p.token_dim, self.token_dim)
            for p in parts
        )
        self._goal_dim = 0 if self.goal is None else self.goal.dim
        # A policy that sees tokens only has one feature, which is always 0.
        self.feature_dim = max(1, self._goal_dim + sum(p.feature_dim for p in parts))
        self._hidden_dim = self._goal_dim + (0 if self.text is None else self.text.feature_dim)
        if config.goal.dropout:
            self.null = nn.Parameter(torch.zeros(self._hidden_dim))
            if self.text is not None and self.text.token_dim:
                self.null_token = nn.Parameter(torch.zeros(self.token_dim))

    def unroll(self, key: str, x: Tensor) -> Tensor:
        """A vector observation as it is normalised (see :meth:`StateEncoder.unroll`)."""
        parts = [*self.parts, *([] if self.goal is None else self.goal.own)]
        state = next(p for p in parts if isinstance(p, StateEncoder) and key in p.keys)
        return state.unroll(key, x)

    def forward(self, obs: Mapping[str, Tensor], normalizer: Normalizer, draws: Draws | None = None) -> Observed:
        """``{key: [B, To, ...]}`` in raw units to features and tokens.

        Args:
            obs: the observed steps; of goals (``goal/<key>``) and texts one step.
            normalizer: of the vector keys.
            draws: augment with this randomness, and hide goal and texts as often as the settings say.
        """
        n_obs = array_of(obs, self._first_key).shape[1]
        outs = [part(obs, normalizer, draws) for part in self._parts()]
        features = [o.features for o in outs if o.features is not None]
        if self.goal is not None:
            features.insert(0, self.goal(obs, normalizer, draws))
        if not features:
            features = [array_of(obs, self._first_key).new_zeros(len(outs[0].tokens), 1, 1, dtype=torch.float32)]
        tokens = [m(o.tokens) for m, o in zip(self.token_maps, outs, strict=True) if o.tokens is not None]
        whole = torch.cat([f.expand(-1, n_obs, -1) for f in features], dim=-1)
        seen = Observed(whole, torch.cat(tokens, dim=1) if tokens else None)
        if draws is None or not self.config.goal.dropout:
            return seen
        return self.hide_goal(seen, draws.uniform((len(whole),)).to(whole.device) < self.config.goal.dropout)

    def hide_goal(self, seen: Observed, hidden: Tensor | None = None) -> Observed:
        """``seen`` with goal and texts replaced by what was learned for their absence, in the rows ``hidden [B]``.

        Without ``hidden``, in all rows.

        Raises:
            ConfigError: the policy has neither goal nor text, or never saw them hidden in training.
        """
        self.check_hideable()
        n = self._hidden_dim
        all_rows = torch.ones(len(seen.features), dtype=torch.bool, device=seen.features.device)
        rows = (all_rows if hidden is None else hidden)[:, None, None]
        shown = seen.features[..., :n]
        features = torch.cat([torch.where(rows, self.null.to(shown.dtype), shown), seen.features[..., n:]], dim=-1)
        if seen.tokens is None or self.text is None or not self.text.token_dim:
            return Observed(features, seen.tokens)
        words = self.config.text.tokens * len(self.config.text.keys)
        null = torch.where(rows, self.null_token.to(seen.tokens.dtype), seen.tokens[:, :words])
        return Observed(features, torch.cat([null, seen.tokens[:, words:]], dim=1))

    def check_hideable(self) -> None:
        """Refuse to go without goal and texts.

        Raises:
            ConfigError: the policy has neither goal nor text, or never saw them hidden in training.
        """
        if not self.config.constant_keys:
            raise ConfigError("this policy has neither a goal nor a text: there is nothing to guide it towards")
        if not self.config.goal.dropout:
            raise ConfigError(
                "this policy always saw its goal in training, so it does not know what to do without one: "
                "train with obs.goal.dropout=0.1 to use a guidance scale"
            )

    def _parts(self) -> list[EncoderPart]:
        text = [] if self.text is None else [self.text]
        return [*text, *self.parts]


def _part(kind: str, keys: list[str], specs: Mapping[str, ArraySpec], config: ObservationConfig) -> EncoderPart:
    """The encoder of the ``keys``, all of one kind."""
    if kind == "vector":
        return StateEncoder(keys, specs, angles=config.angles)
    if kind == "image":
        return ImageEncoder(keys, specs, config.image)
    if kind == "points":
        return PointsEncoder(keys, specs, config.points)
    return TextEncoder(keys, config.text)


def _goal_encoder(
    kinds: Mapping[str, list[str]], observed: Mapping[str, EncoderPart], specs: Mapping[str, ArraySpec],
    config: ObservationConfig,
) -> GoalEncoder:  # fmt: skip
    """Vectors need no weights; images and points share those of the present where the keys are the same."""
    own, shared = [], []
    for kind, keys in kinds.items():
        if (
            kind != "vector"
            and kind in observed
            and set(observed[kind].keys) == set(config.goal.keys) & (set(keys) | set(config.points.calibration_keys))
        ):
            shared.append(observed[kind])
        elif keys:
            own.append(_part(kind, keys, specs, config))
    return GoalEncoder(own, shared, config.goal.dim)


def _check_cameras(config: ImageConfig, cameras: list[str]) -> None:
    """Refuse sizes of what is no camera, of the present or of the goal."""
    for name, named in (("resize_by_key", config.resize_by_key), ("crop_by_key", config.crop_by_key)):
        for key in named:
            if key not in cameras:
                raise ConfigError(
                    f"obs.image.{name} names {key!r}, which is not observed as an image. {nearest(key, cameras)}"
                )
