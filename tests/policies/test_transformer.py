"""Encoder-decoder transformer: memory, time token, causality, and a time for every step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import Known, NetSizes, Observed
from visuomotor.policies.nets.transformer import Transformer, TransformerConfig

SIZES = NetSizes(input_dim=2, output_dim=3, horizon=4, n_obs=2, feature_dim=3, token_dim=6)


def _net(**settings):
    torch.manual_seed(0)
    small = {"width": 16, "encoder_layers": 1, "decoder_layers": 2, "heads": 2, "dropout": 0.0}
    net = Transformer(TransformerConfig(**{**small, **settings}), SIZES)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return net


def _seen(batch):
    return Observed(torch.randn(batch, 2, 3), torch.randn(batch, 5, 6))


@pytest.mark.parametrize("encoder_layers", [0, 2])
def test_the_memory_has_a_token_a_step_and_the_observed_ones(encoder_layers):
    net = _net(encoder_layers=encoder_layers)
    condition = net.condition(_seen(3))
    assert condition.memory is not None
    assert condition.memory.shape == (3, 2 + 5, 2 * 2 * 16)  # keys and values of two layers
    assert net.modulation(torch.tensor([1, 2, 3]), condition.vector).shape == (3, 2 * 2 * 16)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_a_causal_step_sees_no_later_one(causal, grad):
    net, x, t = _net(causal=causal), torch.randn(2, 4, 2), torch.tensor([1, 50])
    condition = net.condition(_seen(2))
    later = torch.cat([x[:, :3], x[:, 3:] + 1.0], dim=1)
    with torch.set_grad_enabled(grad):
        out, changed = net(x, t, condition), net(later, t, condition)
    assert torch.allclose(out[:, :3], changed[:, :3], atol=1e-6) == causal
    assert not torch.allclose(out[:, 3], changed[:, 3], atol=1e-3)


@pytest.mark.parametrize("grad", [False, True])
def test_known_steps_see_the_time_of_a_clean_chunk(grad):
    net, x, seen = _net(), torch.randn(3, 4, 2), _seen(3)
    condition = net.condition(seen)
    noisy, clean = (net.modulation(torch.full((3,), t), condition.vector) for t in (90, 0))
    none, some, every = (torch.arange(4).expand(3, 4) < n for n in (0, 2, 4))

    def run(modulation, mask):
        with torch.set_grad_enabled(grad):
            return net.denoise(x, modulation, condition.memory, None if mask is None else Known(mask, clean))

    assert torch.allclose(run(noisy, none), run(noisy, None), atol=1e-5)
    assert torch.allclose(run(noisy, every), run(clean, None), atol=1e-5)
    mixed = run(noisy, some)
    assert not torch.allclose(mixed, run(noisy, None), atol=1e-3)
    assert not torch.allclose(mixed, run(clean, None), atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"width": 30}, "width 30 and heads 4"),
        ({"decoder_layers": 0}, "decoder_layers 0"),
        ({"encoder_layers": -1}, "encoder_layers -1"),
        ({"dropout": -0.1}, r"dropout -0.1 is outside \[0, 1\)"),
        ({"feed_factor": 0}, "feed_factor 0"),
    ],
)
def test_settings_are_checked(settings, says):
    with pytest.raises(ConfigError, match=f"backbone transformer: .*{says}"):
        TransformerConfig(**settings)
