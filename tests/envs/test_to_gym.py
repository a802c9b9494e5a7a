from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from toys import Walk

from visuomotor.data.errors import ConfigError
from visuomotor.envs.gym_adapter import GymVecEnv
from visuomotor.envs.to_gym import ToGymVector


def walk() -> gym.Env[Any, Any]:
    return gym.wrappers.TimeLimit(Walk(), 6)


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for k in a:
            assert_same(a[k], b[k])
    elif a is None:
        assert b is None
    else:
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("factory", [partial(gym.make, "CartPole-v1"), partial(gym.make, "Pendulum-v1"), walk])
def test_round_trip_gives_gymnasiums_own_trajectories(factory: Any) -> None:
    n = 3
    theirs = SyncVectorEnv([factory] * n, autoreset_mode=AutoresetMode.SAME_STEP)
    limit = 6 if factory is walk else None
    ours = ToGymVector(GymVecEnv([factory] * n, max_episode_steps=limit))
    assert ours.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert ours.action_space == theirs.action_space
    ours.action_space.seed(0)
    assert_same(ours.reset(seed=7)[0], theirs.reset(seed=7)[0])
    ends = 0
    for _ in range(250):
        action = ours.action_space.sample()
        a, b = ours.step(action), theirs.step(action)
        for x, y in zip(a[:4], b[:4], strict=True):
            assert_same(x, y)
        assert a[0] in ours.observation_space
        assert ("final_obs" in a[4]) == ("final_obs" in b[4])
        if "final_obs" in b[4]:
            ends += int(b[4]["_final_obs"].sum())
            np.testing.assert_array_equal(a[4]["_final_obs"], b[4]["_final_obs"])
            np.testing.assert_array_equal(a[4]["_final_info"], b[4]["_final_info"])
            for x, y in zip(a[4]["final_obs"], b[4]["final_obs"], strict=True):
                assert_same(x, y)
    assert ends >= n


def test_infos_of_the_last_step_are_in_final_info() -> None:
    ours = ToGymVector(GymVecEnv([walk] * 2, max_episode_steps=6))
    ours.reset(seed=0)
    infos: dict[str, Any] = {}
    for _ in range(6):
        infos = ours.step(np.array([[0.0, 0], [0, 0]], np.float32))[4]
    assert infos["_final_info"].tolist() == [True, True]
    assert infos["final_info"]["_distance"].tolist() == [True, True]
    assert (infos["final_info"]["distance"] > 0).all()
    assert "distance" not in infos


def test_render_close_and_unknown_options() -> None:
    ours = ToGymVector(GymVecEnv([walk] * 2, max_episode_steps=6))
    with pytest.raises(ConfigError, match="reset_mask"):
        ours.reset(seed=0, options={"reset_mask": np.ones(2, bool)})
    ours.reset(seed=[1, 2])
    assert [f.shape for f in ours.render()] == [(8, 10, 3)] * 2
    ours.close()
    assert ours.closed
