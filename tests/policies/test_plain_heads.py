"""What regression, MIP, Gaussian, mixture and energy heads share: every backbone, autocast, seeds and row order."""

from __future__ import annotations

import pytest
import torch

from visuomotor.policies.base import Backbone, ChunkSizes, Head, NetSizes, Observed
from visuomotor.policies.conditioned import ConditionedNet, Prefix
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.energy import EnergyConfig, EnergyHead
from visuomotor.policies.heads.gaussian import GaussianConfig, GaussianHead
from visuomotor.policies.heads.gmm import GMMConfig, GMMHead
from visuomotor.policies.heads.mip import MIPConfig, MIPHead
from visuomotor.policies.heads.regression import RegressionConfig, RegressionHead
from visuomotor.policies.nets.dit import DiT, DiTConfig
from visuomotor.policies.nets.mlp import MLPConfig, ResidualMLP
from visuomotor.policies.nets.transformer import Transformer, TransformerConfig
from visuomotor.policies.nets.unet1d import ConditionalUnet1d, UnetConfig

SIZES = ChunkSizes(action_dim=2, horizon=8, n_obs=2, feature_dim=3)
HEADS = {
    "regression": lambda: RegressionHead(RegressionConfig(), SIZES),
    "mip": lambda: MIPHead(MIPConfig(), SIZES),
    "gaussian": lambda: GaussianHead(GaussianConfig(temperature=1.0), SIZES),
    "gaussian, learned std": lambda: GaussianHead(GaussianConfig(std_from_obs=False, squash=True), SIZES),
    "gmm": lambda: GMMHead(GMMConfig(temperature=1.0), SIZES),
    "energy": lambda: EnergyHead(EnergyConfig(train_steps=2, sample_steps=3, langevin=0.1), SIZES),
}
BACKBONES = {
    "mlp": lambda sizes: ResidualMLP(MLPConfig(width=32, depth=2, dropout=0.0), sizes),
    "unet": lambda sizes: ConditionalUnet1d(UnetConfig(dims=[16, 32], groups=4, time_dim=16), sizes),
    "dit": lambda sizes: DiT(DiTConfig(width=32, layers=2, heads=2, time_dim=16, dropout=0.0), sizes),
    "transformer": lambda sizes: Transformer(
        TransformerConfig(width=32, encoder_layers=1, decoder_layers=2, heads=2, time_dim=16, dropout=0.0), sizes
    ),
}


def _build(head: str, backbone: str = "mlp", prefix_dim: int = 0) -> tuple[Head, Backbone]:
    torch.manual_seed(0)
    h = HEADS[head]()
    sizes = NetSizes(
        input_dim=h.input_dim + (prefix_dim + 1 if prefix_dim else 0), output_dim=h.output_dim, horizon=8, n_obs=2,
        feature_dim=3, n_times=h.n_times, time_scale=h.time_scale,
    )  # fmt: skip
    net = BACKBONES[backbone](sizes)
    for p in net.parameters():  # last layers that start at zero hide what is wrong before them
        p.data += 0.05 * torch.randn_like(p)
    return h, net


def _problem(rows: int = 6) -> tuple[Observed, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return Observed(torch.randn(rows, 2, 3, generator=g)), torch.rand(rows, 8, 2, generator=g) * 2 - 1


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", HEADS)
def test_every_backbone_can_be_trained_and_sampled(head, backbone):
    h, net = _build(head, backbone)
    seen, action = _problem()
    loss = h.loss(ConditionedNet(net, h, seen), action, Draws(0))
    assert loss.shape == (6, 8)
    loss.mean().backward()
    gradients = [p.grad for p in (*net.parameters(), *h.parameters())]
    # A network whose input is always zero learns nothing of the weights that read it, but they do get a gradient.
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    with torch.no_grad():
        out = h.sample(ConditionedNet(net, h, seen), torch.randn(6, h.noise_count(), 8, 2))
    assert out.shape == (6, 8, 2)
    assert torch.isfinite(out).all()
    assert not out.requires_grad


@pytest.mark.parametrize("head", HEADS)
def test_losses_and_samples_are_functions_of_the_seed_and_of_each_row_alone(head):
    h, net = _build(head)
    seen, action = _problem()
    conditioned = ConditionedNet(net, h, seen)
    assert torch.equal(h.loss(conditioned, action, Draws(3)), h.loss(conditioned, action, Draws(3)))
    noise = torch.randn(6, h.noise_count(), 8, 2)
    with torch.no_grad():
        out = h.sample(conditioned, noise)
        assert torch.equal(out, h.sample(conditioned, noise))
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        mixed = h.sample(ConditionedNet(net, h, Observed(seen.features[order])), noise[order])
        assert torch.allclose(mixed, out[order], atol=1e-6)
        alone = h.sample(ConditionedNet(net, h, Observed(seen.features[:1])), noise[:1])
        assert torch.allclose(alone, out[:1], atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", HEADS)
def test_bf16_autocast_changes_little(head, backbone):
    h, net = _build(head, backbone)
    seen, action = _problem()
    plain = h.loss(ConditionedNet(net, h, seen), action, Draws(0)).detach()
    with torch.autocast("cpu", torch.bfloat16):
        loss = h.loss(ConditionedNet(net, h, Observed(seen.features.bfloat16())), action, Draws(0))
        noise = torch.zeros(6, h.noise_count(), 8, 2)
        out = h.sample(ConditionedNet(net, h, seen), noise)
    loss.mean().backward()
    assert loss.dtype == torch.float32
    assert torch.allclose(loss.mean(), plain.mean(), rtol=0.05)
    exact = h.sample(ConditionedNet(net, h, seen), noise)
    assert torch.allclose(out.float(), exact, atol=0.1)


@pytest.mark.parametrize("head", HEADS)
def test_known_steps_reach_every_head(head):
    h, net = _build(head, prefix_dim=2)
    seen, action = _problem()
    mask = torch.arange(8).expand(6, 8) < 3
    noise = torch.randn(6, h.noise_count(), 8, 2)

    def sample(known: torch.Tensor) -> torch.Tensor:
        return h.sample(ConditionedNet(net, h, seen, prefix_dim=2, prefix=Prefix(known, mask)), noise).detach()

    after = [sample(a)[:, 3:] for a in (action, -action, torch.where(mask[..., None], action, 9.0))]
    assert not torch.allclose(after[0], after[1])
    assert torch.equal(after[0], after[2])


@pytest.mark.parametrize("head", ["gaussian", "gmm", "energy"])
def test_uncertainty_is_larger_far_away(head):
    h, net = _build(head)
    seen, action = _problem()
    near = h.uncertainty(ConditionedNet(net, h, seen), action)
    far = h.uncertainty(ConditionedNet(net, h, seen), action + 20)
    assert near.shape == (6,)
    assert (far > near).all()
