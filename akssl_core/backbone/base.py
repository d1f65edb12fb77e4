"""The base of backbones: images in, features out. Methods and plugins know no more than this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config.schema import Component
from ..data.base import ImageSpec
from ..data.preprocess import Preprocess
from ..errors import ConfigError


@dataclass(frozen=True, slots=True)
class Features:
    """The features of a batch of images."""

    pooled: Tensor
    """(B, D), one row an image."""
    patches: Tensor | None = None
    """(B, N, D): patch tokens, or a CNN's last map, row by row."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the patches; N is their product. None where only some patches were encoded (`keep`)."""
    cls: Tensor | None = None
    """(B, D): the class token beside the patches, whatever is pooled; None: there is none."""

    @property
    def whole(self) -> Tensor:
        """(B, D), a token for each image: the class token, or what is pooled where there is none."""
        return self.pooled if self.cls is None else self.cls


@dataclass(frozen=True, slots=True)
class Counterpart:
    """The same network in another library: called with normalised images (B, C, H, W), it returns (B, D)."""

    modules: tuple[str, ...]
    """The Python modules to import."""
    lines: tuple[str, ...]
    """Python statements that leave the network in the name `model`."""
    state: dict[str, Tensor]
    """The weights under that library's key names."""
    config: Mapping[str, Any] | None = None
    """Of timm: its `config.json` but for the images, where that alone builds the network; `akssl publish` writes it."""

    @classmethod
    def in_timm(cls, model: str, arguments: Mapping[str, Any], state: dict[str, Tensor], **parts: Any) -> Counterpart:
        """What `timm.create_model` makes of a name and arguments; `parts` are timm's `first_conv` and `classifier`."""
        listed = ", ".join([repr(model), *(f"{key}={value!r}" for key, value in arguments.items())])
        own = {key: value for key, value in arguments.items() if key != "num_classes"}
        config = {"architecture": model.partition(".")[0], "model_args": own, "pretrained_cfg": parts}
        return cls(("timm",), (f"model = timm.create_model({listed})",), state, config)


@dataclass(frozen=True, slots=True)
class Keys:
    """How weights of other libraries become those of a network, as data: `--start` matches names by it."""

    dialects: Sequence[Sequence[tuple[str, str]]] = ()
    """For each library that spells keys in its own way, patterns and what stands for them here, applied one after the
    other. A key that ends in "#0", "#1", ... is that part of a tensor, along its first side."""
    first: str = ""
    """The convolution that sees the images, which is fitted to channels and sizes."""
    positions: str = ""
    """Positions (1, before + rows * columns, D), which are fitted to the grid."""
    before: int = 0
    """Tokens before the grid in the positions."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the patches."""
    class_token: str = ""
    """The class token, to which its position is added where the network has none for it."""


@dataclass(frozen=True, slots=True)
class Stock:
    """Published weights of a network under its own key names, and how its images are normalised."""

    tensors: Mapping[str, Tensor]
    """By key."""
    mean: tuple[float, ...] | None = None
    """One number a channel, of values from 0 to 1; None: unknown."""
    std: tuple[float, ...] | None = None
    """As `mean`."""
    licence: str | None = None
    """Identifier of the licence of the weights; None: unknown."""


