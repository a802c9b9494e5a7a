"""A trained policy behind the server: the same chunks as beside the robot."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from visuomotor.configs.build import load_policy
from visuomotor.configs.cli import main
from visuomotor.configs.deploy_config import DeployConfig
from visuomotor.configs.deploy_policy import choose
from visuomotor.data.errors import CheckpointError, ConfigError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.policies.execution.build import make_actor
from visuomotor.policies.execution.config import ExecuteConfig
from visuomotor.sim2real.remote.client import ClientConfig, RemoteSource
from visuomotor.sim2real.remote.policy_source import PolicySource
from visuomotor.sim2real.remote.source import PlanRequest


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A flow policy that was trained for a few steps to follow points of a plane."""
    folder = tmp_path_factory.mktemp("serve")
    specs = {"qpos": ArraySpec(shape=(2,), role="observation"), "action": ArraySpec(shape=(2,), role="action")}
    with DemoStore.create(folder / "reach.zarr", specs, fps=20) as store:
        for start in np.random.default_rng(0).uniform(-1, 1, (4, 2)):
            path = (start * np.linspace(1, 0, 41)[:, None]).astype(np.float32)
            store.append_episode({"qpos": path[:-1], "action": path[1:]})
    words = [
        "train", f"data={folder / 'reach.zarr'}", "obs.keys=[qpos]", "policy=flow", "backbone.width=16",
        "backbone.depth=1", "train.batch_size=16", "train.steps=8", "threads=1", "device=cpu", "loss.max_delay=2",
        f"run_dir={folder / 'run'}",
    ]  # fmt: skip
    assert main(words) == 0
    return folder / "run"


def ask(seed: int = 3, plan: int = 0, **changes) -> PlanRequest:
    obs = {"qpos": np.array([[0.1 * seed, 0.2], [0.3, 0.4]], np.float32)}
    return replace(PlanRequest(obs=obs, previous=None, seed=seed, plan=plan, deadline_s=30.0), **changes)


def test_the_chunk_is_the_one_that_evaluation_would_execute(run):
    policy = load_policy(run).policy
    actor = make_actor(policy, num_envs=1)
    actor.reset([3])
    obs = np.array([0.3, 0.4], np.float32)
    n = policy.spec.window.n_exec
    acted = torch.cat([actor.act({"qpos": torch.from_numpy(obs)[None]}) for _ in range(n)]).numpy()
    chunk = PolicySource(policy).plan(ask(obs={"qpos": np.stack([obs, obs])}))
    present = policy.spec.window.n_obs - 1
    np.testing.assert_allclose(chunk[present : present + n], acted, atol=1e-6)


def test_together_is_as_alone_and_the_noise_is_of_seed_and_plan(run):
    source = PolicySource(load_policy(run).policy)
    requests = [ask(seed=i, plan=i % 2) for i in range(5)]
    together = source.plan_many(requests)
    for one, request in zip(together, requests, strict=True):
        np.testing.assert_allclose(one, source.plan(request), atol=1e-5)
    assert np.abs(source.plan(ask(plan=0)) - source.plan(ask(plan=1))).max() > 1e-4
    assert source.plan_many([]) == []


def test_actions_that_are_certain_are_repeated_whatever_the_delay(run):
    source = PolicySource(load_policy(run).policy, ExecuteConfig(mode="rtc", delay=1))
    horizon, present = source.spec.window.horizon, source.spec.window.n_obs - 1
    previous = np.linspace(-0.2, 0.2, 2 * horizon, dtype=np.float32).reshape(horizon, 2)
    delays = {0: 1, 1: 1, 2: 2, 7: 2}  # trained for two
    chunks = source.plan_many([ask(previous=previous, delay=d) for d in delays])
    for chunk, known in zip(chunks, delays.values(), strict=True):
        same = (np.abs(chunk - previous) < 1e-5).all(axis=1)
        assert same.tolist()[: present + known + 1] == [True] * (present + known) + [False]
    free = source.plan(ask(delay=2))  # an episode that begins has no previous chunk
    assert not np.isclose(free, previous, atol=1e-5).all(1).any()


def test_what_the_policy_cannot_do_is_refused_when_the_server_starts(run):
    with pytest.raises(ConfigError, match="trained for delays up to 2"):
        PolicySource(load_policy(run).policy, ExecuteConfig(mode="rtc", delay=3))


def test_the_command_serves_a_checkpoint_and_ends_on_a_signal(run):
    command = [sys.executable, "-m", "visuomotor.configs.cli", "serve", f"checkpoint={run}", "port=0", "threads=1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        (url,) = re.findall(r"at (ws://\S+)", line)
        client = RemoteSource(ClientConfig(url=url))
        policy = load_policy(run).policy
        assert client.spec.to_dict() == policy.spec.to_dict()
        assert client.about["execute"]["mode"] == "receding"
        assert client.about["task"] is None
        there = client.plan(ask())
        assert there is not None
        np.testing.assert_allclose(there, PolicySource(policy).plan(ask()), atol=1e-6)
        other = replace(policy.spec, obs={"qvel": policy.spec.obs["qpos"]})
        with pytest.raises(CheckpointError, match="another policy: obs"):
            RemoteSource(ClientConfig(url=url), other)
        client.close()
        chosen = choose(DeployConfig(url=url))  # as visuomotor deploy does
        again = chosen.source.plan(ask())
        chosen.source.close()
        np.testing.assert_array_equal(again, there)
        assert chosen.about["checkpoint"].startswith(str(run))
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert rest.splitlines()[-1].startswith("2 chunks")
        assert rest.splitlines()[-1].endswith("1 refused")
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["checkpoint=x", "host=0.0.0.0"], "lets other machines in"),
        (["checkpoint=nowhere"], "nowhere"),
        ([f"token={'1' * 15}", "checkpoint=x"], "15 characters"),
        (["tokn=x"], "token"),
        (["checkpoint=x", "device=gpu"], "expected auto, cpu or cuda"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(words, says, capsys, monkeypatch):
    monkeypatch.delenv("VISUOMOTOR_TOKEN", raising=False)
    assert main(["serve", *words]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
