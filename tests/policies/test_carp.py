"""CARP: a net that knows the codes, the loss by hand, inverse sampling, two modes, and determinism."""

from __future__ import annotations

import math

import pytest
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import ChunkSizes, NetSizes, Observed
from visuomotor.policies.conditioned import ConditionedNet
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.carp import CarpConfig, CarpHead, draw_codes
from visuomotor.policies.nets.mlp import MLPConfig, ResidualMLP

SIZES = ChunkSizes(action_dim=2, horizon=8, n_obs=2, feature_dim=3)


def _head(chunks=None, **settings):
    torch.manual_seed(0)
    head = CarpHead(CarpConfig(**{"codes": 16, "width": 8, **settings}), SIZES)
    head.fit(_chunks(400) if chunks is None else chunks)
    return head


def _chunks(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    slope = torch.linspace(-1, 1, 8)[None, :, None]
    return 0.5 * torch.randn(n, 1, 2, generator=g) + 0.3 * slope * torch.randn(n, 1, 2, generator=g)


def _net(head):
    torch.manual_seed(1)
    return ResidualMLP(
        MLPConfig(width=64, depth=2, dropout=0.0),
        NetSizes(
            input_dim=head.input_dim, output_dim=head.output_dim, horizon=8, n_obs=2, feature_dim=3,
            time_scale=head.time_scale,
        ),
    )  # fmt: skip


class _Oracle:
    """Knows the chunk ``[1, H, Da]``, answers with its codes (through identity logits) and what they leave over."""

    def __init__(self, head, chunk):
        self.head, self.codes, self.chunk = head, head.quantizer.encode(chunk)[0], chunk
        for choose in head.choose:  # features -> logits: as they are
            choose[0] = torch.nn.Identity()
            choose[1].weight.data.copy_(torch.eye(head.config.codes))
            choose[1].bias.data.zero_()

    def __call__(self, x, t):
        return torch.cat([self._at(int(k), row[None]) for k, row in zip(t, x, strict=True)])

    def at(self, times):
        return [lambda x, k=int(t): self._at(k, x) for t in times]

    def _at(self, k, x):
        rest = ((self.chunk - x) / self.head.residual_std).expand(len(x), -1, -1)
        scale = min(k, self.head.passes - 1)
        code = self.codes[:, scale][:, self.head.quantizer.segment[scale]]  # [1, H]
        wanted = 20.0 * torch.nn.functional.one_hot(code, self.head.config.codes).expand(len(x), -1, -1)
        return torch.cat([wanted, rest], dim=-1)


def test_an_oracle_has_no_loss_and_samples_the_chunk():
    head = _head(codes=16, width=16, corruption=0.0)
    chunk = _chunks(1, seed=5)
    net = _Oracle(head, chunk)
    loss = head.loss(net, chunk.expand(40, -1, -1), Draws(0))
    assert loss.shape == (40, 8)
    assert float(loss.detach().max()) < 1e-5  # every pass
    with torch.no_grad():
        out = head.sample(net, torch.randn(5, head.noise_count(), 8, 2))
        assert torch.allclose(out, chunk.expand(5, -1, -1), atol=1e-5)
        near = head.uncertainty(net, chunk)
        far = head.uncertainty(net, chunk + 0.5)
    assert float(near) < 1e-3
    assert float(far) > 10.0


def test_a_net_that_knows_nothing_pays_the_logarithm_of_the_number_of_codes(function_net):
    head = _head()
    for choose in head.choose:
        torch.nn.init.zeros_(choose[1].weight)
        torch.nn.init.zeros_(choose[1].bias)
    action = _chunks(200, seed=1)
    loss = head.loss(function_net(lambda x, t: x.new_zeros(*x.shape[:2], 10)), action, Draws(0)).detach()
    which = Draws(0)
    which.normal((200, head.quantizer.values))
    last = which.integers(0, 4, (200,)) == 3
    assert torch.allclose(loss[~last], torch.tensor(math.log(16)), atol=1e-5)
    # The last pass is measured in units of what is left over, so doing nothing costs about 1.
    assert float(loss[last].mean()) == pytest.approx(1.0, abs=0.25)


def test_codes_are_drawn_by_inverting_their_distribution():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(1, 4, 4)
    # Normal quantiles of 0.05, 0.25, 0.55, 0.95: one inside each code's share of [0, 1].
    noise = torch.tensor([[-1.6449, -0.6745, 0.1257, 1.6449]])
    assert draw_codes(logits, noise, temperature=1.0).tolist() == [[0, 1, 2, 3]]
    far = torch.tensor([[-9.0, 9.0, 40.0, -40.0]])
    assert draw_codes(logits, far, temperature=1.0).tolist() == [[0, 3, 3, 0]]
    # 3/7 and 4/7 of the codes 2 and 3
    assert draw_codes(logits, noise, temperature=1.0, top_k=2).tolist() == [[2, 2, 3, 3]]
    assert draw_codes(logits, noise, temperature=0.0, top_k=2).tolist() == [[3, 3, 3, 3]]
    many = draw_codes(logits[:, :1].expand(1, 20000, 4), Draws(0).normal((1, 20000)), temperature=1.0)
    assert many.flatten().bincount().div(20000).tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.01)


