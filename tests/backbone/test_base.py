from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from akssl_core.backbone import READY_MADE, akssl_register, default_backbone
from akssl_core.backbone.base import Backbone, TokenBackbone
from akssl_core.config.schema import validate
from akssl_core.data.base import ImageSpec
from akssl_core.errors import ConfigError

BY_NAME = {component.name: component for component in READY_MADE}
FAST = ["resnet18", "resnet50", "resnet_tiny", "vit_tiny"]


def image(size: int = 32, channels: int = 3) -> ImageSpec:
    return ImageSpec(size, channels, (0.5,) * channels, (0.2,) * channels)


def build(name: str, size: int = 32, channels: int = 3, **settings) -> Backbone:
    torch.manual_seed(0)
    component = BY_NAME[name]
    return component(validate(component.Config, settings, registry=None), image(size, channels))


def images(size: int = 32, channels: int = 3, count: int = 2) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(size))


# -- every backbone -------------------------------------------------------------------------------
def test_registers_every_backbone():
    class Names(list):
        add = list.append

    names = Names()
    akssl_register(registry=names)
    assert sorted(component.name for component in names) == [
        "resnet101", "resnet152", "resnet18", "resnet34", "resnet50", "resnet_tiny", "resnext50_32x4d", "vit_base",
        "vit_micro", "vit_small", "vit_tiny", "wide_resnet50_2",
    ]  # fmt: skip


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (8, 13), (32, 3)])
def test_every_parameter_gets_a_gradient_at_any_channels_and_size(name, channels, size):
    backbone = build(name, size, channels)
    backbone(images(size, channels, count=4)).square().sum().backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in backbone.parameters())


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("size", [8, 20, 64, 224])
def test_features_have_the_promised_shapes(name, size):
    backbone = build(name, size).eval()
    with torch.no_grad():
        found = backbone.features(images(size, count=1))
    assert found.pooled.shape == (1, backbone.embed_dim)
    assert found.patches.shape == (1, found.grid[0] * found.grid[1], backbone.embed_dim)


@pytest.mark.parametrize("name", FAST)
def test_other_sizes_and_shapes_than_the_one_of_training(name):
    backbone = build(name, 32).eval()
    with torch.no_grad():
        for height, width in ((16, 16), (48, 48), (24, 40)):
            found = backbone.features(torch.randn(2, 3, height, width))
            assert found.pooled.shape == (2, backbone.embed_dim)
            assert found.patches.shape[1] == found.grid[0] * found.grid[1]
            assert (found.grid[0] < found.grid[1]) == (height < width)


@pytest.mark.parametrize("name", FAST)
def test_patches_are_row_major(name):
    backbone = build(name, 64).eval()
    changed = images(64, count=1)
    changed[..., 48:, :16] += 3  # the lower left corner
    with torch.no_grad():
        before, after = (backbone.features(x) for x in (images(64, count=1), changed))
    rows, columns = before.grid
    moved = (after.patches - before.patches).norm(dim=2)[0].reshape(rows, columns)
    assert moved[rows - 1, 0] > 3 * moved[0, columns - 1]


@pytest.mark.parametrize("name", ["resnet18", "resnet_tiny", "vit_tiny"])
def test_state_goes_through_a_round_trip(name):
    backbone = build(name).eval()
    torch.manual_seed(1)
    other = BY_NAME[name](backbone.config, backbone.image).eval()
    other.load_state_dict(backbone.export_state())
    assert torch.equal(other(images()), backbone(images()))


@pytest.mark.parametrize("name", ["resnet18", "resnet_tiny", "vit_tiny"])
def test_the_same_seed_gives_the_same_weights(name):
    first, second = build(name).state_dict(), build(name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("accepts", "size", "name"),
    [
        (Backbone, 32, "resnet_tiny"),
        (Backbone, 64, "resnet_tiny"),
        (Backbone, 96, "resnet18"),
        (TokenBackbone, 32, "vit_tiny"),
    ],
)
def test_default_backbone(accepts, size, name):
    found, reason = default_backbone(accepts, size)
    assert found == name
    assert reason
    assert issubclass(BY_NAME[found], accepts)


