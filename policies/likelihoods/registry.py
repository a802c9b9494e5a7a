"""Likelihoods by name, and which one suits a policy when none is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.policies.base import Head
from visuomotor.policies.heads.act import ActHead
from visuomotor.policies.heads.carp import CarpHead
from visuomotor.policies.heads.diffusion import DiffusionHead
from visuomotor.policies.heads.edm import EDMHead
from visuomotor.policies.heads.energy import EnergyHead
from visuomotor.policies.heads.flow import FlowHead
from visuomotor.policies.heads.gaussian import GaussianHead
from visuomotor.policies.heads.gmm import GMMHead
from visuomotor.policies.heads.meanflow import MeanFlowHead
from visuomotor.policies.heads.mip import MIPHead
from visuomotor.policies.heads.regression import RegressionHead
from visuomotor.policies.heads.shortcut import ShortcutHead
from visuomotor.policies.heads.steered import SteeredHead
from visuomotor.policies.likelihoods.base import Likelihood, LikelihoodConfig
from visuomotor.policies.likelihoods.carp import CarpLikelihood, CarpLikelihoodConfig
from visuomotor.policies.likelihoods.diffusion import DiffusionChain, DiffusionChainConfig
from visuomotor.policies.likelihoods.dsrl import DSRLConfig, DSRLLikelihood
from visuomotor.policies.likelihoods.flow import FlowChain, FlowChainConfig
from visuomotor.policies.likelihoods.flow_sde import FlowSDE, FlowSDEConfig
from visuomotor.policies.likelihoods.fpo import FPOConfig, FPOLikelihood, FPOPlusConfig
from visuomotor.policies.likelihoods.gaussian import GaussianLikelihood, GaussianLikelihoodConfig
from visuomotor.policies.likelihoods.gmm import GMMLikelihood, GMMLikelihoodConfig
from visuomotor.policies.likelihoods.gsde import GSDEConfig, GSDELikelihood
from visuomotor.policies.likelihoods.noisy import NoisyOutput, NoisyOutputConfig
from visuomotor.policies.likelihoods.policy_flow import PolicyFlowConfig, PolicyFlowLikelihood
from visuomotor.policies.policy import Policy

__all__ = ["LIKELIHOODS", "LikelihoodEntry", "default_likelihood", "likelihoods_for", "make_likelihood"]


@dataclass(frozen=True)
class LikelihoodEntry:
    """Settings class, what builds the likelihood from a policy and them, and the heads that it is for.

    The first entry that accepts a head is what that head gets when none is asked for. ``ppo`` are settings of
    :class:`~visuomotor.policies.ppo.config.PPOConfig` that suit it, for whoever composes a run: below the user's own.
    """

    config_class: type[LikelihoodConfig]
    build: Callable[[Policy, Any], Likelihood]
    heads: tuple[type[Head], ...]
    ppo: Mapping[str, Any] = field(default_factory=dict)


_MATCHING = (FlowHead, DiffusionHead, EDMHead)
_PER_COMPONENT = {"reduce": "mean", "clip": 0.01}

LIKELIHOODS: dict[str, LikelihoodEntry] = {
    "gaussian": LikelihoodEntry(GaussianLikelihoodConfig, GaussianLikelihood, (GaussianHead,)),
    "dppo": LikelihoodEntry(
        DiffusionChainConfig, DiffusionChain, (DiffusionHead,), {**_PER_COMPONENT, "noise_discount": 0.6}
    ),
    "reinflow": LikelihoodEntry(FlowChainConfig, FlowChain, (FlowHead,), _PER_COMPONENT),
    "flow_sde": LikelihoodEntry(FlowSDEConfig, FlowSDE, (FlowHead,)),
    "noisy": LikelihoodEntry(
        NoisyOutputConfig,
        NoisyOutput,
        (MeanFlowHead, ShortcutHead, MIPHead, RegressionHead, ActHead, EDMHead, FlowHead, DiffusionHead),
    ),
    "gsde": LikelihoodEntry(GSDEConfig, GSDELikelihood, (GaussianHead,)),
    "gmm": LikelihoodEntry(GMMLikelihoodConfig, GMMLikelihood, (GMMHead,)),
    "carp": LikelihoodEntry(CarpLikelihoodConfig, CarpLikelihood, (CarpHead,)),
    "fpo": LikelihoodEntry(FPOConfig, FPOLikelihood, _MATCHING, {"level": "chain", "reduce": "mean", "clip": 0.05}),
    "fpo_plus": LikelihoodEntry(
        FPOPlusConfig, FPOLikelihood, _MATCHING, {"surrogate": "asymmetric", "reduce": "mean", "clip": 0.05}
    ),
    "policyflow": LikelihoodEntry(PolicyFlowConfig, PolicyFlowLikelihood, (FlowHead,)),
    "dsrl": LikelihoodEntry(
        DSRLConfig,
        DSRLLikelihood,
        (SteeredHead, DiffusionHead, FlowHead, MeanFlowHead, ShortcutHead, EDMHead, ActHead),
        {"critic_warmup": 2},
    ),
}

_WITHOUT: dict[type[Head], str] = {
    EnergyHead: "its density is known up to a factor alone that changes with the observation, and its chunks come from "
    "derivatives of the network",
}


def likelihoods_for(head: type[Head]) -> list[str]:
    """Names of the likelihoods that policies with a ``head`` can use, the one that suits them best first."""
    return [name for name, entry in LIKELIHOODS.items() if issubclass(head, entry.heads)]


def default_likelihood(head: type[Head]) -> str:
    """Name of the likelihood that suits policies with a ``head``.

    Raises:
        ConfigError: it has none, with the reason.
    """
    if names := likelihoods_for(head):
        return names[0]
    reason = "".join(f" ({why})" for kind, why in _WITHOUT.items() if issubclass(head, kind))
    raise ConfigError(
        f"{head.__name__} has no likelihood that PPO could use{reason}; heads that have one: "
        f"{', '.join(sorted({h.__name__ for e in LIKELIHOODS.values() for h in e.heads}))}"
    )


def make_likelihood(policy: Policy, config: LikelihoodConfig) -> Likelihood:
    """The likelihood whose settings ``config`` is, for ``policy``.

    Raises:
        ConfigError: it is not for the policy's head; the message names the heads it is for, and what this one can use.
    """
    for name, entry in LIKELIHOODS.items():
        if type(config) is not entry.config_class:
            continue
        if not isinstance(policy.head, entry.heads):
            usable = ", ".join(likelihoods_for(type(policy.head)))
            raise ConfigError(
                f"likelihood {name} is for {', '.join(h.__name__ for h in entry.heads)}, this policy has a "
                f"{type(policy.head).__name__}, which can use: {usable or 'none'}"
            )
        return entry.build(policy, config)
    known = [e.config_class.__name__ for e in LIKELIHOODS.values()]
    raise ConfigError(f"{type(config).__name__} is not registered. {nearest(type(config).__name__, known)}")
