"""Prepared files: what is in them is what the source shows, and what is no such file is refused."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import akssl_core.data.folder as folder_module
from akssl_core import DatasetSource, ImageStore, Schema, StoredImages, TensorImages, hookimpl
from akssl_core.cache import BATCH, prepare
from akssl_core.data import Folder, Loader, Prepared, source_from
from akssl_core.data.convert import largest_view, stored_side
from akssl_core.data.folder import FolderConfig
from akssl_core.data.prepared import PreparedConfig
from akssl_core.errors import ConfigError, DataError
from akssl_core.files import TensorStream, atomic_file
from akssl_core.launch import run
from akssl_core.plugins import Plugins
from akssl_core.rundir import read_tensors

MODES = (("jpg", "RGB"), ("png", "RGBA"), ("png", "P"), ("jpg", "CMYK"), ("png", "L"), ("webp", "RGB"), ("png", "1"))
BROKEN = {"cat/03.png": "empty", "dog/20.jpg": "not an image"}


def save(path, size, mode="RGB", seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **options)


@pytest.fixture
def photos(tmp_path):
    """42 ragged photos of several modes in two classes; two cannot be read, and a folder only looks like one."""
    path = tmp_path / "photos"
    for i in range(42):
        suffix, mode = MODES[i % len(MODES)]
        save(path / ("cat" if i < 17 else "dog") / f"{i:02}.{suffix}", (20 + 7 * i % 90, 24 + 5 * i % 80), mode, seed=i)
    save(path / "dog" / "long.png", (400, 30), seed=90)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(path / "dog" / "turned.jpg", (90, 60), seed=91, exif=exif)
    (path / "dog" / "folder.png").mkdir()
    for name in list(BROKEN):
        next((path / name).parent.glob(f"{Path(name).stem}.*")).unlink()
    (path / "cat" / "03.png").write_bytes(b"")
    (path / "dog" / "20.jpg").write_text("text")
    return path


@pytest.fixture
def plugins():
    manager = Plugins()
    manager.entries = []
    return manager


@pytest.fixture
def make(tmp_path, plugins):
    """A prepared file of a source, and what was written."""

    def written(data, name="photos.safetensors", *, side=None, overwrite=False, **settings):
        table = {"data": {"name": str(data), **settings}}
        return prepare(table, tmp_path / name, text=str(data), side=side, overwrite=overwrite, plugins=plugins)

    return written


def folder(path, image_size=None, **settings):
    return Folder(FolderConfig(path=path, **settings), image_size)


def opened(path, image_size=None):
    return Prepared(PreparedConfig(path=path), image_size)


def same(first, second):
    """Two image sets show the same in every way, whatever the order in which they are asked."""
    count = len(first)
    assert len(second) == count
    assert (first.channels, first.classes, first.loading) == (second.channels, second.classes, second.loading)
    assert [first.id_of(i) for i in range(count)] == [second.id_of(i) for i in range(count)]
    assert (first.labels is None) == (second.labels is None)
    assert first.labels is None or torch.equal(first.labels, second.labels)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    for index in [*order.split(7), torch.arange(count)]:
        a, b = (images.fetch(index.tolist()) for images in (first, second))
        assert torch.equal(a.images, b.images)
        assert (a.sizes is None) == (b.sizes is None)
        assert a.sizes is None or torch.equal(a.sizes, b.sizes)
        assert a.unreadable == b.unreadable


def same_sources(first, second):
    assert first.natural_size == second.natural_size
    same(first.all(), second.all())
    same(first.train(), second.train())
    assert (first.probe() is None) == (second.probe() is None)
    for a, b in zip(first.probe() or (), second.probe() or (), strict=True):
        same(a, b)


# -- the same as the source -----------------------------------------------------------------------
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("view", [None, 16, 28, 200])
def test_a_prepared_folder_shows_what_the_folder_shows(photos, make, view, channels):
    side = None if view is None else stored_side(view)
    written = make(photos, side=side, channels=channels, max_unreadable=0.2)
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


def test_unreadable_images_are_known_before_any_is_fetched(photos, make):
    images = opened(make(photos, max_unreadable=0.2).path).train()
    assert images.unreadable["cat/03.png"] == "an empty file"
    bad = next(i for i in range(len(images)) if images.id_of(i) == "cat/03.png")
    assert images.fetch([bad]).unreadable == ((bad, "an empty file"),)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_batches_are_the_same_for_any_workers_and_processes(photos, make, workers, world):
    path = make(photos, max_unreadable=0.2).path
    sets = folder(photos, max_unreadable=0.2).train(), opened(path).train()
    for rank in range(world):
        loaders = [Loader(images, 6, seed=3, workers=workers, world=world, rank=rank) for images in sets]
        for (a, i, k), (b, j, m) in zip(*(loader.epoch(1) for loader in loaders), strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.sizes, b.sizes)
            assert torch.equal(i, j)
            assert torch.equal(k, m)


def test_two_steps_from_the_file_are_those_from_the_folder(photos, make, tmp_path):
    path = make(photos, side=stored_side(16), max_unreadable=0.2).path
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


def test_without_classes_there_are_no_labels_and_no_probe(make, tmp_path):
    for i in range(5):
        save(tmp_path / "flat" / f"{i}.png", (12, 10), "L", seed=i)
    written = make(tmp_path / "flat")
    same_sources(folder(tmp_path / "flat"), opened(written.path))
    assert written.classes == 0
    assert opened(written.path).train().labels is None
    assert any("no accuracy" in note for note in opened(written.path).notes)


def test_one_image_and_odd_names(make, tmp_path):
    save(tmp_path / "one" / "line\nbreak é.png", (9, 8))
    path = make(tmp_path / "one").path
    same_sources(folder(tmp_path / "one"), opened(path))
    assert opened(path).all().id_of(0) == "line\nbreak é.png"


def test_the_file_is_read_with_safetensors_alone(photos, make):
    path = make(photos, max_unreadable=0.2).path
    tensors = load_file(path)
    assert {name: (t.dtype, t.ndim) for name, t in tensors.items()} == {
        "pixels": (torch.uint8, 1), "sizes": (torch.int32, 2), "labels": (torch.int64, 1), "names": (torch.uint8, 1),
        "unreadable": (torch.uint8, 1), "train": (torch.int64, 1), "bank": (torch.int64, 1),
        "queries": (torch.int64, 1),
    }  # fmt: skip
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["version"]) == ("akssl-images", "1")
    assert json.loads(metadata["record"])["classes"] == ["cat", "dog"]
    assert json.loads(tensors["unreadable"].numpy().tobytes())["others"] == {"dog/folder.png": "a folder, not an image"}


# -- other sources --------------------------------------------------------------------------------
@pytest.mark.parametrize("side", [None, 20])
def test_drawn_shapes_keep_their_test_split_and_statistics(make, plugins, side):
    written = make("shapes", side=side, size=40, test_size=20)
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


def test_parts_of_any_kind_and_order_come_back(make, plugins):
    plugins.register(OddPlugin(), "odd")
    written = make("odd")
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


def test_a_source_that_runs_would_not_read_back_leaves_no_file(make, plugins, tmp_path, monkeypatch):
    plugins.register(OddPlugin(), "odd")
    monkeypatch.setattr(TensorImages, "labels", torch.tensor([0, 1, 5, 0, 0, 0, 0, 0, 0, 0]), raising=False)
    original = Odd.__init__

    def labelled(self, config, image_size=None):
        original(self, config, image_size)
        self.unlabelled.labels = torch.full((10,), 7)

    monkeypatch.setattr(Odd, "__init__", labelled)
    with pytest.raises(DataError, match=r"odd cannot be prepared: the file .*labels run from 0 to 7, not from -1 to 1"):
        make("odd")
    assert list(tmp_path.iterdir()) == []


def test_a_prepared_file_is_a_source_too(photos, make):
    large = make(photos, side=stored_side(64), max_unreadable=0.2)
    again = make(large.path, "again.safetensors", side=stored_side(64))
    same_sources(opened(large.path), opened(again.path))
    small = opened(make(large.path, "small.safetensors", side=20).path, 16).all()
    assert int(small.fetch(range(len(small))).sizes.amin(1).max()) == 20
    assert [small.id_of(i) for i in range(3)] == ["cat/00.jpg", "cat/01.png", "cat/02.png"]


def test_the_largest_view_is_the_reverse_of_the_stored_side():
    for view in range(8, 600):
        assert largest_view(stored_side(view)) == view
        assert largest_view(stored_side(view + 1) - 1) == view


# -- sizes of view --------------------------------------------------------------------------------
def test_the_size_of_view_follows_what_the_images_were_reduced_to(make, tmp_path):
    for i in range(4):
        save(tmp_path / "large" / f"{i}.jpg", (300, 250), seed=i)
    assert opened(make(tmp_path / "large").path).natural_size == 224
    assert opened(make(tmp_path / "large", "small.safetensors", side=100).path).natural_size == 64
    assert opened(make(tmp_path / "large", "whole.safetensors", side=250).path).natural_size == 192


@pytest.mark.parametrize(
    ("view", "note"), [(16, "SRC --size 18' .* trains faster"), (28, None), (64, "details are lost; .*SRC --size 73'")]
)
def test_a_size_that_does_not_go_with_the_file_is_noted(photos, make, view, note):
    source = opened(make(photos, side=32, max_unreadable=0.2).path, view)
    before = len(source.notes)
    source.train()
    source.train()
    told = source.notes[before:]
    assert told == [] if note is None else len(told) == 1
    assert note is None or re.search(note, told[0])


def test_small_images_suit_every_size(make, tmp_path):
    for i in range(4):
        save(tmp_path / "icons" / f"{i}.png", (16, 12), seed=i)
    source = opened(make(tmp_path / "icons", side=64).path, 128)
    before = list(source.notes)
    source.train()
    assert source.notes == before


# -- memory ---------------------------------------------------------------------------------------
def test_images_are_written_as_they_come(make, tmp_path, monkeypatch):
    for i in range(3 * BATCH + 5):
        save(tmp_path / "many" / f"{i:03}.png", (14, 11), seed=i)
    batches, original = [], StoredImages.fetch

    def watched(self, index):
        batches.append(len(index))
        assert not self.store._small, "an image was kept in memory"
        return original(self, index)

    monkeypatch.setattr(StoredImages, "fetch", watched)
    make(tmp_path / "many")
    assert batches == [BATCH] * 3 + [5]
    batches.clear()
    make(tmp_path / "many", side=8192, overwrite=True)
    assert batches == [1] * (3 * BATCH + 5), "images that may be large come one by one"


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is told by Linux alone")
def test_only_what_is_fetched_is_read(make, tmp_path):
    save(tmp_path / "one" / "1.png", (9, 8))
    with safe_open(make(tmp_path / "one").path, framework="pt") as file:
        metadata = file.metadata()
    count, amount = 128, 3 * 512 * 512
    record = json.loads(metadata["record"]) | {"side": 512}
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


# -- writing --------------------------------------------------------------------------------------
def test_an_error_midway_leaves_what_was_there(photos, make, tmp_path, monkeypatch):
    original, read = folder_module.read_image, []

    def fails(path, channels, side):
        read.append(path)
        if len(read) > 35:
            raise RuntimeError("boom")
        return original(path, channels, side)

    monkeypatch.setattr(folder_module, "read_image", fails)
    for content in (None, b"before"):
        read.clear()
        if content is not None:
            (tmp_path / "photos.safetensors").write_bytes(content)
        with pytest.raises(RuntimeError, match="boom"):
            make(photos, overwrite=True, max_unreadable=0.2)
        kept = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
        assert kept == ({} if content is None else {"photos.safetensors": content})


def test_a_full_disk_is_told(photos, make, tmp_path, monkeypatch):
    def full(self, name, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TensorStream, "append", full)
    with pytest.raises(ConfigError, match=r"--out: cannot write .*photos\.safetensors: No space left on device\. Free"):
        make(photos, max_unreadable=0.2)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_too_many_unreadable_images_stop_it(photos, make, tmp_path):
    with pytest.raises(DataError, match=r"3 of 45 files .*03\.png .*data\.max_unreadable"):
        make(photos, max_unreadable=0.04)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("photos.bin", r"must end in \.safetensors.*Try .*photos\.bin\.safetensors"),
        ("nowhere/photos.safetensors", "no folder '.*nowhere' .*Make it first"),
        ("there.safetensors", "is a folder; expected a file"),
        ("old.safetensors", "exists already.*--force"),
    ],
)
def test_targets_that_cannot_be_written_are_refused_before_anything_is_read(make, tmp_path, name, message):
    (tmp_path / "there.safetensors").mkdir()
    (tmp_path / "old.safetensors").write_bytes(b"old")
    with pytest.raises(ConfigError, match=message):
        make("no such data", name, overwrite=name != "old.safetensors")
    assert (tmp_path / "old.safetensors").read_bytes() == b"old"


def test_the_same_source_gives_the_same_bytes(photos, make):
    first = make(photos, max_unreadable=0.2).path.read_bytes()
    assert make(photos, overwrite=True, max_unreadable=0.2).path.read_bytes() == first


def test_a_stream_is_what_safetensors_reads(tmp_path):
    fixed = {"a": torch.arange(3), "b": torch.zeros(2, 2, dtype=torch.int32)}
    with atomic_file(tmp_path / "x.safetensors") as file:
        stream = TensorStream(file, fixed, ("c", "d"), {"word": 'é"\n'})
        stream.append("c", b"123")
        fixed["b"][1, 0] = 7
        stream.append("c", b"45")
        stream.finish()
    tensors, metadata = read_tensors(tmp_path / "x.safetensors")
    assert metadata == {"word": 'é"\n'}
    assert {name: t.tolist() for name, t in tensors.items()} == {
        "a": [0, 1, 2], "b": [[0, 0], [7, 0]], "c": [49, 50, 51, 52, 53], "d": []
    }  # fmt: skip
    assert tensors["a"].data_ptr() % 8 == 0


# -- what a user passes ---------------------------------------------------------------------------
def test_a_path_to_a_file_becomes_the_source(photos, make, tmp_path):
    path = make(photos, max_unreadable=0.2).path
    for data in (path, str(path)):
        source = source_from(data, 16)
        assert isinstance(source, Prepared)
        assert source.asked_size == 16
    upper = path.rename(tmp_path / "PHOTOS.SafeTensors")
    assert isinstance(source_from(str(upper)), Prepared)
    with pytest.raises(
        DataError, match=r"photo\.safetensors does not exist \(did you mean '.*PHOTOS\.SafeTensors'\?\)"
    ):
        source_from(tmp_path / "photo.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    save(tmp_path / "folder.safetensors" / "1.png", (9, 8))
    assert isinstance(source_from(tmp_path / "folder.safetensors"), Folder)


# -- what is refused ------------------------------------------------------------------------------
@pytest.fixture
def parts(make, tmp_path):
    """Tensors and metadata of a small file: six images, one of them unreadable, two classes, a probe."""
    for i in range(6):
        save(tmp_path / "six" / ("a" if i % 2 else "b") / f"{i}.png", (10 + i, 9), seed=i)
    (tmp_path / "six" / "a" / "1.png").write_bytes(b"")
    path = make(tmp_path / "six").path
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = {name: t.clone() for name, t in load_file(path).items()}
    path.unlink()
    return tensors, metadata


def assert_refused(path, message):
    with pytest.raises(DataError) as caught:
        opened(path)
    text = str(caught.value)
    assert re.search(message, text), text
    assert str(path) in text
    assert "akssl data prepare SRC --out" in text
    assert "\n" not in text
    assert len(text) < 500


def test_the_parts_are_a_good_file(parts, tmp_path):
    save_file(parts[0], tmp_path / "x.safetensors", parts[1])
    assert len(opened(tmp_path / "x.safetensors").all()) == 6


def u8(text):
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def with_sizes(*rows):
    return {"sizes": torch.tensor(rows, dtype=torch.int32)}


def ends(*values):
    """Twice the same hostile number among harmless ones."""
    return torch.tensor([0, 1, 2, 3, *values])


TENSORS = {
    "no sizes": ({"sizes": None}, "lacks sizes"),
    "no pixels": ({"pixels": None, "names": None}, "lacks pixels, names"),
    "float pixels": ({"pixels": torch.zeros(9)}, r"'pixels' is F32 of shape .*, not U8 of shape \(N,\)"),
    "square pixels": ({"pixels": torch.zeros(9, 9, dtype=torch.uint8)}, r"'pixels' is U8 of shape \(9, 9\), not"),
    "long sizes": ({"sizes": torch.zeros(6, 2)}, r"'sizes' is F32 .* not I32 of shape \(N, 2\)"),
    "wide sizes": ({"sizes": torch.zeros(6, 3, dtype=torch.int32)}, r"shape \(6, 3\), not I32"),
    "no images": ({"sizes": torch.zeros(0, 2, dtype=torch.int32)}, "holds no image"),
    "nothing but holes": ({"sizes": torch.zeros(6, 2, dtype=torch.int32), "pixels": torch.zeros(0, dtype=torch.uint8),
                           "unreadable": u8('{"rows":{"0":"","1":"","2":"","3":"","4":"","5":""},"others":{}}')},
                          "none of its images has pixels"),
    "negative sizes": (with_sizes([-9, -9], *[[0, 0]] * 5), "run from -9 to 0 px"),
    "huge sizes": (with_sizes(*[[2**31 - 1, 2**31 - 1]] * 6), "run from 2147483647 to 2147483647 px"),
    "large sizes": (with_sizes(*[[65535, 65535]] * 6), "add up to 77307052050 bytes of pixels, and it holds"),
    "a height alone": (with_sizes([9, 0], *[[0, 0]] * 5), "a height without a width"),
    "missing pixels": ({"pixels": torch.zeros(9, dtype=torch.uint8)}, "add up to .* bytes of pixels, and it holds 9"),
    "sides that outgrow the record": ({**with_sizes(*[[20, 20]] * 6), "pixels": torch.zeros(7200, dtype=torch.uint8)},
                                      "a shorter side of 20 px, more than the 9"),
    "a huge canvas": ({**with_sizes([1, 60000], [60000, 1], *[[9, 9]] * 4),
                       "pixels": torch.zeros(3 * 120324, dtype=torch.uint8)}, "60000 x 60000 px do not go with"),
    "a hole without a reason": ({"unreadable": u8('{"rows":{},"others":{}}')}, "1 images have no pixels, and 0 are"),
    "a reason without a hole": ({"unreadable": u8('{"rows":{"0":"x","7":"y"},"others":{}}')}, "have no pixels, and 2"),
    "reasons that are no JSON": ({"unreadable": u8("{")}, "list of unreadable images is wrong: Invalid JSON"),
    "reasons of another form": ({"unreadable": u8('{"rows":[],"others":{}}')}, "unreadable images is wrong: rows"),
    "reasons without end": ({"unreadable": u8("[" * 100_000)}, "list of unreadable images is wrong"),
    "too few names": ({"names": u8("a\0b")}, "names are not those of 6 images"),
    "too many names": ({"names": u8("\0" * 9)}, "names are not those of 6 images"),
    "float labels": ({"labels": torch.zeros(6)}, "'labels' is F32"),
    "few labels": ({"labels": torch.zeros(5, dtype=torch.int64)}, "5 labels for 6 images"),
    "high labels": ({"labels": ends(2**40, 2**40)}, "labels run from 0 to 1099511627776, not from -1 to 1"),
    "low labels": ({"labels": ends(-2, -2) % 2 - 2}, "labels run from -2 to -1"),
    "rows that are not there": ({"train": ends(6)}, "'train' must hold positions from 0 to 5"),
    "negative rows": ({"queries": ends(-1)}, "'queries' must hold positions from 0 to 5"),
    "no rows": ({"bank": torch.zeros(0, dtype=torch.int64)}, "'bank' must hold positions"),
    "half a probe": ({"bank": None}, "a probe needs bank, queries and labels"),
    "a probe without labels": ({"labels": None}, "a probe needs bank, queries and labels"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_damaged_tensors_are_refused(parts, tmp_path, case):
    changes, message = TENSORS[case]
    tensors = {name: t for name, t in {**parts[0], **changes}.items() if t is not None}
    save_file(tensors, tmp_path / "x.safetensors", parts[1])
    assert_refused(tmp_path / "x.safetensors", message)


RECORDS = {
    "another format": ({"format": "weights"}, "is a safetensors file without prepared images"),
    "no metadata": (None, "is a safetensors file without prepared images"),
    "another version": ({"version": "2"}, "is of version '2', and this akssl reads 1"),
    "no record": ({"record": None}, "its record is wrong: Invalid JSON"),
    "a record without end": ({"record": "[" * 100_000}, "its record is wrong"),
    "half a record": ({"record": '{"channels": 3}'}, "its record is wrong: source Field required"),
    "no channels": ({"channels": 0}, "its record is wrong: channels Input should be greater"),
    "many channels": ({"channels": 10**30}, "its record is wrong: channels"),
    "other channels": ({"channels": 4}, "add up to .* bytes of pixels"),
    "a side that is no number": ({"side": "9" * 5000}, "its record is wrong: side"),
    "a huge view": ({"natural_size": 60000}, "its record is wrong: natural_size .* less than or equal to 512"),
    "few classes": ({"classes": ["a"]}, "labels run from 0 to 1, not from -1 to 0"),
    "classes that are no names": ({"classes": [{}, "b"]}, "its record is wrong: classes.0"),
    "statistics of other channels": ({"mean": [0.5]}, "one number a channel"),
    "endless statistics": ({"std": [1e400, 1, 1]}, "its record is wrong: std"),
    "no deviation": ({"std": [0, 1, 1]}, "its record is wrong: std.0 Input should be greater than 0"),
    "what a later version may add": ({"colour": "x" * 10**6}, "its record is wrong: unknown setting 'colour'"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_damaged_metadata_is_refused(parts, tmp_path, case):
    changes, message = RECORDS[case]
    metadata = dict(parts[1])
    for name, value in (changes or {}).items():
        if name in metadata:
            metadata[name] = value
        else:
            metadata["record"] = json.dumps(json.loads(metadata["record"]) | {name: value})
    metadata = {} if changes is None else {name: value for name, value in metadata.items() if value is not None}
    save_file(parts[0], tmp_path / "x.safetensors", metadata or None)
    assert_refused(tmp_path / "x.safetensors", message)


def test_labels_without_names_have_a_limit_too(parts, tmp_path):
    record = json.dumps(json.loads(parts[1]["record"]) | {"classes": None})
    tensors = {**parts[0], "labels": torch.tensor([0, 1, 2, 3, 4, 2**20])}
    save_file(tensors, tmp_path / "x.safetensors", {**parts[1], "record": record})
    assert_refused(tmp_path / "x.safetensors", "labels run from 0 to 1048576, not from -1 to 1048575")


def header(table, data=b""):
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data


RAW = {
    "empty": lambda good: b"",
    "text": lambda good: b"these are no tensors\n" * 20,
    "a header of exabytes": lambda good: (2**60).to_bytes(8, "little") + good[8:],
    "a header that is no JSON": lambda good: good[:8] + b"x" + good[9:],
    "half": lambda good: good[: len(good) // 2],
    "without its last byte": lambda good: good[:-1],
    "with more behind": lambda good: good + b"\0",
    "a tensor of exabytes": lambda good: header(
        {"pixels": {"dtype": "U8", "shape": [2**60], "data_offsets": [0, 2**60]}}, b"123"
    ),
    "a shape that is not its bytes": lambda good: header(
        {"pixels": {"dtype": "U8", "shape": [2**62, 4], "data_offsets": [0, 3]}}, b"123"
    ),
    "a negative shape": lambda good: header({"pixels": {"dtype": "U8", "shape": [-3], "data_offsets": [0, 3]}}, b"123"),
    "an unknown type": lambda good: header({"pixels": {"dtype": "U9", "shape": [3], "data_offsets": [0, 3]}}, b"123"),
}


@pytest.mark.parametrize("case", RAW)
def test_what_is_no_whole_safetensors_file_is_refused(parts, tmp_path, case):
    path = tmp_path / "x.safetensors"
    save_file(parts[0], path, parts[1])
    path.write_bytes(RAW[case](path.read_bytes()))
    assert_refused(path, "cannot be read: ")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert_refused(tmp_path / "nowhere" / "x.safetensors", "does not exist")
    (tmp_path / "f.safetensors").mkdir()
    assert_refused(tmp_path / "f.safetensors", "cannot be read")


def test_names_that_are_no_text_can_be_shown(parts, tmp_path):
    names = torch.tensor([255, 0, 98, 0, 99, 0, 0, 0], dtype=torch.uint8)
    save_file({**parts[0], "names": names}, tmp_path / "x.safetensors", parts[1])
    assert opened(tmp_path / "x.safetensors").all().id_of(0) == "\ufffd"
