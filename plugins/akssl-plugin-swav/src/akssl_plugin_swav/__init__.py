"""SwAV: predict the cluster assignment of one view from the other views."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

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
    Views,
    dist,
    hookimpl,
)
from akssl_core.nn import Prototypes, Queue, across_views, entropy, mlp, sinkhorn, std_ratio

from . import sizes
from .courses import COURSES
from .published import PUBLISHED
from .recipes import RECIPES


class SwappedPrediction(Loss):
    """Cross-entropy of each global view's code with the predictions from every other view; from 0, log K untrained.

    Equation 2 of arXiv 2006.09882, extended to multi-crop as in its section 3.2: the mean over both codes and over
    the other V - 1 views. Codes are targets and never receive a gradient.
    """

    name = "swav"

    class Config(Schema):
        """The sharpness of the predictions."""

        temperature: float = Field(0.1, gt=0, description="divides the scores before the softmax")

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """Codes that are certain and met by the scores; predictions that are even."""
        certain, even = torch.eye(2), torch.zeros(2, 2)
        return [
            KnownValue(([certain, certain], [certain, certain]), math.log(1 + math.exp(-10)), tolerance=1e-7),
            KnownValue(([even, even, even], [certain, certain]), math.log(2)),
        ]

    def forward(self, scores: list[Tensor], codes: list[Tensor]) -> Tensor:
        """The loss of V scores (N, K), the global views' first, against 2 codes (N, K) whose rows sum to 1."""
        predicted = [F.log_softmax(s / self.config.temperature, dim=1) for s in scores]
        return across_views([code.detach() for code in codes], predicted)


