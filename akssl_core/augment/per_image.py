"""Views from callables that take one image at a time: any torchvision transform, or a function of yours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from ..config.schema import Schema
from ..data.base import ImageSpec, Pixels
from ..draws import Draws
from ..errors import ConfigError, shown
from .base import Augmentation, ViewGroup
from .color import Normalize

ImageCallable = Callable[[Any], Any]


class PerImage:
    """A transform that shows each image to a callable, with torch's generator seeded for image and view.

    The callable gets a PIL image (1 or 3 channels) or a uint8 tensor (C, h, w), and returns a PIL image or a tensor
    of the run's size. PIL images and uint8 tensors are then scaled to [0, 1] and normalised; a float tensor is
    taken as it is. Its randomness must come from torch's default generator, whose state is left as it was.
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
