"""The settings of each command, and the names under which they are chosen. YAML only chooses values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from visuomotor.configs.registry import backbones, heads
from visuomotor.data.actions import ActionConfig
from visuomotor.data.cache import CacheConfig
from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.mixture import MixtureConfig
from visuomotor.data.normalize import KeyNorm
from visuomotor.data.parts import PartConfig
from visuomotor.data.windows import WindowConfig
from visuomotor.envs.registry import get_task, task_names
from visuomotor.policies.base import BackboneConfig, HeadConfig
from visuomotor.policies.encoders.config import ObservationConfig
from visuomotor.policies.execution.config import ExecuteConfig, SteerConfig
from visuomotor.policies.learn.imitation import TrainingConfig
from visuomotor.policies.learn.optim import EMAConfig, OptimConfig
from visuomotor.policies.policy import LossConfig
from visuomotor.sim2real.randomization.config import RandomizationConfig

__all__ = ["ActionSettings", "DataConfig", "EvalConfig", "RolloutConfig", "TrainConfig", "check_device", "register"]

_DEVICES = ("auto", "cpu", "cuda")


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Which demonstrations, and how much of them is held out.

    Attributes:
        path: Zarr store: a folder, or a ``.zarr.zip``; also behind s3://, gs://, http:// or https://.
        fps: steps per second [Hz] where the store does not say; must agree where it does.
        val_fraction: share of the episodes that is held out for the validation loss; 0 trains on all.
        parts: arrays to make of components of others, where the store has none of that name.
        episodes: train on that many of the training episodes, chosen by seed; null takes all.
        mixture: further stores to train on; the policy is for the robot of ``path``.
        weight: share of the windows of ``path`` relative to those of ``mixture``.
        weight_column: per-episode column, or array of one number a step, in proportion to which windows are drawn (0
            never); null draws all
            windows alike.
        cache: where the flat training arrays live.
    """

    path: str = MISSING
    fps: float | None = None
    val_fraction: float = 0.05
    parts: dict[str, PartConfig] = field(default_factory=dict)
    episodes: int | None = None
    mixture: list[MixtureConfig] = field(default_factory=list)
    weight: float = 1.0
    weight_column: str | None = None
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ConfigError(f"data.fps={self.fps}: expected more than 0 steps per second, or null")
        if self.episodes is not None and self.episodes < 1:
            raise ConfigError(f"data.episodes={self.episodes}: expected at least 1, or null for all")
        if not 0 < self.weight < math.inf:
            raise ConfigError(f"data.weight={self.weight}: expected more than 0")
        if self.mixture and self.cache.mode == "stream":
            raise ConfigError("data.cache.mode=stream serves one store: merge the stores of data.mixture first")
        if self.weight_column is not None and self.cache.mode == "stream":
            raise ConfigError("data.cache.mode=stream reads every episode once an epoch: it has no data.weight_column")


@dataclass(kw_only=True, slots=True)
class ActionSettings(ActionConfig):
    """The action array, what its numbers mean (see :class:`ActionConfig`), and how they are normalised."""

    key: str = "action"
    norm: KeyNorm = field(default_factory=lambda: KeyNorm(clip=None))


