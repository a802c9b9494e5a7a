"""The loop of simulated environments, on a ball that an actuator pushes: the worlds are simple, the loop is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mujoco
import pytest
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, UserError
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.registry import make_env
from visuomotor.envs.sim.control import ActuatorControl, Control
from visuomotor.envs.sim.engines import EngineConfig
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.sim.events import Event
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.task import Outcome, SimConfig, Task
from visuomotor.envs.sim.world import World
from visuomotor.envs.tasks.lift import LiftConfig

_XML = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody><body><joint name="x" type="slide" axis="1 0 0" damping=".5"/><geom size=".1" mass="1"/></body></worldbody>
  <actuator><motor name="push" joint="x" ctrllimited="true" ctrlrange="-10 10"/></actuator>
</mujoco>
"""
STEP = 0.02  # s, two physics steps


class Ball(Task):
    """Goes to a goal on the right; falls off at -1. Velocity is observed with noise that a counter drives."""

    name, fps, max_episode_steps = "ball", 1 / STEP, 6

    def scene(self) -> mujoco.MjSpec:
        return mujoco.MjSpec.from_string(_XML)

    def bind(self, world: World) -> Control:
        self.joint, n = world.joints(["x"]), world.sim.num_envs
        self.goal, self.before = torch.zeros(n), torch.zeros(n)
        self.obs_spec = {"state": ArraySpec(shape=(3,), role="observation", names=("x", "v", "goal"))}
        self.privileged_names = ("mass",)
        self.mass = world.sim.model_field("body_mass")
        return ActuatorControl(world)

    def reset(self, worlds: Selection, draws: Draws) -> None:
        worlds.put(self.goal, 1.0 + draws.uniform())
        self.joint.set_pos(worlds, 0.1 * draws.normal((1,)))

    def before_step(self) -> None:
        self.before = self.joint.pos()[:, 0]

    def observe(self) -> dict[str, Tensor]:
        return {"state": torch.cat([self.joint.pos(), self.joint.vel(), self.goal[:, None]], 1)}

    def privileged(self) -> Tensor:
        return self.mass[:, 1:].float()

    def outcome(self) -> Outcome:
        x = self.joint.pos()[:, 0]
        score = (x / self.goal).clamp(0, 1)
        return Outcome(reward=(x - self.before).double(), success=x >= self.goal, failure=x < -1.0, score=score)

    def buffers(self) -> dict[str, Tensor]:
        return {"goal": self.goal}


class Mass(Event):
    """A mass at every reset."""

    changes_constants = True

    def bind(self, world: World) -> None:
        self.mass, self.nominal = world.sim.model_field("body_mass"), world.sim.nominal("body_mass")

    def apply(self, worlds: Selection, draws: Draws) -> None:
        worlds.put(self.mass, self.nominal * draws.uniform((1,), 0.5, 2.0))


class Shove(Event):
    """A velocity now and then."""

    when, interval, changes_state = "interval", (STEP, 3 * STEP), True

    def bind(self, world: World) -> None:
        self.qvel = world.sim.field("qvel")

    def apply(self, worlds: Selection, draws: Draws) -> None:
        worlds.put(self.qvel, worlds.take(self.qvel) + draws.normal((1,)))


def ball(n: int, *, events: bool = True, threads: int = 1, **settings: Any) -> SimVecEnv:
    config = SimConfig(engine=EngineConfig(threads=threads), **settings)
    return SimVecEnv(Ball(), config, n, [Mass(), Shove()] if events else [])


