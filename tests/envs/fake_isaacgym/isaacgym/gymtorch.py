"""Views of the stand-in's tensors: the same memory, as in the real one."""

import torch

from isaacgym import gymapi


def wrap_tensor(gym_tensor):
    return gym_tensor.memory


def unwrap_tensor(torch_tensor):
    if not torch_tensor.is_contiguous():
        raise RuntimeError("Input tensor must be contiguous")
    assert isinstance(torch_tensor, torch.Tensor)
    return gymapi.Tensor(torch_tensor)  # type: ignore[call-arg]