@dataclass(kw_only=True, slots=True)
class RolloutConfig:
    """Evaluation in the task.

    Attributes:
        episodes: test episodes after training, on seeds that nothing was selected by.
        selection_episodes: episodes of each evaluation during training; on other seeds, they choose the checkpoint.
        num_envs: worlds side by side.
        videos: films of the worst and of the best episodes, each.
        execute: how the chunks of the policy become actions.
        goal: where a goal-conditioned policy gets its goals and texts: a store (the last steps of its episodes, chosen
            by seed) or an ``.npz`` file with an array ``<key>`` each; null takes the demonstrations of the training.
        text: the text of every episode instead.
        guidance_scale: weight of goal and text (classifier-free guidance); 1 is the plain policy.
    """

    episodes: int = 100
    selection_episodes: int = 100
    num_envs: int = 100
    videos: int = 2
    execute: ExecuteConfig = field(default_factory=ExecuteConfig)
    goal: str | None = None
    text: str | None = None
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        _check_guidance(self.guidance_scale)
        for name, low in (("episodes", 0), ("selection_episodes", 1), ("num_envs", 1), ("videos", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"eval.{name}={getattr(self, name)}: expected at least {low}")


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """``visuomotor train``: from demonstrations to an evaluated policy.

    Attributes:
        seed: of the split, the weights, the batches and all noise.
        device: ``auto`` (the GPU where there is one), ``cpu`` or ``cuda``.
        threads: CPU threads; null takes one a core.
        run_dir: folder of the run; null makes ``runs/<date>_<task or data>_<policy>``.
        resume: run or checkpoint to go on with; its own settings are used.
    """

    data: DataConfig = field(default_factory=DataConfig)
    obs: ObservationConfig = field(default_factory=ObservationConfig)
    action: ActionSettings = field(default_factory=ActionSettings)
    window: WindowConfig = field(default_factory=WindowConfig)
    policy: HeadConfig = MISSING
    backbone: BackboneConfig = MISSING
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainingConfig = field(default_factory=TrainingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    task: str | None = None  # set by the task group
    env: Any = None  # settings of the task's environment, set by the task group
    eval: RolloutConfig = field(default_factory=RolloutConfig)
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    run_dir: str | None = None
    resume: str | None = None

    def __post_init__(self) -> None:
        check_device(self.device)
        clip, modes = getattr(self.policy, "clip", None), {self.action.norm.mode, *self.action.norm.dims}
        if clip is not None and modes != {"minmax"}:
            raise ConfigError(
                f"policy.clip={clip:g} bounds predicted actions to [-{clip:g}, {clip:g}] in normalised units, but with "
                f"action.norm {sorted(modes - {'minmax'})} normalised actions leave that range: set policy.clip=null"
            )
        if getattr(self.policy, "squash", False) and modes != {"minmax"}:
            raise ConfigError(
                "policy.squash=true keeps predicted actions within (-1, 1) in normalised units, but with action.norm "
                f"{sorted(modes - {'minmax'})} normalised actions leave that range: set policy.squash=false"
            )
        known = self.loss.max_delay + self.window.n_obs - 1
        if self.loss.max_delay and known >= self.window.horizon:
            raise ConfigError(
                f"loss.max_delay={self.loss.max_delay}: with window.n_obs={self.window.n_obs} up to {known} of "
                f"window.horizon={self.window.horizon} steps are then known, which leaves nothing to learn: expected "
                f"at most {self.window.horizon - self.window.n_obs}"
            )
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}: expected 0 or more")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads={self.threads}: expected at least 1, or null for one a core")


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """``visuomotor eval``: a checkpoint in its task (``task=``), or against held-out demonstrations (``data=``).

    Attributes:
        checkpoint: a checkpoint folder, or a run (its best checkpoint, else its last).
        task: roll out in this task; None takes the one it was trained for, unless ``data`` is given.
        data: open-loop error on the held-out episodes of this store.
        against: another checkpoint or run: both run the same seeds, and the paired difference is reported.
        env: settings of the task's environment that differ from their defaults.
        randomization: what differs from world to world; given as ``randomization=<name or file>``.
        weights: ``ema`` (the moving average) or ``raw``.
        solver, sample_steps: another solver or number of denoising steps than in training; None keeps them.
        execute: how the chunks of the policy become actions.
        candidates: chunks made for each observation, of which the best one is executed.
        rank_by: what the best one is: ``coherence`` (with the chunk before), a checkpoint with a density or energy, or
            a value function of another package (entry point of the group visuomotor.values).
        steer: a point or path that the actions are drawn to.
        compose: checkpoints that act together with ``checkpoint``, by a weighted sum at every denoising step.
        compose_weights: one weight each, that of ``checkpoint`` first, summing to 1; empty: the same for all.
        search_weights: find the weights by a grid on the selection seeds; the result is of the test seeds.
        search_parts: parts that the grid divides 1 into.
        search_episodes: episodes for each weight of the grid.
        goal, text, guidance_scale: as ``eval.goal``, ``eval.text`` and ``eval.guidance_scale`` of ``visuomotor train``.
        out: folder for ``eval.json`` and the videos; None writes beside the checkpoint.
    """

    checkpoint: str = MISSING
    task: str | None = None
    data: str | None = None
    against: str | None = None
    env: dict[str, Any] = field(default_factory=dict)
    randomization: RandomizationConfig = field(default_factory=RandomizationConfig)
    episodes: int = 100
    num_envs: int = 100
    videos: int = 2
    weights: str = "ema"
    solver: str | None = None
    sample_steps: int | None = None
    execute: ExecuteConfig = field(default_factory=ExecuteConfig)
    candidates: int = 1
    rank_by: str | None = None
    steer: SteerConfig = field(default_factory=SteerConfig)
    compose: list[str] = field(default_factory=list)
    compose_weights: list[float] = field(default_factory=list)
    search_weights: bool = False
    search_parts: int = 10
    search_episodes: int = 50
    goal: str | None = None
    text: str | None = None
    guidance_scale: float = 1.0
    device: str = "auto"
    threads: int | None = None
    out: str | None = None

    def __post_init__(self) -> None:
        check_device(self.device)
        _check_guidance(self.guidance_scale)
        if self.weights not in ("ema", "raw"):
            raise ConfigError(f"unknown weights {self.weights!r}. {nearest(self.weights, ('ema', 'raw'))}")
        if self.task is not None and self.data is not None:
            raise ConfigError("give task= (roll out) or data= (open-loop error), not both")
        if self.randomization.terms and self.data is not None:
            raise ConfigError("randomization= is of worlds; it does not go with data=")
        if self.against is not None and self.data is not None:
            raise ConfigError("against= compares two policies in a task; it does not go with data=")
        lowest = {"episodes": 1, "num_envs": 1, "videos": 0, "candidates": 1, "search_parts": 1, "search_episodes": 1}
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name}={getattr(self, name)}: expected at least {low}")
        self._check_execution()

    def _check_execution(self) -> None:
        acts = self.execute != ExecuteConfig() or self.steer.corners or self.rank_by or self.compose
        if self.data is not None and (acts or self.goal is not None or self.text is not None):
            raise ConfigError(
                "data= measures the error of single predictions on what the store holds: execute, steer, candidates, "
                "compose, goal and text go with task="
            )
        if (self.candidates > 1) != (self.rank_by is not None):
            raise ConfigError(
                f"candidates={self.candidates} and rank_by={self.rank_by}: several chunks need something to choose "
                "among them by, and one chunk needs nothing"
            )
        if (self.compose_weights or self.search_weights) and not self.compose:
            raise ConfigError("compose_weights and search_weights are of several policies: give compose=[<run>, ...]")
        if self.compose_weights and self.search_weights:
            raise ConfigError("give compose_weights= or search_weights=true, not both")


def _check_guidance(scale: float) -> None:
    if not math.isfinite(scale) or scale < 0:
        raise ConfigError(f"guidance_scale={scale}: expected 0 (ignore the goal), 1 (plain) or more")


def check_device(device: str) -> None:
    """Refuse a device that there is none of, with the nearest name."""
    if device not in _DEVICES:
        raise ConfigError(f"unknown device {device!r}. {nearest(device, _DEVICES)}")


def register(yaml_tasks: set[str]) -> None:
    """Put the schemas and every registered head, backbone and task where Hydra finds them.

    ``yaml_tasks`` have a preset file; any other task (of another package) is chosen with its default settings.
    """
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    for name, head in heads().items():
        store.store(group="policy", name=name, node=head.config_class)
    for name, backbone in backbones().items():
        store.store(group="backbone", name=name, node=backbone.config_class)
    for name in task_names():
        store.store(group="env", name=name, node=get_task(name).config_class)
        if name not in yaml_tasks:
            node = {"task": name, "env": get_task(name).config_class}
            store.store(group="task", name=name, node=node, package="_global_")
