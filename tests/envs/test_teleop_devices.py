"""Events of keyboard and gamepad."""

from __future__ import annotations

import pytest

from visuomotor.data.errors import UserError
from visuomotor.envs.teleop import EVENTS, KEYS, Event, GamepadSource, JoinedSource, KeyboardSource

UP, SPACE, ENTER, LEFT, RIGHT = 265, 32, 257, 263, 262
ZERO = (0.0,) * 6


def test_a_key_moves_for_three_steps_and_opposite_keys_cancel():
    keys = KeyboardSource()
    keys.press(UP)
    forward = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert keys.poll() == [Event("move", forward)]
    assert keys.poll() == keys.poll() == []
    assert keys.poll() == [Event("move", ZERO)]
    keys.press(UP)
    keys.press(LEFT)
    keys.press(RIGHT)
    keys.press(SPACE)
    keys.press(999)
    assert keys.poll() == [Event("move", forward), Event("gripper")]
    keys.press(UP)  # again: three more steps from here
    assert [keys.poll() for _ in range(3)] == [[], [], []]
    assert keys.poll() == [Event("move", ZERO)]


def test_every_event_has_a_key_except_the_window_s_own():
    texts = set(KEYS.values())
    assert {k for k, v in EVENTS.items() if v not in texts} == {"move", "quit"}


class Joystick:
    def __init__(self) -> None:
        self.axes, self.buttons, self.hat = [0.0] * 6, [0] * 11, (0, 0)

    def get_numaxes(self) -> int:
        return len(self.axes)

    def get_axis(self, i: int) -> float:
        return self.axes[i]

    def get_numbuttons(self) -> int:
        return len(self.buttons)

    def get_button(self, i: int) -> int:
        return self.buttons[i]

    def get_numhats(self) -> int:
        return 1

    def get_hat(self, i: int) -> tuple[int, int]:
        return self.hat


def test_gamepad_sticks_move_outside_their_dead_centre_and_buttons_tell_once():
    pad, pumped = Joystick(), []
    source = JoinedSource([GamepadSource(pad, lambda: pumped.append(1)), KeyboardSource()])
    pad.axes[0] = 0.05
    assert source.poll() == []
    pad.axes[1], pad.buttons[0] = -0.5, 1
    assert source.poll() == [Event("move", (0.5, 0.0, 0.0, 0.0, 0.0, 0.0)), Event("gripper")]
    assert source.poll() == []
    pad.axes[1], pad.buttons[0], pad.hat = 0.0, 0, (1, 0)
    assert source.poll() == [Event("move", (0.0, 0.0, 0.0, 1.0, 0.0, 0.0))]
    pad.buttons[3], pad.hat = 1, (0, 0)
    assert source.poll() == [Event("move", ZERO), Event("success")]
    assert len(pumped) == 5


def test_events_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match=r"unknown event 'sucess'\. Did you mean 'success'"):
        Event("sucess")
    with pytest.raises(UserError, match="'move' with 2 values"):
        Event("move", (1.0, 2.0))
