"""Data sets with files of their own, and the way from what a user passes to a source."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

import akssl_core.data.fashion_mnist as fashion
from akssl_core.config.schema import DataRef, validate
from akssl_core.data import Arrays, FashionMnist, Folder, Loader, Shapes, Wrapped, measure, no_such_data, open_source
from akssl_core.data.fashion_mnist import CLASSES, DEBIAN, FILES, read_idx
from akssl_core.data.torchvision_sources import Cifar10, Cifar100, Imagenette, Stl10, data_root
from akssl_core.errors import ConfigError, DataError
from akssl_core.plugins.manager import Plugins


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty data root, and no files from the system."""
    monkeypatch.setenv("AKSSL_DATA", str(tmp_path / "root"))
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "no such folder")
    return tmp_path / "root"


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# -- the data root --------------------------------------------------------------------------------
def test_the_data_root_is_the_variable_or_the_cache(root, monkeypatch):
    assert data_root() == root
    monkeypatch.delenv("AKSSL_DATA")
    assert data_root() == Path.home() / ".cache" / "akssl"


# -- IDX files ------------------------------------------------------------------------------------
def idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_fashion(folder, train=30, test=10, suffix="", pack=lambda data: data):
    folder.mkdir(parents=True)
    arrays = [noise(train, 28, 28), np.arange(train, dtype=np.uint8) % 10, noise(test, 28, 28, seed=1),
              np.arange(test, dtype=np.uint8) % 10]  # fmt: skip
    for name, array in zip(FILES, arrays, strict=True):
        (folder / (name + suffix)).write_bytes(pack(idx(array)))
    return arrays


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress)])
def test_fashion_mnist_is_read_from_the_data_root(root, suffix, pack):
    arrays = write_fashion(root / "fashion-mnist", suffix=suffix, pack=pack)
    source = FashionMnist(FashionMnist.Config())
    bank, queries = source.probe()
    assert source.natural_size == 28
    assert source.train().channels == 1
    assert source.train().classes == CLASSES
    assert torch.equal(source.train().fetch([7]).image(0)[0], torch.from_numpy(arrays[0][7]))
    assert (len(bank), len(queries)) == (30, 10)
    assert queries.labels.tolist() == arrays[3].tolist()


def test_the_files_of_the_package_and_of_torchvision_are_found(root, tmp_path, monkeypatch):
    write_fashion(root / "FashionMNIST" / "raw", train=20)
    assert len(FashionMnist(FashionMnist.Config(download=False)).train()) == 20
    write_fashion(tmp_path / "debian", train=25, suffix=".gz", pack=gzip.compress)
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "debian")
    assert len(FashionMnist(FashionMnist.Config()).train()) == 25


def test_size_takes_the_first_training_images(root):
    arrays = write_fashion(root / "fashion-mnist")
    source = FashionMnist(FashionMnist.Config(size=12))
    assert len(source.train()) == len(source.probe()[0]) == 12
    assert source.train().labels.tolist() == arrays[1][:12].tolist()
    assert len(source.probe()[1]) == 10
    with pytest.raises(DataError, match="size: 31 is more than the 30"):
        FashionMnist(FashionMnist.Config(size=31)).train()


def test_missing_files_are_named(root):
    write_fashion(root / "fashion-mnist")
    (root / "fashion-mnist" / FILES[3]).unlink()
    with pytest.raises(DataError, match=r"lacks t10k-labels-idx1-ubyte \(plain or .gz\)"):
        FashionMnist(FashionMnist.Config()).train()


def test_files_that_do_not_belong_together_are_refused(root):
    write_fashion(root / "fashion-mnist")
    (root / "fashion-mnist" / FILES[1]).write_bytes(idx(np.zeros(29, dtype=np.uint8)))
    with pytest.raises(DataError, match=r"images of shape \(30, 28, 28\) and labels of shape \(29,\)"):
        FashionMnist(FashionMnist.Config()).train()


WHOLE = idx(np.arange(12, dtype=np.uint8).reshape(3, 4))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "starts with nothing"),
        (b"text that is no IDX file", "starts with 74 65 78 74"),
        (b"\0\0\x0d\x01" + WHOLE[4:], "not an IDX file of uint8"),
        (WHOLE[:6], "6 bytes do not fit its header"),
        (WHOLE[:-1], "do not fit its header"),
        (WHOLE + b"\0", "do not fit its header"),
        (b"\0\0\x08\0", "do not fit its header"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path, data, text):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(DataError, match=text):
        read_idx(tmp_path / "a")


