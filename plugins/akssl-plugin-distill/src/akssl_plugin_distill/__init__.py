"""Distillation: a student learns the features of a frozen teacher from images without labels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from akssl_core import (
    AksslError,
    Backbone,
    BackboneSource,
    Batch,
    Choice,
    ConfigError,
    Curve,
    Facts,
    Features,
    FilePath,
    Landmark,
    Loss,
    Method,
    Now,
    Registry,
    Schema,
    Shown,
    dist,
    hookimpl,
)
from akssl_core.nn import Frozen, Queue, std_ratio

from . import targets
from .losses import FeatureLoss, FeatureTokensLoss, SimilarityConfig, SimilarityLoss, SimilarityTokensLoss, likeness
from .published import PUBLISHED
from .recipes import RECIPES
from .teacher import Stored, aligned, live, trial

Variant = Literal["feature", "feature+tokens", "similarity", "similarity+tokens"]
LONGEST = 8192  # rows of a queue whose length nobody has set
NEEDS = {
    "hidden_dim": "feature",
    "temperature": "similarity",
    "teacher_temperature": "similarity",
    "queue_size": "similarity",
    "token_weight": "tokens",
}  # settings that act in variants of such a name alone


class DistillConfig(SimilarityConfig):
    """The teacher, what of it is learned, and how."""

    teacher: BackboneSource | None = Field(
        None, description="the network to learn from: a run folder, a .safetensors file or a name (required)"
    )
    variant: Variant = Field(
        "feature",
        description="what is learned: the teacher's features, or which images it finds alike; with its patch tokens",
    )
    hidden_dim: int | None = Field(
        None, gt=0, description="width inside the head of the feature variants; null: the teacher's"
    )
    queue_size: int | None = Field(
        None, gt=0, description="features of earlier images that likeness is measured by; null: half of all, up to 8192"
    )
    token_weight: float = Field(1.0, gt=0, description="weight of the loss of patch tokens")
    mixup: bool | None = Field(
        None,
        description="learn from mixtures of two images each (arXiv 2106.05237); null: with the similarity variants",
    )
    targets: FilePath | None = Field(
        None,
        description="file of the teacher's features, made if it is not there; training is then without the teacher",
    )
    target_views: int = Field(4, gt=0, description="views of each image in that file, shown in turn, one an epoch")

    @property
    def similar(self) -> bool:
        """Whether likenesses are learned."""
        return self.variant.startswith("similarity")

    @property
    def tokens(self) -> bool:
        """Whether patch tokens are learned too."""
        return self.variant.endswith("tokens")

    @model_validator(mode="after")
    def _all_act(self) -> DistillConfig:
        idle = {name: f"variant {self.variant}" for name, variant in NEEDS.items() if variant not in self.variant}
        idle |= {} if self.targets is not None else {"target_views": "no targets"}
        for name, where in idle.items():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with {where}. Leave it out.")
        if self.targets is not None and (self.mixup or self.tokens):
            what = "patch tokens" if self.tokens else "mixtures, of which the teacher must see every one"
            raise ValueError(f"targets hold features of whole images, not of {what}. Leave one out.")
        return self


class Distill(Method):
    """Distillation: a small network learns the features of a frozen one, from images without labels.

    Both see the same pixels: one view, cropped, coloured and mixed once, then normalised for each ("consistent", in
    arXiv 2106.05237, as training should be long, "patient"). The student has a head that is dropped in the end.
    """

    name = "distill"
    views: ClassVar = {"global": 1}
    paper = (
        "Beyer et al., Knowledge Distillation: A Good Teacher is Patient and Consistent, CVPR 2022, "
        "https://arxiv.org/abs/2106.05237"
    )
    recipes = RECIPES
    published = PUBLISHED
    trial_settings: ClassVar = {
        "teacher": {"source": "random", "backbone": {"name": "resnet_tiny", "widths": [4, 4, 8, 8]}}
    }
    Config = DistillConfig

    def __init__(self, config: Any, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.measures_statistics = bool(config.mixup)
        stored = config.targets is not None and config.targets.exists()
        self.teacher = targets.read(config.targets) if stored else live(config.teacher, backbone)
        width: Any = self.teacher.module.embed_dim
        self.head = self._head(width)
        self.token_head: nn.Module | None = self._head(width) if config.tokens else None
        if config.tokens:
            _refuse_without_patches(backbone, self.teacher)
        if config.similar:
            self.queue = Queue(config.queue_size or LONGEST, width)
            settings = SimilarityConfig(temperature=config.temperature, teacher_temperature=config.teacher_temperature)
            self.loss: Loss = SimilarityLoss(settings)
            self.token_loss: Loss = SimilarityTokensLoss(settings)
        else:
            self.loss, self.token_loss = FeatureLoss(Schema()), FeatureTokensLoss(Schema())

    def _head(self, width: int) -> nn.Module:
        """From the student's features to the teacher's."""
        inner, hidden = self.backbone.embed_dim, self.config.hidden_dim or width
        if self.config.similar:
            head = nn.Linear(inner, width)
            nn.init.trunc_normal_(head.weight, std=0.02)
            return head
        return nn.Sequential(nn.Linear(inner, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, width))

    def step(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        """Teacher and student see the same pixels, mixed or not; the spread of both is logged."""
        (x,) = batch.views["global"]
        if self.config.mixup:
            x = mixed(x, batch.sent(batch.host.shared_draws.uniform("mixup", 1)))
        t = self.teacher(x, batch.index, now.step // now.steps_per_epoch)
        s = self.backbone.features(x)
        z = self.head(s.pooled)
        terms = self._alike(z, t.pooled) if self.config.similar else {"loss": self.loss(z, t.pooled)}
        if self.token_head is not None:
            terms["tokens"] = self.token_loss(*aligned(self.token_head(s.patches), s, t))
            terms["loss"] = terms["loss"] + self.config.token_weight * terms["tokens"]
        return {**terms, "z_std_ratio": std_ratio(z), "t_std_ratio": std_ratio(t.pooled)}

    def _alike(self, z: Tensor, t: Tensor) -> dict[str, Tensor]:
        """The loss beside the features of this batch and of earlier ones; how many images are most like themselves."""
        fresh, before = dist.gather(t.float()), self.queue.rows
        there = torch.arange(len(before), device=t.device) >= len(before) - self.queue.filled
        rows, valid = torch.cat([fresh, before]), torch.cat([torch.ones_like(fresh[:, 0], dtype=torch.bool), there])
        self.queue.push(t)
        with torch.no_grad(), torch.autocast(t.device.type, enabled=False):
            same = likeness(z, rows, valid).argmax(1) == likeness(t, rows, valid).argmax(1)
        return {"loss": self.loss(z, t, rows, valid), "agreement": dist.mean(same.float().mean())}

    def before_training(self, shown: Shown) -> None:
        """Make the file of targets, or hold it against this run's pixels and, where there is one, the teacher."""
        path, views, source = self.config.targets, self.config.target_views, self.config.teacher
        if path is None:
            return
        if not isinstance(stored := self.teacher.module, Stored):
            self.teacher = targets.make(path, views, self.teacher, shown).to(shown.device)
            return
        targets.refuse_other(path, stored, shown, views)
        if source is None:
            return
        try:
            teacher = live(source, self.backbone)
        except AksslError as error:
            warnings.warn(f"method.targets: taken as they are, without their teacher. {error}", stacklevel=1)
        else:
            targets.refuse_untrue(path, stored, teacher.to(shown.device), shown)

    def drawn_by(self, seed: int, epoch: int) -> tuple[int, int]:
        """With targets, the views that they are of."""
        return (seed, epoch) if self.config.targets is None else (targets.SEED, epoch % self.config.target_views)

    @classmethod
    def untrained(cls, config: Any, backbone: Backbone) -> Backbone:
        """The backbone as it is: no teacher is needed."""
        return backbone

    @classmethod
    def choose(cls, config: Any, facts: Facts) -> Mapping[str, Choice]:
        """Mixtures where likeness is learned; a queue of at most half of the images, so that few are in it twice."""
        choices: dict[str, Choice] = {}
        if config.mixup is None:
            on = config.similar and config.targets is None
            choices["mixup"] = Choice(on, "mixtures for the similarity variants" if on else "features of whole images")
        if config.similar and config.queue_size is None:
            most = min(max(facts.images // 2, 1), LONGEST)
            choices["queue_size"] = Choice(most, f"half of the {facts.images} training images, up to {LONGEST}")
        return choices

    @classmethod
    def check(cls, config: Any, facts: Facts) -> Sequence[str]:
        """A teacher is needed, and neighbours that are not all the image itself."""
        if config.teacher is None and (config.targets is None or not config.targets.exists()):
            raise ConfigError(
                "method.teacher: there is nothing to learn from. Name a run folder, a .safetensors file or a backbone "
                "with published weights: --set method.teacher=SOURCE"
            )
        if config.queue_size is not None and config.queue_size >= facts.images:
            raise ConfigError(
                f"method.queue_size: {config.queue_size} is no less than the {facts.images} training images, so that "
                f"every image is its own neighbour; {max(facts.images // 2, 1)} will do."
            )
        return ()

    @classmethod
    def landmarks(cls, config: Any, facts: Facts) -> Sequence[Landmark]:
        """A teacher that makes the same of all images."""
        return [
            Landmark(
                "not learning",
                {"t_std_ratio": (0.0, 0.02)},
                "the teacher's features are the same for all images",
                "the weights are not those of the network, or its images are normalised otherwise than it knows.",
                "set method.teacher.mean and .std as they are published, or name another teacher.",
                after=20,
            )
        ]

    @classmethod
    def curves(cls, config: Any, facts: Facts) -> Mapping[str, Curve]:
        """The loss, and how often student and teacher find the same image nearest."""
        if not config.similar:
            shape = "falls from about 1 (unrelated) to 0.1 to 0.4; below 0.02 within an epoch the teacher says nothing"
            return {"loss": Curve(shape, {"unrelated": 1.0 + (0.95 * config.token_weight if config.tokens else 0.0)})}
        shape = "falls throughout, which proves little: look at agreement and accuracy"
        return {"loss": Curve(shape), "agreement": Curve("rises from chance towards 1", {"all": 1.0})}


def mixed(images: Tensor, share: Tensor) -> Tensor:
    """Images (B, C, H, W) mixed with the next one each, of the batch of all processes: `a x + (1 - a) x'`.

    `share` (1, 1) is from 0 to 1, and a the larger of it and the rest: Beta(1, 1) folded, as in arXiv 2106.05237.
    """
    everyone = dist.gather(images)
    place = torch.arange(len(images), device=images.device) + dist.rank() * len(images) + 1
    a = torch.maximum(share, 1 - share)[..., None, None]
    return torch.lerp(everyone[place % len(everyone)], images, a)


def _refuse_without_patches(backbone: Backbone, teacher: Frozen) -> None:
    """Refuse networks of which one has no patch tokens on a grid."""
    images, was = trial(backbone.image, 2), backbone.training
    with torch.no_grad():
        found: Features = backbone.eval().features(images)
    backbone.train(was)
    for who, features in (("backbone", found), ("method.teacher", teacher(images, torch.arange(2), 0))):
        if features.patches is None or features.grid is None:
            raise ConfigError(
                f"{who}: it has no patch tokens, which a method.variant with tokens compares. Use another network, or "
                f"the variant without."
            )


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add the method and its losses."""
    for component in (FeatureLoss, FeatureTokensLoss, SimilarityLoss, SimilarityTokensLoss, Distill):
        registry.add(component)
