"""Every head on every backbone: one contract, kept by all of them."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from visuomotor.configs.build import build_policy
from visuomotor.configs.registry import backbones, heads
from visuomotor.data.actions import ActionConfig
from visuomotor.data.batches import Batch
from visuomotor.data.errors import ConfigError
from visuomotor.data.normalize import KeyNorm, Normalizer, compute_stats
from visuomotor.data.spec import ArraySpec
from visuomotor.data.windows import WindowConfig
from visuomotor.policies.conditioned import Prefix
from visuomotor.policies.draws import Draws
from visuomotor.policies.encoders.config import ObservationConfig
from visuomotor.policies.learn.optim import OptimConfig, make_optimizer
from visuomotor.policies.policy import LossConfig, Policy
from visuomotor.policies.spec import PolicySpec

_SMALL = {
    "mlp": {"width": 32, "depth": 2},
    "unet": {"dims": [16, 32], "groups": 4},
    "dit": {"width": 32, "layers": 2, "heads": 2},
    "transformer": {"width": 32, "encoder_layers": 1, "decoder_layers": 1, "heads": 2},
    "perceptron": {"width": 32},  # reads the observations alone: for heads whose chunk says nothing, without a prefix
}
_READ_CHUNKS = [b for b in _SMALL if b != "perceptron"]
_NO_INPUT = ("gaussian", "gmm", "regression")  # their net's input is zero: weights that multiply it have no gradient
_AT_THE_INPUT = {
    "backbone.inp.weight",
    "backbone.down.0.first.first.conv.weight",
    "backbone.down.0.first.skip.weight",
}
B, H, DA = 6, 8, 2
_RNG = np.random.default_rng(0)


def _config(entry, settings):
    known = {f.name for f in fields(entry.config_class)}
    assert not set(settings) - known, f"{sorted(known)} are the settings of {entry.config_class.__name__}"
    return entry.config_class(**settings)


@pytest.mark.parametrize("backbone", _READ_CHUNKS)
@pytest.mark.parametrize("head", ["energy", "flow"])
def test_the_callers_inference_mode_changes_nothing(head, backbone):
    policy = _policy(head, backbone, LossConfig(max_delay=2)).eval()
    obs, noise = {"state": torch.randn(B, 2, 3)}, torch.randn(B, *policy.noise_shape)
    prefix = Prefix(torch.randn(B, H, DA), torch.arange(H).expand(B, -1) < 2)
    expected = policy.sample(obs, noise, prefix=prefix)
    with torch.inference_mode():
        obs, noise, prefix = {k: v.clone() for k, v in obs.items()}, noise.clone(), Prefix(*(v.clone() for v in prefix))
        inside = policy.sample(obs, noise, prefix=prefix)
    assert torch.allclose(inside, expected, atol=1e-6)
    assert torch.allclose(policy.sample(obs, noise, prefix=prefix), expected, atol=1e-6)  # tensors that were born there


def _policy(head: str, backbone: str, loss: LossConfig | None = None) -> Policy:
    spec = PolicySpec(
        obs={"state": ArraySpec(shape=(3,))}, action_key="action", action=ArraySpec(shape=(DA,)), fps=10.0,
        window=WindowConfig(n_obs=2, horizon=H, n_exec=4), action_config=ActionConfig(),
    )  # fmt: skip
    stats = {
        "obs/state": compute_stats([_RNG.normal(size=(50, 3))]),
        "action": compute_stats([_RNG.normal(size=(50, DA))]),
    }
    normalizer = Normalizer(stats, {"obs/state": KeyNorm(), "action": KeyNorm(clip=None)})
    torch.manual_seed(0)
    policy = build_policy(
        spec, obs=ObservationConfig(), head=_config(heads()[head], {}),
        backbone=_config(backbones()[backbone], _SMALL[backbone]), normalizer=normalizer, loss=loss,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    policy.head.fit(torch.randn(64, H, DA, generator=generator) * 0.3)
    return policy


def _batch() -> Batch:
    g = torch.Generator().manual_seed(2)
    return Batch(
        {"state": torch.randn(B, 2, 3, generator=g)}, torch.randn(B, H, DA, generator=g), torch.zeros(B, H).bool()
    )


def test_the_small_settings_name_every_backbone():
    assert set(_SMALL) == set(backbones())


_PAIRS = [(h, b) for h in sorted(heads()) for b in sorted(_SMALL) if b in _READ_CHUNKS or h in _NO_INPUT]
every = pytest.mark.parametrize(("head", "backbone"), _PAIRS)
with_prefix = pytest.mark.parametrize(("head", "backbone"), [(h, b) for h, b in _PAIRS if b in _READ_CHUNKS])


def test_a_backbone_that_reads_no_chunk_is_refused_by_heads_that_need_it():
    for head in set(heads()) - set(_NO_INPUT):
        with pytest.raises(ConfigError, match="sees observations only"):
            _policy(head, "perceptron")


@every
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_step_of_training_reaches_every_weight(head, backbone, precision):
    policy = _policy(head, backbone).train()
    optimizer = make_optimizer(policy, OptimConfig(lr=1e-3))
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    for step in range(8):  # gates that start at zero let gradients through after the first step only; times are drawn
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            out = policy(_batch(), Draws(0, step))
        assert out.per_step.shape == (B, H)
        assert torch.isfinite(out.per_step).all()
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    unmoved = {n for n, p in policy.named_parameters() if torch.equal(p.detach(), before[n])}
    assert unmoved <= (_AT_THE_INPUT if head in _NO_INPUT else set())


@every
def test_the_loss_is_a_function_of_batch_and_draws(head, backbone):
    policy = _policy(head, backbone).eval()
    first, again = (policy.loss(_batch(), Draws(3, 1)).per_step for _ in range(2))
    assert torch.equal(first, again)


@every
def test_a_sample_is_a_function_of_its_row(head, backbone):
    policy = _policy(head, backbone).eval()
    noise = policy.draw_noise(B, torch.Generator().manual_seed(0))
    obs = _batch().obs
    chunk = policy.sample(obs, noise)
    assert chunk.shape == (B, H, DA)
    assert torch.isfinite(chunk).all()
    assert torch.equal(chunk, policy.sample(obs, noise))
    order = torch.tensor([3, 1, 0, 5, 2, 4])
    permuted = policy.sample({"state": obs["state"][order]}, noise[order])
    assert torch.allclose(permuted, chunk[order], atol=1e-4)
    alone = policy.sample({"state": obs["state"][:1]}, noise[:1])
    assert torch.allclose(alone, chunk[:1], atol=1e-3)


@with_prefix
def test_a_known_prefix_is_kept_and_changes_the_rest(head, backbone):
    policy = _policy(head, backbone, LossConfig(max_delay=2))
    optimizer = make_optimizer(policy, OptimConfig(lr=1e-2))
    for step in range(5):  # leave the state in which an output layer of zeros ignores its input
        policy.train()(_batch(), Draws(0, step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    policy.eval()
    obs, noise = _batch().obs, policy.draw_noise(B, torch.Generator().manual_seed(0))
    mask = (torch.arange(H) < 3).expand(B, H)
    action = torch.full((B, H, DA), 0.7)
    chunk = policy.sample(obs, noise, prefix=Prefix(action, mask))
    assert torch.allclose(chunk[:, :3], action[:, :3], atol=1e-5)
    assert not torch.allclose(chunk[:, 3:], policy.sample(obs, noise)[:, 3:], atol=1e-6)
    other = torch.where(mask[..., None], action, -5.0)  # what is not known must not be looked at
    assert torch.equal(policy.sample(obs, noise, prefix=Prefix(other, mask)), chunk)


@every
def test_weights_survive_safetensors(head, backbone):
    policy, fresh = _policy(head, backbone).eval(), _policy(head, backbone).eval()
    for p in policy.parameters():
        p.data.add_(0.01)
    fresh.load_state_dict(load(save(policy.state_dict())))
    noise = policy.draw_noise(B, torch.Generator().manual_seed(0))
    assert torch.equal(fresh.sample(_batch().obs, noise), policy.sample(_batch().obs, noise))


@every
def test_several_noise_draws_share_an_observation(head, backbone):
    policy = _policy(head, backbone, LossConfig(noise_draws=3)).train()
    assert policy(_batch(), Draws(0)).per_step.shape == (3 * B, H)
