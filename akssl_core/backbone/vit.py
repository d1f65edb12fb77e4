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
from ..nn import sincos, take
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


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        q, k, v = self._queries_keys_values(x)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out

    def weights(self, x: Tensor) -> Tensor:
        """How much each of the N tokens attends to each: (B, heads, N, N), rows sum to 1."""
        q, k, _ = self._queries_keys_values(x)
        weights: Tensor = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        return weights

    def _queries_keys_values(self, x: Tensor) -> tuple[Tensor, ...]:
        """Each (B, heads, N, d)."""
        parts: Tensor = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return parts.unbind()


class MLP(nn.Module):
    """The two linear layers of a block."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch for some images of a batch (Huang et al. 2016, arXiv 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """The branch (B, N, D), zero for a share `rate` of the images and scaled up for the others."""
        if not self.training or self.rate == 0:
            return x
        keep = x.new_empty(len(x), 1, 1).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class Block(nn.Module):
    """Attention and MLP, each on normalised tokens and with a shortcut."""

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, 4 * width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class ViT(TokenBackbone):
    """A vision transformer with a class token and a position for each patch.

    Its state dict loads into timm's `vit_<name>_patch<p>` made with `num_classes=0` for the same image size
    (with `fc_norm=False` where `pool` is "mean", and `num_heads` where `heads` is set).

    Raises:
        ConfigError: `heads` does not divide the width.
    """

    width: ClassVar[int]
    heads: ClassVar[int]
    depth: ClassVar[int] = 12

    class Config(Schema):
        """Settings of the vision transformers."""

        patch_size: PositiveInt | Literal["auto"] = Field(
            "auto", description=f"side in px; auto: 16, or 4 up to {SMALL} px"
        )
        pool: Literal["cls", "mean"] = Field("cls", description="pooled features: class token, or mean of the patches")
        drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of the last block, rising from 0")
        positions: Literal["learned", "sincos"] = Field(
            "learned", description="learned from random ones, or fixed sines and cosines of row and column (MoCo v3)"
        )
        heads: PositiveInt | None = Field(
            None, description="attention heads of a block, a divisor of the width; null: width / 64 (MoCo v3: 12)"
        )
        init: Literal["normal", "xavier"] = Field(
            "normal",
            description="first weights: truncated normal of 0.02, or Xavier's uniform for linear layers (q, k and v "
            "apart) and patches (MoCo v3)",
        )

    def __init__(self, config: Config, image: ImageSpec) -> None:
        super().__init__(config, image)
        self.embed_dim = self.width
        self.patch_size = config.patch_size if config.patch_size != "auto" else 4 if image.size <= SMALL else 16
        side = -(-image.size // self.patch_size)
        self.grid = (side, side)
        self.patch_embed = PatchEmbed(image.channels, self.width, self.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, self.width))
        rates = [config.drop_path * i / (self.depth - 1) for i in range(self.depth)]
        heads = config.heads or self.heads
        if self.width % heads:
            possible = ", ".join(str(n) for n in range(1, self.width // 8 + 1) if self.width % n == 0)
            raise ConfigError(f"backbone.heads: {heads} must divide the width of {self.width}; {possible} do.")
        self.blocks = nn.Sequential(*(Block(self.width, heads, rate) for rate in rates))
        self.norm = nn.LayerNorm(self.width, eps=1e-6)
        self._initialise()

    def _initialise(self) -> None:
        """Truncated normal of 0.02 but for the patch projection, which keeps the default of its fan-in; or Xavier's."""
        xavier = self.config.init == "xavier"
        nn.init.trunc_normal_(self.cls_token, std=1e-6 if xavier else 0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for name, module in self.named_modules():
            if xavier and isinstance(module, nn.Linear | nn.Conv2d):
                _xavier(module, parts=3 if name.endswith("qkv") else 1)
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if self.config.positions == "sincos":
            self.pos_embed.requires_grad_(False)
            self.pos_embed[:, :1] = 0.0
            self.pos_embed[:, 1:] = sincos(self.grid, self.width)

    @property
    def keys(self) -> Keys:
        """Those of torchvision and Hugging Face; timm's, DINO's and MoCo v3's are its own."""
        return Keys(TOKEN_DIALECTS, "patch_embed.proj.weight", "pos_embed", 1, self.grid, "cls_token")

    def features(
        self,
        images: Tensor,
        *,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        token: Tensor | None = None,
    ) -> Features:
        """Normalised tokens. Masked patches are replaced before positions are added, `keep` selects after that."""
        x, grid = self.patch_embed(images)
        if mask is not None:
            assert token is not None, "a mask needs the token that replaces patches"
            x = torch.where(mask[..., None], token, x)
        x = x + self.positions(grid)
        if keep is not None:
            x = take(x, keep)
        x = self.norm(self.blocks(self._after_class_token(x)))
        pooled = x[:, 0] if self.config.pool == "cls" else x[:, 1:].mean(1)
        return Features(pooled, x[:, 1:], None if keep is not None else grid)

    def attention(self, images: Tensor) -> Tensor | None:
        """The class token's attention to the patches in the last block (Caron et al. 2021, arXiv 2104.14294, fig. 1).

        None where patches are pooled, since the class token is not trained then.
        """
        if self.config.pool != "cls":
            return None
        x, grid = self.patch_embed(images)
        x = self.blocks[:-1](self._after_class_token(x + self.positions(grid)))
        last: Any = self.blocks[-1]
        weights: Tensor = last.attn.weights(last.norm1(x))
        return weights[:, :, 0, 1:].reshape(*weights.shape[:2], *grid)

    def _after_class_token(self, patches: Tensor) -> Tensor:
        """(B, N, D) -> (B, 1 + N, D)."""
        count = patches.shape[0]  # not len(patches), which a tracer takes for a constant
        first = (self.cls_token + self.pos_embed[:, :1]).expand(count, -1, -1)
        return torch.cat([first, patches], 1)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The positions (1, N, D) of a grid of patches, interpolated where it is not the one of training."""
        own = self.pos_embed[:, 1:]
        if grid == self.grid:
            return own
        rows, columns = (_bicubic(size, out, own) for size, out in zip(self.grid, grid, strict=True))
        return torch.einsum("hi,wj,bijd->bhwd", rows, columns, own.reshape(1, *self.grid, -1)).flatten(1, 2)

    def counterpart(self, library: str) -> Counterpart | None:
        """Timm's ViT of this width, and torchvision's `VisionTransformer` where it can do the same.

        The latter pools by the class token alone and pads nothing.
        """
        heads, mean, whole = self.config.heads or self.heads, self.config.pool == "mean", self.grid[0] * self.patch_size
        if library == "timm":
            arguments: dict[str, object] = {"num_classes": 0, "img_size": whole, "patch_size": self.patch_size}
            arguments |= {"in_chans": self.image.channels} if self.image.channels != 3 else {}
            arguments |= {"num_heads": heads} if heads != self.heads else {}
            arguments |= {"global_pool": "avg", "fc_norm": False} if mean else {}
            arguments |= {"dynamic_img_size": True, "dynamic_img_pad": True} if whole != self.image.size else {}
            name = f"{self.name}_patch16_224"
            listed = ", ".join([f'"{name}"', *(f"{key}={_quoted(value)}" for key, value in arguments.items())])
            return Counterpart(("timm",), (f"model = timm.create_model({listed})",), self.export_state())
        if library != "torchvision" or mean or whole != self.image.size:
            return None
        size, patch, width = self.image.size, self.patch_size, self.width
        sizes = f"{size}, {patch}, {self.depth}, {heads}, {width}, {4 * width}"
        lines = [f"model = torchvision.models.VisionTransformer({sizes}); model.heads = torch.nn.Identity()"]
        if self.image.channels != 3:
            lines.append(f"model.conv_proj = torch.nn.Conv2d({self.image.channels}, {width}, {patch}, {patch})")
        state = {torchvision_key(key): tensor for key, tensor in self.export_state().items()}
        return Counterpart(("torch", "torchvision"), tuple(lines), state)

    @property
    def notes(self) -> list[str]:
        """The patch size, if it was chosen, and padding, if there is any."""
        notes, size = [], self.image.size
        if self.config.patch_size == "auto":
            relation = "at most" if size <= SMALL else "over"
            notes.append(f"{self.name}: patches of {self.patch_size} px, because {size} px is {relation} {SMALL} px")
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


def _quoted(value: object) -> str:
    """A value as Python code, texts in double quotes."""
    return f'"{value}"' if isinstance(value, str) else repr(value)


@torch.no_grad()
def _xavier(layer: nn.Linear | nn.Conv2d, parts: int = 1) -> None:
    """Glorot and Bengio's uniform weights for a layer as a matrix, or as several below one another; a bias of zeros."""
    for matrix in layer.weight.flatten(1).chunk(parts):
        nn.init.xavier_uniform_(matrix)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _bicubic(size: int, out: int, like: Tensor) -> Tensor:
    """Weights (out, size) of bicubic interpolation along one side.

    As a matrix, because the gradient of torch's interpolation is not deterministic on CUDA.
    """
    identity = torch.eye(size, device=like.device, dtype=like.dtype)[None, None]
    return F.interpolate(identity, size=(out, size), mode="bicubic", align_corners=False)[0, 0]


class ViTTiny(ViT):
    """192 wide, 12 deep, 3 heads: 5.4 M parameters."""

    name = "vit_tiny"
    width, heads = 192, 3


class ViTSmall(ViT):
    """384 wide, 12 deep, 6 heads: 21.5 M parameters."""

    name = "vit_small"
    width, heads = 384, 6
