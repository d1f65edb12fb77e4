"""What every process on the null device begins with, those that `akssl run --devices 2` starts among them."""

import torch
import torch.nn.parallel.distributed
from null_device import cudnn


def looks_finite(tensor: torch.Tensor) -> torch.Tensor:
    """All of it: nothing was computed, so that what lies in memory may be no number at all."""
    return torch.ones(tensor.shape, dtype=torch.bool) if tensor.is_cuda else torch.isfinite(tensor)


cudnn.install()
torch.Tensor.isfinite = looks_finite
# DDP compares the shapes of parameters through tensors that nothing has filled
torch.nn.parallel.distributed._verify_param_shape_across_processes = lambda *_: True
