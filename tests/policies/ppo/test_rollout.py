"""What the collector remembers, in worlds whose rewards say where and when they were earned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.data.windows import WindowConfig
from visuomotor.envs.base import VecEnv
from visuomotor.policies.draws import Draws
from visuomotor.policies.ppo.critic import Critic, CriticConfig
from visuomotor.policies.ppo.episodes import episode_totals
from visuomotor.policies.ppo.rollout import Collector, _moved

LENGTHS = (3, 5, 4, 2)
GAMMA = 0.9


class Says(Critic):
    """A critic whose value is ``1000 world + 10 step + episode`` of the last observation."""

    def forward(self, obs: Any) -> torch.Tensor:
        return obs["state"][:, -1] @ torch.tensor([1000.0, 10.0, 1.0])


def make(env: VecEnv, make_likelihood: Callable[..., Any], window: WindowConfig, **settings: Any) -> Collector:
    critic = Says(CriticConfig(width=8), ["state"], env.obs_spec, window.n_obs)
    likelihood = make_likelihood(env, window)
    return Collector(env, likelihood, critic, gamma=GAMMA, bound=1.0, seed=0, **settings)


@pytest.mark.parametrize("n_exec", [1, 3])
def test_every_row_says_what_happened(scripted, make_likelihood, n_exec: int) -> None:
    """Against a loop that counts steps by hand: rewards, discounts, ends, masks and values of what followed."""
    window = WindowConfig(n_obs=2, horizon=n_exec + 2, n_exec=n_exec)
    collector = make(scripted(LENGTHS), make_likelihood, window)
    first = collector.collect(4, Draws(0), 0, 0)
    second = collector.collect(3, Draws(0), 0, 1)
    for world, length in enumerate(LENGTHS):
        step, episode = 0, 0
        for row in range(7):
            r, t = (first, row) if row < 4 else (second, row - 4)
            n = min(n_exec, length - step)
            seen = torch.tensor([world, step, episode])
            assert torch.equal(r.obs["state"][t, world, -1], seen.float())
            assert float(r.value[t, world]) == 1000 * world + 10 * step + episode
            reward = sum(GAMMA**j * (100 * world + step + j) for j in range(n))
            assert float(r.reward[t, world]) == pytest.approx(reward, rel=1e-5)
            assert float(r.discount[t, world]) == pytest.approx(GAMMA**n)
            executed = [1 <= h < 1 + n for h in range(window.horizon)]  # position 0 is of the past
            assert r.executed[t, world].tolist() == executed
            step += n
            over = step == length
            assert bool(r.terminated[t, world]) == (over and world % 2 == 0)
            assert bool(r.truncated[t, world]) == (over and world % 2 == 1)
            if not (over and world % 2 == 0):  # of the observation before the reset, never of the next episode's first
                assert float(r.next_value[t, world]) == 1000 * world + 10 * step + episode
            step, episode = (0, episode + 1) if over else (step, episode)


def test_ended_episodes_are_counted_over_rollouts(scripted, make_likelihood) -> None:
    collector = make(scripted(LENGTHS), make_likelihood, WindowConfig(n_obs=1, horizon=1, n_exec=1))
    found = collector.collect(4, Draws(0), 0, 0).episodes + collector.collect(6, Draws(0), 0, 1).episodes
    count = [10 // n for n in LENGTHS]
    returns = [sum(100 * w + s for s in range(n)) for w, n in enumerate(LENGTHS)]
    assert found[0] == sum(count)
    assert found[1] == sum(c * r for c, r in zip(count, returns, strict=True))
    assert found[2] == sum(c * n for c, n in zip(count, LENGTHS, strict=True))
    assert found[3] == count[0] + count[2]  # those of even worlds terminate, with success


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), steps=st.integers(1, 9))
def test_totals_of_episodes_equal_a_loop(seed: int, steps: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x, ended = torch.randn(steps, 3, generator=g).double(), torch.rand(steps, 3, generator=g) < 0.3
    running = carry = torch.randn(3, generator=g).double()
    totals, left = episode_totals(x, ended, carry)
    for t in range(steps):
        running = running + x[t]
        torch.testing.assert_close(totals[t], running)
        running = torch.where(ended[t], 0.0, running)
    torch.testing.assert_close(left, running)


def test_chunks_are_clipped_when_they_are_executed_and_not_before(scripted, make_likelihood) -> None:
    env = scripted(LENGTHS)
    collector = make(env, lambda e, w: make_likelihood(e, w, std_init=1.4), WindowConfig(n_obs=1, horizon=1, n_exec=1))
    rollout = collector.collect(8, Draws(0), 0)
    assert float(rollout.record.chunk.abs().max()) > 1.0
    executed = torch.stack(env.actions)
    torch.testing.assert_close(executed, rollout.record.chunk.clamp(-1, 1)[..., 0, :])


def test_noise_is_a_function_of_the_decision(scripted, make_likelihood) -> None:
    window = WindowConfig(n_obs=1, horizon=1, n_exec=1)
    a = make(scripted(LENGTHS), make_likelihood, window).collect(3, Draws(0), 7, 1)
    collector = make(scripted(LENGTHS), make_likelihood, window)
    draws = Draws(123)
    draws.normal((5,))
    b = collector.collect(3, draws, 7, 1)
    assert torch.equal(a.record.chunk, b.record.chunk)


def test_first_episodes_are_cut_off_at_different_ages_and_valued_by_what_they_had_reached(
    scripted, make_likelihood
) -> None:
    lengths = (40,) * 12
    collector = make(scripted(lengths), make_likelihood, WindowConfig(n_obs=1, horizon=1, n_exec=1), stagger=True)
    rollout = collector.collect(40, Draws(0), 0)
    ended = rollout.terminated | rollout.truncated
    first = ended.int().argmax(0)
    assert len(set(first.tolist())) > 6
    for world, t in enumerate(first.tolist()):
        if t < 39:
            assert bool(rollout.truncated[t, world])
            assert not bool(rollout.terminated[t, world])
            assert float(rollout.next_value[t, world]) == 1000 * world + 10 * (t + 1)
            assert rollout.obs["state"][t + 1, world, 0].tolist() == [world, 0, 1]
    assert rollout.episodes[0] == (ended.sum(0) > 1).sum() + (first == 39).sum()  # those cut short are not counted
    later = collector.collect(40, Draws(0), 1)
    ended = later.terminated | later.truncated
    assert (ended.sum(0) == 1).all()  # afterwards episodes have their full length
    assert later.episodes[0] == 12
    assert later.episodes[2] == 12 * 40


def test_a_reward_that_is_not_finite_marks_its_row(scripted, make_likelihood) -> None:
    env = scripted(LENGTHS, poison=[2])
    rollout = make(env, make_likelihood, WindowConfig(n_obs=1, horizon=1, n_exec=1)).collect(5, Draws(0), 0)
    assert (~rollout.valid).nonzero().tolist() == [[2, 0]]
    assert bool(torch.isfinite(rollout.reward).all())


def test_images_move_alike_in_all_frames_of_a_decision() -> None:
    pixels = 10 * torch.arange(8)[:, None] + torch.arange(8)
    picture = pixels.to(torch.uint8)[..., None].expand(3, 8, 8, 3)  # says where each pixel is
    frames = torch.stack([picture, picture + 100], 1)  # [N, To, H, W, C]
    moved = _moved(frames, torch.tensor([0, 1, -2]), torch.tensor([0, -1, 2]), 2)
    assert moved.dtype == torch.uint8
    assert torch.equal(moved[0], frames[0])
    assert torch.equal(moved[:, 1], moved[:, 0] + 100)
    assert int(moved[1, 0, 4, 4, 0]) == 10 * 3 + 5
    assert int(moved[2, 0, 4, 4, 0]) == 10 * 6 + 2
    assert int(moved[2, 0, 7, 0, 2]) == 10 * 7 + 0  # the border is repeated
