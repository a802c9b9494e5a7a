"""Settings of ``visuomotor rl`` (from scratch) and ``visuomotor finetune`` (from a checkpoint)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import MISSING

from visuomotor.configs.schema import RolloutConfig, check_device
from visuomotor.data.errors import ConfigError
from visuomotor.data.windows import WindowConfig
from visuomotor.envs.sim.demo_start import DemoStartConfig
from visuomotor.policies.base import BackboneConfig, HeadConfig
from visuomotor.policies.encoders.images import ImageConfig
from visuomotor.policies.likelihoods.base import LikelihoodConfig
from visuomotor.policies.ppo.config import PPOConfig
from visuomotor.policies.ppo.critic import CriticConfig
from visuomotor.policies.ppo.regularisers import HoldConfig
from visuomotor.policies.ppo.trainer import BudgetConfig
from visuomotor.sim2real.randomization.config import RandomizationConfig

__all__ = ["FinetuneConfig", "RLConfig", "RLEvalConfig", "RLObservationConfig", "RunConfig"]


@dataclass(kw_only=True, slots=True)
class RLObservationConfig:
    """What a policy from scratch observes. Vectors are scaled to mean 0 and deviation 1 as they come in.

    Attributes:
        keys: observations of the task; empty takes all its vectors but privileged ones.
        image: how cameras are encoded.
    """

    keys: list[str] = field(default_factory=list)
    image: ImageConfig = field(default_factory=ImageConfig)


@dataclass(kw_only=True, slots=True)
class RLEvalConfig:
    """Evaluation in the task: before, during and after training, without exploration.

    Attributes:
        episodes: on the test seeds, before and after; 0 for no evaluation at all.
        selection_episodes: of each evaluation during training; on other seeds, they choose the best checkpoint.
        num_envs: worlds side by side.
        videos: films of the worst and of the best episodes, each, before and after.
    """

    episodes: int = 100
    selection_episodes: int = 50
    num_envs: int = 100
    videos: int = 1

    def __post_init__(self) -> None:
        self.rollout()

    def rollout(self) -> RolloutConfig:
        """For who runs it.

        Raises:
            ConfigError: a number that is too small.
        """
        return RolloutConfig(**asdict(self))


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """What both commands have in common.

    Attributes:
        seed: of the weights, the worlds and all noise.
        device: ``auto`` (the GPU where there is one), ``cpu`` or ``cuda``.
        threads: CPU threads; null takes one a core.
        run_dir: folder of the run; null makes ``runs/<date>_<task>_<rl or finetune>``.
        resume: run or checkpoint to go on with; its own settings are used.
        save_every: updates between checkpoints; 0 saves at the end only.
        eval_every: updates between evaluations on the selection seeds, which choose the best checkpoint; null makes
            five over the run, 0 none besides the one at the end.
        hold: what holds the policy near demonstrations, or near what it began as.
        demo_start: episodes that begin in states of demonstrations; never those of an evaluation.
        randomization: what differs from world to world in training; evaluations are in the task as it is.
    """

    likelihood: LikelihoodConfig = MISSING
    ppo: PPOConfig = field(default_factory=PPOConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    hold: HoldConfig = field(default_factory=HoldConfig)
    demo_start: DemoStartConfig = field(default_factory=DemoStartConfig)
    randomization: RandomizationConfig = field(default_factory=RandomizationConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    task: str = MISSING
    env: Any = None  # settings of the task's environment
    eval: RLEvalConfig = field(default_factory=RLEvalConfig)
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    run_dir: str | None = None
    resume: str | None = None
    save_every: int = 20
    eval_every: int | None = None

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.budget.env_steps is None and self.budget.minutes is None:
            raise ConfigError("budget.env_steps and budget.minutes are both null: a run needs one of them to end")
        for name, value in (("budget.env_steps", self.budget.env_steps), ("budget.minutes", self.budget.minutes)):
            if value is not None and not value > 0:
                raise ConfigError(f"{name}={value}: expected more than 0, or null")
        if not 0 <= self.seed < 2**63 - 1:
            raise ConfigError(f"seed={self.seed}: expected 0 or more, within 63 bits")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads={self.threads}: expected at least 1, or null for one a core")
        if self.save_every < 0 or (self.eval_every is not None and self.eval_every < 0):
            raise ConfigError(f"save_every={self.save_every} and eval_every={self.eval_every}: expected 0 or more")


@dataclass(kw_only=True, slots=True)
class RLConfig(RunConfig):
    """``visuomotor rl``: a policy from scratch.

    Attributes:
        action_scale: what a normalised action of 1 is, in the task's unit, for components that the task does not bound;
            null refuses such a task.
    """

    obs: RLObservationConfig = field(default_factory=RLObservationConfig)
    window: WindowConfig = field(default_factory=lambda: WindowConfig(n_obs=1, horizon=1, n_exec=1))
    action_scale: float | None = None
    policy: HeadConfig = MISSING
    backbone: BackboneConfig = MISSING

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        if self.action_scale is not None and not self.action_scale > 0:
            raise ConfigError(f"action_scale={self.action_scale}: expected more than 0, or null")


@dataclass(kw_only=True, slots=True)
class FinetuneConfig(RunConfig):
    """``visuomotor finetune``: an imitation policy, or any other checkpoint, made better in simulation.

    Attributes:
        checkpoint: a run or checkpoint of ``visuomotor train``, ``rl`` or ``finetune``; its EMA weights are taken.
    """

    checkpoint: str = MISSING
