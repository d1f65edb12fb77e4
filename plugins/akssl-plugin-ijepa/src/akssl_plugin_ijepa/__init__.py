"""I-JEPA: from a part of an image, predict what a slow copy of the encoder makes of blocks elsewhere in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import AfterValidator, Field
from torch import Tensor
from torch.nn import functional as F

from akssl_core import (
    Artefacts,
    Batch,
    Choice,
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
    Registry,
    Schema,
    TokenBackbone,
    hookimpl,
    linear,
)
from akssl_core.masks import hidden, jepa_blocks, least_context, on_pixels
from akssl_core.nn import EMA, patch_std, std_ratio, take

from .courses import COURSES
from .predictor import Grid, Predictor
from .published import PUBLISHED
from .recipes import RECIPES

UNTRAINED = 0.42466  # the loss of a prediction of 0 where targets are normal: the mean of smooth-L1 over N(0, 1)
HEAD_WIDTH = 32  # of a predictor whose sizes are chosen; the authors' is 384 / 12 for a ViT-B


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError("should have the smaller number first")
    return interval


Share = Annotated[float, Field(gt=0, le=1)]
Area = Annotated[tuple[Share, Share], AfterValidator(_ordered)]
Aspect = Annotated[tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], AfterValidator(_ordered)]


class IJEPALoss(Loss):
    """Smooth L1 between predictions and the target encoder's features, whose tokens are normalised first.

    Each target has mean 0 and deviation 1 over its features (a layer norm without parameters), so its scale and shift
    mean nothing; it gets no gradient. Smooth L1 is the authors' code, section 3 of arXiv 2301.08243 has squares.
    """

    name = "ijepa"

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """Exact predictions, a difference on both sides of the kink, and guesses of 0."""
        raw = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        target, ends = torch.tensor([[-1.341635, -0.447212, 0.447212, 1.341635]]), torch.tensor([[3.0, 1.0]])
        return [
            KnownValue((target, raw), 0.0),
            KnownValue((target + 0.5, raw), 0.125),
            KnownValue((target - 2.0, 10 * raw - 7), 1.5),
            KnownValue((torch.zeros(1, 2), ends), 0.5),
            KnownValue((torch.zeros(1, 4), raw), 0.470817),
        ]

    def forward(self, predicted: Tensor, features: Tensor) -> Tensor:
        """The loss of predictions (..., D) of features (..., D), a mean over everything."""
        return F.smooth_l1_loss(predicted, F.layer_norm(features.detach(), features.shape[-1:]))


class IJEPA(Method[TokenBackbone]):
    """Joint-embedding predictive architecture: from a part of an image, predict the features of blocks elsewhere in it.

    The encoder sees the context alone; a slow copy, the target encoder, sees the whole image and is exported. A narrow
    predictor is told which places to predict. One view, no changes of colour, nothing compared between images.
    """

    name = "ijepa"
    views: ClassVar[Mapping[str, int | range]] = {"global": 1}
    headline = "linear"
    accumulates = True
    paper = (
        "Assran et al., Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture, "
        "CVPR 2023, https://arxiv.org/abs/2301.08243"
    )
    recipes = RECIPES
    published = PUBLISHED
    courses = COURSES["ijepa"]

    class Config(Schema):
        """Targets and context, the predictor, and the pace of the target encoder."""

        targets: int = Field(4, ge=1, le=256, description="blocks of an image that are predicted; they may overlap")
        target_area: Area = Field((0.15, 0.2), description="area of a target, as a share of the image")
        target_aspect: Aspect = Field((0.75, 1.5), description="height by width of a target")
        context_area: Area = Field(
            (1.0, 1.0),
            description="area of the square that the context is taken from, as a share (the paper: 0.85 to 1)",
        )
        predictor_dim: int = Field(384, ge=4, multiple_of=4, description="width of the predictor")
        predictor_depth: int = Field(
            6, ge=1, le=256, description="blocks of the predictor (the paper: 6 for a ViT-B, 12 for L)"
        )
        predictor_heads: int = Field(
            12, ge=1, description="attention heads of the predictor, a divisor of its width (the paper: the encoder's)"
        )
        momentum: FractionSchedule = Field(
            linear(0.996, 1.0), description="share of the target encoder that a step keeps, 0 to 1"
        )
        loss: LossRef = LossRef.field("ijepa", description="compares predictions (T, B, n, D) with features")

    def __init__(self, config: Any, backbone: TokenBackbone) -> None:
        super().__init__(config, backbone)
        side = -(-backbone.image.size // backbone.patch_size)
        self.predictor = Predictor(
            backbone.token_dim,
            (side, side),
            dim=config.predictor_dim,
            depth=config.predictor_depth,
            heads=config.predictor_heads,
        )
        self.target = EMA(config.momentum, backbone=backbone)
        self.loss = config.loss.build()

    def step(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        """Section 3 of the paper; beside the loss, how far targets differ between images and between patches of one.

        `z_std_ratio` is that of the means over patches, `target_patch_std` the same measure within images: both are 0
        where all are alike.
        """
        (x,) = batch.views["global"]
        wanted, places = self.blocks(batch, grid := self.backbone.patch_grid(x))
        with torch.no_grad():
            h = self.target.backbone.features(x).patches
        context = self.backbone.features(x, keep=places).patches
        z = self.predictor(context, places, wanted, grid)
        loss = self.loss(z, torch.stack([take(h, block) for block in wanted]))
        return {"loss": loss, "z_std_ratio": std_ratio(h.mean(1)), "target_patch_std": patch_std(h)}

    def blocks(self, batch: Batch, grid: Grid) -> tuple[Tensor, Tensor]:
        """The positions of the targets (T, B, m) and of the context (B, n), made in the host's memory."""
        config, host = self.config, batch.host
        found = jepa_blocks(host.draws, host.shared_draws, grid, targets=config.targets, **_shapes(config))
        return batch.sent(found[0]), batch.sent(found[1])

    @property
    def encoder(self) -> TokenBackbone:
        """The target encoder, which the paper evaluates."""
        backbone: TokenBackbone = self.target.backbone
        return backbone

    def artefacts(self, batch: Batch, now: Now) -> Artefacts:
        """Each image, the context that the encoder saw of it, and the blocks whose features were predicted."""
        (x,) = batch.views["global"]
        wanted, places = self.blocks(batch, grid := self.backbone.patch_grid(x))
        image = self.backbone.image.pictures(x)
        shown = {"context": places, **{f"target {number}": block for number, block in enumerate(wanted, 1)}}
        pictures = {"image": image}
        for name, positions in shown.items():
            rest = hidden(positions, math.prod(grid))
            pictures[name] = image.masked_fill(on_pixels(rest, grid, x.shape[2:], self.backbone.patch_size), 0.5)
        return Artefacts(pictures)

    @classmethod
    def choose(cls, config: Any, facts: Facts) -> Mapping[str, Choice]:
        """Fewer targets where patches are few, a predictor no wider than the encoder, heads that divide its width."""
        choices, dim = {}, config.predictor_dim
        fitting = _fitting(config, facts)
        if 0 < fitting < config.targets:
            reason = f"more would leave less than {_enough(facts)} of the {_tokens(facts)} patches as context"
            choices["targets"] = Choice(fitting, reason)
        if dim > facts.embed_dim > 0:
            dim = max(facts.embed_dim // 2 // HEAD_WIDTH, 1) * HEAD_WIDTH
            choices["predictor_dim"] = Choice(dim, f"about half of the encoder's width {facts.embed_dim}")
            choices["predictor_heads"] = Choice(dim // HEAD_WIDTH, f"{HEAD_WIDTH} channels each")
        elif dim % config.predictor_heads:
            heads = max(n for n in range(1, min(config.predictor_heads, dim + 1)) if dim % n == 0)
            choices["predictor_heads"] = Choice(heads, f"the most that divide the predictor's width {dim}")
        return choices

    @classmethod
    def check(cls, config: Any, facts: Facts) -> Sequence[str]:
        """No room for a context, and heads that do not fit."""
        if (alone := _left(config, facts, 0)) < _enough(facts):
            raise ConfigError(
                f"method.context_area: a context of {config.context_area[0]:g} of the image has {alone} of "
                f"{_tokens(facts)} patches; expected at least {_enough(facts)}. Raise its lower bound; "
                "[0.85, 1] is usual."
            )
        if config.targets > (fitting := _fitting(config, facts)):
            raise ConfigError(
                f"method.targets: {config.targets} blocks of up to {config.target_area[1]:g} of the image may leave "
                f"{max(_left(config, facts, config.targets), 0)} of {_tokens(facts)} patches to see; expected at least "
                f"{_enough(facts)}. Use "
                + (f"method.targets={fitting}, " if fitting else "")
                + "smaller patches (backbone.patch_size), larger views or a smaller method.target_area."
            )
        if config.predictor_dim % config.predictor_heads:
            width = config.predictor_dim
            divisors = ", ".join(str(n) for n in range(1, width // 4 + 1) if width % n == 0)
            raise ConfigError(
                f"method.predictor_heads: {config.predictor_heads} must divide method.predictor_dim, {width}; "
                f"{divisors} do."
            )
        return ()

    @classmethod
    def landmarks(cls, config: Any, facts: Facts) -> Sequence[Landmark]:
        """Targets that tell of the place and not of the image, and predictions that are no better than 0."""
        if config.loss.name != IJEPALoss.name:
            return ()
        return [
            Landmark(
                "collapsed",
                {"loss": (0.0, 0.03), "z_std_ratio": (0.0, 0.1)},
                "targets follow from their place alone, whatever the image",
                "the target encoder follows too fast, or steps are too large.",
                "raise method.momentum towards 0.996, or lower optimizer.lr.",
                after=200,
            ),
            Landmark(
                "not learning",
                {"loss": (0.41, 0.44)},
                "the predictor knows no more of its targets than their mean",
                "the learning rate is too small, or the images are noise.",
                "try optimizer.lr between 3e-4 and 2e-3 under AdamW with a warm-up.",
                after=200,
                throughout=True,
            ),
        ]

    @classmethod
    def curves(cls, config: Any, facts: Facts) -> Mapping[str, Curve]:
        """The loss beside that of an untrained predictor, and the spread of the targets."""
        loss = "falls to 0.1 to 0.3 early; later it may rise, since targets get richer. A sudden jump is a fault"
        return {
            "loss": Curve(loss, {"untrained": UNTRAINED}),
            "z_std_ratio": Curve("rises from its start, where features of untrained networks are much alike"),
            "target_patch_std": Curve("stays well above 0"),
        }

    @classmethod
    def derived(cls, config: Any, facts: Facts) -> Mapping[str, str]:
        """How many patches the encoder sees."""
        least = _left(config, facts, config.targets)
        return {"context": f"{least} of {_tokens(facts)} patches or more, by the size of the targets in a step"}


# -- how many targets a grid has room for ---------------------------------------------------------
def _shapes(config: Any) -> dict[str, tuple[float, float]]:
    """What the samplers are told of blocks beside their number."""
    return {"area": config.target_area, "aspect": config.target_aspect, "context": config.context_area}


def _tokens(facts: Facts) -> int:
    """Patches of a view."""
    return math.prod(facts.tokens or (1, 1))


def _left(config: Any, facts: Facts, targets: int) -> int:
    """The fewest patches that so many targets may leave to see; below 1 where there is no room for them."""
    return least_context(facts.tokens or (1, 1), targets=targets, **_shapes(config))


def _enough(facts: Facts) -> int:
    """Patches that a context has at least: an eighth of all, and four where there are eight and more."""
    return max(_tokens(facts) // 8, min(_tokens(facts) // 2, 4), 1)


def _fitting(config: Any, facts: Facts) -> int:
    """How many of the targets leave enough to see."""
    return max(n for n in range(config.targets + 1) if n == 0 or _left(config, facts, n) >= _enough(facts))


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add the method and its loss."""
    registry.add(IJEPALoss)
    registry.add(IJEPA)
