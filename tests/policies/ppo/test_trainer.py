"""The whole: resumed bit for bit, and several processes that learn as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from visuomotor.envs.registry import get_task, make_env
from visuomotor.policies.learn.events import GracefulStop
from visuomotor.policies.ppo.trainer import PPOTrainer, UpdateEvent, _unflatten


def run(trainer: PPOTrainer, updates: int) -> list[UpdateEvent]:
    stop, events = GracefulStop(), list[UpdateEvent]()

    def watch(event: UpdateEvent) -> None:
        events.append(event)
        stop.requested = len(events) >= updates - 1  # asked before the last one begins

    stop.requested = updates <= 1
    trainer.run([watch], stop)
    return events


@pytest.mark.parametrize(
    "settings", [{}, {"schedule": "adaptive", "trust_region": 0.05}, {"reuse": 2}], ids=["plain", "adaptive", "reuse"]
)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(make_trainer, settings) -> None:
    def fresh() -> PPOTrainer:
        return make_trainer(make_env(get_task("cartpole").config_class(), 6), **settings)

    whole, broken = fresh(), fresh()
    run(whole, 4)
    run(broken, 2)
    state = {k: {n: v.clone() for n, v in group.items()} for k, group in broken.state().items()}
    resumed = fresh()
    resumed.load_state(state)
    events = run(resumed, 2)
    assert [e.update for e in events] == [3, 4]
    expected, found = whole.state(), resumed.state()
    assert expected.keys() == found.keys()
    for group, tensors in expected.items():
        assert tensors.keys() == found[group].keys()
        for name, value in tensors.items():
            if (group, name) != ("progress", "seconds"):
                assert torch.equal(value, found[group][name]), (group, name)


def test_saved_worlds_come_to_where_the_worlds_are() -> None:
    saved = {"state": torch.ones(2, 3), "model/body_mass": torch.ones(2, 4), "buffer/elapsed": torch.ones(2)}
    found = _unflatten(saved, torch.device("meta"))  # a device that is no CPU
    tensors = [found.sim.state, found.sim.model["body_mass"], found.buffers["elapsed"]]
    assert {x.device.type for x in tensors} == {"meta"}


def test_rewards_are_scaled_by_what_held_before_them(target_env, make_trainer) -> None:
    trainer = make_trainer(target_env(4))
    run(trainer, 1)
    before = trainer.scale.scale.clone()
    assert before > 0
    rollout = trainer.collector.collect(8, trainer._draws, 0, 1, 1)
    scaled = trainer._scaled(rollout)
    torch.testing.assert_close(scaled.reward, rollout.reward / before)
    assert trainer.scale.scale != before


def test_statistics_change_between_updates_only(target_env, make_trainer) -> None:
    trainer = make_trainer(target_env(4))
    now = trainer.likelihood.policy.normalizer.to_dict()
    rollout = trainer.collector.collect(8, trainer._draws, 0, 1, 0)
    trainer.learner.update(rollout, trainer._draws, 0, 2, 0, share_done=0.0)
    assert trainer.likelihood.policy.normalizer.to_dict() == now
    trainer._update_statistics(rollout)
    seen = rollout.obs["state"].flatten()
    stats = trainer.likelihood.policy.normalizer.to_dict()["obs/state"]["stats"]
    assert stats["mean"] == pytest.approx([float(seen.double().mean())])
    frozen = make_trainer(target_env(4), learn_statistics=False)
    run(frozen, 2)
    assert frozen.likelihood.policy.normalizer.to_dict() == now


_PROGRAM = """
import json, sys
import torch
from accelerate import Accelerator
sys.path.insert(0, sys.argv[1])
import conftest
from visuomotor.data.windows import WindowConfig
from visuomotor.policies.learn.events import GracefulStop

torch.set_num_threads(1)
a = Accelerator(cpu=True)
share = 8 // a.num_processes
env = conftest.TargetEnv(share, first=a.process_index * share, length=4)
make = conftest.make_trainer.__wrapped__(conftest.make_likelihood.__wrapped__())
trainer = make(env, accelerator=a, steps=8 * 8 * 3, num_envs=8, lr=3e-3, **json.loads(sys.argv[2]))
seen = []
trainer.run([lambda e: seen.append(dict(e.metrics))], GracefulStop())
if a.is_main_process:
    weights = torch.cat([p.detach().flatten() for m in (trainer.likelihood, trainer.critic) for p in m.parameters()])
    print(json.dumps({"weights": weights.tolist(), "metrics": seen}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"trust_region": 1e-3, "schedule": "adaptive"}], ids=["plain", "region"])
def test_two_processes_learn_as_one_with_twice_the_worlds(tmp_path: Path, settings: dict[str, float]) -> None:
    (tmp_path / "program.py").write_text(_PROGRAM)
    command = [str(tmp_path / "program.py"), str(Path(__file__).parent), json.dumps(settings)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = []
    for launcher in ([], torchrun):
        out = subprocess.run(
            [sys.executable, *launcher, *command], env=env, capture_output=True, text=True, check=False
        )  # fmt: skip
        assert out.returncode == 0, out.stderr
        found.append(json.loads(next(line for line in out.stdout.splitlines() if line.startswith("{"))))
    one, two = found
    assert len(one["metrics"]) == len(two["metrics"]) == 3
    torch.testing.assert_close(torch.tensor(one["weights"]), torch.tensor(two["weights"]), rtol=1e-3, atol=1e-4)
    for a, b in zip(one["metrics"], two["metrics"], strict=True):
        for name in ("env_steps", "finished", "return", "kl", "explained_variance", "value_loss", "lost_samples", "lr"):
            assert a[name] == pytest.approx(b[name], rel=1e-2, abs=1e-4), name
