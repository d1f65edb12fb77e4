"""`akssl_core.embed` and `akssl embed`: right features, right ids, whole files, and what cannot be read."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import akssl_core
from akssl_core import AksslError, Backbone, ConfigError, DataError, Features, Stock, hookimpl
from akssl_core.evaluation.embedding import embed_to_file
from akssl_core.evaluation.opened import open_trained, open_weights
from akssl_core.rundir.folder import read_tensors

FORMATS = ("safetensors", "npz", "csv", "parquet")


@pytest.fixture
def folder(tmp_path):
    """Ten photos of two classes, of which one is broken."""
    generator = np.random.default_rng(0)
    for i in range(10):
        file = tmp_path / "photos" / ("cat" if i % 2 else "dog") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (12, 12, 3), np.uint8)).save(file)
    (tmp_path / "photos" / "cat" / "5.png").write_bytes(b"broken")
    return tmp_path / "photos"


READABLE = [f"cat/{i}.png" for i in (1, 3, 7, 9)] + [f"dog/{i}.png" for i in (0, 2, 4, 6, 8)]


def features_one_by_one(finished, folder):
    """What the backbone says of each readable file alone."""
    backbone = akssl_core.load_backbone(finished)
    with torch.no_grad():
        return torch.cat([backbone(backbone.preprocess(Image.open(folder / name))) for name in READABLE])


def test_three_things_come_back(finished, photos):
    features, ids, labels = akssl_core.embed(finished, data=photos)
    assert (features.shape, features.dtype) == ((64, 8), torch.float32)
    assert ids == list(range(64))
    assert torch.equal(labels, photos[1])
    backbone = akssl_core.load_backbone(finished)
    with torch.no_grad():
        torch.testing.assert_close(features, backbone(backbone.preprocess(photos[0])), rtol=1e-4, atol=1e-5)
    assert akssl_core.embed(finished, data=photos[0]).labels is None
    assert not features.requires_grad


def test_test_images_beside_the_others_are_told(finished, folder):
    """A root of train and test stands for its training images, as it does in a run."""
    (folder / "cat" / "5.png").unlink()
    root = folder.parent / "root"
    shutil.copytree(folder, root / "test")
    folder.rename(root / "train")
    with pytest.warns(UserWarning, match=r"^data: .*test is not looked at, .*; ask for it by itself$"):
        assert len(akssl_core.embed(finished, data=root).ids) == 9
    assert len(akssl_core.embed(finished, data=root / "test").ids) == 9


def test_features_of_the_places_in_the_last_map(finished, photos, tmp_path):
    found = akssl_core.embed(finished, data=photos, patches=True, batch_size=40)
    backbone = akssl_core.load_backbone(finished)
    with torch.no_grad():
        expected = backbone.features(backbone.preprocess(photos[0]))
    assert found.features.shape == (64, *expected.grid, 8)
    torch.testing.assert_close(found.features.flatten(1, 2), expected.patches, rtol=1e-4, atol=1e-5)
    saved = embed_to_file(finished, tmp_path / "f.npz", data=photos, patches=True)
    rows, columns = expected.grid
    assert saved.text.endswith(f"f.npz: 64 images, {rows} x {columns} patches with 8 features each")
    assert np.array_equal(np.load(tmp_path / "f.npz")["features"], found.features.numpy())
    with pytest.raises(ConfigError, match=r"--patches: '.*f.csv' holds one row an image. Write .safetensors or .npz"):
        embed_to_file(finished, tmp_path / "f.csv", data=photos, patches=True)


@pytest.mark.parametrize("batch_size", [1, 4, 256])
def test_unreadable_images_are_left_out_and_every_id_stays_with_its_image(finished, folder, batch_size):
    data = {"name": "folder", "path": str(folder), "max_unreadable": 0.2}
    found = akssl_core.embed(finished, data=data, batch_size=batch_size)
    assert found.ids == READABLE
    assert list(found.unreadable) == ["cat/5.png"]
    assert found.classes == ("cat", "dog")
    assert found.labels.tolist() == [0] * 4 + [1] * 5
    torch.testing.assert_close(found.features, features_one_by_one(finished, folder), rtol=1e-4, atol=1e-5)


def test_the_data_of_the_run_is_the_default(finished):
    found = akssl_core.embed(finished)
    assert found.features.shape == (60, 8)
    assert akssl_core.embed(finished / "backbone.safetensors", data={"name": "shapes", "size": 7}).ids == list(range(7))


def test_embedding_changes_nothing(finished, photos):
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in finished.rglob("*") if p.is_file()}
    state = torch.get_rng_state()
    akssl_core.embed(finished, data=photos)
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in finished.rglob("*") if p.is_file()} == before
    assert torch.equal(torch.get_rng_state(), state)


def settings_of(finished, *left_out):
    """What a file of the run's weights, with no word on them, needs to be told."""
    backbone = akssl_core.load_backbone(finished)
    image = backbone.preprocess
    tiny = {"name": "resnet_tiny", "widths": [4, 4, 8, 8]}
    table = {"mean": list(image.mean), "std": list(image.std), "size": image.size, "backbone": tiny}
    save_file(backbone.export_state(), finished.parent / "w.safetensors")
    return {name: value for name, value in table.items() if name not in left_out}


