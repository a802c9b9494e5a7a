"""Passivity of contact tasks: the hand may work on its surroundings only with energy that it has.

The virtual energy tank of Franken et al. 2011 ("Bilateral Telemanipulation With Time Delays: A Two-Layer Approach
Combining Passivity and Transparency") and Ferraguti, Secchi and Fantuzzi 2013 ("A Tank-based Approach to Impedance
Control with Variable Stiffness"): what the hand does to its surroundings is paid out of the tank, what they do to the
hand flows back. A policy that pushes on and on, or oscillates against something stiff, runs out of energy and stops
pushing; it can always let go.
"""

from __future__ import annotations

import numpy as np

from visuomotor.sim2real.safety.config import TankConfig

__all__ = ["EnergyTank"]


class EnergyTank:
    """Scales motions of the hand by the energy that is left.

    Attributes:
        energy: in the tank [J].
    """

    def __init__(self, config: TankConfig) -> None:
        self._config = config
        self.energy = config.start

    def reset(self) -> None:
        """Fill it as at the beginning: when an episode begins."""
        self.energy = self._config.start

    def limit(self, motion: np.ndarray, wrench: np.ndarray, dt_s: float) -> np.ndarray:
        """As much of a motion as there is energy and power for ``[6]``.

        Args:
            motion: of the hand in the time ``dt_s`` [s], in the frame of the base: position [m], rotation vector [rad].
            wrench: measured, of the surroundings on the hand at its point, in the same frame: force [N], torque [N m].
                Not finite: the hand stays where it is.
        """
        work = -float(np.dot(wrench, motion))  # of the hand on its surroundings [J]
        if not np.isfinite(work):
            return np.zeros(6)
        if work <= 0.0:
            self.energy = min(self._config.most, self.energy - work)
            return np.array(motion, dtype=np.float64)
        paid = min(work, self._config.power * dt_s, max(0.0, self.energy - self._config.least))
        self.energy -= paid
        return np.asarray(motion, dtype=np.float64) * (paid / work)
