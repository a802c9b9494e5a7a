"""``--help``: every setting with its default and what it means, read from the schemas and their docstrings."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from omegaconf import MISSING as MUST_BE_GIVEN

from visuomotor.configs.bench import BenchConfig
from visuomotor.configs.compose import groups
from visuomotor.configs.export import ExportConfig
from visuomotor.configs.generate import GenerateConfig
from visuomotor.configs.play import PlayConfig
from visuomotor.configs.registry import backbones, heads
from visuomotor.configs.rl_compose import head_class, layers_help, rl_groups
from visuomotor.configs.rl_schema import FinetuneConfig, RLConfig
from visuomotor.configs.robots import preset_names
from visuomotor.configs.robustness import RobustnessConfig
from visuomotor.configs.schema import EvalConfig, TrainConfig
from visuomotor.envs.registry import get_task, task_names
from visuomotor.envs.teleop import KEYS
from visuomotor.policies.likelihoods.registry import LIKELIHOODS, likelihoods_for
from visuomotor.sim2real.randomization.config import TermConfig
from visuomotor.sim2real.randomization.registry import terms
from visuomotor.sim2real.robots.config import RobotConfig

__all__ = [
    "bench_help",
    "eval_help",
    "export_help",
    "generate_help",
    "play_help",
    "rl_help",
    "robot_help",
    "robustness_help",
    "settings_help",
    "train_help",
]

_TRAIN = """\
visuomotor train: train a policy on demonstrations, evaluate it, write report.html

  visuomotor train task=pusht data.path=pusht.zarr               everything else has a default
  visuomotor train data.path=my.zarr obs.keys=[qpos,cube_pose]   your own data, no simulator
  visuomotor train data.path=my.zarr backbone=unet window.horizon=32 train.steps=50000
  visuomotor train resume=runs/<run>                             go on with an interrupted run, bit for bit
  torchrun --nproc-per-node=4 -m visuomotor.configs.cli train …  several GPUs

The run's folder holds report.html, checkpoints/, metrics.jsonl, tensorboard/, eval/ and videos/.
Ctrl-C stops after the current step and leaves a checkpoint to resume from.
"""
_ROBUSTNESS = """\
visuomotor robustness: what a policy survives, which factor costs most, and which policy will transfer

  visuomotor robustness checkpoint=runs/<run>                    every factor of the preset tabletop, and all together
  visuomotor robustness checkpoint=<run> only=[delay,object_mass] episodes=50 conditions=0
  visuomotor robustness checkpoint=<run> others=[<run>,<run>] real=<zarr> held_out=<randomization.yaml>

The folder <run>/robustness holds robustness.html, robustness.json and conditions.jsonl; an interrupted command goes on.
"""
_RL = """\
visuomotor rl: a policy from scratch, by PPO in parallel simulation

  visuomotor rl task=cartpole                                    everything else has a default
  visuomotor rl task=reach ppo.num_envs=256 budget.env_steps=2000000 budget.minutes=10
  visuomotor rl task=lift env.privileged=true                    the critic sees more than the policy
  visuomotor rl resume=runs/<run> budget.env_steps=5000000       go on, bit for bit on the CPU; the budget may grow
  torchrun --nproc-per-node=2 -m visuomotor.configs.cli rl ...   several processes share the worlds

The run's folder holds report.html, checkpoints/ (for eval, export, play and finetune), metrics.jsonl, tensorboard/,
eval/ and videos/. Ctrl-C stops after the current update and leaves a checkpoint to resume from.
"""
_FINETUNE = """\
visuomotor finetune: a trained policy of any head made better by PPO in its task

  visuomotor finetune checkpoint=runs/<run>                      its own task; the likelihood that suits its head
  visuomotor finetune checkpoint=runs/<run> likelihood=noisy env.reward=sparse budget.minutes=10
  visuomotor finetune checkpoint=runs/<run> hold.kl.weight=0.1 ppo.critic_warmup=5
  visuomotor finetune resume=runs/<run>                          go on, bit for bit on the CPU
  torchrun --nproc-per-node=2 -m visuomotor.configs.cli finetune ...

The new run is an ordinary one: visuomotor eval, export and play take its checkpoints. Its report compares before and
after on the same test seeds.
"""
_EVAL = """\
visuomotor eval: measure a trained policy

  visuomotor eval checkpoint=runs/<run> task=pusht      roll out on test seeds: score and success with intervals, videos
  visuomotor eval checkpoint=runs/a against=runs/b      the same seeds for both: paired differences
  visuomotor eval checkpoint=runs/<run> data=my.zarr    open-loop error on held-out episodes

