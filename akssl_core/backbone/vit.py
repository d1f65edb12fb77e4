"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929) under timm's key names."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.schema import Schema
from ..data.base import ImageSpec
from ..errors import ConfigError
from ..nn import Trunk, initialise, sincos, take
from ..nn.transformer import DropKind, FirstWeights
from .base import Counterpart, Features, Keys, TokenBackbone

SMALL = 64  # px; up to here patches of 16 px would leave at most 16 tokens


class PatchEmbed(nn.Module):
    """Images to patch tokens by one linear map."""

    def __init__(self, channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, width, patch_size, patch_size)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, C, H, W) -> tokens (B, N, D) and their grid; sides are padded with zeros to whole patches."""
        height, width = images.shape[2:]
        right, bottom = -width % self.patch_size, -height % self.patch_size
        x = self.proj(F.pad(images, (0, right, 0, bottom)) if right or bottom else images)
        return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])


class ViT(TokenBackbone):
    """A vision transformer with a position for each patch, after a class token and registers where it has them.

    Its state dict loads into timm's `vit_<name>_patch<p>` made with `num_classes=0` for the same image size
    (with `fc_norm=False` where `pool` is "mean", and the settings that differ from that network's).

    Raises:
        ConfigError: `heads` does not divide the width, or there is no class token to be pooled.
    """

    width: ClassVar[int]
    heads: ClassVar[int]
    depth: ClassVar[int] = 12
    small_patch: ClassVar[int] = 4
    in_timm: ClassVar[tuple[str, int, int, int]]
    """The network of timm that it is made of, and that one's width, depth and heads."""
    cls_token: nn.Parameter | None
    reg_token: nn.Parameter | None

    class Config(Schema):
        """Settings of the vision transformers."""

        patch_size: PositiveInt | Literal["auto"] = Field(
            "auto",
            description=f"side in px; auto: 16, or 4 (vit_micro: 8, or the next divisor of the side) up to {SMALL} px",
        )
        pool: Literal["cls", "mean", "both"] = Field(
            "cls", description="pooled features: class token, mean of the patches, or both side by side"
        )
        drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of the last block, rising from 0")
        drop_path_shape: Literal["linear", "uniform"] = Field(
            "linear", description="uniform: stochastic depth of every block is that of the last (DINOv2)"
        )
        drop_path_kind: DropKind = Field(
            "sample",
            description="each image's branches are dropped by themselves, or computed for a random subset (DINOv2)",
        )
        positions: Literal["learned", "sincos"] = Field(
            "learned", description="learned from random ones, or fixed sines and cosines of row and column (MoCo v3)"
        )
        width: int | None = Field(None, ge=8, le=8192, description="channels of a token; null: as the name says")
        depth: int | None = Field(None, ge=1, le=256, description="blocks; null: as the name says")
        heads: PositiveInt | None = Field(
            None,
            description="attention heads of a block, a divisor of the width; null: width / 64 (vit_micro: 32; MoCo v3: "
            "12 heads)",
        )
        mlp_ratio: float = Field(4.0, ge=0.25, le=32, description="hidden width of a block's MLP / width")
        class_token: bool = Field(True, description="false: patches alone, which are pooled by their mean (I-JEPA)")
        registers: int = Field(0, ge=0, le=256, description="learned tokens that stand for no patch (arXiv 2309.16588)")
        layer_scale: float | None = Field(
            None, gt=0, le=1, description="first factor of each branch's channels (DINOv2: 1e-5); null: no factors"
        )
        init: FirstWeights = Field(
            "normal",
            description="first weights: truncated normal of 0.02, or Xavier's uniform for linear layers and patches, "
            "with q, k and v apart (MoCo v3) or joint (MAE)",
        )

    def __init__(self, config: Config, image: ImageSpec) -> None:
        super().__init__(config, image)
        width = self.token_dim
        self.embed_dim = 2 * width if config.pool == "both" else width
        self.patch_size = config.patch_size if config.patch_size != "auto" else self._patch_for(image.size)
        side = -(-image.size // self.patch_size)
        self.grid = (side, side)
        self.prefix = int(config.class_token) + config.registers
        self.before = int(config.class_token and not config.registers)  # with registers as in timm: none for the token
        self._refuse()
        self.patch_embed = PatchEmbed(image.channels, width, self.patch_size)
        token = nn.Parameter(torch.zeros(1, 1, width)) if config.class_token else None
        self.register_parameter("cls_token", token)
        registers = nn.Parameter(torch.zeros(1, config.registers, width)) if config.registers else None
        self.register_parameter("reg_token", registers)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.before + side * side, width))
        self.blocks = Trunk(
            width,
            config.depth or self.depth,
            self._heads,
            mlp_ratio=config.mlp_ratio,
            layer_scale=config.layer_scale,
            drop_path=config.drop_path,
            drop_path_shape=config.drop_path_shape,
            drop_path_kind=config.drop_path_kind,
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self._initialise()

    @classmethod
    def _patch_for(cls, size: int) -> int:
        return cls.small_patch if size <= SMALL else 16

    @property
    def _heads(self) -> int:
        return self.config.heads or max(1, self.token_dim // (self.width // self.heads))

    def _refuse(self) -> None:
        """Refuse settings that do not fit together."""
        heads, width = self._heads, self.token_dim
        if width % heads:
            possible = ", ".join(str(n) for n in range(1, width // 8 + 1) if width % n == 0)
            raise ConfigError(f"backbone.heads: {heads} must divide the width of {width}; {possible} do.")
        if self.config.positions == "sincos" and width % 4:
            raise ConfigError(f"backbone.width: {width} must be a multiple of 4 for positions of sines and cosines.")
        if not self.config.class_token and self.config.pool != "mean":
            raise ConfigError(
                f"backbone.pool: '{self.config.pool}' takes the class token, which backbone.class_token: false leaves "
                "out. Set backbone.pool to mean."
            )

    def _initialise(self) -> None:
        """Truncated normal of 0.02 but for the patch projection, which keeps the default of its fan-in; or Xavier's."""
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=1e-6 if self.config.init == "xavier" else 0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.reg_token is not None:
            nn.init.normal_(self.reg_token, std=1e-6)
        initialise(self, self.config.init)
        if self.config.positions == "sincos":
            self.pos_embed.requires_grad_(False)
            self.pos_embed[:, : self.before] = 0.0
            self.pos_embed[:, self.before :] = sincos(self.grid, self.token_dim)

    @property
    def token_dim(self) -> int:
        """The width D of class token and patches."""
        return self.config.width or self.width

    @property
    def keys(self) -> Keys:
        """Those of torchvision and Hugging Face; timm's, DINO's and MoCo v3's are its own."""
        token = "cls_token" if self.config.class_token else ""
        return Keys(TOKEN_DIALECTS, "patch_embed.proj.weight", "pos_embed", self.before, self.grid, token)

    def features(
        self,
        images: Tensor,
        *,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        token: Tensor | None = None,
    ) -> Features:
        """Normalised tokens. Masked patches are replaced before positions are added, `keep` selects after that."""
        x, grid = self._embedded(images, keep, mask, token)
        return self._read(self.blocks(x), grid)

    def layers(self, images: Tensor, last: int) -> list[Features]:
        """The features after each of the last blocks, all by the final norm."""
        depth = len(self.blocks)
        if not 1 <= last <= depth:
            raise ConfigError(f"layers: {self.name} has {depth} blocks; expected 1 to {depth}, got {last}.")
        x, grid = self._embedded(images)
        return [self._read(state, grid) for state in self.blocks.states(x, last)]

    def attention(self, images: Tensor) -> Tensor | None:
        """The class token's attention to the patches in the last block (Caron et al. 2021, arXiv 2104.14294, fig. 1).

        None where patches are pooled, since the class token is not trained then.
        """
        if self.config.pool == "mean":
            return None
        attend: Any = self.blocks[-1].attn
        seen: list[Tensor] = []
        with attend.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
            grid = self.features(images).grid
        assert grid is not None
        weights: Tensor = attend.weights(seen[0])[:, :, 0, self.prefix :]
        return weights.reshape(*weights.shape[:2], *grid)

    def _embedded(
        self, images: Tensor, keep: Tensor | None = None, mask: Tensor | None = None, token: Tensor | None = None
    ) -> tuple[Tensor, tuple[int, int] | None]:
        """All tokens (B, prefix + N, D) before the first block, and the grid of whole images."""
        x, grid = self.patch_embed(images)
        if mask is not None:
            assert token is not None, "a mask needs the token that replaces patches"
            x = torch.where(mask[..., None], token, x)
        x = x + self.positions(grid)
        if keep is not None:
            x = take(x, keep)
        return self._after_prefix(x), None if keep is not None else grid

    def _after_prefix(self, patches: Tensor) -> Tensor:
        """(B, N, D) -> (B, prefix + N, D): after class token and registers."""
        count = patches.shape[0]  # not len(patches), which a tracer takes for a constant
        first: list[Tensor] = []
        if self.cls_token is not None:
            first.append(self.cls_token + self.pos_embed[:, :1] if self.before else self.cls_token)
        if self.reg_token is not None:
            first.append(self.reg_token)
        return torch.cat([*(tokens.expand(count, -1, -1) for tokens in first), patches], 1)

    def _read(self, x: Tensor, grid: tuple[int, int] | None) -> Features:
        """The features in tokens (B, prefix + N, D) that come out of a block."""
        x = self.norm(x)
        patches, first = x[:, self.prefix :], x[:, 0] if self.config.class_token else None
        if first is None or self.config.pool == "mean":
            return Features(patches.mean(1), patches, grid, first)
        pooled = first if self.config.pool == "cls" else torch.cat([first, patches.mean(1)], 1)
        return Features(pooled, patches, grid, first)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The positions (1, N, D) of a grid of patches, interpolated where it is not the one of training."""
        own = self.pos_embed[:, self.before :]
        if grid == self.grid:
            return own
        rows, columns = (_bicubic(size, out, own) for size, out in zip(self.grid, grid, strict=True))
        return torch.einsum("hi,wj,bijd->bhwd", rows, columns, own.reshape(1, *self.grid, -1)).flatten(1, 2)

    def counterpart(self, library: str) -> Counterpart | None:
        """Timm's ViT of this width, and torchvision's `VisionTransformer` where it can do the same.

        The latter pools by the class token alone, has neither registers nor factors of branches, and pads nothing.
        Neither pools both ways at once.
        """
        config, whole = self.config, self.grid[0] * self.patch_size
        if library == "timm" and config.pool != "both":
            own = {"first_conv": "patch_embed.proj", "classifier": "head"}
            return Counterpart.in_timm(self.in_timm[0], self._in_timm(whole), self.export_state(), **own)
        special = config.registers or config.layer_scale is not None or config.pool != "cls"
        if library != "torchvision" or special or whole != self.image.size:
            return None
        size, patch, width = self.image.size, self.patch_size, self.token_dim
        sizes = f"{size}, {patch}, {len(self.blocks)}, {self._heads}, {width}, {int(width * config.mlp_ratio)}"
        lines = [f"model = torchvision.models.VisionTransformer({sizes}); model.heads = torch.nn.Identity()"]
        if self.image.channels != 3:
            lines.append(f"model.conv_proj = torch.nn.Conv2d({self.image.channels}, {width}, {patch}, {patch})")
        state = {torchvision_key(key): tensor for key, tensor in self.export_state().items()}
        return Counterpart(("torch", "torchvision"), tuple(lines), state)

    def _in_timm(self, whole: int) -> dict[str, object]:
        """Timm's arguments beside the name; images are padded to `whole` px."""
        config, (_, width, depth, heads) = self.config, self.in_timm
        arguments: dict[str, object] = {"num_classes": 0, "img_size": whole, "patch_size": self.patch_size}
        arguments |= {"in_chans": self.image.channels} if self.image.channels != 3 else {}
        arguments |= {"embed_dim": self.token_dim} if self.token_dim != width else {}
        arguments |= {"depth": len(self.blocks)} if len(self.blocks) != depth else {}
        arguments |= {"num_heads": self._heads} if self._heads != heads else {}
        arguments |= {"mlp_ratio": config.mlp_ratio} if config.mlp_ratio != 4 else {}
        arguments |= {"init_values": config.layer_scale} if config.layer_scale is not None else {}
        arguments |= {"class_token": False} if not config.class_token else {}
        arguments |= {"reg_tokens": config.registers, "no_embed_class": True} if config.registers else {}
        arguments |= {"global_pool": "avg", "fc_norm": False} if config.pool == "mean" else {}
        arguments |= {"dynamic_img_size": True, "dynamic_img_pad": True} if whole != self.image.size else {}
        return arguments

    @property
    def notes(self) -> list[str]:
        """The patch size, if it was chosen, and padding, if there is any."""
        notes, size = [], self.image.size
        if self.config.patch_size == "auto":
            relation = "at most" if size <= SMALL else "over"
            why = f"{size} px is {relation} {SMALL} px"
            if size <= SMALL and self.patch_size != self.small_patch:
                why += f" and no multiple of {self.small_patch}: {self.grid[0] * self.grid[1]} patches an image"
            notes.append(f"{self.name}: patches of {self.patch_size} px, because {why}")
        if size % self.patch_size:
            padded = self.grid[0] * self.patch_size
            notes.append(f"{self.name}: images are padded from {size} to {padded} px, whole patches")
        return notes


TORCHVISION = (
    ("cls_token", "class_token"),
    ("pos_embed", "encoder.pos_embedding"),
    ("patch_embed.proj.", "conv_proj."),
    ("norm.", "encoder.ln."),
    ("blocks.", "encoder.layers.encoder_layer_"),
    (".norm1.", ".ln_1."),
    (".norm2.", ".ln_2."),
    (".attn.qkv.", ".self_attention.in_proj_"),
    (".attn.proj.", ".self_attention.out_proj."),
    (".mlp.fc1.", ".mlp.0."),
    (".mlp.fc2.", ".mlp.3."),
)  # parts of timm's key names and what torchvision calls them


_FUSED = tuple(
    (rf"\.attention\.(?:attention\.)?{one}(?:uery|ey|alue|_proj)\.(\w+)$", rf".attn.qkv.\1#{part}")
    for part, one in enumerate("qkv")
)
TOKEN_DIALECTS = (
    (
        *((f"^{re.escape(there)}" if here[0] != "." else re.escape(there), here) for here, there in TORCHVISION),
        (r"\.mlp\.linear_1\.", ".mlp.fc1."),
        (r"\.mlp\.linear_2\.", ".mlp.fc2."),
    ),
    (
        (r"^embeddings\.patch_embeddings(?:\.projection)?\.", "patch_embed.proj."),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.register_tokens$", "reg_token"),
        (r"^embeddings\.", ""),
        (r"^(?:encoder\.|model\.)?layers?\.", "blocks."),
        (r"^(?:layernorm|norm)\.", "norm."),
        *_FUSED,
        (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.intermediate\.dense\.|\.mlp\.up_proj\.", ".mlp.fc1."),
        (r"(\d)\.output\.dense\.|(\d)\.mlp\.down_proj\.", r"\1\2.mlp.fc2."),
        (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    ),  # Hugging Face
    ((r"^register_tokens$", "reg_token"), (r"^blocks\.\d+\.(?=\d)", "blocks.")),  # DINOv2, its blocks in chunks or not
)  # parts of key names elsewhere and what timm calls them


def torchvision_key(key: str) -> str:
    """The key in torchvision's `VisionTransformer` of a weight by its key in timm's."""
    for timm, torchvision in TORCHVISION:
        if key.startswith(timm) or (timm.startswith(".") and timm in key):
            key = key.replace(timm, torchvision, 1)
    return key


def _bicubic(size: int, out: int, like: Tensor) -> Tensor:
    """Weights (out, size) of bicubic interpolation along one side.

    As a matrix, because the gradient of torch's interpolation is not deterministic on CUDA.
    """
    identity = torch.eye(size, device=like.device, dtype=like.dtype)[None, None]
    return F.interpolate(identity, size=(out, size), mode="bicubic", align_corners=False)[0, 0]


class ViTMicro(ViT):
    """128 wide, 4 deep, 4 heads, patches of 8 px for small images: 0.8 M parameters, for a CPU."""

    name = "vit_micro"
    width, depth, heads, small_patch = 128, 4, 4, 8
    in_timm = ("vit_tiny_patch16_224", 192, 12, 3)

    @classmethod
    def _patch_for(cls, size: int) -> int:
        """A divisor of small sides where one makes several patches: 8 px of a side of 32, 7 of 28, 4 of 8."""
        whole = (side for side in range(cls.small_patch, 1, -1) if size % side == 0 and size > side)
        return next(whole, cls.small_patch) if size <= SMALL else super()._patch_for(size)


class ViTTiny(ViT):
    """192 wide, 12 deep, 3 heads: 5.4 M parameters."""

    name = "vit_tiny"
    width, heads = 192, 3
    in_timm = ("vit_tiny_patch16_224", 192, 12, 3)


class ViTSmall(ViT):
    """384 wide, 12 deep, 6 heads: 21.5 M parameters."""

    name = "vit_small"
    width, heads = 384, 6
    in_timm = ("vit_small_patch16_224", 384, 12, 6)


class ViTBase(ViT):
    """768 wide, 12 deep, 12 heads: 85.6 M parameters."""

    name = "vit_base"
    width, heads = 768, 12
    in_timm = ("vit_base_patch16_224", 768, 12, 12)
