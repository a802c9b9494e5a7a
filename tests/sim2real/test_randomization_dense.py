"""Every term the way a GPU is driven: all worlds are computed, masks decide, and nothing is asked of the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.envs.test_dense import Waits
from visuomotor.configs.randomize import load_randomization
from visuomotor.envs.sim import arrays
from visuomotor.envs.sim.cameras import CameraConfig
from visuomotor.envs.sim.engines import EngineConfig
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.tasks.lift import Lift, LiftConfig
from visuomotor.sim2real.randomization.build import build_events
from visuomotor.sim2real.randomization.registry import terms

N = 4
NAMES = {
    "action": ["*"], "actuator_delay": ["robot/joint*"], "observation": ["joint_pos"], "pose_error": ["object"],
    "camera": ["*"], "camera_position": ["front"], "camera_angle": ["front"], "camera_rotation": ["front"],
    "light": ["key"], "material": ["table"], "texture": ["table"], "gravity": [], "gravity_compensation": ["cube"],
    "control": [], "command": [], "backdrop": [], "extra": [], "distractors": ["cube"],
}  # fmt: skip
JOINTS = ("damping", "friction_loss", "armature", "stiffness", "joint_offset", "encoder_offset")
ACTUATORS = ("position_gain", "velocity_gain", "force_limit", "gear")
WITHOUT = {
    "sensor_delay",
    "shape",
}  # the scene has no sensors; a shape and the size of its body exclude each other here


def names_of(term: str) -> list[str]:
    known = [n for n in NAMES if term.startswith(n)]
    if known:
        return NAMES[max(known, key=len)]
    return ["robot/joint*"] if term in (*JOINTS, *ACTUATORS) else ["cube"]


def everything() -> list[str]:
    """Words that put every term into the scene, each with a range that is none of a point where one can be."""
    words: list[str] = []
    for name, entry in terms().items():
        if name in WITHOUT:
            continue
        plain = entry.config_class()
        given: dict[str, Any] = {"term": name, "names": f"[{','.join(repr(n) for n in names_of(name))}]"}
        if (plain.operation, plain.low, plain.high) == ("*", 1.0, 1.0):
            given |= {"low": 0.97, "high": 1.0}
        elif plain.operation == "+" and plain.high == 0:
            given |= {"high": 0.02}
        if name == "restitution":
            given |= {"operation": '"="', "low": 0.3, "high": 0.5}
        if name == "camera_temperature":
            given |= {"high": 8000.0}
        words += [f"randomization.terms.t_{name}.{k}={v}" for k, v in given.items()]
    return words


def lift() -> SimVecEnv:
    cameras = CameraConfig(names=["front"], height=16, width=16)
    config = LiftConfig(engine=EngineConfig(threads=1), max_episode_steps=5, cameras=cameras)
    return SimVecEnv(Lift(config), config, N, build_events(load_randomization(everything())))


def rollout(env: SimVecEnv, actions: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    env.reset(seeds=range(N))
    env._elapsed[:] = torch.arange(N)  # worlds out of step with one another
    return [env.step(action).obs for action in actions]


def test_all_terms_at_once_give_the_same_dense_and_sparse_and_ask_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sparse, dense = lift(), lift()
    assert len(sparse.events._events) >= 65
    actions = 0.02 * torch.randn(8, N, sparse.action_spec.size, generator=torch.Generator().manual_seed(0))
    expected = rollout(sparse, actions)
    monkeypatch.setattr(Selection.__init__, "__defaults__", (True,))
    monkeypatch.setattr(dense, "_may_ask", False)
    for found, wanted in zip(rollout(dense, actions), expected, strict=True):
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1 if key == "front" else 1e-5, msg=key)
    monkeypatch.setattr(dense, "draws_cameras", False)  # OpenGL draws on the host anyway
    monkeypatch.setattr(arrays, "_NUMPY", False)
    for k in range(2):  # in the first round constants are made
        with Waits() as waits:
            for action in actions:
                dense.step(action)
        assert k == 0 or waits.seen == []