"""
_BENCH = """\
visuomotor bench: every head under the same training budget, tested on the same seeds

  visuomotor bench pusht data=pusht.zarr                            all heads, 5 minutes each
  visuomotor bench pusht data=pusht.zarr policies=[flow,act/transformer] minutes=15
  visuomotor bench pusht data=pusht.zarr backbone=dit train.batch_size=512      settings of visuomotor train, for all
  visuomotor bench pusht data=pusht.zarr table=docs/benchmarks.md   also keeps the table in a Markdown file

The same command goes on with a bench that was stopped.

"""
_EXPORT = """\
visuomotor export: a trained policy as a program of its own, sampler and normalisation included

  visuomotor export checkpoint=runs/<run>                              policy.onnx, policy.pt2 and io.json
  visuomotor export checkpoint=runs/<run> out=robot formats=[onnx] sample_steps=4

Each file is loaded again and compared with PyTorch; one that differs is refused.

"""
_GENERATE = """\
visuomotor data generate: demonstrations by the scripted expert of a task, or from recorded ones; failures are left out

  visuomotor data generate task=lift episodes=200 out=lift.zarr          the same command goes on where it was stopped
  visuomotor data generate task=lift env.control.mode=joint_pos cameras=[front]
  visuomotor data generate task=lift from=recorded.zarr episodes=500     recorded demonstrations, to new object poses

"""
_PLAY = """\
visuomotor play: a window in which a policy, the expert or you act in real time

  visuomotor play task=lift record=demos.zarr                 act by keyboard; good episodes are recorded
  visuomotor play task=lift device=gamepad record=demos.zarr
  visuomotor play checkpoint=runs/<run> record=fixes.zarr     the policy acts; Insert takes over and gives back
  visuomotor play task=lift device=viewer                     watch the scripted expert