def test_idx_files_are_read_whole_or_refused(tmp_path):
    (tmp_path / "a").write_bytes(WHOLE)
    assert read_idx(tmp_path / "a").tolist() == np.arange(12).reshape(3, 4).tolist()
    for data in (gzip.compress(WHOLE)[:-9], b"no gzip"):
        (tmp_path / "a.gz").write_bytes(data)
        with pytest.raises(DataError, match="cannot be read"):
            read_idx(tmp_path / "a.gz")


@pytest.mark.skipif(not DEBIAN.exists(), reason="needs Debian's package dataset-fashion-mnist")
def test_the_real_files(monkeypatch):
    monkeypatch.setattr(fashion, "DEBIAN", DEBIAN)
    source = FashionMnist(FashionMnist.Config())
    assert (len(source.train()), len(source.probe()[1])) == (60_000, 10_000)
    assert torch.bincount(source.train().labels).tolist() == [6000] * 10
    mean, std = measure(source.train())
    assert mean[0] == pytest.approx(source.mean[0], abs=0.02)
    assert std[0] == pytest.approx(source.std[0], abs=0.02)


# -- torchvision ----------------------------------------------------------------------------------
class FakeCifar:
    """What torchvision's class offers, without the files."""

    calls = ()
    classes = ("cat", "dog")

    def __init__(self, root, train, download):
        type(self).calls += ((train, download),)
        count = 12 if train else 4
        self.data, self.targets = noise(count, 32, 32, 3, seed=int(train)), [i % 2 for i in range(count)]


class FakeStl:
    """The same for a data set with an unlabelled split."""

    classes = ("cat", "dog")

    def __init__(self, root, split, download):
        count = {"unlabeled": 9, "train": 6, "test": 3}[split]
        self.data = noise(count, 3, 96, 96)
        self.labels = np.full(count, -1) if split == "unlabeled" else np.arange(count) % 2


@pytest.mark.parametrize(("source_class", "name"), [(Cifar10, "CIFAR10"), (Cifar100, "CIFAR100")])
def test_small_colour_images_with_an_official_split(monkeypatch, source_class, name):
    fake = type("Fake", (FakeCifar,), {})
    monkeypatch.setattr(datasets, name, fake)
    source = source_class(source_class.Config())
    bank, queries = source.probe()
    assert (len(source.train()), len(queries)) == (12, 4)
    assert source.train() is bank
    assert fake.calls == ((True, False), (False, False))  # each part read once, nothing downloaded
    assert bank.fetch([3]).image(0).shape == (3, 32, 32)
    assert torch.equal(bank.fetch([3]).image(0), torch.from_numpy(noise(12, 32, 32, 3, seed=1)[3]).permute(2, 0, 1))
    assert (source.family, source.natural_size, bank.classes) == ("cifar", 32, ("cat", "dog"))
    assert len(source.mean) == len(source.std) == 3


def test_training_on_unlabelled_images_and_probing_on_labelled_ones(monkeypatch):
    monkeypatch.setattr(datasets, "STL10", FakeStl)
    source = Stl10(Stl10.Config())
    bank, queries = source.probe()
    assert source.train().labels is None
    assert [len(part) for part in (source.train(), bank, queries)] == [9, 6, 3]
    assert bank.labels.tolist() == [0, 1] * 3
    assert source.train().fetch([0]).images.shape == (1, 3, 96, 96)


def test_photos_are_decoded_like_a_folder(root, monkeypatch):
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            path = root / "imagenette2-320" / split / f"n{i % 2}" / f"{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise(64, 80, 3, seed=i)).save(path)
    monkeypatch.setattr(datasets, "Imagenette", lambda root, **arguments: None)
    source = Imagenette(Imagenette.Config(), 28)
    bank, queries = source.probe()
    assert (len(source.train()), len(queries)) == (4, 2)
    assert bank.labels.tolist() == [0, 0, 1, 1]
    assert bank.fetch([0]).images.shape == (1, 3, 48, 60)


def test_a_download_happens_only_when_the_files_are_missing(root, monkeypatch):
    class Missing(FakeCifar):
        """Not there until it is downloaded."""

        def __init__(self, root, train, download):
            if not download:
                raise RuntimeError("not found")
            assert root.is_dir()
            super().__init__(root, train, download)

    monkeypatch.setattr(datasets, "CIFAR10", Missing)
    assert len(Cifar10(Cifar10.Config()).train()) == 12
    with pytest.raises(DataError, match=r"download is off\. Put cifar-10-python.tar.gz from http"):
        Cifar10(Cifar10.Config(download=False)).train()


