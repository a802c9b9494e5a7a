"""A stand-in for Isaac Gym (Preview 4) over MuJoCo: just what ``envs/sim/isaac_server.py`` uses, for its tests."""

import sys

if "torch" in sys.modules:
    raise ImportError("PyTorch was imported before isaacgym modules.  Please import torch after isaacgym modules.")
