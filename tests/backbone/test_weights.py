"""Weights of other libraries: each tensor accounted for, the same features, and what becomes of other sizes."""

from __future__ import annotations

import json

import pytest
import torch
from foreign_weights import FILES, expanded, filled, images
from torch import nn
from torchvision.models import VisionTransformer, resnet50

from akssl_core.backbone.weights import for_channels, gray_error, load_weights, resized
from akssl_core.config.schema import validate
from akssl_core.data.base import ImageSpec
from akssl_core.errors import ConfigError
from akssl_core.plugins.manager import Plugins

PLUGINS = Plugins()
FOREIGN, OF_TIMM = (json.loads(FILES[place].read_text()) for place in ("core", "timm"))


def build(name, size, channels=3, **settings):
    component = PLUGINS.get("backbone", name)
    image = ImageSpec(size, channels, (0.5,) * channels, (0.5,) * channels)
    return component(validate(component.Config, settings, registry=None), image).eval()


def randomised(network):
    network.load_state_dict(filled({name: tensor.shape for name, tensor in network.state_dict().items()}))
    return network.eval()


def assert_same(tensors, backbone, expected, size):
    account = load_weights(tensors, backbone)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images(size))[:, : expected.shape[1]], expected, atol=1e-5, rtol=0)
    assert set(account.loaded) | set(account.adapted) == set(backbone.export_state())
    return account


@pytest.fixture(scope="module")
def convnet():
    """A stock network, its features of images of 96 px and its weights."""
    network = randomised(resnet50())
    body = nn.Sequential(*list(network.children())[:-1])
    with torch.no_grad():
        return network.state_dict(), body.state_dict(), body(images(96)).flatten(1)


def under(prefix, tensors, factor=1):
    return {prefix + name: tensor * factor for name, tensor in tensors.items()}


@pytest.mark.parametrize("origin", ["torchvision", "mocov2", "simclr", "lightly", "byol"])
def test_a_convolutional_network_of_each_origin(convnet, origin):
    plain, row, features = convnet
    one = torch.ones(1)
    tensors = {
        "torchvision": plain,
        "mocov2": under("module.encoder_k.", plain, 2) | under("module.encoder_q.", plain)
        | {"module.encoder_q.fc.0.weight": one, "module.queue": one, "module.queue_ptr": one},
        "simclr": under("state_dict.convnet.", plain) | {"state_dict.projection_head.0.weight": one},
        "lightly": under("backbone_momentum.", row, 2) | under("backbone.", row) | {"prediction_head.0.weight": one},
        "byol": under("target_encoder.", plain, 2) | under("online_encoder.", plain) | {"predictor.0.bias": one},
    }[origin]  # fmt: skip
    account = assert_same(tensors, build("resnet50", 96), features, 96)
    assert len(account.loaded) + len(account.left_out) == len(tensors)


def test_a_vision_transformer_of_torchvision():
    network = VisionTransformer(64, 16, 12, 3, 192, 768)
    tensors = randomised(network).state_dict()
    network.heads = nn.Identity()
    with torch.no_grad():
        expected = network(images(64))
    assert_same(tensors, build("vit_tiny", 64, patch_size=16), expected, 64)


@pytest.mark.parametrize(
    "pair", [("teacher.backbone.", "student.module.backbone."), ("module.base_encoder.", "module.momentum_encoder.")]
)
def test_of_a_momentum_pair_the_product_is_taken(pair):
    source, backbone = randomised(build("vit_tiny", 64, patch_size=16)), build("vit_tiny", 64, patch_size=16)
    with torch.no_grad():
        expected = source(images(64))
    first, second = pair
    tensors = (
        under(second, source.state_dict(), 2) | under(first, source.state_dict()) | {"dino_loss.center": torch.ones(2)}
    )
    account = assert_same(tensors, backbone, expected, 64)
    assert set(account.left_out.values()) == {"the other network of a pair", "state of a method"}


@pytest.mark.parametrize("title", FOREIGN)
def test_networks_of_hugging_face(title):
    case = FOREIGN[title]
    backbone = build(case["backbone"], case["size"], **case["settings"])
    account = load_weights(filled(expanded(case["keys"])), backbone)
    with torch.no_grad():
        torch.testing.assert_close(
            backbone(images(case["size"]))[0, :12], torch.tensor(case["features"]), atol=1e-5, rtol=0
        )
    assert not account.missing


@pytest.mark.parametrize(("title", "registers"), [("Dinov2Model", 0), ("Dinov2WithRegistersModel", 4)])
def test_dinov2_with_and_without_registers(title, registers):
    case = next(case for name, case in OF_TIMM.items() if name.endswith(title))
    settings = {"patch_size": 14, "layer_scale": 1e-5, "registers": registers}
    account = load_weights(filled(expanded(case["keys"])), backbone := build("vit_small", case["size"], **settings))
    with torch.no_grad():
        found = backbone(images(case["size"]))[0, :12]
    torch.testing.assert_close(found, torch.tensor(case["features"]), atol=1e-5, rtol=0)
    assert not account.missing
    assert account.left_out.keys() == {"embeddings.mask_token"}
    assert len(account.adapted) == (registers > 0), "the position of the class token was added to it"
    with pytest.raises(ConfigError, match="have no place" if registers else "of the network have none, 'reg_token'"):
        load_weights(filled(expanded(case["keys"])), build("vit_small", 56, **settings | {"registers": 4 - registers}))


# -- other sizes ------------------------------------------------------------------------------------
@pytest.mark.parametrize(("channels", "total"), [(1, 6), (3, 6), (4, 6), (13, 6)])
def test_other_channels_respond_to_gray_as_before(channels, total):
    kernel = torch.tensor([1.0, 2, 3]).reshape(1, 3, 1, 1)
    found = for_channels(kernel, channels)
    assert found.shape == (1, channels, 1, 1)
    assert found.sum().item() == pytest.approx(total)


