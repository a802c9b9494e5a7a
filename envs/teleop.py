"""What a person says while a simulation runs (events from keyboard or gamepad), and how it moves an arm."""

from __future__ import annotations

import os
import queue
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, MissingExtraError, UserError, nearest
from visuomotor.data.rotations import axis_angle_to_quat, quat_to_matrix
from visuomotor.envs.robots.arm import Arm
from visuomotor.envs.sim.env import SimVecEnv

__all__ = [
    "EVENTS",
    "KEYS",
    "ArmOperator",
    "Event",
    "EventSource",
    "GamepadSource",
    "JoinedSource",
    "KeyboardSource",
    "open_gamepad",
]

EVENTS = {
    "move": "from now on move the hand: x, y, z and turns about x, y, z of the robot's base, each -1..1",
    "gripper": "close the gripper, or open it again",
    "arm": "move the other arm from now on",
    "success": "the goal is reached: keep the episode and begin the next one",
    "discard": "throw this episode away and begin the next one",
    "restart": "throw this episode away and begin it again",
    "pause": "stop the time, or let it go on",
    "takeover": "take the arm from the policy, or give it back",
    "faster": "let the time go twice as fast",
    "slower": "let the time go half as fast",
    "quit": "end",
}
_NUDGE = 3  # control steps for which a key moves the hand
_DEAD = 0.12  # of a stick, around its centre


@dataclass(frozen=True)
class Event:
    """One of :data:`EVENTS`; ``value`` belongs to ``move``: three translations and three rotations, -1..1."""

    kind: str
    value: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in EVENTS:
            raise UserError(f"unknown event {self.kind!r}. {nearest(self.kind, EVENTS)}")
        if len(self.value) != (6 if self.kind == "move" else 0):
            raise UserError(f"event {self.kind!r} with {len(self.value)} values; expected 6 for 'move', else none")


class EventSource(Protocol):
    """Where events come from. A test, a script or another device can be one."""

    def poll(self) -> list[Event]:
        """What happened since the last call, in its order; never waits."""


class JoinedSource:
    """Several sources as one."""

    def __init__(self, sources: Sequence[EventSource]) -> None:
        self._sources = list(sources)

    def poll(self) -> list[Event]:
        return [event for source in self._sources for event in source.poll()]


# GLFW's codes (glfw.org/docs, "Keyboard key tokens"). MuJoCo's viewer has a use for every letter and the digits 0 to 5.
_X, _Y, _Z = (1, 0, 0, 0, 0, 0), (0, 1, 0, 0, 0, 0), (0, 0, 1, 0, 0, 0)
_RX, _RY, _RZ = (0, 0, 0, 1, 0, 0), (0, 0, 0, 0, 1, 0), (0, 0, 0, 0, 0, 1)
_MOVES: dict[int, tuple[str, str, tuple[int, ...], int]] = {
    265: ("Up", "away from the base", _X, 1),
    264: ("Down", "towards the base", _X, -1),
    263: ("Left", "to its left", _Y, 1),
    262: ("Right", "to its right", _Y, -1),
    266: ("Page Up", "up", _Z, 1),
    267: ("Page Down", "down", _Z, -1),
    54: ("6", "turn left about the vertical", _RZ, 1),
    55: ("7", "turn right about the vertical", _RZ, -1),
    56: ("8", "tip forwards", _RY, 1),
    57: ("9", "tip backwards", _RY, -1),
    268: ("Home", "roll one way", _RX, 1),
    269: ("End", "roll the other way", _RX, -1),
}
_KINDS = {
    32: ("Space", "gripper"),
    257: ("Enter", "success"),
    261: ("Delete", "discard"),
    299: ("F10", "restart"),
    298: ("F9", "pause"),
    260: ("Insert", "takeover"),
    297: ("F8", "arm"),
    61: ("=", "faster"),
    45: ("-", "slower"),
}
KEYS = {name: text for name, text, *_ in _MOVES.values()} | {name: EVENTS[kind] for name, kind in _KINDS.values()}
"""Key to what it does."""


class KeyboardSource:
    """Events from keys. MuJoCo's window tells neither of releases nor of repeats, so each press is a small push."""

    def __init__(self) -> None:
        self._pressed: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._left: dict[int, int] = {}  # steps for which each key still moves the hand
        self._last: tuple[float, ...] = (0.0,) * 6

    def press(self, key: int) -> None:
        """A key went down; GLFW's code. May be called from another thread."""
        self._pressed.put(key)

    def poll(self) -> list[Event]:
        events = []
        self._left = {key: n - 1 for key, n in self._left.items() if n > 1}
        while not self._pressed.empty():
            key = self._pressed.get()
            if key in _MOVES:
                self._left[key] = _NUDGE
            elif key in _KINDS:
                events.append(Event(_KINDS[key][1]))
        moves = [tuple(_MOVES[key][3] * v for v in _MOVES[key][2]) for key in self._left]
        value = tuple(float(max(-1, min(1, sum(m[i] for m in moves)))) for i in range(6))
        if value != self._last:
            self._last = value
            events.insert(0, Event("move", value))
        return events


