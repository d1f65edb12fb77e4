"""Convolutions of small maps on a CPU: the same numbers from matrix products, several times as fast.

The deep stages of a network see maps of a few pixels. There the weight gradients of torch's CPU convolutions cost
four to ten times the forward pass, and most of their products are with padding. docs/performance.md has the timings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..dist import exchanged

MATRIX_UP_TO = 16  # positions of the map times positions of the output, for the whole layer as one matrix
# Channels that an output position needs, at stride 1, before products tap by tap overtake torch's weight gradient.
# Measured at batch 64 to 256, bf16, ms torch / taps: 512 channels 7x7 37 / 31, 256 channels 4x4 11.6 / 9.8 and 6x6
# 12.2 / 12.4, 128 channels 4x4 3.0 / 3.2; stride 2 to 512 channels 7x7 27 / 18. In fp32 512 channels 4x4 86 / 77.
CHANNELS_A_POSITION = {torch.bfloat16: 10, torch.float32: 20}


class Axis(NamedTuple):
    """One axis of a convolution."""

    inputs: int
    kernel: int
    stride: int
    padding: int

    @property
    def outputs(self) -> int:
        """Positions of the output."""
        return (self.inputs + 2 * self.padding - self.kernel) // self.stride + 1

    def triples(self) -> Iterator[tuple[int, int, int]]:
        """Every (output, input, tap) that belong together; padding has none."""
        for o in range(self.outputs):
            for tap in range(self.kernel):
                i = o * self.stride + tap - self.padding
                if 0 <= i < self.inputs:
                    yield o, i, tap

    def taps(self) -> Iterator[tuple[int, slice, slice]]:
        """Each tap that touches the map, with the outputs it serves and the inputs they see through it."""
        for tap in range(self.kernel):
            met = [(o, i) for o, i, t in self.triples() if t == tap]
            if met:
                (first, start), (last, stop) = met[0], met[-1]
                yield tap, slice(first, last + 1), slice(start, stop + 1, self.stride)


class Grid(NamedTuple):
    """Both axes of a convolution."""

    rows: Axis
    columns: Axis

    def triples(self) -> Iterator[tuple[tuple[int, int], tuple[int, int], tuple[int, int]]]:
        """Every (output, input, tap) of the plane."""
        for oy, iy, ky in self.rows.triples():
            for ox, ix, kx in self.columns.triples():
                yield (oy, ox), (iy, ix), (ky, kx)


def rows_of(images: Tensor) -> Tensor:
    """(B, C, H, W) as (B, H, W, C); nothing is copied in channels_last."""
    return images.permute(0, 2, 3, 1)


def images_of(rows: Tensor) -> Tensor:
    """(B, H, W, C) as (B, C, H, W)."""
    return rows.permute(0, 3, 1, 2)


class _AsMatrix(torch.autograd.Function):
    """A convolution as one product with a matrix (outputs x channels, inputs x channels) of its taps."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
        count, out, into = len(images), weight.shape[0], weight.shape[1]
        sides = grid.rows.outputs, grid.columns.outputs, out, grid.rows.inputs, grid.columns.inputs, into
        matrix = torch.zeros(sides, dtype=dtype)
        for (oy, ox), (iy, ix), (ky, kx) in grid.triples():
            matrix[oy, ox, :, iy, ix] = weight[:, :, ky, kx]
        flat = rows_of(images).to(dtype).reshape(count, -1)
        square = matrix.view(-1, flat.shape[1])
        ctx.save_for_backward(flat, square)
        ctx.grid, ctx.sides, ctx.weight = grid, sides, (weight.shape, weight.dtype)
        return images_of((flat @ square.t()).view(count, *sides[:3]))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        flat, square = ctx.saved_tensors
        count, sides = len(flat), ctx.sides
        rows = rows_of(gradient).reshape(count, -1)
        of_images = of_weight = None
        if ctx.needs_input_grad[0]:
            of_images = images_of((rows @ square).view(count, *sides[3:]))
        if ctx.needs_input_grad[1]:
            of_weight = _zeros(*ctx.weight)
            of_matrix = (rows.t() @ flat).view(sides)
            for (oy, ox), (iy, ix), (ky, kx) in ctx.grid.triples():
                of_weight[:, :, ky, kx] += of_matrix[oy, ox, :, iy, ix]
        return of_images, of_weight, None, None


