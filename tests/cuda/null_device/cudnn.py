"""cuDNN does not start without a driver: its operators return tensors of the right shape, and count the launches."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

calls: Counter[str] = Counter()
_operators = torch.library.Library("aten", "IMPL")


def install() -> None:
    """Put these in the place of torch's, in this process."""
    torch.backends.cuda.enable_cudnn_sdp(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there was an implementation before
        _operators.impl("cudnn_convolution", convolution, "CUDA")
        _operators.impl("convolution_backward", convolution_backward, "CUDA")
        _operators.impl("cudnn_batch_norm", batch_norm, "CUDA")
        _operators.impl("cudnn_batch_norm_backward", batch_norm_backward, "CUDA")


def convolution(
    input: Tensor,
    weight: Tensor,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    benchmark: bool,
    deterministic: bool,
    allow_tf32: bool,
) -> Tensor:
    calls["convolution"] += 1
    geometry = zip(input.shape[2:], weight.shape[2:], padding, stride, dilation, strict=True)
    sides = [(side + 2 * pad - apart * (kernel - 1) - 1) // step + 1 for side, kernel, pad, step, apart in geometry]
    last = any(part.is_contiguous(memory_format=torch.channels_last) for part in (input, weight))
    layout = torch.channels_last if last and input.ndim == 4 else torch.contiguous_format
    shape = (len(input), len(weight), *sides)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=layout)


def convolution_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    calls["convolution"] += mask[0] + mask[1]
    of_input = torch.empty_like(input) if mask[0] else None
    of_weight = torch.empty_like(weight) if mask[1] else None
    return of_input, of_weight, grad.new_empty(len(weight)) if mask[2] else None


def batch_norm(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    average_factor: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    calls["batch norm"] += 1
    reserve = input.new_empty(0, dtype=torch.uint8)
    return torch.empty_like(input), torch.empty_like(weight), torch.empty_like(weight), reserve


def batch_norm_backward(
    input: Tensor,
    grad: Tensor,
    weight: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor,
    inverse: Tensor,
    epsilon: float,
    reserve: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    calls["batch norm"] += 1
    return torch.empty_like(input), torch.empty_like(weight), torch.empty_like(weight)
