"""Settings of PPO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from visuomotor.data.errors import ConfigError, nearest

__all__ = ["LEVELS", "REDUCTIONS", "SCHEDULES", "SURROGATES", "PPOConfig"]

SURROGATES = ("clip", "spo", "asymmetric", "none")
REDUCTIONS = ("sum", "mean")
LEVELS = ("step", "chain")
SCHEDULES = ("constant", "cosine", "adaptive")
_NORMALISATIONS = ("batch", "minibatch", "none")


@dataclass(kw_only=True, slots=True)
class PPOConfig:
    """How experience is gathered and learnt from. A decision is one chunk of ``window.n_exec`` control steps.

    Attributes:
        num_envs: worlds, over all processes.
        decisions: of every world in an update.
        reuse: earlier rollouts that each update learns from again, corrected for how far the policy has moved since
            (GePPO); 0 for PPO proper.
        epochs: passes over the decisions of an update.
        minibatches: parts of a pass over one rollout, one optimiser step each.
        gamma: discount per control step.
        lam: of generalised advantage estimation, per decision.
        surrogate: ``clip`` (PPO), ``spo``, ``asymmetric`` (PPO where the advantage is positive, SPO elsewhere) or
            ``none`` (needs a trust region).
        clip: how far a ratio may go from 1.
        clip_first: clip of the noisiest stochastic step as a share of ``clip``; it rises exponentially to the last one
            (DPPO); 1 for the same everywhere.
        reduce: whether the log-ratio of a chunk is the ``sum`` over its components (the density), or their ``mean``:
            ``clip`` is then per component (DPPO, ReinFlow).
        level: one ratio for each stochastic ``step``, or one for the whole ``chain``.
        noise_discount: weight of the advantage falls by this with every stochastic step that is further from the last.
        normalize_advantage: over the ``batch``, each ``minibatch``, or ``none``.
        entropy: weight of the entropy bonus per component of the action [1/nat].
        value_clip: largest change of a value that the critic's loss rewards; null for the plain squared error.
        lr: of the policy.
        critic_lr: of the critic.
        schedule: of ``lr``: ``constant``, ``cosine`` (to 0 over the run) or ``adaptive`` (kept near ``desired_kl``).
        desired_kl: of the adaptive schedule: above twice it the rate falls by 1.5, below half it rises.
        target_kl: an update ends early when the divergence of a pass exceeds this; null for never.
        trust_region: largest divergence [nats] that an update may bring to any of its decisions, guaranteed by a
            penalty and by steps back (FixPO); null for no guarantee.
        grad_clip, critic_grad_clip: bounds on the norm of each gradient; null for none.
        critic_warmup: updates at the beginning that train the critic alone.
        scale_reward: divide rewards by the running standard deviation of the discounted return.
        stagger: cut the first episode of every world off after a random number of steps, so that worlds with the same
            time limit do not end together.
        image_shift: pixels by which the images of a decision are moved at random, for policy and critic alike (random
            shifts, Yarats et al. 2021). It is drawn when the decision is taken, and what was seen is what is learnt
            from: the ratio begins at 1. Evaluation and deployment do not move images.
        compile: compile the rating of decisions and its gradient with torch.compile. For a GPU; the first update takes
            a minute longer. Chunks are drawn as without: the ratio begins within 1e-3 of 1.
        action_bound: chunks are clipped to this when they are executed, in normalised units; null for no bound.
    """

    num_envs: int = 64
    decisions: int = 32
    reuse: int = 0
    epochs: int = 5
    minibatches: int = 4
    gamma: float = 0.99
    lam: float = 0.95
    surrogate: str = "clip"
    clip: float = 0.2
    clip_first: float = 1.0
    reduce: str = "sum"
    level: str = "step"
    noise_discount: float = 1.0
    normalize_advantage: str = "batch"
    entropy: float = 0.0
    value_clip: float | None = None
    lr: float = 3e-4
    critic_lr: float = 1e-3
    schedule: str = "constant"
    desired_kl: float = 0.01
    target_kl: float | None = None
    trust_region: float | None = None
    grad_clip: float | None = 1.0
    critic_grad_clip: float | None = 1.0
    critic_warmup: int = 0
    scale_reward: bool = True
    stagger: bool = True
    image_shift: int = 0
    compile: bool = False
    action_bound: float | None = 1.0

    def __post_init__(self) -> None:
        choices: dict[str, Sequence[str]] = {
            "surrogate": SURROGATES, "reduce": REDUCTIONS, "level": LEVELS, "schedule": SCHEDULES,
            "normalize_advantage": _NORMALISATIONS,
        }  # fmt: skip
        for name, options in choices.items():
            if (value := getattr(self, name)) not in options:
                raise ConfigError(f"ppo.{name}={value!r} is unknown. {nearest(value, options)}")
        for name in ("num_envs", "decisions", "epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"ppo.{name}={getattr(self, name)}: expected at least 1")
        if self.minibatches > self.num_envs * self.decisions:
            raise ConfigError(
                f"ppo.minibatches={self.minibatches}: expected at most {self.num_envs * self.decisions}, the "
                f"decisions of an update ({self.num_envs} worlds, {self.decisions} each)"
            )
        for name, low, high in (("gamma", 0.0, 1.0), ("lam", 0.0, 1.0), ("noise_discount", 0.0, 1.0)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"ppo.{name}={getattr(self, name)}: expected {low:g} to {high:g}")
        for name in ("clip", "clip_first", "lr", "critic_lr", "desired_kl", "value_clip", "target_kl", "trust_region",
                     "grad_clip", "critic_grad_clip", "action_bound"):  # fmt: skip
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(f"ppo.{name}={value}: expected more than 0")
        if self.surrogate == "none" and self.trust_region is None:
            raise ConfigError("ppo.surrogate=none has nothing that bounds an update: set ppo.trust_region, such as 0.2")
        if self.image_shift < 0:
            raise ConfigError(f"ppo.image_shift={self.image_shift}: expected 0 or more pixels")
        if self.reuse < 0:
            raise ConfigError(f"ppo.reuse={self.reuse}: expected 0 or more rollouts")
        if self.entropy < 0 or self.critic_warmup < 0:
            raise ConfigError(
                f"ppo.entropy={self.entropy} and ppo.critic_warmup={self.critic_warmup}: expected 0 or more"
            )
