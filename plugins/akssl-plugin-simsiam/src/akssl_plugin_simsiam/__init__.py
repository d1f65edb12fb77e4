"""SimSiam: predict one view's projection from the other's, with a stop-gradient and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from akssl_core import (
    Backbone,
    Batch,
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
    hookimpl,
)
from akssl_core.nn import mlp, std_ratio

from .courses import COURSES
from .published import PUBLISHED
from .recipes import RECIPES


class NegativeCosine(Loss):
    """Mean over rows of -cos(p, stop-gradient z), for p and z (N, D); between -1 and 1.

    The stop-gradient of equation 2 in arXiv 2011.10566 is part of the loss: z never receives a gradient.
    """

    name = "negative_cosine"

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """A prediction equal, orthogonal and opposite to its target."""
        x, y = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])
        return [KnownValue((x, x), -1.0), KnownValue((x, y), 0.0), KnownValue((x, -x), 1.0)]

    def forward(self, p: Tensor, z: Tensor) -> Tensor:
        """The loss of predictions p (N, D) of targets z (N, D)."""
        return -F.cosine_similarity(p, z.detach(), dim=1).mean()


class SimSiam(Method):
    """Siamese networks without negatives, momentum encoder or large batches; a stop-gradient prevents collapse.

    Each view passes the encoder (backbone and projector) in a forward pass of its own, so batch norms see one
    view at a time. The predictor, applied to one side, keeps a constant learning rate. With more than two views the
    target of each is the mean of the others' projections (FastSiam, Pototzky et al. 2022, doi
    10.1007/978-3-031-16788-1_4), which is steadier: small batches and short runs learn more.
    """

    name = "simsiam"
    views: ClassVar[Mapping[str, int | range]] = {"global": range(2, 17)}
    accumulates = True
    paper = "Chen and He, Exploring Simple Siamese Representation Learning, CVPR 2021, https://arxiv.org/abs/2011.10566"
    recipes = RECIPES
    published = PUBLISHED
    courses = COURSES["simsiam"]

    class Config(Schema):
        """Widths of the heads."""

        hidden_dim: int | None = Field(None, gt=0, description="width inside the projector; null: the backbone's width")
        out_dim: int = Field(2048, gt=1, description="width of the projections and predictions")
        projector_layers: int = Field(3, ge=2, description="linear layers of the projector (the paper: 3, CIFAR 2)")
        predictor_dim: int = Field(512, gt=0, description="width of the predictor's bottleneck")
        fixed_predictor_lr: bool = Field(True, description="keep the predictor's learning rate at its start value")
        predictor_lr: float = Field(1.0, gt=0, description="factor on the predictor's learning rate (the paper: 1)")
        loss: LossRef = LossRef.field("negative_cosine", description="compares predictions (N, D) with targets (N, D)")

    def __init__(self, config: Any, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        hidden = [config.hidden_dim or backbone.embed_dim] * (config.projector_layers - 1)
        self.projector = mlp(
            backbone.embed_dim, *hidden, config.out_dim, bias=False, last_bias=False, last_batch_norm="plain"
        )
        self.predictor = mlp(config.out_dim, config.predictor_dim, config.out_dim, bias=False)
        self.loss = config.loss.build()

    def step(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        """Equation 2 of the paper; beside the loss, the spread of the projections (healthy near 1, collapsed 0).

        Each of V views predicts the mean of the V - 1 others, as they come from the projector; with two, the other.
        """
        z = [self.projector(self.backbone(x)) for x in batch.views["global"]]
        p = [self.predictor(one) for one in z]
        targets = [torch.stack(z[:i] + z[i + 1 :]).detach().float().mean(0) for i in range(len(z))]
        loss = torch.stack(list(map(self.loss, p, targets))).mean()
        return {"loss": loss, "z_std_ratio": std_ratio(z[0])}

    @classmethod
    def landmarks(cls, config: Any, facts: Facts) -> Sequence[Landmark]:
        """The constant solution: the loss rushes to -1 while the projections shrink together (figure 2 of the paper).

        The last batch norm keeps healthy projections above 0.9 all the time.
        """
        return [
            Landmark(
                "collapsed",
                {"loss": (-1.0, -0.75), "z_std_ratio": (0.0, 0.7)},
                "views agree because all projections become alike",
                "the targets receive a gradient (no stop-gradient), or the predictor is missing or too slow.",
                "compare predictions with z.detach(), as the loss negative_cosine does; keep method.predictor_lr at 1 "
                "or above and the predictor between the projections and the loss.",
                after=50,
            )
        ]

    @classmethod
    def curves(cls, config: Any, facts: Facts) -> Mapping[str, Curve]:
        """The loss between 0 and -1."""
        shape = "falls from about 0 towards -1 and stays above it; -1 within a few dozen steps is a collapse"
        return {"loss": Curve(shape, {"all alike": -1.0})}

    def param_rules(self) -> Sequence[ParamRule]:
        """The predictor's learning rate stays constant (section 4.2 of the paper)."""
        return [ParamRule("predictor.*", lr=self.config.predictor_lr, fixed_lr=self.config.fixed_predictor_lr)]


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add the method and its loss."""
    registry.add(NegativeCosine)
    registry.add(SimSiam)
