"""What an encoder has learned: features, k-NN accuracy, and whether they have collapsed. Nothing here trains.

Probing leaves no trace: the encoder's mode, its statistics and the random state are as they were before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbone.base import Backbone
from .data.base import ImageSet, Pixels
from .errors import DataError

if TYPE_CHECKING:
    from .data.preprocess import Preprocess

Verdict = Literal["healthy", "dimensional collapse", "collapsed"]

RAW_SIDE = 32  # raw pixels are compared at this side at most: 224 px would be 150 528 numbers an image
QUERIES_AT_ONCE, BANK_AT_ONCE = 512, 8192  # one block of similarities takes 16 MiB, its sort keys 32 MiB
COLLAPSED_STD = 0.01  # of features; below, the mean cosine between two images is above 0.9999
COLLAPSED_PROJECTION = 0.1  # of projections, which a method spreads on purpose; below, it is above 0.99
COLLAPSED_RANK = 0.01  # below: less than this share of the dimensions that could be in use is
_STEPS = 2**20  # similarities closer than 1e-6 count as equal, so that rounding errors decide no tie
_INDICES = 2**32  # the lower half of a sort key holds an index


# -- features -------------------------------------------------------------------------------------
def embed(
    encoder: Backbone, images: ImageSet, preprocess: Preprocess, *, batch_size: int = 256, device: torch.device
) -> Tensor:
    """Features (N, D) of all images in their order, float32 on the CPU.

    The encoder stands on `device`. It runs in eval mode and without gradients; afterwards each of its modules
    is back in the mode it was in.
    """
    layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format

    def features(batch: Pixels) -> Tensor:
        result: Tensor = encoder(preprocess.pixels(batch.to(device)).contiguous(memory_format=layout))
        return result

    with _eval_mode(encoder), torch.no_grad():
        return _rows(features, images, batch_size)


def pixels_as_features(images: ImageSet, preprocess: Preprocess, *, batch_size: int = 256) -> Tensor:
    """The normalised pixels themselves as features (N, C * S * S), the baseline that a method must beat.

    Images larger than 32 px are averaged down to that side, which bounds the memory and hardly moves the
    accuracy (drawn shapes at 64, 32 and 16 px: 23.2, 23.4 and 23.2 %).
    """
    side = min(preprocess.size, RAW_SIDE)

    def features(batch: Pixels) -> Tensor:
        return F.interpolate(preprocess.pixels(batch), size=(side, side), mode="area").flatten(1)

    return _rows(features, images, batch_size)


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


def _rows(features: Callable[[Pixels], Tensor], images: ImageSet, batch_size: int) -> Tensor:
    """The features of all images; the result is laid out once, so that its memory is never doubled."""
    result = torch.empty(0, 0)
    for start in range(0, len(images), batch_size):
        index = range(start, min(start + batch_size, len(images)))
        rows = features(images.fetch(index))
        if start == 0:
            result = torch.empty(len(images), rows.shape[1])
        result[start : start + len(rows)] = rows
    return result


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode for a while; each submodule gets its own flag back, for some may be frozen on purpose."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


# -- nearest neighbours ---------------------------------------------------------------------------
def knn(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Accuracy in percent of a weighted k-NN classifier: cosine similarity, votes weighted with exp(sim / T).

    Wu et al. 2018 (arXiv 1805.01978); k = 20 and T = 0.07 as in DINO (arXiv 2104.14294). `bank` is (N, D) and
    `queries` (Q, D); images without a label (-1) are left out. Of equally similar images the earlier one counts.

    Raises:
        DataError: the bank or the queries hold no label.
    """
    bank, bank_labels = _labelled(bank, bank_labels, "bank")
    queries, query_labels = _labelled(queries, query_labels, "queries")
    similarity, index = _nearest(bank, queries, k)
    weights = torch.softmax(similarity / temperature, dim=1)  # exp(sim / T) up to a factor, without overflow
    labels = bank_labels[index]  # (Q, k)
    guesses = torch.cat([_vote(labels[part], weights[part]) for part in _blocks(len(queries))])
    return 100 * (guesses == query_labels).double().mean().item()


def neighbours(bank: Tensor, queries: Tensor, k: int) -> Tensor:
    """Indices (Q, min(k, N)) of the bank's images most alike to each query by cosine, the most alike first."""
    return _nearest(bank, queries, k)[1]


def _vote(labels: Tensor, weights: Tensor) -> Tensor:
    """The label (Q,) with the most weight among neighbours (Q, k); of equals that of the nearer neighbour."""
    same = labels[:, :, None] == labels[:, None, :]  # (Q, k, k): the memory does not grow with the classes
    votes = (same * weights[:, None, :]).sum(2)
    return labels.gather(1, votes.argmax(1, keepdim=True)).squeeze(1)


