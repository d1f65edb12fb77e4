"""`akssl export --int8`: a quarter of the size, and a loss that was measured."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from written_backbones import write_backbone, write_run

import akssl_core
from akssl_core.errors import ConfigError
from akssl_core.exporting import ExportFailed, int8

DATA = {"name": "shapes", "size": 300, "test_size": 200}
WAYS = {"resnet_tiny": "static", "vit_micro": "dynamic"}


def outputs(file, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


@pytest.mark.parametrize("name", WAYS)
def test_the_loss_is_that_of_the_file_beside_the_float_one(here, tmp_path, name):
    write_run(tmp_path / "run", name, size=32, config={"data": DATA})
    code, out, err = here("export", "run", "--to", "onnx", "--int8", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["path"] == "run/backbone-int8.onnx"
    said = found["quantised"]
    assert (said["way"], said["images"]) == (WAYS[name], 200)
    file = tmp_path / "run" / "backbone-int8.onnx"
    floats = akssl_core.export("run", "onnx").path
    assert said["bytes_before"] == pytest.approx(floats.stat().st_size, rel=0.01)
    assert file.stat().st_size < 0.4 * floats.stat().st_size
    assert found["bytes"] == file.stat().st_size
    assert said["cosine"] > 0.98
    low, accuracy, high = (said["gain"][key] for key in ("low", "mean", "high"))
    assert low < accuracy < high
    assert accuracy == pytest.approx(said["knn"][1] - said["knn"][0])
    own = akssl_core.load_backbone("run")
    assert said["knn"][0] == pytest.approx(probed(own), abs=0.6)  # an answer may hang on the last bit
    images = torch.rand(8, 3, 32, 32).sub(0.45).div(0.2)
    one, other = outputs(file, images.numpy()), own(images).detach().numpy()
    assert 0 < np.abs(one - other).max() < 0.2 * np.abs(other).max()  # close, and not the float file again


def probed(backbone):
    from akssl_core.data.opening import open_source
    from akssl_core.metrics.features import embed
    from akssl_core.metrics.nearest import knn

    parts = open_source(DATA, akssl_core.Plugins(), 32).probe()
    bank, queries = (embed(backbone, images, backbone.preprocess, device=torch.device("cpu")) for images in parts)
    return knn(bank, parts[0].labels, queries, parts[1].labels)


def test_images_without_labels_give_a_cosine(here, tmp_path):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for n in range(12):
        pixels = np.random.default_rng(n).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{n}.png")
    config = {"data": {"name": "folder", "path": str(tmp_path / "photos")}}
    write_run(tmp_path / "run", "resnet_tiny", size=32, config=config)
    done = akssl_core.export("run", "onnx", "small.onnx", int8=True)
    assert (done.quantised.knn, done.quantised.images) == (None, 12)
    assert "12 images without labels, so no accuracy" in done.text
    assert done.quantised.cosine > 0.98


def test_what_int8_cannot_be(here, tmp_path):
    write_run(tmp_path / "run", "resnet_tiny", config={"data": {"name": "folder", "path": str(tmp_path / "gone")}})
    write_run(tmp_path / "object", "resnet_tiny", config={"data": {"name": "custom", "type": "MyData"}})
    write_backbone(tmp_path / "file", "resnet_tiny")
    for words, message in {
        ("run", "--to", "timm"): "int8: is for backbones as onnx alone",
        ("run", "--to", "onnx"): "int8: needs the images of the run, which are not to be had: data",
        ("object", "--to", "onnx"): r"was trained on a Python object (MyData) that has no name",
        ("file/backbone.safetensors", "--to", "onnx"): "file is no run folder",
    }.items():
        code, out, err = here("export", *words, "--int8")
        assert (code, out) == (2, "")
        assert message in err
    assert not list(tmp_path.rglob("*.onnx"))


def test_features_that_are_no_numbers_are_not_written(here, tmp_path, monkeypatch):
    write_run(tmp_path / "run", "resnet_tiny", config={"data": DATA})

    class Broken(nn.Module):
        def __init__(self, file):
            super().__init__()

        def forward(self, images):
            return torch.full((len(images), 128), torch.nan)

    monkeypatch.setattr(int8, "_Session", Broken)
    with pytest.raises(ExportFailed, match="are no numbers in 8 bits; nothing was written"):
        akssl_core.export("run", "onnx", int8=True)
    assert not list(tmp_path.rglob("*.onnx"))


def test_a_network_that_cannot_be_quantised_says_why(here, tmp_path, monkeypatch):
    write_run(tmp_path / "run", "resnet_tiny", config={"data": DATA})

    def refused(*_):
        raise NotImplementedError("no such operator\nmore")

    monkeypatch.setattr(int8, "_write", refused)
    code, _, err = here("export", "run", "--to", "onnx", "--int8")
    assert (code, err) == (1, "akssl: int8: onnxruntime cannot quantise resnet_tiny: no such operator\n")


def test_a_classifier_is_not_quantised(here, tmp_path):
    write_run(tmp_path / "run", "resnet_tiny", size=16, config={"data": DATA})
    data = {"name": "shapes", "size": 32, "test_size": 16}
    akssl_core.finetune("run", "c.safetensors", data=data, parts="head", scratch=False)
    with pytest.raises(ConfigError, match="int8: is for backbones as onnx alone"):
        akssl_core.export("c.safetensors", "onnx", int8=True)
