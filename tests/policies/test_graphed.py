"""The recorded step: its random numbers are those of an ordinary one, and on a GPU so is its result."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator

from visuomotor.data.batches import Batch
from visuomotor.data.errors import ConfigError
from visuomotor.policies.draws import Draws
from visuomotor.policies.learn.events import GracefulStop
from visuomotor.policies.learn.graphed import GraphedStep, StaticDraws
from visuomotor.policies.learn.imitation import Trainer, TrainingConfig
from visuomotor.policies.learn.optim import EMAConfig, OptimConfig


def _ask(draws):
    return [draws.normal((4, 2)), draws.uniform((4,)), draws.integers(0, 100, (4,))]


@pytest.mark.parametrize("rank", [0, 1])
def test_static_draws_are_the_same_numbers_at_the_same_addresses(rank):
    static = StaticDraws(0, rank=rank, world_size=2)
    first = _ask(static)
    for step in range(1, 4):
        static.reseed(7, step)
        again = _ask(static)
        expected = _ask(Draws(7, step, rank=rank, world_size=2))
        assert all(a is b for a, b in zip(first, again, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


def test_a_step_that_asks_for_something_else_is_refused():
    static = StaticDraws(0)
    static.normal((4, 2))
    static.reseed(1)
    with pytest.raises(RuntimeError, match=r"\(4, 3\).*\(4, 2\)"):
        static.normal((4, 3))


def test_a_graph_needs_a_gpu(make_policy):
    policy, source = make_policy()
    with pytest.raises(ConfigError, match=r"cuda_graph=true.*on cpu"):
        _trainer(policy, source, Accelerator(cpu=True), cuda_graph=True)


def test_a_step_that_cannot_be_recorded_is_refused_with_the_reason(monkeypatch):
    for name in ("Stream", "CUDAGraph", "graph"):  # as on a GPU, where PyTorch refuses some operations in a recording
        monkeypatch.setattr(torch.cuda, name, lambda *_: nullcontext())
    step = GraphedStep(_looks_at_a_value)
    monkeypatch.setattr("visuomotor.policies.learn.graphed._WARMUP", 0)
    with pytest.raises(ConfigError, match=r"train.cuda_graph=false: operation not permitted$"):
        step(Batch({}, torch.zeros(1, 1, 1), torch.zeros(1, 1, dtype=torch.bool)))


def _looks_at_a_value(_batch):
    raise RuntimeError("operation not permitted\nCompile with TORCH_USE_CUDA_DSA")


def _trainer(policy, source, accelerator, *, cuda_graph):
    return Trainer(
        policy, source, config=TrainingConfig(steps=12, batch_size=16, precision="fp32", cuda_graph=cuda_graph),
        optim=OptimConfig(lr=1e-3, warmup_steps=3), ema=EMAConfig(), accelerator=accelerator, seed=0,
    )  # fmt: skip


@pytest.mark.gpu
def test_a_replayed_step_is_an_ordinary_step(make_policy):
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    weights = []
    for cuda_graph in (False, True):
        policy, source = make_policy()
        trainer = _trainer(policy, source, Accelerator(), cuda_graph=cuda_graph)
        with GracefulStop() as stop:
            trainer.run([], stop)
        weights.append(trainer.ema.module.state_dict())
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=1e-5), name
