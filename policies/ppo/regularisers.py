"""What holds a policy near the demonstrations or near where it began, besides the clip."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from visuomotor.data.batches import BatchSource
from visuomotor.data.errors import CheckpointError, ConfigError
from visuomotor.policies.draws import Draws
from visuomotor.policies.likelihoods.base import Evaluation, Likelihood, Record

__all__ = [
    "BCTermConfig",
    "HoldConfig",
    "Regulariser",
    "TermConfig",
    "W2TermConfig",
    "build_regularisers",
    "gaussian_kl",
]


@dataclass(kw_only=True, slots=True)
class TermConfig:
    """A term of the policy's loss: ``weight * decay ** updates``.

    Attributes:
        weight: at the beginning; 0 leaves it out.
        decay: factor with every update, above 0 and up to 1.
    """

    weight: float = 0.0
    decay: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight < math.inf or not 0.0 < self.decay <= 1.0:
            raise ConfigError(
                f"hold: weight={self.weight} and decay={self.decay}: expected 0 or more, and above 0 to 1"
            )


@dataclass(kw_only=True, slots=True)
class BCTermConfig(TermConfig):
    """The policy's own imitation loss on demonstrations (demo-augmented policy gradient, Rajeswaran et al. 2018).

    Attributes:
        batch_size: windows of the demonstrations for each minibatch, over all processes.
    """

    batch_size: int = 256

    def __post_init__(self) -> None:
        TermConfig.__post_init__(self)
        if self.batch_size < 1:
            raise ConfigError(f"hold.bc.batch_size={self.batch_size}: expected at least 1")


@dataclass(kw_only=True, slots=True)
class W2TermConfig(TermConfig):
    """Squared difference between the chunks of the policy and of the one it began as, from the same noise.

    An upper bound of the squared 2-Wasserstein distance of their actions (ReinFlow, Zhang et al. 2025). Every step of
    the sampler is differentiated, so it looks at a part of each minibatch.

    Attributes:
        samples: decisions of each minibatch that it looks at, over all processes.
    """

    samples: int = 64

    def __post_init__(self) -> None:
        TermConfig.__post_init__(self)
        if self.samples < 1:
            raise ConfigError(f"hold.w2.samples={self.samples}: expected at least 1")


@dataclass(kw_only=True, slots=True)
class HoldConfig:
    """What holds the policy; any of them together.

    Attributes:
        data: store of demonstrations for ``bc``; null takes the one that the policy was trained on, and of it the
            episodes that were not held out.
        bc: imitation of the demonstrations.
        kl: divergence from the policy that it began as, KL(now || then) of its stochastic steps [nat per component].
        w2: distance of its chunks from those of the policy that it began as [normalised units squared].
    """

    data: str | None = None
    bc: BCTermConfig = field(default_factory=BCTermConfig)
    kl: TermConfig = field(default_factory=TermConfig)
    w2: W2TermConfig = field(default_factory=W2TermConfig)

    def __post_init__(self) -> None:
        if self.data is not None and not self.bc.weight:
            raise ConfigError(
                f"hold.data={self.data} would not be read: give hold.bc.weight too, such as hold.bc.weight=0.1"
            )


class Regulariser(ABC):
    """A term of the policy's loss, already weighted.

    Attributes:
        name: under which it is reported.
    """

    name: str

    @abstractmethod
    def __call__(
        self, likelihood: Likelihood, obs: Mapping[str, Tensor], record: Record, found: Evaluation, draws: Draws
    ) -> Tensor:
        """A scalar for one minibatch: its observations ``{key: [B, To, ...]}``, record and evaluation.

        The mean over what is in this process; random numbers come from ``draws``, as many in every process.
        """

    def begin(self, update: int, share_done: float) -> None:  # noqa: B027  (not every term changes)
        """Before update ``update`` (from 0), when ``share_done`` (0..1) of the run is over."""

    def state(self) -> dict[str, Tensor]:
        """Tensors that a run needs to go on; constant over the run."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027  (most have none)
        """Inverse of :meth:`state`.

        Raises:
            CheckpointError: the state is of another policy.
        """


