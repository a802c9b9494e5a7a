"""Schedule, clipping, weight decay groups and moving average, against arithmetic."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from visuomotor.data.errors import ConfigError
from visuomotor.policies.learn.optim import (
    EMA,
    EMAConfig,
    OptimConfig,
    clip_gradients,
    learning_rate,
    make_optimizer,
    set_learning_rate,
)


def test_learning_rate_by_hand():
    rate = [learning_rate(s, base=1.0, warmup_steps=4, total_steps=12) for s in range(12)]
    assert rate[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rate[4] == 1.0  # the cosine begins at its top
    assert rate[8] == pytest.approx(0.5)  # half way
    assert rate[11] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert all(a > b for a, b in itertools.pairwise(rate[4:]))


def test_gradients_are_clipped_to_the_norm():
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    p.grad, q.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert float(clip_gradients([p, q], 1.0)) == pytest.approx(5.0)
    assert p.grad.tolist() == pytest.approx([0.6, 0.0], abs=1e-5)
    assert q.grad.tolist() == pytest.approx([0.8], abs=1e-5)
    p.grad, q.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    clip_gradients([p, q], None)
    assert q.grad.tolist() == [4.0]


def test_ema_by_hand():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.0)
    ema = EMA(net, EMAConfig(max_decay=0.5, power=0.75))
    nn.init.constant_(net.weight, 8.0)
    ema.update(ema.weight(0))  # decay 1 - 1 = 0: copies
    assert float(ema.module.weight) == 8.0
    nn.init.constant_(net.weight, 0.0)
    ema.update(ema.weight(1))  # decay 1 - 2^-0.75 = 0.405396
    assert float(ema.module.weight) == pytest.approx(8.0 * 0.4053964, rel=1e-5)
    ema.update(torch.tensor(ema.weight(10**6)))  # capped at 0.5
    assert float(ema.module.weight) == pytest.approx(4.0 * 0.4053964, rel=1e-5)
    assert not ema.module.weight.requires_grad


def test_only_matrices_decay():
    net = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 2))
    net.register_parameter("queries", nn.Parameter(torch.zeros(5, 3)))
    groups = make_optimizer(net, OptimConfig(weight_decay=0.1)).param_groups
    assert [(g["weight_decay"], [tuple(p.shape) for p in g["params"]]) for g in groups] == [
        (0.1, [(2, 3)]),
        (0.0, [(5, 3), (7, 3), (2,)]),
    ]


@pytest.mark.parametrize("bad", [{"lr": 0.0}, {"betas": [0.9]}, {"betas": [0.9, 1.0]}, {"grad_clip": -1.0}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        OptimConfig(**bad)


def test_the_encoder_learns_at_its_own_rate():
    net = torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, 2), "backbone": torch.nn.Linear(2, 2)})
    optimizer = make_optimizer(net, OptimConfig(lr=1e-2, encoder_lr_scale=0.1, weight_decay=0.0))
    set_learning_rate(optimizer, 1e-3)  # as a schedule does
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert [rates[id(p)] for p in net.parameters()] == pytest.approx([1e-4, 1e-4, 1e-3, 1e-3])
    before = [p.detach().clone() for p in net.parameters()]
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()  # Adam's first step is the rate, whatever the gradient
    moved = [float((b - p.detach()).abs().max()) for b, p in zip(before, net.parameters(), strict=True)]
    assert moved == pytest.approx([1e-4, 1e-4, 1e-3, 1e-3], rel=1e-3)
