"""How much each recorded step should count in imitation. Pure functions over arrays of steps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["advantage_weights", "effective_share", "intervention_weights"]

Floats = NDArray[np.float64]


def advantage_weights(advantage: Floats, temperature: float, largest: float) -> Floats:
    """``exp(A / (temperature * std A))``, at most ``largest``, scaled to mean 1: ``[T]`` to ``[T]``.

    Advantage-weighted regression (Peng et al. 2019, arXiv:1910.00177): imitation of the weighted data is one step of
    policy improvement under a bound on the divergence from the data. The temperature is in standard deviations of the
    advantage here, so that it does not depend on the unit of the reward.
    """
    spread = float(advantage.std())
    if spread < 1e-12:
        return np.ones(len(advantage))
    weight = np.exp(np.minimum(advantage / (temperature * spread), np.log(largest)))
    return np.asarray(weight / weight.mean(), np.float64)


def intervention_weights(human: NDArray[np.bool_], ends: NDArray[np.int64], before: int) -> Floats:
    """Weights by who acted, ``human [T]``, after Sirius (Liu et al. 2022, arXiv:2211.08416): ``[T]``, mean 1.

    Interventions get half of the mass in all; the ``before`` steps of the policy that led to one get none; the other
    steps of the policy and those of episodes that a person demonstrated as a whole share the other half alike (Sirius
    lets demonstrations keep their share of the data).
    """
    starts = np.concatenate([[0], ends[:-1]])
    demo, led = np.zeros(len(human), bool), np.zeros(len(human), bool)
    for start, stop in zip(starts, ends, strict=True):
        rows = human[start:stop]
        demo[start:stop] = rows.all()
        for onset in np.flatnonzero(rows & ~np.concatenate([[True], rows[:-1]])):
            led[start + max(0, onset - before) : start + onset] = True
    corrected = human & ~demo
    led &= ~human
    others = ~corrected & ~led
    if not corrected.any():
        return np.ones(len(human))
    share = 0.5 if others.any() else 1.0
    weight = np.zeros(len(human))
    weight[corrected] = share * len(human) / corrected.sum()
    weight[others] = (1.0 - share) * len(human) / max(1, others.sum())
    return weight


def effective_share(weight: Floats) -> float:
    """``(sum w)^2 / (T sum w^2)``, 0..1: the share of the steps that would tell as much with equal weights (Kish)."""
    return float(weight.sum() ** 2 / (len(weight) * np.square(weight).sum()))
