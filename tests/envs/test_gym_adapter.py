from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from toys import Walk

from visuomotor.data.errors import ConfigError, UserError
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.gym_adapter import GymVecEnv
from visuomotor.envs.workers import EnvWorkerError, resolve_workers

N = 5


def walks(workers: int = 0, tripwire: str = "raise", n: int = N) -> GymVecEnv:
    return GymVecEnv(
        [partial(Walk, tripwire)] * n, max_episode_steps=7, workers=workers, score=lambda r, info: min(r, 1.0)
    )


def trajectory(env: GymVecEnv) -> dict[str, torch.Tensor]:
    """Twenty steps with same-step auto-reset; everything that comes back."""
    generator = torch.Generator().manual_seed(3)
    first = env.reset(seeds=range(10, 10 + env.num_envs))
    steps = [env.step(torch.rand(env.num_envs, 2, generator=generator) * 1.5 - 0.25) for _ in range(20)]
    out = {f"{k}": torch.stack([first[k], *[s.obs[k] for s in steps]]) for k in first}
    out |= {f"final/{k}": torch.stack([s.final_obs[k] for s in steps]) for k in first}
    out |= {k: torch.stack([getattr(s, k) for s in steps]) for k in ("reward", "terminated", "truncated")}
    return out | {f"info/{k}": torch.stack([s.info[k] for s in steps]) for k in steps[0].info}


def test_types_and_spaces_are_carried_over() -> None:
    env = walks()
    obs = env.reset(seeds=range(N))
    assert obs["position"].dtype == torch.float32
    assert obs["position"].shape == (N, 2)
    assert obs["picture"].dtype == torch.uint8
    assert obs["picture"].shape == (N, 8, 10, 3)
    assert env.obs_spec["picture"].is_image
    assert env.fps == 20
    assert env.max_episode_steps == 7
    assert env.action_low.tolist() == [-1, -1]
    step = env.advance(torch.zeros(N, 2), torch.ones(N, dtype=torch.bool))
    assert sorted(step.info) == ["distance", "score", "success"]  # no strings, no vectors
    assert step.info["success"].dtype == torch.bool
    torch.testing.assert_close(step.info["score"], (step.info["distance"] / 3).clamp(max=1))


def test_results_are_identical_for_any_number_of_workers() -> None:
    want = trajectory(walks())
    assert want["terminated"].any()
    assert want["truncated"].any()
    for workers in (1, 3):
        env = walks(workers)
        got = trajectory(env)
        env.close()
        assert got.keys() == want.keys()
        for k in want:
            assert torch.equal(got[k], want[k]), k


def test_an_episode_is_a_function_of_its_seed() -> None:
    env = walks(n=2)
    a = env.reset(seeds=[4, 9])["position"]
    b = env.reset(seeds=[9, 4])["position"]
    assert torch.equal(a, b.flip(0))


def test_time_limit_counts_per_world_and_stays_apart_from_termination() -> None:
    env = walks(n=2)
    env.reset(seeds=[0, 1])
    active = torch.tensor([True, False])
    still = torch.zeros(2, 2)
    for i in range(7):
        step = env.advance(still, active)
        assert step.truncated.tolist() == [i == 6, False]
    step = env.advance(still, torch.tensor([False, True]))
    assert step.truncated.tolist() == [False, False]
    assert not step.terminated.any()


def test_inactive_worlds_do_not_move() -> None:
    env = walks(n=3)
    before = env.reset(seeds=[0, 1, 2])
    step = env.advance(torch.ones(3, 2), torch.tensor([True, False, True]))
    assert torch.equal(step.obs["position"][1], before["position"][1])
    assert not torch.equal(step.obs["position"][0], before["position"][0])
    assert step.reward[1] == 0
    again = walks(n=3)
    again.reset(seeds=[0, 1, 2])
    later = env.advance(torch.ones(3, 2), torch.tensor([False, True, False]))
    want = again.advance(torch.ones(3, 2), torch.ones(3, dtype=torch.bool))
    assert torch.equal(later.obs["position"], want.obs["position"])  # waiting changed nothing


def test_masked_reset_keeps_the_other_worlds() -> None:
    env = walks(n=2)
    before = env.reset(seeds=[0, 1])["position"]
    after = env.reset(seeds=[5, 5], mask=torch.tensor([False, True]))["position"]
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_results_are_not_overwritten_by_the_next_step() -> None:
    env = walks(n=1)
    first = env.reset(seeds=[0])["position"]
    kept = first.clone()
    env.advance(torch.ones(1, 2), torch.ones(1, dtype=torch.bool))
    assert torch.equal(first, kept)


def test_shorter_limit_wins() -> None:
    make = partial(gym.make, "Pendulum-v1")
    assert GymVecEnv([make]).max_episode_steps == 200
    env = GymVecEnv([make], max_episode_steps=2)
    env.reset(seeds=[0])
    assert not env.step(torch.zeros(1, 1)).truncated.any()
    assert env.step(torch.zeros(1, 1)).truncated.all()