def _labelled(features: Tensor, labels: Tensor, what: str) -> tuple[Tensor, Tensor]:
    known = labels >= 0
    if not known.any():
        raise DataError(f"k-NN: the {what} hold no labelled image. Give data with labels, or leave k-NN out.")
    return (features, labels) if known.all() else (features[known], labels[known])


def _nearest(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities (float64) and indices of the k nearest, each (Q, k).

    The memory does not grow with N x Q: the best k so far are merged with those of each block of the bank.
    """
    k = min(k, len(bank))
    keys = torch.cat([_best_keys(bank, queries[part], k) for part in _blocks(len(queries))])
    return keys.div(_INDICES, rounding_mode="floor").double() / _STEPS, _INDICES - 1 - keys % _INDICES


def _blocks(count: int) -> list[slice]:
    """Blocks of queries."""
    return [slice(start, start + QUERIES_AT_ONCE) for start in range(0, count, QUERIES_AT_ONCE)]


def _best_keys(bank: Tensor, queries: Tensor, k: int) -> Tensor:
    """The k largest sort keys (Q, k) of one block of queries over the whole bank."""
    queries = _unit(queries)
    best = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(bank), BANK_AT_ONCE):
        similarity = queries @ _unit(bank[start : start + BANK_AT_ONCE]).T
        keys = torch.cat([best, _keys(similarity, start)], dim=1)
        best = keys.topk(min(k, keys.shape[1]), dim=1).values
    return best


def _keys(similarity: Tensor, start: int) -> Tensor:
    """One int64 for similarity and index: a higher similarity wins, then a lower index. No two are equal."""
    index = torch.arange(start, start + similarity.shape[1], device=similarity.device)
    return (similarity * _STEPS).round().to(torch.int64) * _INDICES + (_INDICES - 1 - index)


def _unit(features: Tensor) -> Tensor:
    """Rows of length 1; a row with a number that is not finite becomes zero, alike to nothing."""
    return F.normalize(features, dim=1).nan_to_num(0.0, 0.0, 0.0)


# -- collapse -------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Spectrum:
    """How the features (N, D) of many images fill their space; not a number where features are not finite.

    `std_ratio` is the mean over channels of the standard deviation of L2-normalised features, times sqrt(D):
    1 when they point everywhere, 0 when they are all the same (Chen and He 2021, arXiv 2011.10566). `rankme`
    is the effective rank, 1 to min(N, D): exp of the entropy of the normalised singular values of the
    features as they are, neither centred nor normalised (Garrido et al. 2023, arXiv 2210.02885).
    """

    std_ratio: float
    rankme: float
    count: int
    dim: int


def spectrum(features: Tensor) -> Spectrum:
    """The collapse numbers of features (N, D)."""
    count, dim = features.shape
    rows = features.double()
    if not rows.isfinite().all():
        return Spectrum(math.nan, math.nan, count, dim)
    std = F.normalize(rows, dim=1).std(dim=0, correction=0)
    return Spectrum(float(std.mean()) * math.sqrt(dim), _rankme(rows), count, dim)


def _rankme(rows: Tensor) -> float:
    """exp(-sum p log p) with p = singular values / their sum + 1e-7, from the smaller Gram matrix."""
    gram = rows.T @ rows if rows.shape[0] > rows.shape[1] else rows @ rows.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    p = singular / singular.sum().clamp(min=torch.finfo(rows.dtype).tiny) + 1e-7
    return float((-(p * p.log()).sum()).exp())


def verdict(spectrum: Spectrum) -> Verdict:
    """What the collapse numbers mean.

    "collapsed": the standard deviation is under 1 % of that of features which point everywhere, or not a number.
    Untrained networks in eval mode set the bound: a ResNet-18 has 0.14, a ResNet-50 0.05, a ResNet-101 0.013,
    a ViT-B 0.7, while a constant encoder has less than 0.001. "dimensional collapse": images differ, but along
    less than 1 % of the directions that min(N, D) allows; the untrained networks use 1 to 40 %. Both bounds are
    low on purpose, for a false alarm would end a good run; a projector may collapse well before its backbone.
    """
    if not spectrum.std_ratio >= COLLAPSED_STD:
        return "collapsed"
    full = min(spectrum.count, spectrum.dim)
    if full > 1 and spectrum.rankme < 1 + COLLAPSED_RANK * (full - 1):
        return "dimensional collapse"
    return "healthy"