# -- residual networks ----------------------------------------------------------------------------
def plain(name: str, channels: int = 3, *, small: bool) -> nn.Module:
    """Torchvision's model without its classifier; with the stem for small images where that is asked for."""
    model = getattr(models, name)()
    width = model.conv1.out_channels
    if small:
        model.conv1, model.maxpool = nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.Identity()
    elif channels != 3:
        model.conv1 = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
    model.fc = nn.Identity()
    return model.eval()


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
@pytest.mark.parametrize(
    ("stem", "size", "channels"), [("imagenet", 96, 3), ("cifar", 32, 3), ("auto", 32, 1), ("auto", 96, 5)]
)
def test_exported_weights_give_the_same_features_in_torchvision(name, stem, size, channels):
    backbone = build(name, size, channels, stem=stem)
    backbone(images(size, channels))  # moves the running statistics
    model = plain(name, channels, small=size == 32)
    model.load_state_dict(backbone.export_state())
    with torch.no_grad():
        mine, torchvisions = backbone.eval()(images(size, channels)), model(images(size, channels))
    torch.testing.assert_close(mine, torchvisions, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in BY_NAME if "res" in name and "tiny" not in name])
def test_keys_are_those_of_torchvision(name):
    with torch.device("meta"):
        backbone = BY_NAME[name](BY_NAME[name].Config(), image(224))
        model = getattr(models, name)()
    expected = {key: value.shape for key, value in model.state_dict().items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in backbone.export_state().items()} == expected
    assert backbone.embed_dim == model.fc.in_features


@pytest.mark.parametrize(
    ("size", "stem", "stride", "note"),
    [
        (64, "auto", 1, "resnet18: cifar stem (3x3, no max-pool), because 64 px is at most 64 px"),
        (65, "auto", 2, "resnet18: imagenet stem (7x7, max-pool), because 65 px is over 64 px"),
        (224, "cifar", 1, None),
        (32, "imagenet", 2, None),
    ],
)
def test_the_stem_and_its_reason(size, stem, stride, note):
    backbone = build("resnet18", size, stem=stem)
    assert backbone.conv1.stride == (stride, stride)
    assert backbone.notes == ([note] if note else [])


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet_tiny"])
def test_zero_init_residual_makes_blocks_pass_their_input(name):
    def last_norms(**settings) -> list[float]:
        last = "bn3" if name == "resnet50" else "bn2"
        modules = build(name, **settings).named_modules()
        return [float(m.weight.detach().abs().sum()) for n, m in modules if n.endswith(last)]

    assert set(last_norms(zero_init_residual=True)) == {0.0}
    assert min(last_norms(zero_init_residual=False)) > 0


def test_a_setting_with_a_wrong_value_is_refused():
    with pytest.raises(ConfigError, match=r"stem: should be 'auto', 'imagenet' or 'cifar', got 'small'"):
        build("resnet18", stem="small")


def test_the_tiny_network_as_it_comes():
    tiny = build("resnet_tiny", 32)
    assert sum(p.numel() for p in tiny.parameters()) == 307_536
    assert tiny.features(images(32)).grid == (4, 4)
    assert tiny.conv1.stride == (1, 1)


def test_the_tiny_network_can_be_made_larger():
    tiny = build("resnet_tiny", 32, widths=[8, 8, 16, 24], blocks=[2, 1, 1, 3], stem_stride=1)
    found = tiny.features(images(32))
    assert found.pooled.shape == (2, 24)
    assert found.grid == (4, 4)
    assert [len(getattr(tiny, f"layer{i}")) for i in (1, 2, 3, 4)] == [2, 1, 1, 3]


def test_the_tiny_network_has_torchvisions_key_names():
    reference = models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1])
    assert set(build("resnet_tiny").export_state()) == {k for k in reference.state_dict() if not k.startswith("fc.")}
