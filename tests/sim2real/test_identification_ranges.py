"""From a posterior to the ranges of a randomisation."""

from __future__ import annotations

import numpy as np
import pytest

from visuomotor.envs.robots.registry import get_robot
from visuomotor.sim2real.identification.posterior import Estimate, Posterior
from visuomotor.sim2real.identification.ranges import randomization
from visuomotor.sim2real.identification.unknowns import choose


def test_gains_are_given_as_what_they_are() -> None:
    """Not as factors of the model that was fitted: with the identified one they would count twice."""
    robot = get_robot("panda")
    unknowns = choose(["velocity_gain:joint1", "position_gain:joint1"], robot.spec().compile(), robot)
    low, high = 1.1 * unknowns.nominal, 1.3 * unknowns.nominal
    estimates = tuple(
        Estimate(
            name=n, unit="", nominal=float(x), value=1.2 * float(x), std=0.1, std_motion=0.1, shrunk=0.1,
            verdict="identified", partner=None, at_bound=False, low=min(a, b), high=max(a, b),
        )
        for n, x, a, b in zip(unknowns.names, unknowns.nominal, low.tolist(), high.tolist(), strict=True)
    )  # fmt: skip
    posterior = Posterior(estimates=estimates, covariance=np.eye(2), condition=1.0, directions=(), samples=1.0)
    terms = randomization(unknowns, posterior, robot, "robot/")
    for e, term in zip(estimates, terms.values(), strict=True):
        assert term["operation"] == "="
        assert (term["low"], term["high"]) == pytest.approx((e.low, e.high), rel=1e-5)
    assert terms["velocity_gain_joint1"]["high"] < 0 < terms["position_gain_joint1"]["low"]
