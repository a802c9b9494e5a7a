"""Pictures of cameras as the policy has them: decoded, cropped, resized. Imports without torch.

The encodings are those of sensor_msgs/image_encodings.hpp; compressed pictures are JPEG or PNG files.
"""

from __future__ import annotations

import cv2
import numpy as np

from visuomotor.data.errors import ConfigError, DataError, nearest
from visuomotor.data.spec import ArraySpec
from visuomotor.sim2real.messages import CompressedImage, Image

__all__ = ["ENCODINGS", "fitted", "pixels"]

_COLOUR = {  # encoding: bytes a pixel, conversion to RGB
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "8UC3": (3, cv2.COLOR_BGR2RGB),  # what cv_bridge makes of an OpenCV picture
    "mono8": (1, cv2.COLOR_GRAY2RGB),
    "8UC1": (1, cv2.COLOR_GRAY2RGB),
    "yuv422": (2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": (2, cv2.COLOR_YUV2RGB_YUY2),
    "bayer_rggb8": (1, cv2.COLOR_BayerRGGB2RGB),
    "bayer_bggr8": (1, cv2.COLOR_BayerBGGR2RGB),
    "bayer_gbrg8": (1, cv2.COLOR_BayerGBRG2RGB),
    "bayer_grbg8": (1, cv2.COLOR_BayerGRBG2RGB),
}
_WIDE = {"mono16": np.uint16, "16UC1": np.uint16, "32FC1": np.float32}
ENCODINGS = (*_COLOUR, *_WIDE)


def pixels(message: Image | CompressedImage) -> np.ndarray:
    """RGB uint8 ``[H, W, 3]``, or ``[H, W]`` as it is for encodings of one wide channel (depth).

    Raises:
        DataError: bytes that are no such picture, or an unknown encoding.
    """
    if isinstance(message, CompressedImage):
        found = cv2.imdecode(message.data, cv2.IMREAD_COLOR_RGB)
        if found is None:
            raise DataError(f"{len(message.data)} bytes of format {message.format!r} are no picture")
        return np.asarray(found)
    if message.encoding in _WIDE:
        return _wide(message)
    if message.encoding not in _COLOUR:
        raise DataError(f"unknown encoding {message.encoding!r}. {nearest(message.encoding, ENCODINGS)}")
    size, conversion = _COLOUR[message.encoding]
    rows = _rows(message, size)
    picture = np.ascontiguousarray(rows).reshape(message.height, message.width, size)
    return picture if conversion is None else np.asarray(cv2.cvtColor(picture, conversion))


def _rows(message: Image, size: int) -> np.ndarray:
    """Bytes ``[H, W * size]`` without the padding of lines."""
    if message.step < message.width * size or len(message.data) < message.step * message.height:
        raise DataError(
            f"{len(message.data)} bytes with lines of {message.step}: too few for {message.width} x {message.height} "
            f"in {message.encoding}"
        )
    lines = message.data[: message.step * message.height].reshape(message.height, message.step)
    return lines[:, : message.width * size]


def _wide(message: Image) -> np.ndarray:
    kind = np.dtype(_WIDE[message.encoding]).newbyteorder(">" if message.is_bigendian else "<")
    return np.ascontiguousarray(_rows(message, kind.itemsize)).view(kind).reshape(message.height, message.width)


def fitted(picture: np.ndarray, spec: ArraySpec, crop: list[int] | None = None) -> np.ndarray:
    """The picture in the shape, type and unit of ``spec``.

    Without ``crop`` (left, top, width, height [px]) the largest centred part that has the proportions of ``spec`` is
    taken, so that nothing is stretched.

    Raises:
        ConfigError: a crop outside of the picture.
        DataError: a picture of distances for a policy that sees colours, or the other way round.
    """
    height, width = spec.shape[:2]
    if spec.is_depth != (picture.ndim == 2):
        kinds = ("colours", "distances")
        raise DataError(f"the policy sees {kinds[spec.is_depth]}, the camera sends {kinds[picture.ndim == 2]}")
    part = _part(picture, height, width, crop)
    if spec.is_depth:
        return _distances(part, spec)
    if part.shape[:2] != (height, width):
        smaller = part.shape[0] >= height
        part = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    if spec.shape[2] == 1:
        part = cv2.cvtColor(part, cv2.COLOR_RGB2GRAY)[..., None]
    return np.ascontiguousarray(part, np.uint8)


def _part(picture: np.ndarray, height: int, width: int, crop: list[int] | None) -> np.ndarray:
    rows, columns = picture.shape[:2]
    if crop:
        left, top, w, h = crop
        if min(left, top) < 0 or not (0 < w <= columns - left and 0 < h <= rows - top):
            raise ConfigError(f"crop={crop} (left, top, width, height) of a picture of {columns} x {rows}")
        return picture[top : top + h, left : left + w]
    h, w = min(rows, round(columns * height / width)), min(columns, round(rows * width / height))
    top, left = (rows - h) // 2, (columns - w) // 2
    return picture[top : top + h, left : left + w]


def _distances(part: np.ndarray, spec: ArraySpec) -> np.ndarray:
    """Depth in the unit of ``spec``: whole numbers come in millimetres, others in metres (REP 118)."""
    metres: np.ndarray = part.astype(np.float32) * (1e-3 if part.dtype.kind == "u" else 1.0)
    if part.shape != spec.shape[:2]:
        metres = cv2.resize(metres, (spec.shape[1], spec.shape[0]), interpolation=cv2.INTER_NEAREST)
    values = metres * (1e3 if spec.unit == "mm" else 1.0)
    return np.ascontiguousarray(values.reshape(spec.shape).astype(spec.dtype))
