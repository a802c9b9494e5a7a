"""How chunks are executed, from the command line: every mode runs, is recorded, and is refused where it cannot be."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from visuomotor.configs import execution, rollout
from visuomotor.configs.cli import main
from visuomotor.configs.compose import compose_train, parse_plain
from visuomotor.configs.rollout import RolloutEvaluator
from visuomotor.configs.schema import DataConfig, EvalConfig, RolloutConfig
from visuomotor.data.actions import ActionConfig
from visuomotor.data.errors import ConfigError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.data.windows import WindowConfig
from visuomotor.envs import registry
from visuomotor.envs.gym_adapter import GymVecEnv
from visuomotor.envs.registry import TaskEntry
from visuomotor.policies.spec import PolicySpec

QPOS, TEXT = ArraySpec(shape=(2,)), ArraySpec(shape=(8,), dtype="uint8")


class _Reach(gym.Env[Any, np.ndarray]):
    """A point that is told where to be next; the goal is the origin."""

    observation_space = gym.spaces.Dict({"qpos": gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)})
    action_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.qpos = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return {"qpos": self.qpos}, {}

    def step(self, action):
        self.qpos = np.clip(action, -1, 1).astype(np.float32)
        return {"qpos": self.qpos}, 0.0, False, False, {"score": float(1 - np.abs(self.qpos).max())}


@dataclass(kw_only=True, slots=True)
class _ReachConfig:
    """The point has no settings."""


@dataclass(kw_only=True, slots=True)
class _GivenConfig:
    """Nor has the one that gives a goal or a text."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two small diffusion policies trained for a few steps with known actions, and a Gaussian one."""
    folder = tmp_path_factory.mktemp("reach")
    entry = TaskEntry(_ReachConfig, lambda config, n: GymVecEnv([_Reach] * n, max_episode_steps=12, fps=20.0))
    specs = {"qpos": ArraySpec(shape=(2,), role="observation"), "action": ArraySpec(shape=(2,), role="action")}
    with DemoStore.create(folder / "reach.zarr", specs, fps=20) as store:
        for start in np.random.default_rng(0).uniform(-1, 1, (4, 2)):
            path = (start * np.linspace(1, 0, 41)[:, None]).astype(np.float32)
            store.append_episode({"qpos": path[:-1], "action": path[1:]})
    small = ["backbone.width=16", "backbone.depth=1", "train.batch_size=16", "threads=1", "device=cpu", "train.steps=8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISUOMOTOR_CACHE", str(folder / "cache"))
        patch.setitem(registry._TASKS, "reach", entry)
        for name, words in {
            "a": ["policy=diffusion", "loss.max_delay=2"],
            "b": ["policy=diffusion", "loss.max_delay=2", "policy.prediction=epsilon"],
            "judge": ["policy=gaussian"],
        }.items():
            line = ["train", f"data={folder / 'reach.zarr'}", "obs.keys=[qpos]", f"run_dir={folder / name}"]
            assert main([*line, *small, *words]) == 0
        yield folder


def _eval(runs, *words):
    out = runs / "out"
    line = ["eval", f"checkpoint={runs / 'a'}", "task=reach", "episodes=3", "num_envs=3", "videos=0", "device=cpu"]
    status = main([*line, f"out={out}", *words])
    return status, json.loads((out / "eval.json").read_text()) if status == 0 else {}


@pytest.mark.parametrize(
    "words",
    [
        ["execute.n_exec=4"],
        ["execute.mode=ensemble", "execute.n_exec=2"],
        ["execute.mode=rtc", "execute.delay=2"],
        ["execute.mode=rtc_guided", "execute.delay=2", "execute.beta=10"],
        ["execute.mode=warm", "execute.warm_steps=3"],
        ["candidates=3", "rank_by=coherence"],
        ["steer.target=[1,0]"],
        ["steer.path=[[0,1],[1,0.5]]", "execute.mode=rtc_guided", "execute.delay=1"],
    ],
)
def test_every_mode_runs_and_is_recorded(runs, words):
    status, document = _eval(runs, *words)
    assert status == 0
    found = document["execution"]
    assert found["seams"]["n_seams"] > 0
    wanted = parse_plain(EvalConfig, ["checkpoint=x", *words])
    assert found["mode"] == wanted.execute.mode
    assert found["n_exec"] == wanted.execute.n_exec or wanted.execute.n_exec is None
    assert found["candidates"] == wanted.candidates
    assert (found["steer"] is not None) == bool(wanted.steer.corners)


