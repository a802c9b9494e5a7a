"""Two chunks are equally good, whatever is observed: which heads keep both, and which average them.

The chunk is +1 or -1 throughout, with probability 1/2 each. Every head is trained for seconds with the same network.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from visuomotor.configs.registry import heads
from visuomotor.policies.base import ChunkSizes, Head, NetSizes, Observed
from visuomotor.policies.conditioned import ConditionedNet
from visuomotor.policies.draws import Draws
from visuomotor.policies.nets.mlp import MLPConfig, ResidualMLP

H, STEPS, BATCH, LR = 4, 300, 64, 3e-3
KEEPS_BOTH = ("diffusion", "flow", "edm", "meanflow", "shortcut", "gmm", "energy", "carp")
AVERAGES = ("regression", "mip", "gaussian")  # Gaussian: what it executes, the mean
ONE_ANSWER = (*AVERAGES, "act")  # ACT acts with the mean of its latent: one chunk, though not the average
LONGER = {"meanflow": 3, "shortcut": 2}  # times the steps: one jump has to learn what others do in ten
SMALL: dict[str, dict[str, Any]] = {"carp": {"codes": 8}, "act": {"width": 16, "layers": 1}}


@cache
def _train(name: str) -> tuple[Head, ResidualMLP]:
    entry = heads()[name]
    torch.manual_seed(0)
    sizes = ChunkSizes(action_dim=1, horizon=H, n_obs=1, feature_dim=2)
    head = entry.build(entry.config_class(**SMALL.get(name, {})), sizes)
    net = ResidualMLP(
        MLPConfig(width=64, depth=2, dropout=0.0),
        NetSizes(
            input_dim=head.input_dim, output_dim=head.output_dim, horizon=H, n_obs=1, feature_dim=2,
            n_times=head.n_times, time_scale=head.time_scale,
        ),
    )  # fmt: skip
    parameters = [*net.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LR)
    g = torch.Generator().manual_seed(0)
    head.fit(_chunks(1000, g))
    steps = STEPS * LONGER.get(name, 1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 - step / steps)
        seen = Observed(torch.randn(BATCH, 1, 2, generator=g))
        loss = head.loss(ConditionedNet(net, head, seen), _chunks(BATCH, g), Draws(0, step)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return head.eval(), net.eval()


def _chunks(n: int, generator: torch.Generator) -> Tensor:
    sign = torch.where(torch.rand(n, 1, 1, generator=generator) < 0.5, -1.0, 1.0)
    return sign.expand(n, H, 1).contiguous()


def _sample(name: str, seen: Observed) -> Tensor:
    head, net = _train(name)
    noise = torch.randn(len(seen.features), head.noise_count(), H, 1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return head.sample(ConditionedNet(net, head, seen), noise)[..., 0]  # [n, H]


def _one_observation(n: int) -> Observed:
    return Observed(torch.tensor([0.3, -0.7]).expand(n, 1, 2))


def test_every_head_is_named_here():
    assert {*KEEPS_BOTH, *ONE_ANSWER} == set(heads())


@pytest.mark.parametrize("name", KEEPS_BOTH)
def test_generative_heads_keep_both_modes(name):
    out = _sample(name, _one_observation(400))
    near = {sign: ((out - sign).abs().amax(1) < 0.35).float().mean().item() for sign in (-1.0, 1.0)}
    assert min(near.values()) >= 0.25, near
    assert sum(near.values()) >= 0.8, near  # few in between, and no chunk that jumps from one to the other


@pytest.mark.parametrize("name", AVERAGES)
def test_regression_averages_them(name):
    out = _sample(name, Observed(torch.randn(400, 1, 2, generator=torch.Generator().manual_seed(2))))
    assert out.abs().mean() < 0.25


@pytest.mark.parametrize("name", ONE_ANSWER)
def test_a_head_without_noise_has_one_answer(name):
    out = _sample(name, _one_observation(50))
    assert torch.allclose(out, out[:1].expand_as(out), atol=1e-5)


def test_the_energy_is_least_at_the_modes():
    head, net = _train("energy")
    chunks = torch.stack([torch.full((H, 1), v) for v in (-1.0, 0.0, 1.0, 2.0)])
    energy = head.uncertainty(ConditionedNet(net, head, _one_observation(4)), chunks)
    assert max(energy[0], energy[2]) < min(energy[1], energy[3])


def test_the_density_of_a_mixture_is_greatest_at_the_modes():
    head, net = _train("gmm")
    chunks = torch.stack([torch.full((H, 1), v) for v in (-1.0, 0.0, 1.0, 2.0)])
    with torch.no_grad():
        surprise = head.uncertainty(ConditionedNet(net, head, _one_observation(4)), chunks)
    assert max(surprise[0], surprise[2]) < min(surprise[1], surprise[3])
