"""Timm's networks as backbones: their names, and the numbers, keys and state of timm."""

from __future__ import annotations

import copy
import socket
import subprocess
import sys
from typing import Any

import pytest
import timm
import torch

from akssl_core import Backbone, ImageSpec, Now, PluginError, Plugins, Schedule, TokenBackbone
from akssl_core import build as build_component
from akssl_core.nn import EMA

PLUGINS = Plugins()
VIT = {"patch_size": 8}


# -- names -----------------------------------------------------------------------------------------
def test_a_name_gives_one_class_and_is_spelled_as_timm_spells_it(build):
    found = Plugins().get("backbone", "timm/vit_tiny_patch16_224")
    assert issubclass(found, TokenBackbone)
    assert (found.kind, found.name) == ("backbone", "timm/vit_tiny_patch16_224")
    assert Plugins().get("backbone", "Timm/ViT-Tiny-Patch16-224") is found
    assert (found.__doc__ or "").startswith("vit_tiny_patch16_224 of timm: a VisionTransformer, 5.5 M parameters")


def test_only_plain_vision_transformers_are_token_backbones():
    def tokens(model: str) -> bool:
        found = PLUGINS.get("backbone", f"timm/{model}")
        assert issubclass(found, Backbone)
        return issubclass(found, TokenBackbone)

    assert all(map(tokens, ["test_vit", "test_vit4", "deit_tiny_patch16_224", "vit_base_patch16_siglip_224"]))
    others = ["test_resnet", "beit_base_patch16_224", "deit_tiny_distilled_patch16_224", "vit_tiny_r_s16_p8_224"]
    assert not any(map(tokens, others))


def test_a_tag_of_weights_is_part_of_the_name():
    assert PLUGINS.get("backbone", "timm/resnet18.A1_in1k").name == "timm/resnet18.a1_in1k"
    with pytest.raises(PluginError, match=r"no weights 'a9' of resnet18. It knows: .*'timm/resnet18.a1_in1k'"):
        PLUGINS.get("backbone", "timm/resnet18.a9")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "timm/resnet81",
            r"no backbone named 'timm/resnet81'. Did you mean 'timm/resnet18'.*list_models\('\*resnet\*'",
        ),
        ("timm/zzzzzz", r"An example is 'timm/resnet18'. timm .* has \d+ models; list them with: python -c"),
        ("timm/", "no backbone named 'timm/'.*list them with"),
        ("timm", "no backbone named 'timm/'.*list them with"),
        ("timm/vit_tiny_patch16_224_in21k", "timm calls it 'timm/vit_tiny_patch16_224.augreg_in21k' now"),
    ],
)
def test_an_unknown_model_is_refused_with_the_nearest_names(name, message):
    with pytest.raises(PluginError, match=message):
        PLUGINS.get("backbone", name)


def test_other_kinds_and_families_are_left_to_others():
    with pytest.raises(PluginError, match="no loss named 'timm/resnet18'"):
        PLUGINS.get("loss", "timm/resnet18")
    with pytest.raises(PluginError, match="no backbone named 'tim/resnet18'"):
        PLUGINS.get("backbone", "tim/resnet18")


def test_loading_the_plugin_imports_neither_timm_nor_torch():
    code = (
        "import sys; from akssl_core import Plugins; p = Plugins();"
        "[p.load(e) for e in p.entries if e.name == 'timm'];"
        "assert 'akssl_plugin_timm' in sys.modules and not p.failures, p.failures;"
        "print(sorted({'timm', 'torch', 'huggingface_hub'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_random_weights_need_no_network(build, monkeypatch):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert build("test_convnext", 64).embed_dim > 0


# -- the same network as timm's --------------------------------------------------------------------
MODELS = [
    ("test_resnet", 64, {}),
    ("resnet10t", 64, {}),
    ("convnext_atto", 64, {}),
    ("test_byobnet", 64, {}),
    ("test_efficientnet", 64, {}),
    ("test_vit", 48, {}),
    ("test_vit2", 32, {"patch_size": 4}),
    ("vit_tiny_patch16_224", 32, VIT),
    ("vit_tiny_patch16_224", 32, {**VIT, "pool": "avg"}),
    ("lcnet_050", 64, {}),  # its features are wider than num_features
    ("densenetblur121d", 64, {}),  # has a child named `features`
]


@pytest.mark.parametrize(("model", "size", "settings"), MODELS, ids=lambda value: str(value))
def test_features_and_keys_are_those_of_timm(build, pictures, model, size, settings):
    ours = build(model, size, **settings)
    more = {key: size for key in ["img_size"] if "vit" in model}
    more |= {"patch_size": settings["patch_size"]} if "patch_size" in settings else {}
    plain = timm.create_model(model, num_classes=0, **more, **{"global_pool": "avg"} if "pool" in settings else {})
    assert list(ours.export_state()) == list(plain.state_dict())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in plain.named_parameters()]
    plain.load_state_dict(ours.export_state())
    images = pictures(size)
    with torch.no_grad():
        seen = ours.features(images)
        torch.testing.assert_close(seen.pooled, plain.eval()(images))
        torch.testing.assert_close(ours(images), seen.pooled)
    assert seen.pooled.shape == (2, ours.embed_dim)
    if seen.patches is not None:
        assert seen.patches.shape == (2, seen.grid[0] * seen.grid[1], ours.embed_dim)


