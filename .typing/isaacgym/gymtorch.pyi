"""What visuomotor uses of ``isaacgym.gymtorch`` (Preview 4)."""

import torch

from isaacgym import gymapi

def wrap_tensor(gym_tensor: gymapi.Tensor) -> torch.Tensor: ...
def unwrap_tensor(torch_tensor: torch.Tensor) -> gymapi.Tensor: ...
