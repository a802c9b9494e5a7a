"""A ChArUco board: printed, found in pictures, and its pose and the camera's intrinsics worked out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from visuomotor.data.errors import ConfigError, UserError, nearest

__all__ = ["Board", "BoardConfig", "Corners", "Intrinsics"]

_LEAST_CORNERS = 6
_DICTIONARIES = {
    name.removeprefix("DICT_"): getattr(cv2.aruco, name)
    for name in ("DICT_4X4_50", "DICT_4X4_100", "DICT_5X5_50", "DICT_5X5_100", "DICT_6X6_250", "DICT_APRILTAG_36h11")
}


@dataclass(kw_only=True, slots=True)
class BoardConfig:
    """The board. Measure ``square`` on the print: printers scale.

    Attributes:
        columns, rows: of squares.
        square: side of a square [m].
        marker: side of a marker [m].
        dictionary: of the markers.
    """

    columns: int = 7
    rows: int = 5
    square: float = 0.04
    marker: float = 0.03
    dictionary: str = "5X5_100"

    def __post_init__(self) -> None:
        if min(self.columns, self.rows) < 3:
            raise ConfigError(f"board: {self.columns} x {self.rows} squares; expected 3 at least each way")
        if not 0 < self.marker < self.square < math.inf:
            raise ConfigError(
                f"board: marker={self.marker:g} in square={self.square:g} m; expected 0 < marker < square"
            )
        if self.dictionary not in _DICTIONARIES:
            raise ConfigError(
                f"board: unknown dictionary {self.dictionary!r}. {nearest(self.dictionary, _DICTIONARIES)}"
            )


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera with OpenCV's distortion: ``matrix [3, 3]`` [px], ``distortion [5]``, picture size [px]."""

    matrix: np.ndarray
    distortion: np.ndarray
    width: int
    height: int


@dataclass(frozen=True)
class Corners:
    """Corners found: ``pixels [C, 2]``, and where they are on the board ``points [C, 3]`` [m]."""

    pixels: np.ndarray
    points: np.ndarray


class Board:
    """A ChArUco board."""

    def __init__(self, config: BoardConfig) -> None:
        self.config = config
        dictionary = cv2.aruco.getPredefinedDictionary(_DICTIONARIES[config.dictionary])
        size = (config.columns, config.rows)
        self._board = cv2.aruco.CharucoBoard(size, config.square, config.marker, dictionary)

    @cached_property
    def _detector(self) -> cv2.aruco.CharucoDetector:
        return cv2.aruco.CharucoDetector(self._board)

    def picture(self, pixels_a_metre: float = 10_000.0) -> np.ndarray:
        """The board to print: uint8 ``[H, W]``, without a margin."""
        c = self.config
        size = (round(c.columns * c.square * pixels_a_metre), round(c.rows * c.square * pixels_a_metre))
        drawn: np.ndarray = self._board.generateImage(size, marginSize=0)
        return drawn

    def find(self, rgb: np.ndarray) -> Corners | None:
        """Corners in uint8 ``[H, W, 3]`` or ``[H, W]``; None if there are too few for a pose."""
        grey = rgb if rgb.ndim == 2 else cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        pixels, ids, _, _ = self._detector.detectBoard(grey)
        if ids is None or len(ids) < _LEAST_CORNERS:
            return None
        points = np.asarray(self._board.getChessboardCorners())[np.asarray(ids).reshape(-1)]
        spread = np.linalg.svd(points - points.mean(0), compute_uv=False)
        if spread[1] < self.config.square:  # nearly on a line: no pose can be told from them
            return None
        return Corners(np.asarray(pixels, np.float64).reshape(-1, 2), np.asarray(points, np.float64))

    def intrinsics(self, views: Sequence[Corners], width: int, height: int) -> tuple[Intrinsics, float]:
        """The camera, and the root mean square of its reprojection errors [px].

        Raises:
            UserError: fewer than five views, or views that no camera fits.
        """
        if len(views) < 5:
            raise UserError(f"the board is seen in {len(views)} pictures; 5 at least are needed for the intrinsics")
        points, pixels = ([getattr(v, what).astype(np.float32) for v in views] for what in ("points", "pixels"))
        try:
            error, matrix, distortion, _, _ = cv2.calibrateCamera(points, pixels, (width, height), None, None)
        except cv2.error as e:
            raise UserError(f"no intrinsics fit the {len(views)} pictures of the board: {e.err}") from None
        return Intrinsics(np.asarray(matrix), np.asarray(distortion).reshape(-1)[:5], width, height), float(error)

    @staticmethod
    def pose(view: Corners, camera: Intrinsics) -> tuple[np.ndarray, float]:
        """Pose ``[4, 4]`` of the board in the camera's frame (x right, y down, z forward), and its error [px].

        Raises:
            UserError: corners from which no pose can be told.
        """
        found, turn, pos = cv2.solvePnP(view.points, view.pixels, camera.matrix, camera.distortion)
        if not found:
            raise UserError("the board's corners lie on a line: no pose can be told from them")
        turn, pos = cv2.solvePnPRefineLM(view.points, view.pixels, camera.matrix, camera.distortion, turn, pos)
        again, _ = cv2.projectPoints(view.points, turn, pos, camera.matrix, camera.distortion)
        error = float(np.sqrt(((again.reshape(-1, 2) - view.pixels) ** 2).sum(1).mean()))
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(turn)[0], pos.reshape(3)
        return pose, error
