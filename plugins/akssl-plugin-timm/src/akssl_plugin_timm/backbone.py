"""A network of timm as a backbone: under timm's own key names, and over patch tokens where timm's ViT allows it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar, Literal

import timm
import torch
from pydantic import Field, field_validator
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from akssl_core import (
    TOKEN_DIALECTS,
    Backbone,
    ConfigError,
    Counterpart,
    Features,
    ImageSpec,
    Keys,
    Schema,
    Stock,
    TokenBackbone,
    absolute_path,
)
from akssl_core.nn import take

from .build import arguments_for, build, call, published, short, unusable
from .interpolation import ByMatrices

FEW = 16  # places in the last map; with fewer, methods that compare places have little to go by
TABLES = ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")

DIALECTS = (
    *TOKEN_DIALECTS,
    *(
        (
            *dialect,
            (r"\.ls(\d)\.gamma$", r".gamma_\1"),
            (r"\.attn\.qkv\.bias#0$", ".attn.q_bias"),
            (r"\.attn\.qkv\.bias#2$", ".attn.v_bias"),
        )
        for dialect in TOKEN_DIALECTS
    ),
)  # the second half for DINOv3, whose blocks timm builds of its EVA

FILES = ("file", "cache_dir")  # arguments of timm that are paths
FACTORY = frozenset(inspect.signature(timm.create_model).parameters)  # that are no model's own


def _absolute(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _absolute(name, one) for name, one in value.items()}
    return str(absolute_path(value)) if key in FILES and isinstance(value, str) and value else value


def has_plain_tokens(network: nn.Module) -> bool:
    """Whether each token is one square of pixels in a plain ViT, so that leaving it out hides those pixels."""
    return type(network) is VisionTransformer and type(network.patch_embed) is PatchEmbed


class TimmBackbone(Backbone):
    """A network of timm without its classifier. Its state dict loads into timm's own model.

    `timm` is timm's module itself, and `arguments` what `timm.create_model` was called with.

    Raises:
        ConfigError: timm does not take a setting, or the network cannot take images of this size and channels.
    """

    model: ClassVar[str]  # as timm spells it
    accepted: ClassVar[frozenset[str]]  # the arguments of its constructor
    timm: Any

    class Config(Schema):
        """Settings of every timm backbone."""

        pretrained: bool = Field(False, description="start from timm's weights; they are fetched from its hub")
        drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of the last block, rising from 0")
        pool: Literal["default", "avg", "token"] = Field(
            "default", description="pooled features: as timm's model has them, mean of the places, or class token"
        )
        patch_size: int | None = Field(None, gt=0, description="side of a patch in px; null: as timm's model has it")
        options: dict[str, Any] = Field(
            default_factory=dict, description="any other keyword arguments of the model, for timm.create_model"
        )

        @field_validator("options")
        @classmethod
        def _files_from_any_folder(cls, options: dict[str, Any]) -> dict[str, Any]:
            """Files of weights by their absolute paths, at whatever depth timm takes them."""
            return {key: _absolute(key, value) for key, value in options.items()}

    def __init__(self, config: Any, image: ImageSpec) -> None:
        super().__init__(config, image)
        self.arguments = arguments_for(config, image, self.accepted)
        network = build(self.model, self.arguments, pretrained=config.pretrained, accepted=self.accepted)
        _refuse_shared(self.model, network)
        if "dynamic_img_pad" not in config.options:
            _refuse_parts(self.model, network, image.size, self.accepted)
        self._adopt(network)
        seen = self._dry_forward()
        self.embed_dim = seen.pooled.shape[1]  # not num_features: some models widen their features after the last map
        self.grid = seen.grid

    def _adopt(self, network: Any) -> None:
        """Make timm's parameters, buffers and children those of this module.

        The tables that hold them are shared, and `timm` itself is no child. So every key and every parameter's
        name is timm's, in files, checkpoints and rules alike, without a prefix to be cut off and put back; what
        torch moves, replaces or copies is moved, replaced or copied for both; and timm's forward pass runs as it is.
        Setting attributes one by one would fail where timm calls a child `features`, as VGG and DenseNet do.
        """
        object.__setattr__(self, "timm", network)  # past nn.Module, which would make it a child
        for table in TABLES:
            object.__setattr__(self, table, getattr(network, table))

    @property
    def training(self) -> bool:
        """The mode, kept by timm's module: it is no child, and it asks itself whether to drop features out."""
        return self.timm.training if "timm" in self.__dict__ else True

    @training.setter
    def training(self, mode: bool) -> None:
        if "timm" in self.__dict__:  # not yet while nn.Module is set up
            self.timm.training = mode

    def _dry_forward(self) -> Features:
        """The features of a black image, in evaluation mode."""
        self.eval()
        try:
            with torch.no_grad():
                seen = self.features(torch.zeros(1, self.image.channels, self.image.size, self.image.size))
        except Exception as error:  # whatever timm's models raise, and that their output is no tensor
            raise unusable(self.model, self.arguments, error, self.accepted) from error
        self.train()
        return seen

    def features(self, images: Tensor) -> Features:
        """Pooled features as timm's head sees them; patches where the last map or the tokens are as wide as those."""
        with self._explained(images):
            x = self.timm.forward_features(images)
            pooled = self.timm.forward_head(x, pre_logits=True)
            patches, grid = _places(self.timm, x, images)
        if pooled.ndim != 2:
            raise ValueError(f"its pooled features have the shape {tuple(pooled.shape)}, expected (B, D)")
        if patches is None or patches.shape[2] != pooled.shape[1]:
            return Features(pooled)
        return Features(pooled, patches, grid)

    @contextmanager
    def _explained(self, images: Tensor) -> Iterator[None]:
        """That a view has a size which the network cannot take is the user's to mend. Asked to, it keeps its bits."""
        side, exact = self.image.size, images.is_cuda and torch.are_deterministic_algorithms_enabled()
        try:
            with ByMatrices() if exact else nullcontext():
                yield
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError, ValueError) as error:
            height, width = images.shape[2:]
            if (height, width) == (side, side):
                raise
            raise ConfigError(
                f"backbone: {self.name}, made for images of {side} px, cannot take views of {height} x {width} px: "
                f"{short(error)}. Give all views sizes that it takes, or choose another backbone."
            ) from error

    @property
    def keys(self) -> Keys:
        """Its own, and those of vision transformers elsewhere; timm says which convolution sees the images."""
        first, positions = self.timm.pretrained_cfg.get("first_conv"), getattr(self.timm, "pos_embed", None)
        first = f"{first}.weight" if isinstance(first, str) else ""
        grid = getattr(getattr(self.timm, "patch_embed", None), "grid_size", None)
        if not isinstance(positions, Tensor) or grid is None:
            return Keys(DIALECTS, first)
        before = positions.shape[1] - grid[0] * grid[1]
        return Keys(DIALECTS, first, "pos_embed", before, tuple(grid), "cls_token")

    @classmethod
    def stock(cls) -> Stock:
        """Timm's weights, from the cache of its hub on this machine or from the hub."""
        network = published(cls.model, {"num_classes": 0})
        mean, std = (tuple(network.pretrained_cfg[key]) for key in ("mean", "std"))
        return Stock(dict(network.state_dict()), mean, std, network.pretrained_cfg.get("license"))

    def counterpart(self, library: str) -> Counterpart | None:
        """The call that makes this network in timm; options that are no names could become other code there.

        What `create_model` alone understands, as where weights lie, is no part of the network.
        """
        if library != "timm" or not all(key.isidentifier() for key in self.arguments):
            return None
        parts = {key: self.timm.pretrained_cfg.get(key) for key in ("first_conv", "classifier")}
        found = Counterpart.in_timm(self.model, self.arguments, self.export_state(), **parts)
        own = {key: value for key, value in self.arguments.items() if key not in FACTORY}
        return replace(found, config={**(found.config or {}), "model_args": own})

    @property
    def notes(self) -> list[str]:
        """The call that makes the same network in timm, and what the image size makes of it."""
        notes = [f"{self.name}: built by timm.{call(self.model, self.arguments)}"]
        if self.grid is not None:
            rows, columns = self.grid
            few = "" if rows * columns >= FEW else f", which is few: {self._cure()}"
            notes.append(f"{self.name}: {rows} x {columns} places in the last map at {self.image.size} px{few}")
        if self.config.pretrained:
            mean, std = (self.timm.pretrained_cfg[key] for key in ("mean", "std"))
            notes.append(f"{self.name}: its weights were trained on images normalised with mean {mean}, std {std}")
        return notes

    def _cure(self) -> str:
        """How to get more places."""
        smaller = "a smaller backbone.patch_size or " if "patch_size" in self.accepted else ""
        return f"{smaller}a larger image_size gives more"


