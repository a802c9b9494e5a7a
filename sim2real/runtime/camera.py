"""The newest pictures of a camera, ready for the policy, and whether they still change."""

from __future__ import annotations

import threading
import zlib
from collections import deque

import cv2
import numpy as np

from visuomotor.data.errors import UserError
from visuomotor.data.spec import ArraySpec
from visuomotor.sim2real.messages import CompressedImage, Image
from visuomotor.sim2real.robots.config import CameraStream
from visuomotor.sim2real.runtime.images import fitted, pixels
from visuomotor.sim2real.runtime.streams import HeaderClock, Worker
from visuomotor.sim2real.transports.base import Transport

__all__ = ["CameraReader"]

_KEPT = 16


class CameraReader:
    """One camera. Decoding takes milliseconds, so it is done in a thread of its own.

    Args:
        key: of the observation.
        stream: where it comes from.
        spec: what the policy expects of it.
        transport: brings it.
        threaded: decode in a thread; False with simulated clocks, where what happens first must not depend on one.

    Attributes:
        trouble: why the newest picture could not be used; empty: it could.
        received: pictures that have come.
        believed_ns: when the newest picture came that could be used; 0: none has.
        changed_ns: when the newest picture came that differs from the one before; 0: none has.
    """

    def __init__(
        self, key: str, stream: CameraStream, spec: ArraySpec, transport: Transport, *, threaded: bool
    ) -> None:
        self.key, self.stream, self._spec = key, stream, spec
        self.trouble, self.received, self.believed_ns, self.changed_ns = "", 0, 0, 0
        self._clock, self._check = HeaderClock(stream.latency_s), -1
        self._frames: deque[tuple[int, np.ndarray]] = deque(maxlen=_KEPT)  # when it was true, picture
        self._times: deque[int] = deque(maxlen=64)
        self._lock = threading.Lock()
        self._worker: Worker[Image | CompressedImage] | None = None
        if threaded:
            self._worker = Worker(self._take)
        kind: type[Image] | type[CompressedImage] = CompressedImage if stream.compressed else Image
        transport.subscribe(stream.topic, kind, self._take if self._worker is None else self._worker.put)

    def _take(self, message: Image | CompressedImage, received_ns: int) -> None:
        self.received += 1
        self._times.append(received_ns)
        event = self._clock.event_ns(message.stamp_ns, received_ns)
        check = zlib.crc32(np.ascontiguousarray(message.data).data)
        if check != self._check:
            self._check, self.changed_ns = check, received_ns
        try:
            picture = fitted(pixels(message), self._spec, list(self.stream.crop))
        except UserError as e:
            self.trouble = f"{self.stream.topic}: {e}"
            return
        except cv2.error as e:  # of an empty picture, say: the thread that decodes has to live on
            self.trouble = f"{self.stream.topic}: no picture can be made of this: {e.err}"
            return
        with self._lock:
            if self._frames and event <= self._frames[-1][0]:
                self.trouble = f"{self.stream.topic}: its time stamp does not increase"
                return
            self._frames.append((event, picture))
        self.trouble, self.believed_ns = "", received_ns

    @property
    def newest_ns(self) -> int:
        """When the newest picture was taken; 0: there is none."""
        with self._lock:
            return self._frames[-1][0] if self._frames else 0

    def at(self, time_ns: int) -> np.ndarray:
        """The picture nearest to a time."""
        with self._lock:
            return min(self._frames, key=lambda f: abs(f[0] - time_ns))[1]

    def rate_hz(self, now_ns: int) -> float:
        """Of the last second."""
        return float(sum(1 for t in list(self._times) if t > now_ns - 1_000_000_000))

    def close(self) -> None:
        """End the thread."""
        if self._worker is not None:
            self._worker.close()
