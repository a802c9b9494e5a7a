"""Few numbers, many numbers and the way of other devices are computed differently, and are the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from visuomotor.envs.sim import arrays
from visuomotor.envs.sim.random import Draws, WorldRandom
from visuomotor.envs.sim.selection import Selection

SHAPES = ((6,), (), (0,), (70,), (3,), (5, 2), (1,))


def drawn(keys: Tensor) -> list[Tensor]:
    draws = Draws(keys)
    return [f(shape) for shape in SHAPES for f in (draws.uniform, draws.normal)]


@settings(max_examples=20, deadline=None)
@given(keys=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=40))
def test_worlds_draw_the_same_alone_and_among_others(keys: list[int]) -> None:
    together = drawn(torch.tensor(keys))
    alone = [drawn(torch.tensor([k])) for k in keys]
    for k, numbers in enumerate(together):
        assert numbers.shape == (len(keys), *SHAPES[k // 2])
        assert numbers.dtype == torch.float32
        assert torch.equal(numbers, torch.cat([a[k] for a in alone]))


def test_keys_and_draws_are_the_same_on_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = Selection(torch.arange(40) < 3), Selection(torch.arange(40) >= 3)

    def episodes() -> list[Tensor]:
        random, seeds = WorldRandom(40, torch.device("cpu"), seed=-5), torch.arange(40) * 2**57
        found = [
            d.uniform((6,)) for w in (few, many) for d in (random.begin_episode(w), random.begin_episode(w, seeds))
        ]
        return [*found, random.draws(few, 2, torch.arange(40)).uniform((6,)), random.key]

    expected = episodes()
    monkeypatch.setattr(arrays, "_NUMPY", False)
    for found, wanted in zip(episodes(), expected, strict=True):
        assert torch.equal(found, wanted)
