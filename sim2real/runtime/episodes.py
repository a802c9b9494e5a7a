"""Episodes one after the other: begin, judge, end, set the scene up again."""

from __future__ import annotations

from dataclasses import dataclass, field

from visuomotor.data.errors import ConfigError
from visuomotor.sim2real.runtime.types import Request, State

__all__ = ["Conductor", "EpisodeConfig", "EpisodeResult"]

_START_EVERY_S = 1.0  # a start that was refused is asked for again


@dataclass(kw_only=True, slots=True)
class EpisodeConfig:
    """How a session goes.

    Attributes:
        count: end after so many episodes; 0: when the operator ends it.
        seconds: an episode without success ends after so long.
        auto: begin every episode without the operator.
        success_s: it is a success when the goal has held for so long (of robots with a ``success_topic``).
        reset_s: given to the scene after a reset was asked for (of robots with a ``reset_topic``).
        home: go to the robot's home before every episode, with the gripper open.
        seed: of the first episode; the next ones count up.
        minutes: end after so long.
        end_on_fault: a fault ends the session, where nobody is there to look after it.
    """

    count: int = 0
    seconds: float = 60.0
    auto: bool = False
    success_s: float = 0.2
    reset_s: float = 1.0
    home: bool = True
    seed: int = 0
    minutes: float | None = None
    end_on_fault: bool = False

    def __post_init__(self) -> None:
        if self.count < 0 or self.seed < 0:
            raise ConfigError(f"episodes: count={self.count}, seed={self.seed}: expected 0 or more")
        for name in ("seconds", "success_s", "reset_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"episodes: {name}={getattr(self, name)}: expected more than 0")
        if self.minutes is not None and not self.minutes > 0:
            raise ConfigError(f"episodes: minutes={self.minutes}: expected more than 0")


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """How one episode went. ``seconds`` without the way to its beginning; ``interventions``: takeovers by a person."""

    success: bool
    seconds: float
    interventions: int
    seed: int
    ended_by: str  # goal, time, operator, fault


@dataclass
class _Running:
    seed: int
    began_ns: int
    interventions: int = 0
    good_since_ns: int | None = None


@dataclass
class Step:
    """What the conductor wants of one tick."""

    requests: list[Request] = field(default_factory=list)
    reset_seed: int | None = None  # ask for a new scene
    ended: EpisodeResult | None = None


class Conductor:
    """Follows the states of the bridge and asks for what comes next.

    Args:
        config: how a session goes.
        can_reset: the scene sets itself up when it is asked to.

    Attributes:
        results: of the episodes so far.
        episode: number of the one that runs; -1: none does.
    """

    def __init__(self, config: EpisodeConfig, *, can_reset: bool) -> None:
        self._config, self._can_reset = config, can_reset
        self.results: list[EpisodeResult] = []
        self._now: _Running | None = None
        self._state = State.IDLE
        self._began_ns: int | None = None
        self._reset_ns: int | None = None
        self._asked_ns = -(10**18)
        self._quit = False

    @property
    def episode(self) -> int:
        return len(self.results) if self._now is not None else -1

    @property
    def seed(self) -> int:
        """Of the episode that runs or comes next."""
        return self._config.seed + len(self.results)

    def tick(self, now_ns: int, state: State, good: bool, judged: bool | None, quits: bool) -> Step:
        """One tick.

        Args:
            now_ns: time.
            state: of the bridge, after this tick's transitions.
            good: the robot says that the goal holds.
            judged: the operator ended the episode, as a success or a failure; None: did not.
            quits: the operator asked to end the session.
        """
        step = Step()
        if self._began_ns is None:
            self._began_ns = now_ns
        before, self._state = self._state, state
        self._quit = self._quit or quits or (state is State.FAULT and self._config.end_on_fault)
        if state in (State.RUN, State.HUMAN):
            self._follow(now_ns, before, state, good, judged, step)
        elif self._now is not None and state in (State.FAULT, State.HOLD, State.IDLE, State.READY):
            if state is State.FAULT:
                step.ended = self._end(now_ns, False, "fault")
            elif judged is not None:  # an episode that was held goes on, unless it is judged
                step.ended = self._end(now_ns, judged, "operator")
            elif self._quit:
                step.ended = self._end(now_ns, False, "operator")
        elif self._now is None:
            self._between(now_ns, state, step)
        return step

    def _follow(self, now_ns: int, before: State, state: State, good: bool, judged: bool | None, step: Step) -> None:
        if self._now is None:
            self._now = _Running(self.seed, now_ns)
        run = self._now
        if state is State.HUMAN and before is not State.HUMAN:
            run.interventions += 1
        run.good_since_ns = (run.good_since_ns or now_ns) if good else None
        held = run.good_since_ns is not None and now_ns - run.good_since_ns >= 1e9 * self._config.success_s
        if judged is not None:
            step.ended = self._end(now_ns, judged, "operator")
        elif held:
            step.ended = self._end(now_ns, True, "goal")
        elif now_ns - run.began_ns >= 1e9 * self._config.seconds and state is State.RUN:
            step.ended = self._end(now_ns, False, "time")
        elif self._quit:
            step.ended = self._end(now_ns, False, "operator")
        if step.ended is not None and judged is None and not self._quit:
            step.requests.append(Request.SUCCESS if step.ended.success else Request.FAILURE)

    def _between(self, now_ns: int, state: State, step: Step) -> None:
        """No episode: the next one, or the end."""
        assert self._began_ns is not None
        over = self._config.minutes is not None and now_ns - self._began_ns >= 60e9 * self._config.minutes
        done = 0 < self._config.count <= len(self.results)
        if (over or done or self._quit) and state is not State.RAMP:
            step.requests.append(Request.QUIT)
            return
        if state is State.HOLD and self._config.auto:
            step.requests.append(Request.RESET)  # a scene is set up while nothing is commanded
        if state is not State.READY:
            return
        if self._can_reset and self._reset_ns is None:
            step.reset_seed, self._reset_ns = self.seed, now_ns
        waited = self._reset_ns is None or now_ns - self._reset_ns >= 1e9 * self._config.reset_s
        if self._config.auto and waited and now_ns - self._asked_ns >= 1e9 * _START_EVERY_S:
            step.requests.append(Request.START)
            self._asked_ns = now_ns

    def _end(self, now_ns: int, success: bool, by: str) -> EpisodeResult:
        run = self._now
        assert run is not None
        result = EpisodeResult(
            success=success,
            seconds=(now_ns - run.began_ns) * 1e-9,
            interventions=run.interventions,
            seed=run.seed,
            ended_by=by,
        )
        self.results.append(result)
        self._now, self._reset_ns = None, None
        return result
