"""A narrow ResNet for small images, fast enough to learn something on a CPU in minutes."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from ..config import Schema
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


class ResNetTiny(ConvBackbone):
    """One block a stage, 32 to 256 wide, with a 3x3 stem of stride 1 and no max-pool."""

    name = "resnet_tiny"
    widths: ClassVar[tuple[int, ...]] = (32, 64, 128, 256)

    class Config(Schema):
        """Settings of the tiny ResNet."""

        zero_init_residual: bool = Field(False, description="start with residual branches that add nothing")

    def __init__(self, config: Config, image: ImageSpec) -> None:
        super().__init__(config, image)
        width_in = self.widths[0]
        self.embed_dim = self.widths[-1]
        self.conv1 = new_conv(image.channels, width_in, 3, 1)
        self.bn1 = nn.BatchNorm2d(width_in)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity()
        for stage, width in enumerate(self.widths, 1):
            block = Block(width_in, width, 1 if stage == 1 else 2, zero_init=config.zero_init_residual)
            self.add_module(f"layer{stage}", nn.Sequential(block))
            width_in = width