def test_the_last_map_is_given_row_by_row(build, pictures):
    images = pictures(64)
    for model in ("test_resnet", "swin_s3_tiny_224"):  # (B, D, h, w), and (B, h, w, D)
        ours = build(model, 64)
        with torch.no_grad():
            seen, x = ours.features(images), ours.timm.forward_features(images)
        assert seen.grid == (2, 2)
        second = x[:, :, 0, 1] if model == "test_resnet" else x[:, 0, 1]
        assert torch.equal(seen.patches[:, 1], second)
        torch.testing.assert_close(seen.patches.mean(1), seen.pooled)


def test_patches_are_left_out_where_they_are_narrower_than_the_features(build, pictures):
    seen = build("lcnet_050", 64).features(pictures(64))
    assert (seen.patches, seen.grid) == (None, None)


@pytest.mark.parametrize("channels", [1, 3, 13])
@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_any_number_of_channels(build, pictures, model, channels):
    assert build(model, 32, channels)(pictures(32, channels)).shape[0] == 2


@pytest.mark.parametrize("size", [16, 24, 40, 64, 96])
def test_sizes_from_16_to_96_px(build, pictures, size):
    vit, cnn = build("test_vit", size, patch_size=8), build("test_resnet", size)
    assert vit.features(pictures(size)).grid == (size // 8, size // 8)
    assert cnn.features(pictures(size)).grid == (-(-size // 32), -(-size // 32))


def test_training_mode_reaches_timms_own_module(build, pictures):
    ours = build("test_efficientnet", 32, options={"drop_rate": 0.5})
    images = pictures()
    ours.train()
    assert not torch.equal(ours(images), ours(images)), "its head drops features while it trains"
    assert not ours.eval().training
    assert torch.equal(ours.timm(images), ours(images))
    slow = EMA(Schedule(start=0.9), backbone=ours.train()).train()
    assert torch.equal(slow.backbone(images), slow.backbone(images)), "a target has no dropout"


def test_stochastic_depth_is_zero_unless_it_is_asked_for(build, pictures):
    images = pictures(32, count=8)
    still, deep = build("fasternet_t0", 32).train(), build("vit_tiny_patch16_224", **VIT, drop_path=0.5).train()
    assert not any(type(module).__name__ == "DropPath" for module in still.modules()), "timm's own rate is 0.02"
    assert not torch.equal(deep(images), deep(images))


# -- copies and state ------------------------------------------------------------------------------
@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_a_copy_is_a_network_of_its_own(build, pictures, model):
    ours = build(model)
    other = copy.deepcopy(ours)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    assert torch.equal(ours(pictures()), build(model)(pictures()))
    assert not torch.equal(other(pictures()), ours(pictures()))
    assert other.timm is not ours.timm
    assert {id(p) for p in other.parameters()} == {id(p) for p in other.timm.parameters()}


def test_conversions_reach_timms_own_module(build, pictures):
    ours = build("test_vit").double()
    assert ours(pictures().double()).dtype == torch.float64
    assert {p.dtype for p in ours.timm.parameters()} == {torch.float64}
    assert build("test_resnet").to(memory_format=torch.channels_last)(pictures()).shape == (2, 96)


def test_buffers_of_the_network_itself_are_kept_moved_and_copied_too(build, pictures):
    ours = build("akssl_buffered")
    assert ours.export_state().keys() == {"scale", "conv.weight", "conv.bias"}
    other = copy.deepcopy(ours).double()
    assert other.timm.scale.dtype == other(pictures().double()).dtype == torch.float64
    assert ours.timm.scale.dtype == torch.float32


def test_a_slow_copy_of_it_moves_with_it(build, pictures):
    ours = build("test_vit").train()
    slow = EMA(Schedule(start=0.0), backbone=ours)
    with torch.no_grad():
        ours.cls_token.add_(1)
    slow.after_step(Now(0, 1, 1))
    assert torch.equal(slow.backbone.timm.cls_token, ours.timm.cls_token)
    assert torch.equal(slow.backbone(pictures()), ours.eval()(pictures()))


def test_the_state_goes_back_in_under_its_own_keys(build, pictures):
    ours, other = build("test_vit"), build("test_vit")
    with torch.no_grad():
        other.timm.pos_embed.add_(1)
    other.load_state_dict(ours.state_dict())
    assert torch.equal(other(pictures()), ours(pictures()))
    with pytest.raises(RuntimeError, match="Unexpected key.*head.weight"):
        other.load_state_dict({**ours.state_dict(), "head.weight": torch.zeros(1)})


def test_every_parameter_learns(build, pictures):
    for model, size in (("test_resnet", 32), ("test_vit", 32), ("test_convnext", 32)):
        ours = build(model, size).train()
        ours(pictures(size, count=4)).square().sum().backward()
        assert [name for name, p in ours.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("settings", [{}, {"pool": "token"}, {"patch_size": 8, "options": {"depth": 2}}])
def test_the_counterpart_is_the_call_that_made_it(settings):
    image = ImageSpec(32, 3, (0.0,) * 3, (1.0,) * 3)
    backbone = build_component("backbone", "timm/vit_tiny_patch16_224", image, **settings).eval()
    found = backbone.counterpart("timm")
    names = {}
    exec("\n".join([f"import {', '.join(found.modules)}", *found.lines]), names)
    names["model"].load_state_dict(found.state)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(names["model"].eval()(images), backbone(images))
    assert backbone.counterpart("torchvision") is None
