"""What every ROS recording offers: topics, and messages in the order of the file. Bounded decompression."""

from __future__ import annotations

import bz2
import io
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from visuomotor.data.errors import DataError, MissingExtraError

__all__ = ["Message", "Recording", "Topic", "decompress", "read_exactly", "ros_type"]

_ALWAYS_FINE = 64 << 20  # bytes that a chunk may have whatever its compressed size
_MAX_RATIO = 1024  # LZ4 reaches 255; real recordings stay below 100
Message = tuple[str, int, memoryview]  # topic, time of receipt [ns], bytes


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One topic of a recording.

    Attributes:
        name: with its leading slash.
        msgtype: ROS 2 style (``"sensor_msgs/msg/Image"``), also for ROS 1.
        count: messages.
        definition: text of the type, None where the recording does not bring it.
        encoding: of the definition, ``"msg"`` or ``"idl"``.
        ros1: its messages are in ROS 1 serialization.
    """

    name: str
    msgtype: str
    count: int
    definition: str | None = None
    encoding: str = "msg"
    ros1: bool = False


class Recording(ABC):
    """One recording. Files are opened for each call of :meth:`messages`: several threads may read at once.

    Attributes:
        path: file or folder.
        topics: by name; those that can be read.
        unreadable: topics in another encoding, with the reason.
        notes: what is wrong with the file as a whole and was got around.
        mapping: nested dicts, if the file says itself which arrays its topics are.
    """

    path: Path
    topics: dict[str, Topic]
    unreadable: dict[str, str]
    notes: list[str]
    mapping: dict[str, Any] | None = None

    @abstractmethod
    def messages(self, topics: Collection[str], start: int | None = None, stop: int | None = None) -> Iterator[Message]:
        """Messages received from ``start`` to ``stop`` [ns], both included, as the file or time orders them.

        Raises:
            DataError: the file is damaged.
        """


def ros_type(name: str) -> str:
    """``"sensor_msgs/Image"`` as ``"sensor_msgs/msg/Image"``."""
    parts = name.split("/")
    return f"{parts[0]}/msg/{parts[1]}" if len(parts) == 2 else name


def read_exactly(file: BinaryIO, n: int, size: int, what: str) -> bytes:
    """The next ``n`` bytes of a file of ``size`` bytes.

    Raises:
        DataError: it has fewer. Nothing is allocated then.
    """
    left = size - file.tell()
    if n > left:
        raise DataError(f"{what} at byte {file.tell()} declares {n} bytes, {max(0, left)} are left")
    return file.read(n)


def decompress(kind: str, data: bytes | memoryview, size: int | None) -> bytes:
    """Bytes of a chunk, never more than declared and plausible.

    Args:
        kind: ``"none"`` or ``""``, ``"bz2"``, ``"lz4"``, ``"zstd"``.
        data: as stored.
        size: declared size, None if none is.

    Raises:
        DataError: another compression, a size that cannot be, damaged bytes, or another size than declared.
    """
    most = max(_ALWAYS_FINE, _MAX_RATIO * len(data))
    if size is not None and size > most:
        raise DataError(f"{len(data)} bytes ({kind or 'plain'}) are declared to hold {size}: more than can be")
    if kind in ("", "none"):
        out = bytes(data)
    else:
        try:
            out = _unpack(kind, data, most if size is None else size)
        except DataError:
            raise
        except Exception as error:  # every decompressor raises a type of its own
            raise DataError(f"{kind} data is damaged: {error}") from None
    if size is not None and len(out) != size:
        raise DataError(f"{len(data)} bytes ({kind or 'plain'}) declared to hold {size} hold another number")
    if len(out) > most:
        raise DataError(f"{len(data)} bytes ({kind}) hold more than {most}: refused")
    return out


def _unpack(kind: str, data: bytes | memoryview, size: int) -> bytes:
    if kind == "bz2":
        return bz2.BZ2Decompressor().decompress(data, size + 1)
    try:
        if kind == "lz4":
            import lz4.frame

            out: bytes = lz4.frame.LZ4FrameDecompressor().decompress(data, size + 1)
            return out
        if kind == "zstd":
            import zstandard

            window = 1 << 31  # what zstd --long=31 may ask for; memory is taken as bytes come
            stream = zstandard.ZstdDecompressor(max_window_size=window).stream_reader(io.BytesIO(data))
            read: bytes = stream.read(size + 1)
            return read
    except ImportError as error:
        raise MissingExtraError(f"{kind} needs {error.name}: pip install 'visuomotor[ros]'") from None
    raise DataError(f"unknown compression {kind!r}: known are none, bz2, lz4, zstd")
