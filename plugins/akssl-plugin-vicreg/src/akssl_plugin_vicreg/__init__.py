"""VICReg: two views alike, every feature spread over the batch, no two features correlated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from akssl_core import (
    Backbone,
    Batch,
    ConfigError,
    Curve,
    Facts,
    KnownValue,
    Landmark,
    Loss,
    LossRef,
    Method,
    Now,
    Registry,
    Schema,
    dist,
    hookimpl,
)
from akssl_core.nn import mlp, std_ratio

from .courses import COURSES
from .published import PUBLISHED
from .recipes import RECIPES

EPSILON = 1e-4  # added to each variance, as in the authors' code: the slope of its root stays finite


class VICRegLoss(Loss):
    """Invariance of two views, variance of each feature, covariance of features (section 4 of arXiv 2105.04906).

    `invariance_weight * I + variance_weight * V + covariance_weight * C`. I is the mean of (z1 - z2)^2 over rows and
    features. V is the mean over features of max(0, 1 - deviation), averaged over the views: the authors' code has this
    half, the paper's formula does not. C is the sum of the squared covariances of unlike features over D, of both
    views together. Deviations and covariances are those of the rows of all processes, divided by N - 1.
    """

    name = "vicreg"

    class Config(Schema):
        """Weights of the three terms."""

        invariance_weight: float = Field(25.0, ge=0, description="of the distance between the views")
        variance_weight: float = Field(
            25.0, ge=0, description="of the features' missing spread, averaged over the views (50: summed over them)"
        )
        covariance_weight: float = Field(1.0, ge=0, description="of the covariances of unlike features")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.parts: dict[str, Tensor] = {}
        """The three terms of the last call without their weights, for the log."""

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """Two uncorrelated features a and b: alike, halved, exchanged, opposite; a twice; rows that are all equal."""
        a, b = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([1.0, -1.0, 1.0, -1.0])
        z, exchanged, twice, equal = (
            torch.stack([a, b], 1),
            torch.stack([b, a], 1),
            torch.stack([a, a], 1),
            torch.ones(4, 2),
        )
        return [
            KnownValue((0.5 * z, 0.5 * z), 10.5640784),
            KnownValue((z, exchanged), 50.0),
            KnownValue((z, -z), 100.0),
            KnownValue((twice, twice), 32 / 9),
            KnownValue((equal, equal), 24.75),
        ]

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss of projections z1, z2 (N, D) of the same images, two or more over all processes."""
        views = [dist.gather(z) for z in (z1, z2)]
        invariance = (z1 - z2).square().mean()
        variance = torch.stack([missing_spread(z) for z in views]).mean()
        covariance = torch.stack([redundancy(z) for z in views]).sum()
        self.parts = {
            "invariance": invariance.detach(), "variance": variance.detach(), "covariance": covariance.detach(),
        }  # fmt: skip
        weights = self.config
        loss: Tensor = (
            weights.invariance_weight * invariance
            + weights.variance_weight * variance
            + weights.covariance_weight * covariance
        )
        return loss


def missing_spread(z: Tensor) -> Tensor:
    """By how much the deviations of the features of z (N, D) fall short of 1, their mean: a scalar."""
    return (1 - (z.var(0) + EPSILON).sqrt()).relu().mean()


def redundancy(z: Tensor) -> Tensor:
    """The squared covariances of unlike features of z (N, D), summed and divided by D: a scalar.

    The sum of the squares of Z^T Z is that of Z Z^T; the smaller of the two is computed.
    """
    centered, (rows, features) = z - z.mean(0), z.shape
    products = centered @ centered.T if rows < features else centered.T @ centered
    off_diagonal: Tensor = products.square().sum() - centered.square().sum(0).square().sum()
    return off_diagonal / (rows - 1) ** 2 / features


