"""Stores of images as a stranger writes one: batches of cells, threads, memory, damage, and the official queries."""

from __future__ import annotations

import errno
import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from prepared_files import save

import akssl_core
from akssl_core import DataError, HoldOutSource, ImageStore, Schema, StoredImages, Unreadable
from akssl_core.data import Loader, Subset
from akssl_core.data.decode import read_image
from akssl_core.data.stored import usable_cores


class Packed(ImageStore):
    """PNG files in a list, as bytes; None where there is none."""

    channels = 3

    def __init__(self, files, **settings):
        super().__init__(len(files), "'list'", **{"max_unreadable": 0.5, "cache_gb": 1.0} | settings)
        self.files, self.asked, self.decoded = files, [], 0

    def cells(self, rows):
        self.asked.append(list(rows))
        return [self.files[row] for row in rows]

    def header(self, cell):
        if cell is None:
            raise Unreadable("nothing there")
        return akssl_core.image_header(cell)

    def decode(self, cell, side):
        self.decoded += 1
        if cell is None:
            raise Unreadable("nothing there")
        return akssl_core.decode_image(cell, self.channels, side)


def png(value, size=(12, 8)):
    file = io.BytesIO()
    Image.fromarray(np.full((*size[::-1], 3), value, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def shown(images, index):
    pixels = images.fetch(index)
    return [int(pixels.image(i)[0, 0, 0]) for i in range(len(pixels))]


def test_cells_are_asked_for_once_a_batch_and_never_again():
    store = Packed([png(i) for i in range(8)])
    images = StoredImages(store, range(8), 16)
    assert shown(images, [5, 2, 5]) == [5, 2, 5]
    assert store.asked == [[5, 2]]
    assert shown(images, [2, 5]) == [2, 5]
    assert (store.asked, store.decoded) == ([[5, 2]], 2)
    assert [images.id_of(i) for i in (0, 7)] == ["0", "7"]


class Meeting(Packed):
    """Images of which as many must be decoded at once as there are threads."""

    def __init__(self, count, threads):
        super().__init__([png(i) for i in range(count)])
        self.meet = threading.Barrier(threads)

    def decode(self, cell, side):
        self.meet.wait(timeout=60)
        return super().decode(cell, side)


def test_as_many_threads_decode_as_workers_were_asked_for():
    images = StoredImages(Meeting(6, 3), range(6), 16)
    part = images.subset(torch.arange(6))
    assert part.decoder.threads == usable_cores()
    assert Loader(Subset(part, torch.arange(6)), 6).images.decoder.threads == usable_cores()
    loader = Loader(Subset(part, torch.arange(6)), 6, workers=3)
    assert len(list(loader.epoch(0))) == 1
    assert images.decoder.threads == 3


def test_the_budget_counts_bytes():
    store = Packed([png(i) for i in range(4)], cache_gb=2 * 12 * 8 * 3 / 2**30)
    images = StoredImages(store, range(4), 16)
    for _ in range(3):
        assert shown(images, range(4)) == [0, 1, 2, 3]
    assert store.decoded == 4 + 2 + 2


def test_a_sample_tells_the_channels_and_the_median_side():
    store = Packed([png(1, (20, 10)), png(2, (14, 30)), png(3, (99, 50)), png(4, (7, 7))])
    assert store.look() == (3, 10)
    assert store.look(3) == (3, 14)
    assert store.decoded == 0


def test_what_cannot_be_read_is_stood_in_for_within_the_set_and_the_class():
    store = Packed([png(0), None, png(2), png(3), png(4)])
    labels = torch.tensor([0, 1, 0, 1, 1])
    images = StoredImages(store, range(5), 16, labels)
    part = images.subset(torch.tensor([1, 2, 4]))
    assert shown(images, [1, 2]) == [3, 2]
    assert shown(part, [0]) == [4], "row 3 is not shown here"
    assert part.fetch([0]).unreadable == ((0, "nothing there"),)
    assert part.unreadable is images.unreadable
    assert images.unreadable == {"1": "nothing there"}


def test_messages_say_what_lies_where():
    with pytest.raises(DataError, match=r"none of 2 images looked at in 'list' can be read: 0 \(nothing there\); 1"):
        Packed([None] * 2).look()
    with pytest.raises(DataError, match=r"2 of 8 images in 'list' cannot be read \(25.0%, allowed 10.0%\): 0 .*raise"):
        Packed([None, None, *[png(1)] * 6], max_unreadable=0.1).look()
    lost = Packed([None] * 3, max_unreadable=1.0)
    with pytest.raises(DataError, match="none of 3 images in 'list' can be read"):
        StoredImages(lost, range(3), 16).fetch([0])


def test_what_is_broken_from_the_start_counts():
    store = Packed([png(1)] * 9, max_unreadable=0.0, broken={"x": "a folder"})
    with pytest.raises(DataError, match=r"1 of 10 images .*x \(a folder\)"):
        store.look()


class PackedSource(HoldOutSource):
    """A source of a stranger: everything but the images is the core's."""

    name = "packed"

    def __init__(self, files, labels, image_size=None):
        super().__init__(Schema(), image_size)
        self.store = Packed(files)
        _, self.shorter = self.store.look()
        self.labels, self.classes = akssl_core.encode_labels(labels, len(files))
        self.note_split()

    def make_images(self):
        return StoredImages(self.store, range(len(self.store)), self.stored_side, self.labels, self.classes)


def test_a_source_of_a_few_lines_holds_out_and_reduces():
    source = PackedSource([png(i, (80, 70)) for i in range(12)], [*"aabbaabbaab", None])
    bank, queries = source.probe()
    assert (len(source.all()), len(source.train()), len(bank), len(queries)) == (12, 10, 9, 2)
    assert source.all().classes == ("a", "b")
    assert source.natural_size == akssl_core.suitable_size(70) == 64
    assert source.train().fetch([0]).images.shape == (1, 3, 70, 80), "smaller than 12/7 of the views"
    assert any("2 of 11 labelled images (one in five of each class) are held out" in note for note in source.notes)
    small = PackedSource([png(i, (80, 70)) for i in range(12)], ["a", "b"] * 6, image_size=28)
    assert small.all().fetch([0]).images.shape == (1, 3, 48, 54)


def test_the_nearest_names_are_public(tmp_path):
    (tmp_path / "photos").mkdir()
    assert akssl_core.nearest_path(tmp_path / "fotos") == tmp_path / "photos"
    assert akssl_core.did_you_mean("lable", ["label", "image"]) == " Did you mean 'label'?"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_what_the_machine_lacks_is_not_blamed_on_an_image(monkeypatch, tmp_path, number):
    def refused(self, *arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(OSError, match=os.strerror(number)):
        read_image(tmp_path / "x.png", 3, 8)


def test_no_memory_to_decode_an_image_is_not_blamed_on_it(monkeypatch, tmp_path):
    save(tmp_path / "x.png", (9, 9))
    monkeypatch.setattr("akssl_core.data.decode.pil_to_tensor", lambda *a: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        read_image(tmp_path / "x.png", 3, 8)
