"""Whole runs with networks of timm, and their files in plain timm."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

import akssl_core
from akssl_core import ConfigError, Now, Plugins, TokenBackbone

PLUGINS = Plugins()
IMAGES = torch.randint(0, 256, (32, 3, 32, 32), generator=torch.Generator().manual_seed(3)).to(torch.uint8)


def run(out: Any, method: str = "simsiam", **settings: Any) -> Any:
    given: dict[str, Any] = {
        "data": IMAGES,
        "backbone": "timm/test_resnet",
        "epochs": 2,
        "batch_size": 16,
        "image_size": 32,
        "device": "cpu",
        "precision": "fp32",
        "report": False,
        "train": {"checkpoint_every": 1, "deterministic": True},
    }
    return akssl_core.run(method, out=out, **{**given, **settings})


def test_a_run_trains_it_and_timm_loads_the_file(tmp_path):
    result = run(tmp_path / "run")
    images = result.preprocess(IMAGES[:4])
    features = result.backbone(images)
    assert features.shape == (4, 96)
    assert torch.equal(akssl_core.load_backbone(tmp_path / "run")(images), features)
    model = timm.create_model("test_resnet", num_classes=0)
    model.load_state_dict(load_file(tmp_path / "run" / "backbone.safetensors"))
    torch.testing.assert_close(model.eval()(images), features)


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole")
    method = PLUGINS.get("method", "simsiam")

    def stop(self: Any, now: Now) -> None:
        if now.step == 2:
            raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(method, "after_step", stop)
        with pytest.raises(RuntimeError, match="stopped"):
            run(tmp_path / "stopped")
    again = akssl_core.resume(tmp_path / "stopped", data=IMAGES, report=False)
    assert [row["loss"] for row in again.history] == [row["loss"] for row in whole.history]
    expected = whole.backbone.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in again.backbone.state_dict().items())


def test_a_vision_transformer_learns_from_crops_of_two_sizes(tmp_path):
    backbone = {"name": "timm/vit_tiny_patch16_224", "patch_size": 8, "options": {"depth": 2}}
    augmentation = {"name": "multicrop", "local_size": 14, "local_count": 2}
    result = run(tmp_path / "run", "dino", backbone=backbone, augmentation=augmentation, epochs=1)
    images = result.preprocess(IMAGES[:4])
    again = akssl_core.load_backbone(tmp_path / "run")
    assert isinstance(again, TokenBackbone)
    assert torch.equal(again(images), result.backbone(images))
    assert again.features(images).grid == (4, 4)


def test_a_run_with_a_bad_backbone_leaves_no_folder(tmp_path):
    with pytest.raises(ConfigError, match="backbone: no backbone named 'timm/resnet81'. Did you mean 'timm/resnet18'"):
        run(tmp_path / "run", backbone="timm/resnet81")
    with pytest.raises(ConfigError, match="set image_size to 299"):
        run(tmp_path / "run", backbone="timm/inception_v3")
    multicrop = {"name": "multicrop", "local_size": 16, "local_count": 2}
    with pytest.raises(ConfigError, match="cannot take views of 16 x 16 px"):
        run(tmp_path / "run", "dino", backbone="timm/test_vit_relpos", augmentation=multicrop)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("backbone", ["timm/test_convnext", {"name": "timm/test_vit", "options": {"depth": 2}}])
def test_a_run_is_published_for_timm(tmp_path, backbone):
    result = run(tmp_path / "run", backbone=backbone, epochs=1)
    done = akssl_core.publish(tmp_path / "run", tmp_path / "out")
    assert done.difference <= done.tolerance
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = result.preprocess(IMAGES[:4])
    torch.testing.assert_close(model(images), result.backbone(images))
    assert model.num_features == result.backbone.embed_dim
    with_head = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=3).state_dict()
    assert all(torch.equal(with_head[key], value) for key, value in model.state_dict().items())


def test_places_of_weights_are_no_part_of_a_published_network(build):
    found = build("test_vit", options={"depth": 2, "cache_dir": "/home/me/cache"}).counterpart("timm").config
    assert found["architecture"] == "test_vit"
    assert found["model_args"]["depth"] == 2
    assert "cache" not in str(found)
    assert build("resnet18.a1_in1k").counterpart("timm").config["architecture"] == "resnet18"
