"""MoCo v3: in-batch contrast between predictions and the keys of a slow encoder, for ResNets and ViTs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from akssl_core import (
    Backbone,
    Batch,
    ConfigError,
    Curve,
    Facts,
    FractionSchedule,
    KnownValue,
    Landmark,
    Loss,
    LossRef,
    Method,
    Now,
    Schema,
    TokenBackbone,
    cosine,
    dist,
)
from akssl_core.nn import EMA, mlp, std_ratio

from .courses import COURSES
from .published import V3_PUBLISHED
from .recipes import V3_RECIPES


class InfoNCEMoCoV3(Loss):
    """`2 t (CE(q1 k2^T / t, i) + CE(q2 k1^T / t, i))` over unit rows, t the temperature (arXiv 2104.02057, section 3).

    The factor 2 t keeps the size of the gradient about the same at any temperature. Negatives of a query are the
    keys of all other images of the step, those of other processes included. Keys receive no gradient.
    """

    name = "infonce_mocov3"

    class Config(Schema):
        """Settings of the loss."""

        temperature: float = Field(1.0, gt=0, description="divides the cosines (the paper: ResNet 1, ViT 0.2)")

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """Orthonormal images that agree, at two temperatures, and rows that are all the same."""
        basis, alike = torch.eye(4), torch.ones(4, 4)
        return [
            *(
                KnownValue((basis,) * 4, 4 * t * math.log(1 + 3 * math.exp(-1 / t)), {"temperature": t})
                for t in (0.2, 1.0)
            ),
            KnownValue((alike,) * 4, 4 * math.log(4)),
        ]

    def forward(self, q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor) -> Tensor:
        """The loss of the queries (N, D) of both views, each with the keys (N, D) of the other view."""
        temperature: float = self.config.temperature
        return 2 * temperature * (self._one_direction(q1, k2) + self._one_direction(q2, k1))

    def _one_direction(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Mean over queries (N, D) of -log softmax of their own key among all keys."""
        k = dist.gather(F.normalize(keys.detach(), dim=1))
        logits = F.normalize(queries, dim=1) @ k.T / self.config.temperature
        own = torch.arange(len(queries), device=queries.device) + dist.rank() * len(queries)
        return F.cross_entropy(logits, own)


class MoCoV3(Method):
    """Symmetric in-batch contrast between a predictor's outputs and the keys of a momentum encoder.

    The momentum encoder is a slow copy of backbone and projector; the predictor has none. On a vision transformer
    the projection of patches stays as it was initialised, which the paper found to make training stable (section
    4.2), and the heads have one batch norm and one layer more.
    """

    name = "mocov3"
    paper = "Chen, Xie and He, An Empirical Study of Training Self-Supervised Vision Transformers, ICCV 2021, https://arxiv.org/abs/2104.02057"
    recipes = V3_RECIPES
    published = V3_PUBLISHED
    courses = COURSES["mocov3"]

    class Config(Schema):
        """The heads, the slow encoder, and what is frozen."""

        hidden_dim: int = Field(4096, gt=0, description="width inside projector and predictor")
        out_dim: int = Field(256, gt=1, description="width of queries and keys")
        head: Literal["auto", "resnet", "vit"] = Field(
            "auto",
            description="resnet: projector of 2 layers; vit: of 3, and a last batch norm in the predictor; "
            "auto: vit on vision transformers",
        )
        momentum: FractionSchedule = Field(
            cosine(0.99, 1.0), description="share of the momentum encoder kept each step"
        )
        freeze_patch_projection: bool | None = Field(
            None, description="leave a vision transformer's patch projection untrained; null: yes where there is one"
        )
        loss: LossRef = LossRef.field("infonce_mocov3", description="compares queries with the keys of the other view")

    def __init__(self, config: Any, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        if _freezes(config, backbone):
            backbone.patch_embed.requires_grad_(False)
        vit = config.head == "vit" or (config.head == "auto" and isinstance(backbone, TokenBackbone))
        self.projector, self.predictor = _heads(config, backbone.embed_dim, vit=vit)
        self.key = EMA(config.momentum, backbone=backbone, projector=self.projector)
        self.loss = config.loss.build()

    @classmethod
    def landmarks(cls, config: Any, facts: Facts) -> Sequence[Landmark]:
        """A loss that stays at 4 t log N, as if all keys were alike."""
        images, chance = facts.forward_size * dist.world(), _chance(config, facts)
        return [
            Landmark(
                "not learning",
                {"loss": (0.995 * chance, math.inf)},
                f"the key is found no better than by chance among {images}",
                "the views share too little, the learning rate does not suit, or the temperature is far off.",
                "use milder views, another optimizer.lr, or a lower method.loss.temperature.",
                after=1000,
            )
        ] * bool(chance)

    @classmethod
    def curves(cls, config: Any, facts: Facts) -> Mapping[str, Curve]:
        """The loss, beside 4 t log N."""
        chance = _chance(config, facts)
        return {"loss": Curve("falls from chance, fast at first and then slowly", {"chance": chance} if chance else {})}

    @classmethod
    def derived(cls, config: Any, facts: Facts) -> Mapping[str, str]:
        """How many keys a query is told from."""
        images = facts.forward_size * dist.world()
        return {"negatives per anchor": f"{images - 1} (the keys of the other images)"}

    def step(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        """Algorithm 1 of the paper; the momentum encoder moves after the step."""
        x1, x2 = batch.views["global"]
        z1, z2 = self.projector(self.backbone(x1)), self.projector(self.backbone(x2))
        q1, q2 = self.predictor(z1), self.predictor(z2)
        with torch.no_grad():
            k1, k2 = (self.key.projector(self.key.backbone(x)) for x in (x1, x2))
        return {"loss": self.loss(q1, q2, k1, k2), "z_std_ratio": std_ratio(z1)}


def _freezes(config: Any, backbone: Backbone) -> bool:
    """Whether the patch projection stays untrained.

    Raises:
        ConfigError: it was asked for and there is none.
    """
    wanted: bool | None = config.freeze_patch_projection
    if wanted and not isinstance(backbone, TokenBackbone):
        raise ConfigError(
            f"method.freeze_patch_projection: the backbone {backbone.name} has no patch projection. "
            "Use a vision transformer (vit_tiny, vit_small), or leave the setting at null."
        )
    return isinstance(backbone, TokenBackbone) if wanted is None else wanted


def _heads(config: Any, width: int, *, vit: bool) -> tuple[nn.Sequential, nn.Sequential]:
    """Projector and predictor, without any bias in a Linear."""
    hidden, out = config.hidden_dim, config.out_dim
    inside = [hidden, hidden] if vit else [hidden]
    projector = mlp(width, *inside, out, bias=False, last_bias=False, last_batch_norm="plain")
    predictor = mlp(out, hidden, out, bias=False, last_bias=False, last_batch_norm="plain" if vit else None)
    return projector, predictor


def _chance(config: Any, facts: Facts) -> float:
    """The loss 4 t log N of keys that are all alike; 0 for a loss that has no temperature."""
    return 4 * getattr(config.loss.config, "temperature", 0.0) * math.log(facts.forward_size * dist.world())
