"""The training loop: it learns, it resumes bit for bit, it stops when asked, and its subscribers are called in time."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator

from visuomotor.configs.registry import heads
from visuomotor.data.errors import CheckpointError, ConfigError
from visuomotor.policies.base import ChunkSizes
from visuomotor.policies.learn.events import GracefulStop, StepEvent, every
from visuomotor.policies.learn.imitation import Trainer, TrainingConfig
from visuomotor.policies.learn.open_loop import open_loop_error
from visuomotor.policies.learn.optim import EMAConfig, OptimConfig

OPTIM = OptimConfig(lr=3e-3, warmup_steps=5)


@pytest.fixture
def make_trainer(make_policy):
    def make(steps=40, seed=3, precision="fp32", compile=False):
        policy, source = make_policy()
        accelerator = Accelerator(cpu=True)
        config = TrainingConfig(steps=steps, batch_size=16, precision=precision, compile=compile, max_val_windows=32)
        return Trainer(
            policy, source, config=config, optim=OPTIM, ema=EMAConfig(), accelerator=accelerator, seed=seed
        ), source

    return make


def _weights(trainer):
    return {f"{k}/{n}": t.clone() for k, group in trainer.state().items() for n, t in group.items()}


def test_learns_and_the_average_follows(make_trainer):
    trainer, source = make_trainer(steps=300)
    losses = []
    before = open_loop_error(trainer.ema.module, source).mae.mean()
    first = trainer.validation_loss(source)
    trainer.run([lambda e: losses.append(float(e.loss))], GracefulStop())
    assert sum(losses[-20:]) < 0.3 * sum(losses[:20])
    assert trainer.validation_loss(source) < 0.3 * first
    assert open_loop_error(trainer.ema.module, source).mae.mean() < 0.5 * before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("at", [1, 7, 39])
def test_resume_is_bit_exact(make_trainer, at, precision):
    whole, _ = make_trainer(precision=precision)
    whole.run([], GracefulStop())
    first, source = make_trainer(precision=precision)

    def interrupt(event: StepEvent) -> None:
        if event.step == at - 1:
            stop.requested = True

    stop = GracefulStop()
    stop.requested = at == 1
    first.run([interrupt], stop)
    assert first.steps_done == at
    state = {k: {n: t.clone() for n, t in group.items()} for k, group in first.state().items()}
    torch.manual_seed(999)  # whatever happened in the other process
    second, source = make_trainer(precision=precision)
    second.load_state(state, at)
    second.validation_loss(source)  # an evaluation in between changes nothing
    second.run([], GracefulStop())
    a, b = _weights(whole), _weights(second)
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


def test_of_very_many_windows_none_beyond_the_last_is_validated(make_trainer):
    trainer, source = make_trainer()

    class ManyWindows:
        def __len__(self):
            return 2**24 + 4  # float32 has no 2^24 + 3

        def gather(self, windows):
            assert int(windows.max()) < len(self)
            return source.gather(windows % len(source))

    assert trainer.validation_loss(ManyWindows()) > 0


def test_two_seeds_differ(make_trainer):
    a, b = make_trainer(steps=3)[0], make_trainer(steps=3, seed=4)[0]
    a.run([], GracefulStop())
    b.run([], GracefulStop())
    assert any(not torch.equal(x, y) for x, y in zip(a.policy.parameters(), b.policy.parameters(), strict=True))


def test_another_network_is_refused(make_trainer):
    trainer, _ = make_trainer(steps=2)
    state = trainer.state()
    name = next(n for n, t in state["policy"].items() if t.ndim == 2)
    state["policy"] = {**state["policy"], name: torch.zeros(1, 1)}
    with pytest.raises(CheckpointError, match="another network"):
        trainer.load_state(state, 1)


def test_every_calls_at_multiples_at_the_end_and_when_stopping():
    def calls(n, steps, stopping_at=None, **kwargs):
        seen = []
        sub = every(n, lambda e: seen.append(e.step), **kwargs)
        zero = torch.zeros(())
        for s in range(1, steps + 1):
            sub(StepEvent(s, 10, zero, zero, 0.0, 1, s == stopping_at))
        return seen

    assert calls(4, 10) == [4, 8, 10]
    assert calls(0, 10) == [10]
    assert calls(4, 6, stopping_at=6) == [4, 6]
    assert calls(4, 6, stopping_at=6, on_stop=False) == [4]


def test_ctrl_c_stops_after_the_step(make_trainer):
    trainer, _ = make_trainer()

    def press(event: StepEvent) -> None:
        if event.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with GracefulStop() as stop:
        trainer.run([press], stop)
    assert stop.requested
    assert trainer.steps_done == 6  # the signal came after step 5 was announced


@pytest.mark.slow
def test_a_compiled_step_learns_the_same(make_trainer):
    plain, compiled = make_trainer(steps=5)[0], make_trainer(steps=5, compile=True)[0]
    for module in (*plain.policy.modules(), *compiled.policy.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # compiled code draws its own random numbers
    plain.run([], GracefulStop())
    compiled.run([], GracefulStop())
    for a, b in zip(plain.policy.parameters(), compiled.policy.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("head", "settings", "compiles"),
    [("energy", {}, False), ("meanflow", {}, False), ("meanflow", {"derivative": "difference"}, True)],
)
def test_a_loss_that_torch_compile_lacks_the_derivatives_for_is_refused(head, settings, compiles, make_policy):
    policy, source = make_policy()
    entry = heads()[head]
    sizes = ChunkSizes(action_dim=2, horizon=16, n_obs=2, feature_dim=policy.encoder.feature_dim)
    policy.head = entry.build(entry.config_class(**settings), sizes)
    with nullcontext() if compiles else pytest.raises(ConfigError, match=r"train\.compile=false"):
        Trainer(
            policy, source, config=TrainingConfig(compile=True), optim=OPTIM, ema=EMAConfig(),
            accelerator=Accelerator(cpu=True), seed=0,
        )  # fmt: skip


@pytest.mark.parametrize("bad", [{"steps": 0}, {"precision": "fp16"}, {"save_every": -1}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        TrainingConfig(**bad)
