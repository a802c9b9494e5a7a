"""What policy server and client say to each other: version 1 of the protocol.

The client opens a websocket and says ``hello`` with the specification that it was started with, if any; the server
answers ``welcome`` with its own, or closes with the reason. Then each ``plan`` asks for a chunk, and is answered by
``chunk``, by ``refused``, or not at all where it came too late or a newer one took its place. Only durations are sent,
never times: the two clocks need not agree.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from visuomotor.data.errors import CheckpointError, UserError
from visuomotor.data.importing.image_bytes import jpeg_header
from visuomotor.data.spec import ArraySpec
from visuomotor.policies.spec import PolicySpec
from visuomotor.sim2real.remote.source import PlanRequest
from visuomotor.sim2real.remote.wire import Jpeg, WireError

__all__ = [
    "BAD_MESSAGE",
    "OTHER_SPEC",
    "PROTOCOL",
    "check_finite",
    "check_protocol",
    "check_same_spec",
    "largest_message",
    "read_chunk",
    "read_plan",
    "write_plan",
]

PROTOCOL = 1
BAD_MESSAGE = 1008  # close codes (RFC 6455, 7.4): policy violation,
OTHER_SPEC = 4001  # and one of the private range: trying again is of no use
_SLACK = 1 << 16
_LONGEST_S = 60.0


def largest_message(spec: PolicySpec) -> int:
    """Bytes that no message of a client exceeds: the arrays of one ``plan``, and room for everything else."""
    obs = sum(math.prod(_shape(spec, k)) * np.dtype(s.dtype).itemsize for k, s in spec.obs.items())
    return obs + spec.window.horizon * spec.action.size * 4 + _SLACK + 1024 * len(spec.obs)


def check_protocol(message: Mapping[str, Any], kind: str) -> None:
    """The first message of either side.

    Raises:
        WireError: another message, or another version of the protocol.
    """
    if message.get("kind") != kind:
        raise WireError(f"expected {kind!r} first")
    if message.get("protocol") != PROTOCOL:
        raise WireError(
            f"protocol {str(message.get('protocol'))[:20]}, but this side speaks {PROTOCOL}: install the same version "
            "of visuomotor on both machines"
        )


def check_same_spec(mine: PolicySpec, theirs: Any, *, me: str, other: str) -> None:
    """Refuse a policy with other observations, actions or timing than ``mine``.

    Raises:
        CheckpointError: naming the first difference.
    """
    found = _difference(mine.to_dict(), theirs, "")
    if found is not None:
        where, a, b = found
        raise CheckpointError(f"another policy: {where} is {_short(a)} for {me} and {_short(b)} for {other}")


def _difference(a: Any, b: Any, where: str) -> tuple[str, Any, Any] | None:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in sorted({*a, *b}, key=str):
            if key == "source":  # where it was measured: differs between simulation and robot
                continue
            name = f"{where}.{key}" if where else str(key)
            if key not in a or key not in b:
                return name, a.get(key, "missing"), b.get(key, "missing")
            if found := _difference(a[key], b[key], name):
                return found
        return None
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return next((d for x, y in zip(a, b, strict=True) if (d := _difference(x, y, where))), None)
    return None if type(a) is type(b) and a == b else (where or "spec", a, b)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _shape(spec: PolicySpec, key: str) -> tuple[int, ...]:
    return (1 if key in spec.constant_keys else spec.window.n_obs, *spec.obs[key].shape)


# ---- plan


def write_plan(spec: PolicySpec, request: PlanRequest, sequence: int, *, jpeg_quality: int | None) -> dict[str, Any]:
    """The message for ``request``; pictures as JPEG with ``jpeg_quality``, as they are with None.

    Raises:
        CheckpointError: arrays that are not as ``spec`` says.
    """
    obs: dict[str, Any] = {}
    for key, array in spec.obs.items():
        value = np.asarray(request.obs[key], array.dtype)
        if value.shape != _shape(spec, key):
            raise CheckpointError(f"observation {key!r} is {value.shape}: the policy expects {_shape(spec, key)}")
        pictures = jpeg_quality is not None and _is_picture(array)
        obs[key] = [_compress(picture, int(jpeg_quality or 0)) for picture in value] if pictures else value
    previous = None if request.previous is None else np.asarray(request.previous, np.float32)
    return {
        "kind": "plan", "sequence": sequence, "seed": request.seed, "plan": request.plan, "delay": request.delay,
        "deadline_s": float(request.deadline_s), "obs": obs, "previous": previous,
    }  # fmt: skip


def read_plan(spec: PolicySpec, message: Mapping[str, Any]) -> tuple[int, PlanRequest]:
    """Sequence number and request of a ``plan``, with every type, shape and size checked against ``spec``.

    Raises:
        WireError: a message that no client of this policy sends.
    """
    if message.get("kind") != "plan":
        raise WireError(f"expected 'plan', not {_short(message.get('kind'))!r}")
    whole = {k: _integer(message, k) for k in ("sequence", "seed", "plan", "delay")}
    deadline = message.get("deadline_s")
    if not isinstance(deadline, float) or not 0.0 < deadline <= _LONGEST_S:
        raise WireError(f"deadline_s {_short(deadline)}: expected more than 0 and up to {_LONGEST_S:g} s")
    given = message.get("obs")
    if not isinstance(given, dict) or set(given) != set(spec.obs):
        raise WireError(f"observations other than {', '.join(sorted(spec.obs))}")
    obs = {k: _read_array(k, given[k], s, _shape(spec, k)) for k, s in spec.obs.items()}
    previous = message.get("previous")
    if previous is not None:
        previous = _plain("previous", previous, np.dtype("float32"), (spec.window.horizon, spec.action.size))
    sequence = whole.pop("sequence")
    return sequence, PlanRequest(obs=obs, previous=previous, deadline_s=deadline, **whole)


def check_finite(request: PlanRequest) -> None:
    """A measurement that is no number makes no chunk: it would be refused by the robot's own bridge before.

    Raises:
        UserError: naming the observation.
    """
    arrays = {**request.obs, "previous": request.previous}
    for key, value in arrays.items():
        if value is not None and value.dtype.kind == "f" and not np.isfinite(value).all():
            raise UserError(f"{key!r} holds numbers that are not finite")


def read_chunk(spec: PolicySpec, message: Mapping[str, Any]) -> tuple[int, NDArray[np.float32]]:
    """Sequence number and actions ``[H, Da]`` of a ``chunk``.

    Raises:
        WireError: a message that no server of this policy sends, or actions that are not finite.
    """
    shape = (spec.window.horizon, spec.action.size)
    chunk = _plain("chunk", message.get("chunk"), np.dtype("float32"), shape)
    if not np.isfinite(chunk).all():
        raise WireError("a chunk with actions that are not finite")
    return _integer(message, "sequence"), chunk


def _integer(message: Mapping[str, Any], name: str) -> int:
    value = message.get(name)
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise WireError(f"{name} {_short(value)}: expected a whole number from 0 on")
    return value


def _read_array(key: str, value: Any, spec: ArraySpec, shape: tuple[int, ...]) -> NDArray[Any]:
    if isinstance(value, list) and _is_picture(spec):
        return _decompress(key, value, shape)
    return _plain(key, value, np.dtype(spec.dtype), shape)


def _plain(key: str, value: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.shape != shape:
        got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise WireError(f"{key!r} is {got}: expected {dtype} {shape}")
    return value


def _is_picture(spec: ArraySpec) -> bool:
    return spec.is_image and spec.dtype == "uint8" and spec.shape[2] in (1, 3)


def _compress(picture: NDArray[np.uint8], quality: int) -> Jpeg:
    """uint8 ``[H, W, C]`` RGB or grey."""
    pixels = np.ascontiguousarray(picture[:, :, ::-1])
    done, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise CheckpointError("a picture could not be compressed")
    return Jpeg(data.tobytes())


def _decompress(key: str, files: Sequence[Any], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """JPEG files to ``[To, H, W, C]``; their size is read before they are decoded."""
    if len(files) != shape[0] or not all(isinstance(f, Jpeg) for f in files):
        raise WireError(f"{key!r}: expected {shape[0]} pictures")
    out = np.empty(shape, np.uint8)
    for i, file in enumerate(files):
        try:
            size = jpeg_header(file.data)
        except (UserError, struct.error):
            size = (0, 0, 0)
        if not file.data.startswith(b"\xff\xd8") or size != shape[1:]:
            raise WireError(f"{key!r}: expected a JPEG of {shape[1:]}, not {size}")
        flags = cv2.IMREAD_GRAYSCALE if shape[3] == 1 else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        picture = cv2.imdecode(np.frombuffer(file.data, np.uint8), flags)
        if picture is None or picture.shape[:2] != shape[1:3]:
            raise WireError(f"{key!r}: a JPEG of {len(file.data)} bytes cannot be decoded")
        out[i] = picture[:, :, None] if shape[3] == 1 else picture[:, :, ::-1]
    return out
