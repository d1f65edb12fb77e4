"""BYOL: predict the projection that a slow target network makes of the other view; there are no negatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from akssl_core import (
    Backbone,
    Batch,
    Curve,
    Facts,
    FractionSchedule,
    KnownValue,
    Landmark,
    Loss,
    LossRef,
    Method,
    Now,
    Registry,
    Schema,
    cosine,
    hookimpl,
)
from akssl_core.nn import EMA, mlp, std_ratio

from .courses import COURSES
from .published import PUBLISHED
from .recipes import RECIPES


class BYOLLoss(Loss):
    """Squared distance of unit rows: p1 from stop-gradient t2 plus p2 from stop-gradient t1, for rows (N, D).

    A sum over the two directions and a mean over rows, between 0 and 8; 4 where predictions are orthogonal to
    their targets (equations 2 and 3 of arXiv 2006.07733). The targets never receive a gradient.
    """

    name = "byol"

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """Predictions equal, orthogonal and opposite to their targets."""
        x, y = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])
        return [
            KnownValue((x, y, y, x), 0.0),
            KnownValue((x, x, y, y), 4.0),
            KnownValue((x, y, -y, -x), 8.0),
        ]

    def forward(self, p1: Tensor, p2: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
        """The loss of predictions p1, p2 (N, D) from views 1 and 2, with targets t1, t2 (N, D) of the same views."""
        return _distance(p1, t2.detach()) + _distance(p2, t1.detach())


def _distance(p: Tensor, t: Tensor) -> Tensor:
    """Mean over rows of |p/|p| - t/|t||^2, which is 2 - 2 cos(p, t)."""
    return 2 - 2 * F.cosine_similarity(p, t, dim=1).mean()


class BYOL(Method):
    """Bootstrap your own latent: an online network learns to predict a slow copy of itself, without negatives.

    The target is a moving average of backbone and projector; only the online network has a predictor, and it is
    the online backbone that is exported. Each view passes each network in a forward pass of its own.
    """

    name = "byol"
    accumulates = True
    paper = "Grill et al., Bootstrap Your Own Latent, NeurIPS 2020, https://arxiv.org/abs/2006.07733"
    recipes = RECIPES
    published = PUBLISHED
    courses = COURSES["byol"]

    class Config(Schema):
        """Widths of the heads, and the pace of the target."""

        hidden_dim: int = Field(4096, gt=0, description="width inside the projector")
        out_dim: int = Field(256, gt=1, description="width of the projections and predictions")
        projection_batch_norm: bool = Field(
            False, description="batch norm, without scale and shift, behind the projector (the paper: none)"
        )
        predictor_dim: int = Field(4096, gt=0, description="width inside the predictor")
        momentum: FractionSchedule = Field(
            cosine(0.996, 1.0),
            description="share of the target that a step keeps, 0 to 1 (the paper: from 0.996 over 1000 epochs, "
            "0.99 over 100 or 300, 0.97 over 40; rising to 1)",
        )
        loss: LossRef = LossRef.field("byol", description="compares predictions (N, D) with targets (N, D)")

    def __init__(self, config: Any, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.projector = mlp(
            backbone.embed_dim,
            config.hidden_dim,
            config.out_dim,
            last_bias=False,
            last_batch_norm="plain" if config.projection_batch_norm else None,
        )
        self.predictor = mlp(config.out_dim, config.predictor_dim, config.out_dim, last_bias=False)
        self.target = EMA(config.momentum, backbone=backbone, projector=self.projector)
        self.loss = config.loss.build()

    @classmethod
    def check(cls, config: Any, facts: Facts) -> Sequence[str]:
        """Warn of a target that never moves."""
        momentum = config.momentum
        if momentum.start == 1 and momentum.end in (None, 1) and not momentum.warmup:
            return ["method.momentum: 1 throughout, so that the target stays as it started; the paper's is 0.996 to 1."]
        return ()

    @classmethod
    def landmarks(cls, config: Any, facts: Facts) -> Sequence[Landmark]:
        """The constant solution: the loss falls to 0 while the projections shrink together."""
        return [
            Landmark(
                "collapsed",
                {"loss": (0.0, 0.4), "z_std_ratio": (0.0, 0.3)},
                "predictions meet their targets because all projections become alike",
                "the targets receive a gradient, the predictor is missing, or the target follows the online network "
                "at once (method.momentum near 0).",
                "compute targets from the slow copy under torch.no_grad(), and keep method.momentum at 0.9 or above.",
                after=50,
            )
        ]

    @classmethod
    def curves(cls, config: Any, facts: Facts) -> Mapping[str, Curve]:
        """The loss between 0 and 4; its value says little of what was learned."""
        shape = "falls fast from unrelated predictions; later it may rise, since its target moves. Look at the accuracy"
        return {"loss": Curve(shape, {"unrelated": 4.0})}

    def step(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        """Section 3.1 of the paper; beside the loss, the spread of the projections (healthy near 1, collapsed 0)."""
        x1, x2 = batch.views["global"]
        z1, z2 = self.projector(self.backbone(x1)), self.projector(self.backbone(x2))
        p1, p2 = self.predictor(z1), self.predictor(z2)
        with torch.no_grad():
            t1, t2 = (self.target.projector(self.target.backbone(x)) for x in (x1, x2))
        return {"loss": self.loss(p1, p2, t1, t2), "z_std_ratio": std_ratio(z1)}


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add the method and its loss."""
    registry.add(BYOLLoss)
    registry.add(BYOL)
