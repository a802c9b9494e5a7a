"""From the settings of a run of PPO to its parts: worlds, policy, critic, trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from visuomotor.configs.build import LoadedPolicy, as_read, build_policy
from visuomotor.configs.demonstrations import read_demonstrations
from visuomotor.configs.registry import name_of
from visuomotor.configs.rl_schema import FinetuneConfig, RLConfig
from visuomotor.configs.training_data import make_source, training_split
from visuomotor.data.actions import ActionConfig
from visuomotor.data.batches import BatchSource
from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.normalize import ArrayStats, KeyNorm, Normalizer
from visuomotor.data.parts import PartConfig
from visuomotor.data.spec import ArraySpec
from visuomotor.data.windows import window_table
from visuomotor.envs.base import VecEnv
from visuomotor.envs.registry import make_env
from visuomotor.envs.sim.demo_start import DemoStart
from visuomotor.policies.encoders.config import ObservationConfig
from visuomotor.policies.encoders.observation import ObservationEncoder
from visuomotor.policies.heads.carp import CarpConfig
from visuomotor.policies.likelihoods.registry import make_likelihood
from visuomotor.policies.nets.staged import StagedBackbone
from visuomotor.policies.policy import Policy
from visuomotor.policies.ppo.critic import Critic, running_normalizer
from visuomotor.policies.ppo.regularisers import build_regularisers
from visuomotor.policies.ppo.trainer import PPOTrainer
from visuomotor.policies.spec import PolicySpec
from visuomotor.sim2real.randomization.build import training_events

__all__ = [
    "Start",
    "action_reach",
    "check_fits",
    "loaded_start",
    "make_accelerator",
    "make_trainer",
    "make_worlds",
    "model_of",
    "scratch_start",
]


@dataclass(frozen=True)
class Start:
    """The policy that a run begins with, and what its checkpoints say about its network and its demonstrations."""

    policy: Policy
    model: dict[str, Any]  # model.json
    data: dict[str, Any]  # section data of the settings that it was trained with; empty from scratch
    dataset: dict[str, Any]  # of training.json


def make_accelerator(config: RLConfig | FinetuneConfig) -> Accelerator:
    """The processes, on the device that the worlds are on: nothing is copied between devices.

    Raises:
        ConfigError: a device that is not there, or not where the worlds are.
    """
    engine = getattr(config.env, "engine", None)
    worlds_on_gpu = engine is not None and engine.name != "batch" and engine.device != "cpu"
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but torch sees no GPU here (visuomotor info). Use device=cpu or device=auto.")
    if config.device == "cuda" and not worlds_on_gpu:
        raise ConfigError(
            "device=cuda, but these worlds are on the CPU: choose an engine for GPUs (env.engine.name=warp), or "
            "device=cpu"
        )
    on_gpu = worlds_on_gpu and torch.cuda.is_available() and config.device != "cpu"
    if engine is not None and engine.name != "batch" and not on_gpu:
        engine.device = "cpu"
    accelerator = Accelerator(cpu=not on_gpu)
    if on_gpu and engine is not None and engine.device == "auto":
        engine.device = f"cuda:{accelerator.local_process_index}"
    return accelerator


def make_worlds(config: RLConfig | FinetuneConfig, accelerator: Accelerator) -> VecEnv:
    """This process's share of the worlds.

    Raises:
        ConfigError: worlds that do not divide among the processes.
    """
    n, processes = config.ppo.num_envs, accelerator.num_processes
    if n % processes:
        raise ConfigError(f"ppo.num_envs={n} does not divide among {processes} processes: expected a multiple")
    events = training_events(config.randomization)
    events += [] if config.demo_start.store is None else [DemoStart(config.demo_start)]
    return make_env(config.env, n // processes, events)


def scratch_start(config: RLConfig, env: VecEnv) -> Start:
    """A policy with fresh weights, for what the task shows and takes.

    Raises:
        ConfigError: observations that the task does not have, actions without bounds or that are whole numbers, or a
            head that needs demonstrations.
    """
    if np.issubdtype(np.dtype(env.action_spec.dtype), np.integer):
        raise ConfigError(f"task {config.task!r} takes whole numbers as actions: policies here give continuous ones")
    if isinstance(config.policy, CarpConfig):
        raise ConfigError(
            "policy=carp writes chunks in codes that are fitted to demonstrations, and from scratch there are none: "
            "train it with visuomotor train and go on with visuomotor finetune"
        )
    specs = {k: as_read(s) for k, s in env.obs_spec.items()}
    _check_given("obs.keys", config.obs.keys, specs, config.task)
    keys = config.obs.keys or _vectors(specs)
    if not keys:
        raise ConfigError(f"task {config.task!r} gives no vectors: name with obs.keys what is seen of {sorted(specs)}")
    obs = ObservationConfig(keys=keys, norm=KeyNorm(mode="zscore"), image=config.obs.image)
    spec = PolicySpec(
        obs={k: specs[k] for k in keys}, action_key="action", action=as_read(env.action_spec), fps=env.fps,
        window=config.window, action_config=ActionConfig(),
    )  # fmt: skip
    seen = running_normalizer(ObservationEncoder(obs, spec.obs), spec.obs).to_dict()
    norms = {k: KeyNorm(**v["norm"]) for k, v in seen.items()} | {"action": KeyNorm(clip=None)}
    stats = {k: ArrayStats.from_dict(v["stats"]) for k, v in seen.items()} | {"action": _bounds(config, env)}
    torch.manual_seed(config.seed)
    policy = build_policy(
        spec, obs=obs, head=config.policy, backbone=config.backbone, normalizer=Normalizer(stats, norms)
    )  # fmt: skip
    model = {
        "obs": asdict(obs),
        "loss": asdict(policy.loss_config),
        "head": {"name": name_of(config.policy), "config": asdict(config.policy)},
        "backbone": {"name": name_of(config.backbone), "config": asdict(config.backbone)},
    }
    return Start(policy, model, {}, {"path": None, "n_episodes": 0, "n_steps": 0})


def _check_given(setting: str, keys: Sequence[str], specs: dict[str, ArraySpec], task: str) -> None:
    for key in keys:
        if key not in specs:
            raise ConfigError(f"{setting} names {key!r}, which task {task!r} does not give. {nearest(key, specs)}")


def _vectors(specs: dict[str, ArraySpec]) -> list[str]:
    return [k for k, s in specs.items() if s.role != "privileged" and len(s.shape) == 1 and s.dtype != "uint8"]


def _bounds(config: RLConfig, env: VecEnv) -> ArrayStats:
    """The range of the task's actions as that of a dataset: its ends become -1 and 1."""
    low, high = (x.detach().cpu().double().numpy() for x in (env.action_low, env.action_high))
    open_ended = ~(np.isfinite(low) & np.isfinite(high))
    if open_ended.any():
        if config.action_scale is None:
            raise ConfigError(
                f"task {config.task!r} does not bound action components {np.flatnonzero(open_ended).tolist()}: say "
                "with action_scale=<x> how far from 0 they may be explored, in the task's unit"
            )
        low = np.where(np.isfinite(low), low, -config.action_scale)
        high = np.where(np.isfinite(high), high, config.action_scale)
        if (low >= high).any():
            raise ConfigError(
                f"action_scale={config.action_scale:g} is within the bounds that task {config.task!r} has: "
                f"components {np.flatnonzero(low >= high).tolist()} would go from {low.tolist()} to {high.tolist()}"
            )
    shape = env.action_spec.shape
    low, high = low.reshape(shape), high.reshape(shape)
    return ArrayStats(1, low, high, (low + high) / 2, (high - low) / 2, low, high)


