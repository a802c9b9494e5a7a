from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from visuomotor.data.errors import ConfigError, UserError
from visuomotor.envs.registry import make_env
from visuomotor.envs.tasks.pusht import PushT, PushTConfig

pytest.importorskip("gym_pusht", reason="gym-pusht (extra `pusht`) is not installed")
DATA = Path(__file__).parents[2].parent / "shared" / "data" / "pusht" / "pusht_cchi_v7_replay.zarr"


def env_of(n: int, obs: str = "state", workers: int = 0, steps: int = 300) -> PushT:
    env = make_env(PushTConfig(obs=obs, workers=workers, max_episode_steps=steps), n)
    assert isinstance(env, PushT)
    return env


def test_observation_is_the_state_of_the_dataset() -> None:
    env = env_of(3)
    obs = env.reset(seeds=[100000, 100001, 100002])
    assert obs["state"].dtype == torch.float32
    assert obs["state"].shape == (3, 5)
    assert env.obs_spec["state"].names == ("agent_x", "agent_y", "block_x", "block_y", "block_angle")
    assert ((obs["state"][:, 4] >= 0) & (obs["state"][:, 4] < 2 * np.pi)).all()
    assert (env.fps, env.max_episode_steps) == (10.0, 300)
    assert (env.action_low.tolist(), env.action_high.tolist()) == ([0, 0], [512, 512])


def test_set_state_is_exact() -> None:
    env = env_of(2)
    env.reset(seeds=[0, 1])
    want = [100.25, 400.5, 300.125, 310.75, 1.5]  # float32 holds all of them
    obs = env.set_state(1, want)
    assert obs["state"][1].tolist() == want
    hold = torch.tensor([[100.25, 400.5], [100.25, 400.5]])
    step = env.advance(hold, torch.tensor([False, True]))
    torch.testing.assert_close(step.obs["state"][1], torch.tensor(want), rtol=0, atol=1e-5)  # it rests there
    inside = [300.0, 300.0, 300.0, 300.0, 0.5]  # the finger in the block
    assert env.set_state(0, inside)["state"][0].tolist() == inside
    with pytest.raises(UserError, match="5 finite numbers"):
        env.set_state(0, [1.0, 2.0])


def test_the_goal_pose_is_success_and_ends_the_episode() -> None:
    env = env_of(1)
    env.reset(seeds=[0])
    env.set_state(0, [50, 50, 256, 256, np.pi / 4])
    step = env.advance(torch.tensor([[50.0, 50.0]]), torch.ones(1, dtype=torch.bool))
    assert step.info["coverage"].item() == pytest.approx(1.0, abs=1e-6)
    assert step.info["score"].item() == 1.0
    assert step.info["success"].all()
    assert step.terminated.all()
    assert not step.truncated.any()


def test_score_and_coverage_against_gym_pushts_own() -> None:
    from gym_pusht.envs.pusht import PushTEnv

    env, reference = env_of(1), PushTEnv()
    state = env.reset(seeds=[100007])["state"]
    theirs, _ = reference.reset(seed=100007)
    np.testing.assert_allclose(state[0].numpy(), theirs, rtol=1e-6)
    rng = np.random.default_rng(0)
    for _ in range(40):
        action = (state[0, 2:4].numpy() + rng.normal(0, 40, 2)).astype(np.float32)
        step = env.advance(torch.from_numpy(action)[None], torch.ones(1, dtype=torch.bool))
        theirs, reward, _, _, info = reference.step(action)
        np.testing.assert_allclose(step.obs["state"][0].numpy(), theirs, rtol=1e-6)
        assert step.info["coverage"].item() == pytest.approx(info["coverage"], abs=1e-6)
        assert step.info["score"].item() == pytest.approx(reward, abs=1e-6)
        state = step.obs["state"]


