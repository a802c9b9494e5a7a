"""Every transition of the state machine, and what no sequence of requests and problems can make it do."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.sim2real.runtime.types import Request, State
from visuomotor.sim2real.safety.config import SafetyConfig
from visuomotor.sim2real.safety.monitors import TrackingMonitor, stale
from visuomotor.sim2real.safety.supervisor import TRANSITIONS, Inputs, Supervisor

TICK = 10_000_000  # ns
MOVING = (State.RAMP, State.RUN, State.HUMAN)
WAY: dict[State, list[dict[str, Any]]] = {  # requests that lead to a state, and whether the arm is where it should go
    State.IDLE: [],
    State.READY: [{}],
    State.RAMP: [{}, {"request": Request.START}],
    State.RUN: [{}, {"request": Request.START}, {"arrived": True}],
    State.HUMAN: [{}, {"request": Request.TAKE_OVER}],
    State.HOLD: [{}, {"request": Request.START}, {"arrived": True}, {"request": Request.HOLD}],
    State.FAULT: [{}, {"request": Request.STOP}],
}


class Machine:
    """A supervisor with its clock; inputs that are not given are those of an arm that moves and lacks nothing."""

    def __init__(self, state: State = State.IDLE, **config: Any) -> None:
        self.supervisor, self.now = Supervisor(SafetyConfig(**config)), 0
        for step in WAY[state]:
            self.tick(**step)
        assert self.supervisor.state is state
        self.supervisor.take_notes()

    def tick(self, **inputs: Any) -> State:
        self.now += TICK
        return self.supervisor.tick(self.now, Inputs(**{"teleop": True, "at_rest": False, "held": True, **inputs}))

    def notes(self) -> str:
        return "; ".join(self.supervisor.take_notes())


@pytest.mark.parametrize(("state", "request_"), list(itertools.product(State, Request)))
def test_a_request_does_what_the_table_says(state: State, request_: Request) -> None:
    machine = Machine(state)
    after = State.FAULT if request_ is Request.STOP else TRANSITIONS[state].get(request_, state)
    problems = ("camera: no message yet",) if state is State.IDLE else ()
    if state is State.FAULT and request_ is Request.RESET:
        after = State.READY  # IDLE is left in the same tick: nothing is missing
    at_rest = request_ is Request.RESET
    assert machine.tick(request=request_, problems=problems, at_rest=at_rest) is (
        State.RUN if (state, request_) == (State.HOLD, Request.START) else _held(state, request_, after)
    )


def _held(state: State, request: Request, after: State) -> State:
    """Only who took over can hand back out of HOLD."""
    return state if (state, request) == (State.HOLD, Request.HAND_BACK) else after


def test_requests_that_do_nothing_say_so() -> None:
    machine = Machine(State.IDLE)
    machine.tick(problems=("/joint_states: no message yet",))
    machine.notes()
    machine.tick(request=Request.START, problems=("/joint_states: no message yet",))
    assert machine.notes() == "start refused: the state is idle; waiting for /joint_states: no message yet"
    machine = Machine(State.READY)
    machine.tick(request=Request.HAND_BACK)
    assert machine.notes() == "hand_back refused: the state is ready"
    machine.tick(request=Request.TAKE_OVER, teleop=False)
    assert "nothing comes from the teleoperating device" in machine.notes()
    assert machine.supervisor.state is State.READY


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("how", ["operator", "topic"])
def test_stop_is_a_fault_within_one_tick(state: State, how: str) -> None:
    machine = Machine(state)
    assert machine.tick(request=Request.STOP if how == "operator" else None, stop=how == "topic") is State.FAULT
    who = "the operator" if how == "operator" or state is State.FAULT else "the stop topic"  # a fault keeps its cause
    assert machine.supervisor.fault == f"stopped by {who}"
    assert not machine.supervisor.may_move


@pytest.mark.parametrize("state", [*MOVING, State.HOLD])
def test_a_problem_while_commands_go_out_is_a_fault_that_stays(state: State) -> None:
    machine = Machine(state)
    assert machine.tick(problems=("wrist: no message for 0.612 s; limit 0.500 s",)) is State.FAULT
    assert machine.supervisor.fault == "wrist: no message for 0.612 s; limit 0.500 s"
    for _ in range(5):  # the camera is back
        assert machine.tick(at_rest=True) is State.FAULT
    assert machine.tick(problems=("another",)) is State.FAULT
    assert "wrist" in machine.supervisor.fault  # the first cause


def test_a_fault_is_reset_only_at_rest_and_not_against_the_stop_topic() -> None:
    machine = Machine(State.FAULT)
    assert machine.tick(request=Request.RESET, at_rest=False) is State.FAULT
    assert machine.notes() == "reset refused: the arm still moves"
    assert machine.tick(request=Request.RESET, at_rest=True, stop=True) is State.FAULT
    assert machine.notes() == "reset refused: the stop topic still says stop"
    assert machine.tick(request=Request.RESET, at_rest=True, problems=("the policy is dead",)) is State.IDLE
    assert machine.supervisor.fault == ""
    assert machine.tick(problems=("the policy is dead",)) is State.IDLE
    assert machine.supervisor.waiting == ("the policy is dead",)
    assert machine.tick() is State.READY


def test_what_is_missing_is_waited_for_while_nothing_moves() -> None:
    machine = Machine(State.READY)
    assert machine.tick(problems=("camera: no message for 1.000 s; limit 0.500 s",)) is State.IDLE
    assert machine.tick() is State.READY
    assert machine.tick(request=Request.START, problems=("x",)) is State.IDLE


def test_a_ramp_ends_where_the_policy_begins_or_in_a_fault() -> None:
    machine = Machine(State.RAMP, ramp_timeout_s=1.0)
    for _ in range(99):
        assert machine.tick() is State.RAMP
    assert machine.tick() is State.RAMP
    assert machine.tick() is State.FAULT
    assert machine.supervisor.fault == "the arm has not come to its start (policy) in 1.0 s; limit 1 s"


def test_home_is_a_ramp_that_ends_ready() -> None:
    machine = Machine(State.RUN)
    assert machine.tick(request=Request.HOME) is State.RAMP
    assert machine.supervisor.goal == "home"
    assert machine.tick(arrived=True) is State.RAMP  # not yet at rest
    assert machine.tick(arrived=True, at_rest=True) is State.READY
    assert machine.tick(request=Request.START) is State.RAMP
    assert machine.supervisor.goal == "policy"
    assert machine.tick(arrived=True) is State.RUN


def test_a_pause_goes_on_where_it_was() -> None:
    machine = Machine(State.RAMP)
    machine.tick(request=Request.HOLD)
    assert machine.tick(request=Request.START) is State.RAMP
    machine = Machine(State.RUN)
    machine.tick(request=Request.HOME)
    machine.tick(request=Request.HOLD)
    assert machine.tick(request=Request.START) is State.RAMP
    assert machine.supervisor.goal == "home"
    machine = Machine(State.HUMAN)
    machine.tick(request=Request.HOLD)
    assert machine.tick(request=Request.START, teleop=False) is State.HOLD
    assert machine.tick(request=Request.START) is State.HUMAN
    machine.tick(request=Request.HOLD)
    assert machine.tick(request=Request.HAND_BACK) is State.RUN


@pytest.mark.parametrize("verdict", [Request.SUCCESS, Request.FAILURE])
def test_an_episode_ends_in_hold_and_is_ready_at_rest(verdict: Request) -> None:
    machine = Machine(State.RUN)
    assert machine.tick(request=verdict) is State.HOLD
    assert machine.tick(request=Request.START) is State.HOLD
    assert "the episode has ended" in machine.notes()
    assert machine.tick(at_rest=True) is State.READY
    assert machine.tick(request=Request.START) is State.RAMP


def test_hold_to_run() -> None:
    machine = Machine(State.READY, hold_to_run=True)
    assert machine.tick(request=Request.START, held=False) is State.READY
    assert machine.notes() == "start refused: hold the key of hold-to-run"
    assert machine.tick(request=Request.START) is State.RAMP
    assert machine.tick(held=False) is State.HOLD
    assert machine.tick(held=True) is State.HOLD  # pressing it again starts nothing
    assert machine.tick(request=Request.START) is State.RAMP


INPUTS = st.fixed_dictionaries(
    {
        "request": st.one_of(st.none(), st.sampled_from(Request)),
        "problems": st.sampled_from([(), (), (), ("x: no message for 1.000 s; limit 0.100 s",)]),
        "stop": st.sampled_from([False] * 8 + [True]),
        "held": st.booleans(),
        "arrived": st.booleans(),
        "at_rest": st.booleans(),
        "teleop": st.booleans(),
    }
)


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(INPUTS, max_size=60), hold_to_run=st.booleans())
def test_no_sequence_breaks_the_rules(steps: list[dict[str, Any]], hold_to_run: bool) -> None:
    machine = Machine(hold_to_run=hold_to_run)
    for inputs in steps:
        before = machine.supervisor.state
        after = machine.tick(**inputs)
        asked = inputs["request"]
        if before is State.FAULT and after is not State.FAULT:  # nothing clears by itself
            assert asked is Request.RESET
            assert inputs["at_rest"]
            assert not inputs["stop"]
            assert after in (State.IDLE, State.READY)
        if inputs["stop"] or asked is Request.STOP:
            assert after is State.FAULT
        if before not in MOVING and after in MOVING:  # nothing starts by itself, or with something missing
            assert asked in (Request.START, Request.HOME, Request.TAKE_OVER, Request.HAND_BACK)
            assert not inputs["problems"]
        if hold_to_run and after in MOVING:
            assert inputs["held"]
        if inputs["problems"]:
            assert after not in MOVING
        if after is State.READY and before in (*MOVING, State.HOLD, State.FAULT):  # commands end at rest only
            assert inputs["at_rest"]
        assert machine.supervisor.may_move == (after in MOVING)
        assert machine.supervisor.may_send == (after not in (State.IDLE, State.READY))
        assert bool(machine.supervisor.fault) == (after is State.FAULT)


# ---- monitors


def test_old_streams_are_named_with_age_and_limit() -> None:
    ages = {"state": (0.02, 0.1), "wrist": (0.6123, 0.5), "cube": (float("inf"), 0.5), "odd": (float("nan"), 1.0)}
    assert stale(ages) == (
        "wrist: no message for 0.612 s; limit 0.500 s",
        "cube: no message yet",
        "odd: no message for nan s; limit 1.000 s",
    )


def tracking(delay: int, noise: float = 0.0, blocked_at: int = 10**9) -> tuple[list[str], list[int]]:
    """An arm that follows a sine with ``delay`` ticks of 10 ms, and stands from ``blocked_at`` on."""
    monitor = TrackingMonitor(("a", "b"), SafetyConfig())
    rng = np.random.default_rng(0)
    path = np.stack([np.sin(np.arange(600) * 0.02), np.zeros(600)], 1)
    said, when = [], []
    for t in range(300):
        measured = path[max(0, min(t, blocked_at) - delay)] + noise * rng.normal(size=2)
        wrong = monitor.check(t * TICK, path[t], measured)
        if wrong:
            said.append(wrong)
            when.append(t)
    return said, when


@pytest.mark.parametrize("delay", [0, 10, 30])
def test_a_delay_of_the_robots_controller_is_no_error(delay: int) -> None:
    assert tracking(delay, 0.01) == ([], [])


def test_an_arm_that_does_not_follow_is_noticed() -> None:
    said, when = tracking(2, blocked_at=30)
    assert said[0].startswith("a does not follow: measured 0.531, commanded ")
    assert said[0].endswith("limit 0.15 rad for 0.1 s")
    # the command leaves the last 0.3 s of its path 0.15 rad behind about 0.5 s after the arm stopped
    assert 60 < when[0] < 95


def test_a_measurement_that_is_no_number_is_an_error() -> None:
    monitor = TrackingMonitor(("a",), SafetyConfig())
    said = [monitor.check(t * TICK, np.zeros(1), np.array([np.nan])) for t in range(12)]
    assert said[0] == ""
    assert said[-1].startswith("a does not follow: measured nan")
    monitor.reset()
    assert monitor.check(200 * TICK, np.zeros(1), np.array([np.nan])) == ""
