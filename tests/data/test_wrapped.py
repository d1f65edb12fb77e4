"""Torch data sets as data: kinds of items, labels, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset, random_split

from akssl_core.data import Wrapped
from akssl_core.data.wrapped import READ_FOR_LABELS
from akssl_core.errors import DataError


class Items(Dataset):
    """A list as a data set; it counts how often items are read."""

    def __init__(self, items, **attributes):
        self.items, self.reads = items, 0
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        self.reads += 1
        return self.items[i]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


RGB = noise(9, 12, 3)
EXPECTED = torch.from_numpy(RGB).permute(2, 0, 1)


@pytest.mark.parametrize(
    "image",
    [Image.fromarray(RGB), RGB, EXPECTED, EXPECTED.numpy(), EXPECTED.double() / 255],
    ids=["pillow", "array HWC", "tensor CHW", "array CHW", "float tensor"],
)
@pytest.mark.parametrize("label", [(), (3,), (3, "extra")], ids=["alone", "label", "more"])
def test_kinds_of_items(image, label):
    images = Wrapped(Items([(image, *label) if label else image] * 4)).train()
    assert torch.equal(images.fetch([2]).image(0), EXPECTED)


def test_items_of_varying_size_and_mode():
    items = [Image.fromarray(noise(20 + i, 30)) if i % 2 else Image.fromarray(noise(40, 20 + i, 3)) for i in range(8)]
    pixels = Wrapped(Items(items), image_size=14).train().fetch(range(8))
    assert pixels.channels == 3  # colour, as soon as one item has it
    assert pixels.sizes.amin(1).tolist() == [20, 21, 22, 23, 24, 24, 24, 24]


def test_gray_and_many_channels():
    assert Wrapped(Items([noise(9, 9)] * 3)).train().channels == 1
    assert Wrapped(Items([Image.fromarray(noise(9, 9))] * 3)).train().channels == 1
    assert Wrapped(Items([torch.zeros(13, 9, 9, dtype=torch.uint8)] * 3)).train().fetch([1]).images.shape == (
        1,
        13,
        9,
        9,
    )


def test_large_items_are_reduced_to_the_views():
    images = Wrapped(Items([noise(300, 400, 3), Image.fromarray(noise(400, 300, 3))]), image_size=56).train()
    assert images.fetch([0, 1]).sizes.tolist() == [[96, 128], [128, 96]]


def test_unequal_channels_are_told_with_the_item():
    items = [torch.zeros(3, 9, 9, dtype=torch.uint8)] * 20 + [torch.zeros(5, 9, 9, dtype=torch.uint8)]
    with pytest.raises(DataError, match="cannot turn 5 channels into 3"):
        Wrapped(Items(items)).train().fetch([20])


# -- labels ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["targets", "labels"])
@pytest.mark.parametrize("kind", [list, np.asarray, torch.as_tensor])
def test_labels_beside_the_images_are_used_without_reading(name, kind):
    data = Items([RGB] * 20, **{name: kind([i % 2 for i in range(20)])})
    source = Wrapped(data)
    assert data.reads == 8  # the few that are looked at
    assert source.all().labels.tolist() == [i % 2 for i in range(20)]
    bank, queries = source.probe()
    assert (len(bank), len(queries), len(source.train())) == (16, 4, 16)


def test_labels_inside_torchs_own_wrappers():
    data = Items([RGB] * 10, targets=list("ab" * 5))
    assert Wrapped(Subset(data, [1, 2, 3])).all().labels.tolist() == [1, 0, 1]
    assert Wrapped(random_split(data, [6, 4])[0]).all().labels is not None
    assert Wrapped(ConcatDataset([data, Subset(data, [0])])).all().labels.tolist() == [0, 1] * 5 + [0]
    tensors = TensorDataset(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([3, 1, 2, 0]))
    assert Wrapped(tensors).all().labels.tolist() == [3, 1, 2, 0]
    assert Wrapped(TensorDataset(tensors.tensors[0])).all().labels is None
    assert Wrapped(ConcatDataset([data, Items([RGB])])).all().labels is None


def test_a_small_data_set_is_read_once_for_its_labels():
    assert Wrapped(Items([(RGB, i % 3) for i in range(9)])).all().labels.tolist() == [0, 1, 2] * 3


def test_a_large_one_without_stored_labels_counts_as_unlabelled():
    data = Items([(RGB, 1)] * (READ_FOR_LABELS + 1))
    source = Wrapped(data)
    assert data.reads == 8
    assert source.probe() is None
    assert any("add one of them" in note for note in source.notes)


def test_targets_that_are_no_labels_are_left_out():
    source = Wrapped(Items([RGB] * 3, targets=[{"boxes": 1}] * 3))
    assert source.all().labels is None
    assert any("labels not used" in note for note in source.notes)


# -- refused --------------------------------------------------------------------------------------
class Stream(IterableDataset):
    """A data set without an order."""

    def __iter__(self):
        return iter([RGB])


class NoLength(Dataset):
    """A data set that forgot its length."""

    def __getitem__(self, i):
        return RGB


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (Stream(), "Stream is an IterableDataset.* map-style Dataset"),
        (NoLength(), "NoLength has no length. Give it a __len__"),
        (Items([]), "Items is empty"),
        (Items([{"shot": RGB}]), "item 0 of Items holds dict"),
        (Items([([RGB, RGB], 1)]), "item 0 of Items holds list .* makes the views itself"),
        (Items([()]), "holds an empty tuple"),
        (Items([EXPECTED.float() / 127 - 1]), "pass raw images"),
        (Items([EXPECTED.long()]), "got int64"),
        (Items([torch.zeros(8, 8, 8, dtype=torch.uint8)]), "cannot tell channels"),
        (Items([torch.zeros(2, 3, 8, 8, dtype=torch.uint8)]), "expected .C, H, W."),
    ],
)
def test_other_data_is_refused_with_the_cure(data, text):
    with pytest.raises(DataError, match=text):
        Wrapped(data)


def test_a_normalised_item_is_named_when_it_is_met():
    items = [EXPECTED.float() / 255] * 20 + [EXPECTED.float() - 200]
    images = Wrapped(Items(items)).train()
    with pytest.raises(DataError, match="item 20: expected uint8 or float .*akssl makes and normalises the views"):
        images.fetch([20])


def test_conversion_of_floats_is_told():
    assert any("converted to uint8" in note for note in Wrapped(Items([EXPECTED / 255] * 3)).notes)
