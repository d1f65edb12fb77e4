"""MAE: most of an image is hidden, and a small decoder fills in its pixels from what the encoder saw of the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from akssl_core import (
    Artefacts,
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
    Registry,
    Schema,
    TokenBackbone,
    hookimpl,
)
from akssl_core.masks import hidden, kept, shuffle_masks

from .courses import COURSES
from .decoder import Decoder, patchify, unpatchify, whole_patches
from .published import PUBLISHED
from .recipes import RECIPES

EPSILON = 1e-6  # added to the variance of a patch, as in the authors' code
SLOW = 500  # steps after which a decoder knows more than the mean of a patch


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of values (B, N) over the patches where mask (B, N) is true: a scalar."""
    mean: Tensor = (values * mask).sum() / mask.sum()
    return mean


class MAELoss(Loss):
    """Mean squared error over the pixels of the hidden patches (section 3 of arXiv 2111.06377).

    With `norm_pix` each patch of the target has its own mean taken away and is divided by its own standard deviation,
    over all pixels and channels, from N - 1 as in the authors' code. Visible patches have no part in it.
    """

    name = "mae"

    class Config(Schema):
        """What is predicted."""

        norm_pix: bool = Field(True, description="targets have mean 0 and deviation 1 within each patch")

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """A step of pixels against a guess of 0, with and without norm; a constant patch; a visible error."""
        ramp, zero = torch.tensor([0.0, 1.0, 2.0, 3.0]).expand(2, 2, 4), torch.zeros(2, 2, 4)
        half = torch.tensor([[True, False], [False, True]])
        everywhere, seen = torch.ones(2, 2, dtype=torch.bool), ramp * ~half[..., None]
        return [
            KnownValue((zero, ramp, half), 0.75),  # (P - 1) / P; 1 with the variance from N
            KnownValue((zero, torch.ones(2, 2, 4), everywhere), 0.0),
            KnownValue((zero, ramp, half), 3.5, {"norm_pix": False}),
            KnownValue((ramp + 0.5, ramp, everywhere), 0.25, {"norm_pix": False}),
            KnownValue((seen, zero, half), 0.0),
        ]

    def forward(self, predicted: Tensor, pixels: Tensor, mask: Tensor) -> Tensor:
        """The loss of predictions (B, N, P) of pixels (B, N, P) where mask (B, N) is true."""
        if self.config.norm_pix:
            mean, std = of_patches(pixels)
            pixels = (pixels - mean) / std
        return mean_over((predicted - pixels).square().mean(2), mask)

    def as_pixels(self, predicted: Tensor, pixels: Tensor) -> Tensor:
        """Predictions (B, N, P) in the units of the pixels (B, N, P) that they are of, to look at."""
        mean, std = of_patches(pixels) if self.config.norm_pix else (0.0, 1.0)
        return predicted * std + mean


