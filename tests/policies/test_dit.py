"""DiT: AdaLN-zero as published, tokens, and a time for every step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import Known, NetSizes, Observed
from visuomotor.policies.nets.attention import SelfAttention, attend
from visuomotor.policies.nets.dit import DiT, DiTConfig

SIZES = NetSizes(input_dim=2, output_dim=2, horizon=4, n_obs=1, feature_dim=3, token_dim=6)


def _dit(*, awake=False, **settings):
    torch.manual_seed(0)
    net = DiT(DiTConfig(**{"width": 16, "layers": 2, "heads": 2, "dropout": 0.0, **settings}), SIZES)
    if awake:
        for p in net.parameters():
            nn.init.normal_(p, std=0.2)
    return net


def _seen(batch):
    return Observed(torch.randn(batch, 1, 3), torch.randn(batch, 5, 6))


def test_attention_by_hand():
    # One head of one value, queries 1 and 0: scores (ln 3, 0) weigh the values 3 : 1, scores (0, 0) 1 : 1.
    q = torch.tensor([[[[1.0], [0.0]]]])
    k = torch.tensor([[[[3.0], [1.0]]]]).log()
    v = torch.tensor([[[[4.0], [8.0]]]])
    mask = torch.tensor([[True, False], [True, True]])
    for explicit in (True, False):
        assert attend(q, k, v, explicit=explicit).flatten().tolist() == pytest.approx([5.0, 6.0])
        assert attend(q, k, v, explicit=explicit, mask=mask).flatten().tolist() == pytest.approx([4.0, 6.0])
        assert attend(q, k, v, explicit=explicit, causal=True).flatten().tolist() == pytest.approx([4.0, 6.0])


def test_fresh_layers_pass_their_input_on():
    net = _dit()
    before, after = [], []
    net.blocks[0].register_forward_pre_hook(lambda _m, inputs: before.append(inputs[0]))
    net.blocks[-1].register_forward_hook(lambda _m, _inputs, out: after.append(out))
    net(torch.randn(3, 4, 2), torch.tensor([1, 2, 3]), net.condition(_seen(3)))
    assert torch.equal(before[0], after[0])


def test_a_fresh_modulation_scales_by_one_and_does_nothing_else():
    *layers, out = _dit()._per_layer(_dit().modulation(torch.tensor([5]), torch.randn(1, 16)), None)
    assert [[float(p.detach().unique()) for p in layer] for layer in layers] == [[0, 1, 0, 0, 1, 0]] * 2
    assert [float(p.detach().unique()) for p in out] == [0, 1]


def test_known_steps_are_modulated_as_if_they_were_clean():
    net, x, seen = _dit(awake=True), torch.randn(3, 4, 2), _seen(3)
    condition = net.condition(seen)
    noisy, clean = (net.modulation(torch.full((3,), t), condition.vector) for t in (90, 0))
    none, some, every = (torch.arange(4).expand(3, 4) < n for n in (0, 2, 4))

    def run(modulation, mask):
        return net.denoise(x, modulation, condition.memory, None if mask is None else Known(mask, clean))

    assert torch.equal(run(noisy, none), run(noisy, None))
    assert torch.equal(run(noisy, every), run(clean, None))
    mixed = run(noisy, some)
    assert not torch.allclose(mixed, run(noisy, None), atol=1e-3)
    assert not torch.allclose(mixed, run(clean, None), atol=1e-3)


def test_tokens_are_a_set_of_any_size_and_matter():
    net, x, t = _dit(awake=True), torch.randn(2, 4, 2), torch.tensor([3, 4])
    features, tokens = _seen(2)
    out = net(x, t, net.condition(Observed(features, tokens)))
    turned = net(x, t, net.condition(Observed(features, tokens.flip(1))))
    assert torch.allclose(out, turned, atol=1e-4)
    fewer = net(x, t, net.condition(Observed(features, tokens[:, :2])))
    assert not torch.allclose(out, fewer, atol=1e-3)


def test_normalised_queries_and_keys_bound_the_scores():
    torch.manual_seed(0)
    attention = SelfAttention(16, 2, qk_norm=True)
    x = torch.randn(2, 4, 16)
    with torch.no_grad():
        attention.qkv.weight[:32] *= 1000.0  # queries and keys
    loud = attention(x, explicit=True)
    with torch.no_grad():
        attention.qkv.weight[:32] /= 10.0
    assert torch.allclose(attention(x, explicit=True), loud, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"width": 30}, "width 30 and heads 4"),
        ({"heads": 0}, "heads 0"),
        ({"layers": 0}, "layers 0"),
        ({"dropout": 1.0}, r"dropout 1.0 is outside \[0, 1\)"),
        ({"time_dim": 7}, "time_dim 7"),
    ],
)
def test_settings_are_checked(settings, says):
    with pytest.raises(ConfigError, match=f"backbone dit: .*{says}"):
        DiTConfig(**settings)
