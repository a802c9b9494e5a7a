"""Demonstrations as ROS 2 recordings: MCAP with CDR messages and the definitions of their types.

Vectors with names are sensor_msgs/JointState (``position``), other numbers std_msgs/Float64MultiArray, pictures
sensor_msgs/CompressedImage, depth sensor_msgs/Image. ``/episode`` (std_msgs/Int64) says which episode runs, -1 none;
``/episode/<column>`` its columns. A metadata record holds the mapping, so that an import needs none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from visuomotor.data.errors import ConfigError, DataError, MissingExtraError, nearest
from visuomotor.data.exporting.job import ExportJob, check_options
from visuomotor.data.importing.mcap_file import METADATA
from visuomotor.data.importing.resample import grid
from visuomotor.data.importing.ros_types import serialize, standard_definition
from visuomotor.data.importing.run import ID_COLUMN
from visuomotor.data.spec import ArraySpec

__all__ = ["export_mcap"]

_DEFAULTS = {"fps": None, "files": "one", "images": "png", "quality": 95, "start": 946_684_800.0}
_SECOND = 1_000_000_000
_PAUSE = 1_000_000_000  # ns between the episodes of one file
_COLUMN_TYPES = {str: "String", bool: "Bool", int: "Int64", float: "Float64"}


def export_mcap(job: ExportJob) -> list[str]:
    """Write ``job.path``: one ``.mcap`` file, or a folder of one for each episode.

    Options: ``files``: ``one`` or ``episodes``. ``images``: ``png`` (nothing is lost) or ``jpeg`` with ``quality``.
    ``start``: time of the first step [s since 1970]. ``fps``: where the store does not say it.

    Raises:
        ConfigError: an unknown option.
        DataError: an array that no message holds.
        MissingExtraError: mcap or rosbags is not installed.
    """
    options = check_options(job.options, _DEFAULTS, "mcap")
    for name, known in (("files", ("one", "episodes")), ("images", ("png", "jpeg"))):
        if options[name] not in known:
            raise ConfigError(f"options.{name} is {options[name]!r}. {nearest(str(options[name]), known)}")
    fps = job.fps()
    topics = {key: _Topic(key, spec, options) for key, spec in job.specs.items()}
    columns = {n: k for n, k in job.store.column_types.items() if n != ID_COLUMN}
    mapping = _mapping(topics, columns, fps)
    time, writer = round(float(options["start"]) * _SECOND), None
    if options["files"] == "episodes":
        job.path.mkdir()
    for number, (_, arrays, values) in enumerate(job.iter_episodes()):
        if options["files"] == "episodes":
            writer = _Writer(job.path / f"episode_{number:06d}.mcap", mapping)
        writer = writer or _Writer(job.path, mapping)
        length = len(next(iter(arrays.values())))
        times = grid(time, time + round((length + 1) / fps * _SECOND), fps)[:length]
        _write_episode(writer, topics, arrays, {n: values[n] for n in columns}, times, number)
        if options["files"] == "episodes":
            writer.close()
        time = int(times[-1]) + _PAUSE
    if writer is not None and options["files"] == "one":
        writer.close()
    jpeg = options["images"] == "jpeg" and any(t.kind == "picture" for t in topics.values())
    return ["pictures are JPEG: their values differ a little from the store's"] if jpeg else []


def _write_episode(
    writer: _Writer, topics: Mapping[str, _Topic], arrays: Mapping[str, np.ndarray], columns: Mapping[str, Any],
    times: np.ndarray, number: int,
) -> None:  # fmt: skip
    first, last = int(times[0]), int(times[-1])
    writer.add("/episode", "std_msgs/msg/Int64", first, {"data": number})
    for name, value in columns.items():
        writer.add(f"/episode/{name}", f"std_msgs/msg/{_COLUMN_TYPES[type(value)]}", first, {"data": value})
    for i, time in enumerate(times.tolist()):
        for key, topic in topics.items():
            writer.add(f"/{key}", topic.msgtype, time, topic.message(arrays[key][i], time))
    writer.add("/episode", "std_msgs/msg/Int64", last + 1, {"data": -1})


class _Topic:
    """How one array goes into messages."""

    def __init__(self, key: str, spec: ArraySpec, options: Mapping[str, Any]) -> None:
        self.key, self.spec = key, spec
        self.extension, self.quality = options["images"], int(options["quality"])
        if spec.is_image:
            if spec.dtype != "uint8" or spec.shape[2] != 3:
                raise DataError(
                    f"{key!r} is {spec.dtype} {list(spec.shape)}: pictures in MCAP have 3 channels; drop it"
                )
            self.kind, self.msgtype = "picture", "sensor_msgs/msg/CompressedImage"
        elif spec.is_depth and spec.dtype in ("uint16", "float32"):
            self.kind, self.msgtype = "depth", "sensor_msgs/msg/Image"
        elif spec.names is not None and len(spec.shape) == 1 and len(set(spec.names)) == len(spec.names):
            self.kind, self.msgtype = "joints", "sensor_msgs/msg/JointState"
        else:
            self.kind, self.msgtype = "numbers", "std_msgs/msg/Float64MultiArray"

    def message(self, row: np.ndarray, time: int) -> dict[str, Any]:
        """One step as the fields of its message."""
        header = {"stamp": {"sec": time // _SECOND, "nanosec": time % _SECOND}, "frame_id": ""}
        if self.kind == "picture":
            return {"header": header, "format": self.extension, "data": self._encoded(row)}
        if self.kind == "depth":
            height, width = row.shape[:2]
            return {
                "header": header, "height": height, "width": width, "is_bigendian": 0,
                "encoding": "16UC1" if row.dtype == np.uint16 else "32FC1", "step": width * row.dtype.itemsize,
                "data": np.frombuffer(row.astype(row.dtype.newbyteorder("<")).tobytes(), np.uint8),
            }  # fmt: skip
        values = np.asarray(row, np.float64).reshape(-1)
        if row.dtype.kind in "iu" and (np.abs(values) > 2.0**53).any():
            raise DataError(f"{self.key!r} holds whole numbers beyond 2**53, which float64 does not hold: drop it")
        none = np.zeros(0, np.float64)
        if self.kind == "joints":
            names = list(self.spec.names or ())
            return {"header": header, "name": names, "position": values, "velocity": none, "effort": none}
        shape = row.shape or (1,)
        strides = np.cumprod((*shape, 1)[::-1])[::-1]
        dims = [{"label": f"{i}", "size": n, "stride": int(strides[i])} for i, n in enumerate(shape)]
        return {"layout": {"dim": dims, "data_offset": 0}, "data": values}

    def _encoded(self, rgb: np.ndarray) -> np.ndarray:
        settings = [cv2.IMWRITE_JPEG_QUALITY, self.quality] if self.extension == "jpeg" else []
        done, data = cv2.imencode(f".{self.extension}", np.ascontiguousarray(rgb[:, :, ::-1]), settings)
        if not done:
            raise DataError(f"{self.key!r}: a picture could not be compressed")
        return np.asarray(data).reshape(-1)

    def mapping(self) -> dict[str, Any]:
        """The entry of this array in the mapping of an import."""
        spec = self.spec
        entry: dict[str, Any] = {"topic": f"/{self.key}", "role": spec.role, "interpolation": "hold"}
        if spec.unit is not None:
            entry["unit"] = spec.unit
        if self.kind == "joints":
            entry.update(field=["position"], joints=list(spec.names or ()), dtype=spec.dtype)
        elif self.kind == "numbers":
            entry.update(field=["data"], dtype=spec.dtype)
            if spec.names is not None and spec.shape:
                entry["names"] = list(spec.names)
            if len(spec.shape) != 1:
                entry["shape"] = list(spec.shape)
        return entry


def _mapping(topics: Mapping[str, _Topic], columns: Mapping[str, str], fps: float) -> dict[str, Any]:
    return {
        "fps": fps,
        "clock": "receive",
        "keys": {key: topic.mapping() for key, topic in topics.items()},
        "episodes": {"topic": "/episode", "field": "data"},
        "columns": {name: {"topic": f"/episode/{name}", "field": "data"} for name in columns},
    }


class _Writer:
    """One MCAP file of the profile ``ros2``."""

    def __init__(self, path: Path, mapping: Mapping[str, Any]) -> None:
        try:
            from mcap.writer import CompressionType, Writer
        except ImportError:
            raise MissingExtraError("MCAP needs the package mcap: pip install 'visuomotor[ros]'") from None
        self._file = path.open("wb")
        self._writer = Writer(self._file, compression=CompressionType.ZSTD)
        self._writer.start(profile="ros2", library="visuomotor")
        self._writer.add_metadata(METADATA, {"mapping": json.dumps(mapping)})
        self._schemas: dict[str, int] = {}
        self._channels: dict[str, int] = {}

    def add(self, topic: str, msgtype: str, time: int, message: Mapping[str, Any]) -> None:
        """One message, sent and received at ``time`` [ns]."""
        if msgtype not in self._schemas:
            text = standard_definition(msgtype).encode()
            self._schemas[msgtype] = self._writer.register_schema(msgtype, "ros2msg", text)
        if topic not in self._channels:
            self._channels[topic] = self._writer.register_channel(topic, "cdr", self._schemas[msgtype])
        self._writer.add_message(self._channels[topic], time, serialize(msgtype, message), time)

    def close(self) -> None:
        """Write the index and close."""
        self._writer.finish()
        self._file.close()
