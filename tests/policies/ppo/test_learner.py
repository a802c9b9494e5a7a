"""One update: where it begins, what it survives, what it adapts, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.data.windows import WindowConfig
from visuomotor.policies.draws import Draws
from visuomotor.policies.learn.events import GracefulStop
from visuomotor.policies.likelihoods.base import Evaluation, Record
from visuomotor.policies.ppo.config import PPOConfig
from visuomotor.policies.ppo.learner import Learner
from visuomotor.policies.ppo.rollout import Rollout
from visuomotor.policies.ppo.trainer import PPOTrainer
from visuomotor.policies.ppo.trust_region import divergence


def gather(trainer: PPOTrainer, update: int = 0) -> Rollout:
    return trainer.collector.collect(8, Draws(0), 0, 1, update)


def update(trainer: PPOTrainer, rollout: Rollout, number: int = 0) -> dict[str, float]:
    return trainer.learner.update(rollout, Draws(0), 0, 2, number, share_done=0.5)


def weights(module: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def run(trainer: PPOTrainer) -> list[dict[str, float]]:
    seen: list[dict[str, float]] = []
    trainer.run([lambda event: seen.append(dict(event.metrics))], GracefulStop())
    return seen


@pytest.mark.parametrize(
    "window", [WindowConfig(n_obs=1, horizon=1, n_exec=1), WindowConfig(n_obs=2, horizon=4, n_exec=3)]
)
@pytest.mark.parametrize("settings", [{}, {"reduce": "mean", "level": "chain"}, {"normalize_advantage": "minibatch"}])
def test_the_ratio_is_one_before_the_first_step_of_every_update(target_env, make_trainer, window, settings) -> None:
    trainer = make_trainer(target_env(6), window=window, steps=6 * 8 * window.n_exec * 3, **settings)
    seen = run(trainer)
    assert len(seen) >= 3  # the statistics of observations change between updates
    assert all(m["first_ratio_error"] <= 1e-5 for m in seen)
    assert all(m["kl"] > 0 for m in seen)


def test_it_learns_a_bandit_with_targets_that_it_sees(target_env, make_trainer) -> None:
    trainer = make_trainer(
        target_env(32), steps=32 * 16 * 40, decisions=16, epochs=5, lr=3e-3, critic_lr=3e-3, gamma=0.5
    )
    seen = run(trainer)
    returns = [m["return"] for m in seen]
    assert returns[0] < -1.5  # five steps with a standard deviation of 0.5 and the wrong mean
    assert max(returns[-5:]) > 0.35 * returns[0]


def test_what_is_not_finite_counts_for_nothing(target_env, make_trainer) -> None:
    trainer = make_trainer(target_env(4), stagger=False, value_clip=0.2)
    rollout = gather(trainer)
    nan = torch.nan
    obs = {"state": rollout.obs["state"].clone()}
    obs["state"][2, 1] = nan
    value = rollout.value.clone()
    value[2, 1] = nan  # what a critic makes of it
    aux = {k: v.clone() for k, v in rollout.record.aux.items()}
    aux["log_prob"][5, 3] = -torch.inf
    chunk = rollout.record.chunk.clone()
    chunk[6, 0] = nan
    metrics = update(trainer, replace(rollout, obs=obs, value=value, record=Record(chunk, aux)))
    assert metrics["lost_samples"] >= 3
    assert metrics["lost_samples"] <= 8  # and those before it in the same episode, whose advantage it is part of
    assert all(bool(torch.isfinite(p).all()) for p in (*weights(trainer.likelihood), *weights(trainer.critic)))
    assert metrics["policy_grad_norm"] > 0
    assert all(torch.isfinite(torch.tensor(v)) for v in metrics.values())


def test_a_gradient_that_is_not_finite_changes_nothing(target_env, make_trainer) -> None:
    trainer = make_trainer(target_env(4))
    rollout = gather(trainer)
    update(trainer, rollout)
    before, state = weights(trainer.likelihood), trainer.learner.state()
    before_state = {k: v.clone() for k, v in state.items() if k.startswith("actor")}
    evaluate = trainer.likelihood.evaluate
    trainer.likelihood.evaluate = lambda *a: replace_ratio(evaluate(*a))
    metrics = update(trainer, rollout, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(trainer.likelihood), strict=True))
    after = trainer.learner.state()
    assert all(torch.equal(v, after[k]) for k, v in before_state.items())
    assert not torch.isfinite(torch.tensor(metrics["policy_grad_norm"]))


def replace_ratio(found: Evaluation) -> Evaluation:
    """Finite, with a gradient that is not: the root of zero."""
    return found._replace(log_ratio=found.log_ratio + (found.log_ratio - found.log_ratio).sqrt())


def test_the_critic_warms_up_alone(target_env, make_trainer) -> None:
    trainer = make_trainer(target_env(4), critic_warmup=1)
    policy, critic = weights(trainer.likelihood), weights(trainer.critic)
    metrics = update(trainer, gather(trainer), 0)
    assert all(torch.equal(a, b) for a, b in zip(policy, weights(trainer.likelihood), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(critic, weights(trainer.critic), strict=True))
    assert "kl" not in metrics
    assert "kl" in update(trainer, gather(trainer, 1), 1)


def test_an_update_ends_early_when_it_went_too_far(target_env, make_trainer) -> None:
    far = make_trainer(target_env(8), target_kl=1e-6, lr=1e-2, epochs=7)
    assert update(far, gather(far))["epochs"] == 1
    near = make_trainer(target_env(8), target_kl=1e3, lr=1e-2, epochs=7)
    assert update(near, gather(near))["epochs"] == 7


@pytest.mark.parametrize(("desired", "factor"), [(1e6, 1.5), (1e-12, 1 / 1.5)])
def test_the_rate_follows_the_divergence(target_env, make_trainer, desired: float, factor: float) -> None:
    trainer = make_trainer(target_env(8), schedule="adaptive", desired_kl=desired, epochs=2)
    assert update(trainer, gather(trainer))["lr"] == pytest.approx(3e-4 * factor**2)


def test_the_cosine_falls_to_zero(target_env, make_trainer) -> None:
    trainer = make_trainer(target_env(4), schedule="cosine")
    assert update(trainer, gather(trainer))["lr"] == pytest.approx(1.5e-4)  # half of the run is over


def test_ranges_rise_and_weights_fall_with_the_noise(make_likelihood, target_env, make_trainer) -> None:
    trainer = make_trainer(target_env(4))
    trainer.likelihood.n_terms = 3
    config = PPOConfig(clip=0.1, clip_first=0.1, noise_discount=0.5)
    learner = Learner(trainer.likelihood, trainer.critic, config, accelerator=accelerator())
    low, middle, high = learner._clip.tolist()
    assert (low, high) == (pytest.approx(0.01), pytest.approx(0.1))
    assert middle == pytest.approx(0.01 + 0.09 * (2.718281828**1.5 - 1) / (2.718281828**3 - 1), rel=1e-5)
    assert learner._weight.tolist() == [0.25, 0.5, 1.0]


def accelerator() -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=True)


def test_divergence_by_hand() -> None:
    """From N(0, 1) to N(1, 2) in one of two components: log 2 + 2 / 8 - 1/2."""
    mean, std = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    now_mean, now_std = mean.clone(), std.clone()
    now_mean[..., 0], now_std[..., 0] = 1.0, 2.0
    found = Evaluation(torch.zeros(1, 1, 2), mean=now_mean, std=now_std)
    mask = torch.tensor([[[True, False]]])
    expected = 0.6931472 + 0.25 - 0.5
    assert float(divergence(found, mean, std, mask)) == pytest.approx(expected, rel=1e-5)
    assert float(divergence(found, mean, std, mask | True)) == pytest.approx(2 * expected, rel=1e-5)
    without = Evaluation(torch.full((1, 1, 2), 0.5))
    assert float(divergence(without, None, None, mask)) == pytest.approx(2.718281828**0.5 - 1.5, rel=1e-5)


@pytest.mark.parametrize("bound", [1e-4, 0.05])
@pytest.mark.parametrize("closed_form", [True, False])
def test_a_trust_region_holds_at_every_decision(target_env, make_trainer, bound: float, closed_form: bool) -> None:
    """Even at a rate that throws the policy far out: measured anew, after the update."""
    trainer = make_trainer(target_env(8), trust_region=bound, surrogate="none", lr=1e-2, epochs=4)
    likelihood = trainer.likelihood
    if not closed_form:
        evaluate = likelihood.evaluate
        likelihood.evaluate = lambda *a: evaluate(*a)._replace(mean=None, std=None)
    rollout = gather(trainer)
    flat = Record(rollout.record.chunk.flatten(0, 1), {k: v.flatten(0, 1) for k, v in rollout.record.aux.items()})
    obs = {"state": rollout.obs["state"].flatten(0, 1)}
    with torch.no_grad():
        before = likelihood.evaluate(obs, flat)
    metrics = update(trainer, rollout)
    with torch.no_grad():
        now = likelihood.evaluate(obs, flat)
    mask = likelihood.mask(rollout.executed.flatten(0, 1), flat)
    mean, std = (before.mean, before.std) if closed_form else (None, None)
    largest = float(divergence(now, mean, std, mask).max())
    assert 0 < largest <= bound
    assert metrics["largest_kl"] == pytest.approx(largest, rel=1e-3)
    assert metrics["fix_up_steps"] > 0


def test_what_cannot_be_compared_with_before_is_taken_back(target_env, make_trainer) -> None:
    trainer = make_trainer(target_env(4), trust_region=0.05, surrogate="none")
    likelihood, rollout = trainer.likelihood, gather(trainer)
    before, evaluate = weights(likelihood), likelihood.evaluate

    def blind(*args: Any) -> Evaluation:
        """Its means are not numbers as soon as a weight has changed."""
        found = evaluate(*args)
        same = all(torch.equal(a, b) for a, b in zip(before, weights(likelihood), strict=True))
        return found if same else found._replace(mean=found.mean * torch.nan)

    likelihood.evaluate = blind
    metrics = update(trainer, rollout)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(likelihood), strict=True))
    assert metrics["largest_kl"] <= 0.05
    assert math.isfinite(metrics["trust_region_weight"])  # or no later update would take a step


def test_what_is_left_out_does_not_widen_the_largest_divergence(target_env, make_trainer) -> None:
    region = make_trainer(target_env(4), trust_region=0.05).learner._region
    found = region.largest(torch.tensor([0.02, math.inf, math.nan]), torch.tensor([1.0, 0.0, 0.0]))
    assert float(found) == pytest.approx(0.02)


def test_moments_come_to_where_the_weights_are(target_env, make_trainer) -> None:
    trainer, other = make_trainer(target_env(4)), make_trainer(target_env(4))
    update(trainer, gather(trainer))
    optimizer = other.learner.actor_optimizer
    group = optimizer.param_groups[0]
    group["params"] = [torch.nn.Parameter(p.detach().to("meta")) for p in group["params"]]  # a device that is no CPU
    other.learner.load_state(trainer.learner.state())  # on the CPU, as read from a checkpoint
    found = [v.device.type for p in group["params"] for v in optimizer.state[p].values()]
    assert len(found) == 3 * len(group["params"])
    assert set(found) == {"meta"}


def test_a_wide_trust_region_needs_no_fixing(target_env, make_trainer) -> None:
    trainer = make_trainer(target_env(8), trust_region=1e3)
    metrics = update(trainer, gather(trainer))
    assert metrics["fix_up_steps"] == 0
    assert metrics["trust_region_weight"] < 1  # the penalty fades


@pytest.mark.parametrize(
    "settings",
    [{"surrogate": "none"}, {"trust_region": 0.0}, {"image_shift": -1}, {"clip": 0.0}, {"num_envs": 1, "decisions": 2}],
    ids=lambda s: next(iter(s)),
)
def test_senseless_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"ppo\."):
        PPOConfig(**settings)