@pytest.mark.parametrize("sizes", [(16, 8), (16, 4), (8, 16), (7, 3), (3, 7)])
def test_another_size_of_the_first_convolution_responds_to_gray_as_before(sizes):
    kernel = torch.randn(5, 3, sizes[0], sizes[0], generator=torch.Generator().manual_seed(0))
    assert gray_error(kernel, resized(kernel, (sizes[1], sizes[1]))) < 1e-6


def test_a_larger_patch_responds_to_enlarged_images_as_before():
    kernel, image = (
        torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(n), dtype=torch.double) for n in (0, 1)
    )
    large = nn.functional.interpolate(image, size=(16, 16), mode="bicubic", antialias=True)
    before, after = (
        torch.einsum("dchw,bchw->bd", a.double(), b) for a, b in ((kernel, image), (resized(kernel, (16, 16)), large))
    )
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize(
    ("name", "size", "settings"),
    [
        ("vit_tiny", 96, {"patch_size": 16}),
        ("vit_tiny", 32, {"patch_size": 8}),
        ("resnet18", 96, {}),
        ("resnet18", 32, {}),
    ],
)
def test_networks_for_other_images_keep_what_the_first_layer_says_of_gray(name, size, settings, channels):
    source = randomised(build(name, 224, **({"patch_size": 16} if settings else {})))
    target = build(name, size, channels, **settings)
    account = load_weights(source.state_dict(), target)
    first = target.keys.first
    before, after = (net.export_state()[first].sum((1, 2, 3)) for net in (source, target))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    assert f"3 -> {channels} channels" in account.adapted[first]
    assert "response to gray as before" in account.adapted[first]
    assert set(account.adapted) == {first, *(["pos_embed"] if settings else [])}


def test_positions_keep_the_class_token_and_a_constant():
    source = build("vit_tiny", 224, patch_size=16).state_dict()
    source["pos_embed"] = torch.cat([torch.full((1, 1, 192), 3.0), torch.full((1, 196, 192), 2.0)], 1)
    target = build("vit_tiny", 96, patch_size=16)
    account = load_weights(source, target)
    assert account.adapted == {"pos_embed": "14 x 14 -> 6 x 6 patches, bicubic"}
    assert torch.equal(target.pos_embed[:, 0], source["pos_embed"][:, 0])
    torch.testing.assert_close(target.pos_embed[:, 1:], torch.full((1, 36, 192), 2.0))


@pytest.mark.parametrize("prefix", ["one", "one."])
def test_a_prefix_may_leave_out_its_last_dot(prefix):
    state = build("resnet_tiny", 32).state_dict()
    both = {**under("one.", state), **under("two.", state, 2)}
    assert load_weights(both, build("resnet_tiny", 32), prefix=prefix).loaded
    with pytest.raises(ConfigError, match="begins with the prefix 'ona'; they begin with 'one.', 'two.'"):
        load_weights(both, build("resnet_tiny", 32), prefix="ona")
    with pytest.raises(ConfigError, match="no tensor of the file begins with the prefix 'on'"):
        load_weights(both, build("resnet_tiny", 32), prefix="on")


# -- refusals ---------------------------------------------------------------------------------------
def changed(**tensors):
    state = build("resnet_tiny", 32).state_dict()
    return {name: value for name, value in {**state, **tensors}.items() if value is not None}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            changed(**{"layer5.0.conv1.weight": torch.ones(2)}),
            r"1 tensors of the file have no place, 'layer5.0.conv1.weight' first",
        ),
        (changed(**{"layer1.0.fc.weight": torch.ones(2)}), "'layer1.0.fc.weight' first"),
        (
            changed(**{"bn1.weight": None, "bn1.wieght": torch.ones(16)}),
            r"'bn1.weight' first.*'bn1.wieght' first. Did you mean 'bn1.weight'",
        ),
        (changed(**{"bn1.weight": torch.ones(7)}), r"'bn1.weight' is of shape \(7,\) in the file, expected \(16,\)"),
        (changed(**{"bn1.weight": torch.full((16,), torch.nan)}), "'bn1.weight' are not finite numbers"),
        (
            changed(**{"bn1.weight": torch.full((16,), 1e300, dtype=torch.float64)}),
            "'bn1.weight' are not finite numbers",
        ),
        (
            changed(**{"bn1.weight": torch.ones(16, dtype=torch.int8)}),
            r"'bn1.weight' are torch.int8\. Expected floating",
        ),
        (changed(**{"conv1.weight": torch.ones(16, 0, 3, 3)}), "'conv1.weight' is of shape"),
        ({}, "72 of 72 tensors of the network have none|tensors of the network have none"),
        (
            under("one.", changed()) | under("two.", changed()),
            r"start: the file holds 2 networks.*'one.', 'two.'.*start.prefix",
        ),
    ],
)
def test_what_is_unaccounted_for_is_refused(tensors, message):
    backbone = build("resnet_tiny", 32)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        load_weights(tensors, backbone)
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())


def test_a_named_network_of_several_is_taken():
    backbone = build("resnet_tiny", 32)
    state = under("one.", changed(), 2) | under("two.", changed())
    account = load_weights(state, backbone, prefix="two.")
    assert torch.equal(backbone.conv1.weight, state["two.conv1.weight"])
    assert set(account.left_out.values()) == {"outside of start.prefix"}


def test_counters_may_be_missing():
    state = {name: tensor for name, tensor in changed().items() if not name.endswith("num_batches_tracked")}
    account = load_weights(state, build("resnet_tiny", 32))
    assert set(account.missing.values()) == {"begins at 0"}
