from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from suite_fixtures import TOY, install_toy
from toys import Walk

from visuomotor.data.errors import ConfigError, UserError
from visuomotor.data.store import DemoStore
from visuomotor.envs.gym_adapter import GymVecEnv
from visuomotor.envs.registry import make_env
from visuomotor.envs.suites.client import SuiteConfig, SuiteEnv, suite_ids
from visuomotor.envs.suites.demos import SuiteDemos, write_demos
from visuomotor.envs.suites.install import install, install_commands, is_installed, suite_python
from visuomotor.envs.suites.suites import get_suite, split_id
from visuomotor.envs.workers import EnvWorkerError


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return install_toy(monkeypatch, tmp_path)


def walks(n: int = 5, workers: int = 2, id: str = "toy:walk", **kinds: Any) -> SuiteEnv:
    env = make_env(SuiteConfig(id=id, workers=workers, **kinds), n)
    assert isinstance(env, SuiteEnv)
    return env


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for_end(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, pids))


def test_the_same_as_in_this_process_step_by_step(toy: Path) -> None:
    """Seeds, same-step reset, final observations, time limit, pictures and scalars of info, through shared memory."""
    here, there = GymVecEnv([partial(Walk)] * 5, max_episode_steps=7), walks()
    a, b = here.reset(seeds=range(5)), there.reset(seeds=range(5))
    generator, ends = torch.Generator().manual_seed(1), [0, 0]
    for _ in range(20):
        assert {k: v.dtype for k, v in a.items()} == {k: v.dtype for k, v in b.items()}
        assert all(torch.equal(a[k], b[k]) for k in a)
        action = torch.rand(5, 2, generator=generator) * 1.5 - 0.25
        x, y = here.step(action), there.step(action)
        for name in ("reward", "terminated", "truncated"):
            assert torch.equal(getattr(x, name), getattr(y, name)), name
        assert sorted(x.info) == sorted(y.info) == ["distance", "success"]
        assert all(torch.equal(x.info[k], y.info[k]) for k in x.info)
        assert all(torch.equal(x.final_obs[k], y.final_obs[k]) for k in a)
        a, b = x.obs, y.obs
        ends = [ends[0] + int(x.terminated.sum()), ends[1] + int(x.truncated.sum())]
    assert min(ends) > 0
    assert torch.equal(torch.from_numpy(here.render(3)), torch.from_numpy(there.render(3)))
    assert there.obs_spec["picture"].is_image
    assert (there.fps, there.max_episode_steps, there.action_high.tolist()) == (20, 7, [4, 4])
    chunk = there.step_chunk(torch.zeros(5, 3, 2))
    assert chunk.reward.shape == (5, 3)
    there.close()


def test_an_episode_is_a_function_of_its_seed_in_any_number_of_processes(toy: Path) -> None:
    runs = []
    for workers in (1, 3):
        env = walks(3, workers)
        obs = env.reset(seeds=[4, 9, 4])
        step = env.advance(torch.ones(3, 2), torch.tensor([True, False, True]))
        runs.append((obs["position"], step.obs["position"], step.reward))
        env.close()
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))
    first, after, _ = runs[0]
    assert torch.equal(first[0], first[2])
    assert torch.equal(after[0], after[2])
    assert torch.equal(after[1], first[1])  # it was not active


def test_the_experts_act_where_they_are_asked(toy: Path) -> None:
    env = walks(4, 2)
    position = env.reset(seeds=range(4))["position"]
    active = torch.tensor([True, True, True, False])
    want = 0.5 * position.sign() * (position[:, :1] > 0) * active[:, None]
    assert torch.equal(env.expert_action(active), want)
    env.close()
    without = walks(1, 1, "toy:still")
    with pytest.raises(UserError, match="no scripted expert"):
        without.expert_action(torch.ones(1, dtype=torch.bool))
    without.reset(seeds=[0])
    with pytest.raises(EnvWorkerError, match=r"expected a picture"):
        without.render(0)


def test_an_exception_in_the_suite_is_one_error_with_its_traceback(toy: Path) -> None:
    env = walks()
    env.reset(seeds=range(5))
    action = torch.zeros(5, 2)
    action[4] = 200.0
    with pytest.raises(EnvWorkerError, match=r"toy:walk, worlds 2 to 4, failed: ValueError: the motor is on") as caught:
        env.step(action)
    assert "toys.py" in caught.value.__notes__[0]
    with pytest.raises(EnvWorkerError, match="closed"):
        env.step(action)
    with pytest.raises(EnvWorkerError, match="no environment 'run' in this suite"):
        walks(id="toy:run")
    with pytest.raises(EnvWorkerError, match="unexpected keyword argument 'colour'"):
        walks(settings={"colour": "red"})


@pytest.mark.parametrize("when", ["in a step", "between steps"])
def test_a_killed_worker_is_one_error_and_nothing_is_left(toy: Path, when: str) -> None:
    shared, descriptors = set(os.listdir("/dev/shm")), len(os.listdir("/proc/self/fd"))
    env = walks(2, 2, settings={"tripwire": "die"})
    env.reset(seeds=[0, 1])
    processes = [p.process for p in env._suite_worlds.processes]
    action = torch.zeros(2, 2)
    if when == "in a step":
        action[1] = 200.0
    else:
        processes[1].kill()
    with pytest.raises(EnvWorkerError, match=r"worlds 1 to 1, died with signal 9 \(SIGKILL\)"):
        env.step(action)
    assert all(p.returncode is not None for p in processes)
    del env
    gc.collect()
    assert set(os.listdir("/dev/shm")) <= shared
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_a_worker_that_never_answers_is_given_up(toy: Path) -> None:
    env = walks(1, 1, "toy:still")
    env.close()
    with pytest.raises(EnvWorkerError, match=r"did not answer within 2 s \(timeout_s\)"):
        walks(1, 1, "toy:slow", timeout_s=2.0)  # it is stepped once to see what it reports


