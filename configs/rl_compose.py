"""Settings of a run of PPO in layers: defaults, what suits the likelihood, what suits the task, the user's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from visuomotor.configs.compose import apply_words, check_keys, known_keys, parse_words, task_settings, to_typed
from visuomotor.configs.randomize import compose_randomization, presets, split_words, typed_randomization
from visuomotor.configs.registry import backbones, heads
from visuomotor.configs.rl_schema import FinetuneConfig, RLConfig
from visuomotor.data.errors import CheckpointError, ConfigError, nearest
from visuomotor.envs.registry import get_task, task_names
from visuomotor.policies.base import ChunkSizes, Head
from visuomotor.policies.likelihoods.registry import LIKELIHOODS, default_likelihood

__all__ = [
    "ComposedRun",
    "compose_finetune",
    "compose_rl",
    "head_class",
    "layers_help",
    "restore_run",
    "rl_groups",
    "word",
]

_SCHEMAS: dict[str, type[RLConfig] | type[FinetuneConfig]] = {"rl": RLConfig, "finetune": FinetuneConfig}
_FREE_ON_RESUME = ("budget.", "eval.", "threads=", "save_every=", "eval_every=")
# From scratch a small network learns fastest, and one standard deviation for all states explores most evenly.
_FROM_SCRATCH: dict[tuple[str, str], dict[str, Any]] = {
    ("policy", "gaussian"): {"std_from_obs": False, "std_init": 0.6, "std_min": 0.05},
    ("backbone", "mlp"): {"width": 64, "depth": 2, "dropout": 0.0},
    ("backbone", "dit"): {"dropout": 0.0},
    ("backbone", "transformer"): {"dropout": 0.0},
}
# What a policy knows already is lost by steps that suit a policy that knows nothing.
_FINE_TUNED: dict[str, Any] = {"lr": 3e-5, "critic_warmup": 2, "decisions": 64}
# Imitation makes a Gaussian as narrow as the demonstrations are precise, which leaves nothing to explore. The others
# took policies of Lift from 40 to 98 %, or as far as their budget went (docs/ppo.md).
_FINE_TUNED_BY: dict[str, dict[str, dict[str, Any]]] = {
    "gaussian": {"likelihood": {"std_floor": 0.1}},
    "dppo": {"ppo": {"lr": 2e-4, "epochs": 3, "minibatches": 2}},
    "noisy": {"ppo": {"lr": 5e-5, "epochs": 4, "minibatches": 2}},
    "reinflow": {"ppo": {"lr": 5e-5}},
    "flow_sde": {"ppo": {"lr": 2e-5}},
}
# Where reaching the goal ends an episode, reaching it is the reward, and only the critic has to know how far it is.
_GOAL_REWARDED: dict[str, Any] = {"reward": "sparse", "privileged": True}
# The sum of a reward that success ends is largest just short of success.
_REWARDED: dict[str, dict[str, Any]] = {"pusht": {"reward": "progress"}}


@dataclass(frozen=True)
class ComposedRun:
    """Typed settings, and the same as plain values with the names that were chosen (ready for JSON and YAML)."""

    config: RLConfig | FinetuneConfig
    plain: dict[str, Any]  # {"command", "choices": {"task", "likelihood", ...}, "config": {...}}


def rl_groups(command: str) -> dict[str, list[str]]:
    """What can be chosen by one word in ``command`` (``rl`` or ``finetune``)."""
    every = {"task": task_names(), "likelihood": sorted(LIKELIHOODS), "randomization": presets()}
    return every if command == "finetune" else {"policy": sorted(heads()), "backbone": sorted(backbones()), **every}


def compose_rl(words: Sequence[str]) -> ComposedRun:
    """Settings of ``visuomotor rl`` from words such as ``task=cartpole ppo.num_envs=128``.

    Raises:
        ConfigError: an unknown setting or choice, a value of the wrong type, or settings that contradict each other.
    """
    randomized, words = split_words(words)
    overrides, chosen = _choose(parse_words(words), "rl")
    choices = {"policy": "gaussian"} | chosen
    if "task" not in choices:
        raise ConfigError(f"task is missing: give task=<name>, one of {', '.join(task_names())}")
    head = head_class(choices["policy"])
    choices.setdefault("backbone", "mlp" if head.needs_chunk else "perceptron")  # the faster one where it serves
    choices.setdefault("likelihood", default_likelihood(head))
    cfg = _blank(RLConfig, choices)
    cfg.randomization = compose_randomization(randomized)
    for group, name in choices.items():
        if small := _FROM_SCRATCH.get((group, name)):
            cfg[group] = OmegaConf.merge(cfg[group], small)
    layers = [_suited(choices["likelihood"]), _rewarded(choices["task"]), _preset(choices["task"])]
    return _finish("rl", choices, cfg, layers, overrides)


def compose_finetune(
    words: Sequence[str], *, head: type[Head], saved: Mapping[str, Any], reach: float = 1.0
) -> ComposedRun:  # fmt: skip
    """Settings of ``visuomotor finetune`` for a checkpoint with a ``head``, trained with the settings ``saved``.

    ``reach`` is the largest action of its demonstrations in normalised units: what explores is not held nearer.

    Raises:
        ConfigError: as :func:`compose_rl`; also a head without a likelihood, or no task.
    """
    randomized, words = split_words(words)
    overrides, chosen = _choose(parse_words(words), "finetune")
    task = chosen.get("task") or saved["task"]
    if task is None:
        raise ConfigError("this policy was trained without a task: give task=<name>")
    choices = {"task": task, "likelihood": chosen.get("likelihood") or default_likelihood(head)}
    cfg = _blank(FinetuneConfig, choices)
    cfg.randomization = compose_randomization(randomized)
    if saved["task"] == task:
        cfg.env = OmegaConf.structured(task_settings(task, saved["env"]))
    ppo = _FINE_TUNED | ({"action_bound": reach} if reach > 1.0 else {})
    layers: list[dict[str, Any]] = [{"ppo": ppo}, _rewarded(task)]
    if cfg.env.get("end_on_success") and set(_GOAL_REWARDED) <= set(cfg.env):
        layers.append({"env": _GOAL_REWARDED})
    layers += [_suited(choices["likelihood"]), _FINE_TUNED_BY.get(choices["likelihood"], {})]
    return _finish("finetune", choices, cfg, layers, overrides)


def layers_help(command: str) -> list[str]:
    """What ``command`` puts above the defaults of the settings, a line each as the user would write it."""
    every: dict[str, Mapping[str, Any]] = {f"likelihood={n}": _suited(n) for n in LIKELIHOODS}
    if command == "rl":
        own: dict[str, Mapping[str, Any]] = {f"{g}={n}": {g: small} for (g, n), small in _FROM_SCRATCH.items()}
        every = own | every | {f"task={n}": {**_rewarded(n), **_preset(n)} for n in task_names()}
    else:
        by = {f"likelihood={n}": small for n, small in _FINE_TUNED_BY.items()}
        every = {
            "every policy": {"ppo": _FINE_TUNED},
            **{k: {"ppo": {**every[k]["ppo"], **by.get(k, {}).get("ppo", {})},
                   "likelihood": by.get(k, {}).get("likelihood", {})} for k in every},
            "a task that reaching the goal ends": {"env": _GOAL_REWARDED},
            **{f"task={n}": _rewarded(n) for n in _REWARDED},
        }  # fmt: skip
    written = {
        what: [f"{part}.{k}={str(v).lower()}" for part, values in layer.items() for k, v in values.items()]
        for what, layer in every.items()
    }
    return [f"with {what}: {' '.join(words)}" for what, words in written.items() if words]


def restore_run(plain: Mapping[str, Any], words: Sequence[str], run_dir: Path) -> ComposedRun:
    """Settings saved with a checkpoint of ``run_dir``, with those on top that a resumed run may change.

    Raises:
        ConfigError: a setting that may not change.
        CheckpointError: the checkpoint is of ``visuomotor train``, or of settings that this version does not know.
    """
    if plain.get("command") not in _SCHEMAS:
        raise CheckpointError(f"{run_dir} is a run of visuomotor train: go on with visuomotor train resume={run_dir}")
    if fixed := [w for w in words if not w.startswith(_FREE_ON_RESUME)]:
        raise ConfigError(
            f"{fixed[0]!r} cannot change when a run is resumed: it goes on exactly as it began. What may change: "
            "budget.*, eval.*, save_every, eval_every, threads. For other settings start a new run."
        )
    command, choices = plain["command"], dict(plain["choices"])
    for group, name in choices.items():
        if name not in (known := rl_groups("rl")[group]):
            raise CheckpointError(f"the run needs {group} {name!r}, which is not installed. {nearest(name, known)}")
    values = {k: v for k, v in plain["config"].items() if k not in ("data", "randomization")}
    cfg = _blank(_SCHEMAS[command], choices)
    try:
        cfg.randomization = typed_randomization(plain["config"].get("randomization") or {})
        return _finish(command, choices, cfg, [values, {"run_dir": str(run_dir)}], parse_words(words))
    except OmegaConfBaseException as e:
        raise CheckpointError(
            f"the run was made with settings that this version does not know: {str(e).splitlines()[0]}"
        ) from None


def word(words: Sequence[str], key: str) -> str | None:
    """What ``key=`` is set to among ``words``; None where it is not, or ``null``.

    Raises:
        ConfigError: a word that cannot be read.
    """
    values = [o.value() for o in parse_words(words) if o.key_or_group == key]
    return str(values[-1]) if values and values[-1] not in (None, "") else None


def _choose(overrides: list[Override], command: str) -> tuple[list[Override], dict[str, str]]:
    """The settings, and what was chosen of each group."""
    groups = rl_groups(command)
    chosen = {o.key_or_group: str(o.value()) for o in overrides if o.key_or_group in groups}
    for group, name in chosen.items():
        if name not in groups[group]:
            raise ConfigError(f"unknown {group} {name!r}. {nearest(name, groups[group])}")
    return [o for o in overrides if o.key_or_group not in groups], chosen


def _blank(schema: type[RLConfig] | type[FinetuneConfig], choices: Mapping[str, str]) -> DictConfig:
    """Default settings, with the classes that were chosen in their places."""
    cfg: DictConfig = OmegaConf.structured(schema)
    cfg.task = choices["task"]
    cfg.env = OmegaConf.structured(get_task(choices["task"]).config_class)
    cfg.likelihood = OmegaConf.structured(LIKELIHOODS[choices["likelihood"]].config_class)
    if "policy" in choices:
        cfg.policy = OmegaConf.structured(heads()[choices["policy"]].config_class)
        cfg.backbone = OmegaConf.structured(backbones()[choices["backbone"]].config_class)
    return cfg


def head_class(name: str) -> type[Head]:
    """Class of the head, which a package of others may build by a function."""
    build = heads()[name].build
    if isinstance(build, type):
        assert issubclass(build, Head)
        return build
    return type(build(heads()[name].config_class(), ChunkSizes(action_dim=1, horizon=1, n_obs=1, feature_dim=1)))


def _suited(likelihood: str) -> dict[str, Any]:
    return {"ppo": dict(LIKELIHOODS[likelihood].ppo)}


def _rewarded(task: str) -> dict[str, Any]:
    return {"env": _REWARDED[task]} if task in _REWARDED else {}


def _preset(task: str) -> dict[str, Any]:
    """What suits the task, from ``configs/rl_task/<task>.yaml``."""
    file = files("visuomotor.configs") / "rl_task" / f"{task}.yaml"
    if not file.is_file():
        return {}
    plain = OmegaConf.to_container(OmegaConf.create(file.read_text()))
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}


def _finish(
    command: str, choices: dict[str, str], cfg: DictConfig, layers: Sequence[Mapping[str, Any]],
    overrides: Sequence[Override],
) -> ComposedRun:  # fmt: skip
    for layer in layers:
        merged = OmegaConf.merge(cfg, dict(layer))
        assert isinstance(merged, DictConfig)
        cfg = merged
    check_keys(overrides, known_keys(cfg))
    cfg = apply_words(cfg, overrides)
    config = to_typed(cfg, _SCHEMAS[command])
    plain = OmegaConf.to_container(cfg, resolve=True)
    return ComposedRun(config, {"command": command, "choices": choices, "config": plain})
