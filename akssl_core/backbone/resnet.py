"""ResNets (He et al. 2016, arXiv 1512.03385): torchvision's with a stem that fits the image size, and a narrow one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from ..config.schema import Schema
from ..data.base import ImageSpec
from .base import Backbone, Counterpart, Features, Keys

SMALL = 64  # px; up to here the ImageNet stem, which divides the side by 4 at once, leaves too little


_IN_A_ROW = ((r"^0\.(?=\w+$)", "conv1."), (r"^1\.(?=\w+$)", "bn1."))
_SHORTCUT = (r"\.shortcut\.", ".downsample.")
DIALECTS = (
    (*_IN_A_ROW, *((rf"^{stage + 3}\.", f"layer{stage}.") for stage in range(1, 5))),  # torchvision's children
    (*_IN_A_ROW, *((rf"^{stage + 1}\.", f"layer{stage}.") for stage in range(1, 5)), _SHORTCUT),  # lightly's own
    (_SHORTCUT,),
    (
        (r"^embedder\.embedder\.", ""),
        *((rf"^encoder\.stages\.{stage - 1}\.layers\.", f"layer{stage}.") for stage in range(1, 5)),
        (r"\.shortcut\.convolution\.", ".downsample.0."),
        (r"\.shortcut\.normalization\.", ".downsample.1."),
        (r"^convolution\.", "conv1."),
        (r"^normalization\.", "bn1."),
        *((rf"\.layer\.{n - 1}\.convolution\.", f".conv{n}.") for n in range(1, 4)),
        *((rf"\.layer\.{n - 1}\.normalization\.", f".bn{n}.") for n in range(1, 4)),
    ),  # Hugging Face
)  # parts of key names elsewhere and what they are here


class ConvBackbone(Backbone):
    """A network with the parts and key names of torchvision's ResNet, without `fc`."""

    conv1: nn.Conv2d
    bn1: nn.Module
    relu: nn.Module
    maxpool: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    @property
    def keys(self) -> Keys:
        """Those of networks put in a row, of lightly's own ResNet and of Hugging Face."""
        return Keys(DIALECTS, first="conv1.weight")

    def features(self, images: Tensor) -> Features:
        """The average of the last map (B, D), and the map itself as patches."""
        # ReLU after the pooling is the same to the last bit, gradients too, on a quarter of the values.
        x = self.relu(self.maxpool(self.bn1(self.conv1(images))))
        return map_features(self.layer4(self.layer3(self.layer2(self.layer1(x)))))


def map_features(x: Tensor) -> Features:
    """The features in a last map (B, D, h, w)."""
    return Features(x.mean((2, 3)), x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3]))


def new_conv(channels: int, width: int, size: int, stride: int) -> nn.Conv2d:
    """A convolution with 'same' padding and without bias, initialised as torchvision does."""
    conv = nn.Conv2d(channels, width, size, stride, size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class ResNet(ConvBackbone):
    """A ResNet of torchvision. Its state dict loads into torchvision's model of that name with the same stem."""

    class Config(Schema):
        """Settings of the ResNets."""

        stem: Literal["auto", "imagenet", "cifar"] = Field(
            "auto",
            description="imagenet: 7x7 convolution of stride 2 and max-pool; cifar: 3x3 of stride 1, no max-pool; "
            f"auto: cifar up to {SMALL} px",
        )
        zero_init_residual: bool = Field(False, description="start with residual branches that add nothing")

    def __init__(self, config: Config, image: ImageSpec) -> None:
        super().__init__(config, image)
        from torchvision.models import resnet  # here, because it takes a second and most commands build nothing

        net: Any = getattr(resnet, self.name)(zero_init_residual=config.zero_init_residual)
        self.embed_dim: int = net.fc.in_features
        self.small_stem = config.stem == "cifar" or (config.stem == "auto" and image.size <= SMALL)
        if self.small_stem:
            net.conv1, net.maxpool = new_conv(image.channels, 64, 3, 1), nn.Identity()
        elif image.channels != 3:
            net.conv1 = new_conv(image.channels, 64, 7, 2)
        for part in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            self.add_module(part, getattr(net, part))

    def counterpart(self, library: str) -> Counterpart | None:
        """The model of this name, in both libraries, with the parts of the stem that are not ImageNet's put in."""
        channels, state = self.image.channels, self.export_state()
        if library == "timm" and not self.small_stem:
            own = {"num_classes": 0, "in_chans": channels}
            return Counterpart.in_timm(self.name, own, state, first_conv="conv1", classifier="fc")
        if library == "torchvision":
            lines = [f"model = torchvision.models.{self.name}(); model.fc = torch.nn.Identity()"]
            lines += _stem(channels, 7) if channels != 3 and not self.small_stem else []
        elif library == "timm":
            lines = [f'model = timm.create_model("{self.name}", num_classes=0, in_chans={channels})']
        else:
            return None
        lines += [*_stem(channels, 3), "model.maxpool = torch.nn.Identity()"] if self.small_stem else []
        return Counterpart(("torch", library), tuple(lines), state)

    @property
    def notes(self) -> list[str]:
        """Which stem was chosen, and why."""
        if self.config.stem != "auto":
            return []
        if self.small_stem:
            return [f"{self.name}: cifar stem (3x3, no max-pool), because {self.image.size} px is at most {SMALL} px"]
        return [f"{self.name}: imagenet stem (7x7, max-pool), because {self.image.size} px is over {SMALL} px"]


def _stem(channels: int, size: int) -> list[str]:
    """The statement that gives `model` a first convolution of this size; the large one halves the side."""
    stride = 1 if size == 3 else 2
    return [f"model.conv1 = torch.nn.Conv2d({channels}, 64, {size}, {stride}, {size // 2}, bias=False)"]


def _torchvision(kind: str, name: str, about: str) -> type[ResNet]:
    """The class of the ResNet that torchvision makes under a name."""
    return type(kind, (ResNet,), {"name": name, "__doc__": about})


ResNet18 = _torchvision("ResNet18", "resnet18", "18 layers, 512 features, 11.2 M parameters.")
ResNet34 = _torchvision("ResNet34", "resnet34", "34 layers, 512 features, 21.3 M parameters.")
ResNet50 = _torchvision("ResNet50", "resnet50", "50 layers, 2048 features, 23.5 M parameters.")
ResNet101 = _torchvision("ResNet101", "resnet101", "101 layers, 2048 features, 42.5 M parameters.")
ResNet152 = _torchvision("ResNet152", "resnet152", "152 layers, 2048 features, 58.1 M parameters.")
_WIDE = "50 layers with bottlenecks twice as wide, 2048 features, 66.8 M parameters (arXiv 1605.07146)."
WideResNet50 = _torchvision("WideResNet50", "wide_resnet50_2", _WIDE)
_GROUPED = "50 layers of 32 groups 4 wide, 2048 features, 23.0 M parameters (arXiv 1611.05431)."
ResNeXt50 = _torchvision("ResNeXt50", "resnext50_32x4d", _GROUPED)


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
        width_in, zero_init = config.widths[0], config.zero_init_residual
        self.embed_dim = config.widths[-1]
        self.conv1 = new_conv(image.channels, width_in, 3, config.stem_stride)
        self.bn1 = nn.BatchNorm2d(width_in)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity()
        for number, (width, count) in enumerate(zip(config.widths, config.blocks, strict=True), 1):
            first = Block(width_in, width, 1 if number == 1 else 2, zero_init=zero_init)
            others = (Block(width, width, 1, zero_init=zero_init) for _ in range(count - 1))
            self.add_module(f"layer{number}", nn.Sequential(first, *others))
            width_in = width