class SwAV(Method):
    """Views of an image must agree on its cluster: each predicts the balanced assignment (code) of the others.

    Codes come from the two global views alone; every view predicts. One forward pass of the backbone per group of
    views, one of the projector over all of them.
    """

    name = "swav"
    views: ClassVar[Mapping[str, int | range]] = {"global": 2, "local": range(17)}
    paper = (
        "Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS 2020, "
        "https://arxiv.org/abs/2006.09882"
    )
    recipes = RECIPES
    published = PUBLISHED
    courses = COURSES["swav"]

    class Config(Schema):
        """The head, the assignment and the queue."""

        hidden_dim: int = Field(2048, gt=0, description="width of the projector's hidden layer")
        out_dim: int = Field(128, gt=1, description="width of the projections and prototypes")
        projection_batch_norm: bool = Field(
            False, description="batch norm, without scale and shift, behind the projector (the paper: none)"
        )
        prototypes: int = Field(3000, gt=1, description="number of clusters (K)")
        epsilon: float = Field(0.05, gt=0, description="softness of the assignment; smaller is harder")
        iterations: int = Field(3, ge=1, description="rounds of Sinkhorn-Knopp")
        queue_size: int = Field(
            3840, ge=0, description="past projections that join the assignment, per global view; 0: none"
        )
        queue_from_epoch: float = Field(15.0, ge=0, description="epochs before the queue is filled; used once full")
        freeze_prototypes_epochs: float = Field(1.0, ge=0, description="epochs in which the prototypes stay as drawn")
        loss: LossRef = LossRef.field("swav", description="compares scores (N, K) of all views with both codes (N, K)")

    def __init__(self, config: Any, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.projector = mlp(
            backbone.embed_dim,
            config.hidden_dim,
            config.out_dim,
            last_batch_norm="plain" if config.projection_batch_norm else None,
        )
        self.prototypes = Prototypes(config.out_dim, config.prototypes)
        queues = 2 if config.queue_size else 0
        self.queues = nn.ModuleList(Queue(config.queue_size, config.out_dim) for _ in range(queues))
        self.loss = config.loss.build()

    @classmethod
    def choose(cls, config: Any, facts: Facts) -> Mapping[str, Choice]:
        """Prototypes, queue and freeze that suit the number of images, the batch and the length of the run."""
        return sizes.choose(config, facts)

    @classmethod
    def check(cls, config: Any, facts: Facts) -> Sequence[str]:
        """The queue must hold whole batches; the rest are warnings."""
        return sizes.check(config, facts)

    @classmethod
    def landmarks(cls, config: Any, facts: Facts) -> Sequence[Landmark]:
        """Codes and predictions that stay even, and a loss that no cross-entropy can have."""
        even = math.log(config.prototypes)
        return [
            Landmark(
                "not learning",
                {"loss": (-math.inf, -1e-3)},
                "the loss is below 0, which no cross-entropy is",
                "its sign is wrong, so that predictions are driven away from the codes.",
                "use the loss swav: minus the codes times the log-probabilities.",
                after=1,
            ),
            Landmark(
                "collapsed",
                {"loss": (0.99 * even, math.inf), "code_entropy": (0.99 * even, math.inf)},
                f"codes and predictions are even over all {config.prototypes} prototypes",
                "all projections are alike, or codes are too soft (method.epsilon is large).",
                "lower method.epsilon to 0.05 or less, and look for rows that are cut off before the prototypes.",
            ),
            Landmark(
                "not learning",
                {"loss": (0.99 * even, math.inf)},
                f"codes are predicted no better than by chance among {config.prototypes} prototypes",
                "the views share too little, the learning rate does not suit, or codes are forced apart.",
                "use milder views, another optimizer.lr, or fewer method.prototypes.",
                after=1000,
            ),
        ]

    @classmethod
    def curves(cls, config: Any, facts: Facts) -> Mapping[str, Curve]:
        """The loss between the entropy of the codes and log K."""
        even = math.log(config.prototypes)
        loss = "starts at chance, may stay there for some epochs, then falls; it stays above code_entropy"
        entropy = "below the loss and below log K: the codes tell images apart"
        return {"loss": Curve(loss, {"chance": even}), "code_entropy": Curve(entropy, {"even": even})}

    @classmethod
    def derived(cls, config: Any, facts: Facts) -> Mapping[str, str]:
        """How many samples each prototype gets in one assignment."""
        rows = facts.forward_size * dist.world() + config.queue_size
        share = f"{rows / config.prototypes:.3g} ({rows} rows, {config.prototypes} prototypes)"
        return {"samples per prototype": share}

    def step(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        """Algorithm 1 of the paper; beside the loss, the mean entropy of the codes, which is its lower bound."""
        z = self.project(batch.views)
        with torch.autocast(z[0].device.type, enabled=False):  # bf16 is too coarse for exp(score / 0.05)
            scores = [self.prototypes(rows) for rows in z]
            codes = [self.codes(view, z[view], now) for view in range(2)]
        code_entropy = entropy(torch.cat(codes))
        return {"loss": self.loss(scores, codes), "code_entropy": code_entropy, "z_std_ratio": std_ratio(z[0])}

    def project(self, views: Views) -> list[Tensor]:
        """Unit rows (N, out_dim) float32 of each view, the global ones first."""
        groups = [group for group in (views["global"], views.get("local")) if group]
        features = torch.cat([self.backbone(torch.cat(group)) for group in groups])
        z = F.normalize(self.projector(features).float(), dim=1)
        return list(z.chunk(sum(map(len, groups))))

    @torch.no_grad()
    def codes(self, view: int, z: Tensor, now: Now) -> Tensor:
        """The assignments (N, K) of this process's rows z (N, out_dim), balanced over all processes and the queue.

        Pushed rows enter the queue after the step, so no sample is twice in one assignment.
        """
        rows = dist.gather(z)
        if self.queues and self.training and now.epoch >= self.config.queue_from_epoch:
            queue = cast(Queue, self.queues[view])
            if queue.full:
                rows = torch.cat([rows, queue.rows])
            queue.push(z)
        mine = slice(dist.rank() * len(z), (dist.rank() + 1) * len(z))
        return sinkhorn(self.prototypes(rows), self.config.epsilon, self.config.iterations)[mine]

    def param_rules(self) -> Sequence[ParamRule]:
        """The prototypes stay fixed at first (appendix A of the paper)."""
        return [ParamRule("prototypes.*", frozen_epochs=self.config.freeze_prototypes_epochs)]


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add the method and its loss."""
    registry.add(SwappedPrediction)
    registry.add(SwAV)
