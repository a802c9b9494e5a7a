"""Rolled windows against a loop over single steps that remembers everything."""

from __future__ import annotations

import pytest
import torch

from visuomotor.envs.base import Obs
from visuomotor.policies.ppo.windows import Windows, as_chunk


@pytest.mark.parametrize("n_obs", [1, 2, 5])
@pytest.mark.parametrize("n_exec", [1, 3])
def test_windows_equal_those_of_single_steps(scripted, n_obs: int, n_exec: int) -> None:
    lengths = (4, 5, 7, 2)  # episodes end in mid-chunk, and in the first step of one
    env = scripted(lengths)
    windows = Windows({"state": n_obs})
    seen = [[row] for row in env.reset()["state"]]  # of each world, the observations of the running episode
    windows.start(env.reset(mask=torch.zeros(4, dtype=torch.bool)))
    for _ in range(9):
        step = env.step_chunk(torch.zeros(4, n_exec, 1))
        final = windows.push(step)
        for world, history in enumerate(seen):
            history += list(step.history["state"][world, : int(step.n_executed[world])])
            assert torch.equal(final["state"][world], last(history, n_obs))
            if step.terminated[world] or step.truncated[world]:
                history[:] = [step.obs["state"][world]]
            assert torch.equal(windows.now["state"][world], last(history, n_obs))


def last(history: list[torch.Tensor], n: int) -> torch.Tensor:
    """The last ``n`` observations, the first one repeated where there are fewer."""
    return torch.stack([history[max(0, len(history) - n + i)] for i in range(n)])


def test_a_single_step_is_a_chunk_of_one(scripted) -> None:
    one, many = scripted((3, 4)), scripted((3, 4))
    one.reset()
    many.reset()
    for _ in range(5):
        a, b = as_chunk(one.step(torch.zeros(2, 1))), many.step_chunk(torch.zeros(2, 1, 1))
        for name in ("reward", "terminated", "truncated", "n_executed"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        for name in ("obs", "final_obs", "history", "info"):
            ours, theirs = getattr(a, name), getattr(b, name)
            assert all(torch.equal(ours[k], theirs[k]) for k in theirs), name


def test_what_stays_the_same_is_kept_once() -> None:
    windows = Windows({"goal": 1, "state": 3})
    obs: Obs = {"goal": torch.ones(2, 4), "state": torch.zeros(2, 1)}
    windows.start(obs)
    assert windows.now["goal"].shape == (2, 1, 4)
    assert windows.now["state"].shape == (2, 3, 1)
