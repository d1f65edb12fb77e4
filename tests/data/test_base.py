"""Pixels, subsets and the rule for view sizes."""

from __future__ import annotations

import pytest
import torch

from akssl_core.data import Pixels, Subset, TensorImages
from akssl_core.data.base import suitable_size


def test_images_of_one_size_are_stacked_without_a_canvas():
    pixels = Pixels.stack([torch.full((3, 4, 5), value, dtype=torch.uint8) for value in (1, 2)])
    assert pixels.sizes is None
    assert pixels.images.shape == (2, 3, 4, 5)


def test_ragged_images_lie_in_the_top_left_corner():
    images = [torch.full((1, 2, 6), 7, dtype=torch.uint8), torch.full((1, 5, 3), 9, dtype=torch.uint8)]
    pixels = Pixels.stack(images)
    assert pixels.images.shape == (2, 1, 5, 6)
    assert pixels.sizes.tolist() == [[2, 6], [5, 3]]
    assert int(pixels.images.sum()) == 2 * 6 * 7 + 5 * 3 * 9  # zero around them
    for i, image in enumerate(images):
        assert torch.equal(pixels.image(i), image)


def test_a_subset_maps_images_labels_and_names():
    whole = TensorImages(torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1), torch.arange(6) * 10)
    part = Subset(whole, torch.tensor([4, 1]))
    assert len(part) == 2
    assert part.fetch([1, 0]).images.flatten().tolist() == [1, 4]
    assert part.labels.tolist() == [40, 10]
    assert [part.id_of(0), part.id_of(1)] == ["4", "1"]
    image, label = part[0]
    assert (int(image), label) == (4, 40)


def test_an_item_without_a_label_says_so():
    assert TensorImages(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))[0][1] == -1


@pytest.mark.parametrize(("shorter", "side"), [(28, 28), (32, 32), (37, 36), (96, 96), (100, 96), (3000, 224), (3, 8)])
def test_the_suitable_size_is_round_and_bounded(shorter, side):
    assert suitable_size(shorter) == side
