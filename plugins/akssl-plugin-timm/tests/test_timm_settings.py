"""Settings, what they are refused for, and weights to start from."""

from __future__ import annotations

import pytest
import timm
import torch
from akssl_plugin_timm.backbone import TimmBackbone
from safetensors.torch import save_file

from akssl_core import ConfigError

VIT = {"patch_size": 8}


# -- settings --------------------------------------------------------------------------------------
def test_options_reach_the_model(build):
    assert len(build("vit_tiny_patch16_224", **VIT, options={"depth": 2}).blocks) == 2
    assert build("test_resnet", options={"stem_width": 8}).embed_dim == 96


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (
            "test_vit",
            {"options": {"dept": 3}},
            "options: test_vit of timm has no argument 'dept'. Did you mean 'depth'",
        ),
        ("test_resnet", {"options": {"nothing": 1}}, "test_resnet of timm has no argument 'nothing'.*block_args"),
        ("poolformerv2_s12", {"options": {"nothing": 1}}, "poolformerv2_s12 of timm has no argument 'nothing'"),
        ("test_resnet", {"options": {"num_classes": 5}}, "options.num_classes: leave it out; a backbone has no class"),
        ("test_vit", {"options": {"img_size": 64}}, "options.img_size: leave it out; it is train.image_size"),
        ("test_vit", {"pool": "avg", "options": {"global_pool": "max"}}, "set either this or backbone.pool"),
        ("test_vit", {"options": {"use_naflex": True}}, "make a NaFlexVit of test_vit.*Leave out use_naflex"),
        ("test_vit", {"options": {"depth": "x"}}, r"gives no backbone.*check what you chose for it \(depth\)"),
        ("test_resnet", {"patch_size": 8}, "backbone.patch_size: test_resnet of timm has no patch_size. Leave"),
        ("vgg11", {"drop_path": 0.1}, "backbone.drop_path: vgg11 of timm has no drop_path_rate. Leave"),
        ("test_resnet", {"pool": "token"}, r"gives no backbone.*check what you chose for it \(global_pool\)"),
        ("test_vit", {"patch_size": 0}, "patch_size: should be greater than 0"),
        ("test_vit", {"drop_path": 1.0}, "drop_path: should be less than 1"),
        ("test_vit", {"patchsize": 8}, "unknown setting 'patchsize'. Did you mean 'patch_size'"),
    ],
)
def test_a_bad_setting_is_named(build, model, settings, message):
    with pytest.raises(ConfigError, match=message):
        build(model, **settings)


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (
            "test_vit",
            20,
            "20 px are no multiple of 16 px.*set image_size to 16 or 32; or set backbone.patch_size to 2 or",
        ),
        ("test_vit", 20, "4 or 5 or 10; or have images padded: backbone.options.dynamic_img_pad=true"),
        ("swin_s3_tiny_224", 30, "set image_size to 28 or 32; or set backbone.patch_size to 2 or 3\\.$"),
        ("inception_v3", 32, "Kernel size can't be greater.*set image_size to 299, for which it was made; or choose"),
        ("akssl_headless", 32, "'pre_logits'. To mend it, choose another backbone"),
        ("coat_lite_tiny", 64, "the same weights under two names.*Choose another backbone"),
    ],
)
def test_images_that_a_model_cannot_take_are_refused_with_a_cure(build, model, size, message):
    with pytest.raises(ConfigError, match=message):
        build(model, size)


def test_notes_say_what_the_network_is_and_what_the_image_size_makes_of_it(build):
    call = "timm.create_model('vit_tiny_patch16_224', num_classes=0, in_chans=3, img_size=32"
    assert build("vit_tiny_patch16_224").notes == [
        f"timm/vit_tiny_patch16_224: built by {call}, dynamic_img_size=True, dynamic_img_pad=True, drop_path_rate=0.0)",
        "timm/vit_tiny_patch16_224: 2 x 2 places in the last map at 32 px, which is few: "
        "a smaller backbone.patch_size or a larger image_size gives more",
    ]
    assert build("vit_tiny_patch16_224", patch_size=4).notes[1].endswith("8 x 8 places in the last map at 32 px")
    small = build("test_resnet").notes[1]
    assert small.endswith("1 x 1 places in the last map at 32 px, which is few: a larger image_size gives more")


# -- weights ---------------------------------------------------------------------------------------
def test_weights_of_timm_are_the_start_where_they_are_asked_for(build, pictures, tmp_path):
    source = timm.create_model("test_vit", num_classes=0, img_size=32)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    overlay = {"file": str(tmp_path / "weights.safetensors"), "num_classes": 0}
    ours = build("test_vit", pretrained=True, options={"pretrained_cfg_overlay": overlay})
    assert torch.equal(ours(pictures()), source.eval()(pictures()))
    assert "its weights were trained on images normalised with mean (0.5, 0.5, 0.5)" in ours.notes[-1]


def test_files_of_weights_hold_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    options = {"pretrained_cfg_overlay": {"file": "w.safetensors", "url": "x"}, "cache_dir": "~/weights", "depth": 3}
    stored = TimmBackbone.Config(options=options).options
    assert stored["pretrained_cfg_overlay"] == {"file": str(tmp_path / "w.safetensors"), "url": "x"}
    assert (stored["cache_dir"], stored["depth"]) == ("/home/somebody/weights", 3)


def test_weights_that_cannot_be_had_are_the_users_to_mend(build, tmp_path):
    overlay = {"file": str(tmp_path / "missing.safetensors")}
    with pytest.raises(ConfigError, match="the weights of test_vit could not be loaded: .*set pretrained to false"):
        build("test_vit", pretrained=True, options={"pretrained_cfg_overlay": overlay})
    with pytest.raises(ConfigError, match="timm has no weights for resnetblur18. Set pretrained to false"):
        build("resnetblur18", pretrained=True)
    with pytest.raises(ConfigError, match="no argument 'dept'"):
        build("test_vit", pretrained=True, options={"dept": 3})
