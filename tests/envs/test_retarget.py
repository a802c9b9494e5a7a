"""Re-targeting: which components are poses, how demonstrations are cut, and that few become many."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.data.validate import validate
from visuomotor.envs.demonstrate import DemoPlan
from visuomotor.envs.generate import generate
from visuomotor.envs.retarget import Demonstration, ObjectPoses, RetargetExpert, Segment, load_demonstrations, segment
from visuomotor.envs.sim.engines import EngineConfig
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.tasks.lift import Lift, LiftConfig
from visuomotor.envs.tasks.pick_place import PickPlace, PickPlaceConfig

ENGINE = EngineConfig(threads=1)


def observed(*names: str) -> ArraySpec:
    return ArraySpec(shape=(len(names),), role="observation", names=names)


def test_poses_are_found_by_the_names_of_components() -> None:
    turn = [f"cube_r{i}" for i in range(6)]
    specs = {
        "goal": observed("goal_y", "goal_x", "goal_z"),
        "object": observed("weight", "cube_x", "cube_y", "cube_z", *turn),
        "tcp_pos": observed("x", "y", "z"),
        "half": observed("lid_x", "lid_y"),
        "told": ArraySpec(shape=(3,), role="privileged", names=("ball_x", "ball_y", "ball_z")),
    }
    poses = ObjectPoses(specs)
    assert poses.names == ("goal", "cube")
    quarter = [0.0, -1.0, 0.0, 1.0, 0.0, 0.0]  # rows of a quarter turn about z
    obs = {"goal": torch.tensor([[2.0, 1.0, 3.0]]), "object": torch.tensor([[9.0, 4.0, 5.0, 6.0, *quarter]])}
    pos, rot = poses.read(obs)
    assert pos.tolist() == [[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]
    assert rot[0, 0].tolist() == torch.eye(3).tolist()
    assert rot[0, 1].tolist() == [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


def demonstration(x: list[float], closed: list[int], objects: list[float]) -> Demonstration:
    """The hand moves along x; the objects stand still."""
    n, k = len(x), len(objects)
    pos = np.zeros((n, 3), np.float32)
    pos[:, 0] = x
    things = np.zeros((n, k, 3), np.float32)
    things[..., 0] = objects
    return Demonstration(
        pos=pos,
        rot=np.tile(np.eye(3, dtype=np.float32), (n, 1, 1)),
        grip=1.0 - np.array(closed, np.float32),
        object_pos=things,
        object_rot=np.tile(np.eye(3, dtype=np.float32), (n, k, 1, 1)),
    )


def test_a_grasp_begins_near_the_object_and_lasts_to_the_end() -> None:
    demo = demonstration([0.5, 0.4, 0.3, 0.2, 0.1, 0.0, 0.0, 0.3], [0, 0, 0, 0, 0, 0, 1, 1], [0.0, 1.0])
    assert segment(demo, near=0.25) == [Segment(3, 8, 0)]


def test_carrying_is_free_motion_and_the_release_belongs_to_the_other_object() -> None:
    # grasped at 0, carried to 1, let go there; object 0 is in the hand and does not count
    x = [0.3, 0.2, 0.1, 0.0, 0.0, 0.1, 0.2, 0.4, 0.7, 0.9, 1.0, 1.0, 1.0, 1.3]
    closed = [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0]
    assert segment(demonstration(x, closed, [0.0, 1.0]), near=0.15) == [Segment(2, 6, 0), Segment(9, 14, 1)]


def test_without_gripper_there_is_one_segment_where_the_hand_is_nearest() -> None:
    assert segment(demonstration([0.3, 0.2, 0.1, 0.2, 0.3], [0] * 5, [0.0]), near=0.15) == [Segment(1, 5, 0)]


def test_changes_of_the_gripper_close_together_do_not_overlap() -> None:
    parts = segment(demonstration([0.0] * 6, [0, 1, 0, 0, 1, 1], [0.0, 1.0]), near=0.5)
    assert [(p.start, p.stop) for p in parts] == [(0, 2), (2, 4), (4, 6)]


def expert_demos(path: Path, episodes: int) -> None:
    plan = DemoPlan(env=LiftConfig(engine=ENGINE))
    generate(path, plan, task="lift", text="lift", episodes=episodes)


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("five") / "lift.zarr"
    expert_demos(path, 5)
    return path


def test_five_demonstrations_become_fifty(five: Path, tmp_path: Path) -> None:
    path = tmp_path / "more.zarr"
    plan = DemoPlan(env=LiftConfig(engine=ENGINE), source=five)
    tally = generate(path, plan, task="lift", text="lift", episodes=50, seed=1)
    assert tally.kept / tally.tried >= 0.6, tally
    with DemoStore.open(path) as store, DemoStore.open(five) as source:
        assert [f for f in validate(store) if f.severity != "info"] == []
        assert store.origin["settings"]["from"] is not None

        def starts(s: DemoStore) -> np.ndarray:
            return np.stack([s.episode(i)["object"][0, :2] for i in range(s.n_episodes)])

        away = np.linalg.norm(starts(store)[:, None] - starts(source)[None], axis=-1).min(1)
        assert (away > 0.005).mean() > 0.9  # the cube lies elsewhere
    expert_demos(five, 6)
    with pytest.raises(ConfigError, match="was generated with from="):
        generate(path, plan, task="lift", text="lift", episodes=60, seed=1)


def bound(task: Lift | PickPlace, config: LiftConfig | PickPlaceConfig) -> SimVecEnv:
    return SimVecEnv(task, config, 1)


def test_other_tasks_and_incomplete_stores_are_refused(five: Path, tmp_path: Path) -> None:
    config = PickPlaceConfig(engine=ENGINE)
    env = bound(PickPlace(config), config)
    with pytest.raises(DataError, match="support"):
        load_demonstrations(five, env.task)
    env.close()
    lift = LiftConfig(engine=ENGINE)
    env = bound(Lift(lift), lift)
    with DemoStore.create(tmp_path / "own.zarr", dict(env.obs_spec), fps=20) as store:
        assert store.n_episodes == 0
    with pytest.raises(DataError, match="'action'"):
        load_demonstrations(tmp_path / "own.zarr", env.task)
    fast = {**env.obs_spec, "action": env.action_spec}
    DemoStore.create(tmp_path / "fast.zarr", fast, fps=50).close()
    with pytest.raises(DataError, match=r"recorded at 50 Hz; task 'lift' runs at 20 Hz"):
        load_demonstrations(tmp_path / "fast.zarr", env.task)
    bare = fast | {"action": ArraySpec(shape=(6,), role="action", names=("dx", "dy", "dz", "rx", "ry", "rz"))}
    DemoStore.create(tmp_path / "bare.zarr", bare, fps=20).close()
    with pytest.raises(DataError, match="last component of 'action' is 'rz'"):
        load_demonstrations(tmp_path / "bare.zarr", env.task)
    env.task.obs_spec = {k: v for k, v in env.task.obs_spec.items() if k != "object"}
    with pytest.raises(ConfigError, match="1 arm"):
        load_demonstrations(five, env.task)
    env.close()


def test_it_goes_on_from_its_buffers(five: Path) -> None:
    lift = LiftConfig(engine=ENGINE)
    env = SimVecEnv(Lift(lift), lift, 2)
    env.reset(seeds=[1, 2])
    expert, everyone = RetargetExpert(env.task, load_demonstrations(five, env.task), 0.05), torch.ones(2).bool()
    expert.reset(Selection.all(2, env.device), Draws(torch.tensor([5, 6])))
    for _ in range(20):
        env.advance(expert.act(), everyone)
    kept, own = env.snapshot(), {k: v.clone() for k, v in expert.buffers().items()}
    first = []
    for _ in range(30):
        first.append(expert.act())
        env.advance(first[-1], everyone)
    env.restore(kept)
    for k, v in expert.buffers().items():
        v.copy_(own[k])
    for action in first:
        assert torch.equal(expert.act(), action)
        env.advance(action, everyone)
    env.close()


def test_hands_are_read_as_they_were_recorded(five: Path) -> None:
    lift = LiftConfig(engine=ENGINE)
    env = bound(Lift(lift), lift)
    demos = load_demonstrations(five, env.task)
    with DemoStore.open(five) as store:
        episode = store.episode(2)
    assert np.array_equal(demos[2].pos, episode["tcp_pos"])
    assert np.allclose(np.linalg.det(demos[2].rot), 1.0, atol=1e-5)
    assert demos[2].object_pos.shape == (len(episode["action"]), 1, 3)
    assert math.isclose(float(demos[2].grip[-1]), 0.0)
    env.close()
