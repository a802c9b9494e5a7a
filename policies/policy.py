"""The policy: observations in raw units to a chunk of actions in raw units."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from visuomotor.data.actions import ActionTransform
from visuomotor.data.batches import Batch
from visuomotor.data.normalize import Normalizer
from visuomotor.policies.base import Backbone, ConditionedNet, Head, LossOutput, masked_mean
from visuomotor.policies.draws import Draws
from visuomotor.policies.encoders import StateEncoder
from visuomotor.policies.spec import PolicySpec

__all__ = ["Policy"]


class Policy(nn.Module):
    """Encoder, backbone and head, with the normaliser and the action transform that they were trained with.

    Two verbs: :meth:`loss` of a batch, :meth:`sample` from observations and noise. Executing chunks is done outside.
    """

    def __init__(
        self, spec: PolicySpec, *, encoder: StateEncoder, backbone: Backbone, head: Head, normalizer: Normalizer
    ) -> None:
        super().__init__()
        self.spec = spec
        self.encoder, self.backbone, self.head, self.normalizer = encoder, backbone, head, normalizer
        reference = spec.action_config.reference_key
        self._transform = ActionTransform(
            spec.action_config,
            action_size=spec.action.size,
            n_obs=spec.window.n_obs,
            reference_size=None if reference is None else spec.obs[reference].size,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.backbone.parameters()).device

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """``(M, H, Da)``: what one sample needs of standard-normal noise."""
        return self.head.noise_count(), self.spec.window.horizon, self.spec.action.size

    def forward(self, batch: Batch, draws: Draws) -> LossOutput:
        """:meth:`loss`, under the name that wrappers such as DistributedDataParallel call."""
        return self.loss(batch, draws)

    def loss(self, batch: Batch, draws: Draws) -> LossOutput:
        """Training loss of ``batch`` (raw units). All randomness comes from ``draws``."""
        net = self._net(batch.obs)
        action = self._transform.forward(batch.action, self._reference(batch.obs))
        per_step = self.head.loss(net, self.normalizer.normalize("action", action), draws)  # [B, H]
        mask = ~batch.is_pad if self.spec.window.mask_padding else None
        return LossOutput(masked_mean(per_step, mask), per_step.detach())

    def draw_noise(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Standard normal ``[B, M, H, Da]`` for one :meth:`sample`."""
        return torch.randn((batch_size, *self.noise_shape), generator=generator, device=generator.device).to(
            self.device
        )

    @torch.inference_mode()
    def sample(self, obs: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """Chunk ``[B, H, Da]`` in raw units from ``{key: [B, To, ...]}`` in raw units. A function of its arguments."""
        chunk = self.head.sample(self._net(obs), noise)
        return self._transform.inverse(self.normalizer.unnormalize("action", chunk.float()), self._reference(obs))

    def _net(self, obs: Mapping[str, Tensor]) -> ConditionedNet:
        return ConditionedNet(self.backbone, self.backbone.condition(self.encoder(obs, self.normalizer)))

    def _reference(self, obs: Mapping[str, Tensor]) -> Tensor | None:
        """Observation ``[B, Dref]`` at the present step, where the action mode needs one."""
        key = self.spec.action_config.reference_key
        if self.spec.action_config.mode == "absolute" or key is None:
            return None
        return obs[key][:, self.spec.window.n_obs - 1].float().flatten(1)