class Backbone(nn.Module, Component, ABC):
    """A network from images (B, C, H, W) to features of width `embed_dim`.

    Its state dict uses the key names of the library it comes from, so that the exported file loads there.
    """

    kind = "backbone"
    embed_dim: int
    """The width D of the features."""
    preprocess: Preprocess | None = None
    """How images are fed; set on a backbone that comes out of a run."""
    image: ImageSpec
    """How the images it is made for reach it: side, channels and normalisation."""

    def __init__(self, config: Any, image: ImageSpec) -> None:
        super().__init__()
        self.config = config
        self.image = image

    @abstractmethod
    def features(self, images: Tensor) -> Features:
        """Pooled features and, where the architecture has them, patch features."""

    def forward(self, images: Tensor) -> Tensor:
        """Pooled features (B, D)."""
        return self.features(images).pooled

    def parts(self) -> Sequence[nn.Module]:
        """The blocks, in the order in which they run: one at a time is put together (FSDP) and kept (recompute).

        They are the members of an `nn.Sequential` or `nn.ModuleList` that are all of one class and have layers inside;
        of nested ones the innermost. Each is called as a module, `block(x)`.
        """
        return _blocks(self)

    def depths(self) -> Mapping[str, int]:
        """How many layers from the output each parameter is, by its name: 0 for a final norm, most for the stem.

        Layers are the blocks of `parts()`, or whole stages where those stand in several containers, as in conv nets;
        without blocks they are the children. A parameter between two layers is of the one that follows, and what
        comes before the first, tokens and positions too, is the deepest layer (BEiT, arXiv 2106.08254, appendix).
        """
        return _depths(self)

    @property
    def keys(self) -> Keys:
        """How weights under other key names and of other sizes become those of this network."""
        return Keys()

    @classmethod
    def stock(cls) -> Stock | None:
        """Published weights of this network, from this machine or the net; None: there are none."""
        return None

    def export_state(self) -> dict[str, Tensor]:
        """The weights themselves, no copies, under the key names of the library the network comes from."""
        return dict(self.state_dict())

    def counterpart(self, library: str) -> Counterpart | None:
        """The same network in "torchvision" or "timm"; None where the library has none with these settings."""
        return None

    @property
    def notes(self) -> list[str]:
        """Values decided for the user, with the reason (an adapted stem, say)."""
        return []


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks in a module, as `Backbone.parts` says."""
    members = list(module.children())
    alike = isinstance(module, nn.Sequential | nn.ModuleList) and len({type(member) for member in members}) == 1
    found: list[nn.Module] = []
    for member in members:
        inner = _blocks(member)
        found += inner or ([member] if alike and any(member.children()) else [])
    return found


def _layers(module: nn.Module) -> list[nn.Module]:
    """The layers in a module, as `Backbone.depths` says."""
    blocks = set(_blocks(module))
    holders = [part for part in module.modules() if blocks & set(part.children())]
    if len(holders) > 1:
        return holders
    if blocks:
        return [part for part in module.modules() if part in blocks]
    children = [child for child in module.children() if any(True for _ in child.parameters())]
    return _layers(children[0]) if len(children) == 1 else children[1:]


def _depths(module: nn.Module) -> dict[str, int]:
    """See `Backbone.depths`; the order is that in which parameters are registered."""
    layers = _layers(module)
    place = {id(parameter): number for number, layer in enumerate(layers, 1) for parameter in layer.parameters()}
    following = top = len(layers) + 1
    depths = {}
    for name, parameter in reversed(list(module.named_parameters())):
        own = place.get(id(parameter))
        following = own or following
        depths[name] = top - (following if own or following > 1 else 0)
    return depths


class TokenBackbone(Backbone, ABC):
    """A backbone over patch tokens: it can be shown some of them, or some of them replaced."""

    patch_size: int
    """The side of a patch in pixels."""
    patch_embed: nn.Module
    """Pixels to tokens; MoCo v3 freezes it."""

    @abstractmethod
    def features(
        self,
        images: Tensor,
        *,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        token: Tensor | None = None,
    ) -> Features:
        """Features of all patches, of those in `keep`, or with those in `mask` replaced by `token`.

        Args:
            images: (B, C, H, W).
            keep: (B, n) int64, positions of the patches to encode, counted row by row (MAE, I-JEPA). The patches of the
                result stand in this order, and its grid is None.
            mask: (B, N) bool, true where a patch is replaced before positions are added (iBOT, SimMIM).
            token: (D,), the replacement; it belongs to the method, for a backbone has no unused parameter.
        """

    @property
    def token_dim(self) -> int:
        """The width D of the tokens, which is `embed_dim` unless several of them are pooled side by side."""
        return self.embed_dim

    def patch_grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of the patches of images (B, C, H, W); sides are padded to whole patches."""
        height, width = (-(-side // self.patch_size) for side in images.shape[2:])
        return height, width

    def layers(self, images: Tensor, last: int) -> list[Features]:
        """The features after each of the `last` blocks, in their order, each normalised as those of the last one are.

        Raises:
            ConfigError: it has fewer blocks, or does not tell.
        """
        raise ConfigError(f"layers: {self.name} gives the features of its last layer alone. Take those.")

    def attention(self, images: Tensor) -> Tensor | None:
        """How the last block's heads weigh the patches for the pooled features: `(B, heads, *grid)`; None: unknown."""
        return None


@contextmanager
def whole_float32(*, tune: bool = False) -> Iterator[None]:
    """Products and convolutions of float32 on a GPU use all 24 bits of it, while this lasts, and not TF32's eleven.

    With `tune`, cuDNN tries its algorithms for each new shape and keeps the fastest.
    """
    cudnn, products = torch.backends.cudnn, torch.get_float32_matmul_precision()
    kept = {"enabled": cudnn.enabled, "deterministic": cudnn.deterministic}
    torch.set_float32_matmul_precision("highest")
    try:
        with cudnn.flags(**kept, benchmark=tune or cudnn.benchmark, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(products)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients for a while; each submodule gets its own mode back, for some may be frozen."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        with torch.no_grad(), whole_float32():
            module.eval()
            yield
    finally:
        for part, mode in modes:
            part.training = mode
