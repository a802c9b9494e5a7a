"""``visuomotor play``: watch a policy or the expert in a window, act oneself, and record demonstrations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visuomotor.configs.build import LoadedPolicy, load_policy, pick_device
from visuomotor.configs.compose import parse_plain, task_settings
from visuomotor.configs.execution import Execution
from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.parts import PartConfig
from visuomotor.envs.base import VecEnv
from visuomotor.envs.play import Clock, ExpertPilot, Pilot, Played, PlaySession, PlaySettings, SystemClock
from visuomotor.envs.registry import make_env
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.tape import DemoTape
from visuomotor.envs.teleop import KEYS, ArmOperator, EventSource, JoinedSource, KeyboardSource, open_gamepad
from visuomotor.envs.viewer import Window
from visuomotor.policies.execution.config import ExecuteConfig
from visuomotor.policies.goals import GoalEnv, load_goals

__all__ = ["PlayConfig", "main", "play"]

_DEVICES = ("keyboard", "gamepad", "viewer")
_LAST_SEED = 1_000_000
_PERSON_SECONDS = 120.0  # a person needs longer than the time limit that a policy is given


@dataclass(kw_only=True, slots=True)
class PlayConfig:
    """``visuomotor play``: a policy, an expert or a person acts in a window, in real time.

    Attributes:
        task: the task; null takes the one that ``checkpoint`` was trained for.
        checkpoint: a policy that acts until the person takes over: a checkpoint folder, or a run.
        device: with what the person acts: ``keyboard`` (each press is a small push), ``gamepad`` (needs the extra
            teleop), or ``viewer``: the person watches the policy, or the task's scripted expert if none is given.
        record: store for the episodes, made or added to; null records nothing.
        env: settings of the task's environment that differ from their defaults.
        text: what is asked for: the text of a policy that reads one, and the column ``task`` of the recording.
        goal: where a goal-conditioned policy gets its goals, as ``eval.goal`` of ``visuomotor train``.
        hand_speed: of the hand that a person moves [m/s].
        turn_speed: of the hand that a person turns [rad/s].
        speed: of the time, as a factor of real time.
        episodes: end when this many were kept; 0 goes on until the window is closed.
        hold: steps that an episode goes on after its goal is reached; it is kept if the goal still holds then.
        keep_failures: record episodes that ended without success too.
        seed: other seeds begin with other episodes; a recording that is added to goes on after its last one.
        weights: of the checkpoint, ``ema`` (the moving average) or ``raw``.
        execute: how the chunks of the policy become actions.
    """

    task: str | None = None
    checkpoint: str | None = None
    device: str = "keyboard"
    record: str | None = None
    env: dict[str, Any] = field(default_factory=dict)
    text: str | None = None
    goal: str | None = None
    hand_speed: float = 0.2
    turn_speed: float = 0.8
    speed: float = 1.0
    episodes: int = 0
    hold: int = 10
    keep_failures: bool = False
    seed: int = 0
    weights: str = "ema"
    execute: ExecuteConfig = field(default_factory=ExecuteConfig)

    def __post_init__(self) -> None:
        if self.device not in _DEVICES:
            raise ConfigError(f"unknown device {self.device!r}. {nearest(self.device, _DEVICES)}")
        if self.task is None and self.checkpoint is None:
            raise ConfigError("give task=<name>, or checkpoint=<run> to see a policy in the task it was trained for")
        for name in ("hand_speed", "turn_speed", "speed"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name):g}: expected more than 0, and finite")
        for name in ("episodes", "hold"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}: expected 0 or more")
        if not 0 <= self.seed <= _LAST_SEED:
            raise ConfigError(f"seed={self.seed}: expected 0 to {_LAST_SEED}")


def main(words: Sequence[str]) -> int:
    """Play as ``words`` say (``key=value ...``); returns the exit status."""
    config = parse_plain(PlayConfig, words)
    clock = SystemClock()
    keyboard = KeyboardSource()
    source: EventSource = JoinedSource([open_gamepad(), keyboard]) if config.device == "gamepad" else keyboard

    def window(env: SimVecEnv) -> Window:
        opened = Window(env, keyboard.press)
        print("".join(f"  {key:<10} {text}\n" for key, text in KEYS.items()), end="")
        return opened

    played = play(config, source, window, clock)
    recorded = f" in {config.record}" if config.record is not None else ""
    print(f"{played.kept} episodes kept{recorded}, {played.dropped} thrown away, {played.steps} steps")
    return 0


def play(config: PlayConfig, source: EventSource, window: Callable[[SimVecEnv], Any], clock: Clock) -> Played:
    """Set the world up and play until the window is closed; ``window(env)`` is a context manager and a View.

    Raises:
        UserError: something that does not go together, with the reason.
    """
    loaded = (
        None
        if config.checkpoint is None
        else load_policy(config.checkpoint, weights=config.weights, device=pick_device("auto"))
    )
    with ExitStack() as stack:
        env = _world(config, loaded)
        stack.callback(env.close)
        played_env, pilot = _policy(config, loaded, env)
        if pilot is None and config.device == "viewer":
            pilot = ExpertPilot(env)
        operator = None
        if config.device != "viewer":
            operator = ArmOperator(env, hand_speed=config.hand_speed, turn_speed=config.turn_speed)
        view = stack.enter_context(window(env))
        tape = _tape(config, env, interventions=pilot is not None and operator is not None)
        if tape is not None:
            stack.callback(tape.close)
        settings = PlaySettings(
            speed=config.speed,
            seed=config.seed,
            episodes=config.episodes,
            hold=config.hold,
            keep_failures=config.keep_failures,
        )
        session = PlaySession(
            played_env, source, pilot=pilot, operator=operator, tape=tape, view=view, settings=settings, clock=clock
        )
        return session.run()


def _world(config: PlayConfig, loaded: LoadedPolicy | None) -> SimVecEnv:
    """One world of the task, whose episodes go on after success: the session ends them."""
    saved: dict[str, Any] = {"task": None}
    if loaded is not None:
        saved = loaded.checkpoint.document("config")["config"]
    task = config.task or saved["task"]
    if task is None:
        raise ConfigError("this policy was trained without a task: give task=<name>")
    settings = task_settings(task, {**(saved["env"] if saved["task"] == task else {}), **config.env})
    if hasattr(settings, "end_on_success"):
        settings.end_on_success = False
    env = make_env(settings, 1)
    if not isinstance(env, SimVecEnv):
        env.close()
        raise ConfigError(f"task {task!r} runs in another simulator, which has no window here: give a simulated task")
    if config.device != "viewer" and not settings.max_episode_steps:
        env.max_episode_steps = max(env.max_episode_steps, round(_PERSON_SECONDS * env.fps))
    return env


def _policy(config: PlayConfig, loaded: LoadedPolicy | None, env: SimVecEnv) -> tuple[VecEnv, Pilot | None]:
    """The environment as the policy sees it, with goals and texts if it reads some, and the policy in it."""
    if loaded is None:
        return env, None
    spec = loaded.policy.spec
    spec.check_source(env.obs_spec, env.action_spec, env.fps, source=f"task {env.task.name!r}")
    seen: VecEnv = env
    if not spec.constant_keys <= set(env.obs_spec):
        saved = loaded.checkpoint.document("config")["config"]["data"]
        trained_on = loaded.checkpoint.document("training")["dataset"]["path"]
        parts = {k: PartConfig(**v) for k, v in saved.get("parts", {}).items()}
        goals = load_goals(spec, config.goal or trained_on, config.text, parts)
        seen = env if goals is None else GoalEnv(env, goals, spec)
    return seen, Execution(config=config.execute).actor(loaded.policy, 1)


def _tape(config: PlayConfig, env: SimVecEnv, *, interventions: bool) -> DemoTape | None:
    if config.record is None:
        return None
    text = config.text or env.task.name.replace("_", " ")
    return DemoTape(Path(config.record).expanduser(), env, text=text, interventions=interventions)
