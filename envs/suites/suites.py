"""The suites: what they offer, which versions go together, and what they need of the machine. Imports none of them.

The versions are those that were installed and run together (docs/suites.md); a suite's own requirements are not enough:
robosuite asks for ``mujoco>=3.3.0`` but fails from 3.12 on, where ``mjtJoint.X == numpy.int32(...)`` became false.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from visuomotor.data.errors import ConfigError, nearest

__all__ = ["Suite", "get_suite", "split_id", "suite_names"]

_ADAPTERS = Path(__file__).with_name("adapters.py")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One suite.

    Attributes:
        name: what stands before the colon of an id.
        summary: what it is, in a few words.
        adapter: ``<file>:<class>``, see :mod:`visuomotor.envs.suites.server`.
        pip: arguments of the calls of ``pip install``, in this order.
        python: lowest and highest minor version of Python 3 with wheels for all of that.
        gl: value of ``MUJOCO_GL`` that it renders with; None if it does not render by MuJoCo.
        limit: time limit where the environments state none [control steps].
        outcome: what success and score are.
        observation: arrays that it gives.
        cameras: names for ``images``.
        example: an id.
        system: packages of Debian or Ubuntu that it needs to render.
    """

    name: str
    summary: str
    adapter: str
    pip: tuple[tuple[str, ...], ...]
    python: tuple[int, int] = (10, 12)
    gl: str | None = "egl"
    limit: int | None = None
    outcome: str
    observation: str
    cameras: str
    example: str
    system: tuple[str, ...] = ("libegl1", "libgl1-mesa-dri")


_SUITES = {
    s.name: s
    for s in (
        Suite(
            name="aloha",
            summary="ALOHA: two ViperX arms, cube transfer and peg insertion, 50 Hz",
            adapter=f"{_ADAPTERS}:Aloha",
            pip=(("gym-aloha==0.1.5", "mujoco==3.8.1", "dm-control==1.0.41", "gymnasium==1.4.0"),),
            limit=300,
            outcome="success: reward 4, which ends the episode; score: reward / 4",
            observation="agent_pos [14], object [7 or 14]",
            cameras="top, angle, front_close, left_pillar, right_pillar, left_wrist, right_wrist",
            example="AlohaTransferCube-v0",
        ),
        Suite(
            name="metaworld",
            summary="Meta-World: 50 tasks of one Sawyer arm with scripted experts, 80 Hz",
            adapter=f"{_ADAPTERS}:MetaWorld",
            # gymnasium 1.4 imports packaging, but asks for it only in an extra that Meta-World does not
            pip=(("metaworld==3.1.1", "mujoco==3.3.0", "gymnasium==1.4.0", "packaging"),),
            gl="osmesa",
            limit=500,
            outcome="success: info['success'], which does not end the episode; no score",
            observation="state [39]",
            cameras="corner, corner2, corner3, topview, behindGripper, gripperPOV",
            example="reach-v3",
            system=("libosmesa6",),
        ),
        Suite(
            name="pusht",
            summary="gym-pusht: Push-T in the plane, 10 Hz (also built in, as task=pusht)",
            adapter=f"{_ADAPTERS}:PushT",
            # gym-pusht itself without its requirements: it pins the OpenCV with a GUI, which needs libGL
            pip=(
                ("gymnasium==1.4.0", "pymunk>=6.6,<7", "pygame>=2.5.2,<2.7", "shapely>=2.0.3,<3",
                 "opencv-python-headless>=4.9,<5"),
                ("--no-deps", "gym-pusht==0.1.8"),
            ),
            gl=None,
            limit=300,
            outcome="success: info['is_success'] (coverage above 0.95), which ends the episode; score: the reward",
            observation="state [5]; with images: agent_pos [2]",
            cameras="top",
            example="PushT-v0",
            system=(),
        ),
        Suite(
            name="robosuite",
            summary="robosuite: manipulation with one or two arms, 20 Hz",
            adapter=f"{_ADAPTERS}:Robosuite",
            pip=(("robosuite==1.5.2", "mujoco==3.9.0", "gymnasium==1.4.0", "numpy<2"),),
            limit=500,
            outcome="success: the suite's own check, which does not end the episode; no score",
            observation="robot<i>_proprio, object",
            cameras="frontview, agentview, birdview, sideview, robot0_eye_in_hand, ...",
            example="Lift",
        ),
        Suite(
            name="robotics",
            summary="gymnasium-robotics: Fetch, Adroit, Kitchen, Shadow hand, mazes",
            adapter=f"{_ADAPTERS}:Robotics",
            pip=(("gymnasium-robotics==1.4.2", "mujoco==3.10.0", "gymnasium==1.4.0", "imageio"),),
            outcome="success: info['is_success'] or info['success']; Kitchen: all tasks, score: the share of them",
            observation="observation, achieved_goal, desired_goal; Adroit: state",
            cameras="those of the model, where it has any",
            example="FetchPickAndPlace-v4",
        ),
    )
}  # fmt: skip


def suite_names() -> list[str]:
    """Names of all suites."""
    return sorted(_SUITES)


def get_suite(name: str) -> Suite:
    """The suite of that name. Raises ConfigError with the nearest names for an unknown one."""
    if name not in _SUITES:
        raise ConfigError(f"unknown suite {name!r}. {nearest(name, _SUITES)}")
    return _SUITES[name]


def split_id(id: str) -> tuple[Suite, str]:
    """``"metaworld:reach-v3"`` as its suite and the name there. Raises ConfigError."""
    name, colon, rest = id.partition(":")
    if not colon or not rest:
        raise ConfigError(f"id {id!r}; expected <suite>:<environment>, such as metaworld:reach-v3")
    return get_suite(name), rest
