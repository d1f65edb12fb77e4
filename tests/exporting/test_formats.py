"""`akssl export`: what is written loads elsewhere, gives the same features, and says so in its header."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn
from written_backbones import write_backbone

import akssl_core
from akssl_core import ImageSpec, Preprocess
from akssl_core.backbone.vit import torchvision_key
from akssl_core.errors import ConfigError, RunDirError
from akssl_core.exporting import ExportFailed, formats
from akssl_core.exporting.backbone_file import header

SIZES = {"resnet18": 32, "vit_tiny": 32}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("exports")
    return {name: write_backbone(base / name, name, size=size) for name, size in SIZES.items()}


def read_metadata(file):
    if file.suffix == ".onnx":
        import onnx

        return {prop.key: prop.value for prop in onnx.load(file).metadata_props}
    with safe_open(file, framework="pt") as opened:
        return opened.metadata()


def pasted(snippet, images):
    """What a user has who pastes the snippet where `images` are."""
    names = {"images": images}
    exec(compile(snippet, "snippet", "exec"), names)
    features = names["features"]
    return features.detach().numpy() if isinstance(features, torch.Tensor) else features


@pytest.mark.parametrize("to", ["safetensors", "torchvision", "timm", "onnx"])
@pytest.mark.parametrize("name", SIZES)
def test_features_are_those_of_the_backbone(folders, name, to):
    done = akssl_core.export(folders[name], to=to)
    metadata = read_metadata(done.path)
    assert metadata == done.metadata
    assert not done.path.read_bytes().startswith(b"PK")  # torch's archive of pickles
    assert float(metadata["max_difference"]) <= float(metadata["tolerance"]) == 1e-4
    preprocess = json.loads(metadata["preprocess"])
    assert (preprocess["size"], preprocess["channels"], preprocess["mean"]) == (32, 3, [0.45] * 3)
    assert "shorter side to 32 px" in metadata["preprocess_rule"]

    own = akssl_core.load_backbone(folders[name])
    pictures = torch.randint(0, 256, (3, 3, 40, 50), dtype=torch.uint8)  # another count than any that was tried
    images = own.preprocess(pictures)
    expected = own(images).detach().numpy()
    given = {"safetensors": pictures, "onnx": images.numpy()}.get(to, images)
    assert np.abs(pasted(metadata["load"], given) - expected).max() <= 1e-4
    assert np.abs(expected).max() > 0.1  # features of nothing would agree too


def test_the_command_prints_code_that_works(here, folders):
    code, out, err = here("export", folders["resnet18"], "--to", "onnx", "--out", "mine.onnx")
    assert (code, err) == (0, "")
    head, _, snippet = out.partition("Load it:\n")
    assert "mine.onnx: onnx, " in head
    assert "(allowed 0.0001)" in head
    assert "shorter side to 32 px" in head
    features = pasted("\n".join(line[2:] for line in snippet.splitlines()), np.zeros((1, 3, 32, 32), np.float32))
    assert features.shape == (1, 512)


# -- counterparts ---------------------------------------------------------------------------------
CASES = [
    ("resnet18", {"size": 80}, "torchvision"),
    ("resnet18", {"size": 80, "channels": 1}, "torchvision"),
    ("resnet18", {"size": 80, "channels": 1}, "timm"),
    ("resnet18", {"size": 16, "channels": 5}, "timm"),
    ("vit_tiny", {"size": 30, "channels": 1, "pool": "mean", "heads": 6, "positions": "sincos"}, "timm"),
    ("vit_tiny", {"size": 32, "channels": 1, "patch_size": 8, "heads": 6}, "torchvision"),
    ("vit_micro", {"size": 32, "width": 64, "mlp_ratio": 3.0}, "torchvision"),
    ("vit_micro", {"size": 32, "registers": 3, "layer_scale": 0.1, "mlp_ratio": 3.0}, "timm"),
    ("vit_tiny", {"size": 32, "depth": 2, "class_token": False, "pool": "mean", "registers": 2}, "timm"),
    ("vit_tiny", {"size": 32, "depth": 2, "class_token": False, "pool": "mean"}, "timm"),
]


@pytest.mark.parametrize(("name", "settings", "library"), CASES)
def test_every_variant_has_the_counterpart_that_it_says(name, settings, library):
    settings = dict(settings)
    channels = settings.pop("channels", 3)
    image = ImageSpec(settings.pop("size"), channels, (0.0,) * channels, (1.0,) * channels)
    backbone = akssl_core.build("backbone", name, image, **settings).eval()
    found = backbone.counterpart(library)
    names = {}
    exec("\n".join([f"import {', '.join(found.modules)}", *found.lines]), names)
    names["model"].load_state_dict(found.state)
    images = torch.randn(2, channels, image.size, image.size)
    torch.testing.assert_close(names["model"].eval()(images), backbone(images), rtol=1e-4, atol=1e-5)


def test_key_names_of_torchvision():
    assert torchvision_key("blocks.3.attn.qkv.bias") == "encoder.layers.encoder_layer_3.self_attention.in_proj_bias"
    assert torchvision_key("norm.weight") == "encoder.ln.weight"


@pytest.mark.parametrize("settings", [{"pool": "mean"}, {"size": 30}, {"registers": 1}, {"layer_scale": 0.1}])
def test_what_torchvisions_vit_cannot_do_has_no_counterpart(settings):
    size = settings.pop("size", 32)
    backbone = akssl_core.build("backbone", "vit_tiny", ImageSpec(size, 3, (0.0,) * 3, (1.0,) * 3), **settings)
    assert backbone.counterpart("torchvision") is None
    assert backbone.counterpart("timm") is not None


def test_pooling_both_ways_has_no_counterpart():
    image = ImageSpec(32, 3, (0.0,) * 3, (1.0,) * 3)
    backbone = akssl_core.build("backbone", "vit_micro", image, pool="both")
    assert backbone.counterpart("torchvision") is backbone.counterpart("timm") is None


# -- what is refused ------------------------------------------------------------------------------
def test_formats_that_work_are_named(tmp_path):
    folder = write_backbone(tmp_path / "run", "resnet_tiny")
    message = (
        "to: resnet_tiny has no counterpart in torchvision with these settings. Formats that work: safetensors, onnx."
    )
    with pytest.raises(ConfigError, match=message):
        akssl_core.export(folder, to="torchvision")
    with pytest.raises(ConfigError, match=r"no format 'tim'. Did you mean 'timm'\? Formats: safetensors, torchvision"):
        akssl_core.export(folder, to="tim")
    assert sorted(file.name for file in folder.iterdir()) == ["backbone.safetensors"]


class Own(nn.Module):
    """A user's network whose forward pass a tracer can follow."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2)

    def forward(self, x):
        return self.conv(x).relu().mean((2, 3))


