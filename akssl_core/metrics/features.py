"""Features of images, and which images they are taken of. Nothing here trains.

Probing leaves no trace: the encoder's mode, its statistics and the random state are as they were before;
`measure_statistics` alone changes the statistics, when it is asked to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from .. import dist
from ..backbone.base import Backbone, evaluating
from ..data.base import ImageSet, Pixels
from ..data.preprocess import Preprocess
from ..errors import ConfigError, DataError

RAW_SIDE = 32  # raw pixels are compared at this side at most: 224 px would be 150 528 numbers an image


def embed(
    encoder: Backbone,
    images: ImageSet,
    preprocess: Preprocess,
    *,
    batch_size: int = 256,
    device: torch.device,
    shared: bool = False,
) -> Tensor:
    """Features (N, D) of all images in their order, float32 on the CPU.

    The encoder stands on `device`. It runs in eval mode and without gradients; afterwards each of its modules
    is back in the mode it was in. `shared` over the processes of a run, all of which must ask for them together, the
    main process has what one alone computes, to the bit on a CPU; the others have nothing.
    """

    def features(index: Sequence[int]) -> Tensor:
        return features_of(encoder, preprocess.fetch(images, index), preprocess, device=device)

    return _rows(features, len(images), batch_size, shared=shared)


def features_of(encoder: Backbone, batch: Pixels, preprocess: Preprocess, *, device: torch.device) -> Tensor:
    """Features (B, D) of one batch, on the device that the encoder stands on; it is left as it was."""
    layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    with evaluating(encoder):
        result: Tensor = encoder(preprocess.pixels(batch.to(device)).contiguous(memory_format=layout))
    return result


def measure_statistics(
    encoder: Backbone,
    images: ImageSet,
    preprocess: Preprocess,
    *,
    batches: int = 200,
    batch_size: int = 256,
    device: torch.device,
) -> int:
    """Measure the running statistics of an encoder's batch norms anew, and say how many norms have some.

    They become plain averages over up to so many batches of images as a probe sees them, one pass and no step
    (Izmailov et al. 2018, arXiv 1803.05407, section 3.2). Weights, modes and all else stay; the encoder stands on
    `device`. Processes that do this together measure the same images and agree.
    """
    norms = [part for part in encoder.modules() if isinstance(part, _BatchNorm) and part.running_mean is not None]
    if not norms:
        return 0
    chosen, momenta = sample(images, batches * batch_size), [norm.momentum for norm in norms]
    size = min(batch_size, len(chosen))
    with evaluating(encoder):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the average of all batches
            norm.train()
        for start in range(0, len(chosen) - size + 1, size):  # a smaller last one would weigh as much as the others
            batch = preprocess.fetch(chosen, range(start, start + size))
            encoder(preprocess.pixels(batch.to(device)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return len(norms)


def patches_of(
    encoder: Backbone, batch: Pixels, preprocess: Preprocess, *, device: torch.device
) -> tuple[Tensor, tuple[int, int]]:
    """Features (B, N, D) of the patches of one batch, or of the places in a CNN's last map, and their grid.

    Raises:
        ConfigError: the encoder gives none.
    """
    with evaluating(encoder):
        found = encoder.features(preprocess.pixels(batch.to(device)))
    if found.patches is None or found.grid is None:
        raise ConfigError(f"patches: {encoder.name} gives features of whole images alone. Take another backbone.")
    return found.patches.float(), found.grid


def pixels_as_features(
    images: ImageSet, preprocess: Preprocess, *, batch_size: int = 256, shared: bool = False
) -> Tensor:
    """The normalised pixels themselves as features (N, C * S * S), the baseline that a method must beat.

    Images larger than 32 px are averaged down to that side, which bounds the memory and hardly moves the
    accuracy (drawn shapes at 64, 32 and 16 px: 23.2, 23.4 and 23.2 %).
    """
    side = min(preprocess.size, RAW_SIDE)

    def features(index: Sequence[int]) -> Tensor:
        batch = preprocess.pixels(preprocess.fetch(images, index))
        return F.interpolate(batch, size=(side, side), mode="area").flatten(1)

    return _rows(features, len(images), batch_size, shared=shared)


def sample(images: ImageSet, count: int) -> ImageSet:
    """A view on `count` images spread over the set; all images when there are fewer."""
    return images if count >= len(images) else images.subset(spread(len(images), count))


def spread(total: int, count: int) -> Tensor:
    """Positions (count,) int64 in ascending order, one from each of `count` equal stretches of range(total).

    The place within a stretch follows the golden ratio. A constant step would meet labels that repeat
    (0, 1, .. 9, 0, 1, ..) always at the same one.
    """
    edges = torch.arange(count + 1) * total // count
    fraction = torch.arange(count) * 40503 % 65536  # Knuth's multiplicative hash: 40503 / 2^16 = 0.618
    return edges[:-1] + fraction * edges.diff() // 65536


def labelled(features: Tensor, labels: Tensor, protocol: str, what: str) -> tuple[Tensor, Tensor]:
    """The rows that have a label (-1 stands for none) and their labels.

    Raises:
        DataError: there is no label at all.
    """
    known = labels >= 0
    if not known.any():
        raise DataError(
            f"{protocol}: no image of the {what} has a label. Give data with labels, or leave {protocol} out."
        )
    return (features, labels) if known.all() else (features[known], labels[known])


def _rows(features: Callable[[Sequence[int]], Tensor], count: int, batch_size: int, *, shared: bool) -> Tensor:
    """The features of all images; the result is laid out once, so that its memory is never doubled.

    Where they are shared, processes take batches in turn, so that each batch is one that a single process has.
    """
    world, rank = (dist.world(), dist.rank()) if shared else (1, 0)
    result = torch.empty(0, 0)
    for start in range(0, count, world * batch_size):
        first = start + rank * batch_size
        mine = range(first, min(first + batch_size, count)) or range(min(batch_size, count))  # none: rows to cut off
        rows = features(mine)
        if world > 1:
            rows = dist.gather(F.pad(rows, (0, 0, 0, batch_size - len(rows))))[: count - start]
        if rank == 0:
            if start == 0:
                result = torch.empty(count, rows.shape[1])
            result[start : start + len(rows)] = rows
    return result
