"""Known prefixes (training-time real-time chunking) through every backbone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from visuomotor.configs.registry import backbones
from visuomotor.policies.base import Backbone, ChunkSizes, NetSizes, Observed
from visuomotor.policies.conditioned import ConditionedNet, Prefix
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.diffusion import DiffusionConfig, DiffusionHead

H, DA = 8, 2
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"width": 64, "depth": 2, "dropout": 0.0},
    "unet": {"dims": [16, 32], "groups": 4},
    "dit": {"width": 32, "layers": 2, "dropout": 0.0},
    "transformer": {"width": 32, "encoder_layers": 0, "decoder_layers": 2, "dropout": 0.0},
}


def _build(name: str, *, awake: float = 0.0) -> tuple[Backbone, DiffusionHead]:
    torch.manual_seed(0)
    sizes = NetSizes(input_dim=DA + DA + 1, output_dim=DA, horizon=H, n_obs=1, feature_dim=1)
    entry = backbones()[name]
    net: Backbone = entry.build(entry.config_class(**SMALL[name]), sizes)
    if awake:
        for p in net.parameters():
            torch.nn.init.normal_(p, std=awake)
    chunk = ChunkSizes(action_dim=DA, horizon=H, n_obs=1, feature_dim=1)
    return net, DiffusionHead(DiffusionConfig(sample_steps=8), chunk)


def _first(n: int, batch: int) -> torch.Tensor:
    """Mask ``[batch, H]`` of the first ``n`` steps."""
    return torch.arange(H).expand(batch, H) < n


def _bound(net, head, seen, prefix):
    return ConditionedNet(net, head, seen, prefix_dim=DA, prefix=prefix)


@pytest.mark.parametrize("name", SMALL)
def test_a_prefix_of_nothing_is_no_prefix(name):
    net, head = _build(name, awake=0.2)
    seen, x, t = Observed(torch.randn(3, 1, 1)), torch.randn(3, H, DA), torch.tensor([5, 50, 99])
    none = _bound(net, head, seen, None)(x, t)
    empty = _bound(net, head, seen, Prefix(torch.randn(3, H, DA), _first(0, 3)))(x, t)
    assert torch.allclose(none, empty, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_what_is_known_replaces_the_noise_and_reaches_the_other_steps(name):
    net, head = _build(name, awake=0.2)
    seen, x, t = Observed(torch.randn(3, 1, 1)), torch.randn(3, H, DA), torch.tensor([5, 50, 99])
    mask, action = _first(3, 3), torch.randn(3, H, DA)
    out = _bound(net, head, seen, Prefix(action, mask))(x, t)
    other = torch.randn_like(x)
    noise_there = _bound(net, head, seen, Prefix(action, mask))(torch.where(mask[..., None], other, x), t)
    assert torch.equal(noise_there, out)
    rest = _bound(net, head, seen, Prefix(torch.where(mask[..., None], action, other), mask))(x, t)
    assert torch.equal(rest, out)
    changed = _bound(net, head, seen, Prefix(torch.where(mask[..., None], other, action), mask))(x, t)
    assert float((changed - out)[:, 3:].detach().abs().max()) > 1e-3


@pytest.mark.parametrize("name", SMALL)
def test_each_row_has_its_own_prefix_at_every_time(name):
    net, head = _build(name, awake=0.2)
    net.requires_grad_(False)
    seen, x, action = Observed(torch.randn(3, 1, 1)), torch.randn(3, H, DA), torch.randn(3, H, DA)
    mask = torch.arange(H) < torch.tensor([0, 2, 5])[:, None]
    net_all, times = _bound(net, head, seen, Prefix(action, mask)), torch.tensor([99, 30, 0])
    for t, at_t in zip(times, net_all.at(times), strict=True):
        out = at_t(x)
        assert torch.allclose(out, net_all(x, t.expand(3)), rtol=1e-4, atol=1e-3)
        for i in range(3):
            alone = _bound(net, head, Observed(seen.features[i : i + 1]), Prefix(action[i : i + 1], mask[i : i + 1]))
            assert torch.allclose(alone(x[i : i + 1], t[None]), out[i : i + 1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", SMALL)
def test_a_trained_chunk_goes_on_from_its_prefix(name):
    # Chunks of two modes, all 0.7 or all -0.7: which one it is can only be known from the first two steps.
    net, head = _build(name)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    draws, n = Draws(0), 32
    seen = Observed(torch.zeros(n, 1, 1))
    for step in range(120):
        draws.reseed(0, step)
        sign = (torch.arange(n) % 2 * 2.0 - 1.0).view(n, 1, 1).expand(n, H, DA)
        prefix = Prefix(0.7 * sign, _first(2, n) & (torch.arange(n) % 3 > 0)[:, None])
        per_step = head.loss(_bound(net, head, seen, prefix), 0.7 * sign, draws)
        loss = (per_step * ~prefix.mask).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    noise = torch.randn((n, head.noise_count(), H, DA), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        free = head.sample(_bound(net, head, seen, None), noise)[..., 0].mean(1)
        held = head.sample(_bound(net, head, seen, Prefix(0.7 * sign, _first(2, n))), noise)
    assert 0.15 < float((free > 0).float().mean()) < 0.85  # both modes
    assert float((held[:, 2:] - 0.7 * sign[:, 2:]).abs().mean()) < 0.15
