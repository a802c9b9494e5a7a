"""The policy: observations in raw units to a chunk of actions in raw units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visuomotor.data.actions import ActionTransform
from visuomotor.data.batches import Batch
from visuomotor.data.errors import ConfigError
from visuomotor.data.normalize import Normalizer
from visuomotor.policies.base import Backbone, Head, LossOutput, NetFn, Observed, masked_mean
from visuomotor.policies.conditioned import BlendedNet, ConditionedNet, Prefix
from visuomotor.policies.draws import Draws
from visuomotor.policies.encoders.observation import ObservationEncoder
from visuomotor.policies.iterative import Guide, IterativeHead, WarmStart
from visuomotor.policies.spec import PolicySpec

__all__ = ["LossConfig", "Policy", "prefix_dim"]


@dataclass(kw_only=True, slots=True)
class LossConfig:
    """What of the loss does not depend on the head.

    Attributes:
        noise_draws: noise and time draws for every encoded observation (the level-2 batches of Mini-Diffuser,
            arXiv:2505.09430): encoding images is most of the work, and these share it.
        max_delay: longest inference delay [control steps] that the policy is trained for; above 0 it learns to go on
            from a prefix of actions that are already certain (training-time real-time chunking, arXiv:2512.05964).
    """

    noise_draws: int = 1
    max_delay: int = 0

    def __post_init__(self) -> None:
        if self.noise_draws < 1 or self.max_delay < 0:
            raise ConfigError(
                f"loss: noise_draws={self.noise_draws} and max_delay={self.max_delay}: expected at least 1 and 0"
            )


def prefix_dim(config: LossConfig, action_dim: int) -> int:
    """Values a step that the network's input has for known actions: ``Da``, or 0 without real-time chunking."""
    return action_dim if config.max_delay else 0


