"""What `data` cannot be is told with what it can be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from drawn_folders import save
from PIL import Image
from torch.utils.data import Dataset

import akssl_core
from akssl_core import DataError
from akssl_core.data import open_source
from akssl_core.data.decode import read_image
from akssl_core.plugins.manager import Plugins

IMAGES = np.zeros((8, 12, 12, 3), dtype=np.uint8)


@pytest.mark.parametrize("key", ["image", "pixels"])
def test_a_table_with_arrays_is_told_to_be_a_pair(key):
    table = {key: IMAGES, "label": np.arange(8)}
    for use in (lambda: open_source(table, Plugins()), lambda: akssl_core.explain("simsiam", data=table)):
        with pytest.raises(DataError, match=rf"a table \({key}, label\) with arrays .*data=\(images, labels\)"):
            use()


def test_a_stream_of_hugging_face_is_told_what_to_do():
    foreign = type("IterableDataset", (), {"__module__": "datasets.iterable_dataset"})()
    with pytest.raises(DataError, match=r"no order to shuffle.*streaming=True.*'hf/NAME'.*akssl-plugin-hf-datasets"):
        akssl_core.explain("simsiam", data=foreign)


# -- lists, frames and dicts ----------------------------------------------------------------------
LABELS = ["cat" if i % 3 else "dog" for i in range(10)]


@pytest.fixture
def pictures(tmp_path):
    """Ten files in no order, of several sizes."""
    paths = [tmp_path / f"{(7 * i) % 10}.png" for i in range(10)]
    return [save(path, (14 + i % 3, 12), seed=i) for i, path in enumerate(paths)]


def opened(path):
    with Image.open(path) as image:
        image.load()
        return image


class Dicts(Dataset):
    """Items as many libraries give them."""

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return {"Image": opened(self.paths[i]), "meta": 3, "label": LABELS[i]}


class Frame:
    """What pandas offers of a frame."""

    iloc = None
    columns = ("other", "filename", "label")

    def __init__(self, paths):
        self.paths = paths

    def __getitem__(self, name):
        cells = {"filename": self.paths, "label": LABELS, "other": range(10)}[name]
        return np.array([str(cell) for cell in cells], dtype=object)


WITH_LABELS = {
    "paths": lambda paths: (paths, LABELS),
    "texts": lambda paths: ([str(path) for path in paths], np.array(LABELS)),
    "Pillow": lambda paths: ([opened(path) for path in paths], LABELS),
    "arrays": lambda paths: ([np.asarray(opened(path)) for path in paths], tuple(LABELS)),
    "dicts": Dicts,
    "frame": Frame,
}


@pytest.mark.parametrize("form", WITH_LABELS)
def test_objects_show_the_same_in_the_order_that_they_have(pictures, form):
    images = open_source(WITH_LABELS[form](pictures), Plugins(), 12).all()
    assert [images.classes[label] for label in images.labels] == LABELS
    for i, path in enumerate(pictures):
        assert torch.equal(images.fetch([i]).image(0), read_image(path, 3, None))


@pytest.mark.parametrize("form", ["paths", "Pillow", "arrays"])
def test_a_list_alone_has_no_labels(pictures, form):
    source = open_source(WITH_LABELS[form](pictures)[0], Plugins(), 12)
    assert (len(source.train()), source.all().labels, source.probe()) == (10, None, None)


def test_a_data_set_of_hugging_face_is_read_in_place(pictures):
    datasets = pytest.importorskip("datasets", reason="the library is an extra")
    names = ["dog", "cat"]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {"image": [str(path) for path in pictures], "label": [names.index(label) for label in LABELS]}
    images = open_source(datasets.Dataset.from_dict(rows, features=features), Plugins(), 12).all()
    assert [names[label] for label in images.labels] == LABELS
    assert torch.equal(images.fetch([3]).image(0), read_image(pictures[3], 3, None))


BAD = {
    "labels: got 9 labels for 10 images": lambda paths: (paths, LABELS[1:]),
    "cannot use a list": lambda paths: [],
    "2 of 10 files in a list of 10 files cannot be read.*x0.png": lambda paths: [*paths[:8], "x0.png", "x1.png"],
    "cannot use a list. Give": lambda paths: [*paths, 3],
    "holds dict where its image should be": lambda paths: Dicts2(paths),
}


class Dicts2(Dicts):
    """Items without an image."""

    def __getitem__(self, i):
        return {"label": 3}


@pytest.mark.parametrize("text", BAD)
def test_what_cannot_be_used_is_told(pictures, text):
    with pytest.raises(DataError, match=text):
        open_source(BAD[text](pictures), Plugins(), 12)


def test_a_result_is_one_line(photos, tmp_path):
    result = akssl_core.run("simsiam", data=photos, steps=1, batch_size=8, out=tmp_path / "r", report=False)
    assert len(repr(result)) < 200 + len(str(tmp_path))
    assert "knn_top1" in repr(result)
    assert str(result.run_dir) in repr(result)
