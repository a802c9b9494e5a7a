"""Distributions, their solver and the step of DORAEMON, against arithmetic by hand, quadrature and brute force."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Beta

from visuomotor.sim2real.randomization.curriculum.family import Family
from visuomotor.sim2real.randomization.curriculum.maximum_entropy import Episodes, Limits, estimate, next_distribution
from visuomotor.sim2real.randomization.curriculum.solver import minimise, nearest_feasible


def family(nominal: list[float], sizes: list[int], concentration: float = 200.0) -> Family:
    return Family(torch.tensor(nominal, dtype=torch.float64), sizes, concentration)


def log_prob(f: Family, phi: Tensor, z: Tensor) -> Tensor:
    return f.log_prob(phi, f.features(z.double()))


def log_shapes(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).log()


def drawn(f: Family, phi: Tensor, n: int, seed: int = 0) -> Tensor:
    u = torch.rand(len(f.start) // 2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Family.quantile(f.table(phi), u).T


# ---- distributions


def test_the_start_is_narrow_and_its_mean_is_the_nominal_value() -> None:
    f = family([0.5, 0.25, 0.0], [0, 0, 0])
    assert f.start.exp().tolist() == pytest.approx([100.0, 50.0, 1.0, 100.0, 150.0, 200.0])
    assert bool((f.start > f.low).all() & (f.start < f.high).all())


def test_density_entropy_and_divergence_of_a_beta_by_quadrature() -> None:
    f = family([0.5], [0])
    p, q = log_shapes(2.0, 5.0), log_shapes(3.0, 1.5)
    x = ((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000)[:, None]
    log_p, log_q = log_prob(f, p, x), log_prob(f, q, x)
    assert float(log_p.exp().mean()) == pytest.approx(1.0, abs=1e-6)
    assert float(log_prob(f, log_shapes(2.0, 2.0), torch.tensor([0.5]))) == pytest.approx(math.log(1.5))
    assert float(f.entropy(p)) == pytest.approx(float(-(log_p.exp() * log_p).mean()), abs=1e-6)
    assert float(f.divergence(p, q)) == pytest.approx(float((log_p.exp() * (log_p - log_q)).mean()), abs=1e-6)
    assert float(f.entropy(log_shapes(1.0, 1.0))) == pytest.approx(0.0, abs=1e-12)
    assert float(f.divergence(p, p)) == pytest.approx(0.0, abs=1e-12)


def test_a_choice_by_hand_and_parameters_add_up() -> None:
    f = family([0.5, 0.5], [3, 0])  # three values, the middle one nominal, and a range
    odds = torch.tensor([math.log(0.25 / 0.5), math.log(0.25 / 0.5)])  # 1/4, 1/2, 1/4
    phi = torch.cat([log_shapes(2.0, 2.0), odds.double()])
    z = torch.tensor([[0.1, 0.5], [0.5, 0.5], [0.9, 0.5], [1.0, 0.5]])
    expected = [math.log(p * 1.5) for p in (0.25, 0.5, 0.25, 0.25)]
    assert log_prob(f, phi, z).tolist() == pytest.approx(expected)
    alone = float(family([0.5], [0]).entropy(log_shapes(2.0, 2.0)))
    assert float(f.entropy(phi)) == pytest.approx(alone + 1.5 * math.log(2) - math.log(3))
    uniform = torch.cat([log_shapes(1.0, 1.0), torch.zeros(2, dtype=torch.float64)])
    assert float(f.entropy(uniform)) == pytest.approx(0.0, abs=1e-12)
    assert float(f.divergence(phi, uniform)) == pytest.approx(-float(f.entropy(phi)))
    assert f.start[2:].softmax(0).tolist() == pytest.approx([0.5, 0.5])
    elsewhere = 1.0 - float(torch.cat([f.start[2:3], torch.zeros(1), f.start[3:]]).softmax(0)[1])
    assert elsewhere == pytest.approx(10.0 / 200.0)


def test_draws_follow_the_distribution() -> None:
    f = family([0.5], [0])
    table = f.table(log_shapes(2.0, 2.0))
    u = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)[None]
    x = Family.quantile(table, u)[0]
    torch.testing.assert_close(3 * x**2 - 2 * x**3, u[0], rtol=0, atol=2e-6)  # the distribution function by hand
    choice = family([0.5], [4])
    phi = torch.tensor([0.3, -0.7, 1.1]).double().log_softmax(0)
    z = Family.quantile(choice.table(phi), torch.rand(1, 20_000, dtype=torch.float64))[0]
    shares = torch.stack([((z * 4).long() == i).double().mean() for i in range(4)])
    p = torch.stack([log_prob(choice, phi, torch.tensor([(i + 0.5) / 4])).exp() for i in range(4)])
    torch.testing.assert_close(shares, p, rtol=0, atol=0.02)
    assert bool((z.unique().mul(4).frac() - 0.5).abs().max() < 0.01)


# ---- the solver


def test_minimise_by_hand() -> None:
    """The point of x + y <= 2 that is nearest to (2, 2) is (1, 1); without the constraint it is (2, 2)."""
    low, high, start = (torch.full((2,), v, dtype=torch.float64) for v in (-3.0, 3.0, -1.0))

    def problem(x: Tensor, most: float) -> tuple[Tensor, Tensor]:
        return (x - 2.0).square().sum(), (x.sum() - most)[None]

    found = minimise(lambda x: problem(x, 2.0), start, low, high)
    assert found.tolist() == pytest.approx([1.0, 1.0], abs=1e-3)
    inside = nearest_feasible(lambda x: problem(x, 2.0)[1], start, found + 0.01)
    assert float(inside.sum()) <= 2.0
    assert inside.tolist() == pytest.approx([1.0, 1.0], abs=1e-3)
    assert minimise(lambda x: problem(x, 9.0), start, low, high).tolist() == pytest.approx([2.0, 2.0], abs=1e-4)


# ---- the step


def brute_force(f: Family, phi: Tensor, z: Tensor, episodes: Episodes, limits: Limits) -> tuple[float, float]:
    """Largest entropy of a Beta on a grid of (log a, log b) that keeps all limits; and the largest success."""
    n = 160
    axes = [torch.linspace(float(f.low[i]), float(f.high[i]), n, dtype=torch.float64).exp() for i in range(2)]
    grid, present = Beta(axes[0][:, None], axes[1][None, :]), Beta(*phi.exp())
    near = torch.distributions.kl_divergence(grid, present) <= limits.divergence
    a, b = (x.expand(n, n)[near] for x in (axes[0][:, None], axes[1][None, :]))
    w = torch.softmax(Beta(a[:, None], b[:, None]).log_prob(z[:, 0]) - episodes.log_q, 1)
    success = (w * episodes.success).sum(1)
    success = success - limits.caution * (w.square() * (episodes.success - success[:, None]).square()).sum(1).sqrt()
    enough = 1.0 / w.square().sum(1) >= limits.effective * len(z)
    kept = enough & (success >= limits.success)
    best = float(Beta(a[kept], b[kept]).entropy().max()) if bool(kept.any()) else -math.inf
    return best, float(success[enough].max())


@pytest.mark.parametrize("caution", [0.0, 1.0])
def test_one_parameter_agrees_with_brute_force(caution: float) -> None:
    f, limits = family([0.5], [0], 40.0), Limits(0.65, 0.3, 0.3, caution)
    phi = log_shapes(8.0, 8.0)
    z = drawn(f, phi, 300)
    episodes = Episodes(f.features(z), log_prob(f, phi, z), (z[:, 0] < 0.57).double())  # the policy fails on one side
    found = next_distribution(f, phi, episodes, limits)
    assert found is not None
    best, _ = brute_force(f, phi, z, episodes, limits)
    assert float(f.entropy(found)) == pytest.approx(best, abs=0.02)
    assert float(f.entropy(found)) > float(f.entropy(phi)) + 0.1
    a, b = found.exp().tolist()
    assert a / (a + b) < 0.5  # it leans to where the policy succeeds
    assert float(f.divergence(found, phi)) <= 0.3 + 1e-9
    assert float(estimate(f, found, episodes, caution)[0]) >= 0.65 - 1e-9


def test_where_too_few_succeed_success_is_raised_first() -> None:
    f, limits = family([0.5], [0], 40.0), Limits(0.9, 0.05, 0.3, 0.0)
    phi = log_shapes(8.0, 8.0)
    z = drawn(f, phi, 300)
    episodes = Episodes(f.features(z), log_prob(f, phi, z), (z[:, 0] < 0.5).double())
    found = next_distribution(f, phi, episodes, limits)
    assert found is not None
    best, most = brute_force(f, phi, z, episodes, limits)
    assert best == -math.inf  # not within reach
    assert float(estimate(f, found, episodes)[0]) == pytest.approx(most, abs=0.005)
    nearer = Limits(0.6, 0.3, 0.3, 0.0)  # within reach: what the divergence leaves goes to entropy
    found = next_distribution(f, phi, episodes, nearer)
    assert found is not None
    assert float(estimate(f, found, episodes)[0]) >= 0.6 - 1e-9
    assert float(f.entropy(found)) == pytest.approx(brute_force(f, phi, z, episodes, nearer)[0], abs=0.02)


def test_a_choice_keeps_the_values_that_work() -> None:
    """Three values; the last one always fails. With success >= 0.8 its share can be 0.2 at most, by arithmetic."""
    f, phi = family([0.5], [3]), torch.tensor([0.0, -3.0], dtype=torch.float64)
    z = torch.tensor([[1 / 6]] * 475 + [[0.5]] * 475 + [[5 / 6]] * 50, dtype=torch.float64)
    p = torch.tensor([0.475, 0.475, 0.05], dtype=torch.float64)
    phi = torch.log(p / p[1])[[0, 2]]
    episodes = Episodes(f.features(z), log_prob(f, phi, z), (z[:, 0] < 0.6).double())
    found = next_distribution(f, phi, episodes, Limits(0.8, 1.0, 0.1, 0.0))
    assert found is not None
    shares = log_prob(f, found, torch.tensor([[1 / 6], [0.5], [5 / 6]])).exp()
    torch.testing.assert_close(shares, torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64), rtol=0, atol=2e-3)


def test_weights_that_rest_on_few_episodes_ask_for_more() -> None:
    f = family([0.5], [0], 100.0)
    old, new = log_shapes(4.0, 30.0), log_shapes(30.0, 4.0)
    z = drawn(f, old, 200)
    episodes = Episodes(f.features(z), log_prob(f, old, z), torch.ones(200, dtype=torch.float64))
    _, effective = estimate(f, new, episodes)
    w = (log_prob(f, new, z) - log_prob(f, old, z)).exp()
    assert float(effective) == pytest.approx(float(w.sum() ** 2 / w.square().sum() / 200))
    assert float(effective) < 0.2
    assert next_distribution(f, new, episodes, Limits(0.5, 0.5, 0.2, 0.0)) is None
    found = next_distribution(
        f, old, episodes, Limits(0.5, 5.0, 0.5, 0.0)
    )  # a far step, held back by its weights alone
    assert found is not None
    assert 0.5 - 1e-9 <= float(estimate(f, found, episodes)[1]) < 0.55


def test_standard_error_of_equal_weights_is_the_binomial_one() -> None:
    f, phi = family([0.5], [0]), log_shapes(3.0, 3.0)
    z = drawn(f, phi, 100)
    episodes = Episodes(f.features(z), log_prob(f, phi, z), (torch.arange(100) < 80).double())
    plain, cautious = (float(estimate(f, phi, episodes, c)[0]) for c in (0.0, 2.0))
    assert plain == pytest.approx(0.8)
    assert plain - cautious == pytest.approx(2 * math.sqrt(0.8 * 0.2 / 100), rel=1e-3)


@settings(max_examples=8, deadline=None)
@given(
    st.integers(0, 10_000),
    st.floats(0.2, 0.9),
    st.floats(0.02, 0.5),
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=3),
)
def test_limits_hold_and_entropy_falls_only_where_success_is_short(
    seed: int, least: float, divergence: float, nominal: list[float]
) -> None:
    f = family(nominal, [0] * len(nominal), 50.0)
    phi = f.start + 0.3 * (f.low - f.start).clamp_max(0.0)
    z = drawn(f, phi, 64, seed)
    generator = torch.Generator().manual_seed(seed)
    success = (torch.rand(64, generator=generator) < z.mean(1)).double()
    episodes, limits = Episodes(f.features(z), log_prob(f, phi, z), success), Limits(least, divergence, 0.3, 0.0)
    found = next_distribution(f, phi, episodes, limits)
    assert found is not None
    expected, effective = (float(x) for x in estimate(f, found, episodes))
    assert float(f.divergence(found, phi)) <= divergence + 1e-9
    assert effective >= 0.3 - 1e-9
    before = float(success.mean())
    if before >= least:
        assert float(f.entropy(found)) >= float(f.entropy(phi)) - 1e-12
        assert expected >= least - 1e-9
    else:
        assert expected >= min(before, least) - 1e-9
