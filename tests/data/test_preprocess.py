"""What a backbone is given, and the statistics behind it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from akssl_core.data import ImageSpec, Pixels, Preprocess, TensorImages, measure
from akssl_core.errors import DataError

SPEC = ImageSpec(96, 3, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
MEAN, STD = torch.tensor(SPEC.mean)[:, None, None], torch.tensor(SPEC.std)[:, None, None]


def noise(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("size", "resize"), [(32, 32), (95, 95), (96, 110), (128, 146), (224, 256)])
def test_the_margin_around_the_centre(size, resize):
    assert Preprocess.of(ImageSpec(size, 1, (0.5,), (0.5,))).resize == resize


@pytest.mark.parametrize("shape", [(150, 200), (200, 151), (40, 30), (96, 300)])
def test_it_is_torchvisions_resize_crop_and_normalise(shape):
    preprocess, image = Preprocess.of(SPEC), noise(3, *shape)
    expected = TF.resize(image.float(), [110], antialias=True)
    expected = TF.center_crop(expected, [96, 96]) / 255
    found = preprocess(image)
    assert found.shape == (1, 3, 96, 96)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[0], (expected - MEAN) / STD, atol=1e-4, rtol=0)


def test_images_of_the_right_size_are_only_normalised():
    image = noise(2, 3, 96, 96)
    torch.testing.assert_close(Preprocess.of(SPEC).pixels(Pixels(image)), (image / 255 - MEAN) / STD)


def test_all_kinds_of_images_give_the_same_batch():
    preprocess, image = Preprocess.of(SPEC), noise(3, 120, 100)
    array = image.permute(1, 2, 0).contiguous().numpy()
    pillow = Image.fromarray(array)
    expected = preprocess(image)
    for same in (array, torch.from_numpy(array), image.numpy(), pillow, [pillow], image[None], array[None]):
        assert torch.equal(preprocess(same), expected)
    assert torch.equal(preprocess([pillow, array, image[None]]), expected.expand(3, -1, -1, -1))


def test_a_ragged_batch_equals_its_images_one_by_one():
    preprocess, images = Preprocess.of(SPEC), [noise(3, 120, 100), noise(3, 90, 130), noise(3, 96, 96)]
    batch = preprocess.pixels(Pixels.stack(images))
    assert torch.equal(batch, torch.cat([preprocess(image) for image in images]))


def test_channels_are_converted():
    colour, gray = Preprocess.of(SPEC), Preprocess.of(ImageSpec(16, 1, (0.5,), (0.5,)))
    bands = Preprocess.of(ImageSpec(16, 13, (0.5,) * 13, (0.5,) * 13))
    assert colour(noise(20, 30)).shape == (1, 3, 96, 96)
    assert gray(noise(3, 20, 30)).shape == (1, 1, 16, 16)
    assert gray(noise(28, 28)).shape == (1, 1, 16, 16)
    assert bands(noise(13, 9, 9)).shape == bands(noise(5, 9, 9, 13)[0]).shape == (1, 13, 16, 16)


@pytest.mark.parametrize(
    ("images", "text"),
    [
        ([], "empty list"),
        ("photo.jpg", "got str"),
        (torch.rand(3, 8, 8) * 3 - 1, "pass raw images"),
        (noise(5, 20, 20), "cannot turn 5 channels into 3"),
        (noise(2, 2, 3, 20, 20), "expected one image or a batch"),
    ],
)
def test_what_is_no_image_is_refused(images, text):
    with pytest.raises(DataError, match=text):
        Preprocess.of(SPEC)(images)


def test_it_survives_a_file_header():
    preprocess = Preprocess.of(SPEC)
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


def test_statistics_are_those_of_the_values():
    images = noise(40, 2, 6, 5)
    images[:, 1] //= 4
    mean, std = measure(TensorImages(images))
    values = images.double() / 255
    assert mean == tuple(round(v, 4) for v in values.mean((0, 2, 3)).tolist())
    assert std == tuple(round(v, 4) for v in values.std((0, 2, 3), correction=0).tolist())


def test_a_sample_is_evenly_spaced_and_a_constant_channel_can_be_divided_by():
    images = torch.zeros(5120, 1, 1, 1, dtype=torch.uint8)
    images[::10] = 255
    assert measure(TensorImages(images)) == ((1.0,), (1.0,))


def test_each_image_counts_alike_whatever_its_size():
    class Ragged(TensorImages):
        """A small white and a large black image."""

        def fetch(self, index):
            sizes = {0: torch.full((1, 2, 2), 255), 1: torch.zeros(1, 30, 30)}
            return Pixels.stack([sizes[i].to(torch.uint8) for i in index])

    assert measure(Ragged(torch.zeros(2, 1, 1, 1, dtype=torch.uint8))) == ((0.5,), (0.5,))


def test_memory_maps_of_arrays_are_accepted(tmp_path):
    np.save(tmp_path / "one.npy", noise(3, 20, 20).numpy())
    assert Preprocess.of(SPEC)(np.load(tmp_path / "one.npy", mmap_mode="r")).shape == (1, 3, 96, 96)
