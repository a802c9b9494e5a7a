"""What the filter sends keeps every limit, whatever it is given: counted where the robot receives it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.sim2real.messages import FloatArray
from visuomotor.sim2real.safety.config import ArmLimits, SafetyConfig
from visuomotor.sim2real.safety.filter import SafetyFilter
from visuomotor.sim2real.transports.base import COMMAND
from visuomotor.sim2real.transports.inproc import Bus, InprocTransport

LOW = np.array([-2.9, -1.8, -2.9, -3.1, -2.9, 0.0, -2.9])
HIGH = np.array([2.9, 1.8, 2.9, -0.07, 2.9, 3.75, 2.9])
HOME = np.array([0.0, 0.1, 0.0, -2.3, 0.0, 2.4, 0.785])
LIMITS = ArmLimits(
    low=LOW, high=HIGH, velocity=np.full(7, 2.0), acceleration=np.linspace(5, 10, 7), jerk=np.linspace(100, 400, 7)
)
WILD = SafetyConfig(first_command=np.inf, jump=np.inf, resume_after_s=0.0)  # every finite target is pursued


def bad_target(kind: int, k: int, base: np.ndarray, rate: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """The ``k``-th target of a kind; ``base [7]`` and ``rate [7]`` are its own random numbers."""
    match kind:
        case 0:
            return base
        case 1:
            return rng.uniform(LOW - 1, HIGH + 1)
        case 2:
            return HIGH if k % 2 else LOW
        case 3:
            return np.full(7, (np.nan, np.inf, -np.inf)[k % 3])
        case 4:
            return base + rate * k
        case 5:
            return HOME + 0.3 * np.sin(rate * k)
        case 6:
            return np.where(rng.random(7) < 0.2, np.nan, base)
        case 7:
            return rng.normal(size=7) * 10.0 ** rng.integers(-8, 300)
        case 8:
            return HIGH + np.sin(40 * rate * k) * 0.05  # around a limit
        case _:
            return None


def adversary(rng: np.random.Generator, ticks: int, dt: float) -> Iterator[np.ndarray | None]:
    """Jumps, alternations, not numbers, far away, ramps, silence: each for some ticks."""
    while ticks > 0:
        length = min(int(rng.integers(1, 120)), ticks)
        kind, base, rate = int(rng.integers(10)), rng.uniform(LOW - 0.5, HIGH + 0.5), rng.normal(size=7) * 3 * dt
        for k in range(length):
            yield bad_target(kind, k, base, rate, rng)
        ticks -= length


def assert_within(sent: np.ndarray, dt: float, limits: ArmLimits, config: SafetyConfig) -> None:
    """Of positions ``[T, n]`` in the order they were sent. Tolerance: one part in a million, 1e-9 rad."""
    assert np.isfinite(sent).all()
    margin = np.minimum(config.position_margin, (limits.high - limits.low) / 4)
    assert (sent >= limits.low + margin - 1e-9).all()
    assert (sent <= limits.high - margin + 1e-9).all()
    for order, most in enumerate((limits.velocity * config.velocity_share, limits.acceleration, limits.jerk), 1):
        difference = np.abs(np.diff(sent, n=order, axis=0)) / dt**order
        assert (difference <= most * (1 + 1e-6)).all(), (order, float((difference / most).max()))


def attack(seed: int, ticks: int, dt: float) -> np.ndarray:
    """Positions that a robot receives over the in-process transport while an adversary gives the targets."""
    rng = np.random.default_rng(seed)
    bus = Bus()
    bridge, robot = InprocTransport(bus, "bridge"), InprocTransport(bus, "robot")
    received: list[np.ndarray] = []
    robot.subscribe("/commands", FloatArray, lambda message, _: received.append(message.data), COMMAND)
    publisher = bridge.advertise("/commands", FloatArray, COMMAND)
    filter = SafetyFilter(LIMITS, dt, WILD)
    filter.start(HOME)
    for target in adversary(rng, ticks, dt):
        publisher.publish(FloatArray(data=filter.step(target, slow=bool(rng.random() < 0.02)).position))
        bus.advance(round(dt * 1e9))
    assert len(received) == ticks
    return np.array(received)


@pytest.mark.parametrize("dt", [0.002, 0.008, 0.02, 0.1])
def test_no_adversary_gets_beyond_a_limit(dt: float) -> None:
    sent = attack(int(dt * 1000), 12_500, dt)
    assert_within(sent, dt, LIMITS, WILD)
    speed = np.abs(np.diff(sent, axis=0)).max(0) / dt
    assert (speed > 0.7 * LIMITS.velocity).all()  # it did move


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_no_adversary_gets_beyond_a_limit_in_a_million_ticks(seed: int) -> None:
    dt = (0.002, 0.004, 0.008, 0.01, 0.02)[seed % 5]
    assert_within(attack(100 + seed, 100_000, dt), dt, LIMITS, WILD)


FLOATS = st.one_of(st.floats(-4, 4), st.floats(allow_nan=True, allow_infinity=True))
TARGETS = st.lists(st.one_of(st.none(), st.tuples(FLOATS, FLOATS), st.integers(1, 60)), min_size=1, max_size=30)


@settings(max_examples=80, deadline=None)
@given(
    targets=TARGETS,
    dt=st.sampled_from([0.001, 0.008, 0.05]),
    velocity=st.floats(0.05, 5),
    acceleration=st.one_of(st.floats(0.1, 50), st.just(np.inf)),
    jerk=st.one_of(st.floats(1, 5000), st.just(np.inf)),
    width=st.floats(0.05, 4),
    place=st.floats(0.05, 0.95),
)
def test_no_sequence_gets_beyond_a_limit(
    targets: list[tuple[float, float] | int | None], dt: float, velocity: float, acceleration: float, jerk: float,
    width: float, place: float,
) -> None:  # fmt: skip
    """Any limits, narrow ranges included; integers repeat the target before."""
    limits = ArmLimits(
        low=np.array([-width / 2, -np.inf]), high=np.array([width / 2, np.inf]), velocity=np.full(2, velocity),
        acceleration=np.full(2, acceleration), jerk=np.full(2, jerk),
    )  # fmt: skip
    filter = SafetyFilter(limits, dt, WILD)
    start = np.array([(place - 0.5) * width * 0.5, 0.0])
    filter.start(start)
    sent, target = [start], None
    for wanted in targets:
        if not isinstance(wanted, int):
            target = None if wanted is None else np.array(wanted)
        sent += [filter.step(target).position for _ in range(wanted if isinstance(wanted, int) else 1)]
    sent += [filter.step(None).position for _ in range(5)]
    assert_within(np.array(sent)[:, :1], dt, _first(limits), WILD)
    assert np.isfinite(sent).all()


def _first(limits: ArmLimits) -> ArmLimits:
    return ArmLimits(**{k: getattr(limits, k)[:1] for k in ("low", "high", "velocity", "acceleration", "jerk")})
