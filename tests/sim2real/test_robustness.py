"""Conditions, damage, risk and rankings by hand; the command from end to end on a small policy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from visuomotor.configs.cli import main
from visuomotor.configs.robustness import read_factors
from visuomotor.data.errors import ConfigError, DataError, UserError
from visuomotor.sim2real.robustness.conditions import NOMINAL, joint_conditions, pair_conditions, single_conditions
from visuomotor.sim2real.robustness.config import FactorConfig
from visuomotor.sim2real.robustness.detect import strangeness
from visuomotor.sim2real.robustness.store import ResultStore
from visuomotor.sim2real.robustness.summary import Outcome, damage, risk, spearman, transfer_scores

FACTORS = {
    "mass": FactorConfig(terms={"m": {"term": "mass", "names": ["cube"]}}, levels=[0.5, 2.0]),
    "mode": FactorConfig(setting="engine.name", levels=["batch", "warp"]),
    "delay": FactorConfig(terms={"d": {"term": "actuator_delay", "names": ["*"]}}, levels=[0.01, 0.02, 0.1]),
}


def test_one_factor_at_a_time_leaves_the_others_as_they_are() -> None:
    found = single_conditions(FACTORS)
    assert [dict(c.levels) for c in found] == [
        {"mass": 0.5}, {"mass": 2.0}, {"mode": "batch"}, {"mode": "warp"}, {"delay": 0.01}, {"delay": 0.02},
        {"delay": 0.1},
    ]  # fmt: skip
    assert found[0].terms == {"m": {"term": "mass", "names": ["cube"], "low": 0.5, "high": 0.5}}
    assert found[3].env == {"engine.name": "warp"}
    assert len({c.key for c in (NOMINAL, *found)}) == 8
    assert len(pair_conditions(FACTORS, "mass", "delay")) == 6


def test_joint_conditions_cover_every_factor_evenly_and_are_the_same_every_time() -> None:
    found = joint_conditions(FACTORS, 32, seed=3)
    assert [c.key for c in found] == [c.key for c in joint_conditions(FACTORS, 32, seed=3)]
    masses = sorted(float(c.levels["mass"]) for c in found)
    assert 0.5 <= masses[0] < 0.6
    assert 1.9 < masses[-1] <= 2.0
    below = sum(m < 1.25 for m in masses)
    assert below == 16  # Sobol points halve every axis
    assert sum(c.levels["mode"] == "warp" for c in found) == 16
    assert joint_conditions(FACTORS, 0, seed=3) == []


def test_damage_is_what_the_same_seeds_lose() -> None:
    nominal = Outcome((True, True, True, False), (1.0,) * 4)
    found = damage("x", nominal, {1: Outcome((True,) * 4, (1.0,) * 4), 2: Outcome((False,) * 4, (0.0,) * 4)})
    assert found.mean == pytest.approx((-0.25 + 0.75) / 2)
    assert (found.worst, found.worst_level) == (0.75, 2)
    assert found.interval[0] <= found.mean <= found.interval[1]


def test_risk_by_hand() -> None:
    found = risk([1.0, 0.0, 0.5, 0.9], 0.5)
    assert found["mean"] == pytest.approx(0.6)
    assert found["cvar"] == pytest.approx(0.25)  # of 0 and 0.5
    assert found["worst"] == 0.0
    assert risk([1.0, 0.0, 0.5, 0.9], 0.375)["cvar"] == pytest.approx((0.0 + 0.5 * 0.5) / 1.5)
    with pytest.raises(UserError, match="0 conditions"):
        risk([], 0.5)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0.01, 1))
def test_the_tail_is_between_the_worst_and_the_mean(rates: list[float], share: float) -> None:
    found = risk(rates, share)
    assert found["worst"] - 1e-9 <= found["cvar"] <= found["mean"] + 1e-9


def test_spearman_by_hand() -> None:
    assert spearman([1, 2, 3], [10, 20, 15]) == pytest.approx(0.5)  # 1 - 6 (0 + 1 + 1) / (3 * 8)
    assert spearman([1, 2, 3], [5, 4, -1]) == pytest.approx(-1.0)
    assert spearman([1, 1, 2], [1, 1, 2]) == pytest.approx(1.0)  # ties share their rank
    assert np.isnan(spearman([1, 1], [1, 2]))
    with pytest.raises(UserError, match="expected as many"):
        spearman([1], [1])


def test_scores_take_both_success_and_strangeness() -> None:
    alike = transfer_scores([0.9, 0.5], [1.0, 1.0])
    assert alike[0] > alike[1]
    strange = transfer_scores([0.9, 0.8, 0.1], [5.0, 1.0, 1.0])
    assert int(np.argmax(strange)) == 1
    assert int(np.argmax(transfer_scores([0.9, 0.8, 0.1], [5.0, 1.0, 1.0], weight=0.0))) == 0


def test_what_was_met_is_not_strange_and_what_is_elsewhere_is() -> None:
    g = torch.Generator().manual_seed(0)
    known = torch.randn(600, 5, generator=g, dtype=torch.float64) * torch.tensor([1.0, 10.0, 0.1, 1.0, 1.0])
    same = torch.randn(200, 5, generator=g, dtype=torch.float64) * torch.tensor([1.0, 10.0, 0.1, 1.0, 1.0])
    near, far = strangeness(known, same), strangeness(known, same + torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0]))
    assert near["nearest"] == pytest.approx(1.0, abs=0.1)
    assert near["mahalanobis"] == pytest.approx(1.0, abs=0.1)
    assert min(far["nearest"], far["mahalanobis"]) > 3  # ten deviations along one axis
    with pytest.raises(DataError, match="expected at least 20"):
        strangeness(known[:10], same)


def test_results_are_kept_and_a_line_cut_off_is_run_again(tmp_path: Path) -> None:
    path, runs = tmp_path / "c.jsonl", list[int]()

    def run() -> int:
        runs.append(1)
        return 7

    assert ResultStore(path).get({"a": 1}, run) == 7
    again = ResultStore(path)
    assert again.get({"a": 1}, run) == 7
    assert len(runs) == 1
    path.write_text(path.read_text()[:-5])
    assert ResultStore(path).get({"a": 1}, run) == 7
    assert len(runs) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("factors: {a: {levels: [1]}}", "give one of both"),
        ("factors: {a: {terms: {mass: {names: [x]}}, levels: []}}", "without levels"),
        ("factors: {a: {terms: {mass: {names: [x]}}, levels: [heavy]}}", "finite numbers"),
        ("factors: {a: {terms: {mas: {names: [x]}}, levels: [1]}}", "mass"),
        ("factors: {a: {terms: {mass: {names: [x], low: 1}}, levels: [1]}}", "the levels"),
        (
            "factors: {a: {terms: {mass: {names: [x]}}, levels: [1]}, b: {terms: {mass: {names: [y]}}, levels: [2]}}",
            "'a' and 'b' both set 'mass'",
        ),
        ("other: 1", "holds no factors"),
        ("factors: {a: {level: [1]}}", "'a'"),
    ],
)
def test_factors_that_make_no_sense_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_factors(str(path))


def test_presets_are_read_and_a_factor_that_is_none_is_refused() -> None:
    assert "delay" in read_factors("tabletop")
    with pytest.raises(ConfigError, match="delay"):
        read_factors("tabletop", ["dely"])
    with pytest.raises(ConfigError, match="tabletop"):
        read_factors("tabletp")


@pytest.fixture(scope="module")
def cartpole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "cartpole"
    words = ["task=cartpole", "env.max_episode_steps=30", "ppo.num_envs=4", "ppo.decisions=8", "ppo.epochs=1"]
    words += ["ppo.minibatches=1", "backbone.width=16", "critic.width=16", "threads=1", "eval.episodes=0"]
    assert main(["rl", *words, "budget.env_steps=64", f"run_dir={run}"]) == 0
    return run


def test_the_command_from_end_to_end(tmp_path: Path, cartpole_run: Path) -> None:
    other = tmp_path / "elsewhere" / cartpole_run.name  # of the same name
    shutil.copytree(cartpole_run, other, symlinks=True)
    factors, held_out = tmp_path / "f.yaml", tmp_path / "real.yaml"
    factors.write_text(
        "factors:\n  damping: {terms: {damping: {names: ['*'], operation: '='}}, levels: [0.5, 5.0]}\n"
        "  limit: {setting: max_episode_steps, levels: [40]}\n"
    )
    held_out.write_text("terms: {damping: {names: ['*'], operation: '=', low: 1.0, high: 1.0}}\n")
    words = ["robustness", f"checkpoint={cartpole_run}", f"others=[{other}]", f"factors={factors}",
             f"held_out={held_out}", f"out={tmp_path / 'out'}", "env.max_episode_steps=60"]  # fmt: skip
    words += ["episodes=4", "conditions=4", "condition_episodes=2", "held_out_episodes=4", "threads=1"]
    assert main(words) == 0
    document = json.loads((tmp_path / "out" / "robustness.json").read_text())
    first = document["policies"][0]
    assert {d["factor"] for d in first["damage"]} == {"damping", "limit"}
    assert [s["levels"] for s in first["single"]] == [{"damping": 0.5}, {"damping": 5.0}, {"limit": 40}]
    assert len(first["joint"]) == 4
    assert len(first["grid"]) == 2
    assert len(set(document["ranking"]["order"])) == 2
    lines = (tmp_path / "out" / "conditions.jsonl").read_text().splitlines()
    assert main(words) == 0  # everything is there
    assert (tmp_path / "out" / "conditions.jsonl").read_text().splitlines() == lines
    page = (tmp_path / "out" / "robustness.html").read_text()
    assert "damping" in page
    assert "http" not in page.replace("http-equiv", "")