def test_another_policy_ranks(runs):
    status, document = _eval(runs, "candidates=3", f"rank_by={runs / 'judge'}")
    assert status == 0
    assert document["execution"]["rank_by"] == str(runs / "judge")


def test_solver_and_steps_are_of_the_policy_that_acts_not_of_the_one_that_ranks(runs):
    status, _ = _eval(runs, "candidates=2", f"rank_by={runs / 'judge'}", "solver=ddim", "sample_steps=4")
    assert status == 0


def test_a_policy_for_another_task_is_refused_before_anything_is_run(runs, capsys, monkeypatch):
    spec = {"qvel": ArraySpec(shape=(2,), role="observation"), "action": ArraySpec(shape=(2,), role="action")}
    with DemoStore.create(runs / "other.zarr", spec, fps=20) as store:
        store.append_episode({"qvel": np.zeros((30, 2), np.float32), "action": np.ones((30, 2), np.float32)})
    line = ["train", f"data={runs / 'other.zarr'}", "data.val_fraction=0", "obs.keys=[qvel]", f"run_dir={runs / 'c'}"]
    assert main([*line, "backbone.width=16", "train.batch_size=4", "threads=1", "device=cpu", "train.steps=1"]) == 0
    monkeypatch.setattr(RolloutEvaluator, "test", None)
    assert _eval(runs, f"against={runs / 'c'}")[0] == 2
    assert "observes 'qvel', which task 'reach' does not have" in capsys.readouterr().err


def test_the_final_evaluation_computes_where_the_training_did(runs, monkeypatch):
    devices = []
    load = rollout.load_policy

    def note(path, device):
        devices.append(device)
        return load(path, device=device)

    monkeypatch.setattr(rollout, "load_policy", note)
    line = ["train", "task=reach", f"data={runs / 'reach.zarr'}", "obs.keys=[qpos]", f"run_dir={runs / 'final'}"]
    short = ["train.steps=1", "train.batch_size=4", "eval.episodes=1", "eval.videos=0", "eval.selection_episodes=1"]
    assert main([*line, *short, "backbone.width=16", "threads=1", "device=cpu"]) == 0
    assert devices == [torch.device("cpu")]


@pytest.mark.parametrize(
    ("constant", "settings", "says"),
    [
        ({"goal/qpos": QPOS}, {"goal": "goals.npz"}, r"goal=goals\.npz: task 'given' itself gives \['goal/qpos'\]"),
        ({"task": TEXT}, {"text": "stop"}, r"text=stop: task 'given' itself gives \['task'\]"),
    ],
)
def test_goals_and_texts_that_the_task_gives_itself_cannot_be_given(monkeypatch, constant, settings, says):
    space: dict[str, gym.Space[Any]] = {}
    for key, array in {"qpos": QPOS, **constant}.items():
        space[key] = gym.spaces.Box(0, 255, array.shape, array.dtype)
    monkeypatch.setattr(_Reach, "observation_space", gym.spaces.Dict(space))
    make = lambda config, n: GymVecEnv([_Reach] * n, max_episode_steps=12, fps=20.0)  # noqa: E731
    monkeypatch.setitem(registry._TASKS, "given", TaskEntry(_GivenConfig, make))
    spec = PolicySpec(
        obs={"qpos": QPOS, **constant}, action_key="action", action=ArraySpec(shape=(2,)), fps=20.0,
        window=WindowConfig(), action_config=ActionConfig(), constant_keys=frozenset(constant),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=says):
        RolloutEvaluator("given", _GivenConfig(), RolloutConfig(**settings), spec, data=DataConfig(path="none"))
    RolloutEvaluator("given", _GivenConfig(), RolloutConfig(), spec, data=DataConfig(path="none")).close()


