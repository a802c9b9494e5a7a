"""The side of a suite: a few environments stepped in the suite's own Python, on the orders of another process.

Run by its path with the interpreter of the suite, ``python -I server.py <socket> <memory> <adapter>``; it needs the
standard library, numpy and gymnasium, and nothing of this package. Orders and answers are messages over a socket:

    magic "VMSU" | version u16 | 0 u16 | bytes of JSON u32 | bytes that follow it u32 | JSON object | bytes

in network byte order. Nothing is ever unpickled, in either direction. Observations, images, actions and outcomes do not
travel in messages but in a block of shared memory, an anonymous file that the process inherits: nothing can be left in
/dev/shm, whoever is killed.

An adapter is ``<file>:<name>``, a class there with ``ids()``, a list of names, and ``make(id, images, image_size,
settings)``, which gives a Gymnasium environment. Where there are experts, ``expert(env, id)`` gives None, or a function
from an observation ``{key: array}`` to an action.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import mmap
import os
import platform
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from typing import Any

import gymnasium as gym
import numpy as np

__all__ = ["LIMIT", "VERSION", "ProtocolError", "Worker", "receive", "send"]

MAGIC = b"VMSU"
VERSION = 1
HEADER = struct.Struct("!4sHHII")
LIMIT = 1 << 26  # bytes of a part of a message; what is larger is a mistake
_WATCH_S = 1.0  # how often to look whether the parent still runs


class ProtocolError(ValueError):
    """What came is no message of this protocol."""


def send(pipe: socket.socket, message: dict[str, Any], blob: bytes = b"", version: int = VERSION) -> None:
    """Send one message."""
    text = json.dumps(message).encode()
    pipe.sendall(HEADER.pack(MAGIC, version, 0, len(text), len(blob)) + text + blob)


def receive(pipe: socket.socket) -> tuple[dict[str, Any], bytes]:
    """Wait for one message. Raises EOFError when the other side has closed, ProtocolError for anything malformed."""
    head = _exactly(pipe, HEADER.size)
    if not head:
        raise EOFError
    magic, version, _, n_text, n_blob = HEADER.unpack(head)
    if magic != MAGIC:
        raise ProtocolError(f"a message begins with {magic!r}; expected {MAGIC!r}")
    if version != VERSION:
        raise ProtocolError(f"a message of protocol version {version} came; this side speaks version {VERSION}")
    if max(n_text, n_blob) > LIMIT:
        raise ProtocolError(f"a message of {n_text} + {n_blob} bytes; at most {LIMIT} each are taken")
    try:
        message = json.loads(_exactly(pipe, n_text, inside=True))
    except (ValueError, RecursionError) as e:
        if isinstance(e, ProtocolError):
            raise
        raise ProtocolError(f"a message is no JSON ({e})") from None
    if not isinstance(message, dict):
        raise ProtocolError(f"a message holds a {type(message).__name__}; expected an object")
    return message, _exactly(pipe, n_blob, inside=True)


def _exactly(pipe: socket.socket, n: int, inside: bool = False) -> bytes:
    """``n`` bytes; fewer than that is the end of the connection: none before a message, an error inside one."""
    parts, got = [], 0
    while got < n:
        part = pipe.recv(min(n - got, 1 << 20))
        if not part:
            if inside or got:
                raise ProtocolError(f"the connection ended inside a message, {n - got} bytes early")
            return b""
        parts.append(part)
        got += len(part)
    return b"".join(parts)


class Worker:
    """The environments of one process. Each public method is an order; its result goes back as JSON (and bytes)."""

    def __init__(self, adapter: Any, memory: int) -> None:
        self._adapter, self._memory = adapter, memory
        self._envs: list[Any] = []
        self._orders = {f.__name__: f for f in (self.ids, self.make, self.describe, self.map, self.reset,
                                                self.reset_one, self.advance, self.expert, self.render)}  # fmt: skip

    def answer(self, message: dict[str, Any]) -> tuple[Any, bytes]:
        """Carry out ``{"order": name, ...arguments}``."""
        given = dict(message)
        name = given.pop("order", None)
        if name not in self._orders:
            raise ProtocolError(f"unknown order {name!r}; known: {', '.join(sorted(self._orders))}")
        result = self._orders[name](**given)
        return result if isinstance(result, tuple) else (result, b"")

    def ids(self) -> list[str]:
        """What the suite offers."""
        return list(self._adapter.ids())

    def make(self, id: str, count: int, limit: int | None, images: list[str], image_size: int, settings: Any) -> None:
        """Build ``count`` environments; ``limit`` truncates episodes in addition to the environment's own limit."""
        kinds = {"images": images, "image_size": image_size, "settings": settings}
        self._envs = [self._adapter.make(id, **kinds) for _ in range(count)]
        build = getattr(self._adapter, "expert", None)
        self._experts: list[Any] = [build(env, id) if build else None for env in self._envs]
        self._limit, self._elapsed = limit, [0] * count
        self._seen: list[dict[str, Any]] = [{}] * count
        self._id = id

    def describe(self) -> dict[str, Any]:
        """Spaces, rate, limit and the scalars in ``info``, seen at a reset and one step."""
        env = self._envs[0]
        space, action = env.observation_space, env.action_space
        boxes = space.spaces if isinstance(space, gym.spaces.Dict) else {"state": space}
        flat: dict[str, Any] = {
            k: s if isinstance(s, gym.spaces.Box) else gym.spaces.flatten_space(s) for k, s in boxes.items()
        }
        env.action_space.seed(0)
        _, at_reset = env.reset(seed=0)
        info = {**at_reset, **env.step(env.action_space.sample())[4]}
        named = {k for k, v in info.items() if np.ndim(v) == 0 and np.asarray(v).dtype.kind in "biuf"}
        return {
            "observation": {k: {"shape": list(s.shape), "dtype": s.dtype.name} for k, s in flat.items()},
            "action": _describe_action(action),
            "info": sorted({"success" if k == "is_success" else k for k in named}),
            "limit": None if env.spec is None else env.spec.max_episode_steps,
            "fps": env.metadata.get("render_fps"),
            "expert": self._experts[0] is not None,
        }

    def map(self, fields: list[dict[str, Any]], n: int, lo: int, hi: int, size: int) -> None:
        """Take rows ``lo..hi`` of every field ``[n, *shape]`` of the shared memory."""
        memory = mmap.mmap(self._memory, size)
        self._arrays = {f["name"]: np.ndarray((n, *f["shape"]), f["dtype"], memory, f["offset"])[lo:hi] for f in fields}
        self._obs = {k[4:]: a for k, a in self._arrays.items() if k.startswith("obs/")}
        self._info = {k[5:]: a for k, a in self._arrays.items() if k.startswith("info/")}

    def reset(self, seeded: bool) -> None:
        """New episodes in the worlds of ``mask``, from ``seed`` if ``seeded``."""
        for i in self._masked():
            self._begin(i, self._envs[i].reset(seed=int(self._arrays["seed"][i]) if seeded else None))

    def reset_one(self, index: int, options: dict[str, Any]) -> None:
        """A new episode in one world with Gymnasium's reset ``options``."""
        self._begin(index, self._envs[index].reset(options=options))

    def advance(self) -> None:
        """One control step in the worlds of ``mask``."""
        a = self._arrays
        for name in ("reward", "terminated", "truncated"):
            a[name].fill(0)
        for i in self._masked():
            space, row = self._envs[i].action_space, a["action"][i]
            discrete = isinstance(space, gym.spaces.Discrete)
            action = int(row[0]) if discrete else row.astype(space.dtype).reshape(space.shape)
            obs, reward, a["terminated"][i], truncated, info = self._envs[i].step(action)
            self._elapsed[i] += 1
            a["reward"][i], a["truncated"][i] = reward, truncated or self._elapsed[i] == self._limit
            self._write(i, obs, info)

    def expert(self) -> None:
        """What the suite's experts would do now in the worlds of ``mask``, into ``expert``."""
        for i in self._masked():
            self._arrays["expert"][i] = np.ravel(self._experts[i](self._seen[i]))

    def render(self, index: int) -> tuple[dict[str, Any], bytes]:
        """A picture of one world, uint8 ``[H, W, 3]``."""
        frame = self._envs[index].render()
        if not isinstance(frame, np.ndarray) or frame.ndim != 3:
            raise TypeError(f"render() gave {type(frame).__name__}; expected a picture [H, W, 3]")
        return {"shape": list(frame.shape)}, np.ascontiguousarray(frame, np.uint8).tobytes()

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()

    def _masked(self) -> list[int]:
        return [int(i) for i in np.flatnonzero(self._arrays["mask"])]

    def _begin(self, i: int, first: tuple[Any, dict[str, Any]]) -> None:
        self._elapsed[i] = 0
        if self._experts[i] is not None:  # an expert may remember its episode
            self._experts[i] = self._adapter.expert(self._envs[i], self._id)
        self._write(i, *first)

    def _write(self, i: int, obs: Any, info: dict[str, Any]) -> None:
        space = self._envs[i].observation_space
        if isinstance(space, gym.spaces.Dict):
            parts = {k: (s, obs[k]) for k, s in space.spaces.items()}
        else:
            parts = {"state": (space, obs)}
        seen = {k: v if isinstance(s, gym.spaces.Box) else gym.spaces.flatten(s, v) for k, (s, v) in parts.items()}
        self._seen[i] = seen
        for k, a in self._obs.items():
            a[i] = seen[k]
        for k, a in self._info.items():
            a[i] = info.get("is_success", info.get("success", False)) if k == "success" else info.get(k, np.nan)


