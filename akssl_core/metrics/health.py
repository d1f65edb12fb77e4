"""How features are built: how fast their spectrum falls, how views of an image agree, how images spread.

Each number has a floor of samples. Below it there is no number, but a reason: too few samples give a wrong value that
looks like a right one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

FIRST_RANK = 3  # the leading directions seldom follow the power law of the others
FITTED_RANKS = 10  # fewer points do not show a slope
IMAGES_PER_RANK = 8  # the i-th eigenvalue of fewer than 8 i samples is mostly noise
FEWEST_IMAGES = 32  # of means over images and over pairs of them
ROWS_AT_ONCE = 1024  # of the table of all pairs
WITHIN = 1e-4  # added to the variances within an image, as in the paper of LiDAR


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
    singular = torch.linalg.eigvalsh(_gram(rows)).clamp(min=0).sqrt()
    p = singular / singular.sum().clamp(min=torch.finfo(rows.dtype).tiny) + 1e-7  # as in the paper of RankMe
    rankme = float((-(p * p.log()).sum()).exp())
    return Spectrum(float(std.mean()) * math.sqrt(dim), rankme, count, dim)


class TooFewSamples(ValueError):
    """A number of health would be wrong; the message says what it takes."""


class Health(NamedTuple):
    """The numbers that the samples allow, and why the others are missing."""

    numbers: dict[str, float]
    missing: dict[str, str]


def of_features(features: Tensor) -> Health:
    """alpha-ReQ and uniformity of features (N, D), one row an image."""
    return _health(features, alpha_req, uniformity)


def of_views(views: Tensor) -> Health:
    """LiDAR and alignment of features (N, V, D) of V views of each of N images."""
    return _health(views, lidar, alignment)


def _health(samples: Tensor, *measures: Callable[[Tensor], float]) -> Health:
    """Not a number where the samples are not finite, as in `Spectrum`."""
    if not samples.isfinite().all():
        return Health({measure.__name__: math.nan for measure in measures}, {})
    health = Health({}, {})
    for measure in measures:
        try:
            health.numbers[measure.__name__] = measure(samples)
        except TooFewSamples as reason:
            health.missing[measure.__name__] = str(reason)
    return health


def alpha_req(features: Tensor) -> float:
    """The exponent a with which the eigenvalues of the covariance of features (N, D) fall, as rank^-a.

    Near 1 in good encoders; a steep spectrum (large a) wastes dimensions, a flat one (near 0) keeps noise (Agrawal et
    al. 2022, arXiv 2202.05808). The negative slope of log eigenvalue over log rank, by least squares, from rank 3 to
    min(D, N / 8).

    Raises:
        TooFewSamples: that leaves less than 10 ranks.
    """
    count, dim = features.shape
    last = min(dim, count // IMAGES_PER_RANK)
    least = FIRST_RANK + FITTED_RANKS - 1
    if last < least:
        raise TooFewSamples(
            f"alpha-ReQ takes {least * IMAGES_PER_RANK} images and {least} features; these are {count} and {dim}"
        )
    centred = features.double() - features.double().mean(0)
    eigenvalues = torch.linalg.eigvalsh(_gram(centred)).flip(0).clamp(min=0) / count  # the largest first
    values = eigenvalues[FIRST_RANK - 1 : last]
    ranks = torch.arange(FIRST_RANK, last + 1, dtype=values.dtype)
    used = values > values.new_tensor(1e-12) * values.max().clamp(min=1e-30)
    if int(used.sum()) < FITTED_RANKS:
        raise TooFewSamples(f"alpha-ReQ takes {least} directions in use; the features use fewer")
    x, y = ranks[used].log(), values[used].log()
    x = x - x.mean()
    return -float((x * y).sum() / x.square().sum())


def lidar(views: Tensor) -> float:
    """How many directions tell images apart rather than views: features (N, V, D) of V views of each image.

    The effective rank of W^-1/2 B W^-1/2, with B the covariance of the images' means and W that of views around
    them: exp of the entropy of its normalised eigenvalues, 1 to D (Thilak et al. 2024, arXiv 2312.04000).

    Raises:
        TooFewSamples: less than 2 views, or too few to know W and B in D dimensions.
    """
    count, each, dim = views.shape
    if each < 2 or count <= dim or count * (each - 1) < 2 * dim:
        need = max(dim + 1, -(-2 * dim // max(each - 1, 1)))
        raise TooFewSamples(f"LiDAR takes 2 views of {need} images for {dim} features; these are {each} of {count}")
    rows = views.double()
    means = rows.mean(1)
    around = (rows - means[:, None]).flatten(0, 1)
    within = around.T @ around / (count * (each - 1)) + WITHIN * torch.eye(dim, dtype=rows.dtype)
    centred = means - means.mean(0)
    between = centred.T @ centred / (count - 1)
    values, vectors = torch.linalg.eigh(within)
    whitening = (vectors * values.rsqrt()) @ vectors.T
    found = torch.linalg.eigvalsh(whitening @ between @ whitening).clamp(min=0)
    share = found / found.sum().clamp(min=torch.finfo(found.dtype).tiny)
    return float(torch.special.entr(share).sum().exp())


def alignment(views: Tensor) -> float:
    """The mean squared distance of unit features of two views of one image: 0 where all agree, 2 where unrelated.

    Over all pairs of the V views, features (N, V, D) (Wang and Isola 2020, arXiv 2005.10242, with alpha = 2).

    Raises:
        TooFewSamples: less than 2 views or 32 images.
    """
    count, each, _ = views.shape
    if each < 2 or count < FEWEST_IMAGES:
        raise TooFewSamples(f"alignment takes 2 views of {FEWEST_IMAGES} images; these are {each} of {count}")
    unit = F.normalize(views.double(), dim=2)
    of_sums = unit.sum(1).square().sum(1)  # V + the cosines of all ordered pairs
    cosine = (of_sums - each) / (each * (each - 1))
    return float((2 - 2 * cosine).mean())


def uniformity(features: Tensor) -> float:
    """Log of the mean over pairs of images of exp(-2 |x - y|^2), x and y unit features (N, D).

    0 where all images are alike, near -4 where they point everywhere, never below -8 (Wang and Isola 2020, arXiv
    2005.10242, with t = 2).

    Raises:
        TooFewSamples: less than 32 images.
    """
    count = len(features)
    if count < FEWEST_IMAGES:
        raise TooFewSamples(f"uniformity takes {FEWEST_IMAGES} images; these are {count}")
    unit = F.normalize(features.double(), dim=1)
    parts = (unit[start : start + ROWS_AT_ONCE] for start in range(0, count, ROWS_AT_ONCE))
    near = sum(float((4 * (part @ unit.T) - 4).exp().sum()) for part in parts)
    return math.log(
        (near - float((4 * unit.square().sum(1) - 4).exp().sum())) / (count * (count - 1))
    )  # |x - y|^2 = 2 - 2 cos, and each row meets itself


def told_apart(views: Tensor) -> float:
    """How well images are told apart in spite of changes, by features (N, V, D) of views: 1 perfectly, 0 as by chance.

    Each image's second view has a rank among those of all images, by how much they are like its first view (cosine); 1
    is the nearest. The score is 1 less the mean logarithm of ranks, divided by what chance makes of it, log(N!) / N.
    Equal views share the worst of their ranks. Further views than two are not looked at.

    Raises:
        TooFewSamples: less than 2 views or 32 images.
    """
    count, each, _ = views.shape
    if each < 2 or count < FEWEST_IMAGES:
        raise TooFewSamples(f"telling images apart takes 2 views of {FEWEST_IMAGES}; these are {each} of {count}")
    first, second = F.normalize(views[:, :2].double(), dim=2).unbind(1)
    own = (first * second).sum(1, keepdim=True) - 1e-9  # rounding makes no order
    blocks = zip(*(torch.split(of, ROWS_AT_ONCE) for of in (first, own)), strict=True)
    ranks = torch.cat([(part @ second.T >= at).sum(1) for part, at in blocks]).clamp(min=1)
    return 1 - float(ranks.double().log().mean()) * count / math.lgamma(count + 1)


def _gram(rows: Tensor) -> Tensor:
    """The smaller of the two Gram matrices of rows (N, D)."""
    return rows.T @ rows if rows.shape[0] > rows.shape[1] else rows @ rows.T