def noise(env: SimVecEnv, steps: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 5.0 * torch.randn(steps, env.num_envs, 1, generator=generator)


def assert_equal(a: Any, b: Any) -> None:
    for name in ("obs", "final_obs", "info"):
        for k, v in getattr(a, name).items():
            assert torch.equal(v, getattr(b, name)[k]), (name, k)
    for name in ("reward", "terminated", "truncated"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.fixture
def dense() -> Iterator[None]:
    """Selections as on a GPU."""
    usual = Selection.__init__.__defaults__
    Selection.__init__.__defaults__ = (True,)
    yield
    Selection.__init__.__defaults__ = usual


def test_one_step_by_hand() -> None:
    env = ball(2, events=False)
    x = start = env.reset(seeds=[1, 2])["state"][:, 0].double()
    s = env.step(torch.tensor([[2.0], [20.0]]))  # the second is clipped to 10 N
    force, v = torch.tensor([2.0, 10.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for _ in range(2):  # Euler with implicit damping (MuJoCo, Computation: Numerical integration)
        v = v + 0.01 * (force - 0.5 * v) / (1.0 + 0.01 * 0.5)
        x = x + 0.01 * v
    assert torch.allclose(s.obs["state"][:, 0].double(), x, atol=1e-6)
    assert torch.allclose(s.obs["state"][:, 1].double(), v, atol=1e-6)
    assert s.reward.dtype == torch.float32
    assert torch.allclose(s.reward.double(), x - start, atol=1e-6)
    assert s.obs is s.final_obs
    assert s.info["score"].dtype == torch.float32


def test_ends_are_kept_apart_and_a_failure_at_the_limit_is_no_truncation() -> None:
    env = ball(4, events=False)
    env.reset(seeds=range(4))
    x, v = env.sim.field("qpos"), env.sim.field("qvel")
    for _ in range(5):
        s = env.step(torch.zeros(4, 1))
        assert not (s.terminated | s.truncated).any()
    x[0], v[1], x[2] = 3.0, -200.0, -0.5  # success, failure, neither, neither
    s = env.step(torch.zeros(4, 1))
    assert s.terminated.tolist() == [True, True, False, False]
    assert s.truncated.tolist() == [False, False, True, True]
    assert s.info["success"].tolist() == [True, False, False, False]
    assert torch.allclose(s.final_obs["state"][:3, 0], torch.tensor([3.0, -4.0, -0.5]), atol=0.2)
    assert (s.obs["state"][:, 0].abs() < 0.5).all()  # all four began anew
    assert not torch.equal(s.obs["state"], s.final_obs["state"])
    keep = ball(1, events=False, end_on_success=False)
    keep.reset(seeds=[0])
    keep.sim.field("qpos")[0] = 3.0
    assert not keep.step(torch.zeros(1, 1)).terminated.any()


def test_sparse_reward_time_limit_and_privileged() -> None:
    env = ball(2, reward="sparse", max_episode_steps=2, privileged=True)
    obs = env.reset(seeds=[0, 1])
    assert env.obs_spec["privileged"].names == ("mass",)
    assert obs["privileged"].shape == (2, 1)
    assert 0.5 <= float(obs["privileged"].min()) < float(obs["privileged"].max()) < 2.0
    env.sim.field("qpos")[1] = 5.0
    s = env.step(torch.zeros(2, 1))
    assert s.reward.tolist() == [0.0, 1.0]
    assert env.step(torch.zeros(2, 1)).truncated.tolist() == [True, False]


def test_an_episode_is_a_function_of_its_seed_alone() -> None:
    actions = noise(ball(1), 12)[:, 0]
    runs = {}
    for n, at, threads in ((1, 0, 1), (5, 3, 1), (5, 0, 2), (17, 16, 1)):
        env = ball(n, threads=threads)
        seeds = [1000 + i for i in range(n)]
        seeds[at] = 7
        rows = [env.reset(seeds=seeds)["state"][at]]
        for a in actions:  # beyond the first episode: those that follow are functions of the seed, too
            s = env.step(a.expand(n, 1) + (torch.arange(n)[:, None] - at))
            rows += [s.obs["state"][at], s.final_obs["state"][at], s.reward[at : at + 1].expand(3)]
        runs[n, at] = torch.stack(rows)
    first = runs[1, 0]
    assert all(torch.equal(first, r) for r in runs.values())
    assert len({float(x) for x in first[:, 0]}) > 10


def test_dense_selections_give_the_same_numbers(dense: None) -> None:
    a = ball(9)
    a._may_ask = False  # the way of a GPU: no questions to the device
    assert a._everyone.ids is None
    Selection.__init__.__defaults__ = (None,)
    b = ball(9)
    assert b._everyone.ids is not None
    actions = noise(a, 20)

    def run(env: SimVecEnv, default: bool | None) -> list[Any]:
        Selection.__init__.__defaults__ = (default,)
        env.reset(seeds=range(9))
        return [env.step(x) for x in actions] + [env.step_chunk(actions[:4].transpose(0, 1))]

    for x, y in zip(run(a, True), run(b, None), strict=True):
        assert_equal(x, y)


def test_chunks_are_steps_and_a_world_that_ends_in_mid_chunk_waits() -> None:
    a, b = ball(6), ball(6)
    actions = noise(a, 12).transpose(0, 1)  # [N, 12, 1]: an episode of six steps ends in the second chunk of four
    a.reset(seeds=range(6))
    b.reset(seeds=range(6))
    b.sim.field("qpos")[2] = a.sim.field("qpos")[2] = 2.5  # ends at once
    chunk = a.step_chunk(actions[:, :4])
    assert chunk.n_executed.tolist() == [4, 4, 1, 4, 4, 4]
    assert chunk.terminated.tolist() == [False, False, True, False, False, False]
    active = torch.ones(6, dtype=torch.bool)
    for i in range(4):
        s = b.advance(actions[:, i], active)
        assert torch.equal(s.reward, chunk.reward[:, i])
        assert torch.equal(s.final_obs["state"][active], chunk.history["state"][active, i])
        active &= ~(s.terminated | s.truncated)
    assert torch.equal(chunk.final_obs["state"][2], chunk.history["state"][2, 0])  # shoved no more
    fresh = b.reset(mask=~active)
    assert torch.equal(chunk.obs["state"], fresh["state"])
    second = a.step_chunk(actions[:, 4:8])
    assert second.n_executed.tolist() == [2, 2, 4, 2, 2, 2]
    assert second.truncated.tolist() == [True, True, False, True, True, True]
    assert (second.reward[0, 2:] == 0).all()
    assert torch.equal(second.history["state"][0, 3], second.final_obs["state"][0])


def test_a_masked_reset_leaves_the_others_alone() -> None:
    env = ball(4)
    env.reset(seeds=range(4))
    s = env.step(noise(env, 1)[0])
    mask = torch.tensor([False, True, False, False])
    before = env.snapshot()
    obs = env.reset(seeds=[9, 9, 9, 9], mask=mask)
    after = env.snapshot()
    assert torch.equal(obs["state"][~mask], s.obs["state"][~mask])
    assert torch.equal(before.sim.state[~mask], after.sim.state[~mask])
    for k, v in before.buffers.items():
        assert torch.equal(v[~mask], after.buffers[k][~mask]), k
    assert torch.equal(obs["state"][1], ball(1).reset(seeds=[9])["state"][0])
    nobody = torch.zeros(4, dtype=torch.bool)
    assert torch.equal(env.reset(mask=nobody)["state"], obs["state"])


def test_a_snapshot_continues_bit_for_bit() -> None:
    env = ball(5)
    env.reset(seeds=range(5))
    actions = noise(env, 30)
    for a in actions[:3]:
        env.step(a)
    snapshot = env.snapshot()
    first = [env.step(a) for a in actions[3:]]  # new masses, goals and shoves on the way
    obs = env.restore(snapshot)
    again = [env.step(a) for a in actions[3:]]
    for x, y in zip(first, again, strict=True):
        assert_equal(x, y)
    other = ball(5)
    other.reset(seeds=range(5, 10))
    assert torch.equal(other.restore(snapshot)["state"], obs["state"])
    for x, a in zip(first, actions[3:], strict=True):
        assert_equal(x, other.step(a))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e12])
def test_a_world_that_diverges_is_lost_and_begins_anew_and_its_neighbours_do_not_notice(bad: float) -> None:
    a, b = ball(5), ball(5)
    actions = noise(a, 8)
    for env in (a, b):
        env.reset(seeds=range(5))
        env.step(actions[0])
        assert env.warnings() == []
    a.sim.field("qpos")[2] = bad
    others = torch.tensor([True, True, False, True, True])
    first = a.step(actions[1])
    assert first.terminated.tolist() == first.info["diverged"].tolist() == (~others).tolist()
    assert first.reward[2] == 0.0
    assert first.info["score"][2] == 0.0
    assert torch.isfinite(first.final_obs["state"]).all()
    assert torch.isfinite(first.obs["state"]).all()
    reference = b.step(actions[1])
    steps = [(first, reference)] + [(a.step(x), b.step(x)) for x in actions[2:]]
    for x, y in steps:
        assert torch.equal(x.obs["state"][others], y.obs["state"][others])
        assert torch.equal(x.reward[others], y.reward[others])
    assert torch.isfinite(steps[-1][0].obs["state"]).all()
    c = ball(5)  # its next episode is the one that would have followed anyway
    c.reset(seeds=range(5))
    assert torch.equal(c.reset()["state"][2], first.obs["state"][2])
    assert a.warnings() == ["1 episodes diverged (state not finite); they count as lost"]
    assert a.warnings() == []


def test_wrong_actions_are_refused() -> None:
    env = ball(3)
    with pytest.raises(UserError, match="world 0 has no running episode"):
        env.step(torch.zeros(3, 1))
    env.reset()
    with pytest.raises(UserError, match=r"shape \[3, 2\]; expected \[3, 1\]"):
        env.step(torch.zeros(3, 2))
    with pytest.raises(UserError, match=r"action of world 1 is \[nan\]"):
        env.step(torch.tensor([[0.0], [float("nan")], [0.0]]))
    active = torch.tensor([True, False, True])
    env.advance(torch.tensor([[0.0], [float("nan")], [0.0]]), active)  # of a world that does not act
    env.sim.field("qpos")[0] = 5.0
    env.advance(torch.zeros(3, 1), active)
    with pytest.raises(UserError, match="world 0 has no running episode"):
        env.advance(torch.zeros(3, 1), active)
    with pytest.raises(UserError, match="2 seeds for 3 worlds"):
        env.reset(seeds=[1, 2])
    with pytest.raises(UserError, match=r"torch.bool \[3\]"):
        env.reset(mask=torch.ones(3))
    with pytest.raises(UserError, match=r"torch.bool \[3\]"):
        env.reset(mask=torch.ones(2, dtype=torch.bool))


def test_a_timestep_that_does_not_fit_is_refused() -> None:
    class Slow(Ball):
        fps = 30.0

    with pytest.raises(ConfigError, match=r"0\.01 s does not divide the control step 0\.0333"):
        SimVecEnv(Slow(), SimConfig(), 1)


def test_an_arm_driven_by_its_expert_does_not_notice_how_many_worlds_there_are() -> None:
    """Inverse kinematics included: torch's sums, small matrix products and atan2 are not the same in any number."""
    rows = []
    for n, at in ((1, 0), (6, 4)):
        env = make_env(LiftConfig(engine=EngineConfig(threads=1)), n)
        assert isinstance(env, SimVecEnv)
        env.reset(seeds=[7 if i == at else 100 + i for i in range(n)])
        everyone = Selection.all(n, env.device)
        expert = env.task.expert(0.5)
        expert.reset(everyone, env.world.random.draws(everyone, 99, torch.zeros(n, dtype=torch.int64)))
        steps = [env.step(expert.act()) for _ in range(30)]
        rows.append(torch.stack([torch.cat([v[at].ravel() for v in s.final_obs.values()]) for s in steps]))
    assert torch.equal(*rows)


def test_a_lost_world_that_is_not_reset_shows_no_nan() -> None:
    env = ball(3)
    env.reset(seeds=range(3))
    env.sim.field("qpos")[1] = float("nan")
    for obs in (env.reset(mask=torch.tensor([True, False, False])), env.restore(env.snapshot())):
        assert torch.isfinite(obs["state"]).all()