def build_regularisers(config: HoldConfig, likelihood: Likelihood, demos: BatchSource | None) -> list[Regulariser]:
    """The terms whose weight is not 0.

    Build them before any update: ``kl`` and ``w2`` copy the policy as the one that it began as.

    Args:
        config: which, and how strong.
        likelihood: the policy as it begins.
        demos: windows of demonstrations, read by this process alone; needed for ``bc``.

    Raises:
        ConfigError: ``bc`` without demonstrations or of frozen weights, or a term that this policy cannot have.
    """
    terms: list[Regulariser] = []
    if config.bc.weight:
        if demos is None:
            raise ConfigError("hold.bc needs demonstrations: give hold.data=<store>")
        policy = likelihood.policy
        if not any(p.requires_grad for part in (policy.encoder, policy.backbone) for p in part.parameters()):
            raise ConfigError("hold.bc: the weights that imitate are frozen here; leave it out, or use hold.kl")
        terms.append(_Imitation(config.bc, demos))
    if config.kl.weight:
        terms.append(_Divergence(config.kl, likelihood))
    if config.w2.weight:
        if likelihood.policy.head.needs_gradient:
            raise ConfigError(
                f"hold.w2: {type(likelihood.policy.head).__name__} differentiates its network to make a chunk, which "
                "cannot be differentiated again here: use hold.bc"
            )
        terms.append(_Distance(config.w2, likelihood))
    return terms


def gaussian_kl(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(other_mean, other_std^2)) [nat], elementwise."""
    moved = std.square() + (mean - other_mean).square()
    return (other_std / std).log() + moved / (2.0 * other_std.square()) - 0.5


class _Term(Regulariser):
    """Its weight falls with the updates."""

    def __init__(self, config: TermConfig) -> None:
        self._config, self._weight = config, config.weight

    def begin(self, update: int, share_done: float) -> None:
        self._weight = self._config.weight * self._config.decay**update


class _Imitation(_Term):
    name = "hold_bc"

    def __init__(self, config: BCTermConfig, demos: BatchSource) -> None:
        super().__init__(config)
        self._demos, self._size = demos, config.batch_size

    def __call__(
        self, likelihood: Likelihood, obs: Mapping[str, Tensor], record: Record, found: Evaluation, draws: Draws
    ) -> Tensor:
        index = draws.integers(0, len(self._demos), (max(1, self._size // draws.world_size),))
        return self._weight * likelihood.policy.loss(self._demos.gather(index).to(draws.device), draws).loss


class _Held(_Term):
    """A term that knows the policy as it was: a frozen copy, which a checkpoint of the run holds too."""

    def __init__(self, config: TermConfig, likelihood: Likelihood) -> None:
        super().__init__(config)
        self._base = copy.deepcopy(likelihood).requires_grad_(False)

    def begin(self, update: int, share_done: float) -> None:
        super().begin(update, share_done)
        self._base.set_progress(share_done)

    def state(self) -> dict[str, Tensor]:
        policy = {f"policy.{k}": v for k, v in self._base.policy.state_dict().items()}
        return policy | self._base.own_state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        try:
            policy = {k.removeprefix("policy."): v for k, v in state.items() if k.startswith("policy.")}
            self._base.policy.load_state_dict(policy)
            self._base.load_state_dict(state, strict=False)
        except RuntimeError as e:
            reason = str(e).splitlines()[-1].strip()
            raise CheckpointError(f"{self.name}: the policy that the run began as is another: {reason}") from e

    def _on(self, device: torch.device) -> Likelihood:
        return self._base.to(device)


class _Divergence(_Held):
    name = "hold_kl"

    def __call__(
        self, likelihood: Likelihood, obs: Mapping[str, Tensor], record: Record, found: Evaluation, draws: Draws
    ) -> Tensor:
        if found.mean is None or found.std is None:
            raise ConfigError(
                f"hold.kl: {type(likelihood).__name__} has no Gaussian steps whose divergence could be computed: use "
                "hold.w2 or hold.bc"
            )
        with torch.no_grad():
            base = self._on(draws.device).evaluate(obs, record)
        assert base.mean is not None, "the base is of the same class"
        assert base.std is not None
        kl = gaussian_kl(found.mean, found.std, base.mean, base.std)
        return self._weight * kl.sum() / max(1, kl.numel())


class _Distance(_Held):
    name = "hold_w2"

    def __init__(self, config: W2TermConfig, likelihood: Likelihood) -> None:
        super().__init__(config, likelihood)
        self._samples = config.samples

    def __call__(
        self, likelihood: Likelihood, obs: Mapping[str, Tensor], record: Record, found: Evaluation, draws: Draws
    ) -> Tensor:
        policy, base = likelihood.policy, self._on(draws.device).policy
        noise = draws.normal((max(1, self._samples // draws.world_size), *policy.noise_shape))[: len(record.chunk)]
        obs = {k: v[: len(noise)] for k, v in obs.items()}
        now = policy.head.sample(policy.net(obs), noise).float()
        with torch.no_grad():
            then = base.head.sample(base.net(obs), noise).float()
        if not now.requires_grad:
            raise ConfigError(
                f"hold.w2: no gradient passes through the chunks of {type(policy.head).__name__}: use hold.bc"
            )
        return self._weight * (now - then).square().sum() / max(1, now.numel())
