"""Curricula: what they draw, and when and how far their ranges move."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.spread import Spread
from visuomotor.sim2real.randomization.curriculum.adr import ADR
from visuomotor.sim2real.randomization.curriculum.base import Curriculum
from visuomotor.sim2real.randomization.curriculum.build import make_curriculum
from visuomotor.sim2real.randomization.curriculum.config import (
    ADRConfig,
    CurriculumConfig,
    DoraemonConfig,
    LinearConfig,
)
from visuomotor.sim2real.randomization.curriculum.parameters import Parameter, Space

CPU = torch.device("cpu")
MASS = Parameter.of("mass", Spread(low=0.25, high=4.0, distribution="loguniform"))  # nominal 1: the middle
DELAY = Parameter.of("delay", Spread(operation="+", low=0.0, high=0.04))  # nominal 0: an end
SHAPE = Parameter.of("shape", Spread(operation="=", distribution="choice", values=(3.0, 1.0, 2.0)))


def alone(x: Tensor) -> Tensor:
    return x


def bound(curriculum: Curriculum, n: int) -> Any:
    curriculum.bind(SimpleNamespace(sim=SimpleNamespace(num_envs=n, device=CPU)))  # type: ignore[arg-type]
    return curriculum


def begin(curriculum: Curriculum, n: int, key: int = 0) -> Tensor:
    """New episodes in all worlds; their numbers."""
    curriculum.apply(Selection.all(n, CPU), Draws(torch.arange(n) + 1000 * key))
    return curriculum.parameters().clone()


def end(curriculum: Curriculum, success: Tensor) -> None:
    curriculum.watch(success, torch.ones_like(success))


# ---- parameters


def test_ranges_become_unit_intervals_by_hand() -> None:
    assert (MASS.nominal, DELAY.nominal, SHAPE.nominal) == (1.0, 0.0, 2.0)
    assert SHAPE.values == (1.0, 2.0, 3.0)
    assert Parameter.of("x", Spread(operation="=", low=2.0, high=8.0, distribution="loguniform")).nominal == 4.0
    assert Parameter.of("x", Spread(low=1.5, high=2.0)).nominal == 1.5  # the end that is nearest to no change
    space = Space([MASS, DELAY, SHAPE], CPU)
    assert space.nominal.tolist() == pytest.approx([0.5, 0.0, 0.5])
    z = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.25, 0.34], [0.75, 1.0, 1.0]], dtype=torch.float64)
    expected = torch.tensor([[0.25, 0.0, 1.0], [1.0, 0.01, 2.0], [2.0, 0.04, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(space.values(z), expected)


def test_several_numbers_lie_on_both_sides_as_far_as_the_number_of_the_world() -> None:
    space, share = Space([MASS, DELAY], CPU), torch.tensor([[-1.0, -0.5, 0.0, 0.5, 1.0]])
    z = torch.tensor([[0.75]], dtype=torch.float64)  # mass 2 lies halfway up
    half = [2.0**-1, 2.0**-0.5, 1.0, 2.0**0.5, 2.0]
    assert space.within(z, 0, share)[0].tolist() == pytest.approx(half)
    assert space.within(1 - z, 0, share)[0].tolist() == pytest.approx(half[::-1][::-1])
    assert space.within(z, 1, share)[0].tolist() == pytest.approx([0.03, 0.015, 0.0, 0.015, 0.03])


@pytest.mark.parametrize("kind", ["fixed", "linear", "adr", "doraemon"])
def test_all_rows_as_on_a_gpu_give_what_chosen_rows_give(kind: str) -> None:
    mask, keys = torch.tensor([True, False, True, True, False]), torch.arange(5)
    found = []
    for dense in (False, True):
        curriculum = bound(make_curriculum(CurriculumConfig(kind=kind), [MASS, DELAY, SHAPE]), 5)
        worlds = Selection(mask, dense=dense)
        curriculum.apply(worlds, Draws(worlds.take(keys)))
        curriculum.watch(mask, torch.tensor([True, True, False, True, False]))
        source = curriculum.source("mass")
        numbers = source.draw(Draws(worlds.take(keys)), (2, 3), worlds)
        found.append([*curriculum.buffers().values(), numbers if not dense else numbers[mask]])
    for name, a, b in zip([*curriculum.buffers(), "numbers"], *found, strict=True):
        a, b = (x[:-1] if name == "ring" else x for x in (a, b))
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=name)


# ---- linear


def test_linear_by_steps_and_by_success() -> None:
    steps = bound(make_curriculum(CurriculumConfig(kind="linear", linear=LinearConfig(steps=100)), [MASS, SHAPE]), 4000)
    assert torch.equal(begin(steps, 4000), torch.tensor([[1.0, 2.0]], dtype=torch.float64).expand(4000, 2))
    steps.adapt(50, alone)
    values = begin(steps, 4000)
    assert 0.5 <= float(values[:, 0].min()) < 0.51
    assert 1.96 < float(values[:, 0].max()) <= 2.0
    assert float((values[:, 1] == 2.0).double().mean()) == pytest.approx(0.5 + 0.5 / 3, abs=0.03)
    steps.adapt(500, alone)
    assert steps.report()["dr_width"] == pytest.approx(1.0)
    assert steps.report()["dr_low/mass"] == pytest.approx(0.25 * 16**0.05)
    config = CurriculumConfig(kind="linear", linear=LinearConfig(by="success", stride=0.5, episodes=8, threshold=0.75))
    success = bound(make_curriculum(config, [MASS]), 4)
    wins = torch.tensor([True, True, True, False])
    for i, (outcome, width) in enumerate([(wins, 0.0), (wins, 0.5), (~wins, 0.5), (~wins, 0.5), (wins, 0.5)]):
        begin(success, 4, i)
        end(success, outcome)
        success.adapt(0, alone)
        assert float(success._width) == width, i  # 3 of 4 twice: moves; 1 of 4 twice: stays


def test_normal_terms_keep_their_shape() -> None:
    normal = Parameter.of("x", Spread(distribution="normal", low=0.0, high=4.0))
    fixed = bound(make_curriculum(CurriculumConfig(), [normal]), 20_000)
    values = begin(fixed, 20_000)[:, 0]
    assert float(values.mean()) == pytest.approx(2.0, abs=0.03)
    assert float(((values - 2).abs() < 1).double().mean()) == pytest.approx(0.683, abs=0.015)
    report = fixed.report()
    assert (report["dr_low/x"], report["dr_high/x"]) == pytest.approx((2 - 1.645, 2 + 1.645))


# ---- ADR


def test_ends_move_by_what_happens_at_them_by_hand() -> None:
    """Of mass and delay three ends have where to go; the policy fails at heavy masses alone."""
    n = 3000
    adr: ADR = bound(ADR([MASS, DELAY], ADRConfig(step=0.1, episodes=50, share=0.5, widen=0.8, narrow=0.2)), n)
    for i in range(3):
        values = begin(adr, n, i)
        assert float((adr._worker >= 0).double().mean()) == pytest.approx(0.5, abs=0.04)
        assert set(adr._worker.unique().tolist()) == {-1, 0, 2, 3}
        end(adr, values[:, 0] < 1.2)
        adr.adapt(0, alone)
    ends = adr._ends
    assert ends[0].tolist() == pytest.approx([0.2, 0.0])
    # heavy: out to 0.6, which is a mass of 1.32, back to 0.5, and out again
    assert ends[1].tolist() == pytest.approx([0.6, 0.3])
    report = adr.report()
    assert report["dr_entropy"] == pytest.approx((math.log(0.4) + math.log(0.3)) / 2)
    assert report["dr_high/delay"] == pytest.approx(0.3 * 0.95 * 0.04)
    for i in range(3, 30):
        begin(adr, n, i)
        end(adr, torch.ones(n, dtype=torch.bool))
        adr.adapt(0, alone)
    assert ends.tolist() == [[0.0, 0.0], [1.0, 1.0]]  # never beyond the range
    for i in range(30, 60):
        begin(adr, n, i)
        end(adr, torch.zeros(n, dtype=torch.bool))
        adr.adapt(0, alone)
    assert ends[0].tolist() == ends[1].tolist() == [0.5, 0.0]  # never across the nominal value


def test_an_end_waits_for_all_episodes_there() -> None:
    """One of two succeeds at once, the other fails late: 0.5, at which nothing moves."""
    adr: ADR = bound(ADR([DELAY], ADRConfig(step=0.5, episodes=1, share=1.0)), 2)
    begin(adr, 2)
    assert adr._worker.tolist() == [1, 1]  # the upper end of the one parameter
    adr.watch(torch.tensor([True, False]), torch.tensor([True, False]))
    adr.adapt(0, alone)
    assert adr._ends[1].tolist() == [0.0]
    first = torch.tensor([True, False])
    adr.apply(Selection(first), Draws(torch.arange(1)))
    assert adr._worker.tolist() == [-1, 1]  # as many have begun there as are asked for
    adr.watch(torch.zeros(2, dtype=torch.bool), ~first)
    adr.adapt(0, alone)
    assert adr._ends[1].tolist() == [0.0]
    begin(adr, 2)
    assert adr._worker.tolist() == [1, 1]  # the next are begun


def test_counts_of_processes_are_added_and_all_move_alike() -> None:
    """Two processes with 4 episodes each at the one end: 5 are asked for."""
    ranks = [bound(ADR([DELAY], ADRConfig(step=0.5, episodes=5, share=1.0)), 4) for _ in range(2)]
    for rank, adr in enumerate(ranks):
        begin(adr, 4, rank)
        end(adr, torch.ones(4, dtype=torch.bool))
    tallies = {adr._tally.data_ptr(): adr._tally.clone() for adr in ranks}
    elsewhere = torch.zeros(2, 2, dtype=torch.int64)
    for adr in ranks:
        adr.adapt(0, lambda x: torch.stack(list(tallies.values())) if x.ndim == 3 else elsewhere)
        assert adr._ends[1].tolist() == [0.5]
        assert adr._tally.sum() == 0


def test_a_choice_widens_by_whole_values() -> None:
    adr: ADR = bound(ADR([SHAPE], ADRConfig(step=0.01, episodes=1, share=0.5)), 600)
    assert begin(adr, 600).unique().tolist() == [2.0]
    end(adr, torch.ones(600, dtype=torch.bool))
    adr.adapt(0, alone)
    values = begin(adr, 600, 1)
    assert values.unique().tolist() == [1.0, 2.0, 3.0]
    elsewhere = values[adr._worker < 0]
    assert float((elsewhere == 2.0).double().mean()) == pytest.approx(1 / 3, abs=0.1)


# ---- DORAEMON


def doraemon(n: int, parameters: list[Parameter], **settings: Any) -> Any:
    return bound(make_curriculum(CurriculumConfig(kind="doraemon", doraemon=DoraemonConfig(**settings)), parameters), n)


def test_it_widens_to_where_the_policy_fails_and_leans_away_from_there() -> None:
    n = 256
    curriculum = doraemon(n, [MASS, DELAY, SHAPE], success=0.7, episodes=n, concentration=40.0)
    entropies = []
    for i in range(10):
        values = begin(curriculum, n, i)
        end(curriculum, (values[:, 0] < 1.4) & (values[:, 1] < 0.03))
        curriculum.adapt(0, alone)
        entropies.append(curriculum.report()["dr_entropy"])
    report = curriculum.report()
    assert entropies[-1] > entropies[0] + 0.5
    assert report["dr_low/mass"] < 0.35
    assert report["dr_high/mass"] < 3.0
    assert {report["dr_low/shape"], report["dr_high/shape"]} == {1.0, 3.0}
    assert report["dr_success"] == pytest.approx(0.7, abs=0.1)
    assert 0.4 <= report["dr_effective"] <= 1.0


def test_nothing_moves_before_the_policy_has_succeeded_once() -> None:
    for wait in (True, False):
        curriculum = doraemon(16, [MASS], episodes=16, wait=wait, success=0.5)
        before = curriculum._phi.clone()
        values = begin(curriculum, 16)
        end(curriculum, values[:, 0] < values[:, 0].quantile(0.2))
        curriculum.adapt(0, alone)
        assert torch.equal(curriculum._phi, before) == wait
        begin(curriculum, 16, 1)
        end(curriculum, torch.ones(16, dtype=torch.bool))
        curriculum.adapt(0, alone)
        assert not torch.equal(curriculum._phi, before)


def test_episodes_carry_the_density_that_they_were_drawn_with() -> None:
    curriculum = doraemon(12, [MASS], episodes=8, divergence=0.5)
    z = begin(curriculum, 12)
    first = curriculum._phi.clone()
    everyone, half = torch.ones(12, dtype=torch.bool), torch.arange(12) < 8
    curriculum.watch(everyone, half)
    curriculum.adapt(0, alone)
    assert not torch.equal(curriculum._phi, first)
    curriculum.watch(everyone, ~half)  # begun before the step, ended after it
    assert int(curriculum._written) == 4
    space, rows = curriculum.space, curriculum._ring[:4]
    torch.testing.assert_close(space.values(rows[:, :1]), z[8:])
    torch.testing.assert_close(rows[:, 1], curriculum._family.log_prob(first, curriculum._family.features(rows[:, :1])))
    assert rows[:, 2].tolist() == [1.0] * 4
    curriculum.adapt(0, alone)
    assert int(curriculum._written) == 4  # too few to judge