def test_workers_end_with_their_parent_even_in_the_middle_of_a_step(toy: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys; from pathlib import Path\n"
        "from visuomotor.envs.suites import process\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r}); from suite_fixtures import TOY\n"
        "for stuck in (False, True):\n"
        "    p = process.SuiteProcess(TOY, os.memfd_create('m'), gl=None, timeout_s=60, what='w')\n"
        "    p.order('make', id='slow', count=1, limit=None, images=[], image_size=8, settings={}); p.result()\n"
        "    if stuck: p.order('describe')\n"
        "    print(p.process.pid, flush=True); globals()[f'keep{stuck}'] = p\n"
        "import time; time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        time.sleep(0.2)
        assert all(map(alive, pids))
        parent.send_signal(signal.SIGKILL)
    wait_for_end(pids)


def test_demonstrations_are_successes_in_the_order_of_their_seeds(toy: Path, tmp_path: Path) -> None:
    env = SuiteConfig(id="toy:walk", workers=1, max_episode_steps=30)
    whole, parts = tmp_path / "whole.zarr", tmp_path / "parts.zarr"
    tally = write_demos(SuiteDemos(out=str(whole), episodes=5, num_envs=3, env=env, hold=0))
    assert tally.kept == 5
    assert tally.tried > 5  # those that begin on the left never arrive
    write_demos(SuiteDemos(out=str(parts), episodes=2, num_envs=2, env=env, hold=0))
    again = write_demos(SuiteDemos(out=str(parts), episodes=5, num_envs=1, env=env, hold=0))
    assert again == tally
    with DemoStore.open(whole) as a, DemoStore.open(parts) as b:
        assert a.episode_columns["seed"].tolist() == b.episode_columns["seed"].tolist()
        assert a.episode_columns["success"].all()
        assert a.fps == 20
        assert set(a.specs) == {"position", "picture", "action", "reward"}
        for key in a.specs:
            assert (a.read(key, 0, a.n_steps) == b.read(key, 0, b.n_steps)).all(), key
        last = a.read("reward", 0, a.n_steps)[a.episode_ends - 1]
        assert (last > 1).all()  # the reward is the distance in thirds
    with pytest.raises(ConfigError, match="give another out="):
        write_demos(SuiteDemos(out=str(whole), episodes=6, num_envs=1, env=env, hold=1))
    with pytest.raises(ConfigError, match="no scripted expert"):
        write_demos(SuiteDemos(out=str(tmp_path / "x.zarr"), env=SuiteConfig(id="toy:still", workers=1)))


def test_a_suite_that_is_not_there_says_what_installs_it(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert suite_python(TOY) == toy / "toy" / "bin" / "python"
    assert suite_ids(TOY) == ["toy:slow", "toy:still", "toy:walk"]
    with pytest.raises(ConfigError, match=r"'metaworld' is not installed in .*: visuomotor envs install metaworld"):
        SuiteEnv(SuiteConfig(id="metaworld:reach-v3"), 1)
    (toy / "toy" / "visuomotor.json").write_text('{"pip": [["toy==0.9"]]}')  # made by an older version
    assert not is_installed(TOY)
    venv, pip = install_commands(TOY)
    assert venv[1:] == ["-m", "venv", str(toy / "toy")]
    assert pip == [str(toy / "toy/bin/python"), "-m", "pip", "install", "--disable-pip-version-check", "toy==1.0"]
    monkeypatch.setattr("visuomotor.envs.suites.install.install_commands", lambda suite: [["true"], ["false"]])
    shown: list[str] = []
    with pytest.raises(UserError, match="false ended with status 1"):
        install(TOY, shown.append)
    assert shown == ["true", "false"]
    assert not is_installed(TOY)
    monkeypatch.setattr("visuomotor.envs.suites.install.install_commands", lambda suite: [["true"]])
    install(TOY, shown.append)
    assert is_installed(TOY)


def test_settings_are_checked() -> None:
    for wrong, said in (("reach-v3", "<suite>:<environment>"), ("metawrld:x", "Did you mean 'metaworld'|Known")):
        with pytest.raises(ConfigError, match=said):
            SuiteConfig(id=wrong)
    assert split_id("metaworld:reach-v3") == (get_suite("metaworld"), "reach-v3")
    with pytest.raises(ConfigError, match=r"env\.id is missing"):
        make_env(SuiteConfig(), 1)
    with pytest.raises(ConfigError, match="image_size=2"):
        SuiteConfig(image_size=2)
    with pytest.raises(ConfigError, match="names a camera twice"):
        SuiteConfig(images=["top", "top"])


@pytest.mark.skipif(not is_installed(get_suite("metaworld")), reason="visuomotor envs install metaworld")
def test_a_task_of_meta_world_and_its_expert(tmp_path: Path) -> None:
    assert len(suite_ids(get_suite("metaworld"))) == 50
    env = SuiteConfig(id="metaworld:reach-v3", workers=1, images=["corner2"], gl="osmesa")
    tally = write_demos(SuiteDemos(out=str(tmp_path / "reach.zarr"), episodes=2, num_envs=2, env=env))
    assert tally.kept == 2
    with DemoStore.open(tmp_path / "reach.zarr") as store:
        assert store.specs["state"].shape == (39,)
        goals = store.read("state", 0, store.n_steps)[:, 36:]
        assert (goals[0] == goals[store.episode_ends[0] - 1]).all()
        assert (goals[0] != goals[-1]).any()
        assert store.read("corner2", 0, 1).std() > 10
