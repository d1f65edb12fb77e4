"""MoCo v2: a queue of past keys as negatives, encoded by a slow copy of the query encoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from akssl_core import (
    Backbone,
    Batch,
    Choice,
    ConfigError,
    Curve,
    Facts,
    KnownValue,
    Landmark,
    Loss,
    LossRef,
    Method,
    Now,
    Schedule,
    Schema,
)
from akssl_core.nn import EMA, Queue, mlp, std_ratio

from .recipes import V2_RECIPES

Encode = Callable[[Tensor], Tensor]  # images (B, C, H, W) to vectors (B, D)

SPLIT_FROM = 8  # images in a part of the batch below which its statistics are too noisy to be chosen unasked


class InfoNCEQueue(Loss):
    """Mean over rows of -log softmax of a query's own key among that key and a queue of negatives.

    Logits are cosines over the temperature: `[q . k, q . queue_1, ..., q . queue_K] / temperature`, the first is
    right (equation 1 of arXiv 1911.05722). Keys of the same batch are no negatives. Neither the keys nor the
    queue receive a gradient.
    """

    name = "infonce_queue"

    class Config(Schema):
        """Settings of the loss."""

        temperature: float = Field(0.2, gt=0, description="divides the cosines (MoCo v2: 0.2, v1: 0.07)")

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """A queue orthogonal to the query; the key equal to it, and orthogonal to it."""
        axes = torch.eye(6)
        query, other, queue = axes[:1], axes[1:2], axes[2:]
        met = math.log(1 + 4 * math.exp(-1 / 0.2))
        return [KnownValue((query, query, queue), met), KnownValue((query, other, queue), math.log(5))]

    def forward(self, query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
        """The loss of queries (N, D) with their keys (N, D) against the rows of `queue` (K, D)."""
        q, k, negatives = (F.normalize(x, dim=1) for x in (query, key.detach(), queue.detach()))
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ negatives.T], 1)
        right = logits.new_zeros(len(q), dtype=torch.int64)
        return F.cross_entropy(logits / self.config.temperature, right)


class MoCoV2(Method):
    """Momentum contrast: queries against their keys and a queue of earlier keys (arXiv 2003.04297, 1911.05722).

    The key encoder (backbone and projector) is a slow copy of the query encoder, the queue holds its newest keys.
    Batch norms must not tell which key belongs to a query. The paper has each GPU encode its share of a shuffled
    batch (ShuffleBN, section 3.3 of arXiv 1911.05722). Here one process does what `bn_splits` GPUs would do: the
    query encoder runs on consecutive parts of the batch, one after another, the key encoder on the parts of a
    randomly permuted batch, and the keys are put back in order. With several processes the parts and the
    permutation are those within each process.
    """

    name = "mocov2"
    accumulates = True
    shared_batch_norm = False  # they are what ShuffleBN keeps apart
    paper = "Chen, Fan, Girshick and He, Improved Baselines with Momentum Contrastive Learning, 2020, https://arxiv.org/abs/2003.04297"
    recipes = V2_RECIPES

    class Config(Schema):
        """The head, the slow encoder and its queue."""

        hidden_dim: int | None = Field(None, gt=0, description="width inside the projector; null: the backbone's width")
        out_dim: int = Field(128, gt=1, description="width of queries and keys")
        head_batch_norm: bool = Field(False, description="batch norm inside the projector (the paper: none)")
        projection_batch_norm: bool = Field(
            False, description="batch norm, without scale and shift, behind the projector (the paper: none)"
        )
        queue_size: int = Field(65536, gt=0, description="keys in the queue; a multiple of the keys of a step")
        momentum: Schedule = Field(Schedule(start=0.999), description="share of the key encoder kept each step")
        symmetric: bool = Field(False, description="each view is query once and key once; the losses are added")
        bn_splits: int = Field(8, gt=0, description="parts of the batch with batch norm statistics of their own")
        loss: LossRef = LossRef.field("infonce_queue", description="compares queries with their keys and the queue")

    def __init__(self, config: Any, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        hidden = config.hidden_dim or backbone.embed_dim
        self.projector = mlp(
            backbone.embed_dim,
            hidden,
            config.out_dim,
            batch_norm=config.head_batch_norm,
            last_batch_norm="plain" if config.projection_batch_norm else None,
        )
        self.key = EMA(config.momentum, backbone=backbone, projector=self.projector)
        self.queue = Queue(config.queue_size, config.out_dim)
        self.loss = config.loss.build()

    def step(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        """Algorithm 1 of arXiv 1911.05722; keys enter the queue after the step, both directions' together."""
        x1, x2 = batch.views["global"]
        q, k = self._queries(x1), self._keys(x2)
        loss = self.loss(q, k, self.queue.rows)
        self.queue.push(k)
        if self.config.symmetric:
            k = self._keys(x1)
            loss = loss + self.loss(self._queries(x2), k, self.queue.rows)
            self.queue.push(k)
        return {"loss": loss, "z_std_ratio": std_ratio(q)}

    def _queries(self, images: Tensor) -> Tensor:
        """Queries (B, out_dim) of images (B, C, H, W), with statistics per part of the batch."""
        return in_parts(lambda x: self.projector(self.backbone(x)), images, self.config.bn_splits)

    @torch.no_grad()
    def _keys(self, images: Tensor) -> Tensor:
        """Unit keys (B, out_dim) of images (B, C, H, W), with statistics per part of the shuffled batch."""
        z = in_shuffled_parts(lambda x: self.key.projector(self.key.backbone(x)), images, self.config.bn_splits)
        return F.normalize(z.float(), dim=1)

    @classmethod
    def landmarks(cls, config: Any, facts: Facts) -> Sequence[Landmark]:
        """A loss that stays at log(K + 1), as if key and negatives were alike."""
        chance = _chance(config)
        return [
            Landmark(
                "not learning",
                {"loss": (0.99 * chance, math.inf)},
                f"the key is found no better than by chance among the queue's {config.queue_size}",
                "the views share too little, the learning rate does not suit, or keys move faster than the queue.",
                "use milder views, another optimizer.lr, or a method.momentum nearer to 1.",
                after=1000,
            )
        ]

    @classmethod
    def curves(cls, config: Any, facts: Facts) -> Mapping[str, Curve]:
        """The loss, beside log(K + 1)."""
        shape = "starts near chance, may rise while the queue fills with keys that differ, then falls slowly"
        return {"loss": Curve(shape, {"chance": _chance(config)})}

    @classmethod
    def derived(cls, config: Any, facts: Facts) -> Mapping[str, str]:
        """How many keys a query is told from, and how old they become."""
        age = config.queue_size / _pushed(config, facts)
        return {
            "negatives per anchor": f"{config.queue_size} (the queue)",
            "age of the oldest negative": f"{age:g} steps",
        }

    @classmethod
    def choose(cls, config: Any, facts: Facts) -> Mapping[str, Choice]:
        """A queue within the data and of whole steps; parts of the batch that are equal and not too small."""
        choices = {"queue_size": _queue_size(config, facts), "bn_splits": _bn_splits(config, facts)}
        return {name: choice for name, choice in choices.items() if choice.value != getattr(config, name)}

    @classmethod
    def check(cls, config: Any, facts: Facts) -> Sequence[str]:
        """The queue takes whole steps, and the parts of a forward pass are equal and larger than one image."""
        _check_splits(config.bn_splits, facts.forward_size)
        size, pushed = config.queue_size, _pushed(config, facts)
        if size % pushed:
            below = size // pushed * pushed
            near = f"{below} and {below + pushed} are" if below else f"{pushed} is"
            raise ConfigError(f"method.queue_size: {size} must be a multiple of the {pushed} keys of a step; {near}.")
        if size > facts.images:
            return [
                f"method.queue_size: {size} keys of {facts.images} training images: "
                "earlier keys of the same image are negatives of it."
            ]
        return ()


