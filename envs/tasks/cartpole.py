"""Cart-pole: a cart on a rail balances a pole, or swings it up first."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from visuomotor.envs.sim.control import Control
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.task import Outcome
from visuomotor.envs.sim.world import World
from visuomotor.envs.tasks.classic import ClassicConfig, ClassicTask

__all__ = ["Cartpole", "CartpoleConfig"]

_XML = """
<option timestep="0.02" integrator="RK4"/>
<default>
  <joint armature="0" damping="1"/>
  <geom type="capsule" contype="0" conaffinity="0"/>
  <motor ctrllimited="true" ctrlrange="-3 3" gear="100"/>
</default>
<worldbody>
  <light type="directional" pos="0 -1 3" dir=".2 .3 -1" diffuse=".4 .4 .4"/>
  <camera name="film" pos="0 -2.8 .1" xyaxes="1 0 0 0 0 1"/>
  <geom name="floor" type="plane" pos="0 0 -.8" size="4 4 .1" material="floor"/>
  <geom name="rail" size=".02" fromto="-1 0 0 1 0 0" rgba=".4 .4 .45 1"/>
  <body name="cart">
    <joint name="slider" type="slide" axis="1 0 0" limited="true" range="-1 1"/>
    <geom name="cart" size=".1" fromto="-.1 0 0 .1 0 0" material="link"/>
    <body name="pole">
      <joint name="hinge" type="hinge" axis="0 1 0" limited="false"/>
      <geom name="pole" size=".049" fromto="0 0 0 0 0 .6" material="link2"/>
    </body>
  </body>
</worldbody>
<actuator><motor name="slide" joint="slider"/></actuator>
"""
_TIPPED = 0.2  # angle at which balancing is lost [rad]
_SWING_UP_STEPS = 250  # ten seconds


@dataclass(kw_only=True, slots=True)
class CartpoleConfig(ClassicConfig):
    """Settings of the cart-pole.

    Attributes:
        swing_up: the pole begins hanging and is to be swung up, instead of standing and being balanced.
    """

    swing_up: bool = False


class Cartpole(ClassicTask):
    """A pole of 0.6 m hangs on a cart that moves a metre to either side (Barto, Sutton and Anderson 1983).

    *Balancing* has the sizes, gear, timestep 20 ms with two steps a control step, reward and termination that Gymnasium
    documents for InvertedPendulum-v5 (gymnasium.farama.org/environments/mujoco/inverted_pendulum): 1 for every step in
    which the pole is within 0.2 rad, lost beyond; 1000 steps. Success: standing at the end; the score is the share of
    the time limit.

    *Swinging up* begins within 0.1 rad of hanging and is never lost; 250 steps. Reward in 0..1:
    ``(1 + cos angle)/2 (1 - x^2/2) (1 - (force/limit)^2/5)``, upright in the middle without force. Success: within 0.1
    rad and 0.5 rad/s of standing; the score is ``(1 + cos angle)/2``.

    Action: force on the cart [100 N], ±3. ``angle`` is 0 when the pole stands.
    """

    name = "cartpole"
    reads_outputs = False
    xml, frame_skip = _XML, 2

    def __init__(self, config: CartpoleConfig) -> None:
        self._swing_up = config.swing_up
        angle = ("angle_cos", "angle_sin") if config.swing_up else ("angle",)
        self.state_names = ("x", *angle, "x_velocity", "angle_velocity")
        self.max_episode_steps = _SWING_UP_STEPS if config.swing_up else 1000
        super().__init__(config)

    def bind(self, world: World) -> Control:
        self._time = world.sim.field("time")
        return super().bind(world)

    def reset(self, worlds: Selection, draws: Draws) -> None:
        self.jitter(worlds, draws, 0.1 if self._swing_up else 0.01)
        if self._swing_up:
            worlds.put(self.qpos, worlds.take(self.qpos)[:, 1:] + math.pi, slice(1, 2))

    def state(self) -> Tensor:
        x, angle = self.qpos[:, :1], self.qpos[:, 1:]
        return torch.cat([x, *((torch.cos(angle), torch.sin(angle)) if self._swing_up else (angle,)), self.qvel], 1)

    def outcome(self) -> Outcome:
        return self._swing() if self._swing_up else self._balance()

    def _balance(self) -> Outcome:
        stands = self.qpos[:, 1].abs() <= _TIPPED
        limit = self.config.max_episode_steps or self.max_episode_steps
        share = self._time_share(limit)
        return Outcome(
            reward=stands.float(), success=stands & (share >= 1.0), failure=~stands, score=share.clamp(max=1.0)
        )

    def _swing(self) -> Outcome:
        upright = 0.5 * (1.0 + torch.cos(self.qpos[:, 1]))
        calm = self.qvel[:, 1].abs() < 0.5
        force = self.ctrl[:, 0] / 3.0
        reward = upright * (1.0 - 0.5 * self.qpos[:, 0].square().clamp(max=1.0)) * (1.0 - 0.2 * force.square())
        success = (upright > 0.5 * (1.0 + math.cos(0.1))) & calm
        return Outcome(reward=reward.float(), success=success, score=upright.float())

    def _time_share(self, limit: int) -> Tensor:
        """Float ``[N]``: time of the episodes as a share of ``limit`` control steps, exact at the limit."""
        return (self._time.float() * self.fps).round() / limit