class Policy(nn.Module):
    """Encoder, backbone and head, with the normaliser and the action transform that they were trained with.

    Two verbs: :meth:`loss` of a batch, :meth:`sample` from observations and noise. Executing chunks is done outside.
    """

    def __init__(
        self, spec: PolicySpec, *, encoder: ObservationEncoder, backbone: Backbone, head: Head, normalizer: Normalizer,
        loss: LossConfig | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.spec = spec
        self.encoder, self.backbone, self.head, self.normalizer = encoder, backbone, head, normalizer
        self.loss_config = loss or LossConfig()
        if not backbone.takes_chunk and (head.needs_chunk or self.loss_config.max_delay):
            what = "loss.max_delay" if self.loss_config.max_delay else type(head).__name__
            raise ConfigError(
                f"{type(backbone).__name__} sees observations only, but {what} needs a network that sees a chunk: "
                "choose another backbone"
            )
        self._guidance_scale = 1.0
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

    @property
    def guidance_scale(self) -> float:
        """Weight of goal and texts at sampling (classifier-free guidance); 1 is the plain policy.

        Raises:
            ConfigError: on setting another, if the policy never saw them hidden in training (``obs.goal.dropout``), or
                if its head predicts nothing that could be extrapolated.
        """
        return self._guidance_scale

    @guidance_scale.setter
    def guidance_scale(self, scale: float) -> None:
        if scale != 1.0:
            self.encoder.check_hideable()
            if not self.head.is_field:
                raise ConfigError(
                    f"guidance_scale={scale:g}: {type(self.head).__name__} predicts no field over chunks, so what it "
                    "predicts with and without the goal cannot be extrapolated: choose a diffusion or flow policy"
                )
        self._guidance_scale = scale

    def forward(self, batch: Batch, draws: Draws) -> LossOutput:
        """:meth:`loss`, under the name that wrappers such as DistributedDataParallel call."""
        return self.loss(batch, draws)

    def loss(self, batch: Batch, draws: Draws) -> LossOutput:
        """Training loss of ``batch`` (raw units). All randomness comes from ``draws``."""
        n = self.loss_config.noise_draws
        seen = self.encoder(batch.obs, self.normalizer, draws if self.training else None).repeat(n)
        action = self.normalize_action(batch.action, batch.obs).repeat_interleave(n, 0)  # [B * n, H, Da]
        prefix = self._random_prefix(action, draws)
        learned = None if batch.action_mask is None else batch.action_mask.repeat_interleave(n, 0)
        per_step = self.head.loss(self._net(seen, prefix, learned), action, draws)  # [B * n, H]
        mask = ~batch.is_pad.repeat_interleave(n, 0) if self.spec.window.mask_padding else None
        if prefix is not None:
            mask = ~prefix.mask if mask is None else mask & ~prefix.mask
        return LossOutput(masked_mean(per_step, mask), per_step.detach(), None if mask is None else mask.sum())

    def draw_noise(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Standard normal ``[B, M, H, Da]`` for one :meth:`sample`."""
        return torch.randn((batch_size, *self.noise_shape), generator=generator, device=generator.device).to(
            self.device
        )

    def sample(
        self, obs: Mapping[str, Tensor], noise: Tensor, *, prefix: Prefix | None = None, guide: Guide | None = None,
        start: WarmStart | None = None,
    ) -> Tensor:  # fmt: skip
        """Chunk ``[B, H, Da]`` in raw units from ``{key: [B, To, ...]}`` in raw units. A function of its arguments.

        Args:
            obs: the observed steps.
            noise: from :meth:`draw_noise`, or anything of its shape.
            prefix: steps that are certain already, in raw units; the chunk repeats them. Needs ``loss.max_delay``.
            guide: changes the estimates on the way; works in normalised units (:meth:`normalize_action`).
            start: begin near a chunk (normalised) instead of at pure noise.

        Raises:
            ConfigError: something that this policy or its head cannot do, with the reason.
        """
        differentiates = self.head.needs_gradient or (guide is not None and guide.needs_gradient)
        with torch.inference_mode(not differentiates), torch.no_grad():
            if differentiates:  # which tensors that were born in inference mode cannot be
                obs, noise = {k: _usable(v) for k, v in obs.items()}, _usable(noise)
                prefix = None if prefix is None else Prefix(_usable(prefix.action), _usable(prefix.mask))
                start = None if start is None else start._replace(chunk=_usable(start.chunk))
            return self.generate(obs, noise, prefix=prefix, guide=guide, start=start)

    def generate(
        self, obs: Mapping[str, Tensor], noise: Tensor, *, prefix: Prefix | None = None, guide: Guide | None = None,
        start: WarmStart | None = None,
    ) -> Tensor:  # fmt: skip
        """:meth:`sample` in the caller's gradient mode; what an export traces."""
        if prefix is not None:
            self._check_prefix()
            prefix = Prefix(self.normalize_action(prefix.action, obs), prefix.mask)
        chunk = self.head.sample(self._guided_net(obs, prefix), noise, **self._options(guide, start)).float()
        if prefix is not None:
            chunk = torch.where(prefix.mask[..., None], prefix.action, chunk)
        return self.unnormalize_action(chunk, obs)

    def uncertainty(self, obs: Mapping[str, Tensor], action: Tensor) -> Tensor:
        """How unlikely the raw ``action [B, H, Da]`` is after ``obs``: ``[B]``, larger is less likely.

        Raises:
            ConfigError: the head has no density or energy.
        """
        with torch.no_grad():
            return self.head.uncertainty(self._guided_net(obs, None), self.normalize_action(action, obs))

    def normalize_action(self, action: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """Raw actions ``[B, H, Da]`` as the head sees them, given the observations that they follow."""
        return self.normalizer.normalize("action", self._transform.forward(action, self._reference(obs)))

    def unnormalize_action(self, chunk: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """Inverse of :meth:`normalize_action`."""
        return self._transform.inverse(self.normalizer.unnormalize("action", chunk), self._reference(obs))

    def net(self, obs: Mapping[str, Tensor]) -> NetFn:
        """What the head sees after the raw observations ``obs``, guidance included."""
        return self._guided_net(obs, None)

    def _net(self, seen: Observed, prefix: Prefix | None, learned: Tensor | None = None) -> ConditionedNet:
        size = prefix_dim(self.loss_config, self.spec.action.size)
        return ConditionedNet(self.backbone, self.head, seen, prefix_dim=size, prefix=prefix, learned=learned)

    def _guided_net(self, obs: Mapping[str, Tensor], prefix: Prefix | None) -> NetFn:
        seen = self.encoder(obs, self.normalizer)
        net = self._net(seen, prefix)
        if self.guidance_scale == 1.0:
            return net
        null = self._net(self.encoder.hide_goal(seen), prefix)
        return BlendedNet([net, null], [self.guidance_scale, 1.0 - self.guidance_scale])

    def _random_prefix(self, action: Tensor, draws: Draws) -> Prefix | None:
        """Delays ``0..max_delay``; with a delay ``d`` the steps before the present and the first ``d`` are known."""
        if not self.loss_config.max_delay:
            return None
        delay = draws.integers(0, self.loss_config.max_delay + 1, (len(action),))
        known = torch.where(delay > 0, delay + self.spec.window.n_obs - 1, 0)
        steps = torch.arange(action.shape[1], device=action.device)
        return Prefix(action, steps < known.to(action.device)[:, None])

    def _check_prefix(self) -> None:
        if not self.loss_config.max_delay:
            raise ConfigError(
                "this policy was not trained to go on from known actions: train with loss.max_delay=<control steps>, "
                "or use guided real-time chunking"
            )

    def _options(self, guide: Guide | None, start: WarmStart | None) -> dict[str, Any]:
        options = {k: v for k, v in {"guide": guide, "start": start}.items() if v is not None}
        if options and not isinstance(self.head, IterativeHead):
            raise ConfigError(
                f"{type(self.head).__name__} makes its chunk in one go: there are no denoising steps that a guide "
                "could correct or a warm start could skip"
            )
        return options

    def _reference(self, obs: Mapping[str, Tensor]) -> Tensor | None:
        """Observation ``[B, Dref]`` at the present step, where the action mode needs one."""
        key = self.spec.action_config.reference_key
        if self.spec.action_config.mode == "absolute" or key is None:
            return None
        return obs[key][:, self.spec.window.n_obs - 1].float().flatten(1)


def _usable(x: Tensor) -> Tensor:
    return x.clone() if x.is_inference() else x
