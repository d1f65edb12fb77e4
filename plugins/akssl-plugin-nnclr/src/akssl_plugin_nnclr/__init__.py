"""NNCLR: the positive of a view is the nearest neighbour of the other view among embeddings of the past."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
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
    Registry,
    Schema,
    dist,
    hookimpl,
)
from akssl_core.nn import Queue, mlp, std_ratio

from .courses import COURSES
from .published import PUBLISHED
from .recipes import RECIPES


class NNCLRLoss(Loss):
    """Cross-entropy of finding an image's prediction among those of all images, for each neighbour.

    `mean_i -log(exp(t_i . p_i / t) / sum_k exp(t_i . p_k / t))` over unit rows (equation 3 of arXiv 2104.14548): a row
    for each neighbour t_i of this process, a column for the prediction p_k of every image of all processes. Neighbours
    never receive a gradient.
    """

    name = "nnclr"

    class Config(Schema):
        """The sharpness of the softmax."""

        temperature: float = Field(0.1, gt=0, description="divides the cosines")

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """Neighbours that meet orthonormal predictions, one neighbour of two images, predictions that are all alike."""
        basis, alike = torch.eye(4), torch.ones(4, 4)
        shared = basis[:1].expand(2, -1).clone()
        return [
            KnownValue((basis, basis), math.log(1 + 3 * math.exp(-1 / t)), {"temperature": t}) for t in (0.1, 0.2, 1.0)
        ] + [
            KnownValue((shared, basis[:2]), 0.8132617, {"temperature": 1.0}),
            KnownValue((basis, alike), math.log(4)),
        ]

    def forward(self, neighbours: Tensor, predictions: Tensor) -> Tensor:
        """The loss of predictions (N, D) for the neighbours (N, D) of the same images."""
        t, p = F.normalize(neighbours.detach(), dim=1), F.normalize(predictions, dim=1)
        logits = t @ dist.gather(p).T / self.config.temperature
        own = dist.rank() * len(t) + torch.arange(len(t), device=t.device)
        return F.cross_entropy(logits, own)


class NNCLR(Method):
    """Contrasts each view with the nearest neighbour of the other view, taken from a queue of past embeddings.

    Positives differ as images of one kind do, not only as views of one image. Each view has a forward pass of its own;
    the queue takes the embeddings of the first view after the step.
    """

    name = "nnclr"
    paper = "Dwibedi et al., With a Little Help from My Friends, ICCV 2021, https://arxiv.org/abs/2104.14548"
    recipes = RECIPES
    published = PUBLISHED
    courses = COURSES["nnclr"]

    class Config(Schema):
        """The heads and the queue."""

        hidden_dim: int = Field(2048, gt=0, description="width inside the projector")
        out_dim: int = Field(256, gt=1, description="width of the embeddings and predictions")
        projector_layers: int = Field(3, ge=1, le=256, description="linear layers of the projector (the paper: 3)")
        predictor_dim: int = Field(4096, gt=0, description="width inside the predictor")
        queue_size: int = Field(98304, gt=0, description="past embeddings among which neighbours are looked for")
        loss: LossRef = LossRef.field("nnclr", description="compares neighbours (N, D) with predictions (N, D)")

    def __init__(self, config: Any, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        hidden = [config.hidden_dim] * (config.projector_layers - 1)
        self.projector = mlp(
            backbone.embed_dim, *hidden, config.out_dim, bias=False, last_bias=False, last_batch_norm="affine"
        )
        self.predictor = mlp(config.out_dim, config.predictor_dim, config.out_dim, bias=False)
        self.queue = Queue(config.queue_size, config.out_dim)
        self.loss = config.loss.build()

    def step(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        """Algorithm 1 of the paper; beside the loss, how near neighbours are, how many differ, and the spread.

        The queue is searched as it was before this batch.
        """
        x1, x2 = batch.views["global"]
        z1, z2 = self.projector(self.backbone(x1)), self.projector(self.backbone(x2))
        (t1, cosine, distinct), (t2, _, _) = (nearest(z, self.queue.rows) for z in (z1, z2))
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = (self.loss(t1, p2) + self.loss(t2, p1)) / 2
        self.queue.push(F.normalize(z1.detach().float(), dim=1))
        spread = {"neighbour_cosine": cosine, "distinct_neighbours": distinct, "z_std_ratio": std_ratio(z1)}
        return {"loss": loss, **spread}

    @classmethod
    def choose(cls, config: Any, facts: Facts) -> Mapping[str, Choice]:
        """A queue of fewer embeddings than there are images."""
        longest = 1 << (max(facts.images - 1, 1).bit_length() - 1)
        if config.queue_size <= longest:
            return {}
        reason = f"a power of two below the {facts.images} training images: a longer one holds images twice"
        return {"queue_size": Choice(longest, reason)}

    @classmethod
    def check(cls, config: Any, facts: Facts) -> Sequence[str]:
        """Tell of a queue that holds images of the batch already."""
        if config.queue_size < facts.images:
            return ()
        return [
            f"method.queue_size: {config.queue_size} embeddings of {facts.images} training images: the nearest "
            f"neighbour of an image is then often itself, an epoch ago. Use less than {facts.images}."
        ]

    @classmethod
    def landmarks(cls, config: Any, facts: Facts) -> Sequence[Landmark]:
        """A loss that stays at log N, and a few rows of the queue that are the neighbours of all."""
        chance = _chance(facts)
        return [
            Landmark(
                "not learning",
                {"loss": (0.99 * chance, math.inf)},
                f"the prediction is found no better than by chance among {facts.forward_size * dist.world()} images",
                "the views share too little, the learning rate does not suit, or the temperature is far off.",
                "use milder views, another optimizer.lr, or method.loss.temperature of 0.1 to 0.2.",
                after=1000,
            ),
            Landmark(
                "collapsed",
                {"distinct_neighbours": (0.0, 0.05)},
                "a few rows of the queue are the neighbours of all images",
                "embeddings have become alike, or the queue is far behind: the learning rate is too high.",
                "lower optimizer.lr, or warm it up longer; shorten method.queue_size.",
                after=100,
            ),
        ]

    @classmethod
    def curves(cls, config: Any, facts: Facts) -> Mapping[str, Curve]:
        """The loss, beside log N, and what is known of neighbours."""
        random = math.sqrt(2 * math.log(max(config.queue_size, 2)) / config.out_dim)
        return {
            "loss": Curve(
                "falls from a little above chance, slower at first than SimCLR's", {"chance": _chance(facts)}
            ),
            "neighbour_cosine": Curve(
                "rises from that of a random queue to between 0.6 and 1", {"random queue": random}
            ),
            "distinct_neighbours": Curve("stays well above 0.05; it falls where a few rows attract all images"),
        }

    @classmethod
    def derived(cls, config: Any, facts: Facts) -> Mapping[str, str]:
        """How many images a prediction is told from, and how old neighbours become."""
        images = facts.forward_size * dist.world()
        return {
            "negatives per anchor": f"{images - 1} (the other images)",
            "age of the oldest neighbour": f"{config.queue_size / facts.batch_size:g} steps",
        }


@torch.no_grad()
def nearest(z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The unit row of `rows` (K, D) nearest to each of z (N, D), their mean cosine, and the share that is distinct.

    In float32: a shorter format has many rows at the same cosine.
    """
    with torch.autocast(z.device.type, enabled=False):
        cosines, index = (F.normalize(z.float(), dim=1) @ rows.T).max(1)
    found = torch.zeros(len(rows), device=z.device).index_fill_(0, index, 1.0)
    return rows[index], cosines.mean(), found.sum() / len(z)


def _chance(facts: Facts) -> float:
    """The loss of predictions that are all alike: log N."""
    return math.log(max(facts.forward_size * dist.world(), 2))


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add the method and its loss."""
    registry.add(NNCLRLoss)
    registry.add(NNCLR)