def loaded_start(loaded: LoadedPolicy) -> Start:
    """A trained policy, to go on from."""
    saved, training = loaded.checkpoint.document("config"), loaded.checkpoint.document("training")
    data = saved["config"]["data"]
    dataset = dict(training["dataset"])
    if data:  # which episodes were held out depends on the seed of that training
        dataset.setdefault("split", {"val_fraction": data["val_fraction"], "seed": saved["config"]["seed"]})
    return Start(loaded.policy, loaded.checkpoint.document("model"), data, dataset)


def action_reach(policy: Policy) -> float:
    """The largest action of the demonstrations in normalised units, at least 1: exploration has to get there."""
    stats = ArrayStats.from_dict(policy.normalizer.to_dict()["action"]["stats"])
    ends = torch.from_numpy(np.stack([stats.min, stats.max])).float()
    return max(1.0, round(float(policy.normalizer.normalize("action", ends).abs().max()), 3))


def model_of(start: Start, policy: Policy) -> dict[str, Any]:
    """``model.json`` of ``policy`` as it acts now: a likelihood may have chosen another solver, or frozen a stage."""
    settings: Any = policy.head.config
    backbone = start.model["backbone"]
    if isinstance(policy.backbone, StagedBackbone) and backbone["name"] != "staged":
        config = {
            "backbone": backbone["name"], "settings": backbone["config"], "boundary": policy.backbone.boundary
        }  # fmt: skip
        backbone = {"name": "staged", "config": config}
    return start.model | {"head": {"name": name_of(settings), "config": asdict(settings)}, "backbone": backbone}


