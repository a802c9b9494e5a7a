"""Runge-Kutta steps against the textbook, and what both heads that use them have in common."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import ChunkSizes, NetSizes, Observed
from visuomotor.policies.conditioned import ConditionedNet
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.edm import EDMConfig, EDMHead
from visuomotor.policies.heads.flow import FlowConfig, FlowHead
from visuomotor.policies.heads.ode import SOLVERS, OdeHead, advance, check_solver, solver_step
from visuomotor.policies.heads.times import TimeConfig
from visuomotor.policies.iterative import WarmStart
from visuomotor.policies.nets.mlp import MLPConfig, ResidualMLP

SIZES = ChunkSizes(action_dim=1, horizon=2, n_obs=1, feature_dim=1)
ORDER = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
EVALUATIONS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}


def _clean(x, s):
    """Any smooth function of both."""
    return torch.sin(2 * x) + s * x


def _textbook(solver, x, s, end):
    """The step in terms of slopes, as in any book on ordinary differential equations."""
    h = end - s

    def f(y, r):
        return (y - _clean(y, r)) / r

    k1 = f(x, s)
    if solver == "euler":
        return x + h * k1
    if solver == "midpoint":
        return x + h * f(x + h / 2 * k1, s + h / 2)
    if solver == "heun":
        return x + h / 2 * (k1 + f(x + h * k1, end))
    k2 = f(x + h / 2 * k1, s + h / 2)
    k3 = f(x + h / 2 * k2, s + h / 2)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + f(x + h * k3, end))


def _estimates(clean, step):
    return [lambda x, s=s: clean(x, s) for s in step.levels]


def _run(solver, grid, x, clean):
    for a, b in pairwise(grid):
        step = solver_step(solver, a, b)
        x = advance(step, x, _estimates(clean, step))
    return x


def test_one_euler_step_by_hand():
    step = solver_step("euler", 1.0, 0.5)  # half of the way from 3 to the clean 1
    assert advance(step, torch.tensor(3.0), [lambda x: torch.tensor(1.0)]).item() == 2.0
    last = solver_step("euler", 0.37, 0.0)
    assert last.output == (0.0, 1.0)  # exactly the clean estimate, whatever x was


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_step_equals_the_textbook(solver):
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)
    step = solver_step(solver, 0.8, 0.3)
    ours = advance(step, x, _estimates(_clean, step))
    assert torch.allclose(ours, _textbook(solver, x, 0.8, 0.3), rtol=1e-12, atol=1e-12)


@given(
    solver=st.sampled_from(SOLVERS),
    start=st.floats(1e-3, 100.0),
    share=st.one_of(st.just(0.0), st.floats(1e-3, 0.999)),
)
def test_weights_sum_to_one_and_nothing_is_evaluated_at_zero(solver, start, share):
    # A chunk that is its own clean estimate stays where it is; at level 0 there would be no slope.
    step = solver_step(solver, start, share * start)
    assert min(step.levels) > 0.0
    assert step.levels[0] == start
    for weights in (*step.inputs, step.output):
        assert sum(weights) == pytest.approx(1.0, abs=1e-9)
    if share == 0.0:
        assert step.output[0] == pytest.approx(0.0, abs=1e-12)  # nothing is left of x


@pytest.mark.parametrize("end", [0.25, 0.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_order_of_convergence_on_the_field_of_a_gaussian(solver, end):
    # Flow of a target N(m, s^2): the best estimate is m + (1-t) s^2 / var(t) (x - (1-t) m), var = (1-t)^2 s^2 + t^2,
    # and the path keeps the place of x in its distribution: x(t) = (1-t) m + sqrt(var(t)) z.
    m, s = 0.2, 0.6
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)

    def var(t):
        return (1 - t) ** 2 * s**2 + t**2

    def clean(x, t):
        return m + (1 - t) * s**2 / var(t) * (x - (1 - t) * m)

    exact = (1 - end) * m + var(end) ** 0.5 * z
    errors = [
        float((_run(solver, [1 - (1 - end) * i / n for i in range(n)] + [end], z, clean) - exact).abs().max())
        for n in (16, 32)
    ]
    expected = 2.0 ** ORDER[solver]
    assert errors[0] / errors[1] > 0.8 * expected, errors
    assert errors[1] < {1: 6e-2, 2: 2e-3, 4: 1e-5}[ORDER[solver]]


@pytest.mark.parametrize(
    ("solver", "steps", "says"), [("huen", 4, "heun"), ("rk4", 0, "1 to 100"), ("rk4", 101, "1 to 100")]
)
def test_refusals_say_what_exists(solver, steps, says):
    with pytest.raises(ConfigError, match=says):
        check_solver("flow", solver, steps)
    for head in (FlowHead(FlowConfig(), SIZES), EDMHead(EDMConfig(), SIZES)):
        with pytest.raises(ConfigError, match=says):
            head.set_solver(solver, steps)
        assert head.config.sample_steps == 10  # as before


def _heads(**settings) -> list[OdeHead]:
    return [FlowHead(FlowConfig(**settings), SIZES), EDMHead(EDMConfig(**settings), SIZES)]


@pytest.mark.parametrize("solver", SOLVERS)
def test_levels_name_every_evaluation_and_a_guide_is_asked_at_each(solver, function_net):
    for head in _heads(solver=solver, sample_steps=3):
        asked, called = [], []

        class Guide:
            needs_gradient = False

            def __call__(self, estimate, x, level):
                asked.append(level)  # noqa: B023
                return 0.5 * estimate(x) + 0.1

        def net(x, t):
            called.append(float(t[0]))  # noqa: B023
            return torch.zeros_like(x)

        noise = torch.randn(2, head.noise_count(), 2, 1, generator=torch.Generator().manual_seed(0))
        plain = head.sample(function_net(net), noise)
        guided = head.sample(function_net(net), noise, guide=Guide())
        assert asked == list(head.levels)
        assert called == pytest.approx([level.t for level in head.levels] * 2)
        assert not torch.allclose(plain, guided)
        last = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 3}[solver] if isinstance(head, FlowHead) else 1
        assert len(head.levels) == 2 * EVALUATIONS[solver] + last


def test_whatever_a_guide_says_is_where_sampling_lands(function_net):
    class Guide:
        needs_gradient = False

        def __call__(self, estimate, x, level):
            return torch.full_like(x, 0.7)

    for solver in SOLVERS:
        for head in _heads(solver=solver, sample_steps=4):
            out = head.sample(function_net(lambda x, t: x), torch.randn(3, 1, 2, 1), guide=Guide())
            assert torch.allclose(out, torch.full_like(out, 0.7), atol=1e-5)


def test_a_warm_start_makes_the_last_evaluations_from_its_own_level(function_net):
    chunk = torch.full((2, 2, 1), 0.5)
    noise = torch.randn(2, 1, 2, 1, generator=torch.Generator().manual_seed(1))
    for head in _heads(sample_steps=5):
        seen = []

        class Guide:
            needs_gradient = False

            def __call__(self, estimate, x, level):
                seen.append((x, level))  # noqa: B023
                return chunk

        out = head.sample(function_net(lambda x, t: x), noise, guide=Guide(), start=WarmStart(chunk, 2))
        assert [level for _, level in seen] == list(head.levels[3:])
        level = head.levels[3]
        assert torch.allclose(seen[0][0], level.alpha * chunk + level.sigma * noise[:, 0])
        assert torch.allclose(out, chunk, atol=1e-6)


def test_a_warm_start_in_the_midst_of_a_step_makes_the_whole_step(function_net):
    noise = torch.randn(1, 1, 2, 1, generator=torch.Generator().manual_seed(1))
    head = FlowHead(FlowConfig(solver="heun", sample_steps=3), SIZES)

    def evaluations(steps):
        called = []

        def net(x, t):
            called.append(float(t[0]))
            return x

        head.sample(function_net(net), noise, start=WarmStart(noise[:, 0], steps))
        assert called == pytest.approx([level.t for level in head.levels[-len(called) :]])
        return len(called)

    assert [evaluations(n) for n in range(1, 7)] == [2, 2, 4, 4, 6, 6]
    for steps in (0, 7):
        with pytest.raises(ConfigError, match="1 to 6"):
            evaluations(steps)


def _learn(head: OdeHead, steps: int, batch: int = 128) -> ConditionedNet:
    """A small perceptron after some steps on chunks that are at +0.6 or -0.6, with a spread of 0.05."""
    torch.manual_seed(0)
    sizes = NetSizes(input_dim=1, output_dim=1, horizon=2, n_obs=1, feature_dim=1, time_scale=head.time_scale)
    net = ResidualMLP(MLPConfig(width=48, depth=1, dropout=0.0), sizes)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    rows = Observed(torch.zeros(batch, 1, 1))
    for step in range(steps):
        draws = Draws(step)
        mode = 1.2 * draws.integers(0, 2, (batch,)).float().view(-1, 1, 1) - 0.6
        optimizer.zero_grad()
        head.loss(ConditionedNet(net, head, rows), mode + 0.05 * draws.normal((batch, 2, 1)), draws).mean().backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
    net.requires_grad_(False)
    return ConditionedNet(net, head, Observed(torch.zeros(512, 1, 1)))


LEARNERS = {
    "flow": FlowHead(FlowConfig(clip=None), SIZES),
    "flow-velocity": FlowHead(FlowConfig(prediction="velocity", loss_on="velocity", clip=None), SIZES),
    "flow-beta": FlowHead(FlowConfig(time=TimeConfig(distribution="beta", stratified=True), solver="rk4"), SIZES),
    "edm": EDMHead(EDMConfig(sigma_data=0.6, clip=None, solver="heun"), SIZES),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_two_modes_are_learnt_and_both_kept(name):
    head = LEARNERS[name]
    net = _learn(head, 200)
    noise = torch.randn(512, head.noise_count(), 2, 1, generator=torch.Generator().manual_seed(0))
    out = head.sample(net, noise)
    share = float((out[:, 0] > 0).float().mean())
    assert 0.35 < share < 0.65
    assert float((out.abs() - 0.6).abs().mean()) < 0.15  # near a mode, not between them
    assert float((out[:, 0] * out[:, 1] > 0).float().mean()) > 0.97  # and both steps of a chunk in the same one
    assert torch.equal(out, head.sample(net, noise))
    order = torch.randperm(512, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(head.sample(net, noise[order]), out[order], atol=1e-4)


def test_losses_are_a_function_of_the_draws(function_net):
    action = torch.rand(8, 2, 1) - 0.5
    for head in _heads():
        net = function_net(lambda x, t: x)
        first = head.loss(net, action, Draws(4))
        assert first.shape == (8, 2)
        assert torch.equal(first, head.loss(net, action, Draws(4)))
        assert not torch.equal(first, head.loss(net, action, Draws(5)))
        ranks = [head.loss(net, action[4 * r : 4 * r + 4], Draws(4, rank=r, world_size=2)) for r in (0, 1)]
        assert torch.allclose(torch.cat(ranks), first)
