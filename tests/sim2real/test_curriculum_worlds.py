"""Curricula in the worlds of a task: what terms draw, and that a snapshot or a checkpoint loses nothing of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from visuomotor.configs.cli import main
from visuomotor.configs.randomize import load_randomization
from visuomotor.data.errors import ConfigError
from visuomotor.envs.registry import get_task, make_env
from visuomotor.envs.sim.engines import EngineConfig
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.tasks.cartpole import CartpoleConfig
from visuomotor.sim2real.randomization.build import build_events, training_events
from visuomotor.sim2real.randomization.config import RandomizationConfig, TermConfig
from visuomotor.sim2real.randomization.curriculum.base import Curriculum
from visuomotor.sim2real.randomization.curriculum.config import (
    ADRConfig,
    CurriculumConfig,
    DoraemonConfig,
    LinearConfig,
)

ROOT = Path(__file__).parents[2]


def alone(x: Tensor) -> Tensor:
    return x


# ---- the terms of an environment

TERMS = {
    "mass": TermConfig(names=["pole"], low=0.25, high=4.0, distribution="loguniform"),
    "damping": TermConfig(names=["*"], low=0.5, high=1.5),
    "free": TermConfig(term="armature", names=["slider"], operation="+", low=0.0, high=0.1, governed=False),
    "point": TermConfig(term="friction_loss", names=["slider"], operation="+", low=0.0, high=0.0),
}


def cartpole(curriculum: CurriculumConfig, n: int = 8, steps: int = 5) -> SimVecEnv:
    config = CartpoleConfig(engine=EngineConfig(threads=1), max_episode_steps=steps)
    randomization = RandomizationConfig(terms=TERMS, curriculum=curriculum)
    env = make_env(config, n, training_events(randomization))
    assert isinstance(env, SimVecEnv)
    return env


def test_a_term_reads_the_number_of_its_world_and_others_keep_their_ranges() -> None:
    env = cartpole(CurriculumConfig(kind="adr", observe=True, adr=ADRConfig(step=0.25, episodes=1)))
    names = env.obs_spec["randomization"].names
    assert names == ("mass", "damping")
    obs = env.reset(seeds=range(8))
    nominal, mass = env.sim.nominal("body_mass")[-1], env.sim.model_field("body_mass")[:, -1]
    damping = env.sim.model_field("dof_damping") / env.sim.nominal("dof_damping")
    assert torch.equal(mass, nominal.expand(8))  # the ranges are points so far
    assert torch.equal(damping, torch.ones_like(damping))
    assert bool((obs["randomization"] == 0).all())
    assert len(env.sim.model_field("dof_armature")[:, 0].unique()) == 8  # not governed: all of its range
    for _ in range(30):  # every episode succeeds
        for _ in range(5):
            obs = env.step(torch.zeros(8, 1)).obs
        env.events.adapt(0, alone)
    shares = obs["randomization"].double()
    torch.testing.assert_close(mass / nominal, 4.0 ** shares[:, 0], rtol=1e-5, atol=0)
    damping = env.sim.model_field("dof_damping") / env.sim.nominal("dof_damping")
    assert len(shares.unique(dim=0)) == 8
    assert bool(((damping - 1).abs() <= 0.5 * shares[:, 1:].abs() + 1e-6).all())  # two joints, each its own
    assert bool((damping[:, 0] != damping[:, 1]).any())
    assert env.events.report()["dr_width"] == pytest.approx(1.0)


def test_the_same_seeds_give_the_same_numbers_in_any_number_of_worlds() -> None:
    config = CurriculumConfig(kind="doraemon")
    few, many = cartpole(config, 3), cartpole(config, 8)
    few.reset(seeds=[7, 5, 6])
    many.reset(seeds=range(8))
    for field in ("body_mass", "dof_damping"):
        assert torch.equal(few.sim.model_field(field), many.sim.model_field(field)[[7, 5, 6]])


@pytest.mark.parametrize(
    "config",
    [
        CurriculumConfig(kind="linear", linear=LinearConfig(by="success", episodes=8)),
        CurriculumConfig(kind="adr", adr=ADRConfig(episodes=2)),
        CurriculumConfig(kind="doraemon", doraemon=DoraemonConfig(episodes=16)),
    ],
    ids=lambda c: c.kind,
)
def test_what_is_restored_goes_on_bit_for_bit(config: CurriculumConfig) -> None:
    def run(env: SimVecEnv, rounds: int) -> None:
        for i in range(rounds):
            for _ in range(7):
                env.step(torch.full((8, 1), 0.02))
            env.events.adapt(56 * i, alone)

    env = cartpole(config)
    env.reset(seeds=range(8))
    run(env, 4)
    saved = env.snapshot()
    run(env, 6)
    again = cartpole(config)
    again.restore(saved)
    run(again, 6)
    assert env.events.report() == again.events.report()
    assert env.events.report()["dr_width"] > 0.1
    whole, parts = env.snapshot(), again.snapshot()
    assert torch.equal(whole.sim.state, parts.sim.state)
    assert all(torch.equal(v, parts.sim.model[k]) for k, v in whole.sim.model.items())
    for name, value in whole.buffers.items():
        torch.testing.assert_close(value, parts.buffers[name], rtol=0, atol=0, equal_nan=True, msg=name)


def test_environments_from_one_list_do_not_share_their_numbers() -> None:
    events = training_events(RandomizationConfig(terms=TERMS, curriculum=CurriculumConfig(kind="doraemon")))
    config = CartpoleConfig(engine=EngineConfig(threads=1))
    a, b = (make_env(config, n, events) for n in (4, 2))
    assert isinstance(a, SimVecEnv)
    assert isinstance(b, SimVecEnv)
    a.reset(seeds=range(4))
    b.reset(seeds=[9, 9])
    mass = a.sim.model_field("body_mass")[:, -1].clone()
    a.reset(seeds=range(4))
    assert torch.equal(mass, a.sim.model_field("body_mass")[:, -1])


# ---- settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CurriculumConfig(kind="adrr"), "kind='adrr' is unknown. Did you mean 'adr'"),
        (lambda: CurriculumConfig(adr=ADRConfig(step=0.1)), "adr.step does nothing with curriculum.kind=fixed"),
        (lambda: ADRConfig(narrow=0.9), "adr.narrow=0.9"),
        (lambda: LinearConfig(by="time"), "linear.by='time' is unknown"),
        (lambda: LinearConfig(steps=0), "linear.steps=0: expected more than 0"),
        (lambda: DoraemonConfig(success=1.5), "doraemon.success=1.5: expected above 0 and up to 1"),
        (lambda: DoraemonConfig(episodes=2), "doraemon.episodes=2: expected at least 8"),
        (lambda: DoraemonConfig(concentration=1.0), "doraemon.concentration=1"),
        (
            lambda: training_events(
                RandomizationConfig(terms={"point": TERMS["point"]}, curriculum=CurriculumConfig(kind="adr"))
            ),
            "kind=adr has nothing to govern",
        ),
    ],
)
def test_mistakes_are_named(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_fixed_ranges_need_no_curriculum() -> None:
    events = training_events(RandomizationConfig(terms=TERMS))
    assert not any(isinstance(e, Curriculum) for e in events)
    observed = training_events(RandomizationConfig(terms=TERMS, curriculum=CurriculumConfig(observe=True)))
    assert isinstance(observed[0], Curriculum)


# ---- runs

TINY = [
    "task=cartpole", "env.max_episode_steps=6", "env.engine.threads=1", "threads=1", "ppo.num_envs=8",
    "ppo.decisions=8", "ppo.epochs=1", "backbone.width=8", "critic.width=8", "eval.episodes=0", "save_every=0",
    "randomization.terms.pole.term=mass", "randomization.terms.pole.names=[pole]", "randomization.terms.pole.low=0.5",
    "randomization.terms.pole.high=2.0", "randomization.terms.damping.names=['*']",
    "randomization.terms.damping.low=0.5", "randomization.terms.damping.high=2.0",
    "randomization.curriculum.observe=true",
]  # fmt: skip
KINDS = {
    "adr": ["randomization.curriculum.kind=adr", "randomization.curriculum.adr.episodes=2"],
    "doraemon": ["randomization.curriculum.kind=doraemon", "randomization.curriculum.doraemon.episodes=12"],
}


def tensors(folder: Path) -> dict[str, Tensor]:
    last = (folder / "checkpoints" / "last").resolve()
    files = sorted(last.glob("*.safetensors"))
    return {f"{f.stem}/{k}": v for f in files for k, v in load_file(f).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_in_two_parts_is_that_in_one_bit_for_bit(kind: str, tmp_path: Path) -> None:
    words = [*TINY, *KINDS[kind]]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["rl", *words, f"run_dir={whole}", "budget.env_steps=768"]) == 0
    assert main(["rl", *words, f"run_dir={parts}", "budget.env_steps=448"]) == 0
    assert main(["rl", f"resume={parts}", "budget.env_steps=768"]) == 0
    a, b = tensors(whole), tensors(parts)
    assert a.keys() == b.keys()
    different = [k for k in a if not torch.equal(a[k].nan_to_num(), b[k].nan_to_num())]
    assert [k for k in different if k != "progress/seconds"] == []
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    widths = [r["dr_width"] for r in rows if "dr_width" in r]
    assert widths[-1] > widths[0]
    report = (parts / "report.html").read_text()
    assert "Drawn: pole" in report
    assert "Share of the ranges in use" in report


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_have_the_same_ranges(kind: str, tmp_path: Path) -> None:
    words = [*TINY, *KINDS[kind], f"run_dir={tmp_path / 'run'}", "budget.env_steps=768"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    out = subprocess.run(
        [sys.executable, *launcher, "-m", "visuomotor.configs.cli", "rl", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    saved = tensors(tmp_path / "run")
    name = "buffer/events.0.ends" if kind == "adr" else "buffer/events.0.phi"
    first, second = saved[f"worlds/{name}"], saved[f"worlds.1/{name}"]
    assert torch.equal(first, second)
    fresh = training_events(load_randomization([w for w in words if w.startswith("randomization")]))
    env = make_env(CartpoleConfig(), 1, fresh)
    assert isinstance(env, SimVecEnv)
    assert not torch.equal(first, env.snapshot().buffers[name.removeprefix("buffer/")])


# ---- held-out simulators

FILES = sorted([*(ROOT / "configs" / "heldout").glob("*.yaml"), *(ROOT / "benchmarks" / "sim_to_sim").glob("*.yaml")])


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_simulators_of_the_sim_to_sim_suite_fit_their_tasks(path: Path) -> None:
    name = path.stem.split("_")[0]
    config = get_task({"push": "push_t_arm"}.get(name, name)).config_class()
    randomization = load_randomization([f"randomization={path}"])
    env = make_env(config, 2, build_events(randomization))
    env.reset(seeds=[0, 1])
    step = env.step(torch.zeros(2, env.action_spec.size))
    assert bool(torch.isfinite(step.reward).all())
    points = [t.low == t.high for t in randomization.terms.values()]
    assert points == [path.parent.name == "heldout"] * len(points)  # "real" ones are one each; ranges are ranges
