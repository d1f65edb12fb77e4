"""The augmentations of the core: alike views, named groups of them, two unlike ones, multi-crop, and own callables."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from PIL import Image
from pydantic import BeforeValidator, Field
from torch import Tensor
from torchvision.transforms import functional as TF

from ..config.schema import Schema
from ..data.base import ImageSpec, Pixels
from ..draws import Draws
from ..errors import ConfigError, shown
from .base import Augmentation, ViewGroup
from .color import Normalize
from .policy import PolicyTransform, Saturation, Scale, SolarizeChance, ViewPolicy, decisions

ImageCallable = Callable[[Any], Any]  # any torchvision transform, or a function of yours
TWO_ALIKE: Any = {"global": {}}  # as a user would write it
SIZE = "side of the views in pixels, 8 or more, or as a share of the run's image size; null: all of it"


def _pixels_or_share(side: Any) -> int | float:
    if not isinstance(side, int | float) or not (0 < side < 1 or (side >= 8 and side % 1 == 0)):
        raise ValueError("should be a whole number of pixels, 8 or more, or a share between 0 and 1")
    return side if side < 1 else int(side)


Side = Annotated[int | float, BeforeValidator(_pixels_or_share)] | None


def view_side(asked: float | None, image: ImageSpec, multiple: int) -> int:
    """The side of views in pixels: as asked, or the nearest multiple to a share of the image's, at least 8."""
    if asked is None or asked >= 1:
        return int(asked or image.size)
    least = -(-8 // multiple)
    return min(multiple * max(int(asked * image.size / multiple + 0.5), least), image.size)


class _Policies(Augmentation):
    """The base of augmentations by policy: groups made once, and notes about every view."""

    def __init__(self, config: Schema, image: ImageSpec) -> None:
        super().__init__(config, image)
        self._groups = self._made(multiple=2)

    @abstractmethod
    def _made(self, multiple: int) -> list[ViewGroup]:
        """The groups, with sides that are multiples of so many pixels where no pixels were asked for."""

    def fit_patches(self, side: int) -> None:
        """Rounds sides that were given as a share, or left open, to whole patches."""
        self._groups = self._made(side)

    def groups(self) -> Sequence[ViewGroup]:
        """The views, in the order in which a method sees them."""
        return self._groups

    @property
    def notes(self) -> list[str]:
        """Values decided and operations left out, each once."""
        transforms = [t for group in self._groups for t in group.transforms if isinstance(t, PolicyTransform)]
        small = [group for group in self._groups if group.name != "local" and group.size < self.image.size]
        said = [f"{g.name} views are {g.size} px, the images of the backbone {self.image.size} px" for g in small]
        return [*said, *decisions(transforms, self.image.channels)]


class AlikeViews(ViewPolicy):
    """Views of one size, drawn alike: how many, how large, and by which policy."""

    count: int = Field(2, ge=1, description="number of views")
    size: Side = Field(None, description=SIZE)

    def group(self, name: str, image: ImageSpec, multiple: int) -> ViewGroup:
        """These views under a name."""
        size = view_side(self.size, image, multiple)
        return ViewGroup(name, size, (PolicyTransform(self, size, image),) * self.count)


class Pair(_Policies):
    """Two views drawn alike, or as many as `count` says (SimCLR, arXiv 2002.05709; MoCo v2, arXiv 2003.04297)."""

    name = "pair"
    Config = AlikeViews

    def _made(self, multiple: int) -> list[ViewGroup]:
        return [self.config.group("global", self.image, multiple)]


class NamedViews(_Policies):
    """Groups of views by the names under which a method takes them, each with a policy, a count and a size."""

    name = "views"

    class Config(Schema):
        """The groups, in the order in which a method sees them."""

        groups: dict[str, AlikeViews] = Field(
            TWO_ALIKE, min_length=1, description="name of a group -> its count, size and policy, as of `pair`"
        )

    def _made(self, multiple: int) -> list[ViewGroup]:
        return [views.group(name, self.image, multiple) for name, views in self.config.groups.items()]


class FirstPolicy(ViewPolicy):
    """The first view of an unlike pair."""

    scale: Scale = (0.08, 1.0)
    saturation: Saturation = 0.2


class SecondPolicy(FirstPolicy):
    """The second view of an unlike pair."""

    solarize: SolarizeChance = 0.2


class Asymmetric(_Policies):
    """Two views drawn by two policies (BYOL, arXiv 2006.07733)."""

    name = "asymmetric"

    class Config(Schema):
        """A policy for each view."""

        first: FirstPolicy = Field(FirstPolicy(), description="policy of the first view")
        second: SecondPolicy = Field(SecondPolicy(), description="policy of the second view")
        size: Side = Field(None, description=SIZE)

    def _made(self, multiple: int) -> list[ViewGroup]:
        return [_unlike(self.config, self.image, multiple)]


def _unlike(config: Any, image: ImageSpec, multiple: int) -> ViewGroup:
    """Two global views, each by its own policy."""
    size = view_side(config.size, image, multiple)
    views = tuple(PolicyTransform(policy, size, image) for policy in (config.first, config.second))
    return ViewGroup("global", size, views)


class GlobalPolicy(ViewPolicy):
    """A large crop of multi-crop."""

    scale: Scale = (0.14, 1.0)


class LocalPolicy(ViewPolicy):
    """A small crop of multi-crop."""

    scale: Scale = (0.05, 0.14)


class MultiCrop(_Policies):
    """Two large crops and several small ones (SwAV, arXiv 2006.09882)."""

    name = "multicrop"
    _whole = ", even"

    class Config(Schema):
        """A policy for each global view, and one for all local views."""

        first: GlobalPolicy = Field(GlobalPolicy(), description="policy of the first global view")
        second: GlobalPolicy = Field(GlobalPolicy(), description="policy of the second global view")
        local: LocalPolicy = Field(LocalPolicy(), description="policy of every local view")
        local_count: int = Field(6, ge=0, description="number of local views")
        size: Side = Field(None, description=SIZE.replace("the views", "the global views"))
        local_size: int | None = Field(
            None, ge=8, description="side of the local views in pixels; null: 96/224 of the global side, whole patches"
        )

    def _made(self, multiple: int) -> list[ViewGroup]:
        large, count = _unlike(self.config, self.image, multiple), self.config.local_count
        self.local_size = side = self.config.local_size or local_size(large.size, multiple)
        local = ViewGroup("local", side, (PolicyTransform(self.config.local, side, self.image),) * count)
        return [large, local] if count else [large]

    def fit_patches(self, side: int) -> None:
        """Gives views whose size was left open whole patches, as local views of 96 px are for patches of 16 px."""
        super().fit_patches(side)
        self._whole = f", in patches of {side} px"

    @property
    def notes(self) -> list[str]:
        """Also says how large the local views are when the user left it open."""
        if self.config.local_size or not self.config.local_count:
            return super().notes
        reason = f"96/224 of {self._groups[0].size} px{self._whole}, at least 8"
        return [f"local views have {self.local_size} px ({reason})", *super().notes]


def local_size(size: int, multiple: int = 2) -> int:
    """The side of local views that goes with a global side: 96 for 224, a multiple of `multiple`, at least 8."""
    return multiple * max(round(size * 96 / 224 / multiple), -(-8 // multiple))


class PerImage:
    """A transform that shows each image to a callable, with torch's generator seeded for image and view.

    The callable gets a PIL image (1 or 3 channels) or a uint8 tensor (C, h, w), deeper images rounded to 8 bits, and
    returns a PIL image or a tensor of the run's size. PIL images and uint8 tensors are then scaled to [0, 1] and
    normalised; a float tensor is taken as it is. Its randomness must come from torch's default generator, whose state
    is left as it was.
    """

    def __init__(self, function: ImageCallable, image: ImageSpec) -> None:
        self.function = function
        self.image = image
        self.normalize = Normalize(image.mean, image.std)

    def __call__(self, pixels: Pixels, draws: Draws) -> Tensor:
        """(B, C, size, size) float32.

        Raises:
            ConfigError: the callable returned something else than an image of the run's size and channels.
        """
        generator = torch.default_generator
        state = generator.get_state()
        views = []
        try:
            for i, seed in enumerate(draws.seeds("per_image").tolist()):
                generator.manual_seed(seed)
                views.append(self._view(pixels.image(i).cpu()))
        finally:
            generator.set_state(state)
        return torch.stack(views).to(pixels.images.device)

    def _view(self, image: Tensor) -> Tensor:
        image = image.round().to(torch.uint8)
        shown = TF.to_pil_image(image) if len(image) in (1, 3) else image
        view = self.function(shown)
        if isinstance(view, Image.Image):
            view = TF.pil_to_tensor(view)
        view = self._checked(view)
        if view.dtype == torch.uint8:
            return self.normalize.apply(view.to(torch.float32).div_(255)[None])[0]
        return view.to(torch.float32)

    def _checked(self, view: Any) -> Tensor:
        size, channels = self.image.size, self.image.channels
        expected = f"expected a PIL image or a tensor ({channels}, {size}, {size}), uint8 or float"
        if not isinstance(view, Tensor):
            raise ConfigError(f"the per-image transform returned a {type(view).__name__}; {expected}.")
        if view.shape != (channels, size, size):
            cure = f"End it with a resize or a crop to {size} px, or set image_size to the side it makes."
            raise ConfigError(f"the per-image transform returned an image {tuple(view.shape)}; {expected}. {cure}")
        if view.dtype != torch.uint8 and not view.is_floating_point():
            raise ConfigError(f"the per-image transform returned a tensor of {view.dtype}; {expected}.")
        return view


class PerImageAugmentation(Augmentation):
    """Views from one callable (two views) or from a sequence of callables (one view each).

    It is made in Python, not from a config file: `PerImageAugmentation([first, second], image)`.
    """

    name = "per_image"

    def __init__(self, callables: ImageCallable | Sequence[ImageCallable], image: ImageSpec) -> None:
        super().__init__(Schema(), image)
        functions = (callables, callables) if callable(callables) else callables
        if not isinstance(functions, Sequence) or not functions or not all(map(callable, functions)):
            raise ConfigError(
                f"augmentation: expected a registered name, a callable or a list of them, got {shown(callables)}."
            )
        self._group = ViewGroup("global", image.size, tuple(PerImage(function, image) for function in functions))

    def groups(self) -> Sequence[ViewGroup]:
        """One group with a view for each callable."""
        return [self._group]
