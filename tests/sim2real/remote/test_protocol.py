from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from visuomotor.data.errors import CheckpointError, UserError
from visuomotor.data.spec import ArraySpec
from visuomotor.sim2real.remote.protocol import (
    check_finite,
    check_protocol,
    check_same_spec,
    largest_message,
    read_chunk,
    read_plan,
    write_plan,
)
from visuomotor.sim2real.remote.wire import Jpeg, WireError, decode, encode


def over_the_wire(spec, request, jpeg=None):
    return decode(encode(write_plan(spec, request, 5, jpeg_quality=jpeg)))


def test_a_request_comes_back_as_it_went(spec, ask):
    request = ask(2.5, previous=np.arange(16, dtype=np.float32).reshape(8, 2), seed=2**40, plan=3, delay=1)
    sequence, back = read_plan(spec, over_the_wire(spec, request))
    assert sequence == 5
    assert (back.seed, back.plan, back.delay, back.deadline_s) == (2**40, 3, 1, 10.0)
    for key, value in request.obs.items():
        np.testing.assert_array_equal(back.obs[key], value)
    np.testing.assert_array_equal(back.previous, request.previous)


def test_a_jpeg_is_the_picture_in_its_channels_order(spec, ask):
    picture = np.zeros((2, 12, 16, 3), np.uint8)
    picture[..., 0] = 200  # red
    picture[1, ..., 2] = 100
    request = ask()
    request = replace(request, obs={**request.obs, "front": picture})
    message = over_the_wire(spec, request, jpeg=95)
    assert isinstance(message["obs"]["front"][0], Jpeg)
    _, back = read_plan(spec, message)
    assert np.abs(back.obs["front"].astype(int) - picture).max() <= 6


def test_the_largest_message_has_room_for_a_request_and_little_more(spec, ask):
    size = len(encode(write_plan(spec, ask(previous=np.zeros((8, 2), np.float32)), 1, jpeg_quality=None)))
    assert size < largest_message(spec) < size + (1 << 17)


def test_the_robot_gives_what_the_policy_expects(spec, ask):
    request = replace(ask(), obs={"state": np.zeros((1, 3), np.float32), "front": np.zeros((2, 12, 16, 3), np.uint8)})
    with pytest.raises(CheckpointError, match=r"'state' is \(1, 3\): the policy expects \(2, 3\)"):
        write_plan(spec, request, 0, jpeg_quality=None)


CHANGES = {
    "kind": "hello",
    "sequence": -1,
    "seed": 1 << 63,
    "plan": 1.0,
    "delay": True,
    "deadline_s": float("nan"),
    "obs": {},
    "previous": np.zeros((8, 3), np.float32),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_no_client_sends_is_refused(spec, ask, name):
    message = over_the_wire(spec, ask())
    with pytest.raises(WireError):
        read_plan(spec, {**message, name: CHANGES[name]})
    with pytest.raises(WireError):
        read_plan(
            spec, {k: v for k, v in message.items() if k != name} | ({"previous": 0} if name == "previous" else {})
        )


@pytest.mark.parametrize(
    "front",
    [
        np.zeros((2, 12, 16, 3), np.float32),
        np.zeros((2, 12, 16, 4), np.uint8),
        np.zeros((1 << 20,), np.uint8),
        [],
        [Jpeg(b"\xff\xd8")] * 2,
        [Jpeg(b"no jpeg")] * 2,
        ["text", "text"],
        None,
    ],
    ids=lambda v: type(v).__name__,
)
def test_pictures_of_another_kind_are_refused(spec, ask, front):
    message = over_the_wire(spec, ask())
    with pytest.raises(WireError, match="'front'"):
        read_plan(spec, {**message, "obs": {**message["obs"], "front": front}})


def test_a_picture_that_says_it_is_huge_is_not_decoded(spec, ask, monkeypatch):
    _, file = cv2.imencode(".jpg", np.zeros((12, 16, 3), np.uint8))
    data = bytearray(file.tobytes())
    frame = data.index(b"\xff\xc0") + 5
    data[frame : frame + 4] = b"\xff\xff\xff\xff"  # 65535 x 65535 pixels
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    message = over_the_wire(spec, ask())
    with pytest.raises(WireError, match="expected a JPEG of"):
        read_plan(spec, {**message, "obs": {**message["obs"], "front": [Jpeg(bytes(data))] * 2}})


def test_numbers_that_are_none_are_refused_for_this_request_only(spec, ask):
    check_finite(ask())
    with pytest.raises(UserError, match="'state' holds numbers that are not finite"):
        check_finite(ask(float("nan")))
    with pytest.raises(UserError, match="'previous'"):
        check_finite(ask(previous=np.full((8, 2), np.inf, np.float32)))


def test_a_chunk_has_the_policys_shape_and_finite_actions(spec):
    good = {"kind": "chunk", "sequence": 3, "chunk": np.zeros((8, 2), np.float32)}
    assert read_chunk(spec, good)[0] == 3
    for bad in (None, np.zeros((8, 3), np.float32), np.full((8, 2), np.nan, np.float32), [[0.0]]):
        with pytest.raises(WireError):
            read_chunk(spec, {**good, "chunk": bad})


def test_another_specification_is_refused_by_name(spec):
    mine = decode(encode({"spec": spec.to_dict()}))["spec"]
    check_same_spec(spec, mine, me="a", other="b")
    elsewhere = replace(spec.obs["state"], source="/joint_states")
    check_same_spec(replace(spec, obs={**spec.obs, "state": elsewhere}), mine, me="a", other="b")
    others = {
        "fps is 30.0 for the robot and 20.0 for the server": replace(spec, fps=30.0),
        "obs.state.unit is deg": replace(spec, obs={**spec.obs, "state": replace(spec.obs["state"], unit="deg")}),
        "obs.wrist is": replace(spec, obs={**spec.obs, "wrist": ArraySpec(shape=(2,))}),
        "obs.state.names is x": replace(
            spec, obs={**spec.obs, "state": replace(spec.obs["state"], names=("x", "b", "c"))}
        ),
        r"action.shape is 3": replace(spec, action=ArraySpec(shape=(3,), role="action", unit="rad")),
    }
    for text, other in others.items():
        with pytest.raises(CheckpointError, match=text):
            check_same_spec(other, mine, me="the robot", other="the server")
    none: tuple[Any, ...] = (None, [], "spec", {"obs": 3})
    for nothing in none:
        with pytest.raises(CheckpointError):
            check_same_spec(spec, nothing, me="a", other="b")


def test_another_protocol_is_refused():
    check_protocol({"kind": "hello", "protocol": 1}, "hello")
    with pytest.raises(WireError, match="this side speaks 1"):
        check_protocol({"kind": "hello", "protocol": 2}, "hello")
    with pytest.raises(WireError, match="'hello' first"):
        check_protocol({"kind": "plan", "protocol": 1}, "hello")