class _TapGradient(torch.autograd.Function):
    """Torch's convolution with a weight gradient of one product a tap, over the places where the tap meets pixels."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
        images, cast = images.to(dtype), weight.to(dtype)
        ctx.save_for_backward(images, cast)
        ctx.grid, ctx.weight = grid, (weight.shape, weight.dtype)
        return torch.conv2d(images, cast, None, *_steps(grid))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        of_images = of_weight = None
        if ctx.needs_input_grad[0]:
            of_images = torch.ops.aten.convolution_backward(
                gradient, images, weight, None, *_steps(ctx.grid), [1, 1], False, [0, 0], 1, [True, False, False]
            )[0]
        if ctx.needs_input_grad[1]:
            of_weight = _zeros(*ctx.weight)
            seen, gained = rows_of(images), rows_of(gradient)
            for ky, outputs_y, inputs_y in ctx.grid.rows.taps():
                for kx, outputs_x, inputs_x in ctx.grid.columns.taps():
                    rows = gained[:, outputs_y, outputs_x].reshape(-1, gained.shape[3])
                    of_weight[:, :, ky, kx] = rows.t() @ seen[:, inputs_y, inputs_x].reshape(-1, seen.shape[3])
        return of_images, of_weight, None, None


def _steps(grid: Grid) -> tuple[list[int], list[int]]:
    """Stride and padding."""
    return [axis.stride for axis in grid], [axis.padding for axis in grid]


def _zeros(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """An empty gradient (O, I, kH, kW) whose taps are matrices with adjoining rows, as in channels_last."""
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last).zero_()


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` that takes the fastest way to the same result for the map it is given."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, I, H, W) to (B, O, H', W')."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        grid = self._grid(input)
        way = None if grid is None else self._way(grid, dtype)
        if way is None:
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            result: Tensor = way.apply(input, self.weight, grid, dtype)
            return result if self.bias is None else result + self.bias.to(dtype)[:, None, None]

    def _grid(self, input: Tensor) -> Grid | None:
        """The geometry, or None for what is left to torch."""
        plain = self.groups == 1 and self.dilation == (1, 1) and self.padding_mode == "zeros"
        if not plain or isinstance(self.padding, str) or input.ndim != 4 or input.device.type != "cpu":
            return None
        axes = zip(input.shape[2:], self.kernel_size, self.stride, self.padding, strict=True)
        return Grid(*(Axis(*axis) for axis in axes))

    def _way(self, grid: Grid, dtype: torch.dtype) -> type[_AsMatrix] | type[_TapGradient] | None:
        """The fastest way here; None: torch's own."""
        rows, columns = grid
        outputs = rows.outputs * columns.outputs
        if dtype not in CHANNELS_A_POSITION or rows.outputs < 1 or columns.outputs < 1:
            return None
        if max(self.kernel_size) > 1 and rows.inputs * columns.inputs * outputs <= MATRIX_UP_TO:
            return _AsMatrix
        channels = min(self.in_channels, self.out_channels) * rows.stride * columns.stride
        enough = channels >= CHANNELS_A_POSITION[dtype] * outputs
        return _TapGradient if enough and torch.is_grad_enabled() else None


def fast_convolutions(module: nn.Module) -> AbstractContextManager[None]:
    """All plain `nn.Conv2d` in a module compute as `Conv2d`, while this lasts.

    Classes are exchanged, nothing else: weights, names and hooks stay, and the module is afterwards as it was.
    """
    return exchanged(module, {nn.Conv2d: Conv2d})
