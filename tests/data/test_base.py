"""Pixels, subsets and the rule for view sizes."""

from __future__ import annotations

import pytest
import torch

from akssl_core.data import Pixels, Subset, TensorImages
from akssl_core.data.base import suitable_size


def test_images_of_one_size_lie_side_by_side():
    pixels = Pixels.stack([torch.full((3, 4, 5), value, dtype=torch.uint8) for value in (1, 2)])
    assert pixels.sizes is None
    assert pixels.images.shape == (2, 3, 4, 5)


def noise(height, width, channels=3):
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8)


def test_images_of_several_sizes_lie_in_a_strip():
    images = [noise(2, 6), noise(5, 3), noise(2, 6).permute(0, 2, 1)]
    pixels = Pixels.stack(images)
    assert (len(pixels), pixels.channels, pixels.sides) == (3, 3, (6, 6))
    assert pixels.images.shape == (3, 12 + 15 + 12 + 6)
    assert pixels.sizes.tolist() == [[2, 6], [5, 3], [6, 2]]
    again = pixels.part(torch.tensor([2, 0, 2])).repeat(2).part(slice(1, 6))
    assert again.images.data_ptr() == pixels.images.data_ptr(), "pixels were copied"
    for i, place in ((0, 0), (1, 2), (2, 2), (3, 0), (4, 2)):
        assert torch.equal(again.image(i), images[place])
    assert all(torch.equal(one, image) for one, image in zip(pixels.each(), images, strict=True))


def test_a_panorama_costs_its_own_pixels():
    photos = [noise(12, 16) for _ in range(15)]
    alone = Pixels.stack([*photos, noise(16, 12)]).images.numel()
    panorama = noise(12, 48)
    assert Pixels.stack([*photos, panorama]).images.numel() <= alone + 2 * panorama.numel()


@pytest.mark.parametrize("several", [False, True])
def test_a_canvas_holds_a_corner_of_each(several):
    images = [noise(4, 6), noise(5, 3) if several else noise(4, 6)]
    canvas = Pixels.stack(images).canvas(4, 5)
    assert canvas.shape == (2, 3, 4, 5)
    for place, image in zip(canvas, images, strict=True):
        corner = image[:, :4, :5]
        assert torch.equal(place[:, : corner.shape[1], : corner.shape[2]], corner)
        assert not place[:, :, corner.shape[2] :].any()


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
