"""From scratch on the cart-pole: each likelihood of one-pass policies learns to balance. Minutes long."""

from __future__ import annotations

from typing import Any

import pytest
from accelerate import Accelerator

from visuomotor.configs.rl_build import make_trainer, make_worlds, scratch_start
from visuomotor.configs.rl_compose import compose_rl
from visuomotor.policies.learn.events import GracefulStop

CASES = {
    "squashed": ["policy=gaussian", "policy.squash=true", "policy.std_from_obs=false"],
    "gmm": ["policy=gmm", "policy.modes=3"],
    "gsde": ["policy=gaussian", "likelihood=gsde", "likelihood.hold=4"],
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES)
def test_the_cart_pole_is_learnt_from_scratch(case):
    config: Any = compose_rl(["task=cartpole", "budget.env_steps=120000", *CASES[case]]).config
    accelerator = Accelerator(cpu=True)
    env = make_worlds(config, accelerator)
    trainer = make_trainer(config, env, scratch_start(config, env), accelerator)
    returns: list[float] = []  # of updates in which an episode ended
    trainer.run([lambda e: returns.extend([e.metrics["return"]] if "return" in e.metrics else [])], GracefulStop())
    first, last = (sum(part) / len(part) for part in (returns[2:7], returns[-10:]))
    assert last > 4.0 * first
