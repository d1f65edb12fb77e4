"""Networks of timm begin from weights under timm's key names and those of other libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from akssl_core import ConfigError, Stock, load_weights

FOREIGN = json.loads((Path(__file__).parent / "foreign_keys.json").read_text())  # made by tests/foreign_weights.py


def images(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def filled(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    draw, tensors = torch.Generator().manual_seed(0), {}
    for name in sorted(shapes):
        noise = 0.05 * torch.randn(shapes[name], generator=draw)
        tensors[name] = (
            torch.tensor(0) if name.endswith("num_batches_tracked") else noise + name.endswith("running_var")
        )
    return tensors


def stock(network: Any) -> dict[str, Tensor]:
    tensors = filled({name: list(tensor.shape) for name, tensor in network.state_dict().items()})
    network.load_state_dict(tensors)
    network.eval()
    return tensors


def assert_same(tensors: dict[str, Tensor], backbone: Any, expected: Tensor, size: int) -> None:
    account = load_weights(tensors, backbone)
    backbone.eval()
    with torch.no_grad():
        torch.testing.assert_close(backbone(images(size)), expected, atol=1e-5, rtol=0)
    assert set(account.loaded) | set(account.adapted) == set(backbone.export_state())


@pytest.mark.parametrize(
    "model", ["resnet18", "convnext_atto", "vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"]
)
def test_timm_itself(build: Any, model: str) -> None:
    arguments = {"img_size": 56 if "14" in model else 64} if model.startswith("vit") else {}
    size = arguments.get("img_size", 64)
    network = timm.create_model(model, num_classes=10, **arguments)
    tensors = stock(network)
    network.reset_classifier(0)
    with torch.no_grad():
        expected = network(images(size))
    assert_same(tensors, build(model, size), expected, size)


def test_the_base_vision_transformer_of_torchvision(build: Any) -> None:
    network = torchvision.models.vit_b_16(image_size=32)
    tensors = stock(network)
    network.heads = nn.Identity()
    with torch.no_grad():
        expected = network(images(32))
    assert_same(tensors, build("vit_base_patch16_224", 32), expected, 32)


@pytest.mark.parametrize("title", FOREIGN)
def test_networks_of_hugging_face(build: Any, title: str) -> None:
    case = FOREIGN[title]
    shapes = {
        name.replace("{}", str(i)): [int(side) for side in shape.split()]
        for name, shape in case["keys"].items()
        for i in range(12 if "{}" in name else 1)
    }
    backbone = build(case["backbone"].removeprefix("timm/"), case["size"], **case["settings"])
    account = load_weights(filled(shapes), backbone)
    backbone.eval()
    with torch.no_grad():
        found = backbone(images(case["size"]))[0, :12]
    torch.testing.assert_close(found, torch.tensor(case["features"]), atol=1e-5, rtol=0)
    assert not account.missing


def test_the_keys_that_dinov2_was_published_under(build: Any) -> None:
    source = build("vit_small_patch14_dinov2", 56)
    tensors = filled({name: list(tensor.shape) for name, tensor in source.export_state().items()})
    load_weights(tensors, source)
    tensors = {name.replace("blocks.", "blocks.0.", 1): tensor for name, tensor in tensors.items()}  # in chunks
    source.eval()
    with torch.no_grad():
        expected = source(images(56))
    published = tensors | {"mask_token": torch.ones(1, 384)}
    assert_same(published, build("vit_small_patch14_dinov2", 56), expected, 56)


def test_positions_of_another_size_are_those_that_timm_makes(build: Any) -> None:
    tensors = stock(timm.create_model("vit_tiny_patch16_224", num_classes=0))
    resized = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=96).eval()
    resized.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(dict(tensors), resized))
    with torch.no_grad():
        expected = resized(images(96))
    assert_same(tensors, build("vit_tiny_patch16_224", 96), expected, 96)


def test_published_weights_come_with_their_normalisation(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: network if k.get("pretrained") else create(*a, **k))
    found = type(build("vit_tiny_patch16_224", 32)).stock()
    assert isinstance(found, Stock)
    assert found.mean == found.std == (0.5, 0.5, 0.5)
    assert found.tensors.keys() == network.state_dict().keys()


def test_weights_of_another_network_are_refused(build: Any) -> None:
    with pytest.raises(ConfigError, match="the weights are not those of this backbone"):
        load_weights(stock(timm.create_model("resnet18")), build("convnext_atto", 64))
