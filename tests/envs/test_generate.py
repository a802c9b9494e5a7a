"""Generated demonstrations: the same bit for bit however they are run, only successes, what a store says of itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
import torch

from tests.envs.test_custom_robot import urdf
from visuomotor.data.errors import ConfigError, DataError, UserError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.data.validate import validate
from visuomotor.envs.demonstrate import Demonstrator, DemoPlan
from visuomotor.envs.generate import FIRST_PLAYED, Tally, first_seed, generate
from visuomotor.envs.registry import make_env
from visuomotor.envs.robots.arm import ControlConfig
from visuomotor.envs.sim.cameras import CameraConfig
from visuomotor.envs.sim.engines import EngineConfig
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.sim.gl import RenderingError
from visuomotor.envs.tasks.lift import LiftConfig
from visuomotor.envs.tasks.pusht import PushTConfig

ENGINE = EngineConfig(threads=1)
PLAN = DemoPlan(env=LiftConfig(engine=ENGINE))
EPISODES = 18  # more than one block


def make(path: Path, plan: DemoPlan = PLAN, episodes: int = EPISODES, seed: int = 0, workers: int = 0) -> Tally:
    return generate(path, plan, task="lift", text="lift", episodes=episodes, seed=seed, workers=workers)


def content(path: Path) -> dict[str, np.ndarray]:
    """Every array and column of the first episodes of a store."""
    with DemoStore.open(path) as store:
        ends = store.episode_ends[:EPISODES]
        arrays = {k: store.read(k, 0, int(ends[-1])) for k in store.keys}
        return arrays | {"ends": ends} | {k: v[:EPISODES] for k, v in store.episode_columns.items()}


def assert_same(a: Path, b: Path) -> None:
    x, y = content(a), content(b)
    assert x.keys() == y.keys()
    assert [k for k in x if not np.array_equal(x[k], y[k])] == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store made at one go, in this process."""
    path = tmp_path_factory.mktemp("whole") / "lift.zarr"
    tally = make(path)
    assert tally.kept == EPISODES
    assert tally.tried < 1.2 * EPISODES
    return path


def test_a_store_is_valid_and_says_what_it_is(whole: Path) -> None:
    with DemoStore.open(whole) as store:
        assert [f for f in validate(store) if f.severity != "info"] == []
        assert (store.fps, store.n_episodes) == (20.0, EPISODES)
        columns = store.episode_columns
        assert columns["success"].all()
        assert set(columns["task"]) == {"lift"}
        assert (np.diff(columns["seed"]) > 0).all()
        assert columns["seed"][0] >= first_seed(0)
        settings = store.origin["settings"]
        assert settings["task"] == "lift"
        assert settings["env.robot"] == "panda"
        assert settings["env.control.mode"] == "ee_delta"
        assert settings["env.engine.name"] == "batch"
        assert store.specs["action"].names == ("dx", "dy", "dz", "rx", "ry", "rz", "gripper")
        assert store.specs["action"].source == "panda"
        assert store.specs["joint_pos"].role == "observation"
        assert store.specs["reward"] == ArraySpec(shape=(), role="reward")
        for i in range(store.n_episodes):  # the goal is reached, and then holds to the end
            reward = store.episode(i)["reward"]
            first = int((reward == 1.0).argmax())
            assert len(reward) == first + 1 + PLAN.hold
            assert reward[-1] == 1.0


def test_seeds_are_apart_from_those_of_evaluation_and_of_other_runs() -> None:
    assert first_seed(0) > 200_000
    assert first_seed(1) - first_seed(0) >= 1_000_000
    assert first_seed(498) + 1_000_000 <= FIRST_PLAYED
    for seed in (-1, 499, 10**14):
        with pytest.raises(ConfigError, match=f"seed={seed}: expected 0 to 498"):
            first_seed(seed)


