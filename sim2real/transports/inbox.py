"""What every transport does with bytes that come in: decode them or count them, and call back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from visuomotor.sim2real.messages import Message
from visuomotor.sim2real.transports.base import Subscription
from visuomotor.sim2real.transports.buffers import Bytes
from visuomotor.sim2real.transports.cdr import CdrError, decode

__all__ = ["Inbox"]

M = TypeVar("M", bound=Message)


class Inbox(Generic[M]):
    """The receiving end of one subscription."""

    def __init__(
        self, subscription: Subscription, kind: type[M], callback: Callable[[M, int], None], *, ros1: bool = False
    ) -> None:
        self.subscription = subscription
        self.kind = kind
        self._callback = callback
        self._ros1 = ros1

    def deliver(self, data: Bytes, received_ns: int) -> None:
        """Call back with the message in these bytes, or count them as undecodable."""
        if self.subscription.tap is not None:
            self.subscription.tap(bytes(data), received_ns)
        try:
            message = decode(self.kind, data, ros1=self._ros1)
        except CdrError:
            self.subscription.undecodable += 1
            return
        self.subscription.received += 1
        self._callback(message, received_ns)