class TimmTokenBackbone(TimmBackbone, TokenBackbone):
    """A plain vision transformer of timm, whose patch tokens can be selected and masked.

    Raises:
        ConfigError: an option makes something else of it.
    """

    def __init__(self, config: Any, image: ImageSpec) -> None:
        super().__init__(config, image)
        self.patch_size = self.timm.patch_embed.patch_size[0]

    def _adopt(self, network: Any) -> None:
        if not has_plain_tokens(network):
            raise ConfigError(
                f"backbone.options: they make a {type(network).__name__} of {self.model}, which is no plain ViT any "
                f"more, so its patch tokens cannot be selected. Leave out {', '.join(self.config.options)}."
            )
        super()._adopt(network)

    def features(
        self,
        images: Tensor,
        *,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        token: Tensor | None = None,
    ) -> Features:
        """Tokens as timm gives them. Masked patches are replaced before positions are added, `keep` selects after."""
        x, grid = self._embedded(images, keep, mask, token)
        return self._read(self.timm.blocks(x), grid)

    def layers(self, images: Tensor, last: int) -> list[Features]:
        """The features after each of the last blocks, all by the final norm."""
        depth = len(self.timm.blocks)
        if not 1 <= last <= depth:
            raise ConfigError(f"layers: {self.name} has {depth} blocks; expected 1 to {depth}, got {last}.")
        (x, grid), states = self._embedded(images), []
        for block in self.timm.blocks:
            states.append(x := block(x))
        return [self._read(state, grid) for state in states[-last:]]

    def _embedded(
        self, images: Tensor, keep: Tensor | None = None, mask: Tensor | None = None, token: Tensor | None = None
    ) -> tuple[Tensor, tuple[int, int] | None]:
        """All tokens (B, prefix + N, D) before the first block, and the grid where all patches are there."""
        net = self.timm
        with self._explained(images):
            x = net.patch_embed(images)  # (B, rows, columns, D), or (B, N, D) without dynamic_img_size
            if mask is not None:
                assert token is not None, "a mask needs the token that replaces patches"
                x = torch.where(mask.reshape(*x.shape[:-1], 1), token, x)
            x = net._pos_embed(x)  # (B, prefix + N, D): class token and registers come first
        first = net.num_prefix_tokens
        if keep is not None:
            x = torch.cat([x[:, :first], take(x[:, first:], keep)], 1)
        x = net.norm_pre(net.patch_drop(x))
        rows, columns = net.patch_embed.dynamic_feat_size(images.shape[2:])
        whole = keep is None and x.shape[1] - first == rows * columns  # patch_drop_rate of timm leaves some out
        return x, (rows, columns) if whole else None

    def _read(self, x: Tensor, grid: tuple[int, int] | None) -> Features:
        """The features in tokens (B, prefix + N, D) that come out of a block."""
        net, x = self.timm, self.timm.norm(x)
        first = x[:, 0] if net.has_class_token else None
        return Features(net.forward_head(x, pre_logits=True), x[:, net.num_prefix_tokens :], grid, first)

    def attention(self, images: Tensor) -> Tensor | None:
        """The class token's attention in the last block; None where patches are pooled, or the block has another."""
        attend = self.timm.blocks[-1].attn
        if self.timm.global_pool != "token" or not all(hasattr(attend, part) for part in ("qkv", "q_norm", "k_norm")):
            return None
        seen: list[Tensor] = []
        with attend.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
            grid = self.features(images).grid
        if grid is None:
            return None
        tokens = seen[0]  # (B, prefix + N, D), normalised
        parts = attend.qkv(tokens).reshape(*tokens.shape[:2], 3, attend.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = attend.q_norm(parts[0]), attend.k_norm(parts[1])
        weights: Tensor = (q @ k.transpose(-2, -1) * attend.scale).softmax(-1)
        return weights[:, :, 0, self.timm.num_prefix_tokens :].reshape(*weights.shape[:2], *grid)


def _refuse_shared(model: str, network: nn.Module) -> None:
    """Weights under two names (CoaT's positions): the files of a run hold each tensor once."""
    names: dict[int, str] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) in names:
            raise ConfigError(
                f"backbone: {model} of timm has the same weights under two names, {names[id(tensor)]} and {name}, "
                "which the files of a run cannot hold. Choose another backbone."
            )
        names[id(tensor)] = name


