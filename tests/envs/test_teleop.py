"""Events of keyboard and gamepad, the operator's hand, and sessions: timing, takeover, and what is recorded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.store import DemoStore
from visuomotor.data.validate import validate
from visuomotor.envs.demonstrate import DemoPlan
from visuomotor.envs.generate import first_seed, generate
from visuomotor.envs.play import ExpertPilot, PlaySession, PlaySettings
from visuomotor.envs.robots.arm import ACTION_MODES, ControlConfig
from visuomotor.envs.sim.engines import EngineConfig
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.tape import DemoTape
from visuomotor.envs.tasks.lift import Lift, LiftConfig
from visuomotor.envs.teleop import ArmOperator, Event

UP, SPACE, ENTER, LEFT, RIGHT = 265, 32, 257, 263, 262
ZERO = (0.0,) * 6


class Clock:
    """Time that passes only by sleeping, and by what a step is said to cost."""

    def __init__(self) -> None:
        self.time = 0.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


class Script:
    """Events at given polls; quits at the end."""

    def __init__(
        self, events: dict[int, list[Event]], polls: int, clock: Clock | None = None, cost: dict | None = None
    ):
        self.events, self.polls, self.n = events, polls, -1
        self.clock, self.cost = clock, cost or {}

    def poll(self) -> list[Event]:
        self.n += 1
        if self.clock is not None:
            self.clock.time += self.cost.get(self.n, 0.0)
        return [Event("quit")] if self.n >= self.polls else self.events.get(self.n, [])


class Steady:
    """A pilot that always gives the same action, and notes its resets."""

    def __init__(self, env: SimVecEnv, value: float) -> None:
        self.action = torch.full((1, env.action_spec.size), value)
        self.resets: list[int] = []

    def reset(self, seeds, mask=None) -> None:
        self.resets += list(seeds)

    def act(self, obs, active) -> torch.Tensor:
        return self.action


def event(kind: str) -> list[Event]:
    return [Event(kind)]


@pytest.fixture
def make_env():
    made = []

    def make(mode: str = "ee_delta", **settings) -> SimVecEnv:
        config = LiftConfig(
            control=ControlConfig(mode=mode), engine=EngineConfig(threads=1), end_on_success=False, **settings
        )
        made.append(SimVecEnv(Lift(config), config, 1))
        return made[-1]

    yield make
    for env in made:
        env.close()


def operator_of(env: SimVecEnv) -> ArmOperator:
    return ArmOperator(env, hand_speed=0.2, turn_speed=1.0)


# ---- events


@pytest.mark.parametrize("mode", ACTION_MODES)
def test_the_hand_goes_where_it_is_moved_in_every_action_mode(make_env, mode):
    """0.2 m/s for 10 steps of 1/20 s are 0.1 m; then it stays."""
    env = make_env(mode)
    obs = env.reset(seeds=[3])
    operator, active = operator_of(env), torch.tensor([True])
    start = obs["tcp_pos"][0].clone()
    operator.handle(Event("move", (0.0, 1.0, 0.0, 0.0, 0.0, 0.0)))
    for _ in range(10):
        env.advance(operator.act(), active)
    operator.handle(Event("move", ZERO))
    operator.handle(Event("gripper"))
    for _ in range(25):
        obs = env.advance(operator.act(), active).obs
    moved = obs["tcp_pos"][0] - start
    torch.testing.assert_close(moved, torch.tensor([0.0, 0.1, 0.0]), atol=0.01, rtol=0)
    assert obs["gripper"][0] < 0.1


def test_a_task_without_an_arm_cannot_be_moved_by_hand(make_env):
    env = make_env()
    env.task.arms.clear()
    with pytest.raises(ConfigError, match="task 'lift' has no arm"):
        operator_of(env)


# ---- sessions


def play(env, script, tmp_path=None, pilot=None, operator=None, clock=None, interventions=True, **settings):
    tape = None
    if tmp_path is not None:
        tape = DemoTape(tmp_path / "demos.zarr", env, text="lift the cube", interventions=interventions)
    lines: list[str] = []
    session = PlaySession(
        env, script, pilot=pilot, operator=operator, tape=tape, settings=PlaySettings(**settings),
        clock=clock or Clock(), tell=lines.append,
    )  # fmt: skip
    try:
        return session.run(), lines
    finally:
        if tape is not None:
            tape.close()


def rows(path, key: str) -> np.ndarray:
    with DemoStore.open(path / "demos.zarr") as store:
        return store.read(key, 0, store.n_steps)


def test_takeover_replaces_the_policy_s_actions_is_marked_and_the_policy_forgets(make_env, tmp_path):
    env = make_env()
    pilot, operator = Steady(env, 0.01), operator_of(env)
    script = Script(
        {3: [Event("takeover"), Event("move", (0, 0, 1.0, 0, 0, 0))], 7: event("takeover"), 9: event("success")}, 10
    )
    played, _ = play(env, script, tmp_path, pilot, operator)
    assert (played.kept, played.steps) == (1, 10)
    human = rows(tmp_path, "is_intervention")
    assert human.dtype == bool
    assert human.tolist() == [False] * 3 + [True] * 4 + [False] * 2
    action = rows(tmp_path, "action")
    np.testing.assert_allclose(action[~human], 0.01, atol=1e-6)
    np.testing.assert_allclose(action[human][:, 2], 0.2 / 20, atol=1e-4)
    first = 500_000_000
    assert pilot.resets == [first, first, first + 1]  # begun, given back, next episode


def test_rows_are_what_was_seen_and_what_was_done_then(make_env, tmp_path):
    env = make_env(privileged=True)
    pilot = Steady(env, 0.01)
    play(env, Script({5: event("success")}, 6), tmp_path, pilot)
    replay = make_env(privileged=True)
    obs = replay.reset(seeds=[500_000_000])
    with DemoStore.open(tmp_path / "demos.zarr") as store:
        assert store.fps == env.fps
        assert store.specs["privileged"].names == replay.obs_spec["privileged"].names
        columns = {k: v[0] for k, v in store.episode_columns.items()}
        assert columns == {"success": True, "seed": 500_000_000, "task": "lift the cube"}
    recorded = {k: rows(tmp_path, k) for k in (*obs, "reward")}
    for t in range(5):
        for key, value in obs.items():
            np.testing.assert_array_equal(recorded[key][t], value[0].numpy(), err_msg=key)
        step = replay.advance(pilot.action, torch.tensor([True]))
        assert recorded["reward"][t] == step.reward[0]
        obs = step.obs
    with DemoStore.open(tmp_path / "demos.zarr") as store:
        assert [f for f in validate(store) if f.severity == "error"] == []


def test_discard_restart_and_quit_lose_their_own_episode_only(make_env, tmp_path):
    env = make_env()
    script = Script({2: event("success"), 5: event("discard"), 9: event("restart"), 12: event("success")}, 14)
    played, lines = play(env, script, tmp_path, Steady(env, 0.0))
    assert (played.kept, played.dropped) == (2, 2)
    with DemoStore.open(tmp_path / "demos.zarr") as store:
        assert np.diff([0, *store.episode_ends]).tolist() == [2, 3]
        first = 500_000_000
        assert list(store.episode_columns["seed"]) == [first, first + 2]  # the restarted one: same seed again
    assert [line.split(": ")[1].split(" after")[0] for line in lines] == [
        "the person says so", "thrown away", "begun again", "the person says so",
    ]  # fmt: skip


def test_a_recording_that_is_added_to_begins_with_other_episodes(make_env, tmp_path):
    env = make_env()
    for _ in range(2):
        play(env, Script({2: event("success"), 4: event("success")}, 5), tmp_path, Steady(env, 0.0))
    with DemoStore.open(tmp_path / "demos.zarr") as store:
        assert store.episode_columns["seed"].tolist() == [500_000_000 + i for i in range(4)]


def test_an_expert_s_episode_ends_a_while_after_success_and_the_session_after_enough(make_env, tmp_path):
    env = make_env()
    played, lines = play(env, Script({}, 400), tmp_path, ExpertPilot(env), episodes=2, hold=4, interventions=False)
    assert (played.kept, played.dropped) == (2, 0)
    assert "the goal is reached" in lines[0]
    with DemoStore.open(tmp_path / "demos.zarr") as store:
        assert "is_intervention" not in store.specs
        ends = store.episode_ends
    reward = rows(tmp_path, "reward")[: ends[0]]
    assert (reward[-5:] == 1.0).all()  # the step that reached it, and four more
    assert (reward[:-5] < 1.0).all()


@pytest.mark.parametrize("keep", [False, True])
def test_an_episode_without_success_is_kept_on_demand(make_env, tmp_path, keep):
    env = make_env(max_episode_steps=5)
    played, lines = play(env, Script({}, 6), tmp_path, Steady(env, 0.0), keep_failures=keep)
    assert (played.kept, played.dropped) == ((1, 0) if keep else (0, 1))
    assert "it failed" in lines[0]
    with DemoStore.open(tmp_path / "demos.zarr") as store:
        assert [bool(s) for s in store.episode_columns["success"]] == ([False] if keep else [])


def test_the_rate_is_fixed_lost_time_is_not_caught_up_and_speed_changes_it(make_env):
    env, clock = make_env(), Clock()
    script = Script({8: event("faster"), 10: event("slower")}, 12, clock, {2: 0.02, 4: 0.3})
    play(env, script, pilot=Steady(env, 0.0), clock=clock)
    expected = [0.05, 0.05, 0.03, 0.05, 0.0, 0.05, 0.05, 0.05, 0.025, 0.025, 0.05, 0.05]
    np.testing.assert_allclose(clock.slept, expected, atol=1e-9)


def test_pause_stops_the_world_and_its_recording(make_env, tmp_path):
    env = make_env()
    played, _ = play(env, Script({2: event("pause"), 6: event("pause"), 8: event("success")}, 9), tmp_path,
                     Steady(env, 0.0))  # fmt: skip
    with DemoStore.open(tmp_path / "demos.zarr") as store:
        assert list(store.episode_ends) == [4]
    assert played.steps == 5


def test_a_store_is_added_to_and_keeps_its_own_arrays(make_env, tmp_path):
    env = make_env()
    specs = {k: v for k, v in env.obs_spec.items() if k != "joint_vel"} | {"action": env.action_spec}
    DemoStore.create(tmp_path / "demos.zarr", specs, fps=env.fps, episode_columns={"success": "bool"}).close()
    play(env, Script({3: event("success")}, 4), tmp_path, Steady(env, 0.0))
    with DemoStore.open(tmp_path / "demos.zarr") as store:
        assert store.n_episodes == 1
        assert set(store.specs) == set(specs)


def test_what_was_generated_can_be_added_to_and_goes_on_being_generated(make_env, tmp_path):
    config = LiftConfig(control=ControlConfig(mode="ee_delta"), engine=EngineConfig(threads=1))
    path = tmp_path / "demos.zarr"
    first = generate(path, DemoPlan(env=config), task="lift", text="lift the cube", episodes=2)
    env = make_env()
    play(env, Script({3: event("success")}, 4), tmp_path, Steady(env, 0.0))
    second = generate(path, DemoPlan(env=config), task="lift", text="lift the cube", episodes=3)
    assert (first.kept, second.kept) == (2, 3)
    with DemoStore.open(path) as store:
        seeds = store.episode_columns["seed"].tolist()
    assert seeds[2] == 500_000_000
    assert seeds[3] > seeds[1] >= first_seed(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": 10.0}, "has 10 steps per second, the task 20"),
        ({"extra": True}, "has the array 'front', which the task does not give as it is set"),
        ({"mode": "joint_pos"}, "has 'action' of shape"),
        ({"columns": {"operator": "str"}}, "episode column 'operator', which play does not know"),
    ],
)
def test_a_store_that_does_not_fit_is_refused(make_env, tmp_path, change, message):
    env = make_env()
    other = make_env(change["mode"]) if "mode" in change else env
    specs = {**env.obs_spec, "action": other.action_spec}
    if "extra" in change:
        specs["front"] = env.obs_spec["tcp_pos"]
    columns = change.get("columns", {"success": "bool"})
    DemoStore.create(tmp_path / "d.zarr", specs, fps=change.get("fps", env.fps), episode_columns=columns).close()
    with pytest.raises(DataError, match=message):
        DemoTape(tmp_path / "d.zarr", env, text="", interventions=False)
    DemoStore.open(tmp_path / "d.zarr", "a").close()  # its lock was given back


def test_somebody_has_to_act(make_env):
    with pytest.raises(ConfigError, match="nobody acts"):
        PlaySession(make_env(), Script({}, 1))
