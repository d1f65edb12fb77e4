"""A backbone around any module that maps images to a tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config.schema import Schema
from ..data.base import ImageSpec
from ..errors import ConfigError
from .base import Backbone, Features, evaluating
from .resnet import map_features


class WrappedBackbone(Backbone):
    """The user's own network, `module`, as a backbone. Nothing of it is changed.

    Its output may be features (B, D), which are used as they are, a map (B, D, h, w) or tokens (B, N, D), which
    are averaged. The width D is found by one forward pass in evaluation mode.

    Raises:
        ConfigError: the module cannot take images of this size and channels, or returns something else.
    """

    name = "custom"

    def __init__(self, module: nn.Module, image: ImageSpec) -> None:
        super().__init__(Schema(), image)
        self.module = module
        output = _dry_forward(module, image)
        self.embed_dim = _features(output).pooled.shape[1]
        self._shape = tuple(output.shape[1:])

    def features(self, images: Tensor) -> Features:
        """Pooled features, and patches where the module returns a map or tokens."""
        return _features(self.module(images))

    def export_state(self) -> dict[str, Tensor]:
        """The user's own state dict."""
        return dict(self.module.state_dict())

    @property
    def notes(self) -> list[str]:
        """The findings of the dry forward pass."""
        averaged = ", averaged over places" if len(self._shape) > 1 else ""
        kind = type(self.module).__name__
        return [f"{kind}: features are {self.embed_dim} wide (its output is {self._shape} per image{averaged})"]


def _features(output: Tensor) -> Features:
    """The features in a module's output: (B, D), (B, D, h, w) or (B, N, D)."""
    if output.ndim == 4:
        return map_features(output)
    return Features(output) if output.ndim == 2 else Features(output.mean(1), output)


def _dry_forward(module: nn.Module, image: ImageSpec) -> Tensor:
    """The module's output for two black images; leaves weights, statistics, modes and generators as they are."""
    first = next(module.parameters(), torch.empty(0))
    images = torch.zeros(2, image.channels, image.size, image.size, device=first.device)
    tried = f"{type(module).__name__} with images of shape {tuple(images.shape)}"
    try:
        with torch.random.fork_rng([first.device] if first.is_cuda else []), evaluating(module):
            output = module(images)
    except Exception as error:
        raise ConfigError(
            f"backbone: the forward pass of {tried} failed: {type(error).__name__}: {error}. "
            "Pass a module that takes float images (B, C, H, W) of this size, or set image_size."
        ) from error
    if not isinstance(output, Tensor) or output.ndim not in (2, 3, 4) or len(output) != 2:
        found = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ConfigError(
            f"backbone: {tried} returned {found}. Expected features (B, D), tokens (B, N, D) or a map (B, D, h, w); "
            "wrap it in a module whose forward picks the tensor."
        )
    return output
