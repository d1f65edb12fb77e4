"""Channels, depths, orientation and size of Pillow images and tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F

from akssl_core.data.convert import find_layout, pil_channels, pil_to_tensor, scaled, shrink, to_channels
from akssl_core.errors import DataError


def picture(mode="RGB", size=(24, 16)):
    ramp = np.linspace(0, 255, size[0] * size[1]).reshape(size[1], size[0]).astype(np.uint8)
    return Image.fromarray(np.stack([ramp, ramp[::-1], ramp[:, ::-1]], -1)).convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_gray_or_colour(mode, channels):
    image = picture("L") if mode in ("I;16", "F") else picture(mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(np.asarray(image).astype(np.float32) / 255)
    tensor = pil_to_tensor(image, channels)
    assert tensor.shape == (channels, 16, 24)
    assert tensor.dtype == (torch.float32 if mode in ("I", "I;16", "F") else torch.uint8)
    assert tensor.max() > tensor.min()


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("I", 1), ("RGB", 3), ("P", 3)])
def test_gray_modes_are_worth_one_channel(mode, channels):
    assert pil_channels(picture(mode)) == channels


def test_sixteen_bits_are_scaled_by_a_fixed_factor():
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    expected = (values[0] * (255 / 65535)).astype(np.float32).tolist()  # nothing is rounded to 8 bits
    assert pil_to_tensor(Image.fromarray(values), 1).flatten().tolist() == expected
    assert pil_to_tensor(Image.fromarray(values.astype(np.int32)), 1).flatten().tolist() == expected
    beyond = Image.fromarray(np.array([[-5, 70_000]], dtype=np.int32))
    assert pil_to_tensor(beyond, 1).flatten().tolist() == [0, 255]


def test_transparency_shows_white():
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    assert pil_to_tensor(image, 3)[:, 0].T.tolist() == [[10, 20, 30], [255, 255, 255]]
    assert pil_to_tensor(Image.new("LA", (1, 1), (40, 0)), 1).item() == 255
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([9, 9, 9])
    palette.info["transparency"] = 0
    assert pil_to_tensor(palette, 3).flatten().tolist() == [255, 255, 255]


def test_reducing_weighs_colours_by_their_alpha():
    """A black frame that cannot be seen must not darken the white disc's edge."""
    image = Image.new("RGBA", (400, 400), (0, 0, 0, 0))
    image.paste((255, 255, 255, 255), (150, 150, 250, 250))
    assert int(pil_to_tensor(image, 3, 16).min()) >= 254


@pytest.mark.parametrize("limits", [None, (0, 1)])
def test_float_images_with_values_that_are_no_numbers_are_refused(limits):
    values = np.full((4, 4), 0.5, np.float32)
    values[1, 2] = np.nan
    with pytest.raises(ValueError, match="no numbers"):
        pil_to_tensor(Image.fromarray(values), 1, limits=limits)


def test_float_images_outside_the_unit_interval_are_refused():
    with pytest.raises(ValueError, match="outside"):
        pil_to_tensor(Image.fromarray(np.full((2, 2), 7, dtype=np.float32)), 1)


def test_a_damaged_exif_tag_does_not_cost_the_image():
    image = picture()
    image.info["exif"] = b"Exif\0\0 nonsense"
    assert pil_to_tensor(image, 3).shape == (3, 16, 24)


@pytest.mark.parametrize(("size", "side", "expected"), [((400, 300), 60, (60, 80)), ((30, 20), 60, (20, 30))])
def test_images_are_reduced_and_never_enlarged(size, side, expected):
    assert pil_to_tensor(picture(size=size), 3, side).shape[1:] == expected
    assert shrink(torch.zeros(3, size[1], size[0], dtype=torch.uint8), side).shape[1:] == expected


@pytest.mark.parametrize("lies", range(10))
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_image_is_turned_as_pillow_turns_it(lies, mode):
    image = Image.fromarray(np.random.default_rng(lies).integers(0, 256, (5, 7, 3), dtype=np.uint8)).convert(mode)
    image.getexif()[0x0112] = lies
    expected = torch.from_numpy(np.atleast_3d(np.array(ImageOps.exif_transpose(image)))).permute(2, 0, 1)
    assert torch.equal(pil_to_tensor(image, 1 if mode == "L" else 3), expected)


def test_a_panorama_keeps_its_middle():
    image = Image.new("RGB", (1000, 10), "red")
    image.paste("lime", (490, 0, 510, 10))
    tensor = pil_to_tensor(image, 3, 64)
    assert tensor.shape == (3, 10, 40)
    assert tensor[1, 5].tolist() == [0] * 10 + [255] * 20 + [0] * 10
    assert shrink(torch.zeros(3, 500, 10, dtype=torch.uint8), 8).shape == (3, 32, 8)


def test_reducing_a_tensor_equals_reducing_with_pillow():
    image = picture(size=(200, 160))
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    reference = image.resize((50, 40), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(reference)).permute(2, 0, 1)
    assert (shrink(tensor, 40).int() - expected.int()).abs().max() <= 1
    assert torch.equal(shrink(tensor, 40), pil_to_tensor(image, 3, 40)), "an array and a picture are reduced alike"


@pytest.mark.parametrize(("width", "height"), [(500, 375), (401, 333), (3000, 2000), (130, 520)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_reduced_pixels_are_those_of_exact_weights_to_one_unit(width, height, channels):
    pixels = np.random.default_rng(width).integers(0, 256, (channels, height, width), dtype=np.uint8)
    exact = F.interpolate(
        torch.from_numpy(pixels)[None].double(), scaled(height, width, 96), mode="bilinear", antialias=True
    )[0]
    for layout in (torch.contiguous_format, torch.channels_last):
        image = torch.from_numpy(pixels)[None].contiguous(memory_format=layout)[0]
        assert (shrink(image, 96) - exact).abs().max() <= 1


def test_gray_is_the_luma_that_pillow_uses():
    image = picture()
    colour = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert (to_channels(colour, 1).int() - pil_to_tensor(image, 1).int()).abs().max() <= 1


def test_channels_are_repeated_dropped_or_refused():
    gray = torch.full((2, 1, 3, 3), 5, dtype=torch.uint8)
    assert to_channels(gray, 3).unique().tolist() == [5]
    rgba = torch.zeros(4, 2, 2, dtype=torch.uint8)
    assert to_channels(rgba, 3).unique().tolist() == [255]
    with pytest.raises(DataError, match="cannot turn 13 channels into 3"):
        to_channels(torch.zeros(13, 4, 4, dtype=torch.uint8), 3)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((3, 9, 9), "CHW"),
        ((9, 9, 3), "HWC"),
        ((13, 8, 8), "CHW"),
        ((8, 8, 13), "HWC"),
        ((8, 9, 8), None),
        ((8, 8, 8), None),
    ],
)
def test_the_layout_is_found_or_left_open(shape, layout):
    assert find_layout(shape) == layout


def test_scaling_keeps_the_shorter_side_exact():
    assert scaled(100, 301, 50) == (50, 150)
