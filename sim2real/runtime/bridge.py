"""The bridge's loop: observe, decide, filter, send; one tick after the other, without torch and without waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from visuomotor.data.errors import UserError
from visuomotor.sim2real.robots.config import RobotConfig
from visuomotor.sim2real.runtime.board import RequestBox, StatusBoard
from visuomotor.sim2real.runtime.episodes import Conductor, EpisodeResult
from visuomotor.sim2real.runtime.gripper import Gripper
from visuomotor.sim2real.runtime.link import PolicyLink
from visuomotor.sim2real.runtime.observer import Observer
from visuomotor.sim2real.runtime.report import EventLog, Latencies, status_of, summary
from visuomotor.sim2real.runtime.scene import Scene
from visuomotor.sim2real.runtime.scheduler import Scheduler
from visuomotor.sim2real.runtime.streamer import Streamer
from visuomotor.sim2real.runtime.teleop import Teleop
from visuomotor.sim2real.runtime.types import Listener, Observed, Request, State, Tick
from visuomotor.sim2real.runtime.watch import Watch
from visuomotor.sim2real.safety.filter import Filtered, SafetyFilter
from visuomotor.sim2real.safety.supervisor import Inputs, Supervisor
from visuomotor.sim2real.transports.base import Transport

__all__ = ["Bridge", "Parts"]

_BOARD_NS = 50_000_000
_SETTLED_NS = 500_000_000  # after which a fault's standing arm is not commanded any more
_HELD_NS = 600_000_000  # a key that is held repeats itself after half a second at the latest
_WITHOUT_POLICY = {Request.START: Request.TAKE_OVER, Request.HAND_BACK: Request.HOLD}
_LAST_TICKS = 10
_TAIL_S = 0.02  # between the points of a way to rest


@dataclass(kw_only=True)
class Parts:
    """What a bridge is made of; ``runtime/build.py`` makes them.

    Attributes:
        fps: control steps per second of the policy.
        home: where episodes begin ``[n]``, with an open gripper; None: where the arm is.
    """

    robot: RobotConfig
    transport: Transport
    observer: Observer
    teleop: Teleop
    scene: Scene
    filter: SafetyFilter
    supervisor: Supervisor
    watch: Watch
    streamer: Streamer
    gripper: Gripper
    scheduler: Scheduler | None
    link: PolicyLink | None
    conductor: Conductor
    board: StatusBoard
    requests: RequestBox
    fps: float
    home: np.ndarray | None
    listeners: Sequence[Listener] = field(default_factory=tuple)


class Bridge:
    """Moves one arm. ``tick`` is called at the loop's rate with the transport's clock.

    Attributes:
        done: the session has ended and the arm rests: tick no more.
        state: of the supervisor.
        log: what happened.
        latencies: how long what took.
    """

    def __init__(self, parts: Parts, now_ns: int) -> None:
        self.parts = p = parts
        self.done, self.state = False, State.IDLE
        self.log, self.latencies = EventLog(now_ns), Latencies()
        self.counts = {"ticks": 0, "commands": 0, "chunks": 0, "chunks_refused": 0, "starved_ticks": 0, "events": 0}
        self.faults: list[str] = []
        self._asked: deque[Request] = deque()
        self._quits, self._over, self._held_ns = False, 0, -(10**18)
        self._began_ns, self._shown_ns = now_ns, now_ns - _BOARD_NS
        self._step_ns, self._next_ns, self._step = round(1e9 / p.fps), now_ns, 0
        self._stretch, self._fed_ns = -1, now_ns
        self._motion: Filtered | None = None  # what was commanded last; None: nothing is
        self._moved_ns, self._state_ns = now_ns, 0
        self._fatal: tuple[str, ...] = ()
        self._latency_ns = round(1e9 * p.robot.command.latency_s)
        self._lead_ns = p.streamer.lead_ns + self._latency_ns

    def tick(self, now_ns: int) -> State:
        """Everything that is to be done now."""
        p = self.parts
        events = p.observer.poll()
        p.teleop.poll()
        self._receive(now_ns, events)
        judged = self._take_requests(now_ns)
        before, self.state = self.state, self._supervise(now_ns)
        events += p.supervisor.take_notes()
        if self.state is not before:
            self._enter(before, now_ns, events)
        human, sent = self._command(now_ns, events)
        observed = self._observe(now_ns)
        ended = self._conduct(now_ns, judged, events)
        for text in events:
            self.log.add(now_ns, text)
        self.counts["ticks"] += 1
        self.counts["events"] += len(events)
        self._tell(now_ns, observed, human, sent, events, ended)
        self._show(now_ns)
        self._over = self._over + 1 if self._quits and not p.supervisor.may_move and self._resting else 0
        self.done = self._over > _LAST_TICKS  # the last position is said more than once
        return self.state

    @property
    def _resting(self) -> bool:
        return self._motion is None or self.parts.filter.at_rest

    def _receive(self, now_ns: int, events: list[str]) -> None:
        """Take up a chunk of the policy, if one has come."""
        p = self.parts
        chunk = None if p.link is None else p.link.receive(now_ns)
        if chunk is None or p.scheduler is None or chunk.episode != self._stretch or self.state is not State.RUN:
            return
        self.counts["chunks"] += 1
        self.latencies.add("observation_to_chunk", (now_ns - chunk.observed_ns) * 1e-9)
        wrong = p.scheduler.accept(chunk, now_ns + self._lead_ns, p.filter.position)
        if wrong:
            self.counts["chunks_refused"] += 1
            events.append(wrong)

    def _take_requests(self, now_ns: int) -> bool | None:
        """Queue what operators ask for; returns how they judged the episode, if they did."""
        judged = None
        while (request := self.parts.requests.take()) is not None:
            if request is Request.HELD:
                self._held_ns = now_ns
                continue
            if self.parts.scheduler is None:
                request = _WITHOUT_POLICY.get(request, request)
            if request is Request.STOP:
                self._asked.clear()
            if request in (Request.SUCCESS, Request.FAILURE):
                judged = request is Request.SUCCESS
            self._asked.append(request)
        return judged

    def _supervise(self, now_ns: int) -> State:
        p = self.parts
        request = self._asked.popleft() if self._asked else None
        if request is Request.QUIT:
            self._quits = True
            request = request if p.supervisor.may_move else None
        commanded = None if self._motion is None else self._motion.position
        starved_s = (now_ns - self._fed_ns) * 1e-9
        inputs = Inputs(
            request=request,
            problems=(*self._fatal, *p.watch.problems(now_ns, self.state, starved_s, commanded)),
            stop=p.scene.take_stop(),
            held=now_ns - self._held_ns < _HELD_NS,
            arrived=self._arrived(),
            at_rest=self._resting,
            teleop=p.teleop.alive(now_ns),
        )
        self._fatal = ()
        return p.supervisor.tick(now_ns, inputs)

    def _arrived(self) -> bool:
        if self._motion is None:
            return False
        home, limit = self.parts.home, self.parts.filter.config.ramp_arrival
        return home is None or bool(np.abs(self._motion.position - home).max() < limit)

    def _enter(self, before: State, now_ns: int, events: list[str]) -> None:
        """What a new state begins with."""
        p = self.parts
        if not p.supervisor.may_send:
            self._motion = None
            return
        if self._motion is None and self.state is not State.FAULT:
            self._begin_motion(events)
        if self._motion is None:
            return
        if self.state is State.RUN:
            self._stretch, self._step, self._next_ns, self._fed_ns = self._stretch + 1, 0, now_ns, now_ns
            if p.scheduler is not None:
                p.scheduler.reset(p.filter.position, p.gripper.opening, now_ns + self._lead_ns)
        elif self.state is State.HUMAN:
            p.teleop.begin()
        elif self.state is State.FAULT:
            self.faults.append(p.supervisor.fault)

    def _begin_motion(self, events: list[str]) -> None:
        """Start from where the arm is measured, at rest."""
        p = self.parts
        q = p.observer.measured()[0]
        try:
            p.filter.start(q)
        except UserError as e:
            self._fatal = (str(e),)
            return
        p.watch.tracking.reset()
        p.streamer.start()
        p.gripper.start(p.observer.opening())
        zero = np.zeros_like(q)
        self._motion = Filtered(q, zero, zero, (), False)

    # ---- commands

    def _wanted(self, now_ns: int, reached_ns: int) -> tuple[np.ndarray | None, bool, float | None]:
        """Joint targets for a time, whether to go there slowly, and the gripper's opening; None: brake, as it is."""
        p = self.parts
        if self._motion is None or not p.supervisor.may_move or reached_ns <= now_ns:
            return None, False, None
        if self.state is State.HUMAN:
            target, slow = p.teleop.target(self._motion.position)
            return target, slow, p.teleop.opening
        if self.state is State.RAMP:
            return (self._motion.position, False, None) if p.home is None else (p.home, True, 1.0)
        if p.scheduler is None:
            return None, False, None
        planned = p.scheduler.sample(reached_ns + self._latency_ns)
        if planned.starved:
            self.counts["starved_ticks"] += 1
        else:
            self._fed_ns = now_ns
        return planned.joints, False, planned.opening

    def _command(self, now_ns: int, events: list[str]) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Filter and send; returns what a person wanted, and the positions that were sent."""
        p, opening, human = self.parts, None, None
        if self._motion is None or not p.supervisor.may_send:
            return None, None
        motions = []
        for reached_ns in p.streamer.times(now_ns):
            target, slow, opening = self._wanted(now_ns, reached_ns)
            human = target if self.state is State.HUMAN else None
            self._motion = motion = p.filter.step(target, slow=slow)
            motions.append(motion)
            events += [e.text for e in motion.events]
            self._fatal += tuple(e.text for e in motion.events if e.fatal)
            if motion.velocity.any():
                self._moved_ns = now_ns
        if self.state is not State.FAULT:
            self._moved_ns = now_ns
        if now_ns - self._moved_ns > _SETTLED_NS:
            return None, None
        if motions:
            self._send(now_ns, motions)
        p.gripper.send(now_ns, opening)
        p.observer.note_opening(p.gripper.opening)
        return human, self._motion.position

    def _send(self, now_ns: int, motions: list[Filtered]) -> None:
        p = self.parts
        measured = p.observer.measured()[0]
        if not p.streamer.send(now_ns, motions, lambda: p.filter.resting_tail(_TAIL_S), measured, p.gripper.opening):
            return
        self.counts["commands"] += 1
        came = p.observer.state_ns
        if came != self._state_ns:
            self._state_ns = came
            self.latencies.add("state_to_command", (p.transport.now_ns() - came) * 1e-9)

    # ---- observations and episodes

    def _observe(self, now_ns: int) -> Observed | None:
        """The observation of a control step, handed to the policy where it acts."""
        p = self.parts
        if self.state not in (State.RUN, State.HUMAN) or now_ns < self._next_ns or p.observer.missing():
            return None
        late = (now_ns - self._next_ns) // self._step_ns
        self._step, self._next_ns = self._step + int(late), self._next_ns + (late + 1) * self._step_ns
        acts = self.state is State.RUN and p.link is not None
        observed = p.observer.observe(
            now_ns, step=self._step, episode=self._stretch if acts else -1, seed=p.conductor.seed
        )
        self._step += 1
        if acts:
            assert p.link is not None
            p.link.send(observed)
            self.latencies.add("age_of_observation", (now_ns - observed.time_ns) * 1e-9)
        return observed

    def _conduct(self, now_ns: int, judged: bool | None, events: list[str]) -> EpisodeResult | None:
        p = self.parts
        step = p.conductor.tick(now_ns, self.state, p.scene.good, judged, self._quits)
        self._asked.extend(step.requests)
        if step.reset_seed is not None:
            p.scene.ask_for(step.reset_seed)
        if step.ended is not None:
            r = step.ended
            verdict = "success" if r.success else "failure"
            events.append(f"episode {len(p.conductor.results)}: {verdict} after {r.seconds:.1f} s ({r.ended_by})")
        return step.ended

    # ---- what others see

    def _tell(
        self, now_ns: int, observed: Observed | None, human: np.ndarray | None, sent: np.ndarray | None,
        events: list[str], ended: EpisodeResult | None,
    ) -> None:  # fmt: skip
        p = self.parts
        if not p.listeners:
            return
        q, v = p.observer.measured()
        scheduler = p.scheduler if self.state is State.RUN else None
        tick = Tick(
            time_ns=now_ns,
            stamp_ns=p.transport.stamp_ns(),
            state=self.state,
            episode=len(p.conductor.results) - 1 if ended is not None else p.conductor.episode,
            observed=observed,
            action=None if scheduler is None else scheduler.action(now_ns + self._lead_ns),
            human=human,
            sent=sent,
            sent_opening=p.gripper.opening,
            measured=q,
            velocity=v,
            opening=p.observer.opening(),
            events=tuple(events),
            outcome=None if ended is None else ended.success,
        )
        for listener in p.listeners:
            listener(tick)

    def _show(self, now_ns: int) -> None:
        if now_ns - self._shown_ns < _BOARD_NS:
            return
        self._shown_ns = now_ns
        p = self.parts
        status = status_of(p.observer, p.robot.joints, now_ns)
        status.state, status.fault, status.waiting = self.state, p.supervisor.fault, list(p.supervisor.waiting)
        status.time_s = (now_ns - self._began_ns) * 1e-9
        status.commanded = [] if self._motion is None else self._motion.position.tolist()
        if self.state is State.RUN and p.scheduler is not None:
            status.preview = p.scheduler.preview(now_ns + self._lead_ns).tolist()
        status.latency_ms = 1e3 * self.latencies.newest("observation_to_chunk")
        status.episode, status.events = p.conductor.episode, self.log.shown
        p.board.write(status)

    def summary(self) -> dict[str, Any]:
        """JSON-ready account of the session so far."""
        return summary(self.parts.conductor.results, self.faults, self.counts, self.latencies)