# Buttons and axes as SDL numbers them on a pad of the usual kind (pygame's documentation, "Xbox 360 Controller").
_BUTTONS = dict(enumerate(("gripper", "takeover", "discard", "success", "slower", "faster", "restart", "pause", "arm")))


class GamepadSource:
    """Events from a gamepad: left stick x and y, right stick height and turn, cross the other turns, buttons the rest.

    Args:
        joystick: an opened ``pygame.joystick.Joystick``.
        pump: lets the library read the device.
    """

    def __init__(self, joystick: Any, pump: Any) -> None:
        self._joystick, self._pump = joystick, pump
        self._down: set[int] = set()
        self._last: tuple[float, ...] = (0.0,) * 6

    def poll(self) -> list[Event]:
        self._pump()
        j, events = self._joystick, []
        down = {b for b in _BUTTONS if b < j.get_numbuttons() and j.get_button(b)}
        events += [Event(_BUTTONS[b]) for b in sorted(down - self._down)]
        self._down = down
        hat = j.get_hat(0) if j.get_numhats() else (0, 0)
        # sticks give +1 to the right and towards the person, who stands behind the robot
        value = (-self._axis(1), -self._axis(0), -self._axis(4), float(hat[0]), float(hat[1]), -self._axis(3))
        if value != self._last:
            self._last = value
            events.insert(0, Event("move", value))
        return events

    def _axis(self, index: int) -> float:
        value = float(self._joystick.get_axis(index)) if index < self._joystick.get_numaxes() else 0.0
        return 0.0 if abs(value) < _DEAD else max(-1.0, min(1.0, value))


def open_gamepad() -> GamepadSource:
    """The first gamepad.

    Raises:
        MissingExtraError: pygame is not installed.
        UserError: no gamepad is connected.
    """
    try:
        import pygame
    except ImportError:
        raise MissingExtraError("device=gamepad needs pygame: pip install 'visuomotor[teleop]'") from None
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # the window is MuJoCo's, not SDL's,
    os.environ.setdefault("SDL_JOYSTICK_ALLOW_BACKGROUND_EVENTS", "1")  # so SDL has no focus to wait for
    pygame.display.init()
    pygame.joystick.init()
    if not pygame.joystick.get_count():
        raise UserError("device=gamepad: no gamepad is connected; connect one, or take device=keyboard")
    return GamepadSource(pygame.joystick.Joystick(0), pygame.event.pump)


class ArmOperator:
    """Turns events into actions of the arms of a task, in whatever action mode they are set to.

    The hand's *target* is moved, so that it neither sinks nor runs away from a person who does nothing.

    Args:
        env: one world with at least one arm.
        hand_speed: of a full move [m/s].
        turn_speed: of a full move [rad/s].

    Raises:
        ConfigError: the task has no arm.
    """

    def __init__(self, env: SimVecEnv, *, hand_speed: float, turn_speed: float) -> None:
        self._arms: list[Arm] = getattr(env.task, "arms", [])
        if not self._arms:
            raise ConfigError(f"task {env.task.name!r} has no arm to move by hand: take device=viewer")
        self._step = torch.tensor([hand_speed / env.fps] * 3 + [turn_speed / env.fps] * 3, device=env.device)
        self._motion, self._chosen = torch.zeros_like(self._step), 0
        self._grips: list[Tensor] = []
        self.reset()

    def reset(self) -> None:
        """Go on from what the arms were commanded last."""
        self._motion = torch.zeros_like(self._step)
        self._grips = [(arm.grip > 0.5).float() for arm in self._arms]

    def handle(self, event: Event) -> None:
        """Take note of ``move``, ``gripper`` and ``arm``; others are not for an arm."""
        if event.kind == "move":
            self._motion = self._step * torch.tensor(event.value, device=self._step.device)
        elif event.kind == "gripper":
            self._grips[self._chosen] = 1.0 - self._grips[self._chosen]
        elif event.kind == "arm":
            self._chosen = (self._chosen + 1) % len(self._arms)

    def act(self) -> Tensor:
        """Action ``[1, Da]`` for the next control step."""
        parts = []
        for i, arm in enumerate(self._arms):
            pos, rot = arm.chain.forward(arm.target)
            if i == self._chosen:
                pos = pos + self._motion[:3]
                rot = quat_to_matrix(axis_angle_to_quat(self._motion[None, 3:])) @ rot
            parts.append(arm.encode(*arm.to_world(pos, rot), self._grips[i]))
        return torch.cat(parts, 1)