def test_passes_see_the_coarser_scales(function_net):
    head, seen = _head(corruption=0.0), []

    def net(x, t):
        seen.append((x, t))
        return x.new_zeros(*x.shape[:2], 10)

    action = _chunks(200, seed=1)
    head.loss(function_net(net), action, Draws(0))
    ((x, t),) = seen
    sums = head.quantizer.encode(action)[1]
    assert set(t.tolist()) == {0, 1, 2, 3}
    assert torch.equal(x, sums[torch.arange(200), t])
    assert not x[t == 0].any()
    errors = [float((x - action)[t == k].square().mean()) for k in range(4)]
    assert errors == sorted(errors, reverse=True)


def _train(head, net, seen, batch, steps):
    optimizer = torch.optim.Adam([*head.parameters(), *net.parameters()], lr=3e-3)
    for step in range(steps):
        loss = head.loss(ConditionedNet(net, head, Observed(seen)), batch, Draws(0, step)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_two_modes_are_kept_apart():
    """After the same observation chunks are all +1 or all -1, with a little noise."""
    sign = (torch.arange(64) % 2 * 2 - 1.0)[:, None, None]
    batch = sign + 0.05 * torch.randn(64, 8, 2, generator=torch.Generator().manual_seed(0))
    head = _head(batch)
    net = _net(head)
    _train(head, net, torch.zeros(64, 2, 3), batch, 150)
    with torch.no_grad():
        seen = Observed(torch.zeros(400, 2, 3))
        out = head.sample(ConditionedNet(net, head, seen), Draws(9).normal((400, 3, 8, 2)))
    nearest = out.mean((1, 2)).sign()[:, None, None]
    assert float((out - nearest).abs().mean()) < 0.15
    assert ((out - nearest).abs().mean((1, 2)) < 0.3).float().mean() > 0.97
    assert 0.35 < float((nearest > 0).float().mean()) < 0.65


def test_accuracy_is_not_limited_by_the_codebooks():
    """Chunks are a function of the observation; four codes a scale are far too few to tell them apart."""
    g = torch.Generator().manual_seed(0)
    seen = torch.rand(128, 2, 3, generator=g) * 2 - 1
    chunk = seen[:, -1, :2, None].transpose(1, 2) * torch.linspace(0.5, 1, 8)[None, :, None]
    head = _head(chunk, codes=4, scales=[1, 2])
    net = _net(head)
    _train(head, net, seen, chunk, 250)
    with torch.no_grad():
        out = head.sample(ConditionedNet(net, head, Observed(seen)), Draws(9).normal((128, 2, 8, 2)))
    quantised = head.quantizer.encode(chunk)[1][:, -1]
    rmse, limit = (float((v - chunk).square().mean().sqrt()) for v in (out, quantised))
    assert rmse < 0.5 * limit


def test_a_chunk_is_a_function_of_its_noise_and_observation():
    head = _head()
    net = _net(head)
    seen, noise = torch.randn(6, 2, 3), torch.randn(6, 3, 8, 2)
    with torch.inference_mode():
        out = head.sample(ConditionedNet(net, head, Observed(seen)), noise)
        again = head.sample(ConditionedNet(net, head, Observed(seen)), noise)
        order = torch.tensor([3, 1, 5, 0, 2, 4])
        permuted = head.sample(ConditionedNet(net, head, Observed(seen[order])), noise[order])
        other = head.sample(ConditionedNet(net, head, Observed(seen)), -noise)
    assert torch.equal(out, again)
    assert torch.allclose(permuted, out[order], atol=1e-5)
    assert not torch.allclose(out, other, atol=1e-2)


def test_bf16_autocast_gives_nearly_the_same_loss_and_gradients_for_everything():
    head = _head()
    net = _net(head)
    action, seen = _chunks(64, seed=2), Observed(torch.randn(64, 2, 3))
    plain = head.loss(ConditionedNet(net, head, seen), action, Draws(0)).detach()
    with torch.autocast("cpu", torch.bfloat16):
        loss = head.loss(ConditionedNet(net, head, seen), action, Draws(0))
    assert loss.dtype == torch.float32
    assert float(loss.detach().mean()) == pytest.approx(float(plain.mean()), rel=0.02)
    loss.mean().backward()
    assert [n for n, p in [*head.named_parameters(), *net.named_parameters()] if p.grad is None] == []


def test_one_chunk_and_flat_data_can_be_fitted():
    head = _head(torch.zeros(1, 8, 2))
    loss = head.loss(_NetOfZeros(), torch.zeros(3, 8, 2), Draws(0))
    assert torch.isfinite(loss).all()
    assert (head.residual_std > 0).all()


class _NetOfZeros:
    def __call__(self, x, t):
        return x.new_zeros(*x.shape[:2], 10)


def test_codebooks_travel_with_the_weights():
    head = _head()
    state = head.state_dict()
    fresh = CarpHead(CarpConfig(codes=16, width=8), SIZES)
    fresh.load_state_dict(state)
    for a, b in zip(head.quantizer.encode(_chunks(9)), fresh.quantizer.encode(_chunks(9)), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(head.residual_std, fresh.residual_std)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"scales": []}, r"scales=\[\]"),
        ({"scales": [2, 1]}, r"scales=\[2, 1\].*increasing"),
        ({"codes": 1}, "codes=1"),
        ({"temperature": -1.0}, "temperature=-1"),
        ({"label_smoothing": 1.0}, "label_smoothing=1"),
        ({"top_k": 300}, r"top_k=300.*256"),
    ],
)
def test_settings_are_checked(settings, says):
    with pytest.raises(ConfigError, match=says):
        CarpConfig(**settings)
