"""Fine-tuning by the initial noise alone: the policy is a black box whose noise is the action that is learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import ChunkSizes
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.gaussian import gaussian_log_prob
from visuomotor.policies.heads.steered import SteeredConfig, SteeredHead
from visuomotor.policies.likelihoods.base import Evaluation, Likelihood, LikelihoodConfig, Record, gaussian_entropy
from visuomotor.policies.policy import Policy

__all__ = ["DSRLConfig", "DSRLLikelihood", "steer"]


@dataclass(kw_only=True, slots=True)
class DSRLConfig(LikelihoodConfig):
    """The network that chooses the noise, and the sampler of the frozen policy.

    Attributes:
        shared: one noise for all steps of a chunk: ``Da`` numbers to choose, not ``H * Da``, but noise unlike what
            the frozen policy was trained with.
        width: of the hidden layers.
        depth: hidden layers.
        bound: on the noise, in standard deviations of what the policy was trained with.
        std_min: least standard deviation of the noise.
        temperature: factor of the learned standard deviation when the policy acts afterwards; 0 takes the mean.
        solver, steps: another sampler of the frozen policy (a deterministic one: with noise of its own the effect of
            what is chosen is blurred); null keeps it.
    """

    shared: bool = False
    width: int = 128
    depth: int = 2
    bound: float = 3.0
    std_min: float = 0.1
    temperature: float = 1.0
    solver: str | None = None
    steps: int | None = None


_CHOICE = ("shared", "width", "depth", "bound", "std_min", "temperature")  # settings of the head too


class DSRLLikelihood(Likelihood):
    """``M`` = 1: a Gaussian over the noise that a frozen policy begins with.

    After DSRL (Wagenmaker et al. 2025, arXiv:2506.15799), with its problem but not its algorithm: they learn the
    choice of noise with soft actor-critic from a replay buffer (and distil a critic of actions into one of noise);
    here it is learned on-policy with PPO, as every other likelihood is. The policy gets a
    :class:`~visuomotor.policies.heads.steered.SteeredHead`, and everything else in it is frozen: a checkpoint holds
    both and is deployed like any other.

    Every position of the noise influences every action, so all of them count whatever was executed (one where the noise
    is shared: ``H`` of the record's densities is then 1).

    Raises:
        ConfigError: a policy that uses no noise, or whose observations become tokens.
    """

    n_terms = 1

    def __init__(self, policy: Policy, config: DSRLConfig) -> None:
        steer(policy, config)
        super().__init__(policy, config)
        assert isinstance(policy.head, SteeredHead)
        self._head = policy.head

    @torch.no_grad()
    def rollout(self, obs: Mapping[str, Tensor], draws: Draws) -> Record:
        net = self.policy.net(obs)
        found = self._head.noise_distribution(net.seen)
        noise = draws.normal((len(found.mean), *self.policy.noise_shape))
        chosen = found.sample(self._head.own(noise))
        log_prob = gaussian_log_prob(chosen, found.mean, found.std).sum(-1)[:, None]
        chunk = self._head.execute(net, chosen, noise).float()
        return Record(chunk, {"noise": chosen, "log_prob": log_prob})

    def evaluate(self, obs: Mapping[str, Tensor], record: Record) -> Evaluation:
        with torch.no_grad():
            seen = self.policy.encoder(obs, self.policy.normalizer)
        found = self._head.noise_distribution(seen)
        log_prob = gaussian_log_prob(record.aux["noise"], found.mean, found.std).sum(-1)[:, None]
        mean, std = found.mean[:, None], found.std[:, None]
        return Evaluation(log_prob - record.aux["log_prob"], gaussian_entropy(std), mean, std)

    def mask(self, executed: Tensor, record: Record) -> Tensor:
        return executed.new_ones(len(executed), 1, self._head.shape[0])


def steer(policy: Policy, config: DSRLConfig) -> None:
    """Freeze ``policy`` and let its noise be chosen; one that is steered already keeps its network.

    Raises:
        ConfigError: as :class:`DSRLLikelihood`.
    """
    if config.solver is not None or config.steps is not None:
        policy.head.set_solver(config.solver, config.steps)
    policy.requires_grad_(False)
    head, window = policy.head, policy.spec.window
    if not isinstance(head, SteeredHead):
        if policy.encoder.token_dim:
            raise ConfigError(
                "likelihood dsrl chooses noise by the features of the observations, and this policy's encoders give "
                "tokens: choose another likelihood"
            )
        sizes = ChunkSizes(
            action_dim=policy.spec.action.size,
            horizon=window.horizon,
            n_obs=window.n_obs,
            feature_dim=policy.encoder.feature_dim,
        )
        settings: Any = getattr(head, "config", None)
        own = {k: v for k, v in asdict(config).items() if k in _CHOICE}
        steered = SteeredConfig(frozen=type(settings).__name__, settings=asdict(settings), **own)
        policy.head = SteeredHead(steered, sizes, head).to(policy.device)
    assert isinstance(policy.head, SteeredHead)
    policy.head.actor.requires_grad_(True)
    policy.head.raw_std.requires_grad_(True)
