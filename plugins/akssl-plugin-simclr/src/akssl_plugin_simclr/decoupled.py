"""Decoupled contrastive learning: SimCLR's loss without the other view of an image among the negatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from akssl_core import ConfigError, KnownValue, Loss, Schema, dist


class DCL(Loss):
    """SimCLR's loss with the partner left out of the denominator; small batches learn as large ones do.

    For each of the 2N anchors i with partner j: `-s_ij / t + log sum over k of exp(s_ik / t)`, where k are the views of
    all other images, 2N - 2 of them, and s cosines (equation 6 of arXiv 2110.06848); the mean over the anchors. NT-Xent
    is `log(1 + exp(l))` of this l: its gradient fades as a partner is found, this one's does not. It may fall below 0.
    """

    name = "dcl"

    class Config(Schema):
        """Settings of the loss."""

        temperature: float = Field(0.1, gt=0, description="divides the cosines; smaller: closest views count more")

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """Orthonormal images whose views agree, images whose second views differ, and rows that are all the same."""
        basis, alike, e = torch.eye(4), torch.ones(4, 4), torch.eye(3)
        return [
            KnownValue((basis, basis), -8.2082405),
            KnownValue((e[:2], e[[0, 2]]), 0.1931472, {"temperature": 1.0}),
            KnownValue((alike, alike), math.log(6)),
        ]

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss of two views (N, D) each, normalised here; row i of both shows image i.

        Raises:
            ConfigError: one image has no negatives.
        """
        if len(z1) * dist.world() < 2:
            raise ConfigError(f"the loss {self.name} needs the views of other images, and there is 1. Use 2 or more.")
        z = F.normalize(torch.stack((z1, z2)).flatten(0, 1), dim=1)
        logits = z @ dist.gather(z).T / self.config.temperature
        itself = dist.rank() * len(z) + torch.arange(len(z), device=z.device)
        own = torch.stack((itself, itself.roll(len(z1))), 1)  # and its partner, half of this process's rows away
        negatives = logits.scatter(1, own, -torch.inf).logsumexp(1)
        cosine = (z[: len(z1)] * z[len(z1) :]).sum(1)
        attraction = self.weights(cosine.detach()) * cosine / self.config.temperature
        loss: Tensor = negatives.mean() - attraction.mean()
        return loss

    def weights(self, cosine: Tensor) -> Any:
        """What each image's attraction counts, by the cosine (N,) of its views."""
        return 1.0


class DCLW(DCL):
    """DCL in which images whose views are far apart attract more (arXiv 2110.06848, by a von Mises-Fisher function).

    The attraction of an image's views is weighted by `2 - N exp(s / sigma) / sum exp(s / sigma)`, over the cosines s of
    the N images of all processes. The mean weight is 1; weights receive no gradient, and may be below 0.
    """

    name = "dclw"
    partly_detached = True

    class Config(DCL.Config):
        """Settings of the loss."""

        sigma: float = Field(0.5, gt=0, description="divides the cosines of the weights; smaller: weights differ more")

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """As of DCL; the weights of the second are 0.2384058 and 1.7615942."""
        basis, alike, e = torch.eye(4), torch.ones(4, 4), torch.eye(3)
        return [
            KnownValue((basis, basis), -8.2082405),
            KnownValue((e[:2], e[[0, 2]]), 0.5739443, {"temperature": 1.0}),
            KnownValue((alike, alike), math.log(6)),
        ]

    def weights(self, cosine: Tensor) -> Tensor:
        """(N,), of this process's images among those of all."""
        scaled = cosine / self.config.sigma
        everywhere = dist.gather(scaled)
        relative: Tensor = len(everywhere) * (scaled - everywhere.logsumexp(0)).exp()
        return 2 - relative