def in_parts(encode: Encode, images: Tensor, count: int) -> Tensor:
    """Vectors (B, D) of images (B, C, H, W), encoded in `count` consecutive parts, one after another."""
    if count == 1:
        return encode(images)
    return torch.cat([encode(part) for part in images.tensor_split(count)])


def in_shuffled_parts(encode: Encode, images: Tensor, count: int) -> Tensor:
    """As `in_parts`, of images in random order; row i of the result still belongs to image i."""
    if count == 1:  # the statistics of one batch do not depend on its order
        return in_parts(encode, images, count)
    order = torch.randperm(len(images)).to(images.device)
    return in_parts(encode, images[order], count)[order.argsort()]


def _pushed(config: Any, facts: Facts) -> int:
    """Keys that enter the queue in one step."""
    return facts.batch_size * (2 if config.symmetric else 1)


def _queue_size(config: Any, facts: Facts) -> Choice:
    """The queue that was wanted, or the longest one of whole steps with no more keys than images."""
    pushed = _pushed(config, facts)
    size = max(min(config.queue_size, facts.images) // pushed, 1) * pushed
    few = f"at most the {facts.images} training images, " if size <= facts.images < config.queue_size else ""
    return Choice(size, f"{few}a multiple of the {pushed} keys of a step")


def _bn_splits(config: Any, facts: Facts) -> Choice:
    """As many parts as were wanted, or fewer where they would be unequal or too small."""
    images = facts.forward_size
    possible = [n for n in _divisors(images) if n <= config.bn_splits and images // n >= SPLIT_FROM]
    reason = f"equal parts of a forward pass of {images} images, at least {SPLIT_FROM} in each"
    return Choice(max(possible, default=1), reason)


def _divisors(count: int) -> list[int]:
    """All divisors in ascending order."""
    return [n for n in range(1, count + 1) if count % n == 0]


def _check_splits(splits: int, images: int) -> None:
    """Refuse parts that are unequal or too small for batch statistics.

    Raises:
        ConfigError: with the nearest numbers that are possible.
    """
    possible = [n for n in _divisors(images) if n == 1 or images // n >= 2]
    if splits in possible:
        return
    below = [n for n in possible if n < splits][-1:]
    above = [n for n in possible if n > splits][:1]
    nearest = " and ".join(map(str, below + above)) + (" do" if below and above else " does")
    wanted = "must leave at least 2 images in each part of" if images % splits == 0 else "must divide"
    raise ConfigError(f"method.bn_splits: {splits} {wanted} a forward pass of {images} images; {nearest}.")


def _chance(config: Any) -> float:
    """The loss log(K + 1) of keys that are all alike, in one direction or two."""
    return math.log(config.queue_size + 1) * (2 if config.symmetric else 1)
