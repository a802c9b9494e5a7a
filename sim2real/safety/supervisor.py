"""The state machine that decides whether the arm may move, and by whom."""

from __future__ import annotations

from dataclasses import dataclass

from visuomotor.sim2real.runtime.types import Request, State
from visuomotor.sim2real.safety.config import SafetyConfig

__all__ = ["TRANSITIONS", "Inputs", "Supervisor"]

_MOVING = (State.RAMP, State.RUN, State.HUMAN)

TRANSITIONS: dict[State, dict[Request, State]] = {
    State.IDLE: {},
    State.READY: {Request.START: State.RAMP, Request.HOME: State.RAMP, Request.TAKE_OVER: State.HUMAN},
    State.RAMP: {Request.HOLD: State.HOLD, Request.TAKE_OVER: State.HUMAN, Request.QUIT: State.HOLD},
    State.RUN: {
        Request.HOLD: State.HOLD,
        Request.TAKE_OVER: State.HUMAN,
        Request.HOME: State.RAMP,
        Request.SUCCESS: State.HOLD,
        Request.FAILURE: State.HOLD,
        Request.QUIT: State.HOLD,
    },
    State.HUMAN: {
        Request.HOLD: State.HOLD,
        Request.HAND_BACK: State.RUN,
        Request.HOME: State.RAMP,
        Request.SUCCESS: State.HOLD,
        Request.FAILURE: State.HOLD,
        Request.QUIT: State.HOLD,
    },
    State.HOLD: {
        Request.START: State.RUN,
        Request.HAND_BACK: State.RUN,
        Request.TAKE_OVER: State.HUMAN,
        Request.HOME: State.RAMP,
        Request.SUCCESS: State.HOLD,
        Request.FAILURE: State.HOLD,
        Request.RESET: State.READY,
    },
    State.FAULT: {Request.RESET: State.IDLE},
}
"""What a request does in each state; every other one is refused with a note. ``STOP`` leads from anywhere to FAULT.
A pause in a ramp goes on with the ramp; an episode that ended in HOLD becomes READY as soon as the arm is at rest.
"""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the supervisor is told in one tick.

    Attributes:
        request: of the operator.
        problems: whatever is wrong now: streams that are too old, a policy that is dead, an arm that does not follow,
            fatal events of the filter. While nothing moves they are what is waited for.
        stop: the emergency-stop topic says stop.
        held: the operator holds the key or pedal of ``hold_to_run``.
        arrived: in RAMP: the arm is where it should go.
        at_rest: the commanded motion has ended.
        teleop: the teleoperating device is there.
    """

    request: Request | None = None
    problems: tuple[str, ...] = ()
    stop: bool = False
    held: bool = False
    arrived: bool = False
    at_rest: bool = True
    teleop: bool = False


class Supervisor:
    """Where the bridge stands; one :meth:`tick` per tick of the loop, before the command is made.

    In IDLE and READY nothing may be sent. In RAMP, RUN and HUMAN targets are pursued. In HOLD and FAULT the arm brakes
    to rest and holds. FAULT is latched: only RESET leaves it, only to IDLE, and not before the arm is at rest.

    Attributes:
        state: now.
        fault: what happened; empty but in FAULT.
        waiting: in IDLE: for what.
        goal: in RAMP: ``policy`` or ``home``.
    """

    def __init__(self, config: SafetyConfig) -> None:
        self._config = config
        self.state, self.fault, self.goal = State.IDLE, "", "policy"
        self.waiting: tuple[str, ...] = ()
        self._notes: list[str] = []
        self._ended = False  # the episode is over
        self._resume = State.RUN
        self._since_ns = 0

    @property
    def may_send(self) -> bool:
        """Commands go out: targets are pursued, or the arm brakes and holds."""
        return self.state not in (State.IDLE, State.READY)

    @property
    def may_move(self) -> bool:
        """Targets are pursued; else the arm brakes to rest."""
        return self.state in _MOVING

    def take_notes(self) -> list[str]:
        """What happened since the last call, for the operator."""
        notes, self._notes = self._notes, []
        return notes

    def tick(self, now_ns: int, inputs: Inputs) -> State:
        """The state of this tick."""
        if inputs.request is Request.STOP or inputs.stop:
            who = "the operator" if inputs.request is Request.STOP else "the stop topic"
            self._fail(now_ns, f"stopped by {who}")
            if inputs.request is Request.RESET:
                self._notes.append("reset refused: the stop topic still says stop")
        elif inputs.problems and self.state in (*_MOVING, State.HOLD):
            self._fail(now_ns, "; ".join(inputs.problems))
        else:
            if inputs.request is not None:
                self._ask(now_ns, inputs.request, inputs)
            self._proceed(now_ns, inputs)
        return self.state

    def _fail(self, now_ns: int, why: str) -> None:
        if self.state is not State.FAULT:
            self.fault = why
            self._go(now_ns, State.FAULT, why)

    def _ask(self, now_ns: int, request: Request, inputs: Inputs) -> None:
        after = TRANSITIONS[self.state].get(request)
        if after is None and request is Request.QUIT:
            return  # nothing moves
        if after is None:
            wait = f"; waiting for {'; '.join(self.waiting)}" if self.waiting else ""
            self._notes.append(f"{request} refused: the state is {self.state}{wait}")
            return
        if after is State.RUN and self.state is State.HOLD:
            after = self._resume if request is Request.START else State.RUN
        refusal = self._refusal(request, after, inputs)
        if refusal:
            self._notes.append(f"{request} refused: {refusal}")
            return
        if request in (Request.SUCCESS, Request.FAILURE):
            self._ended = True
        if after is State.RAMP and self.state is not State.HOLD:
            self.goal = "policy"
        if request is Request.HOME:
            self.goal = "home"
        if after is not self.state:
            self._go(now_ns, after, str(request))

    def _refusal(self, request: Request, after: State, inputs: Inputs) -> str:
        if request is Request.RESET and not inputs.at_rest:
            return "the arm still moves"
        if after in _MOVING and inputs.problems:
            return "; ".join(inputs.problems)
        if after is State.HUMAN and not inputs.teleop:
            return "nothing comes from the teleoperating device"
        if request is Request.HAND_BACK and self.state is State.HOLD and self._resume is not State.HUMAN:
            return "nobody has taken over"
        if after in _MOVING and self._config.hold_to_run and not inputs.held:
            return "hold the key of hold-to-run"
        if after in _MOVING and self._ended:
            return "the episode has ended; wait until the arm is at rest"
        return ""

    def _proceed(self, now_ns: int, inputs: Inputs) -> None:
        """Transitions that nobody asks for."""
        state = self.state
        self.waiting = inputs.problems if state in (State.IDLE, State.READY) else ()
        if state is State.IDLE and not inputs.problems:
            self._go(now_ns, State.READY, "everything is there")
        elif state is State.READY and inputs.problems:
            self._go(now_ns, State.IDLE, "; ".join(inputs.problems))
        elif state in _MOVING and self._config.hold_to_run and not inputs.held:
            self._go(now_ns, State.HOLD, "the key of hold-to-run was released")
        elif state is State.RAMP and now_ns > self._since_ns:
            self._ramp(now_ns, inputs)
        elif state is State.HOLD and self._ended and inputs.at_rest:
            self._go(now_ns, State.READY, "the episode has ended")

    def _ramp(self, now_ns: int, inputs: Inputs) -> None:
        taken = (now_ns - self._since_ns) * 1e-9
        if inputs.arrived and self.goal == "policy":
            self._go(now_ns, State.RUN, "the arm is where the policy begins")
        elif inputs.arrived and inputs.at_rest:
            self._go(now_ns, State.READY, "the arm is at home")
        elif taken > self._config.ramp_timeout_s:
            limit = self._config.ramp_timeout_s
            self._fail(now_ns, f"the arm has not come to its start ({self.goal}) in {taken:.1f} s; limit {limit:g} s")

    def _go(self, now_ns: int, after: State, why: str) -> None:
        self._notes.append(f"{self.state} -> {after}: {why}")
        if after is State.HOLD:
            self._resume = self.state
        if after in (State.READY, State.IDLE, State.FAULT):
            self._ended = False
        if after is not State.FAULT:
            self.fault = ""
        self.state, self._since_ns = after, now_ns