def test_ones_own_network(tmp_path):
    folder = write_backbone(tmp_path / "run", "", module=(module := Own()))
    with pytest.raises(ConfigError, match=r"your own Own.*safetensors and onnx work.*module=Own"):
        akssl_core.export(folder, to="onnx")
    with pytest.raises(ConfigError, match="your own network has no counterpart in timm"):
        akssl_core.export(folder, to="timm", module=module)
    again = akssl_core.export(folder, to="safetensors", module=Own())
    assert again.difference == 0
    done = akssl_core.export(folder, to="onnx", module=Own())
    images = torch.randn(5, 3, 32, 32)
    assert np.abs(pasted(done.snippet, images.numpy()) - module(images).detach().numpy()).max() < 1e-5


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("a.bin", r"out: a.bin must end in .safetensors"),
        ("nowhere/a.safetensors", "there is no folder 'nowhere'"),
        ("there.safetensors", r"'.*there.safetensors' exists already. Replace it with --overwrite"),
        ("run/backbone.safetensors", "belongs to the run in that folder"),
    ],
)
def test_where_nothing_is_written(here, tmp_path, out, message):
    write_backbone(tmp_path / "run", "resnet_tiny")
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "there.safetensors").write_text("mine")
    with pytest.raises((ConfigError, RunDirError), match=message):
        akssl_core.export("run", to="safetensors", out=out)
    assert (tmp_path / "there.safetensors").read_text() == "mine"


def test_a_missing_package_is_named_with_its_cure(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnxruntime" else find(name, *a))
    folder = write_backbone(tmp_path / "run", "resnet_tiny")
    with pytest.raises(ConfigError, match=r"onnx needs onnxruntime, .*pip install 'akssl-core\[export\]'"):
        akssl_core.export(folder, to="onnx")


def test_a_run_that_has_not_finished(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(RunDirError, match="has not finished yet"):
        akssl_core.export(tmp_path, to="onnx")


# -- the proof can fail ---------------------------------------------------------------------------
def test_a_file_with_other_weights_is_found_out(tmp_path, monkeypatch):
    folder = write_backbone(tmp_path / "run", "resnet_tiny")
    make = formats.Safetensors.make

    def spoilt(self, backbone):
        with torch.no_grad():
            before = backbone.bn1.bias.clone()
            backbone.bn1.bias += 0.1
            data = make(self, backbone)({**header("toy", {"name": "resnet_tiny"}, backbone, backbone.preprocess)})
            backbone.bn1.bias.copy_(before)
        return lambda metadata: data

    monkeypatch.setattr(formats.Safetensors, "make", spoilt)
    with pytest.raises(ExportFailed, match="features differ by up to .* nothing was written"):
        akssl_core.export(folder, to="safetensors")
    assert not (folder / "backbone-exported.safetensors").exists()


def test_not_a_number_is_no_proof():
    backbone = akssl_core.build("backbone", "resnet_tiny", ImageSpec(16, 3, (0.0,) * 3, (1.0,) * 3)).eval()
    backbone.preprocess = Preprocess.of(backbone.image)
    with pytest.raises(ExportFailed, match="nan"):
        formats.compare(backbone, Path("x"), lambda *_: torch.full((formats.IMAGES, 128), torch.nan))


def test_a_process_that_fails_says_why(tmp_path):
    with pytest.raises(ExportFailed, match="could not use the file.*ZeroDivisionError: division by zero"):
        formats.elsewhere("features = 1 / 0", torch.zeros(1), as_array=True)
