"""Episodes that begin in states of demonstrations, and the curriculum of where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.store import DemoStore
from visuomotor.envs.demonstrate import DemoPlan
from visuomotor.envs.generate import generate
from visuomotor.envs.registry import make_env
from visuomotor.envs.sim.demo_start import DemoStart, DemoStartConfig
from visuomotor.envs.sim.engines import EngineConfig
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.world_state import STATE_KEY, WorldState
from visuomotor.envs.tasks.cartpole import CartpoleConfig
from visuomotor.envs.tasks.lift import LiftConfig
from visuomotor.envs.tasks.pusht import PushTConfig

ENGINE = EngineConfig(threads=1)
N = 6


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three demonstrations of lift with states."""
    path = tmp_path_factory.mktemp("demos") / "lift.zarr"
    generate(path, DemoPlan(env=LiftConfig(engine=ENGINE), states=True), task="lift", text="lift", episodes=3)
    return path


def make(store: Path, n: int = N, **settings: object) -> SimVecEnv:
    env = make_env(LiftConfig(engine=ENGINE), n, [DemoStart(DemoStartConfig(store=str(store), **settings))])  # type: ignore[arg-type]
    assert isinstance(env, SimVecEnv)
    return env


def test_a_recorded_state_that_is_put_back_goes_on_as_recorded(store: Path) -> None:
    """Cube, arm, grip and the targets of the control: the recorded actions from the middle still lift the cube."""
    with DemoStore.open(store) as demos:
        episode, start = demos.episode(0), demos.episode_slice(0).start
        rows = torch.from_numpy(demos.read(STATE_KEY, start, start + len(episode["action"])))
    env = make_env(LiftConfig(engine=ENGINE, end_on_success=False), 1)
    assert isinstance(env, SimVecEnv)
    env.reset(seeds=[0])
    state = WorldState(env.world)
    middle = int((episode["object"][:, 2] > episode["object"][0, 2] + 0.03).argmax())  # the cube is in the air
    everyone = Selection.all(1, env.device)
    state.write(everyone, rows[middle][None])
    np.testing.assert_allclose(state.read()[0], rows[middle], rtol=0, atol=1e-12)
    seen = env.task.observe()["object"][0].numpy()
    np.testing.assert_allclose(seen, episode["object"][middle], atol=1e-5)
    for action in episode["action"][middle:]:
        step = env.step(torch.from_numpy(action)[None])
    assert bool(step.info["success"][0])


def test_the_share_begins_near_the_end_of_demonstrations_and_the_rest_as_the_task_says(store: Path) -> None:
    env, plain = make(store, n=40, share=0.5, step=3), make_env(LiftConfig(engine=ENGINE), 40)
    seeds = list(range(100, 140))
    obs, usual = env.reset(seeds=seeds), plain.reset(seeds=seeds)
    same = torch.isclose(obs["object"], usual["object"], atol=1e-6).all(1)
    assert 10 <= int(same.sum()) <= 30
    with DemoStore.open(store) as demos:
        ends = demos.episode_ends
        rows = np.concatenate([demos.read("object", int(e) - 4, int(e)) for e in ends])
    distance = torch.cdist(obs["object"][~same], torch.from_numpy(rows)).amin(1)
    assert distance.max() < 1e-5  # one of the last four states of a demonstration: at most 3 steps back
    again = make(store, n=40, share=0.5, step=3).reset(seeds=seeds)
    assert all(torch.equal(again[k], obs[k]) for k in obs)


def test_all_states_alike_are_drawn_in_uniform_order(store: Path) -> None:
    env = make(store, n=200, share=1.0, order="uniform")
    obs = env.reset(seeds=list(range(200)))
    with DemoStore.open(store) as demos:
        rows = torch.from_numpy(demos.read("object", 0, demos.n_steps))
        joints = torch.from_numpy(demos.read("joint_pos", 0, demos.n_steps))
    index = torch.cdist(torch.cat([obs["object"], obs["joint_pos"]], 1), torch.cat([rows, joints], 1)).argmin(1)
    counts = torch.histc(index.float(), 4, 0, len(rows))
    assert counts.min() > 25  # a quarter of 200 is 50