def test_a_seed_out_of_range_leaves_no_store(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected 0 to 498"):
        make(tmp_path / "lift.zarr", seed=499)
    assert not (tmp_path / "lift.zarr").exists()


def test_a_model_that_was_edited_is_another_model(tmp_path: Path) -> None:
    model, path = tmp_path / "own.urdf", tmp_path / "own.zarr"
    model.write_text(urdf())
    plan = DemoPlan(env=LiftConfig(robot="custom", model=str(model), engine=ENGINE))

    def go_on() -> Tally:
        return make(path, plan, episodes=0)

    assert go_on().kept == go_on().kept == 0
    model.write_text(urdf().replace('length=".2"', 'length=".19"'))
    with pytest.raises(ConfigError, match=r"content of env.model=\w{16}; this command says content of"):
        go_on()


def test_processes_make_the_same_store_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    make(tmp_path / "lift.zarr", workers=2)
    assert_same(whole, tmp_path / "lift.zarr")


def test_an_interrupted_store_goes_on_where_it_stopped(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "lift.zarr"
    seen: list[Tally] = []

    def stop(tally: Tally) -> None:
        seen.append(tally)
        if tally.kept == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(path, PLAN, task="lift", text="lift", episodes=EPISODES, on_progress=stop)
    assert seen[-1].kept == 4
    assert make(path, episodes=4) == seen[-1]  # enough: nothing is done
    make(path)
    assert_same(whole, path)


def test_killed_in_the_middle_it_goes_on_and_leaves_no_process(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "lift.zarr"
    words = ["data", "generate", "task=lift", "episodes=100", f"out={path}", "workers=2", "env.engine.threads=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "visuomotor.configs.cli", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    begun = time.monotonic()
    while not held(path):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() - begun < 200
        time.sleep(0.01)
    children = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(children) == 2
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    before = held(path)
    assert 0 < before < 100
    make(path, episodes=max(EPISODES, before + 1))
    assert held(path) == max(EPISODES, before + 1)
    assert_same(whole, path)


def held(path: Path) -> int:
    """Episodes that a store holds; 0 if there is none yet."""
    if not (path / "zarr.json").exists():
        return 0
    with DemoStore.open(path) as store:
        return store.n_episodes


@pytest.mark.parametrize(
    ("plan", "seed", "says"),
    [
        (DemoPlan(env=PLAN.env, diversity=0.3), 0, "diversity=0.5; this command says diversity=0.3"),
        (DemoPlan(env=LiftConfig(spread=0.1)), 0, "env.spread=0.25; this command says env.spread=0.1"),
        (PLAN, 3, "seed=0; this command says seed=3"),
    ],
)
def test_other_settings_do_not_go_on(whole: Path, plan: DemoPlan, seed: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make(whole, plan, seed=seed)


def test_what_somebody_else_recorded_is_not_appended_to(tmp_path: Path) -> None:
    DemoStore.create(tmp_path / "own.zarr", {"action": ArraySpec(shape=(2,))}).close()
    with pytest.raises(DataError, match="not made by"):
        make(tmp_path / "own.zarr")


def test_an_expert_that_fails_is_given_up(tmp_path: Path) -> None:
    plan = DemoPlan(env=LiftConfig(engine=ENGINE, max_episode_steps=3))
    with pytest.raises(UserError, match=r"0 kept of 100 tried \(0%\): the expert of task 'lift' hardly ever succeeds"):
        make(tmp_path / "none.zarr", plan)


def test_a_task_without_expert_is_refused() -> None:
    with pytest.raises(ConfigError, match="no scripted expert"):
        DemoPlan(env=PushTConfig())


def test_an_error_in_a_process_is_said_once(tmp_path: Path) -> None:
    gone = DemoPlan(env=LiftConfig(engine=ENGINE), source=tmp_path / "nowhere.zarr")
    with pytest.raises(DataError, match=r"nowhere\.zarr"):
        make(tmp_path / "x.zarr", gone, workers=1)


def test_an_action_is_the_one_taken_at_the_observation_of_its_row() -> None:
    plan = DemoPlan(env=PLAN.env, noise=0.0, slips=0.0)
    with_arrays = [a for a in run_block(plan) if a.arrays is not None][:3]
    env = make_env(LiftConfig(engine=ENGINE, end_on_success=False), 16)
    obs = env.reset(seeds=range(first_seed(0), first_seed(0) + 16))
    active = torch.ones(16, dtype=torch.bool)
    for t in range(30):
        action = torch.zeros(16, env.action_spec.size)
        for attempt in with_arrays:
            assert attempt.arrays is not None
            i = attempt.seed - first_seed(0)
            for key in ("tcp_pos", "object", "joint_vel"):
                assert np.array_equal(attempt.arrays[key][t], obs[key][i].numpy()), (t, key)
            action[i] = torch.from_numpy(attempt.arrays["action"][t])
        step = env.advance(action, active)
        for attempt in with_arrays:
            assert attempt.arrays is not None
            assert attempt.arrays["reward"][t] == step.reward[attempt.seed - first_seed(0)]
        obs = step.obs
    env.close()


def run_block(plan: DemoPlan) -> list:
    demonstrator = Demonstrator(plan)
    try:
        return list(demonstrator.run(first_seed(0)))
    finally:
        demonstrator.close()


@pytest.mark.parametrize("mode", ["ee_delta", "joint_pos"])
def test_disturbances_are_shares_of_the_largest_motion_and_now_and_then_a_slip(mode: str) -> None:
    env = LiftConfig(engine=ENGINE, control=ControlConfig(mode=mode))
    demonstrator = Demonstrator(DemoPlan(env=env, diversity=0.5, noise=0.2, slips=0.4))
    demonstrator.env.reset(seeds=range(16))
    rest = torch.zeros(16, demonstrator.env.action_spec.size)
    low, high = demonstrator.env.action_low, demonstrator.env.action_high
    rest[:] = (low + high) / 2
    rest[:, -1] = 1.0
    moved = torch.stack([demonstrator._disturbed(rest, step) - rest for step in range(0, 400, 4)])
    assert torch.equal(demonstrator._disturbed(rest, 0), demonstrator._disturbed(rest, 3))  # the same for a while
    slipped = moved[::2, :, -1]  # every eight steps anew
    assert set(slipped.unique().tolist()) == {0.0, -1.0}
    assert abs(slipped.mean() + 0.2) < 0.05  # of 800
    assert torch.equal(moved[0::2, :, -1], moved[1::2, :, -1])
    largest = [0.1] * 7 if mode == "joint_pos" else [0.03] * 3 + [0.15] * 3
    pushed = (moved[..., :-1] != 0).all(-1)
    assert abs(pushed.float().mean() - 0.25) < 0.05  # of 1600 draws
    std = moved[..., :-1][pushed].std(0)  # of 400
    torch.testing.assert_close(std, 0.1 * torch.tensor(largest), rtol=0.15, atol=0.0)
    demonstrator.close()


def test_cameras_see_what_the_recorded_steps_saw() -> None:
    plain = {a.seed: a.arrays for a in run_block(PLAN)}
    env = LiftConfig(engine=ENGINE, cameras=CameraConfig(names=["front"], height=24, width=32))
    demonstrator = Demonstrator(DemoPlan(env=env))
    try:
        attempts = list(demonstrator.run(first_seed(0), done=14))
    except RenderingError as e:
        pytest.skip(str(e))
    finally:
        demonstrator.close()
    assert [a.seed - first_seed(0) for a in attempts] == [14, 15]
    watched = make_env(env, 1)
    assert isinstance(watched, SimVecEnv)
    for attempt in attempts:
        same, arrays = plain[attempt.seed], attempt.arrays
        if same is None or arrays is None:
            assert same is arrays
            continue
        seen = arrays["front"]
        assert all(np.array_equal(same[k], arrays[k]) for k in same)  # drawing disturbs nothing
        assert seen.shape == (len(same["action"]), 24, 32, 3)
        first = watched.reset(seeds=[attempt.seed])["front"][0].numpy()
        assert np.abs(first.astype(int) - seen[0]).max() <= 2
        assert np.abs(seen[0].astype(int) - seen[-1]).max() > 50
    watched.close()
