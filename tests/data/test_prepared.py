"""Prepared files: what is in them is what the source shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from drawn_folders import assert_same_sources, same
from prepared_files import BROKEN, opened, save, write_photos
from safetensors import safe_open
from safetensors.torch import load_file

from akssl_core import DatasetSource, ImageStore, Schema, StoredImages, TensorImages, hookimpl
from akssl_core.data import Folder, Loader, Prepared, open_source
from akssl_core.data.convert import largest_view, stored_side, trained_view, with_margin
from akssl_core.data.folder import FolderConfig
from akssl_core.data.written import BATCH
from akssl_core.errors import DataError
from akssl_core.rundir.files import TensorStream, atomic_file
from akssl_core.rundir.folder import read_tensors
from akssl_core.running.launch import run


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


def folder(path, image_size=None, **settings):
    return Folder(FolderConfig(path=path, **settings), image_size)


# -- the same as the source -----------------------------------------------------------------------
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("view", [None, 16, 28, 200])
def test_a_prepared_folder_shows_what_the_folder_shows(photos, prepared, view, channels):
    side = None if view is None else stored_side(view)
    written = prepared(photos, side=side, channels=channels, max_unreadable=0.2)
    first, second = folder(photos, view, channels=channels, max_unreadable=0.2), opened(written.path, view)
    if side is None or view == 200:
        assert first.natural_size == second.natural_size
    same(first.all(), second.all())
    same(first.train(), second.train())
    for a, b in zip(first.probe(), second.probe(), strict=True):
        same(a, b)
    assert second.train().unreadable == first.train().unreadable
    assert written.unreadable == first.train().unreadable
    assert written.unreadable.keys() == {*BROKEN, "dog/folder.png"}
    assert (written.images, written.classes, written.record.channels) == (44, 2, channels)
    assert written.size == written.path.stat().st_size


def test_unreadable_images_are_known_before_any_is_fetched(photos, prepared):
    images = opened(prepared(photos, max_unreadable=0.2).path).train()
    assert images.unreadable["cat/03.png"] == "an empty file"
    bad = next(i for i in range(len(images)) if images.id_of(i) == "cat/03.png")
    assert images.fetch([bad]).unreadable == ((bad, "an empty file"),)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_batches_are_the_same_for_any_workers_and_processes(photos, prepared, workers, world):
    path = prepared(photos, max_unreadable=0.2).path
    sets = folder(photos, max_unreadable=0.2).train(), opened(path).train()
    for rank in range(world):
        loaders = [Loader(images, 6, seed=3, workers=workers, world=world, rank=rank) for images in sets]
        for (a, i, k), (b, j, m) in zip(*(loader.epoch(1) for loader in loaders), strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.sizes, b.sizes)
            assert torch.equal(i, j)
            assert torch.equal(k, m)


def test_two_steps_from_the_file_are_those_from_the_folder(photos, prepared, tmp_path):
    path = prepared(photos, side=stored_side(16), max_unreadable=0.2).path
    results = []
    for name, data in (("folder", {"name": str(photos), "max_unreadable": 0.2}), ("file", str(path))):
        results.append(
            run(
                "simsiam",
                data=data,
                backbone="resnet_tiny",
                image_size=16,
                batch_size=8,
                steps=2,
                out=tmp_path / name,
                precision="fp32",
                device="cpu",
                options={"out_dim": 16, "predictor_dim": 8},
                report=False,
            )
        )
    first, second = (read_tensors(result.run_dir / "backbone.safetensors") for result in results)
    assert first[0].keys() == second[0].keys()
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])
    assert {**results[0].metrics, "seconds": 0} == {**results[1].metrics, "seconds": 0}
    manifests = [json.loads((result.run_dir / "manifest.json").read_text()) for result in results]
    assert manifests[0]["data"] == manifests[1]["data"]
    assert manifests[0]["image"] == manifests[1]["image"]
    assert manifests[0]["baselines"] == manifests[1]["baselines"]


def test_without_classes_there_are_no_labels_and_no_probe(prepared, tmp_path):
    for i in range(5):
        save(tmp_path / "flat" / f"{i}.png", (12, 10), "L", seed=i)
    written = prepared(tmp_path / "flat")
    assert_same_sources(folder(tmp_path / "flat"), opened(written.path))
    assert written.classes == 0
    assert opened(written.path).train().labels is None
    assert any("no accuracy" in note for note in opened(written.path).notes)


def test_one_image_and_odd_names(prepared, tmp_path):
    save(tmp_path / "one" / "line\nbreak é.png", (9, 8))
    path = prepared(tmp_path / "one").path
    assert_same_sources(folder(tmp_path / "one"), opened(path))
    assert opened(path).all().id_of(0) == "line\nbreak é.png"


def test_the_file_is_read_with_safetensors_alone(photos, prepared):
    path = prepared(photos, max_unreadable=0.2).path
    tensors = load_file(path)
    assert {name: (t.dtype, t.ndim) for name, t in tensors.items()} == {
        "pixels": (torch.uint8, 1), "sizes": (torch.int32, 2), "reduced": (torch.uint8, 1),
        "labels": (torch.int64, 1), "names": (torch.uint8, 1),
        "unreadable": (torch.uint8, 1), "train": (torch.int64, 1), "bank": (torch.int64, 1),
        "queries": (torch.int64, 1),
    }  # fmt: skip
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["version"]) == ("akssl-images", "3")
    assert json.loads(metadata["record"])["classes"] == ["cat", "dog"]
    assert json.loads(tensors["unreadable"].numpy().tobytes())["others"] == {"dog/folder.png": "a folder, not an image"}


# -- other sources --------------------------------------------------------------------------------
@pytest.mark.parametrize("side", [None, 20])
def test_drawn_shapes_keep_their_test_split_and_statistics(prepared, plugins, side):
    written = prepared("shapes", side=side, size=40, test_size=20)
    source, drawn = opened(written.path), plugins.get("data", "shapes")
    whole = drawn(drawn.Config(size=40, test_size=20), side)
    if side is None:
        assert source.natural_size == whole.natural_size
    assert (source.mean, source.std) == (whole.mean, whole.std)
    bank, queries = source.probe()
    for found, wanted in zip((source.train(), bank, queries), (whole.train(), *whole.probe()), strict=True):
        assert torch.equal(found.fetch(range(len(found))).images, wanted.fetch(range(len(wanted))).images)
        assert torch.equal(found.labels, wanted.labels)
        assert found.classes == wanted.classes
    assert (written.images, len(source.all())) == (60, 40)


class Lists(ImageStore):
    """Images in a list."""

    channels = 3

    def __init__(self, images):
        super().__init__(len(images), "a list", max_unreadable=0.5, cache_gb=1.0)
        self.images = images

    def cells(self, rows):
        return [self.images[row] for row in rows]

    def header(self, cell):
        return 3, 8

    def decode(self, cell, side):
        return cell

    def id_of(self, row):
        return f"row\0{row}"


class Odd(DatasetSource):
    """Parts that lie in several places, overlap and come in an order of their own, as an unlabelled split does."""

    name = "odd"
    natural_size = 8
    family = "cifar"

    def __init__(self, config, image_size=None):
        super().__init__(config, image_size)
        pixels = torch.randint(0, 256, (30, 3, 40, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        self.unlabelled = TensorImages(pixels[:10], None, ("x", "y"))
        self.store = StoredImages(Lists(list(pixels[10:])), range(20), 8, torch.arange(20) % 2, ("x", "y"))

    def train(self):
        return self.unlabelled.subset(torch.tensor([9, 3, 4, 3]))

    def all(self):
        return self.unlabelled

    def probe(self):
        return self.store.subset(torch.tensor([7, 2, 5])), self.store.subset(torch.tensor([2, 11]))


class OddPlugin:
    @hookimpl
    def akssl_register(self, registry):
        registry.add(Odd)


def test_parts_of_any_kind_and_order_come_back(prepared, plugins):
    plugins.register(OddPlugin(), "odd")
    written = prepared("odd")
    first, second = Odd(Schema()), opened(written.path)
    assert written.images == 10 + 4
    assert written.family == "cifar"
    for name in ("all", "train"):
        a, b = getattr(first, name)(), getattr(second, name)()
        assert torch.equal(a.fetch(range(len(a))).images, b.fetch(range(len(b))).images)
        assert [a.id_of(i) for i in range(len(a))] == [b.id_of(i) for i in range(len(b))]
        assert a.labels is b.labels is None
    for a, b in zip(first.probe(), second.probe(), strict=True):
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.fetch(range(len(a))).images, b.fetch(range(len(b))).images)
        assert [a.id_of(i).replace("\0", "\ufffd") for i in range(len(a))] == [b.id_of(i) for i in range(len(b))]


def test_a_source_that_runs_would_not_read_back_leaves_no_file(prepared, plugins, tmp_path, monkeypatch):
    plugins.register(OddPlugin(), "odd")
    monkeypatch.setattr(TensorImages, "labels", torch.tensor([0, 1, 5, 0, 0, 0, 0, 0, 0, 0]), raising=False)
    original = Odd.__init__

    def labelled(self, config, image_size=None):
        original(self, config, image_size)
        self.unlabelled.labels = torch.full((10,), 7)

    monkeypatch.setattr(Odd, "__init__", labelled)
    with pytest.raises(DataError, match=r"odd cannot be prepared: the file .*labels run from 0 to 7, not from -1 to 1"):
        prepared("odd")
    assert list(tmp_path.iterdir()) == []


def test_a_prepared_file_is_a_source_too(photos, prepared):
    large = prepared(photos, side=stored_side(64), max_unreadable=0.2)
    again = prepared(large.path, "again.safetensors", side=stored_side(64))
    assert_same_sources(opened(large.path), opened(again.path))
    small = opened(prepared(large.path, "small.safetensors", side=20).path, 16).all()
    assert int(small.fetch(range(len(small))).sizes.amin(1).max()) == 20
    assert [small.id_of(i) for i in range(3)] == ["cat/00.jpg", "cat/01.png", "cat/02.png"]


def test_sides_and_views_are_the_reverse_of_each_other():
    for view in range(8, 600):
        assert largest_view(with_margin(view)) == view
        assert largest_view(with_margin(view + 1) - 1) == view
        assert trained_view(stored_side(view)) == view


# -- sizes of view --------------------------------------------------------------------------------
def test_the_size_of_view_follows_what_the_images_were_reduced_to(prepared, tmp_path):
    for i in range(4):
        save(tmp_path / "large" / f"{i}.jpg", (300, 250), seed=i)
    assert opened(prepared(tmp_path / "large").path).natural_size == 224
    assert opened(prepared(tmp_path / "large", "small.safetensors", side=100).path).natural_size == 64
    assert opened(prepared(tmp_path / "large", "whole.safetensors", side=250).path).natural_size == 192


@pytest.mark.parametrize(
    ("view", "note"), [(8, "SRC --size 14' .* trains faster"), (18, None), (64, "details are lost; .*SRC --size 110'")]
)
def test_a_size_that_does_not_go_with_the_file_is_noted(photos, prepared, view, note):
    source = opened(prepared(photos, side=round(18 * 12 / 7), max_unreadable=0.2).path, view)
    before = len(source.notes)
    source.train()
    source.train()
    told = [note for note in source.notes[before:] if "not quite those of the originals" not in note]
    assert told == [] if note is None else len(told) == 1
    assert note is None or re.search(note, told[0])


def test_small_images_suit_every_size(prepared, tmp_path):
    for i in range(4):
        save(tmp_path / "icons" / f"{i}.png", (16, 12), seed=i)
    source = opened(prepared(tmp_path / "icons", side=64).path, 128)
    before = list(source.notes)
    source.train()
    assert source.notes == before


# -- memory ---------------------------------------------------------------------------------------
def test_images_are_written_as_they_come(prepared, tmp_path, monkeypatch):
    for i in range(3 * BATCH + 5):
        save(tmp_path / "many" / f"{i:03}.png", (14, 11), seed=i)
    batches, original = [], StoredImages.fetch

    def watched(self, index):
        batches.append(len(index))
        assert not self.store._kept, "an image was kept in memory"
        return original(self, index)

    monkeypatch.setattr(StoredImages, "fetch", watched)
    prepared(tmp_path / "many")
    assert batches == [16, 16, *[BATCH] * 3, 5], "a sample, and all"
    batches.clear()
    prepared(tmp_path / "many", side=8192, overwrite=True)
    assert batches == [1] * (32 + 3 * BATCH + 5), "images that may be large come one by one"


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is told by Linux alone")
def test_only_what_is_fetched_is_read(prepared, tmp_path):
    save(tmp_path / "one" / "1.png", (9, 8))
    with safe_open(prepared(tmp_path / "one").path, framework="pt") as file:
        metadata = file.metadata()
    count, amount = 128, 3 * 512 * 512
    record = json.loads(metadata["record"]) | {"side": 512, "views": []}
    path = tmp_path / "large.safetensors"
    sizes = torch.full((count, 2), 512, dtype=torch.int32)
    with atomic_file(path) as file:
        stream = TensorStream(
            file, {"sizes": sizes}, ("pixels", "names", "unreadable"), {**metadata, "record": json.dumps(record)}
        )
        for i in range(count):
            stream.append("pixels", bytes([i]) * amount)
        stream.append("names", b"\0".join(b"%d" % i for i in range(count)))
        stream.append("unreadable", b'{"rows":{},"others":{}}')
        stream.finish()
    assert path.stat().st_size > 100e6
    before = resident()
    images = opened(path).train()
    pixels = images.fetch([5, 120])
    assert [(image.min(), image.max()) for image in pixels.images] == [(5, 5), (120, 120)]
    del pixels
    assert resident() - before < 30


# -- what a user passes ---------------------------------------------------------------------------
def test_a_path_to_a_file_becomes_the_source(photos, prepared, tmp_path, plugins):
    path = prepared(photos, max_unreadable=0.2).path
    for data in (path, str(path)):
        source = open_source(data, plugins, 16)
        assert isinstance(source, Prepared)
        assert source.asked_size == 16
    upper = path.rename(tmp_path / "PHOTOS.SafeTensors")
    assert isinstance(open_source(str(upper), plugins), Prepared)
    with pytest.raises(
        DataError, match=r"photo\.safetensors does not exist \(did you mean '.*PHOTOS\.SafeTensors'\?\)"
    ):
        open_source({"name": "prepared", "path": tmp_path / "photo.safetensors"}, plugins)
    (tmp_path / "folder.safetensors").mkdir()
    save(tmp_path / "folder.safetensors" / "1.png", (9, 8))
    assert isinstance(open_source(tmp_path / "folder.safetensors", plugins), Folder)