def test_weights_without_a_run(here, finished):
    more = [f"source.{name}={json.dumps(value)}" for name, value in settings_of(finished).items()]
    sets = [word for text in more for word in ("--set", text)]
    data = ("--data", "shapes", "--set", "data.size=7", "--out", "f.npz", "--json")
    code, out, err = here("embed", "w.safetensors", *sets, *data)
    assert code == 0, err
    assert json.loads(out) == {"path": "f.npz", "shape": [7, 8], "unreadable": {}}
    expected = akssl_core.embed(finished, data={"name": "shapes", "size": 7}).features
    torch.testing.assert_close(torch.from_numpy(np.load("f.npz")["features"]), expected, rtol=1e-5, atol=1e-6)


class Published(Backbone):
    """A network with weights of its own that one can ask for by name."""

    name = "published"
    embed_dim = 2
    tensors: ClassVar = {"project.weight": torch.tensor([[1.0, 2, 3], [0, 1, 0]]), "project.bias": torch.ones(2)}

    def __init__(self, config, image):
        super().__init__(config, image)
        self.project = nn.Linear(3, 2)

    def features(self, images):
        return Features(self.project(images.mean((2, 3))))

    @classmethod
    def stock(cls):
        return Stock(cls.tensors, mean=(0.5, 0.25, 0.0), std=(1.0, 0.5, 2.0))


class PublishedPlugin:
    """A plugin that has it."""

    @hookimpl
    def akssl_register(self, registry):
        registry.add(Published)


def test_a_backbone_by_name_needs_no_run(plugins):
    plugins.register(PublishedPlugin(), "published")
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)[:, None, None, None].expand(3, 3, 224, 224)
    found = akssl_core.embed("published", data=images, plugins=plugins).features
    channels = (torch.tensor([0, 0.2, 1])[:, None] - torch.tensor([0.5, 0.25, 0])) / torch.tensor([1, 0.5, 2])
    expected = channels @ Published.tensors["project.weight"].T + 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    small = akssl_core.embed({"source": "published", "size": 16}, data=images, plugins=plugins).features
    torch.testing.assert_close(small, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "left_out", "message"),
    [
        ("w.safetensors", "mean", "Set source.mean and source.std"),
        ("w.safetensors", "backbone", "Name it with source.backbone"),
        ("w.safetensor", "", "source: 'w.safetensor' is neither a run folder nor a .safetensors file, and as a name"),
        ("./w.safetensor", "", r"there is no '.*w.safetensor'. Did you mean 'w.safetensors'\?"),
        ("finishd/run", "", r"neither a run folder nor a .safetensors file \(did you mean 'finished'\?\)"),
        ("resnet_tiny", "", "there are no published weights of resnet_tiny"),
    ],
)
def test_weights_that_are_none_or_do_not_say_enough(finished, monkeypatch, source, left_out, message):
    table = settings_of(finished, left_out)
    monkeypatch.chdir(finished.parent)
    with pytest.raises(AksslError, match=message):
        akssl_core.embed({"source": source, **table}, data="shapes")


def test_what_is_no_run_knows_no_data(finished):
    with pytest.raises(ConfigError, match=r"data: is missing, and .*backbone.safetensors knows none. Name it: --data"):
        akssl_core.embed(finished / "backbone.safetensors")


def test_files_say_of_which_network_their_features_are(finished, photos, tmp_path):
    for name in ("a.safetensors", "a.npz"):
        embed_to_file(finished, tmp_path / name, data=photos[0])
    told = read_tensors(tmp_path / "a.safetensors")[1]["network"]
    assert told == str(np.load(tmp_path / "a.npz")["network"]) == open_trained(finished).network_hash
    other = open_weights({"source": str(finished), "size": 16}).network_hash
    assert other != told, "the same weights, fed with other images"