@pytest.mark.parametrize(
    ("source_class", "name", "files"),
    [
        (Cifar10, "CIFAR10", "cifar-10-python.tar.gz"),
        (Stl10, "STL10", "stl10_binary.tar.gz"),
        (Imagenette, "Imagenette", "imagenette2-320.tgz"),
        (FashionMnist, "FashionMNIST", "a folder fashion-mnist with the four files"),
    ],
)
def test_without_a_network_the_way_by_hand_is_told(root, monkeypatch, source_class, name, files):
    def no_network(*args, download, **arguments):
        raise URLError("no\nnetwork") if download else RuntimeError("not found")

    monkeypatch.setattr(datasets, name, no_network)
    with pytest.raises(DataError) as caught:
        source_class(source_class.Config()).train()
    message = str(caught.value)
    assert "no network" in message
    assert f"Put {files}" in message
    assert str(root) in message
    assert "AKSSL_DATA" in message


# -- names and objects ----------------------------------------------------------------------------
def test_sources_are_registered_and_built_by_name(tmp_path):
    manager = Plugins()
    manager.entries = []
    named = {"shapes", "folder", "prepared", "fashion-mnist", "cifar10", "cifar100", "stl10", "imagenette"}
    assert set(manager.names("data")) >= named
    Image.fromarray(noise(9, 9, 3)).save(tmp_path / "1.png")

    class Holder(DataRef):
        """A reference on its own."""

    reference = validate(Holder, {"name": "folder", "path": str(tmp_path)}, registry=manager)
    assert reference.model_dump()["path"] == str(tmp_path)
    assert isinstance(reference.build(32), Folder)
    with pytest.raises(ConfigError, match="Did you mean 'max_unreadable'"):
        validate(Holder, {"name": "folder", "path": ".", "max_unreadabel": 1}, registry=manager)


def test_objects_become_sources(tmp_path, plugins):
    images = noise(4, 8, 8, 3)
    assert isinstance(open_source(images, plugins), Arrays)
    assert open_source(torch.from_numpy(images), plugins, 16).asked_size == 16
    assert open_source((images, [0, 1, 0, 1]), plugins).all().labels.tolist() == [0, 1, 0, 1]
    assert isinstance(open_source(torch.utils.data.TensorDataset(torch.from_numpy(images)), plugins), Wrapped)
    ready = Arrays(images, layout="HWC")
    assert open_source(ready, plugins) is ready
    Image.fromarray(images[0]).save(tmp_path / "1.png")
    for data in (tmp_path, str(tmp_path), {"name": str(tmp_path)}, {"name": "folder", "path": tmp_path}):
        assert isinstance(open_source(data, plugins), Folder)
    assert isinstance(open_source("shapes", plugins), Shapes)
    assert open_source({"name": "shapes", "size": 30}, plugins, 8).config.size == 30


@pytest.mark.parametrize("data", [3, None, [1, 2], object()])
def test_what_is_no_data_is_told_what_can_be_given(data, plugins):
    with pytest.raises(DataError, match=f"cannot use a {type(data).__name__}. Give a source name, a prepared file"):
        open_source(data, plugins)


def test_a_missing_path_is_refused(tmp_path, plugins):
    for data in (tmp_path / "photos", str(tmp_path / "photos")):
        with pytest.raises(DataError, match="neither a data source nor an existing folder"):
            open_source(data, plugins)
    with pytest.raises(DataError, match="does not exist"):
        open_source({"name": "folder", "path": tmp_path / "photos"}, plugins)


def test_a_wrong_name_is_answered_with_the_nearest(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    names = ["shapes", "cifar10"]
    monkeypatch.chdir(tmp_path)
    assert "Did you mean 'cifar10'? Sources: cifar10, shapes." in str(no_such_data("cifar-1", names))
    assert "Did you mean the folder 'photos'?" in str(no_such_data("photo", names))
    assert f"Did you mean the folder '{tmp_path}/photos'?" in str(no_such_data(f"{tmp_path}/photso/x", names))
    assert "Did you mean" not in str(no_such_data("qqqq", names))


def test_every_source_from_python_feeds_the_loader(tmp_path, plugins):
    images = noise(20, 8, 8, 3)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    data = torch.utils.data.TensorDataset(torch.from_numpy(images))
    batches = []
    for source in (open_source(one, plugins) for one in (images, tmp_path, data)):
        pixels, index, _ = next(iter(Loader(source.train(), 5, seed=3).epoch(0)))
        batches.append((pixels.images, index))
    for found, index in batches:
        assert torch.equal(found, batches[0][0])
        assert torch.equal(index, batches[0][1])
