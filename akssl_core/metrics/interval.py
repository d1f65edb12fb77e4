"""How far a mean of right and wrong answers may be off: its 95 % interval."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NORMAL = 1.959964  # the 97.5 % quantile of the normal distribution
_STUDENT = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448,
    2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484,
    2.0452, 2.0423,
)  # fmt: skip # the 97.5 % quantiles of Student's t with 1, 2, .. 30 degrees of freedom


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % confidence interval, in percent or percentage points."""

    mean: float
    low: float
    high: float


def interval(values: Tensor, *, least: float, most: float) -> Interval:
    """The mean of values (draws, test images) float64 in [least, most], and how far it may be off.

    Two things were drawn and could have come out otherwise. Over n draws with standard deviation s, the mean is off
    by t(n - 1) s / sqrt(n), Student's t; one draw tells nothing of it and adds nothing. Over Q test images it is off by
    1.96 sqrt(v / Q), where v is the variance over the images of the mean over the draws; an image at each end of the
    range is added for v, so that the width is not zero when all are right (Agresti and Caffo 2000). The two are
    independent, so the half width is the root of the sum of their squares.
    """
    mean = values.mean().item()
    draws = values.mean(1)
    of_draws = student(len(draws) - 1) * draws.std().item() / len(draws) ** 0.5 if len(draws) > 1 else 0.0
    images = torch.cat([values.mean(0), values.new_tensor([least, most])])
    of_images = NORMAL * images.std().item() / len(images) ** 0.5
    half = (of_draws**2 + of_images**2) ** 0.5
    return Interval(mean, max(mean - half, least), min(mean + half, most))


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, for 1 degree of freedom or more."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z, n = NORMAL, freedom  # the first terms of Cornish and Fisher; under 0.0001 off from 31 on
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