def read(path):
    """(features, ids, labels, names of the classes) of a file of any format."""
    if path.suffix == ".safetensors":
        tensors, metadata = read_tensors(path)
        names = bytes(tensors["names"].tolist()).decode().split("\0")
        return tensors["features"].numpy(), names, tensors["labels"].tolist(), json.loads(metadata["classes"])
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as data:
            return data["features"], data["ids"].tolist(), data["labels"].tolist(), data["classes"].tolist()
    if path.suffix == ".csv":
        rows = list(csv.reader(path.read_text().splitlines()))
        assert rows[0] == ["id", "label", "class", *(f"f{i}" for i in range(8))]
        cells = list(zip(*rows[1:], strict=True))
        features = np.array(cells[3:], dtype=np.float32).T
        return features, list(cells[0]), [int(c) for c in cells[1]], list(dict.fromkeys(cells[2]))
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install -e '.[dev]'")
    table = parquet.read_table(path)
    assert table.column_names == ["id", "label", "class", "features"]
    columns = table.to_pydict()
    classes = list(dict.fromkeys(columns["class"]))
    return np.array(columns["features"], dtype=np.float32), columns["id"], columns["label"], classes


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_holds_the_same(here, finished, folder, tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="pip install -e '.[dev]'")
    path = tmp_path / f"features.{suffix}"
    arguments = ("--set", "data.max_unreadable=0.2", "--batch-size", 4)
    code, out, err = here("embed", finished, "--data", folder, "--out", path, *arguments)
    assert code == 0, err
    assert out.startswith(f"{path}: 9 images, 8 features each, 1 unreadable and left out: cat/5.png (")
    data = {"name": "folder", "path": str(folder), "max_unreadable": 0.2}
    expected = akssl_core.embed(finished, data=data, batch_size=4)
    features, ids, labels, classes = read(path)
    assert features.dtype == np.float32
    assert np.array_equal(features, expected.features.numpy()), "to the last bit"
    assert (ids, labels, classes) == (READABLE, expected.labels.tolist(), ["cat", "dog"])
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".part")] == []


def test_numbers_are_ids_where_images_have_no_names(finished, photos, tmp_path):
    embed_to_file(finished, tmp_path / "f.safetensors", data=photos[0])
    tensors = load_file(tmp_path / "f.safetensors")
    assert tensors.keys() == {"features", "ids"}
    assert tensors["ids"].tolist() == list(range(64))
    embed_to_file(finished, tmp_path / "f.csv", data=photos)
    rows = list(csv.reader((tmp_path / "f.csv").read_text().splitlines()))
    assert rows[0][:3] == ["id", "label", "f0"]
    assert [row[0] for row in rows[1:]] == [str(i) for i in range(64)]


def test_a_file_appears_whole_or_not_at_all(finished, folder, tmp_path):
    data = {"name": "folder", "path": str(folder), "max_unreadable": 0.1}
    (folder / "dog" / "6.png").write_bytes((folder / "dog" / "6.png").read_bytes()[:60])  # its header is whole
    for suffix in FORMATS[:3]:
        path = tmp_path / f"features.{suffix}"
        path.write_text("what was there")
        with pytest.raises(DataError, match="cannot be read"):
            embed_to_file(finished, path, data=data, batch_size=2, overwrite=True)
        assert path.read_text() == "what was there"
    assert not list(tmp_path.glob(".*.part"))


def test_streams_hold_one_batch_at_a_time(finished, tmp_path, monkeypatch):
    """CSV and Parquet are written as batches come, so that memory does not grow with the images."""

    def refuse(self):
        raise AssertionError("all features at once")

    monkeypatch.setattr("akssl_core.evaluation.embedding.Work.embedded", refuse)
    embed_to_file(finished, tmp_path / "f.csv", batch_size=8)
    with pytest.raises(AssertionError, match="all features"):
        embed_to_file(finished, tmp_path / "f.npz", batch_size=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "f.safetensor"), "Did you mean '.safetensors'?"),
        (("--out", "no/f.npz"), "there is no folder 'no'"),
        (("--out", "there.csv"), "'there.csv' exists already. Replace it with --overwrite"),
        (("--out", "f.csv", "--data", "shapez"), "Did you mean 'shapes'?"),
        (("--out", "f.csv", "--batch-size", "0"), "batch_size: expected a whole number from 1"),
        (("--out", "f.csv", "--set", "seed=1"), "--set seed: only settings of the data"),
    ],
)
def test_bad_input_is_one_line(here, finished, tmp_path, arguments, message):
    (tmp_path / "there.csv").write_text("x")
    code, out, err = here("embed", finished, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.glob("*.*")) == ["there.csv"]


def test_parquet_without_pyarrow_says_what_to_install(here, finished, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    code, _, err = here("embed", finished, "--out", "f.parquet")
    assert code == 2
    assert "pip install 'akssl-core[parquet]'" in err


def test_force_replaces(here, finished, tmp_path):
    (tmp_path / "there.npz").write_text("x")
    code, _, err = here("embed", finished, "--out", "there.npz", "--overwrite")
    assert code == 0, err
    with np.load(tmp_path / "there.npz") as data:
        assert data["features"].shape == (60, 8)


def test_nothing_replaces_a_file_that_a_run_needs(here, finished):
    backbone = finished / "backbone.safetensors"
    before = backbone.read_bytes()
    code, _, err = here("embed", finished, "--out", str(backbone), "--overwrite")
    assert (code, err.count("\n")) == (2, 1)
    assert "belongs to the run in that folder. Choose another name." in err
    assert backbone.read_bytes() == before


def test_a_bad_batch_size_is_told(finished):
    with pytest.raises(ConfigError, match="batch_size"):
        akssl_core.embed(finished, batch_size=True)
