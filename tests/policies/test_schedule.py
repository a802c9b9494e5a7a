"""Our solver steps against diffusers' own ``step``, and against arithmetic."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import ChunkSizes
from visuomotor.policies.heads.diffusion import DiffusionConfig, DiffusionHead
from visuomotor.policies.heads.schedule import alphas_cumprod, solver_steps
from visuomotor.policies.iterative import WarmStart

SCHEDULE = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"}


def _fake_net(x, t):
    """A smooth non-trivial function of x and t, large enough for the clean estimate to need clipping."""
    return torch.tanh(2.0 * x + 0.01 * t.view(-1, 1, 1)) * 1.3


def _ours(function_net, solver, n, prediction, spacing, eta, noise, clip):
    head = DiffusionHead(
        DiffusionConfig(prediction=prediction, solver=solver, sample_steps=n, spacing=spacing, eta=eta, clip=clip),
        ChunkSizes(action_dim=2, horizon=4, n_obs=2, feature_dim=1),
    )
    assert head.noise_count() <= noise.shape[1]
    return head.sample(function_net(_fake_net), noise)


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v"])
@pytest.mark.parametrize("n", [1, 4, 10, 100])
@pytest.mark.parametrize("solver", ["ddpm", "ddim", "ddim-eta", "dpmpp"])
def test_whole_sampling_run_equals_diffusers_step(solver, n, prediction, spacing, function_net):
    if solver == "dpmpp" and spacing == "leading" and n == 100:
        with pytest.raises(ConfigError, match="trailing"):  # diffusers itself runs past its own table here
            solver_steps(solver, n, train_steps=100, beta_schedule="squaredcos_cap_v2", spacing=spacing)
        return
    eta = 0.7 if solver == "ddim-eta" else 0.0
    solver = solver.removesuffix("-eta")
    clip = None if solver == "dpmpp" else 1.0  # diffusers' DPM-Solver++ cannot clip; ours is tested for that below
    options = {"prediction_type": "v_prediction" if prediction == "v" else prediction, "timestep_spacing": spacing}
    noise = torch.randn(3, 101, 16, 2, generator=torch.Generator().manual_seed(0))
    if solver == "ddpm":
        peer = DDPMScheduler(**SCHEDULE, **options, clip_sample=True, variance_type="fixed_small")
    elif solver == "ddim":
        peer = DDIMScheduler(**SCHEDULE, **options, clip_sample=True)
    else:
        peer = DPMSolverMultistepScheduler(**SCHEDULE, **options, algorithm_type="dpmsolver++", solver_order=2)
    peer.set_timesteps(n)
    x, used = noise[:, 0].double(), 1
    for t in peer.timesteps:
        out = _fake_net(x, torch.full((3,), int(t)))
        if solver == "ddpm":
            # diffusers draws its own noise: give it none, and add ours with the standard deviation it would have used.
            quiet = peer.step(out, t, x, generator=torch.Generator().manual_seed(1)).prev_sample
            zero = torch.zeros_like(x)
            scaled = peer.step(zero, t, zero, generator=torch.Generator().manual_seed(1)).prev_sample
            drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
            std = float((scaled / drawn).mean()) if float(scaled.abs().max()) > 0 else 0.0
            x = quiet - scaled
            if std:
                x, used = x + std * noise[:, used].double(), used + 1
        elif solver == "ddim":
            z = noise[:, used].double() if eta else None
            x = peer.step(out, t, x, eta=eta, use_clipped_model_output=True, variance_noise=z).prev_sample
            used += int(eta > 0)
        else:
            x = peer.step(out, t, x).prev_sample
    ours = _ours(function_net, solver, n, prediction, spacing, eta, noise, clip)
    scale = float(x.abs().max())
    assert float((ours - x).abs().max()) <= 1e-5 * max(scale, 1.0), (ours - x).abs().max()


@pytest.mark.parametrize("first", [0, 6])
@pytest.mark.parametrize("clip", [None, 0.8])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp"])
def test_clipped_and_warm_started_runs_equal_diffusers_step(solver, clip, first, function_net):
    # diffusers is given the clipped estimates as its own predictions; what is compared is what it makes of them. A
    # multi-step solver that begins at step 6 has no previous estimate: diffusers then takes a step of first order.
    n = 10
    peer_class = DDIMScheduler if solver == "ddim" else DPMSolverMultistepScheduler
    special = {"clip_sample": False} if solver == "ddim" else {"algorithm_type": "dpmsolver++", "solver_order": 2}
    peer = peer_class(**SCHEDULE, prediction_type="sample", timestep_spacing="trailing", **special)
    peer.set_timesteps(n)
    if solver == "dpmpp":
        peer.set_begin_index(first)
    head = DiffusionHead(
        DiffusionConfig(prediction="sample", solver=solver, sample_steps=n, clip=clip),
        ChunkSizes(action_dim=2, horizon=4, n_obs=2, feature_dim=1),
    )
    noise = torch.randn(3, 1, 16, 2, generator=torch.Generator().manual_seed(0))
    chunk = torch.randn(3, 16, 2, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    x = noise[:, 0].double()
    if first:
        x = peer.add_noise(chunk.double(), x, peer.timesteps[first : first + 1])
    clipped = 0
    for t in peer.timesteps[first:]:
        estimate = _fake_net(x, torch.full((3,), int(t)))
        bounded = estimate if clip is None else estimate.clamp(-clip, clip)
        clipped += int((bounded != estimate).sum())
        x = peer.step(bounded, t, x).prev_sample
    ours = head.sample(function_net(_fake_net), noise, start=WarmStart(chunk, n - first) if first else None)
    assert (clipped > 0) == (clip is not None)
    assert float((ours - x).abs().max()) <= 1e-5 * float(x.abs().max())


def test_one_ddim_step_by_hand():
    # One step from t = 99 to the end: x_next = sqrt(1) * x0 + 0 * eps, whatever x was.
    steps = solver_steps("ddim", 1, train_steps=100, beta_schedule="squaredcos_cap_v2")
    assert steps.t.tolist() == [99]
    assert (float(steps.a[0]), float(steps.b[0]), float(steps.s[0])) == pytest.approx((0.0, 1.0, 0.0), abs=1e-6)
    # Two steps, 99 -> 49: with A = alpha_bar, x_next = sqrt(A49) x0 + sqrt(1 - A49) (x - sqrt(A99) x0) / sqrt(1 - A99).
    bar = alphas_cumprod(100, "squaredcos_cap_v2").double()
    two = solver_steps("ddim", 2, train_steps=100, beta_schedule="squaredcos_cap_v2")
    a = ((1 - bar[49]) / (1 - bar[99])).sqrt()
    assert float(two.a[0]) == pytest.approx(float(a), abs=1e-6)
    assert float(two.b[0]) == pytest.approx(float(bar[49].sqrt() - a * bar[99].sqrt()), abs=1e-6)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("n", [16, 60, 75])
def test_ddim_steps_lead_to_the_level_that_is_visited_next(n, spacing):
    bar = alphas_cumprod(100, "squaredcos_cap_v2").double()
    steps = solver_steps("ddim", n, train_steps=100, beta_schedule="squaredcos_cap_v2", spacing=spacing)
    start, end = bar[steps.t], torch.cat([bar[steps.t[1:]], torch.ones(1, dtype=torch.float64)])
    a = ((1 - end) / (1 - start)).sqrt()
    assert steps.a.tolist() == pytest.approx(a.tolist(), abs=1e-5)
    assert steps.b.tolist() == pytest.approx((end.sqrt() - a * start.sqrt()).tolist(), abs=1e-5)


def test_clip_bounds_the_clean_estimate_for_every_solver(function_net):
    for solver in ("ddpm", "ddim", "dpmpp"):
        noise = 3 * torch.randn(2, 101, 4, 1, generator=torch.Generator().manual_seed(0))
        out = _ours(function_net, solver, 10, "sample", "trailing", 0.0, noise, 0.5)
        assert float(out.abs().max()) <= 0.5 + 1e-3  # the last step returns the clipped estimate


@pytest.mark.parametrize(
    ("solver", "n", "eta", "says"),
    [("dimm", 4, 0.0, "ddim"), ("ddim", 101, 0.0, "1 to 100"), ("ddim", 0, 0.0, "1 to 100"), ("ddpm", 4, 0.5, "eta")],
)
def test_refusals_say_what_exists(solver, n, eta, says):
    with pytest.raises(ConfigError, match=says):
        solver_steps(solver, n, train_steps=100, beta_schedule="squaredcos_cap_v2", eta=eta)
    if not eta:
        head = DiffusionHead(DiffusionConfig(), ChunkSizes(action_dim=2, horizon=4, n_obs=2, feature_dim=1))
        with pytest.raises(ConfigError, match=r"unknown solver 'dimm'|1 to train_steps = 100"):
            head.set_solver(solver, n)
