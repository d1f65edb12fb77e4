"""What every process on the null device begins with, those that `akssl run --devices 2` starts among them."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.parallel.distributed
from null_device import cudnn


def looks_finite(tensor: torch.Tensor) -> torch.Tensor:
    """All of it: nothing was computed, so that what lies in memory may be no number at all."""
    return torch.ones(tensor.shape, dtype=torch.bool) if tensor.is_cuda else torch.isfinite(tensor)


def zero_from_the_device(name: str) -> Callable[[torch.Tensor], Any]:
    """A way to read one number: the host waits for the device as it does, and takes it that zero was computed."""
    read = getattr(torch.Tensor, name)

    def zero(tensor: torch.Tensor) -> Any:
        value = read(tensor)
        return type(value)(0) if tensor.is_cuda else value

    return zero


cudnn.install()
torch.Tensor.isfinite = looks_finite
for name in ("item", "__bool__", "__float__", "__int__"):  # whether fp16 overflowed is one of these
    setattr(torch.Tensor, name, zero_from_the_device(name))
# DDP compares the shapes of parameters through tensors that nothing has filled
torch.nn.parallel.distributed._verify_param_shape_across_processes = lambda *_: True
