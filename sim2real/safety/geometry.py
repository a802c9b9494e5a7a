"""Where the arm may be: a box and planes, spheres to stay out of, and its own links.

Everything is checked along a path of joint positions. Box and planes bound convex regions, so points of the path speak
for the way between them; distances to spheres and between links are those of the straight ways between the points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from visuomotor.sim2real.kinematics import Kinematics
from visuomotor.sim2real.safety.config import PlaneConfig, SafetyConfig

__all__ = ["Geometry"]

_NEIGHBOURS = 2  # links so near in the chain touch by construction


class Geometry:
    """The constraints of ``config`` for one arm.

    Pairs of spheres of the arm that overlap at its home (or the middle of its joints' ranges) are left out: there the
    cover is wider than the arm.

    Args:
        names: of the joints, for messages; link ``i`` is the one behind joint ``i``.
    """

    def __init__(self, kinematics: Kinematics, config: SafetyConfig, names: tuple[str, ...]) -> None:
        self._arm, self._clearance = kinematics, config.clearance
        self._links = ("the base", *(f"the link behind {name}" for name in names))
        links = kinematics.links
        box = config.workspace
        self._box = None if box is None else (np.array(box.low), np.array(box.high))
        self._spare = np.zeros((2, 3))  # how far the hand's point may be beyond each side of it
        self._first = int(np.searchsorted(links, 1))  # spheres before this one stand still
        self._wrist = int(np.searchsorted(links, kinematics.n))  # those from here on are the hand's
        self._reach = kinematics.radii + config.clearance
        self._walls = [_wall(p, self._reach, self._first, self._wrist) for p in config.planes]
        self._balls = [
            _Ball(np.array(k.centre), self._reach[self._first :] + k.radius, k.name) for k in config.keep_out
        ]
        self._pairs = _pairs(kinematics, config.clearance) if config.self_collision else []
        self._hulls = _hulls(kinematics)
        self._one, self._two = np.array([(p.one, p.two) for p in self._pairs], np.intp).reshape(-1, 2).T
        self._present, self._starts = np.unique(links, return_index=True)
        self._hull_sums = self._hulls[1][self._one] + self._hulls[1][self._two] + config.clearance

    @property
    def empty(self) -> bool:
        """Nothing is constrained."""
        return not (self._walls or self._balls or self._pairs) and self._box is None

    def begin(self, q: np.ndarray) -> None:
        """Where the arm is too near to something at ``q [n]``, it may be as near from now on, but no nearer."""
        frames = self._arm.frames(q[None])
        centres, tcp = self._arm.spheres_of(frames)[0], self._arm.tcp_of(frames)[0]
        if self._box is not None:
            self._spare = np.maximum(0.0, np.stack([self._box[0] - tcp, tcp - self._box[1]]))
        for wall in self._walls:
            wall.allow(tcp, centres)
        for ball in self._balls:
            ball.allow(centres[:, self._first :])
        for pair in self._pairs:
            pair.allow(centres)

    def depth(self, path: np.ndarray) -> tuple[float, str]:
        """How far the path ``[P, n]`` of joint positions goes too far [m; 0 or less: it is free], and where."""
        frames = self._arm.frames(path)
        centres = self._arm.spheres_of(frames)  # [P, 3, K]
        found = [(-math.inf, "")]
        if self._box is not None or self._walls:
            tcp = self._arm.tcp_of(frames)
            if self._box is not None:
                found.append(self._outside(tcp, *self._box))
            for wall in self._walls:
                most = wall.depth(tcp, centres)
                found.append((most, f"{wall.name}: the arm would be beyond it by {most:.3f} m"))
        if self._balls or self._pairs:
            steps = np.diff(centres, axis=0)
            travel = np.sqrt((steps * steps).sum(1)).sum(0)  # of each sphere
            moving = slice(self._first, None)
            found += [self._inside(centres[:, :, moving], travel[moving], ball) for ball in self._balls]
            if self._pairs:
                found.append(self._own(frames, centres, travel))
        return max(found)

    def _outside(self, tcp: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[float, str]:
        over = np.stack([low - tcp.min(0), tcp.max(0) - high]) - self._spare
        side, axis = (int(i) for i in np.unravel_index(int(over.argmax()), over.shape))
        most, bound = float(over.max()), (low, high)[side][axis]
        return most, f"workspace: the hand's {'xyz'[axis]} would be beyond {bound:g} m by {most:.3f} m"

    def _inside(self, centres: np.ndarray, travel: np.ndarray, ball: _Ball) -> tuple[float, str]:
        way = centres - ball.centre[:, None]
        start = way[0]
        if not (np.sqrt((start * start).sum(0)) < ball.reach + travel).any():
            return -math.inf, ""
        over = ball.reach - _nearest(way)
        which = int(over.argmax())
        link = self._links[int(self._arm.links[self._first + which])]
        return float(over[which]), f"{ball.name}: {link} would be too near by {float(over[which]):.3f} m"

    def _own(self, frames: np.ndarray, centres: np.ndarray, travel: np.ndarray) -> tuple[float, str]:
        """Of the arm's links against each other. Links whose hulls cannot meet on this path are passed over."""
        hulls = (frames[:, 0, :3] * self._hulls[0][:, None]).sum(2)
        between = hulls[self._one] - hulls[self._two]
        most = np.zeros(len(hulls))
        most[self._present] = np.maximum.reduceat(travel, self._starts)
        near = np.sqrt((between * between).sum(1)) < self._hull_sums + most[self._one] + most[self._two]
        worst = (-math.inf, "")
        for index in np.flatnonzero(near).tolist():
            pair = self._pairs[index]
            start = centres[0][:, pair.first] - centres[0][:, pair.second]
            reached = pair.reach + (most[pair.one] + most[pair.two])
            close = np.flatnonzero(np.sqrt((start * start).sum(0)) < reached)
            if len(close):
                way = centres[:, :, pair.first[close]] - centres[:, :, pair.second[close]]
                over = float((pair.reach[close] - _nearest(way)).max())
                names = f"{self._links[pair.one]} and {self._links[pair.two]}"
                worst = max(worst, (over, f"self-collision: {names} would be too near by {over:.3f} m"))
        return worst


@dataclass(eq=False)
class _Wall:
    """A plane; ``reach`` of the spheres that count and ``spare`` of the hand's point say how near they may be [m]."""

    normal: np.ndarray
    offset: float
    counted: slice
    least: np.ndarray
    name: str
    reach: np.ndarray
    spare: float = 0.0

    def allow(self, tcp: np.ndarray, centres: np.ndarray) -> None:
        self.spare = max(0.0, self.offset - float(tcp @ self.normal))
        self.reach = np.minimum(self.least, self.normal @ centres[:, self.counted] - self.offset)

    def depth(self, tcp: np.ndarray, centres: np.ndarray) -> float:
        most = self.offset - float((tcp @ self.normal).min()) - self.spare
        over = self.reach - self.normal @ centres[:, :, self.counted]
        return max(most, self.offset + float(over.max())) if over.size else most


@dataclass(eq=False)
class _Ball:
    """A sphere to stay out of; ``reach``: how near the arm's moving spheres may be to its centre [m]."""

    centre: np.ndarray
    least: np.ndarray
    name: str

    def __post_init__(self) -> None:
        self.reach = self.least

    def allow(self, centres: np.ndarray) -> None:
        self.reach = np.minimum(self.least, np.linalg.norm(centres - self.centre[:, None], axis=0))


@dataclass(eq=False)
class _Pair:
    """Two links and the pairs of their spheres: the distance of their centres has to be ``reach [M]`` [m]."""

    one: int
    two: int
    first: np.ndarray
    second: np.ndarray
    least: np.ndarray

    def __post_init__(self) -> None:
        self.reach = self.least

    def allow(self, centres: np.ndarray) -> None:
        between = centres[:, self.first] - centres[:, self.second]
        self.reach = np.minimum(self.least, np.linalg.norm(between, axis=0))


def _wall(config: PlaneConfig, reach: np.ndarray, first: int, wrist: int) -> _Wall:
    counted = slice(first, None if config.hand else wrist)
    normal = np.array(config.normal) / math.hypot(*config.normal)
    return _Wall(normal, config.offset, counted, reach[counted], config.name, reach[counted])


def _pairs(arm: Kinematics, clearance: float) -> list[_Pair]:
    middle = np.where(np.isfinite(arm.high - arm.low), (arm.low + arm.high) / 2, 0.0)
    centres, radii = arm.spheres(middle if arm.home is None else arm.home)
    pairs = []
    for one in range(arm.n + 1):
        for two in range(one + _NEIGHBOURS + 1, arm.n + 1):
            grid = np.meshgrid(np.flatnonzero(arm.links == one), np.flatnonzero(arm.links == two), indexing="ij")
            first, second = (g.ravel() for g in grid)
            reach = radii[first] + radii[second] + clearance
            free = np.linalg.norm(centres[first] - centres[second], axis=1) > reach
            if free.any():
                pairs.append(_Pair(one, two, first[free], second[free], reach[free]))
    return pairs


def _hulls(arm: Kinematics) -> tuple[np.ndarray, np.ndarray]:
    """A sphere around each link: homogeneous centres in the links' frames ``[n + 1, 4]`` and radii ``[n + 1]`` [m]."""
    centres, radii = np.zeros((arm.n + 1, 4)), np.zeros(arm.n + 1)
    centres[:, 3] = 1.0
    for link in range(arm.n + 1):
        mine = arm.links == link
        if mine.any():
            local = arm.local[:, mine]
            centres[link, :3] = (local[:3].min(1) + local[:3].max(1)) / 2
            radii[link] = float((np.linalg.norm(local[:3].T - centres[link, :3], axis=1) + arm.radii[mine]).max())
    return centres, radii


def _nearest(way: np.ndarray) -> np.ndarray:
    """Least distance ``[K]`` of the polylines ``way [P, 3, K]`` from the origin."""
    if len(way) == 1:
        alone: np.ndarray = np.sqrt((way[0] * way[0]).sum(0))
        return alone
    start, step = way[:-1], np.diff(way, axis=0)
    length = np.maximum((step * step).sum(1), 1e-18)
    share = np.clip(-(start * step).sum(1) / length, 0.0, 1.0)
    near = start + share[:, None] * step
    distance: np.ndarray = np.sqrt((near * near).sum(1).min(0))
    return distance
