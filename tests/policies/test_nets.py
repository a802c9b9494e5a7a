"""Backbones: what all of them promise, whatever they are made of; then what is the U-Net's alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import Backbone, ChunkSizes, NetSizes, Observed
from visuomotor.policies.conditioned import ConditionedNet
from visuomotor.policies.heads.diffusion import DiffusionConfig, DiffusionHead
from visuomotor.policies.nets.attention import positions
from visuomotor.policies.nets.dit import DiT, DiTConfig
from visuomotor.policies.nets.embedding import SinusoidalEmbedding
from visuomotor.policies.nets.mlp import MLPConfig, ResidualMLP
from visuomotor.policies.nets.transformer import Transformer, TransformerConfig
from visuomotor.policies.nets.unet1d import ConditionalUnet1d, UnetConfig

SIZES = NetSizes(input_dim=3, output_dim=3, horizon=16, n_obs=2, feature_dim=5)
BUILD: dict[str, Any] = {
    "mlp": lambda s: ResidualMLP(MLPConfig(width=32, depth=2, dropout=0.0), s),
    "unet": lambda s: ConditionalUnet1d(UnetConfig(dims=[16, 32, 64], groups=4), s),
    "dit": lambda s: DiT(DiTConfig(width=32, layers=2, dropout=0.0), s),
    "transformer": lambda s: Transformer(
        TransformerConfig(width=32, encoder_layers=1, decoder_layers=2, dropout=0.0), s
    ),
}
SEQUENCES = ("dit", "transformer")  # with a token a step


def make(name: str, *, awake: float = 0.2, **sizes: Any) -> Backbone:
    """The backbone ``name``; ``awake`` above 0: weights so large, with no gate closed and no layer at zero."""
    torch.manual_seed(0)
    net: Backbone = BUILD[name](replace(SIZES, **sizes))
    if awake:
        for p in net.parameters():
            nn.init.normal_(p, std=awake)
    return net


def seen(batch: int, *, n_tokens: int = 0) -> Observed:
    return Observed(torch.randn(batch, 2, 5), torch.randn(batch, n_tokens, 6) if n_tokens else None)


def head(n_times: int = 1) -> DiffusionHead:
    out = DiffusionHead(DiffusionConfig(), ChunkSizes(action_dim=3, horizon=16, n_obs=2, feature_dim=5))
    out.n_times = n_times
    return out


@pytest.mark.parametrize("name", BUILD)
def test_output_has_the_shape_of_the_chunk_and_depends_on_all_inputs(name):
    net = make(name)
    x, t, features = torch.randn(4, 16, 3), torch.tensor([0, 10, 50, 99]), torch.randn(4, 2, 5)
    out = net(x, t, net.condition(Observed(features)))
    assert out.shape == (4, 16, 3)
    other = torch.randn_like(features)
    for changed in (
        net(x + torch.randn(3), t, net.condition(Observed(features))),
        net(x, t + 1, net.condition(Observed(features))),
        net(x, t, net.condition(Observed(torch.stack([other[:, 0], features[:, 1]], dim=1)))),
        net(x, t, net.condition(Observed(torch.stack([features[:, 0], other[:, 1]], dim=1)))),
    ):
        assert float((changed - out).detach().abs().min(dim=0).values.max()) > 1e-4


@pytest.mark.parametrize("name", BUILD)
def test_a_row_does_not_depend_on_its_neighbours(name):
    tokens = 3 if name in SEQUENCES else 0
    net = make(name, token_dim=6 if tokens else 0)
    x, t, observed = torch.randn(4, 16, 3), torch.tensor([0, 10, 50, 99]), seen(4, n_tokens=tokens)
    out = net(x, t, net.condition(observed))
    alone = Observed(observed.features[1:2], None if observed.tokens is None else observed.tokens[1:2])
    with torch.no_grad():  # another path through the kernels, too
        assert torch.allclose(net(x[1:2], t[1:2], net.condition(alone)), out[1:2], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize("n_times", [1, 2])
def test_a_grid_of_times_gives_what_single_times_give(name, n_times):
    net = make(name, n_times=n_times).requires_grad_(False)
    bound = ConditionedNet(net, head(n_times), seen(3))
    x = torch.randn(3, 16, 3)
    times = torch.tensor([99, 50, 0]) if n_times == 1 else torch.tensor([[99, 3], [50, 50], [0, 7]])
    for t, at_t in zip(times, bound.at(times), strict=True):
        assert torch.allclose(at_t(x), bound(x, t.expand(3, *times.shape[1:])), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", BUILD)
def test_both_of_two_times_matter(name):
    net, x, observed = make(name, n_times=2), torch.randn(2, 16, 3), seen(2)
    t = torch.tensor([[10.0, 50.0], [20.0, 60.0]])
    out = net(x, t, net.condition(observed))
    for changed in (t + torch.tensor([1.0, 0.0]), t + torch.tensor([0.0, 1.0]), t.flip(1)):
        assert float((net(x, changed, net.condition(observed)) - out).detach().abs().max()) > 1e-4


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize(("horizon", "inp", "out"), [(16, 7, 4), (100, 2, 1), (1, 2, 9)])
def test_any_horizon_and_other_outputs_than_inputs(name, horizon, inp, out):
    if name == "unet" and horizon == 1:
        pytest.skip("a U-Net of three levels needs a multiple of 4 steps")
    net = make(name, awake=0.0, horizon=horizon, input_dim=inp, output_dim=out)
    y, hidden = ConditionedNet(net, head(), seen(2)).with_hidden(torch.randn(2, horizon, inp), torch.tensor([3, 70]))
    assert y.shape == (2, horizon, out)
    assert hidden.ndim == 2
    assert len(hidden) == 2


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize("n_tokens", [0, 3])
def test_every_parameter_gets_a_gradient(name, n_tokens):
    if n_tokens and name not in SEQUENCES:
        pytest.skip("reads no tokens")
    net = make(name, token_dim=6 if n_tokens else 0)
    net(
        torch.randn(2, 16, 3), torch.tensor([1, 2]), net.condition(seen(2, n_tokens=n_tokens))
    ).square().mean().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", BUILD)
def test_a_fresh_network_says_something_about_its_input(name):
    # An energy is trained through its gradient with respect to the chunk: at a network of zeros it would never start.
    net, x = make(name, awake=0.0), torch.randn(2, 16, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(x, torch.tensor([1, 2]), net.condition(seen(2))).square().sum(), x)
    assert float(gradient.abs().min(dim=-1).values.max()) > 0
    assert float(net(x, torch.tensor([1, 2]), net.condition(seen(2))).detach().std()) < 1.5


@pytest.mark.parametrize("name", BUILD)
def test_forward_derivatives_in_chunk_and_time(name):
    # MeanFlow differentiates along (x, t); compared with a difference quotient in float64.
    net, n = make(name, n_times=2, awake=0.1).double(), 2
    observed = Observed(seen(n).features.double())
    x, dx = torch.randn(n, 16, 3).double(), torch.randn(n, 16, 3).double()
    t, dt = torch.rand(n, 2).double(), torch.tensor([[0.0, 1.0]]).double().expand(n, 2)
    condition = net.condition(observed)
    # Sinusoids are float32 whatever the rest is, so the network gets embedded times of its own precision.
    for embedding in (m for m in net.modules() if isinstance(m, SinusoidalEmbedding)):
        embedding.register_forward_hook(lambda _m, _inputs, out: out.double())

    def along(s):
        return net(x + s * dx, t + s * dt, condition)

    out, slope = torch.func.jvp(lambda x, t: net(x, t, condition), (x, t), (dx, dt))[:2]
    assert torch.allclose(out, along(0.0), atol=1e-9)
    h = 1e-2  # the embedding's float32 sets how small it can be
    assert torch.allclose(slope, (along(h) - along(-h)) / (2 * h), rtol=2e-2, atol=2e-3)
    out.square().mean().backward()  # and the loss has a gradient as usual
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("name", BUILD)
def test_second_derivatives(name):
    # An energy head's loss contains a gradient with respect to the chunk, which is then differentiated by the weights.
    n_tokens = 3 if name in SEQUENCES else 0
    net = make(name, token_dim=6 if n_tokens else 0)
    x = torch.randn(2, 16, 3, requires_grad=True)
    energy = net(x, torch.tensor([1, 2]), net.condition(seen(2, n_tokens=n_tokens))).square().sum()
    (gradient,) = torch.autograd.grad(energy, x, create_graph=True)
    gradient.square().mean().backward()
    assert x.grad is not None
    assert [n for n, p in net.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()] == []
    assert sum(p.grad is not None and bool(p.grad.any()) for p in net.parameters()) > 0.8 * len(list(net.parameters()))


@pytest.mark.parametrize("name", BUILD)
def test_under_bf16_autocast(name):
    n_tokens = 3 if name in SEQUENCES else 0
    net, observed = make(name, token_dim=6 if n_tokens else 0, awake=0.0), seen(4, n_tokens=n_tokens)
    x, t = torch.randn(4, 16, 3), torch.tensor([0, 10, 50, 99])
    exact = net(x, t, net.condition(observed))
    for grad in (True, False):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
            rough = net(x, t, net.condition(observed))
        assert float((rough - exact).detach().abs().max()) < 0.05 * float(exact.detach().abs().max()) + 0.02
        if grad:
            rough.float().square().mean().backward()


@pytest.mark.parametrize("name", BUILD)
def test_weights_are_stored_once(name):
    net = make(name, awake=0.0)
    pointers = [p.data_ptr() for p in net.state_dict().values()]
    assert len(pointers) == len(set(pointers))


@pytest.mark.parametrize("name", BUILD)
def test_export_of_a_denoising_step(name):
    net, n_tokens = make(name, token_dim=6 if name in SEQUENCES else 0).eval(), 3 if name in SEQUENCES else 0
    observed, x, t = seen(1, n_tokens=n_tokens), torch.randn(1, 16, 3), torch.tensor([7])

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x, t, features, tokens):
            return self.net(x, t, self.net.condition(Observed(features, tokens)))

    with torch.no_grad():
        inputs = (x, t, observed.features, observed.tokens)
        program = torch.export.export(Step(), inputs)
        assert torch.allclose(program.module()(*inputs), Step()(*inputs), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dims", [[32], [32, 64], [16, 32, 64, 128]])
def test_unet_of_any_depth(dims):
    net = ConditionalUnet1d(UnetConfig(dims=dims, groups=8), SIZES)
    assert net(torch.randn(2, 16, 3), torch.zeros(2), net.condition(Observed(torch.randn(2, 2, 5)))).shape == (2, 16, 3)


def test_unet_refuses_a_horizon_it_cannot_halve():
    with pytest.raises(ConfigError, match=r"horizon 10.*multiple of 4"):
        make("unet", horizon=10)


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"dims": []}, "empty"), ({"dims": [60]}, r"\[60\].*groups = 8"), ({"kernel_size": 4}, "even")],
)
def test_unet_settings_are_checked(settings, says):
    with pytest.raises(ConfigError, match=says):
        UnetConfig(**settings)


def test_sinusoids_by_hand():
    embed = SinusoidalEmbedding(4, max_period=100.0)  # frequencies 1 and 1/100
    expected = [0.8414710, 0.0099998, 0.5403023, 0.9999500]  # sin 1, sin 0.01, cos 1, cos 0.01
    assert embed(torch.tensor([1.0]))[0].tolist() == pytest.approx(expected, abs=1e-6)
    scaled = SinusoidalEmbedding(4, scale=100.0, max_period=100.0)
    assert torch.allclose(scaled(torch.tensor([0.01])), embed(torch.tensor([1.0])), atol=1e-6)
    table = positions(3, 4).weight  # frequencies 1 and 1/10000
    assert table[2].tolist() == pytest.approx([0.9092974, 0.0002, -0.4161468, 1.0], abs=1e-6)
