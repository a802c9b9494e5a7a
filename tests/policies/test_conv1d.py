"""The CPU shortcuts against PyTorch's own convolutions: values, gradients, forward-mode derivatives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, jvp

from visuomotor.policies.learn.optim import OptimConfig, make_optimizer
from visuomotor.policies.nets.conv1d import Conv1d, Downsample1d, Upsample1d


def _conv(m, x):
    return F.conv1d(x, m.as_torch, m.bias, padding=m.taps // 2)


def _down(m, x):
    return F.conv1d(x, m.as_torch, m.bias, stride=2, padding=1)


def _up(m, x):
    return F.conv_transpose1d(x, m.weight.permute(2, 1, 0), m.bias, stride=2, padding=1)


CASES = [(Conv1d(6, 10, k), _conv) for k in (1, 3, 5, 7)] + [(Downsample1d(6), _down), (Upsample1d(6), _up)]


@pytest.mark.parametrize("batch", [1, 2, 40])
@pytest.mark.parametrize("steps", [2, 4, 16, 24])
@pytest.mark.parametrize(("module", "reference"), CASES)
def test_equals_pytorch_forward_and_backward(module, reference, steps, batch):
    module = module.double()
    x = torch.randn(batch, 6, steps, dtype=torch.float64, requires_grad=True)
    results = []
    for f in (lambda: module(x), lambda: reference(module, x)):
        y = f()
        weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)
        results.append((y, *torch.autograd.grad((y * weights).sum(), [x, module.weight, module.bias])))
    for mine, theirs in zip(*results, strict=True):
        assert mine.shape == theirs.shape
        assert torch.allclose(mine, theirs, atol=1e-10)
    with torch.no_grad():
        assert torch.allclose(module(x), results[1][0], atol=1e-10)


@pytest.mark.parametrize("module", [Conv1d(3, 3, 3), Downsample1d(3), Upsample1d(3)])
@torch.no_grad()
def test_acting_sees_changed_weights(module):
    x = torch.randn(1, 3, 4)
    before = module(x)
    module.weight.mul_(2)
    module.bias.mul_(2)
    assert torch.allclose(module(x), 2 * before, atol=1e-6)
    module.load_state_dict({k: v / 2 for k, v in module.state_dict().items()})
    assert torch.allclose(module(x), before, atol=1e-6)


def test_a_kernel_longer_than_the_input():
    module = Conv1d(2, 3, 9).double()
    x = torch.randn(50, 2, 2, dtype=torch.float64)
    assert torch.allclose(module(x), _conv(module, x), atol=1e-10)


def test_bfloat16_autocast_is_close_and_gives_float32_gradients():
    module, x = Conv1d(64, 64, 5), torch.randn(40, 64, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), _conv(module, x), atol=0.05)
    y.float().square().mean().backward()
    assert module.weight.grad is not None
    assert module.weight.grad.dtype == torch.float32


def test_forward_mode_derivative():
    module = Conv1d(4, 4, 5).double()
    x, v = torch.randn(2, 40, 4, 4, dtype=torch.float64)
    parameters: dict[str, torch.Tensor] = dict(module.named_parameters())
    tangent = jvp(lambda z: functional_call(module, parameters, (z,)), (x,), (v,))[1]
    step = 1e-6
    numeric = (_conv(module, x + step * v) - _conv(module, x - step * v)) / (2 * step)
    assert torch.allclose(tangent, numeric, atol=1e-7)


def test_second_derivative():
    torch.manual_seed(0)
    conv, x = Conv1d(3, 4, 5).double(), torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    found = []
    for f in (lambda: conv(x), lambda: _conv(conv, x)):
        (gradient,) = torch.autograd.grad(f().pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), [x, conv.weight, conv.bias]))
    for mine, theirs in zip(*found, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-10)


def test_initialised_as_pytorch_does():
    torch.manual_seed(0)
    mine, theirs = Conv1d(50, 70, 5), torch.nn.Conv1d(50, 70, 5)
    assert float(mine.weight.detach().abs().max()) == pytest.approx(float(theirs.weight.detach().abs().max()), rel=0.01)
    assert float(mine.weight.detach().std()) == pytest.approx(float(theirs.weight.detach().std()), rel=0.05)


def test_acting_sees_the_steps_of_a_fused_optimizer():
    module = Conv1d(8, 8, 3)
    optimizer = make_optimizer(module, OptimConfig(lr=0.1))
    x = torch.randn(1, 8, 4)
    for _ in range(2):
        with torch.no_grad():
            assert torch.allclose(module(x), _conv(module, x), atol=1e-5)
        module(x).square().sum().backward()
        optimizer.step()
    with torch.no_grad():
        assert torch.allclose(module(x), _conv(module, x), atol=1e-5)


def test_weights_made_in_inference_mode():
    with torch.inference_mode():
        module = Conv1d(2, 2, 3)
        x = torch.randn(1, 2, 4)
        assert torch.allclose(module(x), _conv(module, x), atol=1e-6)
