"""From the cells of a column to pixels: every way to hold an image, every mode, every kind of damage."""

from __future__ import annotations

import threading

import akssl_plugin_hf_datasets.images as images_module
import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import ExifTags, Image

from akssl_core import DataError


def write(cells, name="t.parquet", **columns):
    pq.write_table(pa.table({"image": cells, **columns}), name)
    return name


def planes(array):
    """(C, H, W) of an array as Pillow has it."""
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


# -- ways to hold an image ------------------------------------------------------------------------
def test_bytes_structs_and_files_give_the_same_pixels(source, noise, encoded, tmp_path):
    files = [encoded(noise(i)) for i in range(4)]
    (tmp_path / "far").mkdir()
    for i, data in enumerate(files):
        (tmp_path / "far" / f"{i}.png").write_bytes(data)
    ways = {
        "struct": [{"bytes": data, "path": None} for data in files],
        "bytes": files,
        "large": pa.array(files, pa.large_binary()),
        "struct of paths": [{"bytes": None, "path": f"{i}.png"} for i in range(4)],
        "paths": [str(tmp_path / "far" / f"{i}.png") for i in range(4)],
    }
    for way, cells in ways.items():
        images = source(write(cells, f"far/{way}.parquet"), image="image").all()
        assert (len(images), images.channels, images.loading) == (4, 3, "thread"), way
        for i in range(4):
            assert torch.equal(images.fetch([i]).image(0), planes(noise(i))), way


@pytest.mark.parametrize("shape", [(9, 11), (9, 11, 1), (9, 11, 3), (3, 9, 11), (1, 9, 11)], ids=str)
def test_arrays_of_uint8(source, shape):
    arrays = [np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8) for i in range(4)]
    datasets.Dataset.from_dict({"x": arrays, "y": [0.5] * 4}).to_parquet("lists.parquet")
    ways = ["lists.parquet"]
    if len(shape) == 3:
        features = datasets.Features({"x": datasets.Array3D(shape, "uint8")})
        datasets.Dataset.from_dict({"x": arrays}, features=features).save_to_disk("typed")
        ways.append("typed")
    for way in ways:
        images = source(way).all()
        assert images.channels == (3 if 3 in shape else 1)
        expected = torch.from_numpy(arrays[2]).reshape(shape)
        expected = expected[None] if len(shape) == 2 else expected.permute(2, 0, 1) if shape[0] == 9 else expected
        assert torch.equal(images.fetch([2]).image(0), expected)


def test_arrays_of_any_size_side_by_side(source):
    arrays = [np.full((5 + i, 9 - i), i, np.uint8) for i in range(4)]
    datasets.Dataset.from_dict({"x": arrays}).to_parquet("t.parquet")
    pixels = source("t.parquet").all().fetch([3, 0])
    assert pixels.sizes.tolist() == [[8, 6], [5, 9]]
    assert torch.equal(pixels.image(0), planes(arrays[3]))


def test_arrays_that_are_no_images_are_told(source, refused):
    datasets.Dataset.from_dict({"x": [np.zeros((4, 4, 7), np.uint8)]}).to_parquet("bands.parquet")
    assert "an array of shape (4, 4, 7); expected [H, W] or [H, W, C]" in refused("bands.parquet")
    cells = pa.array([[[1, 2], [3]], [[1, 2], [3, None]]], pa.list_(pa.list_(pa.uint8())))
    pq.write_table(pa.table({"x": cells}), "odd.parquet")
    assert "rows differ in length" in refused("odd.parquet")
    assert "missing values" in refused("odd.parquet")


# -- modes ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mode", "kind", "channels"),
    [("1", "PNG", 1), ("L", "PNG", 1), ("LA", "PNG", 1), ("I;16", "PNG", 1), ("F", "TIFF", 1), ("RGB", "JPEG", 3),
     ("RGBA", "PNG", 3), ("P", "PNG", 3), ("CMYK", "JPEG", 3), ("YCbCr", "JPEG", 3)],
)  # fmt: skip
def test_every_mode_becomes_gray_or_colour(source, encoded, mode, kind, channels):
    gray = np.arange(140, dtype=np.uint8).reshape(10, 14)
    if mode == "I;16":
        image = Image.fromarray(gray.astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(gray.astype(np.float32) / 255)
    else:
        image = Image.fromarray(gray).convert("RGB").convert(mode, palette=Image.Palette.ADAPTIVE)
    alone = source(write([encoded(image, kind)], "alone.parquet")).all()
    assert alone.channels == channels
    mixed = source(write([encoded(image, kind), encoded(Image.new("RGB", (14, 10), "red"))], "mixed.parquet")).all()
    assert mixed.channels == 3
    expected = (gray > 127) * 255 if mode == "1" else gray
    for images in (alone, mixed):
        got = images.fetch([0]).image(0)
        assert got.shape == (images.channels, 10, 14)
        if mode == "1":  # dithered: black and white alone
            assert set(got.unique().tolist()) <= {0, 255}
        else:
            assert (got.int() - torch.from_numpy(expected).int()).abs().max() <= (9 if kind == "JPEG" else 1)


def test_transparent_pixels_show_white(source, encoded):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 8))
    pixels = source(write([encoded(image), encoded(image.quantize(), transparency=0)])).all().fetch([0])
    assert pixels.image(0)[:, 0, 0].tolist() == [255, 255, 255]
    assert pixels.image(0)[:, 0, 7].tolist() == [255, 0, 0]