class VICReg(Method):
    """Variance, invariance, covariance: views agree while each feature keeps its spread and a content of its own.

    Both views pass backbone and expander in a forward pass of their own. There are no negatives, no predictor, no slow
    copy and no stop-gradient.
    """

    name = "vicreg"
    paper = "Bardes, Ponce and LeCun, VICReg, ICLR 2022, https://arxiv.org/abs/2105.04906"
    recipes = RECIPES
    published = PUBLISHED
    courses = COURSES["vicreg"]

    class Config(Schema):
        """The expander, and the loss."""

        hidden_dim: int = Field(8192, gt=0, description="width inside the expander")
        out_dim: int = Field(8192, gt=1, description="width of the projections")
        projector_layers: int = Field(3, ge=1, le=256, description="linear layers of the expander (the paper: 3)")
        loss: LossRef = LossRef.field("vicreg", description="compares projections (N, D) of two views")

    def __init__(self, config: Any, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        hidden = [config.hidden_dim] * (config.projector_layers - 1)
        self.projector = mlp(backbone.embed_dim, *hidden, config.out_dim, bias=False, last_bias=False)
        self.loss = config.loss.build()

    def step(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        """Algorithm 1 of the paper; beside the loss, its three terms and the spread of the projections' directions."""
        x1, x2 = batch.views["global"]
        z1, z2 = self.projector(self.backbone(x1)), self.projector(self.backbone(x2))
        loss = self.loss(z1, z2)
        return {"loss": loss, **getattr(self.loss, "parts", {}), "z_std_ratio": std_ratio(z1)}

    @classmethod
    def check(cls, config: Any, facts: Facts) -> Sequence[str]:
        """One image has no variance."""
        if images_compared(facts) < 2:
            raise ConfigError(
                "train.batch_size: 1 image has no variance, which vicreg needs. Use 2 or more; 256 is usual."
            )
        return ()

    @classmethod
    def landmarks(cls, config: Any, facts: Facts) -> Sequence[Landmark]:
        """Features without spread: complete collapse."""
        if config.loss.name != VICRegLoss.name:
            return ()
        return [
            Landmark(
                "collapsed",
                {"variance": (0.95, math.inf), "invariance": (0.0, 0.01), "covariance": (0.0, 0.01)},
                "all projections are alike",
                "a step with a value that is not finite, or a learning rate far too high (that of LARS under another "
                "optimizer), has thrown the features together, where the variance has no slope.",
                "begin anew with a smaller optimizer.lr and a warm-up; keep method.loss.variance_weight near "
                "method.loss.invariance_weight.",
                after=20,
            ),
        ]

    @classmethod
    def curves(cls, config: Any, facts: Facts) -> Mapping[str, Curve]:
        """The loss and its terms."""
        if config.loss.name != VICRegLoss.name:
            return {}
        collapse = config.loss.config.variance_weight * (1 - EPSILON**0.5)
        images = max(images_compared(facts), 2)
        unrelated = 2 * (config.out_dim - 1) / (images - 1)
        return {
            "loss": Curve("falls fast while features gain their spread, then slowly", {"collapse": collapse}),
            "invariance": Curve("may rise while features spread, then falls slowly; it carries what is learned"),
            "variance": Curve(
                "falls first, from about 0.6: to below 0.1 with many images, to 0.5 with fewer than features",
                {"collapse": 1 - EPSILON**0.5},
            ),
            "covariance": Curve(
                "rises as features spread, then stays about level; 0 is a collapse", {"unrelated features": unrelated}
            ),
        }

    @classmethod
    def derived(cls, config: Any, facts: Facts) -> Mapping[str, str]:
        """How many covariances are estimated from how many images."""
        return {"covariances": f"{config.out_dim} x {config.out_dim}, over {images_compared(facts)} images"}


def images_compared(facts: Facts) -> int:
    """How many images a variance is taken over: those of one forward pass on all processes."""
    return facts.forward_size * dist.world()


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add the method and its loss."""
    registry.add(VICRegLoss)
    registry.add(VICReg)