def make_trainer(config: RLConfig | FinetuneConfig, env: VecEnv, start: Start, accelerator: Accelerator) -> PPOTrainer:
    """Likelihood, critic and trainer around the policy of ``start``.

    Raises:
        ConfigError: a likelihood, observations of the critic or a term of the loss that do not fit.
        CheckpointError: the task shows or takes something else than the policy knows.
    """
    policy = start.policy
    check_fits(policy.spec, env, config.task)
    torch.manual_seed(config.seed + 1)  # of the critic and of what exploration learns, whatever the policy drew
    likelihood = make_likelihood(policy, config.likelihood)
    specs = {k: as_read(s) for k, s in env.obs_spec.items()}
    keys = config.critic.keys or [*policy.spec.obs, *(k for k, s in specs.items() if s.role == "privileged")]
    _check_given("critic.keys", keys, specs, config.task)
    if config.ppo.image_shift and not any(specs[k].is_image for k in (*policy.spec.obs, *keys)):
        raise ConfigError(f"ppo.image_shift={config.ppo.image_shift} moves pictures, and none is observed")
    critic = Critic(config.critic, list(dict.fromkeys(keys)), specs, policy.spec.window.n_obs)
    return PPOTrainer(
        env, likelihood, critic, config=config.ppo, budget=replace(config.budget), seed=config.seed,
        learn_statistics=isinstance(config, RLConfig),
        regularisers=build_regularisers(config.hold, likelihood, _demonstrations(config, start)),
        accelerator=accelerator,
    )  # fmt: skip


def _demonstrations(config: RLConfig | FinetuneConfig, start: Start) -> BatchSource | None:
    """Windows of the demonstrations that ``hold.bc`` imitates."""
    path = config.hold.data or start.dataset["path"]
    if not config.hold.bc.weight or path is None:
        return None
    parts = {k: PartConfig(**v) for k, v in start.data.get("parts", {}).items()}
    demos, policy = read_demonstrations(path, start.policy, parts), start.policy
    ends = demos.cache.episode_ends
    table = window_table(ends, policy.spec.window, _trained_on(start, path, ends))
    return make_source(
        policy.encoder.config, policy.spec, demos.cache, demos.texts, table, batch_size=config.hold.bc.batch_size,
        seed=config.seed,
    )  # fmt: skip


def _trained_on(start: Start, path: str, ends: NDArray[np.int64]) -> list[int] | None:
    """The episodes of a store that the policy was trained on: what was held out stays so. None: all, of another store.

    ``ends`` are those of the store at ``path``.
    """
    known, split = start.dataset, start.dataset.get("split")
    size = (len(ends), int(ends.max(initial=0)))
    if split is None or (path != known["path"] and size != (known["n_episodes"], known["n_steps"])):
        return None
    train, _ = training_split(len(ends), split["val_fraction"], start.data.get("episodes"), split["seed"])
    return [int(e) for e in train]


def check_fits(spec: PolicySpec, env: VecEnv, task: str) -> None:
    """Refuse worlds that show or take something else, or give no goal to a policy that reads one.

    Raises:
        CheckpointError, ConfigError: with what differs.
    """
    spec.check_source(env.obs_spec, env.action_spec, env.fps, source=f"task {task!r}")
    if missing := sorted(spec.constant_keys - set(env.obs_spec)):
        raise ConfigError(
            f"the policy reads {missing[0]!r}, a goal or text that task {task!r} does not give: only policies without "
            "goals, or tasks that give them, can be trained by reinforcement"
        )
