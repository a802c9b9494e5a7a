"""Two stages of a backbone: each answers for its own times, and only the last one learns."""

from __future__ import annotations

import copy

import pytest
import torch

from visuomotor.configs.registry import every_backbone
from visuomotor.policies.base import NetSizes, Observed
from visuomotor.policies.nets.dit import DiTConfig
from visuomotor.policies.nets.mlp import MLPConfig
from visuomotor.policies.nets.staged import StagedBackbone, StagedConfig

SIZES = NetSizes(input_dim=2, output_dim=2, horizon=4, n_obs=2, feature_dim=3)
NETS = {"mlp": MLPConfig(width=16, depth=2), "dit": DiTConfig(width=16, layers=1, heads=2)}


def _staged(name):
    torch.manual_seed(0)
    entry = every_backbone()[name]
    net = entry.build(NETS[name], SIZES)
    with torch.no_grad():  # fresh blocks are the identity
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    first = copy.deepcopy(net)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return StagedBackbone(first, net, 5.0).eval()


@pytest.mark.parametrize("name", NETS)
def test_each_stage_answers_for_its_own_times_in_one_batch_too(name):
    net, seen, x = _staged(name), Observed(torch.randn(4, 2, 3)), torch.randn(4, 4, 2)
    for times in ([9.0] * 4, [5.0] * 4, [6.0, 0.0, 5.0, 7.0]):
        t = torch.tensor(times)
        out = net(x, t, net.condition(seen))
        first, last = (stage(x, t, stage.condition(seen)) for stage in (net.first, net.last))
        assert not torch.allclose(first, last, atol=1e-2)
        assert torch.allclose(out, torch.where((t > 5.0)[:, None, None], first, last), atol=1e-6)


def test_only_the_last_stage_learns():
    net = _staged("mlp")
    seen, x = Observed(torch.randn(4, 2, 3)), torch.randn(4, 4, 2)
    net(x, torch.tensor([6.0, 0.0, 5.0, 7.0]), net.condition(seen)).square().sum().backward()
    assert all(p.grad is None for p in net.first.parameters())
    assert all(p.grad is not None for p in net.last.parameters())


def test_an_export_runs_both():
    net = _staged("mlp")

    class _Sampler(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, features: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.net(x, t, self.net.condition(Observed(features)))
            return out

    inputs = torch.randn(4, 2, 3), torch.randn(4, 4, 2), torch.tensor([6.0, 0.0, 5.0, 7.0])
    exported = torch.export.export(_Sampler(), inputs).module()
    assert torch.allclose(exported(*inputs), _Sampler()(*inputs), atol=1e-6)


def test_it_is_built_from_its_document():
    config = StagedConfig(backbone="mlp", settings={"width": 16, "depth": 2}, boundary=5.0)
    again = every_backbone()["staged"].build(config, SIZES)
    assert isinstance(again, StagedBackbone)
    net = _staged("mlp")
    again.load_state_dict(net.state_dict())
    again.eval()
    seen, x, t = Observed(torch.randn(4, 2, 3)), torch.randn(4, 4, 2), torch.tensor([6.0, 0.0, 5.0, 7.0])
    assert torch.equal(again(x, t, again.condition(seen)), net(x, t, net.condition(seen)))
    assert not any(p.requires_grad for p in again.first.parameters())