@pytest.mark.skipif(not DATA.exists(), reason=f"the recorded Push-T demonstrations are not at {DATA}")
def test_recorded_actions_replay_from_the_recorded_first_state() -> None:
    store = zarr.open_group(str(DATA), mode="r")
    ends = np.asarray(store["meta/episode_ends"])
    episodes = [0, 109, 120, 205]  # the last three begin with the finger on the block
    state, action = np.asarray(store["data/state"]), torch.from_numpy(np.asarray(store["data/action"]))
    env = env_of(len(episodes))
    env.reset(seeds=range(len(episodes)))
    spans = [(int(ends[e - 1]) if e else 0, int(ends[e])) for e in episodes]
    for i, (start, _) in enumerate(spans):
        env.set_state(i, state[start].tolist())
    worst = 0.0
    active = torch.ones(len(episodes), dtype=torch.bool)
    for t in range(max(end - start for start, end in spans) - 1):
        active = active & torch.tensor([start + t + 1 < end for start, end in spans])
        rows = torch.stack([action[min(start + t, end - 1)] for start, end in spans])
        step = env.advance(rows, active)
        for i, (start, _) in enumerate(spans):
            if active[i]:
                error = step.obs["state"][i].numpy() - state[start + t + 1]
                error[4] = (error[4] + np.pi) % (2 * np.pi) - np.pi
                worst = max(worst, float(np.abs(error).max()))
        active = active & ~step.terminated
    assert worst < 0.01  # px and rad


@pytest.mark.parametrize("obs", ["state", "image"])
def test_workers_give_the_same_episodes(obs: str) -> None:
    results = []
    for workers in (0, 2):
        env = env_of(3, obs, workers)
        first = env.reset(seeds=[5, 6, 7])
        target = torch.tensor([[256.0, 256.0]] * 3)
        steps = [env.step(target + 20 * i) for i in range(8)]
        results.append([*first.values(), *steps[-1].obs.values(), steps[-1].info["coverage"]])
        env.close()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_image_observation_and_picture() -> None:
    env = env_of(1, "image")
    obs = env.reset(seeds=[0])
    assert obs["img"].dtype == torch.uint8
    assert obs["img"].shape == (1, 96, 96, 3)
    assert obs["agent_pos"].shape == (1, 2)
    assert env.render(0).shape == (384, 384, 3)
    placed = env.set_state(0, [60, 60, 300, 300, 0.0])
    green = torch.tensor([144, 238, 144])  # the goal's colour stays where it is; the block's is grey
    assert (placed["img"][0].int() - green).abs().sum(-1).lt(30).any()
    x, y = (int(v * 96 / 512) for v in (60, 60))
    assert placed["img"][0, y, x].tolist() == pytest.approx([65, 105, 225], abs=40)  # the finger, royal blue


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match=r"'pixels'.*'?image|state"):
        PushTConfig(obs="pixels")
    with pytest.raises(ConfigError, match="max_episode_steps=0"):
        PushTConfig(max_episode_steps=0)


def test_without_gym_pusht_the_extra_is_named() -> None:
    script = (
        "import sys; sys.modules['gym_pusht'] = None\n"
        "from visuomotor.data.errors import MissingExtraError\n"
        "from visuomotor.envs.registry import make_env\n"
        "from visuomotor.envs.tasks.pusht import PushTConfig\n"
        "try: make_env(PushTConfig(), 1)\n"
        "except MissingExtraError as e: print(e)\n"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "visuomotor[pusht]" in out
    assert "--no-deps gym-pusht" in out


def test_workers_start_without_torch() -> None:
    modules = "visuomotor.envs.workers, visuomotor.envs.tasks.pusht_gym"
    script = f"import sys, {modules}\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True)


def test_progress_pays_each_rise_of_the_score_once() -> None:
    env = PushT(PushTConfig(workers=0, reward="progress"), 1)
    env.reset(seeds=[0])
    total, scores = 0.0, []
    env.set_state(0, [50, 50, 256, 300, np.pi / 4])
    everything = torch.ones(1, dtype=torch.bool)
    still = env.advance(torch.tensor([[50.0, 50.0]]), everything)
    assert still.reward.item() == 0.0  # what the block covers at the start is nobody's merit
    start = still.info["score"].item()
    assert 0.0 < start < 1.0
    for target in ([256.0, 450.0],) * 10 + ([256.0, 250.0],) * 20:  # from below, up into the block
        step = env.advance(torch.tensor([target]), everything)
        total += step.reward.item()
        scores.append(step.info["score"].item())
    assert total == pytest.approx(max(0.0, max(scores) - start), abs=1e-6)
    assert max(scores) > start
    with pytest.raises(ConfigError, match="unknown Push-T reward 'dense'"):
        PushTConfig(reward="dense")
