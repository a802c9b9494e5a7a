from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from visuomotor.data.errors import ConfigError, UserError
from visuomotor.envs.gym_registration import environment_id, make_single
from visuomotor.envs.registry import get_task, make_env, task_names
from visuomotor.envs.sim.task import SimConfig
from visuomotor.envs.to_gym import ToGym

SIMULATED = [n for n in task_names() if issubclass(get_task(n).config_class, SimConfig)]


def flat(obs: Any) -> np.ndarray:
    return np.concatenate([v.ravel() for v in obs.values()]) if isinstance(obs, dict) else obs.ravel()


def test_names() -> None:
    assert environment_id("pick_place") == "visuomotor/PickPlace-v0"
    assert {environment_id(n) for n in SIMULATED} == {i for i in gym.registry if i.startswith("visuomotor/")}
    assert len(SIMULATED) >= 5


@pytest.mark.parametrize("task", SIMULATED)
def test_gymnasiums_checker_passes(task: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*Box observation space m(in|ax)imum value is.*infinity.*")
        warnings.filterwarnings("ignore", ".*we recommend using a symmetric and normalized space.*")
        check_env(gym.make(environment_id(task)).unwrapped, skip_render_check=True)


def test_an_id_may_name_the_module_and_settings_reach_the_config() -> None:
    env = gym.make(
        "visuomotor.envs.gym_registration:visuomotor/Lift-v0",
        reward="sparse",
        control={"mode": "joint_delta"},
        max_episode_steps=3,
    )
    assert env.action_space.shape == (8,)
    env.reset(seed=0)
    *_, truncated, info = [env.step(env.action_space.sample()) for _ in range(3)][-1]
    assert truncated
    assert {"success": False, "diverged": False}.items() <= info.items()
    assert 0.0 <= info["score"] <= 1.0


def test_an_episode_is_that_of_its_seed_in_the_vector_environment() -> None:
    single = gym.make("visuomotor/Hopper-v0")
    many = gym.make_vec("visuomotor/Hopper-v0", num_envs=3)
    assert many.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    many.action_space.seed(0)
    obs, _ = single.reset(seed=8)
    all_obs, _ = many.reset(seed=7)  # worlds have the seeds 7, 8 and 9
    np.testing.assert_array_equal(obs, all_obs[1])
    for _ in range(5):
        action = many.action_space.sample()
        obs, reward, *_ = single.step(action[1])
        all_obs, rewards, *_ = many.step(action)
        np.testing.assert_array_equal(obs, all_obs[1])
        assert reward == rewards[1]


def test_settings_reach_the_vector_environment() -> None:
    env = gym.make_vec("visuomotor/Reacher-v0", num_envs=2, max_episode_steps=2, reward="sparse")
    env.reset(seed=0)
    action = np.zeros((2, 2), np.float32)
    assert not env.step(action)[3].any()
    _, reward, _, truncated, infos = env.step(action)
    assert truncated.all()
    assert set(reward) <= {0.0, 1.0}
    assert infos["_final_obs"].all()


def test_episodes_without_a_seed_follow_the_last_one_given() -> None:
    env = gym.make("visuomotor/Reacher-v0")
    first = [flat(env.reset(seed=3)[0]), flat(env.reset()[0]), flat(env.reset()[0])]
    again = [flat(env.reset(seed=3)[0]), flat(env.reset()[0]), flat(env.reset()[0])]
    np.testing.assert_array_equal(first, again)
    assert len({x.tobytes() for x in first}) == 3


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'rewrad'.*reward"):
        gym.make("visuomotor/Lift-v0", rewrad="sparse")
    with pytest.raises(ConfigError, match=r"unknown setting 'control.mod'.*mode"):
        gym.make("visuomotor/Lift-v0", control={"mod": "joint_pos"})
    with pytest.raises(ConfigError, match=r"cameras=\['front'\]: expected a mapping of names"):
        gym.make("visuomotor/Lift-v0", cameras=["front"])
    for make in (gym.make, gym.make_vec):
        with pytest.raises(ConfigError, match=r"render_mode='human'.*rgb_array"):
            make("visuomotor/Hopper-v0", render_mode="human")
    with pytest.raises(ConfigError, match="reset options"):
        gym.make("visuomotor/Hopper-v0").reset(options={"x": 1})


def test_one_environment_of_several_worlds_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 worlds"):
        ToGym(make_env(get_task("hopper").config_class(), 2))


def test_nothing_is_drawn_without_a_render_mode() -> None:
    env = make_single("hopper")
    env.reset(seed=0)
    assert env.render() is None
    env.close()


def test_seeds_of_numpy_and_seeds_that_are_too_large() -> None:
    env: Any = gym.make_vec("visuomotor/Reacher-v0", num_envs=2)
    first, _ = env.reset(seed=np.int64(5))
    np.testing.assert_array_equal(first, env.reset(seed=5)[0])
    np.testing.assert_array_equal(first, env.reset(seed=[5, 6])[0])
    with pytest.raises(UserError, match=r"seed 9223372036854775808: expected .* 64 bits"):
        make_single("reacher").reset(seed=2**63)
    with pytest.raises(UserError, match="world 1: expected 0 to 0"):
        make_single("reacher").env.render(1)
