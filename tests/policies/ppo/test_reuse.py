"""Earlier rollouts that are learnt from again: where their ratios begin, their advantages, and that it pays."""

from __future__ import annotations

import pytest
import torch

from visuomotor.data.windows import WindowConfig
from visuomotor.policies.draws import Draws
from visuomotor.policies.learn.events import GracefulStop
from visuomotor.policies.ppo.objective import surrogate
from visuomotor.policies.ppo.returns import generalized_advantage


def test_a_trace_cuts_longer_estimates_short() -> None:
    """delta is 1 everywhere: A_2 = 1, A_1 = 1 + 0.5 * trace_2 * A_2, A_0 = 1 + 0.5 * trace_1 * A_1."""
    one, half, no = torch.ones(3, 1), torch.full((3, 1), 0.5), torch.zeros(3, 1, dtype=torch.bool)
    zero = torch.zeros(3, 1)
    trace = torch.tensor([[0.0], [0.4], [0.8]])  # the first decision's own is not asked
    found = generalized_advantage(one, half, zero, zero, no, no, 1.0, trace)
    assert found.flatten().tolist() == pytest.approx([1 + 0.5 * 0.4 * 1.4, 1 + 0.5 * 0.8, 1.0])
    plain = generalized_advantage(one, half, zero, zero, no, no, 1.0)
    assert torch.equal(plain, generalized_advantage(one, half, zero, zero, no, no, 1.0, one))


def test_the_clip_is_about_where_the_ratio_began() -> None:
    """It began at 0.5 and may go to 0.7: beyond, a positive advantage has no gradient left."""
    start = torch.tensor([[0.5], [0.5], [0.5]]).log()
    log_ratio = torch.tensor([[0.5], [0.65], [0.8]]).log().requires_grad_()
    terms = surrogate(log_ratio, torch.ones(3, 1), torch.tensor([0.2]), start=start)
    assert terms.loss.flatten().tolist() == pytest.approx([-0.5, -0.65, -0.7])
    assert terms.clipped.flatten().tolist() == [False, False, True]
    terms.loss.sum().backward()
    assert log_ratio.grad is not None
    assert log_ratio.grad.flatten().tolist() == pytest.approx([-0.5, -0.65, 0.0])


@pytest.mark.parametrize("window", [WindowConfig(), WindowConfig(n_obs=2, horizon=4, n_exec=3)])
def test_every_ratio_begins_where_the_policy_stands(target_env, make_trainer, window: WindowConfig) -> None:
    steps = 6 * 8 * window.n_exec * 4
    trainer = make_trainer(target_env(6), window=window, steps=steps, reuse=2, lr=3e-3)
    seen = []
    trainer.run([lambda e: seen.append(dict(e.metrics))], GracefulStop())
    assert len(seen) >= 4
    assert all(m["first_ratio_error"] <= 1e-5 for m in seen)
    assert all(m["kl"] > 0 for m in seen)


def test_a_rollout_of_the_same_policy_is_what_it_was(target_env, make_trainer) -> None:
    trainer = make_trainer(target_env(4), reuse=1)
    reuse = trainer.learner._reuse
    rollout = trainer.collector.collect(8, Draws(0), 0, 1, 0)
    once, share = reuse.samples(rollout), reuse.clip_share
    twice = reuse.samples(rollout)
    assert share == pytest.approx(1 / 1.5)  # ages 1 and 2
    n = len(once.valid)
    assert len(twice.valid) == 2 * n
    assert float(twice.start.abs().max()) <= 1e-5
    torch.testing.assert_close(twice.advantage[n:], once.advantage, rtol=1e-4, atol=1e-5)


def test_what_was_drawn_otherwise_starts_elsewhere(target_env, make_trainer) -> None:
    """The ratio of an earlier rollout is the density of now over the one it was drawn with."""
    trainer = make_trainer(target_env(4), reuse=1, lr=1e-2)
    likelihood, reuse = trainer.likelihood, trainer.learner._reuse
    rollout = trainer.collector.collect(8, Draws(0), 0, 1, 0)
    reuse.samples(rollout)
    with torch.no_grad():
        for p in likelihood.parameters():
            p.add_(0.05)
    samples = reuse.samples(rollout)
    n = len(samples.valid) // 2
    obs = {"state": rollout.obs["state"].flatten(0, 1)}
    now = likelihood.evaluate(obs, samples.rows(torch.arange(n)).record).log_ratio[:, 0, 0]
    torch.testing.assert_close(samples.start[n:, 0], now, rtol=1e-4, atol=1e-5)
    assert float(now.detach().abs().max()) > 0.01
    assert not samples.start[:n].any()
    weight = now.detach().exp().clamp(max=1.0)  # V-trace: also of the first step, in what the critic learns
    assert float(weight.min()) < 0.999
    torch.testing.assert_close(
        samples.target[n:], samples.value[n:] + weight * samples.advantage[n:], rtol=1e-4, atol=1e-5
    )


def test_it_learns_more_from_as_many_steps(target_env, make_trainer) -> None:
    """With a single pass an update, so that a rollout is not used up at once."""
    settings = {"steps": 16 * 8 * 24, "decisions": 8, "epochs": 1, "minibatches": 2, "lr": 2e-3, "critic_lr": 3e-3}
    last = {}
    for reuse in (0, 3):
        seen: list[float] = []
        trainer = make_trainer(target_env(16), reuse=reuse, gamma=0.5, **settings)
        trainer.run([lambda e, seen=seen: seen.append(e.metrics["return"])], GracefulStop())
        last[reuse] = sum(seen[-5:]) / 5
    assert last[3] > last[0]
