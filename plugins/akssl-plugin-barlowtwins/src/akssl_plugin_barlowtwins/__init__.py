"""Barlow Twins: make the cross-correlation matrix of two views' projections the identity."""

from __future__ import annotations

import glob
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from akssl_core import (
    Backbone,
    Batch,
    Choice,
    Curve,
    Facts,
    KnownValue,
    Landmark,
    Loss,
    LossRef,
    Method,
    Now,
    ParamRule,
    Registry,
    Schema,
    dist,
    hookimpl,
)
from akssl_core.nn import mlp, std_ratio

from .courses import COURSES
from .published import PUBLISHED
from .recipes import RECIPES

EPSILON = 1e-5  # added to the variance, as a batch norm does


class BarlowTwinsLoss(Loss):
    """Distance of the cross-correlation C (D, D) of two views from the identity (equation 1 of arXiv 2103.03230).

    `sum_i (C_ii - 1)^2 + lambda_ * sum_(i != j) C_ij^2`, about D for untrained projections. Each feature is
    standardised over the batch of all processes, by the biased variance, so that C_ii reaches 1.
    """

    name = "barlowtwins"

    class Config(Schema):
        """Weights of the loss."""

        lambda_: float = Field(
            0.0051, ge=0, description="weight of the off-diagonal terms (the authors' code: 0.0051, the paper: 0.005)"
        )
        scale: float = Field(1.0, gt=0, description="factor on the whole loss (solo-learn's CIFAR recipe: 0.1)")

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """Two uncorrelated features a and b: equal, opposite and exchanged between the views."""
        a, b = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([1.0, -1.0, 1.0, -1.0])
        z, exchanged = torch.stack([a, b], 1), torch.stack([b, a], 1)
        return [
            KnownValue((z, z), 0.0, tolerance=1e-6),
            KnownValue((z, -z), 8.0, tolerance=1e-3),  # the variance has 1e-5 added
            KnownValue((z, exchanged), 2.0102, {"lambda_": 0.0051}, tolerance=1e-3),
        ]

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss of projections z1, z2 (N, D) of the same images."""
        correlation = dist.mean(standardized(z1).T @ standardized(z2) / len(z1))
        diagonal = correlation.diagonal()
        off_diagonal = correlation.square().sum() - diagonal.square().sum()
        loss: Tensor = self.config.scale * ((diagonal - 1).square().sum() + self.config.lambda_ * off_diagonal)
        return loss


def images_compared(facts: Facts) -> int:
    """How many images a correlation is taken over: those of one forward pass on all processes."""
    return facts.forward_size * dist.world()


def most_features(config: Any, facts: Facts) -> int:
    """The largest D at which the off-diagonal's sampling noise, lambda D (D - 1) / N, is below the diagonal's D."""
    weight = getattr(config.loss.config, "lambda_", 0.0)  # another loss may have none
    return int(images_compared(facts) / weight) + 1 if weight else sys.maxsize


def standardized(z: Tensor) -> Tensor:
    """Every feature of z (N, D) with mean 0 and variance 1 over the rows of all processes."""
    centered = z - dist.mean(z.mean(0))
    variance = dist.mean(centered.square().mean(0))
    return centered * (variance + EPSILON).rsqrt()


class BarlowTwins(Method):
    """Redundancy reduction: each feature agrees between the views, and no two features say the same.

    Both views pass backbone and projector in a forward pass of their own. Wide projections help; there is no
    predictor, no target network and no stop-gradient.
    """

    name = "barlowtwins"
    paper = "Zbontar et al., Barlow Twins, ICML 2021, https://arxiv.org/abs/2103.03230"
    recipes = RECIPES
    published = PUBLISHED
    courses = COURSES["barlowtwins"]

    class Config(Schema):
        """Widths of the projector, and how biases and norms are trained."""

        hidden_dim: int = Field(8192, gt=0, description="width inside the projector")
        out_dim: int = Field(8192, gt=1, description="width of the projections: the correlation matrix is its square")
        projector_layers: int = Field(3, ge=1, description="linear layers of the projector (the paper: 3)")
        bias_lr: float = Field(
            0.0015,
            gt=0,
            description="factor on the learning rate of biases and norms (the authors: 0.0048 / 0.2 on a gradient that "
            "their code divides by its 16 GPUs)",
        )
        loss: LossRef = LossRef.field("barlowtwins", description="compares projections (N, D) of two views")

    def __init__(self, config: Any, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        hidden = [config.hidden_dim] * (config.projector_layers - 1)
        self.projector = mlp(backbone.embed_dim, *hidden, config.out_dim, bias=False, last_bias=False)
        self.loss = config.loss.build()

    @classmethod
    def choose(cls, config: Any, facts: Facts) -> Mapping[str, Choice]:
        """As many features as the images of a forward pass can tell apart from noise."""
        widest = most_features(config, facts)
        if config.out_dim <= widest:
            return {}
        reason = f"over {images_compared(facts)} images the sampling noise of more would outweigh the views' agreement"
        return {"out_dim": Choice(1 << (widest.bit_length() - 1), reason)}

    @classmethod
    def check(cls, config: Any, facts: Facts) -> Sequence[str]:
        """Warn where the sampling noise of the off-diagonal, lambda D (D - 1) / N, exceeds the diagonal's D."""
        images, widest = images_compared(facts), most_features(config, facts)
        if config.out_dim <= widest:
            return ()
        enough = math.ceil(config.loss.config.lambda_ * (config.out_dim - 1))
        return [
            f"method.out_dim: {config.out_dim} is large for correlations over {images} images: their sampling noise "
            f"outweighs the agreement of the views. Use a batch of at least {enough} or an out_dim of at most {widest}."
        ]

    @classmethod
    def landmarks(cls, config: Any, facts: Facts) -> Sequence[Landmark]:
        """A loss that stays near D, that of projections which do not agree at all."""
        start = _no_agreement(config)
        return [
            Landmark(
                "not learning",
                {"loss": (0.98 * start, math.inf)},
                f"the {config.out_dim} features do not agree between the views",
                "the views share too little, the learning rate does not suit, or features are far more than images.",
                "use milder views, another optimizer.lr, a larger batch or a smaller method.out_dim.",
                after=1000,
            )
        ] * bool(start)

    @classmethod
    def curves(cls, config: Any, facts: Facts) -> Mapping[str, Curve]:
        """The loss, beside that of projections which do not agree."""
        start = _no_agreement(config)
        shape = "falls from no agreement, fast at first; its floor rises with the features and falls with the batch"
        return {"loss": Curve(shape, {"no agreement": start} if start else {})}

    @classmethod
    def derived(cls, config: Any, facts: Facts) -> Mapping[str, str]:
        """How many correlations are estimated from how many images."""
        entries = f"{config.out_dim} x {config.out_dim}"
        return {"cross-correlation": f"{entries}, over {images_compared(facts)} images"}

    def step(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        """Algorithm 1 of the paper; beside the loss, the spread of the projections (healthy near 1, collapsed 0)."""
        x1, x2 = batch.views["global"]
        z1, z2 = self.projector(self.backbone(x1)), self.projector(self.backbone(x2))
        return {"loss": self.loss(z1, z2), "z_std_ratio": std_ratio(z1)}

    def param_rules(self) -> Sequence[ParamRule]:
        """Biases and norms learn slowly (appendix A of the paper); `optimizer.exempt_1d` decides on their decay."""
        names = [glob.escape(name) for name, parameter in self.named_parameters() if parameter.ndim <= 1]
        return [ParamRule(name, lr=self.config.bias_lr) for name in names]


def _no_agreement(config: Any) -> float:
    """The loss of projections that do not agree at all, D; 0 for a loss that has no scale."""
    return float(getattr(config.loss.config, "scale", 0.0) * config.out_dim)


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add the method and its loss."""
    registry.add(BarlowTwinsLoss)
    registry.add(BarlowTwins)
