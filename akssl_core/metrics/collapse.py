"""Whether features have collapsed: how far they spread, and along how many directions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Verdict = Literal["healthy", "dimensional collapse", "collapsed"]

COLLAPSED_STD = 0.01  # of features; below, the mean cosine between two images is above 0.9999
COLLAPSED_PROJECTION = 0.1  # of projections, which a method spreads on purpose; below, it is above 0.99
COLLAPSED_RANK = 0.01  # below: less than this share of the dimensions that could be in use is


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
