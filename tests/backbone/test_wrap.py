from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from akssl_core.backbone import WrappedBackbone
from akssl_core.data.base import ImageSpec
from akssl_core.errors import ConfigError

IMAGE = ImageSpec(32, 3, (0.5,) * 3, (0.2,) * 3)


class Tokens(nn.Module):
    """A module that returns tokens, and draws random numbers even in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, 7)."""
        return self.linear(x.flatten(2).transpose(1, 2)) + torch.rand(1)


class Pair(nn.Module):
    """A module that returns no tensor."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The images twice."""
        return x, x


def conv(width: int = 5) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.Dropout(0.5))


@pytest.mark.parametrize(
    ("module", "width", "grid"),
    [
        (conv(), 5, (15, 15)),
        (nn.Sequential(conv(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 5, None),
        (Tokens(), 7, None),
        (models.resnet18(), 1000, None),
    ],
    ids=["map", "features", "tokens", "classifier"],
)
def test_the_width_is_found(module, width, grid):
    backbone = WrappedBackbone(module, IMAGE)
    assert backbone.embed_dim == width
    found = backbone.features(torch.randn(4, 3, 32, 32))
    assert found.pooled.shape == (4, width)
    assert found.grid == grid


def test_maps_and_tokens_are_averaged():
    images = torch.randn(4, 3, 32, 32)
    module = conv().eval()
    torch.testing.assert_close(WrappedBackbone(module, IMAGE)(images), module(images).mean((2, 3)))
    found = WrappedBackbone(Tokens(), IMAGE).features(images)
    torch.testing.assert_close(found.pooled, found.patches.mean(1))
    assert found.patches.shape == (4, 1024, 7)


def test_wrapping_leaves_the_module_as_it_was():
    module = nn.Sequential(conv(), nn.Identity())
    module[0][1].eval()  # a batch norm that its owner has frozen
    before = {key: value.clone() for key, value in module.state_dict().items()}
    WrappedBackbone(module, IMAGE)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert [m.training for m in module.modules()] == [True, True, True, False, True, True]
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_a_module_that_draws_random_numbers_does_not_move_the_generator():
    module = Tokens()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    WrappedBackbone(module, IMAGE)
    assert torch.equal(torch.rand(1), expected)


def test_the_exported_state_is_the_users_own():
    module = conv()
    backbone = WrappedBackbone(module, IMAGE)
    assert backbone.export_state().keys() == module.state_dict().keys()
    conv().load_state_dict(backbone.export_state())
    assert all(key.startswith("module.") for key in backbone.state_dict())


def test_every_parameter_gets_a_gradient():
    backbone = WrappedBackbone(conv(), IMAGE)
    backbone(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_notes_say_what_was_found():
    assert WrappedBackbone(conv(), IMAGE).notes == [
        "Sequential: features are 5 wide (its output is (5, 15, 15) per image, averaged over places)"
    ]
    assert WrappedBackbone(nn.Flatten(), IMAGE).notes == [
        "Flatten: features are 3072 wide (its output is (3072,) per image)"
    ]


def test_a_module_for_other_images_is_refused():
    with pytest.raises(ConfigError) as error:
        WrappedBackbone(nn.Conv2d(1, 4, 3), IMAGE)
    message = str(error.value)
    assert message.startswith(
        "backbone: the forward pass of Conv2d with images of shape (2, 3, 32, 32) failed: RuntimeError:"
    )
    assert message.endswith("Pass a module that takes float images (B, C, H, W) of this size, or set image_size.")


@pytest.mark.parametrize(("module", "found"), [(Pair(), "a tuple"), (nn.Flatten(0), "shape (6144,)")])
def test_a_module_that_returns_something_else_is_refused(module, found):
    with pytest.raises(ConfigError) as error:
        WrappedBackbone(module, IMAGE)
    assert f"with images of shape (2, 3, 32, 32) returned {found}. Expected features (B, D)," in str(error.value)