def test_the_beginning_moves_back_when_episodes_succeed_and_only_then(store: Path) -> None:
    env = make(store, n=4, share=1.0, step=5, threshold=0.75, episodes=4)
    env.reset(seeds=[0, 1, 2, 3])
    (event,) = env.events._events
    everyone = torch.ones(4, dtype=torch.bool)
    half = torch.tensor([True, False, True, False])
    assert env.events.report() == {"demo_start_depth": 5.0}  # no success is not known to be 0
    event.watch(half, everyone)  # two of four
    assert env.events.report() == {"demo_start_depth": 5.0, "demo_start_success": 0.5}
    env.reset(mask=everyone)
    event.watch(half, ~everyone)  # success in the middle of an episode
    event.watch(~half, everyone)  # the other two at its end
    assert env.events.report() == {"demo_start_depth": 10.0, "demo_start_success": 1.0}
    with DemoStore.open(store) as demos:
        longest = int(np.diff(demos.episode_ends, prepend=0).max())
    for _ in range(longest):
        env.reset(mask=everyone)
        event.watch(everyone, everyone)
    assert env.events.report()["demo_start_depth"] == longest + 5


def test_episodes_that_began_as_usual_do_not_count(store: Path) -> None:
    env = make(store, n=4, share=1e-9, step=5, episodes=4)
    env.reset(seeds=[0, 1, 2, 3])
    (event,) = env.events._events
    event.watch(torch.ones(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool))
    assert env.events.report() == {"demo_start_depth": 5.0}


def test_a_snapshot_holds_the_curriculum_and_goes_on_bit_for_bit(store: Path) -> None:
    def actions(t: int) -> torch.Tensor:
        noise = torch.randn(N, env.action_spec.size, generator=torch.Generator().manual_seed(t))
        noise[:, -1] = 0.0  # the gripper stays closed
        return (0.1 * noise).clamp(env.action_low, env.action_high)

    env = make(store, share=0.8, step=4, threshold=0.05, episodes=3)
    env.max_episode_steps = 5
    env.reset(seeds=list(range(N)))
    for t in range(12):
        env.step(actions(t))
    saved = env.snapshot()
    before = env.events.report()
    there = [env.step(actions(t)) for t in range(12, 30)]
    other = make(store, share=0.8, step=4, threshold=0.05, episodes=3)
    other.max_episode_steps = 5
    other.reset(seeds=[9] * N)
    other.restore(saved)
    assert other.events.report() == before
    here = [other.step(actions(t)) for t in range(12, 30)]
    for a, b in zip(there, here, strict=True):
        assert all(torch.equal(a.obs[k], b.obs[k]) for k in a.obs)
        assert torch.equal(a.reward, b.reward)
    assert env.events.report() == other.events.report()
    assert env.events.report()["demo_start_depth"] > 4


def test_dense_and_sparse_selections_place_the_same(store: Path) -> None:
    states = []
    for dense in (False, True):
        env = make(store, share=0.5, step=4)
        env.reset(seeds=list(range(N)))
        (event,) = env.events._events
        chosen = Selection(torch.tensor([True, False, True, True, False, True]), dense=dense)
        keys = env.world.random.key
        event.apply(chosen, Draws(chosen.take(keys)))
        states.append(WorldState(env.world).read())
    assert torch.equal(*states)


def test_stores_that_do_not_fit_are_refused(store: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.zarr"
    generate(plain, DemoPlan(env=LiftConfig(engine=ENGINE)), task="lift", text="lift", episodes=1)
    with pytest.raises(DataError, match="states=true"):
        DemoStart(DemoStartConfig(store=str(plain)))
    event = DemoStart(DemoStartConfig(store=str(store)))
    with pytest.raises(ConfigError, match="another task"):
        make_env(CartpoleConfig(engine=ENGINE), 1, [event])
    with pytest.raises(ConfigError, match="no events"):
        make_env(PushTConfig(), 1, [event])
    with pytest.raises(ConfigError, match="backward"):
        DemoStartConfig(order="backwards")
    with pytest.raises(ConfigError, match=r"demo_start\.share does nothing without.*demo_start\.store"):
        DemoStartConfig(share=0.2)
    with pytest.raises(ConfigError, match="was generated with states"):
        generate(store, DemoPlan(env=LiftConfig(engine=ENGINE)), task="lift", text="lift", episodes=4)
