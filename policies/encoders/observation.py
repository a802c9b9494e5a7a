"""From raw observations to features per observed step, and to tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError
from visuomotor.data.normalize import Normalizer
from visuomotor.data.spec import ArraySpec
from visuomotor.policies.base import Observed
from visuomotor.policies.draws import Draws
from visuomotor.policies.encoders.config import ObservationConfig
from visuomotor.policies.encoders.part import EncoderPart
from visuomotor.policies.encoders.state import StateEncoder

__all__ = ["ObservationEncoder"]


class ObservationEncoder(nn.Module):
    """All observed keys: each kind by its own part, features side by side, tokens one after another.

    Args:
        config: the keys and their treatment.
        specs: shape of one step of each key.

    Raises:
        ConfigError: a key that no part can encode as the settings ask.
    """

    def __init__(self, config: ObservationConfig, specs: Mapping[str, ArraySpec]) -> None:
        super().__init__()
        self.config = config
        kinds = config.kinds(specs)
        self.vector_keys = kinds["vector"]
        parts: list[EncoderPart] = []
        if kinds["vector"]:
            parts.append(StateEncoder(kinds["vector"], specs, angles=config.angles))
        for kind in ("image", "points", "text"):
            if kinds[kind]:
                raise ConfigError(f"observation {kinds[kind][0]!r}: encoders of kind {kind} are not in this version")
        self.parts = nn.ModuleList(parts)
        self.feature_dim = sum(p.feature_dim for p in parts)
        self.token_dim = max(p.token_dim for p in parts)

    def unroll(self, key: str, x: Tensor) -> Tensor:
        """A vector observation as it is normalised (see :meth:`StateEncoder.unroll`)."""
        state = next(p for p in self.parts if isinstance(p, StateEncoder))
        return state.unroll(key, x)

    def forward(self, obs: Mapping[str, Tensor], normalizer: Normalizer, draws: Draws | None = None) -> Observed:
        """``{key: [B, To, ...]}`` in raw units to features and tokens. ``draws``: augment with this randomness."""
        outs = [part(obs, normalizer, draws) for part in self.parts]
        features = [o.features for o in outs if o.features is not None]
        tokens = [o.tokens for o in outs if o.tokens is not None]
        return Observed(torch.cat(features, dim=-1), torch.cat(tokens, dim=1) if tokens else None)

    def without_goal(self, obs: Mapping[str, Tensor], normalizer: Normalizer) -> Observed:
        """As :meth:`forward`, with the goal hidden.

        Raises:
            ConfigError: the policy has no goal, or never saw it hidden in training.
        """
        raise ConfigError("this policy has no goal: there is nothing to guide it towards")