def of_patches(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, N, 1) within each patch of pixels (B, N, P)."""
    return pixels.mean(2, keepdim=True), (pixels.var(2, keepdim=True) + EPSILON).sqrt()


class MAE(Method[TokenBackbone]):
    """Masked autoencoder: the encoder sees a quarter of the patches, a small decoder predicts the pixels of the others.

    One view, one network, nothing compared between images. The decoder is thrown away, the encoder is the product.
    """

    name = "mae"
    views: ClassVar[Mapping[str, int | range]] = {"global": 1}
    headline = "finetune"
    collapses = False
    accumulates = True
    paper = "He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022, https://arxiv.org/abs/2111.06377"
    recipes = RECIPES
    published = PUBLISHED
    courses = COURSES["mae"]

    class Config(Schema):
        """How much is hidden, and the decoder."""

        mask_ratio: float = Field(0.75, gt=0, lt=1, description="share of the patches that are hidden")
        decoder_dim: int = Field(512, ge=4, multiple_of=4, description="width of the decoder")
        decoder_depth: int = Field(8, ge=1, le=256, description="blocks of the decoder")
        decoder_heads: int = Field(16, ge=1, description="attention heads of the decoder, a divisor of its width")
        loss: LossRef = LossRef.field("mae", description="compares predictions and pixels (B, N, P) of hidden patches")

    def __init__(self, config: Any, backbone: TokenBackbone) -> None:
        super().__init__(config, backbone)
        side, patch = backbone.image.size, backbone.patch_size
        whole_patches(side, patch)
        self.decoder = Decoder(
            backbone.token_dim,
            (side // patch, side // patch),
            patch**2 * backbone.image.channels,
            dim=config.decoder_dim,
            depth=config.decoder_depth,
            heads=config.decoder_heads,
        )
        self.loss = config.loss.build()

    def step(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        """Hide, encode, decode, compare; beside the loss, the error on what was seen and the contrast of predictions.

        `visible_loss` trains nothing. `pixel_std` is the deviation within a predicted patch: 0 where it is flat.
        """
        (x,) = batch.views["global"]
        predicted, pixels, mask = self.fill_in(x, batch)
        loss = self.loss(predicted, pixels, mask)
        with torch.no_grad():
            visible_loss = self.loss(predicted, pixels, ~mask)
            pixel_std = mean_over(predicted.float().std(2), mask)
        return {"loss": loss, "visible_loss": visible_loss, "pixel_std": pixel_std}

    def fill_in(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Predictions and pixels (B, N, P) of images x (B, C, H, W), and which patches were hidden (B, N)."""
        pixels = patchify(x, self.backbone.patch_size)
        tokens = pixels.shape[1]
        keep = shuffle_masks(batch.draws, tokens, kept(tokens, self.config.mask_ratio))
        seen = self.backbone.features(x, keep=keep)
        predicted = self.decoder(seen.patches, seen.cls, keep, self.backbone.patch_grid(x))
        return predicted, pixels, hidden(keep, tokens)

    def artefacts(self, batch: Batch, now: Now) -> Artefacts:
        """Each image, what the encoder saw of it, and with what the decoder has filled it in."""
        (x,) = batch.views["global"]
        predicted, pixels, mask = self.fill_in(x, batch)
        if isinstance(self.loss, MAELoss):
            predicted = self.loss.as_pixels(predicted.float(), pixels)
        parts = {
            "original": pixels,
            "visible patches": pixels.masked_fill(mask[..., None], 0),
            "reconstruction": torch.where(mask[..., None], predicted, pixels),
        }
        image, grid = self.backbone.image, self.backbone.patch_grid(x)
        return Artefacts({name: image.pictures(unpatchify(p, grid, image.channels)) for name, p in parts.items()})

    @classmethod
    def choose(cls, config: Any, facts: Facts) -> Mapping[str, Choice]:
        """A decoder whose heads divide its width, and at least one patch to see."""
        choices, tokens = {}, tokens_of(facts)
        if config.decoder_dim % config.decoder_heads:
            heads = max(
                n for n in range(1, min(config.decoder_heads, config.decoder_dim + 1)) if config.decoder_dim % n == 0
            )
            choices["decoder_heads"] = Choice(heads, f"the most that divide the decoder's width {config.decoder_dim}")
        if tokens > 1 and kept(tokens, config.mask_ratio) == 0:
            choices["mask_ratio"] = Choice(1 - 1 / tokens, f"one of the {tokens} patches stays visible")
        return choices

    @classmethod
    def check(cls, config: Any, facts: Facts) -> Sequence[str]:
        """Nothing to see, nothing to hide, and heads that do not fit."""
        tokens = tokens_of(facts)
        visible = kept(tokens, config.mask_ratio)
        if tokens < 2:
            raise ConfigError(
                f"backbone.patch_size: views of {facts.image_size} px are 1 patch; expected 2 or more, of which some "
                "are hidden. Use smaller patches or larger views (train.image_size)."
            )
        if not 0 < visible < tokens:
            advice = "Use smaller patches (backbone.patch_size) or larger views." if tokens < 4 else "Use 0.75."
            raise ConfigError(
                f"method.mask_ratio: {config.mask_ratio:g} of {tokens} patches leaves {visible} to see; expected 1 to "
                f"{tokens - 1}. {advice}"
            )
        if config.decoder_dim % config.decoder_heads:
            divisors = ", ".join(str(n) for n in range(1, config.decoder_dim // 4 + 1) if config.decoder_dim % n == 0)
            raise ConfigError(
                f"method.decoder_heads: {config.decoder_heads} must divide method.decoder_dim, {config.decoder_dim}; "
                f"{divisors} do."
            )
        return ()

    @classmethod
    def landmarks(cls, config: Any, facts: Facts) -> Sequence[Landmark]:
        """Predictions that are no better than the mean of each patch."""
        if not _norm_pix(config):
            return ()
        return [
            Landmark(
                "not learning",
                {"loss": (0.98 * flat(facts), math.inf)},
                "the decoder predicts no more than the mean of each patch",
                "the learning rate is too small or too large, or the images are noise.",
                "try optimizer.lr between 1e-4 and 4e-3 under AdamW with a warm-up; look at the reconstructions.",
                after=SLOW,
            )
        ]

    @classmethod
    def curves(cls, config: Any, facts: Facts) -> Mapping[str, Curve]:
        """The loss beside that of flat patches, the error on visible patches, and the contrast of the predictions."""
        lines = {"each patch flat": flat(facts)} if _norm_pix(config) else {}
        contrast = {"that of the targets": 1.0} if _norm_pix(config) else {}
        return {
            "loss": Curve(
                "starts at 2 to 3, is below flat patches within some hundred steps, then falls slowly", lines
            ),
            "visible_loss": Curve("stays near the loss or above it: nothing asks for these patches"),
            "pixel_std": Curve("falls at first, then rises slowly as details are found", contrast),
        }

    @classmethod
    def derived(cls, config: Any, facts: Facts) -> Mapping[str, str]:
        """How many patches the encoder sees."""
        tokens = tokens_of(facts)
        return {"visible patches": f"{kept(tokens, config.mask_ratio)} of {tokens}"}


def tokens_of(facts: Facts) -> int:
    """Patches of a view."""
    return math.prod(facts.tokens or (1, 1))


def flat(facts: Facts) -> float:
    """The loss of predicting the mean of each patch, (P - 1) / P."""
    rows = (facts.tokens or (1, 1))[0]
    return 1 - 1 / ((facts.image_size // rows) ** 2 * facts.channels)


def _norm_pix(config: Any) -> bool:
    """Whether the loss is MAE's own, on patches of deviation 1."""
    return bool(config.loss.name == MAELoss.name and config.loss.config.norm_pix)


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add the method and its loss."""
    registry.add(MAELoss)
    registry.add(MAE)
