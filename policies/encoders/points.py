"""Point clouds: stored ones, or made of depth images on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.normalize import Normalizer
from visuomotor.data.pointcloud import (
    crop_box,
    depth_to_points,
    farthest_points,
    spread_evenly,
    take_points,
    transform_points,
)
from visuomotor.data.spec import ArraySpec
from visuomotor.policies.draws import Draws
from visuomotor.policies.encoders.part import EncoderPart, PartOutput, array_of
from visuomotor.policies.encoders.readout import with_time

__all__ = ["PointsConfig", "PointsEncoder"]

_WIDTHS = (64, 128, 256)


@dataclass(kw_only=True, slots=True)
class PointsConfig:
    """Which observations are point clouds, and how they are encoded. All of them together make one cloud.

    Attributes:
        keys: point clouds ``[n, 3 + extra]`` (position [m] first) and depth images ``[H, W]`` or ``[H, W, 1]``; a key
            with intrinsics is a depth image.
        intrinsics: ``[fx, fy, cx, cy]`` [px] of a depth camera, by key.
        intrinsics_keys: observed array with the intrinsics ``[4]`` of a depth camera, by key.
        pose: ``T_base_cam`` of a camera, 16 numbers row by row; it takes points to the frame of the robot's base. A key
            without one is in that frame already.
        pose_keys: observed array with ``T_base_cam [4, 4]`` of a camera that moves, by key.
        depth_scale: metres of one unit of a depth image; None: 0.001 where the array is in ``mm`` or uint16, else 1.
        stride: take every so many rows and columns of a depth image.
        low: lowest x, y, z [m] of the workspace; points outside are dropped. Empty: no box.
        high: highest x, y, z [m] of the workspace.
        extra: further values a point, such as colours, as they are stored.
        n_points: points after thinning, chosen to lie as far apart as they can.
        candidates: points among which these are chosen; of larger clouds every so many-th is looked at.
        dropout: share of the points that is hidden in training.
        jitter: standard deviation [m] of the noise on positions in training.
        tokens: give every point to the backbone as a token (ManiFlow) instead of one vector a cloud (DP3).
        dim: size of the vector, or of a token.
    """

    keys: list[str] = field(default_factory=list)
    intrinsics: dict[str, list[float]] = field(default_factory=dict)
    intrinsics_keys: dict[str, str] = field(default_factory=dict)
    pose: dict[str, list[float]] = field(default_factory=dict)
    pose_keys: dict[str, str] = field(default_factory=dict)
    depth_scale: float | None = None
    stride: int = 1
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    extra: int = 0
    n_points: int = 512
    candidates: int = 4096
    dropout: float = 0.0
    jitter: float = 0.0
    tokens: bool = False
    dim: int = 64

    def __post_init__(self) -> None:
        for name in ("intrinsics", "intrinsics_keys", "pose", "pose_keys"):
            for key in getattr(self, name):
                if key not in self.keys:
                    raise ConfigError(f"obs.points.{name} is given for {key!r}. {nearest(key, self.keys)}")
        for name, given, size in (("intrinsics", self.intrinsics, 4), ("pose", self.pose, 16)):
            for key, values in given.items():
                if len(values) != size:
                    raise ConfigError(f"obs.points.{name} of {key!r} has {len(values)} numbers: expected {size}")
                if key in getattr(self, f"{name}_keys"):
                    raise ConfigError(f"obs.points: {key!r} has both {name} and {name}_keys: expected one of them")
        if (len(self.low), len(self.high)) not in ((0, 0), (3, 3)) or any(
            low >= high for low, high in zip(self.low, self.high, strict=True)
        ):
            raise ConfigError(
                f"obs.points: the box from low={self.low} to high={self.high}: expected low < high, x y z"
            )
        for name, least in (("stride", 1), ("n_points", 1), ("candidates", self.n_points), ("dim", 1), ("extra", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"obs.points.{name}={getattr(self, name)}: expected at least {least}")
        if not 0 <= self.dropout < 1 or self.jitter < 0 or (self.depth_scale or 1.0) <= 0:
            raise ConfigError(
                f"obs.points: dropout={self.dropout}, jitter={self.jitter}, depth_scale={self.depth_scale}: expected "
                "0 <= dropout < 1, jitter >= 0 and depth_scale > 0"
            )

    @property
    def calibration_keys(self) -> list[str]:
        """Observed arrays that are read for the geometry only."""
        return list(dict.fromkeys([*self.intrinsics_keys.values(), *self.pose_keys.values()]))

    def is_depth(self, key: str) -> bool:
        """Whether ``key`` is a depth image."""
        return key in self.intrinsics or key in self.intrinsics_keys


class PointsEncoder(EncoderPart):
    """A perceptron for every point with layer norms, then the maximum over all points.

    The encoder of DP3 (Ze et al. 2024, arXiv:2403.03954, section III-B); without the maximum, one token a point, that
    of ManiFlow (Yan et al. 2025, arXiv:2509.01819), marked with how long ago its cloud was seen. The vector does not
    depend on the order of the points. Positions are scaled such that the longest side of the box is ``[-1, 1]``;
    without a box they stay in metres.

    Raises:
        ConfigError: an array that is neither a point cloud nor a depth image with intrinsics.
    """

    centre: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, keys: list[str], specs: Mapping[str, ArraySpec], config: PointsConfig) -> None:
        super().__init__()
        self.config, self._clouds = config, list(keys)
        calibration = [m[k] for m in (config.intrinsics_keys, config.pose_keys) for k in keys if k in m]
        self.keys = [*keys, *dict.fromkeys(calibration)]
        for key in keys:
            _check_shape(key, specs[key].shape, config)
        for camera, key in config.pose_keys.items():
            if camera in keys and specs[key].shape != (4, 4):
                raise ConfigError(f"obs.points.pose_keys: {key!r} has shape {specs[key].shape}: expected (4, 4)")
        for camera, key in config.intrinsics_keys.items():
            if camera in keys and specs[key].shape != (4,):
                raise ConfigError(f"obs.points.intrinsics_keys: {key!r} has shape {specs[key].shape}: expected (4,)")
        self._scale = [_metres(specs[k], config) for k in keys]
        fixed = {f"intrinsics_{i}": config.intrinsics.get(k) for i, k in enumerate(keys)}
        fixed |= {f"pose_{i}": config.pose.get(k) for i, k in enumerate(keys)}
        for name, values in fixed.items():
            value = None if values is None else torch.tensor(values, dtype=torch.float32)
            self.register_buffer(
                name, value if value is None or len(value) == 4 else value.view(4, 4), persistent=False
            )
        low, high = torch.tensor(config.low or [0.0] * 3), torch.tensor(config.high or [0.0] * 3)
        for name, tensor in (("low", low), ("high", high), ("centre", (low + high) / 2)):
            self.register_buffer(name, tensor, persistent=False)
        self._half_width = float((high - low).max()) / 2 if config.low else 1.0

        layers: list[nn.Module] = []
        size = 3 + config.extra
        for width in _WIDTHS:
            layers += [nn.Linear(size, width), nn.LayerNorm(width), nn.ReLU()]
            size = width
        self.per_point = nn.Sequential(*layers)
        self.out = nn.Sequential(nn.Linear(size, config.dim), nn.LayerNorm(config.dim))
        self.feature_dim, self.token_dim = (0, config.dim) if config.tokens else (config.dim, 0)

    def forward(self, obs: Mapping[str, Tensor], normalizer: Normalizer, draws: Draws | None = None) -> PartOutput:
        cloud = self.cloud(obs)  # [B, To, n, 3 + extra]
        if draws is not None:
            cloud = self._augment(cloud, draws)
        position = (cloud[..., :3] - self.centre) / self._half_width
        points = self.per_point(torch.cat([position, cloud[..., 3:]], dim=-1))
        if self.config.tokens:
            return PartOutput(None, with_time(self.out(points)).flatten(1, 2))  # [B, To * n, dim]
        return PartOutput(self.out(points.amax(-2)))

    def cloud(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Points of all keys in the base frame, cropped and thinned: ``[B, To, n, 3 + extra]`` in metres.

        There are ``n_points`` of them, or fewer where the clouds are smaller; those that were dropped are replaced by
        copies of others. A cloud of which nothing is left is at the centre of the box.
        """
        parts = [self._points(i, key, obs) for i, key in enumerate(self._clouds)]
        points, valid = (torch.cat(p, dim=2) for p in zip(*parts, strict=True))
        batch, n_obs = points.shape[:2]
        points, valid = points.flatten(0, 1), valid.flatten(0, 1)  # [B * To, N, ...]
        if self.config.low:
            valid = valid & crop_box(points, self.low, self.high)
        if points.shape[1] > self.config.candidates:
            points, valid = self._take(points, valid, spread_evenly(valid, self.config.candidates))
        if points.shape[1] > self.config.n_points:
            points, valid = self._take(points, valid, farthest_points(points, self.config.n_points, valid))
        else:
            points, valid = self._take(points, valid, spread_evenly(valid, points.shape[1]))
        empty = torch.cat([self.centre, points.new_zeros(self.config.extra)])
        points = torch.where(valid[..., None], points, empty)
        return points.view(batch, n_obs, *points.shape[1:])

    def _points(self, i: int, key: str, obs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Points ``[B, To, N, 3 + extra]`` of one key in the base frame, and which of them there are."""
        c, x = self.config, array_of(obs, key)
        pose = getattr(self, f"pose_{i}")
        if key in c.pose_keys:
            pose = array_of(obs, c.pose_keys[key]).float()
        if c.is_depth(key):
            intrinsics = getattr(self, f"intrinsics_{i}")
            if intrinsics is None:
                intrinsics = array_of(obs, c.intrinsics_keys[key])
            depth = x.float().reshape(*x.shape[:4]) * self._scale[i]  # [B, To, H, W]
            points, valid = depth_to_points(depth, intrinsics, stride=c.stride)
        else:
            points, valid = x.float(), torch.isfinite(x).all(-1)
        return (points if pose is None else transform_points(points, pose)), valid

    @staticmethod
    def _take(points: Tensor, valid: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        return take_points(points, places), valid.gather(1, places)

    def _augment(self, cloud: Tensor, draws: Draws) -> Tensor:
        shape = (*cloud.shape[:3],)
        if self.config.dropout:
            hidden = draws.uniform(shape).to(cloud.device) < self.config.dropout
            # A hidden point becomes a copy of one that is seen: the maximum over the points does not notice copies.
            seen = (~hidden).to(torch.uint8).argmax(-1)[..., None, None].expand(*shape[:2], 1, cloud.shape[-1])
            cloud = torch.where(hidden[..., None], cloud.gather(2, seen), cloud)
        if self.config.jitter:
            noise = draws.normal((*shape, 3)).to(cloud.device) * self.config.jitter
            cloud = torch.cat([cloud[..., :3] + noise, cloud[..., 3:]], dim=-1)
        return cloud


def _metres(spec: ArraySpec, config: PointsConfig) -> float:
    """Metres of one unit of a depth image."""
    if config.depth_scale is not None:
        return config.depth_scale
    return 0.001 if spec.unit == "mm" or spec.dtype == "uint16" else 1.0


def _check_shape(key: str, shape: tuple[int, ...], config: PointsConfig) -> None:
    if config.is_depth(key):
        if config.extra:
            raise ConfigError(f"obs.points.extra={config.extra}, but points of the depth image {key!r} have only x y z")
        if len(shape) != 2 and not (len(shape) == 3 and shape[2] == 1):
            raise ConfigError(f"observation {key!r} has shape {shape}: expected a depth image [H, W] or [H, W, 1]")
        return
    if len(shape) != 2 or shape[1] != 3 + config.extra:
        raise ConfigError(
            f"observation {key!r} has shape {shape}: expected a point cloud [n, {3 + config.extra}] (x, y, z and "
            f"obs.points.extra={config.extra} further values). If it is a depth image, give its camera's "
            "obs.points.intrinsics or obs.points.intrinsics_keys"
        )
