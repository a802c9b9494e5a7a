"""The policy: loss by hand, sampling in raw units, action modes, and the optimal denoiser of a Gaussian."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from visuomotor.data.batches import Batch
from visuomotor.data.errors import CheckpointError
from visuomotor.data.normalize import KeyNorm, Normalizer, compute_stats
from visuomotor.data.spec import ArraySpec
from visuomotor.data.windows import WindowConfig
from visuomotor.policies.base import ChunkSizes
from visuomotor.policies.draws import Draws
from visuomotor.policies.encoders.config import ObservationConfig
from visuomotor.policies.encoders.observation import ObservationEncoder
from visuomotor.policies.heads.diffusion import DiffusionConfig, DiffusionHead

SIZES = ChunkSizes(action_dim=2, horizon=4, n_obs=2, feature_dim=1)


def test_loss_by_hand(function_net):
    # The net returns zeros, so the loss of 'sample' prediction is the mean square of the action, whatever the noise.
    head = DiffusionHead(DiffusionConfig(prediction="sample"), SIZES)
    action = torch.tensor([[[1.0, 3.0], [0.0, 2.0]]])  # [1, 2, 2]
    loss = head.loss(function_net(lambda x, t: torch.zeros_like(x)), action, Draws(0))
    assert loss.tolist() == [[5.0, 2.0]]  # (1 + 9) / 2, (0 + 4) / 2


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v"])
def test_a_perfect_net_has_no_loss_and_samples_the_target(prediction, function_net):
    head = DiffusionHead(DiffusionConfig(prediction=prediction, sample_steps=10), SIZES)
    target = torch.rand(3, 4, 2) - 0.5

    def know(x, t):  # the one chunk there is, so that what was asked can be computed
        alpha, sigma = head.alpha[t].view(-1, 1, 1), head.sigma[t].view(-1, 1, 1)
        noise = (x - alpha * target) / sigma
        return {"epsilon": noise, "sample": target, "v": alpha * noise - sigma * target}[prediction]

    net = function_net(know)
    assert float(head.loss(net, target, Draws(1)).max()) < 1e-8
    out = head.sample(net, torch.randn(3, head.noise_count(), 4, 2))
    assert torch.allclose(out, target, atol=1e-3)


@pytest.mark.parametrize(
    ("solver", "steps", "tolerance"), [("ddpm", 100, 0.06), ("ddim", 50, 0.06), ("dpmpp", 20, 0.06)]
)
def test_a_gaussian_target_is_sampled_with_its_mean_and_spread(solver, steps, tolerance, function_net):
    # For x0 ~ N(m, s^2) the best estimate from x = a x0 + n z is known: m + a s^2 / (a^2 s^2 + n^2) (x - a m).
    mean, std = 0.2, 0.3
    head = DiffusionHead(DiffusionConfig(prediction="sample", solver=solver, sample_steps=steps, clip=None), SIZES)

    def net(x, t):
        a, n = head.alpha[t].view(-1, 1, 1), head.sigma[t].view(-1, 1, 1)
        return mean + a * std**2 / (a**2 * std**2 + n**2) * (x - a * mean)

    out = head.sample(
        function_net(net), torch.randn(4000, head.noise_count(), 1, 1, generator=torch.Generator().manual_seed(0))
    )
    assert float(out.mean()) == pytest.approx(mean, abs=0.03)
    assert float(out.std()) == pytest.approx(std, rel=tolerance * 2)


@pytest.mark.parametrize("mode", ["absolute", "relative", "delta"])
def test_sample_is_in_raw_units_and_a_function_of_its_arguments(make_policy, mode):
    policy, source = make_policy(mode)
    batch = source.batch(0)
    noise = policy.draw_noise(16, torch.Generator().manual_seed(1))
    chunk = policy.sample(batch.obs, noise)
    assert chunk.shape == (16, 16, 2)
    assert torch.equal(chunk, policy.sample(batch.obs, noise))
    assert torch.isfinite(chunk).all()
    alone = policy.sample({k: v[3:4] for k, v in batch.obs.items()}, noise[3:4])
    assert torch.allclose(alone, chunk[3:4], rtol=1e-4, atol=1e-3)
    # x runs from 50 to 150: an absolute or relative chunk of an untrained policy stays in the range it was scaled to.
    if mode == "absolute":
        assert float(chunk[..., 0].min()) >= 49
        assert float(chunk[..., 0].max()) <= 151


def test_padded_steps_leave_the_loss_only_when_asked(make_policy):
    window = WindowConfig(n_obs=1, horizon=8, n_exec=4, pad_after=7)
    masked, source = make_policy(window=replace(window, mask_padding=True))
    plain, _ = make_policy(window=window)
    batch = source.gather(torch.tensor([29]))  # begins at the last step of the first episode: 7 of 8 are copies
    assert batch.is_pad[0].tolist() == [False] + [True] * 7
    spoiled = Batch(batch.obs, torch.where(batch.is_pad[..., None], batch.action + 1000, batch.action), batch.is_pad)
    clean, dirty = plain.loss(batch, Draws(0)).loss, plain.loss(spoiled, Draws(0)).loss
    assert float(dirty.detach()) > 10 * float(clean.detach())
    for b in (batch, spoiled):  # of 8 steps only the first counts, whatever the copies hold
        out = masked.loss(b, Draws(0))
        assert float(out.loss.detach()) == pytest.approx(float(out.per_step[0, 0]))


def test_angles_have_no_seam(make_policy):
    policy, source = make_policy()
    obs = dict(source.batch(0).obs)
    turned = {"state": obs["state"] + torch.tensor([0.0, 0.0, 2 * torch.pi])}
    noise = policy.draw_noise(16, torch.Generator().manual_seed(0))
    assert torch.allclose(policy.sample(obs, noise), policy.sample(turned, noise), atol=1e-2)


def test_sine_and_cosine_are_not_rescaled(make_policy):
    policy, source = make_policy()
    features, tokens = policy.encoder(source.batch(0).obs, policy.normalizer)
    assert tokens is None
    heading = source.batch(0).obs["state"][..., 2]
    assert features.shape == (16, 2, 4)
    assert torch.allclose(features[..., 2], heading.sin(), atol=1e-5)
    assert torch.allclose(features[..., 3], heading.cos(), atol=1e-5)


def test_observations_of_any_rank_are_flattened_in_order():
    specs = {"flag": ArraySpec(shape=()), "qpos": ArraySpec(shape=(2,)), "corners": ArraySpec(shape=(2, 2))}
    encoder = ObservationEncoder(
        ObservationConfig(keys=list(specs), angles={"flag": [0]}, norm=KeyNorm(mode="identity")), specs
    )
    obs = {"flag": torch.zeros(5, 3), "qpos": torch.ones(5, 3, 2), "corners": torch.full((5, 3, 2, 2), 2.0)}
    stats = {f"obs/{k}": compute_stats([encoder.unroll(k, v).flatten(0, 1).numpy()]) for k, v in obs.items()}
    features, _ = encoder(obs, Normalizer(stats, {f"obs/{k}": encoder.config.norm_of(k) for k in obs}))
    assert encoder.feature_dim == 8
    assert features.shape == (5, 3, 8)
    assert features[0, 0].tolist() == [0, 1, 1, 1, 2, 2, 2, 2]  # sin 0, cos 0, then the others as they are


@pytest.mark.parametrize(
    ("obs", "action", "fps", "says"),
    [
        ({"stat": ArraySpec(shape=(3,))}, ArraySpec(shape=(2,)), None, r"'state'.*Did you mean 'stat'"),
        ({"state": ArraySpec(shape=(4,))}, ArraySpec(shape=(2,)), None, r"\(3,\).*\(4,\)"),
        ({"state": ArraySpec(shape=(3,))}, ArraySpec(shape=(7,)), None, r"action.*\(2,\).*\(7,\)"),
        ({"state": ArraySpec(shape=(3,))}, ArraySpec(shape=(2,), unit="m"), None, r"unit px.*gives m"),
        ({"state": ArraySpec(shape=(3,))}, ArraySpec(shape=(2,)), 30.0, r"10 Hz.*30 Hz"),
    ],
)
def test_a_source_that_does_not_fit_is_refused(make_policy, obs, action, fps, says):
    policy, _ = make_policy()
    with pytest.raises(CheckpointError, match=says):
        policy.spec.check_source(obs, action, fps, source="the robot")


def test_draws_are_sliced_by_rank():
    whole = Draws(5, 7).normal((6, 2))
    parts = [Draws(5, 7, rank=r, world_size=3).normal((2, 2)) for r in range(3)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(Draws(5, 8).normal((6, 2)), whole)
