"""A narrow ResNet for small images, fast enough to learn something on a CPU in minutes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from ..config.schema import Schema
from ..data.base import ImageSpec
from .resnet import ConvBackbone, new_conv


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, with the key names of torchvision's BasicBlock."""

    def __init__(self, width_in: int, width: int, stride: int, *, zero_init: bool) -> None:
        super().__init__()
        self.conv1 = new_conv(width_in, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = new_conv(width, width, 3, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.downsample = nn.Sequential(new_conv(width_in, width, 1, stride), nn.BatchNorm2d(width))
        if zero_init:
            nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width_in, h, w) -> (B, width, h / stride, w / stride)."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu(y + self.downsample(x))
        return out


def _stage(width_in: int, width: int, count: int, stride: int, *, zero_init: bool) -> nn.Sequential:
    """So many blocks, of which the first changes width and side."""
    first = Block(width_in, width, stride, zero_init=zero_init)
    return nn.Sequential(first, *(Block(width, width, 1, zero_init=zero_init) for _ in range(count - 1)))


Width = Annotated[int, Field(gt=0, le=8192)]
Count = Annotated[int, Field(gt=0, le=256)]


class ResNetTiny(ConvBackbone):
    """Four stages of 3x3 blocks behind a 3x3 stem without max-pool: 0.3 M parameters and 128 features as it comes.

    Narrow, since at full resolution the first stage costs as much as the rest; a stem of stride 2 affords twice the
    width at the same speed, and learned less from small objects.
    """

    name = "resnet_tiny"

    class Config(Schema):
        """Settings of the tiny ResNet."""

        widths: tuple[Width, Width, Width, Width] = Field(
            (16, 32, 64, 128), description="channels of each stage; the last are the features"
        )
        blocks: tuple[Count, Count, Count, Count] = Field((1, 1, 1, 1), description="residual blocks in each stage")
        stem_stride: Literal[1, 2] = Field(1, description="1 keeps the side at the stem, 2 halves it")
        zero_init_residual: bool = Field(False, description="start with residual branches that add nothing")

    def __init__(self, config: Config, image: ImageSpec) -> None:
        super().__init__(config, image)
        width_in = config.widths[0]
        self.embed_dim = config.widths[-1]
        self.conv1 = new_conv(image.channels, width_in, 3, config.stem_stride)
        self.bn1 = nn.BatchNorm2d(width_in)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity()
        for number, (width, count) in enumerate(zip(config.widths, config.blocks, strict=True), 1):
            stage = _stage(width_in, width, count, 1 if number == 1 else 2, zero_init=config.zero_init_residual)
            self.add_module(f"layer{number}", stage)
            width_in = width
