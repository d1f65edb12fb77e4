"""The settings of one view, and the transform that makes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor

from ..config.schema import Schema
from ..data.base import ImageSpec, Pixels
from ..draws import Draws
from .base import ManyViews, Operation, together
from .color import ColorJitter, GaussianBlur, Grayscale, Normalize, Solarize, kernel_size
from .crop import Crops, Interpolation, RandomResizedCrop

BLUR_FROM = 64  # side in pixels below which published recipes do not blur
# Values worked on at a time on a CPU, 3 MB of float32: calls cost less than the cache saves. Measured at 32 px on two
# cores, ms for 512 views: 27 at 32 images, 17 at 64, 13 at 128, 11 at 256 and 512.
CHUNK = 256 * 3 * 32 * 32
TOGETHER_UP_TO = 2**24  # bytes of pixels, repeated for each view, of which a CPU makes all views in one go


def _two(interval: Any) -> Any:
    if not isinstance(interval, list | tuple) or len(interval) != 2:
        raise ValueError("should be two numbers, the smallest and the largest")
    return interval


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError("should have the smaller number first")
    return interval


Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Scale = Annotated[
    tuple[Fraction, Fraction],
    BeforeValidator(_two),
    AfterValidator(_ordered),
    Field(description="area of the crop: smallest and largest fraction of the image"),
]
Interval = Annotated[tuple[Positive, Positive], BeforeValidator(_two), AfterValidator(_ordered)]
Saturation = Annotated[float, Field(ge=0, description="strength of the change of saturation; RGB only")]
SolarizeChance = Annotated[float, Field(ge=0, le=1, description="probability of inverting the bright half of values")]


class ViewPolicy(Schema):
    """How one view is made of an image; every parameter is drawn anew for each image and view.

    A strength s of brightness, contrast or saturation is a factor uniform in [max(0, 1 - s), 1 + s].
    """

    scale: Scale = (0.2, 1.0)
    ratio: Interval = Field((3 / 4, 4 / 3), description="aspect of the crop: smallest and largest width by height")
    flip: float = Field(0.5, ge=0, le=1, description="probability of mirroring left to right")
    interpolation: Interpolation = Field("bilinear", description="how the crop is resized, antialiased")
    jitter: float = Field(0.8, ge=0, le=1, description="probability of the colour jitter (the next four)")
    brightness: float = Field(0.4, ge=0, description="strength of the change of brightness")
    contrast: float = Field(0.4, ge=0, description="strength of the change of contrast")
    saturation: Saturation = 0.4
    hue: float = Field(0.1, ge=0, le=0.5, description="largest turn of the hue, in turns; RGB only")
    grayscale: float = Field(0.2, ge=0, le=1, description="probability of losing all colour; RGB only")
    blur: float | None = Field(
        None, ge=0, le=1, description=f"probability of a Gaussian blur; null: 0.5 from {BLUR_FROM} px up, none below"
    )
    blur_sigma: Interval = Field((0.1, 2.0), description="width of the blur in pixels: smallest and largest")
    solarize: SolarizeChance = 0.0


COLORED = ("saturation", "hue", "grayscale")  # settings that make sense for three channels only


def settle(policy: ViewPolicy, size: int, channels: int) -> ViewPolicy:
    """The policy with every open choice made, for views of this size and this number of channels."""
    changes: dict[str, float] = {}
    if policy.blur is None:
        changes["blur"] = 0.5 if size >= BLUR_FROM else 0.0
    if channels != 3:
        changes |= dict.fromkeys(COLORED, 0.0)
    return policy.model_copy(update=changes)


class PolicyTransform(ManyViews):
    """Makes one view of every image by a policy: crop, flip, jitter, gray, blur, solarize, normalise, in this order."""

    def __init__(self, policy: ViewPolicy, size: int, image: ImageSpec) -> None:
        self.asked = policy
        self.policy = settle(policy, size, image.channels)
        self.size = size
        self.crop = RandomResizedCrop(size, policy.scale, policy.ratio, policy.flip, policy.interpolation)
        self.operations = list(_operations(self.policy, size))
        self.normalize = Normalize(image.mean, image.std)

    def __call__(self, pixels: Pixels, draws: Draws) -> Tensor:
        """(B, C, size, size) float32, normalised."""
        return self.many(pixels, [draws])[0]

    def many(self, pixels: Pixels, draws: Sequence[Draws]) -> Sequence[Tensor]:
        """One such view for each of the draws: in one go on a GPU, and where calls cost more than pixels on a CPU."""
        times, on_cpu = len(draws), pixels.images.is_cpu
        if times > 1 and on_cpu and pixels.images.numel() * times > TOGETHER_UP_TO:
            return [self(pixels, of_one) for of_one in draws]
        repeated = on_cpu or pixels.sizes is not None  # what costs nothing but on a CPU, where it is little
        return self._made(pixels.repeat(times) if repeated else pixels, Draws.join(draws)).chunk(times)

    def _made(self, pixels: Pixels, draws: Draws) -> Tensor:
        """Views (V B, C, size, size) by V B draws, of as many images or of B images of one size on a GPU."""
        sizes = torch.tensor([pixels.sides] * len(draws.keys)) if pixels.sizes is None else pixels.sizes
        crops = self.crop.sample(draws, sizes)
        drawn = [(operation, operation.sample(draws)) for operation in self.operations]
        shape = (len(draws.keys), pixels.channels, self.size, self.size)
        views = torch.empty(shape, device=pixels.images.device, memory_format=torch.channels_last)
        for part in _chunks(views):
            prepared = [operation.prepare(parameters.rows(part)) for operation, parameters in drawn]
            shown, cut = self.crop.prepare(pixels.part(part), crops.rows(part))
            boxes, *needs = together([cut.tensors(), *prepared], views.device)
            view = self.crop.apply(shown, Crops(*boxes), pixels.sides)
            for operation, need in zip(self.operations, needs, strict=True):
                operation.change(view, *need)
            views[part] = self.normalize.apply(view, out=view)
        return views


def decisions(transforms: Sequence[PolicyTransform], channels: int) -> list[str]:
    """The notes on values decided for these views and operations left out of them, each once, with the reason."""
    notes = []
    for size in sorted({t.size for t in transforms if t.asked.blur is None}):
        if size >= BLUR_FROM:
            notes.append(f"blur: probability 0.5 on views of {size} px, as in published recipes")
        else:
            notes.append(f"blur: none on views of {size} px; published recipes blur from {BLUR_FROM} px up")
    active = [(t, name) for t in transforms for name in (COLORED if t.asked.jitter else ("grayscale",))]
    if missing := {name for t, name in active if getattr(t.asked, name) > getattr(t.policy, name)}:
        names = ", ".join(name for name in COLORED if name in missing)
        notes.append(f"left out: {names}; they need 3 channels and the images have {channels}")
    return notes


def _operations(policy: ViewPolicy, size: int) -> Iterator[Operation[Any]]:
    """The operations on a crop, in order; those that would never act are left out."""
    strengths = (policy.brightness, policy.contrast, policy.saturation, policy.hue)
    if policy.jitter and any(strengths):
        yield ColorJitter(policy.jitter, *strengths)
    if policy.grayscale:
        yield Grayscale(policy.grayscale)
    if policy.blur:
        yield GaussianBlur(policy.blur, kernel_size(size, policy.blur_sigma[1]), policy.blur_sigma)
    if policy.solarize:
        yield Solarize(policy.solarize)


def _chunks(views: Tensor) -> Iterator[slice]:
    """Slices of the batch: cache-sized on a CPU, all of it elsewhere."""
    count, channels, height, width = views.shape
    step = max(1, CHUNK // (channels * height * width)) if views.is_cpu else max(1, count)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