"""


def train_help() -> str:
    """Help of ``visuomotor train``."""
    words = "\n".join(_choices(name, options) for name, options in groups().items())
    sections: list[tuple[str, type]] = [("", TrainConfig)]
    sections += [(f"policy={n}: policy.", e.config_class) for n, e in heads().items()]
    sections += [(f"backbone={n}: backbone.", e.config_class) for n, e in backbones().items()]
    sections += [(f"task={n}: env.", get_task(n).config_class) for n in task_names()]
    body = "\n".join(_section(title, schema) for title, schema in sections)
    return (
        f"{_TRAIN}\nChosen by one word (the first defaults: policy=diffusion backbone=mlp task=none)\n{words}\n\n{body}"
    )


def rl_help(command: str) -> str:
    """Help of ``visuomotor rl`` or ``visuomotor finetune``."""
    words = "\n".join(_choices(name, options) for name, options in rl_groups(command).items())
    scratch = command == "rl"
    parts: list[tuple[str, type]] = [("", RLConfig if scratch else FinetuneConfig)]
    if scratch:
        parts += [(f"policy={n}: policy.", e.config_class) for n, e in heads().items()]
        parts += [(f"backbone={n}: backbone.", e.config_class) for n, e in backbones().items()]
    parts += [(f"likelihood={n}: likelihood.", e.config_class) for n, e in LIKELIHOODS.items()]
    parts += [(f"task={n}: env.", get_task(n).config_class) for n in task_names()]
    default = (
        "policy=gaussian, backbone=perceptron or mlp and the likelihood, as suits the policy"
        if scratch
        else "the task of the checkpoint, the likelihood that suits its head"
    )
    body = "\n".join(_section(title, schema) for title, schema in parts)
    fitting = {n: likelihoods_for(head_class(n)) for n in heads()}
    words += "\n\nLikelihoods of each head, its default first\n"
    words += "\n".join(f"  {n:<12} {', '.join(names) or 'none'}" for n, names in fitting.items())
    words += "\n\nAbove the defaults that are listed below, and below what you say\n"
    words += "\n".join(
        textwrap.fill(line, 110, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)
        for line in layers_help(command)
    )
    head = f"{_RL if scratch else _FINETUNE}\nChosen by one word (default: {default})"
    return f"{head}\n{words}\n\n{body}\n{_terms_help()}"


def _terms_help() -> str:
    """The terms of a randomisation, and their settings."""
    taken: dict[type, list[str]] = {}
    for name, entry in sorted(terms().items()):
        taken.setdefault(entry.config_class, []).append(name)
    names = textwrap.fill(", ".join(sorted(terms())), 110, initial_indent="  ", subsequent_indent="  ")
    shared = {f.name for f in fields(TermConfig)}
    prefix = "randomization.terms.<name>."
    out = f"Terms, which {prefix}term= names (and <name> itself may be)\n{names}\n\n"
    out += f"Settings of every term, with the defaults of most\n{''.join(_lines(prefix, TermConfig))}"
    for schema, those in taken.items():
        texts, own = _descriptions(schema), [f for f in fields(schema) if f.name not in shared]
        lines = "".join(_entry(f"{prefix}{f.name}={_show(_default(f))}", texts.get(f.name, "")) for f in own)
        out += f"\nFurther settings of {', '.join(those)}\n{lines}" if own else ""
    return out


def _choices(name: str, options: Sequence[str]) -> str:
    """``  name=a|b|c``, broken after a bar where it would be too long."""
    text = f"{name}={'| '.join(options)}"
    lines = textwrap.wrap(text, width=110, initial_indent="  ", subsequent_indent=" " * (len(name) + 3))
    return "\n".join(line.replace("| ", "|") for line in lines)


def eval_help() -> str:
    """Help of ``visuomotor eval``."""
    return _EVAL + _section("", EvalConfig)


def robustness_help() -> str:
    """Help of ``visuomotor robustness``."""
    return _ROBUSTNESS + _section("", RobustnessConfig)


def bench_help() -> str:
    """Help of ``visuomotor bench``."""
    return _BENCH + _section("", BenchConfig)


def export_help() -> str:
    """Help of ``visuomotor export``."""
    return _EXPORT + _section("", ExportConfig)


def generate_help() -> str:
    """Help of ``visuomotor data generate``."""
    return _GENERATE + _section("", GenerateConfig)


def play_help() -> str:
    """Help of ``visuomotor play``."""
    keys = "".join(f"  {key:<10} {text}\n" for key, text in KEYS.items())
    return f"{_PLAY}Keys\n{keys}\n{_section('', PlayConfig)}"


def settings_help(schema: type) -> str:
    """Help of a command whose settings, described in the docstring of ``schema``, say it all."""
    title = inspect.cleandoc(schema.__doc__ or "").splitlines()[0].replace("``", "").rstrip(".")
    return f"{title}\n\n{_section('', schema)}"


def robot_help(schema: type) -> str:
    """Help of a command that takes ``robot=`` besides the settings of ``schema``."""
    return (
        f"{settings_help(schema)}robot=<name> or a YAML file of your own; robot.<setting>=<value> changes one setting\n"
        f"  {', '.join(preset_names())}\n\n{_section('robot: robot.', RobotConfig)}"
    )


def _section(title: str, schema: type) -> str:
    prefix = title.split(": ")[-1]
    head = f"Settings of {title.rsplit(': ', 1)[0]}" if title else "Settings, with their defaults"
    return f"{head}\n" + "".join(_lines(prefix, schema)) + ("" if title else "\n")


def _lines(prefix: str, schema: type, instance: Any = None) -> list[str]:
    """An entry for each field; the defaults are those of ``instance`` where the owner has set others."""
    texts = _descriptions(schema)
    out = []
    for f in fields(schema):
        default = _default(f) if instance is None else getattr(instance, f.name)
        if is_dataclass(default):
            out += _lines(f"{prefix}{f.name}.", type(default), default)
            continue
        if f.name in ("task", "env") and schema in (TrainConfig, RLConfig, FinetuneConfig):
            continue  # set by the word task=
        if default == MUST_BE_GIVEN and f.name in (*groups(), "likelihood"):
            continue  # chosen by one word, listed above
        shown = "(must be given)" if default == MUST_BE_GIVEN else _show(default)
        out.append(_entry(f"{prefix}{f.name}={shown}", texts.get(f.name, "")))
    return out


def _default(f: Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not MISSING else f.default


def _show(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _entry(setting: str, text: str) -> str:
    wrapped = textwrap.wrap(text, width=72)
    first = f"  {setting:<42}"
    if len(setting) > 41 and wrapped:
        return f"  {setting}\n" + "".join(f"{'':44}{line}\n" for line in wrapped)
    lines = [first + (wrapped[0] if wrapped else "")] + [f"{'':44}{line}" for line in wrapped[1:]]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _descriptions(schema: type) -> dict[str, str]:
    """``{field: text}`` from the ``Attributes`` of the docstrings of ``schema`` and its parents."""
    out: dict[str, str] = {}
    for cls in reversed(schema.__mro__):
        doc = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
        _, _, attributes = doc.partition("Attributes:\n")
        for entry in re.split(r"\n(?=    \w)", attributes.split("\n\n")[0]):
            names, _, text = entry.strip().partition(":")
            plain = " ".join(text.replace("``", "").split())
            out |= {name.strip(): plain for name in names.split(",") if name.strip().isidentifier()}
    return out