def _describe_action(space: gym.Space[Any]) -> dict[str, Any]:
    if isinstance(space, gym.spaces.Discrete):
        first = float(space.start)
        return {"shape": [1], "dtype": "int64", "low": [first], "high": [first + float(space.n) - 1]}
    if isinstance(space, gym.spaces.Box):
        low, high = (np.ravel(x).astype(np.float64).tolist() for x in (space.low, space.high))
        return {"shape": [len(low)], "dtype": "float32", "low": low, "high": high}
    raise TypeError(f"the action space is {type(space).__name__}; expected Box or Discrete")


def _load(adapter: str) -> Any:
    path, _, name = adapter.rpartition(":")
    spec = importlib.util.spec_from_file_location("suite_adapter", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)()


def _watch(parent: int) -> None:
    """Leave when the parent is gone even if an environment never returns; an idle worker sees its socket close."""
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os._exit(1)


def _serve(pipe: socket.socket, memory: int, adapter: str) -> None:
    send(pipe, {"python": platform.python_version(), "gymnasium": gym.__version__, "numpy": np.__version__})
    worker = Worker(_load(adapter), memory)
    while True:
        try:
            message, _ = receive(pipe)
        except EOFError:
            worker.close()
            return
        result, blob = worker.answer(message)
        send(pipe, {"result": result}, blob)


def _main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides
    os.dup2(2, 1)  # suites print; nobody reads it unless the worker dies
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    pipe = socket.socket(fileno=int(sys.argv[1]))
    try:
        _serve(pipe, int(sys.argv[2]), sys.argv[3])
    except ConnectionError:  # the parent has gone
        return 0
    except (Exception, SystemExit) as e:
        with contextlib.suppress(OSError):
            send(pipe, {"error": f"{type(e).__name__}: {e}", "traceback": traceback.format_exc()})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
