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
    Draws,
    Facts,
    FractionSchedule,
    KnownValue,
    Landmark,
    Loss,
    LossRef,
    Method,
    Now,
    Schedule,
    Schema,
    dist,
)
from akssl_core.nn import EMA, Queue, mlp, std_ratio

from .courses import COURSES
from .published import V2_PUBLISHED
from .recipes import V2_RECIPES

Encode = Callable[[Tensor], Tensor]  # images (B, C, H, W) to vectors (B, D)

SPLIT_FROM = 8  # images in a group below which its statistics are too noisy to be chosen unasked


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
    batch (ShuffleBN, section 3.3 of arXiv 1911.05722). Here `bn_splits` groups do, whatever the number of processes:
    the query encoder runs on consecutive groups of the batch, the key encoder on the groups of a permuted batch, and
    the keys are put back in order. Each process encodes its share of the groups, one after another. The permutation
    goes across processes and follows from seed, step and images. One group has the statistics of the whole
    batch, in several processes too.
    """

    name = "mocov2"
    accumulates = True
    paper = "Chen, Fan, Girshick and He, Improved Baselines with Momentum Contrastive Learning, 2020, https://arxiv.org/abs/2003.04297"
    recipes = V2_RECIPES
    published = V2_PUBLISHED
    courses = COURSES["mocov2"]

    class Config(Schema):
        """The head, the slow encoder and its queue."""

        hidden_dim: int | None = Field(None, gt=0, description="width inside the projector; null: the backbone's width")
        out_dim: int = Field(128, gt=1, description="width of queries and keys")
        head_batch_norm: bool = Field(False, description="batch norm inside the projector (the paper: none)")
        projection_batch_norm: bool = Field(
            False, description="batch norm, without scale and shift, behind the projector (the paper: none)"
        )
        queue_size: int = Field(65536, gt=0, description="keys in the queue; a multiple of the keys of a step")
        momentum: FractionSchedule = Field(Schedule(start=0.999), description="share of the key encoder kept each step")
        symmetric: bool = Field(False, description="each view is query once and key once; the losses are added")
        bn_splits: int = Field(
            8, gt=0, description="groups of the batch, over all processes, with batch norm statistics of their own"
        )
        loss: LossRef = LossRef.field("infonce_queue", description="compares queries with their keys and the queue")

    def __init__(self, config: Any, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.batch_norm_groups = config.bn_splits
        self.shared_batch_norm = config.bn_splits == 1  # several groups are what ShuffleBN keeps apart
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
        q, k = self._queries(x1), self._keys(x2, batch.draws.view(1))
        loss = self.loss(q, k, self.queue.rows)
        self.queue.push(k)
        if self.config.symmetric:
            k = self._keys(x1, batch.draws.view(0))
            loss = loss + self.loss(self._queries(x2), k, self.queue.rows)
            self.queue.push(k)
        return {"loss": loss, "z_std_ratio": std_ratio(q)}

    def _queries(self, images: Tensor) -> Tensor:
        """Queries (B, out_dim) of images (B, C, H, W), with statistics per group of the batch."""
        return in_groups(lambda x: self.projector(self.backbone(x)), images, self.config.bn_splits)

    @torch.no_grad()
    def _keys(self, images: Tensor, draws: Draws) -> Tensor:
        """Unit keys (B, out_dim) of images (B, C, H, W), with statistics per group of the shuffled batch."""

        def encode(x: Tensor) -> Tensor:
            return in_groups(lambda part: self.key.projector(self.key.backbone(part)), x, self.config.bn_splits)

        # The statistics of one group do not depend on its order.
        z = encode(images) if self.config.bn_splits == 1 else shuffled(encode, images, draws.seeds("shuffle"))
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
        """How many keys a query is told from, how old they become, and what batch norms see."""
        age = config.queue_size / _pushed(config, facts)
        groups, images = config.bn_splits, _images(facts)
        apart = f"{groups} groups of {images // groups} images, {groups // dist.world()} in each process, keys shuffled"
        return {
            "negatives per anchor": f"{config.queue_size} (the queue)",
            "age of the oldest negative": f"{age:g} steps",
            "batch norms see": apart if groups > 1 else f"one group of {images} images, those of all processes",
        }

    @classmethod
    def choose(cls, config: Any, facts: Facts) -> Mapping[str, Choice]:
        """A queue within the data and of whole steps; groups of the batch that are equal and not too small."""
        choices = {"queue_size": _queue_size(config, facts), "bn_splits": _bn_splits(config, facts)}
        return {name: choice for name, choice in choices.items() if choice.value != getattr(config, name)}

    @classmethod
    def check(cls, config: Any, facts: Facts) -> Sequence[str]:
        """The queue takes whole steps; each process has as many groups, of more than one image, as every other."""
        _check_splits(config.bn_splits, _images(facts))
        size, pushed = config.queue_size, _pushed(config, facts)
        if size % pushed:
            below = size // pushed * pushed
            near = f"{below} and {below + pushed} are" if below else f"{pushed} is"
            raise ConfigError(f"method.queue_size: {size} must be a multiple of the {pushed} keys of a step; {near}.")
        warnings = []
        if size > facts.images:
            warnings.append(
                f"method.queue_size: {size} keys of {facts.images} training images: "
                "earlier keys of the same image are negatives of it."
            )
        if config.bn_splits > 1 and (group := _images(facts) // config.bn_splits) < SPLIT_FROM:
            warnings.append(
                f"method.bn_splits: groups of {group} images; batch statistics of fewer than {SPLIT_FROM} are mostly "
                "noise. Use fewer groups or a larger batch."
            )
        return warnings


def in_groups(encode: Encode, images: Tensor, groups: int) -> Tensor:
    """Vectors (B, D) of images (B, C, H, W), encoded in this process's share of the groups, one after another."""
    count = groups // dist.world()
    if count <= 1:
        return encode(images)
    return torch.cat([encode(part) for part in images.tensor_split(count)])


