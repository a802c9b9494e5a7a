"""Noise schedule and solver steps of diffusion, taken from diffusers' schedulers into plain tensors.

The only file that imports diffusers. ``scheduler.step`` costs Python and host work at every denoising step, so each
solver is probed once with unit impulses: every step of DDPM, DDIM and DPM-Solver++(2M) is linear,

    x_next = a * x + b * x0 + c * x0_previous + s * z,     z standard normal,

where ``x0`` is the (clipped) estimate of the clean chunk. ``a, b, c, s`` are what is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, nearest

__all__ = ["SOLVERS", "SolverSteps", "alphas_cumprod", "solver_steps"]

SOLVERS = ("ddpm", "ddim", "dpmpp")


@dataclass(frozen=True)
class SolverSteps:
    """Coefficients of a sampling run of ``S`` steps, noisiest first. ``t`` is the training step each one evaluates."""

    t: Tensor  # [S] int64
    a: Tensor  # [S] weight of x
    b: Tensor  # [S] weight of this step's x0
    c: Tensor  # [S] weight of the previous step's x0 (0 for single-step solvers)
    s: Tensor  # [S] standard deviation of the fresh noise


def alphas_cumprod(train_steps: int, beta_schedule: str) -> Tensor:
    """Cumulative product of ``1 - beta``: float32 ``[K]`` (Ho et al. 2020; Nichol and Dhariwal 2021)."""
    return _scheduler("ddpm", train_steps, beta_schedule, "trailing").alphas_cumprod.clone()


def solver_steps(
    solver: str, n_steps: int, *, train_steps: int, beta_schedule: str, spacing: str = "trailing", eta: float = 0.0
) -> SolverSteps:
    """Coefficients of ``n_steps`` of ``solver``, equal to diffusers' own ``step``.

    DDIM is diffusers' with ``use_clipped_model_output``: the noise is taken anew from the clipped estimate. Its steps
    lead to the level that is visited next; those of diffusers all have the length ``train_steps // n_steps``, which
    falls short of it where that is rounded (with 60 of 100, small spreads came out three times too wide).

    Raises:
        ConfigError: unknown solver, more steps than the schedule was trained with, or ``eta`` where it means nothing.
    """
    if solver not in SOLVERS:
        raise ConfigError(f"unknown solver {solver!r}. {nearest(solver, SOLVERS)}")
    if not 1 <= n_steps <= train_steps:
        raise ConfigError(f"{n_steps} sampling steps: expected 1 to {train_steps}, the number of training steps")
    if eta and solver != "ddim":
        raise ConfigError(f"eta={eta} is a setting of solver 'ddim'; {solver!r} has no such noise level")
    if solver == "dpmpp" and spacing == "leading" and n_steps >= train_steps:
        raise ConfigError(
            f"solver 'dpmpp' with spacing 'leading' takes at most {train_steps - 1} of {train_steps} steps; "
            "use spacing 'trailing' for more"
        )
    probe = _probe(solver, n_steps, train_steps, beta_schedule, spacing, eta)
    timesteps = torch.tensor([int(t) for t in probe[0]], dtype=torch.int64)
    a, b, c, s = (torch.tensor(column, dtype=torch.float32) for column in zip(*probe[1], strict=True))
    return SolverSteps(t=timesteps, a=a, b=b, c=c, s=s)


def _scheduler(solver: str, train_steps: int, beta_schedule: str, spacing: str) -> Any:
    # Imported here: diffusers costs more than a second, and a run that only validates data needs none of it.
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    common = {
        "num_train_timesteps": train_steps,
        "beta_schedule": beta_schedule,
        "prediction_type": "sample",
        "timestep_spacing": spacing,
    }
    if solver == "ddpm":
        return DDPMScheduler(**common, variance_type="fixed_small", clip_sample=False)
    if solver == "ddim":
        return DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=True)
    return DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", solver_order=2)


def _probe(
    solver: str, n_steps: int, train_steps: int, beta_schedule: str, spacing: str, eta: float
) -> tuple[list[int], list[tuple[float, float, float, float]]]:
    """Run diffusers' scheduler once on unit impulses and read the coefficients off its output.

    Component 0 has x = 1; component 1 has x0 = 1 at even steps and component 2 at odd ones, so that one of them shows
    the weight of this step's x0 and the other that of the previous; component 3 is all zero and shows the noise.
    """
    scheduler = _scheduler(solver, train_steps, beta_schedule, spacing)
    scheduler.set_timesteps(n_steps)
    x = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    timesteps, rows = [int(t) for t in scheduler.timesteps], []
    for i, t in enumerate(timesteps):
        clean = torch.zeros_like(x)
        clean[0, 1 + i % 2] = 1.0
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        if solver == "ddim":
            # ``step`` subtracts train_steps // num_inference_steps.
            length = t - (timesteps[i + 1] if i + 1 < len(timesteps) else -1)
            scheduler.num_inference_steps = Fraction(train_steps, length)
            out = scheduler.step(clean, t, x, eta=eta, variance_noise=z if eta else None).prev_sample
        elif solver == "ddpm":
            out = scheduler.step(clean, t, x, generator=torch.Generator().manual_seed(0)).prev_sample
        else:
            out = scheduler.step(clean, t, x).prev_sample
        s = float(out[0, 3] / z[0, 3])
        out = out - s * z
        rows.append((float(out[0, 0]), float(out[0, 1 + i % 2]), float(out[0, 2 - i % 2]), s))
    return timesteps, rows
