"""Arrays and tensors as data, their labels, and the split that is held out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from akssl_core.data import Arrays
from akssl_core.data.labels import MOST_QUERIES, encode_labels, hold_out
from akssl_core.errors import DataError


def numbers(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_both_layouts_give_the_same_images(kind):
    images = numbers(6, 9, 11, 3)
    last = Arrays(kind(images)).train()
    first = Arrays(kind(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))).train()
    assert last.channels == first.channels == 3
    expected = torch.from_numpy(images[[4, 2]]).permute(0, 3, 1, 2)
    assert torch.equal(last.fetch([4, 2]).images, expected)
    assert torch.equal(first.fetch([4, 2]).images, expected)
    assert last.fetch([4, 2]).images.is_contiguous()


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((5, 12, 12), 1), ((5, 1, 12, 12), 1), ((5, 12, 12, 13), 13), ((5, 13, 8, 8), 13), ((5, 2, 9, 7), 2)],
)
def test_any_number_of_channels(shape, channels):
    assert Arrays(numbers(*shape)).train().channels == channels


def test_a_shape_that_fits_both_layouts_must_be_explained():
    images = numbers(5, 8, 9, 8)
    with pytest.raises(DataError, match=r"layout='CHW'\) or layout='HWC'"):
        Arrays(images)
    assert Arrays(images, layout="HWC").train().fetch([0]).images.shape == (1, 8, 8, 9)
    assert Arrays(images, layout="CHW").train().fetch([0]).images.shape == (1, 8, 9, 8)


@pytest.mark.parametrize("shape", [(32, 32, 3), (0, 8, 8, 3), (5, 5), (2, 3, 4, 5, 6), (4, 3, 0, 5)])
def test_what_is_no_stack_of_images_is_refused(shape):
    with pytest.raises(DataError, match=r"expected .*\[N, H, W"):
        Arrays(np.zeros(shape, dtype=np.uint8))


def test_memory_is_shared_and_read_only_memory_is_read(tmp_path):
    np.save(tmp_path / "images.npy", numbers(5, 8, 8, 3))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    source = Arrays(mapped)
    assert torch.equal(source.train().fetch([3]).image(0), torch.from_numpy(mapped[3].copy()).permute(2, 0, 1))
    owned = torch.from_numpy(numbers(5, 3, 8, 8))
    assert Arrays(owned).train().images.data_ptr() == owned.data_ptr()


def test_reversed_and_foreign_arrays_are_read():
    images = numbers(5, 8, 8, 3)
    assert torch.equal(Arrays(images[::-1]).train().fetch([0]).images, Arrays(images).train().fetch([4]).images)
    swapped = (images / 255).astype(">f4")
    assert torch.equal(Arrays(swapped).train().fetch([2]).images, Arrays(images).train().fetch([2]).images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_floats_in_the_unit_interval_are_converted_and_told(dtype):
    source = Arrays(torch.linspace(0, 1, 256).view(4, 1, 8, 8).to(dtype))
    assert source.train().fetch(range(4)).images.flatten().tolist() == list(range(256))
    assert any("converted" in note for note in source.notes)


@pytest.mark.parametrize(
    ("images", "cure"),
    [
        (torch.full((2, 3, 8, 8), -1.0), "pass raw images"),
        (torch.full((2, 3, 8, 8), float("nan")), "pass raw images"),
        (torch.full((2, 3, 8, 8), 200.0), "convert them to uint8"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "convert them to uint8"),
        (np.array([[None]]), "torch.utils.data.Dataset"),
        (np.array(["a"]), "uint8"),
    ],
)
def test_other_values_are_refused_with_the_cure(images, cure):
    with pytest.raises(DataError, match=cure):
        Arrays(images)


@pytest.mark.parametrize("kind", [list, np.asarray, torch.as_tensor])
def test_labels_of_any_kind(kind):
    labels, classes = encode_labels(kind([2, 0, -1, 1]), 4)
    assert labels.tolist() == [2, 0, -1, 1]
    assert labels.dtype == torch.int64
    assert classes is None


def test_texts_and_large_numbers_are_numbered_in_order():
    assert encode_labels(["dog", "cat", "dog"], 3)[0].tolist() == [1, 0, 1]
    labels, classes = encode_labels(np.array([70, -5, 70]), 3)
    assert labels.tolist() == [1, 0, 1]
    assert classes == ("-5", "70")
    assert encode_labels(np.array(["b", "a"], dtype=object), 2)[1] == ("a", "b")


@pytest.mark.parametrize(
    ("given", "labels", "classes"),
    [
        (["b", None, "a"], [1, -1, 0], ("a", "b")),
        ([0, 2, None, -1], [0, 2, -1, -1], None),
        (np.array([70, None, 9], dtype=object), [1, -1, 0], ("9", "70")),
        ([None, None], [-1, -1], None),
    ],
)
def test_none_is_an_unknown_label(given, labels, classes):
    found, names = encode_labels(given, len(given))
    assert (found.tolist(), found.dtype, names) == (labels, torch.int64, classes)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([0, 1], "got 2 labels for 4 images"),
        (np.eye(4), r"labels\.argmax\(1\)"),
        ([0.5, 1, 2, 3], "whole numbers or texts, got float64"),
        ([[0], [1, 2], [0], [0]], "some items are lists"),
        (np.array([None, None, [1], [2]], dtype=object), "some items are lists"),
        ([0.5, None, 1, 2], "whole numbers or texts, got float64"),
    ],
)
def test_wrong_labels_are_refused(labels, text):
    with pytest.raises(DataError, match=text):
        Arrays(numbers(4, 8, 8, 3), labels)


def test_the_split_is_stratified_disjoint_and_complete():
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 2 + [3] + [-1] * 7)[torch.randperm(70)]
    bank, queries = hold_out(labels)
    assert torch.bincount(labels[queries]).tolist() == [10, 2, 1]  # a class with one image stays in the bank
    assert torch.bincount(labels[bank]).tolist() == [40, 8, 1, 1]
    assert len(set(bank.tolist()) | set(queries.tolist())) == 63


def test_the_queries_are_capped_evenly():
    labels = torch.arange(2).repeat(20_000)
    bank, queries = hold_out(labels)
    assert len(queries) <= MOST_QUERIES
    counts = torch.bincount(labels[queries])
    assert abs(int(counts[0] - counts[1])) <= 1
    assert len(bank) + len(queries) == len(labels)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [-1, -1, -1, -1], [0, 1, 2, 3]])
def test_labels_that_tell_nothing_apart_hold_out_nothing(labels):
    source = Arrays(numbers(4, 8, 8, 3), labels)
    assert source.probe() is None
    assert len(source.train()) == 4


def test_training_does_not_see_the_queries():
    images = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(40, 1, 8, 8)
    labels = torch.arange(40) % 4
    labels[:3] = -1
    source = Arrays(images, labels)
    bank, queries = source.probe()
    shown = {
        name: set(part.fetch(range(len(part))).images[:, 0, 0, 0].tolist())
        for name, part in (("train", source.train()), ("bank", bank), ("queries", queries), ("all", source.all()))
    }
    assert shown["train"] == shown["bank"] | {0, 1, 2}  # images without a label train as well
    assert not shown["train"] & shown["queries"]
    assert shown["all"] == set(range(40))
    assert queries.labels.tolist() == [int(i) % 4 for i in queries.rows]
    assert any("training does not see them" in note for note in source.notes)


def test_without_labels_everything_trains():
    source = Arrays(numbers(7, 40, 30, 3))
    assert source.probe() is None
    assert len(source.train()) == 7
    assert source.natural_size == 28
