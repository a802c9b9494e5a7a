"""What goes between the parts of the runtime: chunks, what is observed, requests of the operator, and the status."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

__all__ = ["Chunk", "Listener", "Observed", "Request", "State", "Status", "Tick"]


class State(StrEnum):
    """Where the bridge stands. Nothing leaves ``FAULT`` but a request of the operator."""

    IDLE = "idle"  # streams are not yet there, or the operator has not asked for anything
    READY = "ready"  # everything is there; nothing moves
    RAMP = "ramp"  # slowly to where the policy begins
    RUN = "run"  # the policy commands
    HUMAN = "human"  # a person commands, by a teleoperating device
    HOLD = "hold"  # braked, standing; may go on
    FAULT = "fault"  # braked, standing; the cause is latched


class Request(StrEnum):
    """What an operator may ask for."""

    START = "start"
    HOLD = "hold"
    TAKE_OVER = "take_over"
    HAND_BACK = "hand_back"
    RESET = "reset"  # out of FAULT or HOLD into READY
    HOME = "home"
    STOP = "stop"  # emergency: brake and latch
    SUCCESS = "success"  # ends the episode, as one that succeeded
    FAILURE = "failure"  # ends the episode, as one that failed
    QUIT = "quit"
    HELD = "held"  # of hold-to-run: the key or pedal is held; repeated while it is


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Actions of the policy.

    Attributes:
        observed_ns: when the newest observation it was made from was true [ns, the bridge's monotonic clock].
        first_ns: when its first action is meant to be reached.
        dt_ns: between two actions.
        actions: float64 ``[H, Da]`` in the policy's raw units.
        sequence: counts up by one with every chunk.
        episode: ``Observed.episode`` that it was made for; chunks of another are dropped.
    """

    observed_ns: int
    first_ns: int
    dt_ns: int
    actions: np.ndarray
    sequence: int
    episode: int = 0


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One aligned observation: every key at one time.

    Attributes:
        time_ns: when it was true [ns, the bridge's monotonic clock].
        step: control step, 0 for the first observation of a stretch in which the policy acts.
        episode: number of that stretch: with a new one the policy begins anew. -1: not for the policy.
        seed: of the episode, for the policy's noise.
        values: arrays as the policy's specification has them, without a time axis.
        ages_s: by stream: how long ago its newest message had come when this was put together.
    """

    time_ns: int
    step: int
    episode: int
    seed: int
    values: Mapping[str, np.ndarray]
    ages_s: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Tick:
    """What one tick of the bridge did, for whoever records it.

    Attributes:
        time_ns: of the tick [ns, the bridge's monotonic clock].
        stamp_ns: the same on the clock of headers [ns since 1970].
        state: of the supervisor after this tick.
        episode: counts up by one with every episode; -1 outside of episodes. A person who takes over and gives back
            stays in the same one.
        observed: the observation that was sent to the policy in this tick; None in ticks between control steps.
        action: the policy's raw action ``[Da]`` that is in force now; None without one.
        human: joint targets ``[n]`` of the person who commands; None unless one does.
        sent: joint positions ``[n]`` that were commanded in this tick, after the safety filter; None if none were.
        sent_opening: of the gripper, 0..1.
        measured, velocity: of the joints ``[n]``, the newest; nan before the first.
        opening: measured opening of the gripper, 0..1.
        events: what happened in this tick, in words.
        outcome: in the tick in which an episode ends: whether it succeeded. None in all others.
    """

    time_ns: int
    stamp_ns: int
    state: State
    episode: int
    observed: Observed | None
    action: np.ndarray | None
    human: np.ndarray | None
    sent: np.ndarray | None
    sent_opening: float
    measured: np.ndarray
    velocity: np.ndarray
    opening: float
    events: tuple[str, ...] = ()
    outcome: bool | None = None


Listener = Callable[[Tick], None]
"""Told of every tick, in the bridge's own thread: it returns at once."""


@dataclass(kw_only=True)
class Status:
    """What an operator sees. JSON-ready but for ``pictures``.

    Attributes:
        state: one of :class:`State`.
        fault: what happened, with numbers; empty in other states than FAULT.
        waiting: in IDLE and READY: what is missing before anything can begin.
        time_s: since the bridge started.
        joints: names, in the order of the arrays below.
        measured, commanded: positions [rad or m].
        velocity: measured [rad/s or m/s].
        preview: joint targets of the actions still ahead ``[H][n]`` [rad or m].
        ages_s, rates_hz: by stream.
        latency_ms: of the policy, from observation to chunk.
        episode: number of the episode being recorded, -1 for none.
        events: the newest, each with time and text.
        pictures: the newest frame of each camera, uint8 ``[H, W, 3]`` RGB.
    """

    state: str = State.IDLE
    fault: str = ""
    waiting: list[str] = field(default_factory=list)
    time_s: float = 0.0
    joints: list[str] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)
    commanded: list[float] = field(default_factory=list)
    velocity: list[float] = field(default_factory=list)
    preview: list[list[float]] = field(default_factory=list)
    ages_s: dict[str, float] = field(default_factory=dict)
    rates_hz: dict[str, float] = field(default_factory=dict)
    latency_ms: float = 0.0
    episode: int = -1
    events: list[str] = field(default_factory=list)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
