"""SimCLR, both versions: tell the other view of an image from all other views of the batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
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
    Registry,
    Schema,
    dist,
    hookimpl,
)
from akssl_core.nn import mlp, std_ratio

from .courses import COURSES
from .decoupled import DCL, DCLW
from .published import PUBLISHED, PUBLISHED_V2
from .recipes import RECIPES, RECIPES_V2


class NTXent(Loss):
    """Cross-entropy of finding the other view of an image among all 2N - 1 other views, over cosines.

    For each of the 2N anchors i with partner j: `-log(exp(s_ij / t) / sum over k != i of exp(s_ik / t))`, averaged
    over the anchors (equation 1 of arXiv 2002.05709) and multiplied by `scale`. The N images are those of all
    processes: every process has its own rows as anchors, and the views of all as candidates.
    """

    name = "ntxent"

    class Config(Schema):
        """Settings of the loss."""

        temperature: float = Field(0.1, gt=0, description="divides the cosines; smaller: closest views count more")
        scale: float = Field(1.0, gt=0, description="factor on the loss (the paper: 1, the authors' code: 2)")

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """Orthonormal images, whose two views agree, and rows that are all the same."""
        basis, alike = torch.eye(4), torch.ones(4, 4)
        return [
            KnownValue((basis, basis), math.log(1 + 6 * math.exp(-1 / t)), {"temperature": t}) for t in (0.2, 0.5, 1.0)
        ] + [KnownValue((alike, alike), scale * math.log(7), {"scale": scale}) for scale in (1.0, 2.0)]

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss of two views (N, D) each, normalised here; row i of both shows image i."""
        z = F.normalize(torch.stack((z1, z2)).flatten(0, 1), dim=1)
        logits = z @ dist.gather(z).T / self.config.temperature
        itself = dist.rank() * len(z) + torch.arange(len(z), device=z.device)
        logits = logits.scatter(1, itself[:, None], -torch.inf)
        partner = itself.roll(len(z1))  # half of this process's rows away
        loss: Tensor = self.config.scale * F.cross_entropy(logits, partner)
        return loss


class SimCLR(Method):
    """Contrasts the two views of an image with all other views of the batch; large batches help.

    Both views pass backbone and projector in one forward pass, so that batch norms see them together.
    """

    name = "simclr"
    paper = (
        "Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020, "
        "https://arxiv.org/abs/2002.05709"
    )
    recipes = RECIPES
    published = PUBLISHED
    courses = COURSES["simclr"]

    class Config(Schema):
        """Size of the head."""

        hidden_dim: int | None = Field(None, gt=0, description="width inside the projector; null: the backbone's width")
        out_dim: int = Field(128, gt=1, description="width of the projections")
        projector_layers: int = Field(2, ge=1, description="linear layers of the projector")
        loss: LossRef = LossRef.field("ntxent", description="compares two views (N, D) each")

    def __init__(self, config: Any, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        hidden = [config.hidden_dim or backbone.embed_dim] * (config.projector_layers - 1)
        self.projector = mlp(
            backbone.embed_dim, *hidden, config.out_dim, bias=False, last_bias=False, last_batch_norm="scale"
        )
        for layer in self.projector:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
        self.loss = config.loss.build()

    @classmethod
    def landmarks(cls, config: Any, facts: Facts) -> Sequence[Landmark]:
        """A loss that stays at the log of the candidates, 2N - 1, as if all of them were alike."""
        chance = _chance(config, facts)
        return [
            Landmark(
                "not learning",
                {"loss": (0.99 * chance, math.inf)},
                f"the other view is found no better than by chance (log {_others(config, facts)})",
                "the views share too little, the learning rate does not suit, or the temperature is far off.",
                "use milder views (a larger scale, less jitter), another optimizer.lr, or method.loss.temperature of "
                "0.1 to 0.5.",
                after=1000,
            )
        ]

    @classmethod
    def curves(cls, config: Any, facts: Facts) -> Mapping[str, Curve]:
        """The loss, beside the log of the candidates."""
        end = "may fall below 0" if issubclass(config.loss.component, DCL) else "stays above 0"
        shape = f"falls from chance, fast at first and then slowly; it {end}"
        return {"loss": Curve(shape, {"chance": _chance(config, facts)})}

    @classmethod
    def derived(cls, config: Any, facts: Facts) -> Mapping[str, str]:
        """How many views an anchor is told from."""
        views = 2 * facts.forward_size * dist.world()
        return {"negatives per anchor": f"{views - 2} (2 views of each of {views // 2} images, less its own two)"}

    def step(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        """Algorithm 1 of the paper; beside the loss, the spread of the projections (healthy near 1, collapsed 0)."""
        z1, z2 = self.projector(self.backbone(torch.cat(batch.views["global"]))).chunk(2)
        return {"loss": self.loss(z1, z2), "z_std_ratio": std_ratio(z1)}


class SimCLRv2(SimCLR):
    """SimCLR with the deeper projector of version 2, made for large backbones and few labels."""

    name = "simclrv2"
    paper = (
        "Chen et al., Big Self-Supervised Models are Strong Semi-Supervised Learners, NeurIPS 2020, "
        "https://arxiv.org/abs/2006.10029"
    )
    recipes = RECIPES_V2
    published = PUBLISHED_V2
    courses = COURSES["simclrv2"]

    class Config(SimCLR.Config):
        """Size of the head."""

        projector_layers: int = Field(3, ge=1, description="linear layers of the projector")


def _chance(config: Any, facts: Facts) -> float:
    """The loss of views that are all alike: the log of the candidates, times the loss's factor."""
    scale: float = getattr(config.loss.config, "scale", 1.0)  # another loss may have none
    return scale * math.log(max(_others(config, facts), 2))


def _others(config: Any, facts: Facts) -> int:
    """The views among which the loss looks: all but the anchor, and but its partner where that is decoupled."""
    return 2 * facts.forward_size * dist.world() - (2 if issubclass(config.loss.component, DCL) else 1)


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add both methods and their losses."""
    for component in (NTXent, DCL, DCLW, SimCLR, SimCLRv2):
        registry.add(component)
