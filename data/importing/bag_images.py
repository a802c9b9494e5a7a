"""Pictures in ROS messages: sensor_msgs Image and CompressedImage to uint8 RGB, or depth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from visuomotor.data.errors import DataError
from visuomotor.data.importing.image_bytes import decode_image

__all__ = ["IMAGE_TYPES", "read_image"]

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
_DEPTH_HEADER = 12  # of compressed_depth_image_transport: format and two quantisation parameters

# sensor_msgs/image_encodings.hpp: channels, numpy type, how OpenCV makes RGB of it (None: as it is)
_ENCODINGS: dict[str, tuple[int, str, int | None]] = {
    "rgb8": (3, "u1", None),
    "8UC3": (3, "u1", cv2.COLOR_BGR2RGB),  # what OpenCV holds, and so cv_bridge writes, without a name
    "bgr8": (3, "u1", cv2.COLOR_BGR2RGB),
    "rgba8": (4, "u1", cv2.COLOR_RGBA2RGB),
    "bgra8": (4, "u1", cv2.COLOR_BGRA2RGB),
    "mono8": (1, "u1", cv2.COLOR_GRAY2RGB),
    "8UC1": (1, "u1", cv2.COLOR_GRAY2RGB),
    # OpenCV names a Bayer pattern by its second row, ROS by its first.
    "bayer_rggb8": (1, "u1", cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": (1, "u1", cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": (1, "u1", cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": (1, "u1", cv2.COLOR_BayerGB2RGB),
    "yuv422": (2, "u1", cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, "u1", cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, "u1", cv2.COLOR_YUV2RGB_YUYV),
    "yuyv": (2, "u1", cv2.COLOR_YUV2RGB_YUYV),
}
_DEPTH = {"16UC1": "u2", "mono16": "u2", "32FC1": "f4"}


def read_image(msgtype: str, message: Mapping[str, Any], size: tuple[int, int] | None = None) -> np.ndarray:
    """One picture: uint8 ``[H, W, 3]`` RGB, or depth: uint16 ``[H, W]`` mm, float32 ``[H, W, 1]`` m, 0 where unknown.

    Args:
        msgtype: one of :data:`IMAGE_TYPES`.
        message: decoded.
        size: ``(height, width)`` to resize to: areas are averaged, pixels of depth picked.

    Raises:
        DataError: an encoding that is not supported, sizes that do not fit, damaged bytes.
    """
    image = _raw(message) if msgtype == IMAGE_TYPES[0] else _compressed(message)
    if image.ndim == 3 and image.dtype == np.uint8:
        return image if size is None else _resized(image, size, cv2.INTER_AREA)
    if size is not None:
        image = _resized(image, size, cv2.INTER_NEAREST)
    if image.dtype == np.float32:  # REP 118: NaN and infinity say that nothing was measured; a store has finite values
        return np.where(np.isfinite(image), image, np.float32(0)).reshape(*image.shape[:2], 1)
    return image


def _resized(image: np.ndarray, size: tuple[int, int], method: int) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    larger = size[0] > image.shape[0] or size[1] > image.shape[1]
    method = cv2.INTER_LINEAR if larger and method == cv2.INTER_AREA else method
    return np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=method))


def _raw(message: Mapping[str, Any]) -> np.ndarray:
    encoding, height, width, step = (message[k] for k in ("encoding", "height", "width", "step"))
    if encoding in _DEPTH:
        channels, code, convert = 1, _DEPTH[encoding], None
    elif encoding in _ENCODINGS:
        channels, code, convert = _ENCODINGS[encoding]
    else:
        raise DataError(f"images of encoding {encoding!r} are not supported: {', '.join([*_ENCODINGS, *_DEPTH])} are")
    dtype = np.dtype((">" if message["is_bigendian"] else "<") + code)
    data, row = np.asarray(message["data"]), width * channels * dtype.itemsize
    if not height or not width or step < row or len(data) < height * step - (step - row):
        raise DataError(f"an image of {width} x {height} {encoding} (step {step}) has {len(data)} bytes")
    padded = data[: height * step]
    if len(padded) < height * step:  # the last row may come without its padding
        padded = np.concatenate([padded, np.zeros(height * step - len(padded), np.uint8)])
    rows = np.ascontiguousarray(padded.reshape(height, step)[:, :row])
    image = rows.view(dtype).reshape((height, width) if channels == 1 else (height, width, channels))
    if encoding in _DEPTH:
        return image.astype(dtype.newbyteorder("="))
    if convert is None:
        return image
    try:
        return np.asarray(cv2.cvtColor(image, convert))
    except cv2.error as error:
        raise DataError(f"an image of {width} x {height} {encoding}: {str(error).strip()}") from None


def _compressed(message: Mapping[str, Any]) -> np.ndarray:
    data, form = memoryview(np.ascontiguousarray(message["data"]).data), str(message["format"])
    if "compressedDepth" in form:
        if not form.startswith("16UC1"):
            raise DataError(f"compressed depth of format {form!r} is not supported: 16UC1 is")
        return decode_image(data[_DEPTH_HEADER:], depth=True)
    return decode_image(data, depth=form.split(";")[0].strip() in ("16UC1", "mono16"))
