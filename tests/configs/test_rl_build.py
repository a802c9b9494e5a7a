"""What a run of PPO is built from: the actions that it may explore, the demonstrations that it is held to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from visuomotor.configs.help import rl_help
from visuomotor.configs.rl_build import (
    Start,
    _demonstrations,
    action_reach,
    make_accelerator,
    make_trainer,
    scratch_start,
)
from visuomotor.configs.rl_compose import compose_finetune, compose_rl
from visuomotor.configs.rl_schema import RLConfig
from visuomotor.configs.run_folder import open_run
from visuomotor.data.errors import ConfigError
from visuomotor.data.normalize import Normalizer
from visuomotor.data.store import DemoStore
from visuomotor.data.windows import split_episodes
from visuomotor.envs.base import VecEnv
from visuomotor.envs.registry import make_env
from visuomotor.policies.heads.gaussian import GaussianHead

WORDS = ["task=cartpole", "env.engine.threads=1", "backbone.width=16", "critic.width=16"]


def composed(*words: str) -> RLConfig:
    config = compose_rl([*WORDS, *words]).config
    assert isinstance(config, RLConfig)
    return config


@pytest.fixture
def env() -> VecEnv:
    return make_env(composed().env, 1)


def write(path: Path, env: VecEnv, episodes: int) -> Path:
    """Episodes of five steps whose action is their number."""
    specs = {"state": env.obs_spec["state"], "action": env.action_spec}
    with DemoStore.create(path, specs, fps=env.fps) as store:
        for e in range(episodes):
            state = np.zeros((5, *env.obs_spec["state"].shape), np.float32)
            store.append_episode({"state": state, "action": np.full((5, 1), e, np.float32)})
    return path


def imitated(config: RLConfig, start: Start) -> list[int]:
    """The episodes that ``hold.bc`` draws from."""
    source = _demonstrations(config, start)
    assert source is not None
    actions = source.gather(torch.arange(len(source))).action[:, 0, 0]
    return [int(x) for x in actions.unique().tolist()]


def test_what_training_held_out_is_not_imitated_later(env: VecEnv, tmp_path: Path) -> None:
    """Otherwise the open-loop error on held-out episodes would be that on episodes that were learnt."""
    path = write(tmp_path / "demos.zarr", env, 10)
    config = composed("hold.bc.weight=1")
    dataset = {"path": str(path), "n_episodes": 10, "n_steps": 50, "split": {"val_fraction": 0.3, "seed": 7}}
    scratch = scratch_start(config, env)
    start = replace(scratch, data={"episodes": None}, dataset=dataset)
    train = split_episodes(10, 0.3, 7)[0].tolist()
    assert len(train) == 7
    assert imitated(config, start) == train
    few = imitated(config, replace(start, data={"episodes": 3}))
    assert len(few) == 3
    assert set(few) < set(train)
    other = write(tmp_path / "other.zarr", env, 6)
    assert imitated(composed("hold.bc.weight=1", f"hold.data={other}"), start) == list(range(6))
    assert imitated(composed("hold.bc.weight=1", f"hold.data={path}"), scratch) == list(range(10))


@pytest.mark.parametrize(("mode", "reach"), [("minmax", 1.0), ("zscore", 3.0), ("identity", 3.0), ("quantile", 1.5)])
def test_exploration_gets_as_far_as_the_demonstrations_in_any_normalisation(
    env: VecEnv, mode: str, reach: float
) -> None:
    policy = scratch_start(composed(), env).policy
    assert action_reach(policy) == 1.0
    document = policy.normalizer.to_dict()
    stats = {"min": [-3.0], "max": [2.0], "mean": [0.0], "std": [1.0], "q01": [-2.0], "q99": [2.0]}
    document["action"]["stats"] |= stats
    document["action"]["norm"]["mode"] = mode
    policy.normalizer = Normalizer.from_dict(document)
    assert action_reach(policy) == pytest.approx(reach, abs=1e-3)


def test_the_bound_of_actions_is_that_of_the_demonstrations_unless_the_user_says_another() -> None:
    def bound(*words: str, reach: float = 3.2) -> float | None:
        saved = {"task": "cartpole", "env": {}}
        config = compose_finetune(["checkpoint=x", *words], head=GaussianHead, saved=saved, reach=reach).config
        return config.ppo.action_bound

    assert bound(reach=1.0) == 1.0
    assert bound() == 3.2
    assert bound("ppo.action_bound=2") == 2.0
    assert bound("ppo.action_bound=null") is None


def test_what_cannot_be_learnt_from_scratch_is_refused(env: VecEnv) -> None:
    with pytest.raises(ConfigError, match="codes that are fitted to demonstrations"):
        scratch_start(composed("policy=carp"), env)
    env.action_low, env.action_high = torch.full((1,), 5.0), torch.full((1,), torch.inf)
    with pytest.raises(ConfigError, match=r"action_scale=3 is within the bounds.*from \[5.0\] to \[3.0\]"):
        scratch_start(composed("action_scale=3"), env)
    env.action_spec = replace(env.action_spec, dtype="int64")
    with pytest.raises(ConfigError, match="whole numbers as actions"):
        scratch_start(composed(), env)


@pytest.mark.parametrize("policy", ["act", "diffusion", "gaussian", "gmm", "regression"])
def test_the_backbone_that_is_taken_serves_the_head(env: VecEnv, policy: str) -> None:
    scratch_start(composed(f"policy={policy}"), env)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run_dir=.*file/run cannot be made: Not a directory"):
        open_run(
            str(tmp_path / "file" / "run"), "x", plain={}, command=[], resumed=False, n_parameters=0,
            accelerator=make_accelerator(composed()),
        )  # fmt: skip


def test_shifts_of_pictures_that_nobody_sees_are_refused(env: VecEnv) -> None:
    config = composed("ppo.image_shift=2")
    with pytest.raises(ConfigError, match="image_shift=2 moves pictures, and none is observed"):
        make_trainer(config, env, scratch_start(config, env), make_accelerator(config))


def test_help_says_what_stands_above_the_defaults_that_it_lists() -> None:
    tuned, scratch = rl_help("finetune"), rl_help("rl")
    assert "  with every policy: ppo.lr=3e-05 ppo.critic_warmup=2 ppo.decisions=64\n" in tuned
    assert "  with likelihood=gaussian: likelihood.std_floor=0.1\n" in tuned
    assert "ends: env.reward=sparse env.privileged=true\n" in tuned
    assert "  with policy=gaussian: policy.std_from_obs=false policy.std_init=0.6" in scratch
    assert "  with task=cartpole: ppo.num_envs=32 ppo.decisions=16" in scratch
    assert "backbone=perceptron" in scratch
    assert "with likelihood=dppo: ppo.reduce=mean" in scratch
    assert "with likelihood=dppo: ppo.reduce=mean" in tuned