def test_images_lie_upright(source, noise, encoded):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    images = source(write([encoded(noise(), exif=exif)])).all()
    assert torch.equal(images.fetch([0]).image(0), planes(np.rot90(noise(), -1)))


def test_large_images_are_reduced_and_long_ones_cut(source, noise, encoded):
    sizes = [(60, 100), (20, 400), (400, 20), (300, 300)]
    cells = [encoded(noise(i, size), "JPEG") for i, size in enumerate(sizes)]
    images = source(write(cells), image_size=16).all()
    assert images.fetch(range(4)).sizes.tolist() == [[27, 45], [20, 80], [80, 20], [27, 27]]


def test_the_size_of_views_that_suits(source, noise, encoded):
    assert source(write([encoded(noise(i, (38, 60))) for i in range(3)]), None).natural_size == 36
    assert source(write([encoded(noise(i, (300, 700))) for i in range(3)]), None).natural_size == 224


# -- damage ---------------------------------------------------------------------------------------
def broken(good):
    return {
        "no image in this row": {"bytes": None, "path": None},
        "truncated": {"bytes": good[: len(good) // 2], "path": None},
        "not an image in a known format": {"bytes": b"this is text", "path": None},
        "no file 'gone.png'": {"bytes": None, "path": "gone.png"},
    }


def test_unreadable_images_are_named_and_stood_in_for(source, noise, encoded):
    good = [{"bytes": encoded(noise(i)), "path": None} for i in range(6)]
    bad = broken(good[0]["bytes"])
    cells = [*good[:3], *bad.values(), None, *good[3:]]
    labels = ["a", "b", "a", *"abab", "b", "a", "b", "a"]
    images = source(write(cells, label=labels), max_unreadable=1.0).all()
    pixels = images.fetch([10, 3, 0, 4, 5, 6, 7])
    assert [i for i, _ in pixels.unreadable] == [3, 4, 5, 6, 7]
    for (i, reason), words in zip(pixels.unreadable, [*bad, "no image in this row"], strict=True):
        assert words in reason
        assert words in images.unreadable[str(i)]
    stand_ins = {1: 8, 3: 9, 4: 8, 5: 9, 6: 9}  # place in the batch -> the next good image with the same label
    for place, row in stand_ins.items():
        assert torch.equal(pixels.image(place), images.fetch([row]).image(0))
    assert torch.equal(pixels.image(0), planes(noise(5)))


def test_a_stand_in_is_never_an_image_held_out(source, noise, encoded):
    good = [encoded(noise(i)) for i in range(12)]
    cells = [b"broken", *good[1:]]
    whole = source(write(cells, label=[0] * 6 + [1] * 6), max_unreadable=0.1)
    bank, queries = whole.probe()
    assert [queries.id_of(i) for i in range(len(queries))] == ["1", "7"]
    assert torch.equal(bank.fetch([0]).image(0), planes(noise(2))), "not 1, which is a query"
    assert whole.all().fetch([0]).unreadable == ((0, "not an image in a known format"),)


def test_too_many_unreadable_images_stop(source, refused, noise, encoded):
    good = [encoded(noise(i)) for i in range(200)]
    write([*good, *[b"x"] * 11])
    assert "1 of 211 images" in refused("t.parquet", max_unreadable=0)
    images = source("t.parquet", max_unreadable=0.05).all()
    assert 0 < len(images.unreadable) < 11, "the sample has met some"
    assert len(images.fetch(range(211)).unreadable) == 11, "5 % of 211, rounded up"
    with pytest.raises(DataError, match=r"10 of 211 images .*\(4.7%, allowed 4.0%\).*raise data.max_unreadable"):
        source("t.parquet", max_unreadable=0.04).all().fetch(range(211))
    write([b"x"] * 3)
    assert "none of 3 images looked at in 't.parquet' can be read: 0 (not an image" in refused("t.parquet")


def test_bombs_and_other_formats_are_refused(source, noise, encoded, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    cells = [encoded(noise()), encoded(noise(1, (20, 14))), encoded(noise(2), "EPS"), encoded(noise(3))]
    images = source(write(cells), max_unreadable=1.0).all()
    (_, large), (_, foreign) = images.fetch(range(4)).unreadable
    assert "more than the limit of 200 (PIL" in large.replace("pixels than", "than")
    assert foreign == "not an image in a known format"


# -- memory ---------------------------------------------------------------------------------------
def test_decoded_images_are_remembered_while_there_is_room(source, noise, encoded, monkeypatch):
    decoded = []
    decode = images_module.decode
    monkeypatch.setattr(images_module, "decode", lambda *args: decoded.append(1) or decode(*args))
    write([encoded(noise(i)) for i in range(4)])
    for gigabytes, expected in ((2.0, 4), (0.0, 12), (1.5 * 420 / 2**30, 10)):
        images = source("t.parquet", cache_gb=gigabytes).all()
        first = images.fetch([0, 1, 2, 3, 0])
        again = [images.fetch([0, 1, 2, 3]) for _ in range(2)]
        assert len(decoded) == expected
        assert all(torch.equal(first.images[:4], pixels.images) for pixels in again)
        decoded.clear()


def test_two_threads_may_fetch_at_once(source, noise, encoded):
    images = source(write([encoded(noise(i)) for i in range(40)]), cache_gb=0).all()
    results = {}

    def fetch(name, order):
        results[name] = [images.fetch([i]).image(0) for i in order]

    threads = [threading.Thread(target=fetch, args=(i, range(40))) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got in results.values():
        assert all(torch.equal(image, planes(noise(i))) for i, image in enumerate(got))
    assert len(results) == 4