def _refuse_parts(model: str, network: Any, size: int, accepted: frozenset[str]) -> None:
    """Images that are no whole number of patches: timm lays out positions for those within the image alone.

    Smaller views are padded without a question, since positions are interpolated for them anyway.
    """
    embed = getattr(network, "patch_embed", None)
    if not isinstance(embed, PatchEmbed) or size % embed.patch_size[0] == 0:
        return
    patch = embed.patch_size[0]
    sizes = sorted({max(size // patch, 1) * patch, -(-size // patch) * patch})
    cures = [f"set image_size to {' or '.join(map(str, sizes))}"]
    if "patch_size" in accepted and (fitting := [str(side) for side in range(2, patch) if size % side == 0]):
        cures.append(f"set backbone.patch_size to {' or '.join(fitting)}")
    if "dynamic_img_pad" in accepted:
        cures.append("have images padded: backbone.options.dynamic_img_pad=true")
    raise ConfigError(
        f"train.image_size: {size} px are no multiple of {patch} px, the side of a patch of {model}. "
        f"To mend it, {'; or '.join(cures)}."
    )


def _places(network: Any, x: Any, images: Tensor) -> tuple[Tensor | None, tuple[int, int] | None]:
    """What `forward_features` gave as (B, N, D) and grid, where its layout is known; row-major."""
    if isinstance(x, Tensor) and x.ndim == 4:
        if getattr(network, "output_fmt", "NCHW") == "NHWC":
            x = x.permute(0, 3, 1, 2)
        return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])
    embed = getattr(network, "patch_embed", None)
    if isinstance(x, Tensor) and x.ndim == 3 and isinstance(embed, PatchEmbed):
        rows, columns = embed.dynamic_feat_size((images.shape[2], images.shape[3]))
        patches = x[:, getattr(network, "num_prefix_tokens", 0) :]
        if patches.shape[1] == rows * columns:
            return patches, (rows, columns)
    return None, None