@pytest.mark.parametrize("workers", [0, 2])
def test_render_and_reset_options_reach_the_right_world(workers: int) -> None:
    env = walks(workers, n=3)
    env.reset(seeds=[0, 1, 2])
    obs = env.reset_one(2, {"position": [2.0, 1.0]})
    assert obs["position"][2].tolist() == [2.0, 1.0]
    assert env.render(2).shape == (8, 10, 3)
    assert env.render(2)[0, 0, 0] == 160
    env.close()


def test_refusals_name_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match="max_episode_steps"):
        GymVecEnv([Walk])
    with pytest.raises(ConfigError, match="empty"):
        GymVecEnv([])
    with pytest.raises(ConfigError, match=r"float32.*uint8"):
        GymVecEnv([Walk], max_episode_steps=3, obs_spec={"position": ArraySpec(shape=(2,))})
    with pytest.raises(ConfigError, match="Discrete"):
        GymVecEnv([partial(gym.make, "Taxi-v3" if "Taxi-v3" in gym.registry else "FrozenLake-v1")])
    env = walks(n=2)
    with pytest.raises(UserError, match="world 0 has no running episode"):
        env.advance(torch.zeros(2, 2), torch.ones(2, dtype=torch.bool))
    env.reset(seeds=[0, 1])
    with pytest.raises(UserError, match=r"world 1.*nan"):
        env.advance(torch.tensor([[0.0, 0], [0, float("nan")]]), torch.ones(2, dtype=torch.bool))
    with pytest.raises(UserError, match="3 seeds for 2 worlds"):
        env.reset(seeds=[1, 2, 3])
    blind = GymVecEnv([partial(Walk, render_mode=None)], max_episode_steps=3)
    blind.reset(seeds=[0])
    with pytest.raises(UserError, match="rgb_array"):
        blind.render(0)
    with pytest.raises(ConfigError, match="workers=-2"):
        resolve_workers(-2, 4)


def test_an_environment_that_raises_in_a_worker_is_named_with_its_traceback() -> None:
    env = walks(2, n=4)
    env.reset(seeds=range(4))
    action = torch.zeros(4, 2)
    action[3] = 200.0
    with pytest.raises(EnvWorkerError, match=r"worlds 2 to 3: ValueError: the motor is on fire") as caught:
        env.step(action)
    assert "in step" in caught.value.__notes__[0]
    with pytest.raises(EnvWorkerError, match="closed"):
        env.step(action)


def test_a_killed_worker_gives_one_error_and_leaves_no_process() -> None:
    env = walks(2, "die", n=2)
    env.reset(seeds=range(2))
    processes = [w.process for w in env._worlds._workers]  # type: ignore[attr-defined]
    with pytest.raises(EnvWorkerError, match=r"worlds 1 to 1 died with signal 9 \(SIGKILL\)"):
        env.step(torch.tensor([[0.0, 0.0], [200.0, 0.0]]))
    assert all(p.returncode is not None for p in processes)


def test_closing_or_forgetting_ends_the_workers() -> None:
    for end in ("close", "forget"):
        env = walks(2)
        processes = [w.process for w in env._worlds._workers]  # type: ignore[attr-defined]
        if end == "close":
            env.close()
        del env
        assert [p.returncode for p in processes] == [0, 0]


def test_a_script_without_main_guard_and_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "script.py"  # its factory is a lambda around a class of the script itself
    script.write_text(
        "import gymnasium as gym, sys, time\n"
        "from visuomotor.envs.gym_adapter import GymVecEnv\n"
        "class Mine(gym.Wrapper): pass\n"
        "env = GymVecEnv([lambda: Mine(gym.make('Pendulum-v1'))] * 2, workers=2)\n"
        "env.reset(seeds=[0, 1])\n"
        "print(*[w.process.pid for w in env._worlds._workers], flush=True)\n"
        "time.sleep(60 if len(sys.argv) > 1 else 0)\n"
    )
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    parent = subprocess.Popen([sys.executable, script, "wait"], stdout=subprocess.PIPE, text=True, env=environ)
    assert parent.stdout is not None
    pids = [int(p) for p in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(_runs(p) for p in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_runs(p) for p in pids)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_discrete_actions_are_one_integer_component() -> None:
    env = GymVecEnv([partial(gym.make, "CartPole-v1")])
    assert env.action_spec == ArraySpec(shape=(1,), dtype="int64", role="action")
    assert (env.action_low.item(), env.action_high.item()) == (0, 1)
    env.reset(seeds=[0])
    reference = gym.make("CartPole-v1")
    reference.reset(seed=0)
    got = env.advance(torch.tensor([[1]]), torch.ones(1, dtype=torch.bool)).obs["state"][0]
    np.testing.assert_array_equal(got.numpy(), reference.step(1)[0])