def test_another_policy_is_held_against_the_task_not_against_what_the_first_was_given(monkeypatch):
    make = lambda config, n: GymVecEnv([_Reach] * n, max_episode_steps=12, fps=20.0)  # noqa: E731
    monkeypatch.setitem(registry._TASKS, "given", TaskEntry(_GivenConfig, make))

    def spec(**texts):
        return PolicySpec(
            obs={"qpos": QPOS, **texts}, action_key="action", action=ArraySpec(shape=(2,)), fps=20.0,
            window=WindowConfig(), action_config=ActionConfig(), constant_keys=frozenset(texts),
        )  # fmt: skip

    e = RolloutEvaluator("given", _GivenConfig(), RolloutConfig(text="go"), spec(task=TEXT), data=DataConfig(path=""))
    e.check_source(spec(task=ArraySpec(shape=(16,), dtype="uint8")))  # longer texts
    with pytest.raises(ConfigError, match="text=go: the policy reads no text"):
        e.check_source(spec())
    e.close()


def test_a_value_function_of_another_package_ranks(runs, monkeypatch):
    class Point:
        def load(self):
            return lambda obs, chunks: -chunks[:, :, 1:9].abs().amax(3).amin(2)  # its nearest point

    monkeypatch.setattr(execution, "value_functions", lambda: {"near-goal": Point()})
    status, near = _eval(runs, "candidates=8", "rank_by=near-goal")
    assert status == 0
    _, plain = _eval(runs)
    assert near["score"]["mean"] > plain["score"]["mean"]


def test_policies_are_composed_and_their_weights_searched(runs):
    status, document = _eval(runs, f"compose=[{runs / 'b'}]", "compose_weights=[0.25,0.75]", f"against={runs / 'a'}")
    assert status == 0
    assert document["compose"]["weights"] == [0.25, 0.75]
    assert document["against"]["n"] == 3
    status, document = _eval(
        runs, f"compose=[{runs / 'b'}]", "search_weights=true", "search_parts=2", "search_episodes=2"
    )
    assert status == 0
    tried = document["weight_search"]
    assert [row["weights"] for row in tried] == [[0, 1], [0.5, 0.5], [1, 0]]
    best = max(tried, key=lambda row: row["score"] + row["success"])
    assert document["compose"]["weights"] == best["weights"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["execute.mode=rtc", "execute.delay=3"], "delays up to 2"),
        (["execute.mode=recceding"], "Did you mean 'receding'"),
        (["candidates=3", "rank_by=cohrence"], "Did you mean 'coherence'"),
        (["candidates=3"], "several chunks need something to choose"),
        (["compose_weights=[1]"], "give compose="),
        (["steer.path=[1,2]"], "steer.path=[1,2]: "),
        (["steer.target=[1,2,3]"], "component 2 does not exist"),
        (["execute.n_exec=16"], "1 to 15"),
    ],
)
def test_mistakes_are_one_sentence(runs, capsys, words, says):
    status, _ = _eval(runs, *words)
    assert status == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_open_loop_errors_do_not_go_with_execution():
    with pytest.raises(ConfigError, match="go with task="):
        parse_plain(EvalConfig, ["checkpoint=x", "data=y", "execute.mode=warm"])
    with pytest.raises(ConfigError, match="go with task="):
        parse_plain(EvalConfig, ["checkpoint=x", "data=y", "text=stop"])


def test_a_training_that_could_not_be_evaluated_is_refused_before_it_begins(runs, capsys):
    line = ["train", f"data={runs / 'reach.zarr'}", "obs.keys=[qpos]", f"run_dir={runs / 'never'}", "device=cpu"]
    assert compose_train(["data=x", "eval.execute.mode=ensemble"]).config.eval.execute.mode == "ensemble"
    words = ["task=reach", "eval.execute.mode=rtc", "eval.execute.delay=2", "train.steps=8", "threads=1"]
    assert main([*line, *words]) == 2
    assert "trained without known actions" in capsys.readouterr().err
    assert torch.get_num_threads() == 1