def shuffled(encode: Encode, images: Tensor, keys: Tensor) -> Tensor:
    """What `encode` makes of images (B, C, H, W) once those of all processes are dealt out in the order of `keys` (B,).

    Row i of the result still belongs to image i of this process.
    """
    mine = slice(dist.rank() * len(images), (dist.rank() + 1) * len(images))
    order = dist.gather(keys).argsort(stable=True)
    vectors = dist.gather(encode(dist.gather(images)[order[mine]]))
    return vectors[order.argsort()[mine]]


def _images(facts: Facts) -> int:
    """Images of one forward pass, over all processes."""
    return facts.forward_size * dist.world()


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
    """As many groups as were wanted, or the nearest number that fits: fewer, else more; one where all are too small."""
    images = _images(facts)
    fitting = [n for n in _possible(images) if images // n >= SPLIT_FROM and n > 1 and config.bn_splits > 1]
    groups = max((n for n in fitting if n <= config.bn_splits), default=min(fitting, default=1))
    reason = f"equal groups of a forward pass of {images} images, at least {SPLIT_FROM} in each"
    return Choice(groups, reason if dist.world() == 1 else f"{reason}, as many in each of {dist.world()} processes")


def _possible(images: int) -> list[int]:
    """How many groups there may be: equal ones of at least two images, and as many in each process; or one."""
    counts = range(dist.world(), images // 2 + 1, dist.world())
    return sorted({1, *(n for n in counts if images % n == 0)})


def _check_splits(splits: int, images: int) -> None:
    """Refuse groups that are unequal, too small for batch statistics, or not shared out equally.

    Raises:
        ConfigError: with the nearest numbers that are possible.
    """
    possible = _possible(images)
    if splits in possible:
        return
    below = [n for n in possible if n < splits][-1:]
    above = [n for n in possible if n > splits][:1]
    nearest = " and ".join(map(str, below + above)) + (" do" if below and above else " does")
    wanted = "must leave at least 2 images in each group of" if images % splits == 0 else "must divide"
    if splits % dist.world():
        wanted = f"must be 1 or a multiple of the {dist.world()} processes, and divide"
    raise ConfigError(f"method.bn_splits: {splits} {wanted} a forward pass of {images} images; {nearest}.")


def _chance(config: Any) -> float:
    """The loss log(K + 1) of keys that are all alike, in one direction or two."""
    return math.log(config.queue_size + 1) * (2 if config.symmetric else 1)
