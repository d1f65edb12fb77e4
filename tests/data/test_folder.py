"""Folders of image files: what is found, decoded, skipped, remembered and refused."""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib

import numpy as np
import pytest
import torch
from drawn_folders import folder, save
from PIL import Image

import akssl_core.data.folder as folder_module
from akssl_core.config.schema import validate
from akssl_core.data.decode import Unreadable, decode_image, image_header, open_file, read_image
from akssl_core.data.folder import FolderConfig
from akssl_core.errors import ConfigError, DataError


def png_header_of(path, width, height):
    """A PNG that claims a size; its pixels are never reached."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))


def break_five(path):
    """The five kinds of broken files, with a word of the reason each must be given."""
    save(path / "truncated.jpg", (64, 64))
    (path / "truncated.jpg").write_bytes((path / "truncated.jpg").read_bytes()[:900])
    (path / "empty.png").touch()
    (path / "text.jpg").write_text("this is no image")
    png_header_of(path / "bomb.png", 50_000, 40_000)
    (path / "x.png").mkdir()
    return {"truncated.jpg": "truncated", "empty.png": "empty", "text.jpg": "not an image", "bomb.png": "pixels",
            "x.png": "folder"}  # fmt: skip


def fetch_all(images, step=16):
    return [images.fetch(range(i, min(i + step, len(images)))) for i in range(0, len(images), step)]


# -- what is found --------------------------------------------------------------------------------
def test_files_are_found_in_sorted_order_at_any_depth(tmp_path):
    for name in ("b/2.png", "a/deep/1.JPG", "top.bmp", ".hidden.png", ".git/3.png", "notes.txt"):
        save(tmp_path / name, format="PNG")
    images = folder(tmp_path).train()
    assert [images.id_of(i) for i in range(len(images))] == ["a/deep/1.JPG", "b/2.png", "top.bmp"]
    assert images.labels is None


def test_first_level_folders_are_classes(tmp_path):
    for i in range(12):
        save(tmp_path / ("dog" if i % 2 else "cat") / f"deep{i % 3}" / f"{i}.png", seed=i)
    source = folder(tmp_path)
    bank, queries = source.probe()
    assert source.all().classes == ("cat", "dog")
    assert [source.all().id_of(i).split("/")[0] for i in range(12)] == [
        source.all().classes[k] for k in source.all().labels
    ]
    assert torch.bincount(queries.labels).tolist() == [1, 1]
    names = {queries.id_of(i) for i in range(2)}
    assert not names & {bank.id_of(i) for i in range(len(bank))}
    assert len(source.train()) == 10
    assert any("2 classes: cat, dog" in note for note in source.notes)


@pytest.mark.parametrize("names", [("a/1.png", "2.png"), ("a/1.png", "a/2.png"), ("train/1.png", "val/2.png")])
def test_other_folders_are_no_classes(tmp_path, names):
    for name in names:
        save(tmp_path / name)
    source = folder(tmp_path)
    assert source.train().labels is None
    assert source.probe() is None


def test_links_in_a_circle_are_walked_once(tmp_path):
    save(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    source = folder(tmp_path, max_unreadable=1.0)
    assert len(source.train()) == 1
    assert source.train().unreadable == {"gone.png": "a link to nothing", "pipe.png": "not a regular file"}


def test_a_folder_named_like_an_image_is_entered(tmp_path):
    save(tmp_path / "scan.png" / "1.png")
    images = folder(tmp_path).train()
    assert images.id_of(0) == "scan.png/1.png"
    assert not images.unreadable


def test_names_that_are_no_text_can_be_shown(tmp_path):
    odd = os.fsencode(tmp_path) + b"/\xff.png"
    os.rename(save(tmp_path / "1.png"), odd)
    images = folder(tmp_path).train()
    assert images.id_of(0).encode() == "\ufffd.png".encode()
    assert len(images.fetch([0])) == 1


# -- what is refused ------------------------------------------------------------------------------
def test_a_missing_folder_is_told_with_the_nearest(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"does not exist\. Did you mean '.*/photos'\?"):
        folder(tmp_path / "fotos" / "deeper")


def test_a_file_is_not_a_folder(tmp_path):
    with pytest.raises(DataError, match="is a file; expected a folder"):
        folder(save(tmp_path / "1.png"))


def test_a_folder_without_images_says_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "x.png").mkdir()
    with pytest.raises(DataError, match=r"\.jpg.*\.webp.*1 only look like images: x\.png"):
        folder(tmp_path)


def test_only_gray_and_colour_can_be_asked_for(tmp_path):
    with pytest.raises(ConfigError, match="channels"):
        validate(FolderConfig, {"path": tmp_path, "channels": 4}, registry=None)


# -- formats, modes and sizes ---------------------------------------------------------------------
FILES = [
    ("rgb.jpg", "RGB", {}), ("gray.jpg", "L", {}), ("cmyk.jpg", "CMYK", {}), ("rgb.png", "RGB", {}),
    ("gray.png", "L", {}), ("bits.png", "1", {}), ("palette.png", "P", {}), ("alpha.png", "RGBA", {}),
    ("gray_alpha.png", "LA", {}), ("rgb.webp", "RGB", {}), ("alpha.webp", "RGBA", {}), ("rgb.bmp", "RGB", {}),
    ("palette.bmp", "P", {}), ("rgb.tif", "RGB", {}), ("cmyk.tiff", "CMYK", {}),
    ("lzw.tif", "RGB", {"compression": "tiff_lzw"}), ("palette.gif", "P", {}), ("rgb.ppm", "RGB", {}),
    ("see_through.png", "P", {"transparency": 0}),
]  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
def test_every_format_and_mode_is_read(tmp_path, channels):
    for name, mode, options in FILES:
        save(tmp_path / name, mode=mode, **options)
    Image.fromarray(np.full((20, 30), 65535, dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((20, 30), 65535, dtype=np.uint16)).save(tmp_path / "deep.tif")
    images = folder(tmp_path, channels=channels, max_unreadable=0.0).train()
    pixels = images.fetch(range(len(images)))
    assert len(images) == len(FILES) + 2
    assert pixels.images.shape == (len(images), channels, 20, 30)
    assert pixels.unreadable == ()
    named = {images.id_of(i): pixels.image(i) for i in range(len(images))}
    assert named["deep.png"].unique().tolist() == named["deep.tif"].unique().tolist() == [255]
    if channels == 3:
        assert torch.equal(named["rgb.png"], named["rgb.bmp"])
        assert torch.equal(named["rgb.png"], named["lzw.tif"])


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("jpg", {}), ("png", {}), ("webp", {}), ("tif", {}), ("tif", {"compression": "tiff_lzw"})],
    ids=["jpg", "png", "webp", "tif", "lzw"],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, suffix, options, orientation):
    image = Image.new("L", (32, 16))
    image.paste(255, (0, 0, 16, 8))  # bright in the top left corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"1.{suffix}", exif=exif, **options)
    seen = folder(tmp_path, channels=1).train()[0][0][0]
    turned = orientation > 4
    assert seen.shape == ((32, 16) if turned else (16, 32))
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert int(seen[corner[orientation]]) > 200
    assert int((seen > 128).sum()) == 16 * 8


def test_large_images_are_reduced_and_small_ones_are_not(tmp_path):
    for name, size in (("a.jpg", (2000, 1500)), ("b.png", (400, 300)), ("c.png", (20, 30)), ("d.png", (300, 20))):
        save(tmp_path / name, size)
    pixels = folder(tmp_path, 56).train().fetch(range(4))
    assert pixels.sizes.tolist() == [[96, 127], [96, 128], [30, 20], [20, 80]]
    assert pixels.images.shape == (3, 96 * 127 + 96 * 128 + 30 * 20 + 20 * 80 + 128)


def test_a_reduced_jpeg_shows_what_the_whole_one_shows(tmp_path):
    image = Image.radial_gradient("L").resize((1280, 960)).convert("RGB")
    image.save(tmp_path / "1.jpg", quality=95)
    image.save(tmp_path / "1.png")
    small = [read_image(tmp_path / name, 3, 64).int() for name in ("1.jpg", "1.png")]
    assert small[0].shape == (3, 64, 85)
    assert float((small[0] - small[1]).abs().float().mean()) < 2


def test_the_size_suits_the_median_image(tmp_path):
    for i, side in enumerate((20, 130, 3000)):
        save(tmp_path / f"{i}.jpg", (side + 10, side))
    assert folder(tmp_path).natural_size == 128
    with open_file(tmp_path / "2.jpg") as file:
        assert image_header(file) == (3, 3000)


# -- broken files ---------------------------------------------------------------------------------
@pytest.fixture
def mixed(tmp_path):
    """40 images and the five kinds of broken files."""
    for i in range(40):
        save(tmp_path / f"{i:02}.{('jpg', 'png', 'webp', 'bmp')[i % 4]}", (20 + 5 * i, 30 + i), seed=i)
    return tmp_path, break_five(tmp_path)


@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
def test_broken_files_are_skipped_and_named(mixed):
    path, reasons = mixed
    images = folder(path, 32, max_unreadable=0.2).train()
    batches = fetch_all(images)
    assert images.unreadable.keys() == reasons.keys()
    for name, word in reasons.items():
        assert word in images.unreadable[name]
    told = dict(pair for pixels in batches for pair in pixels.unreadable)
    assert {images.id_of(i) for i in told} == reasons.keys() - {"x.png"}
    assert sum(len(pixels) for pixels in batches) == 44


def test_a_file_just_over_the_pixel_limit_is_a_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    read_image(save(tmp_path / "at.png", (30, 20)), 3, 64)
    save(tmp_path / "over.png", (30, 21))
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(Unreadable, match="630 pixels.* limit of 600"):
        read_image(tmp_path / "over.png", 3, 64)


def test_the_next_readable_image_stands_in_always_the_same(tmp_path):
    for i in range(6):
        save(tmp_path / f"{i}.png", seed=i)
    for i in (2, 3, 5):
        (tmp_path / f"{i}.png").write_bytes(b"")
    images = folder(tmp_path, max_unreadable=1.0).train()
    assert torch.equal(images.fetch([3]).images, images.fetch([4]).images)
    assert torch.equal(images.fetch([2]).images, images.fetch([4]).images)
    assert torch.equal(images.fetch([5]).images, images.fetch([0]).images)
    fresh = folder(tmp_path, max_unreadable=1.0).train()
    assert torch.equal(fresh.fetch([5, 4, 3, 2]).images, images.fetch([5, 4, 3, 2]).images)
    assert fresh.fetch([5, 4, 3, 2]).unreadable == ((5, "an empty file"), (3, "an empty file"), (2, "an empty file"))


def test_a_stand_in_has_the_same_label_and_lies_in_the_same_part(tmp_path):
    for i in range(20):
        save(tmp_path / ("a" if i < 10 else "b") / f"{i:02}.png", seed=i)
    (tmp_path / "a" / "09.png").write_bytes(b"")
    source = folder(tmp_path, max_unreadable=0.5)
    bank, _ = source.probe()
    place = [bank.id_of(i) for i in range(len(bank))].index("a/09.png")
    pixels = bank.fetch([place])
    assert pixels.unreadable[0][0] == place
    same_class = [i for i in range(len(bank)) if bank.id_of(i).startswith("a/") and i != place]
    assert torch.equal(pixels.image(0), bank.fetch(same_class[:1]).image(0))


@pytest.mark.parametrize(("broken", "of", "share"), [(2, 40, 0.05), (1, 9, 0.05), (5, 10, 0.5), (0, 8, 0.0)])
def test_up_to_the_stated_share_a_run_goes_on(tmp_path, broken, of, share):
    for i in range(of):
        save(tmp_path / f"{i:02}.png", (9, 8))
    for i in range(broken):
        (tmp_path / f"{i:02}.png").write_bytes(b"")
    images = folder(tmp_path, max_unreadable=share).train()
    fetch_all(images)
    assert len(images.unreadable) == broken


@pytest.mark.parametrize(("broken", "of", "share"), [(3, 40, 0.05), (2, 9, 0.05), (1, 50, 0.0)])
def test_past_the_stated_share_it_stops(tmp_path, broken, of, share):
    for i in range(of):
        save(tmp_path / f"{i:02}.png", (9, 8))
    for i in range(broken):
        data = (tmp_path / f"{i:02}.png").read_bytes()
        (tmp_path / f"{i:02}.png").write_bytes(data[:-30])  # the header is whole
    images = folder(tmp_path, max_unreadable=share).train()
    with pytest.raises(DataError, match=rf"{broken} of {of} files .*00\.png \(.*data\.max_unreadable"):
        fetch_all(images)


def test_a_folder_of_broken_files_stops_at_once(tmp_path):
    for i in range(200):
        (tmp_path / f"{i}.jpg").write_text("text")
    with pytest.raises(DataError, match=r"none of 64 files looked at .* is an image: 0\.jpg \(not an image"):
        folder(tmp_path, max_unreadable=1.0)


def test_files_that_are_all_cut_short_stop_the_run(tmp_path):
    for i in range(8):
        data = save(tmp_path / f"{i}.png").read_bytes()
        (tmp_path / f"{i}.png").write_bytes(data[:100])
    images = folder(tmp_path, max_unreadable=1.0).train()
    with pytest.raises(DataError, match="none of 8 files"):
        images.fetch([0])


def test_a_file_that_disappears_is_unreadable(tmp_path):
    for i in range(4):
        save(tmp_path / f"{i}.png")
    images = folder(tmp_path, max_unreadable=0.5).train()
    (tmp_path / "1.png").unlink()
    assert images.fetch([1]).unreadable == ((1, "No such file or directory"),)


@pytest.mark.parametrize("kind", [bytes, io.BytesIO, lambda data: Image.open(io.BytesIO(data))])
def test_bytes_open_files_and_pillow_images_are_decoded_alike(tmp_path, kind):
    for suffix, mode, worth in (("jpg", "RGB", 3), ("png", "LA", 1)):
        path = save(tmp_path / f"1.{suffix}", (90, 60), mode)
        data = path.read_bytes()
        assert image_header(kind(data)) == (worth, 60)
        assert torch.equal(decode_image(kind(data), 3, 16), read_image(path, 3, 16))
    with pytest.raises(Unreadable, match="an empty file"):
        decode_image(b"", 3, 16)
    with pytest.raises(Unreadable, match="not an image"):
        image_header(io.BytesIO(b"text"))


# -- memory and threads ---------------------------------------------------------------------------
def test_later_epochs_decode_nothing(tmp_path, monkeypatch):
    for i in range(6):
        save(tmp_path / f"{i}.png", seed=i)
    images = folder(tmp_path).train()
    first = images.fetch(range(6)).images
    monkeypatch.setattr(folder_module, "decode_image", None)
    assert torch.equal(images.fetch(range(6)).images, first)


def test_the_cache_keeps_to_its_budget(tmp_path, monkeypatch):
    for i in range(6):
        save(tmp_path / f"{i}.png", (30, 20), seed=i)
    original, read = folder_module.decode_image, []

    def counted(file, channels, side, white):
        read.append(file.name)
        return original(file, channels, side, white)

    monkeypatch.setattr(folder_module, "decode_image", counted)
    images = folder(tmp_path, cache_gb=4 * 30 * 20 * 3 / 2**30).train()
    images.fetch(range(6))
    images.fetch(range(6))
    assert len(read) == 6 + 2
    assert folder(tmp_path, cache_gb=0).train().fetch([0]).images.shape == (1, 3, 20, 30)


def test_the_parts_of_a_folder_share_memory_and_record(tmp_path):
    for i in range(20):
        save(tmp_path / ("a" if i < 10 else "b") / f"{i}.png", seed=i)
    source = folder(tmp_path)
    assert source.train().store is source.probe()[1].store
    assert source.train().unreadable is source.probe()[0].unreadable


def test_no_decoding_thread_stays_behind(tmp_path):
    for i in range(20):
        save(tmp_path / f"{i}.png")
    folder(tmp_path).train().fetch(range(20))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("akssl")]


def test_the_size_that_the_run_decides_is_used(tmp_path):
    save(tmp_path / "1.png", (500, 400))
    source = folder(tmp_path)
    source.asked_size = 28  # the run decides after it has seen the natural size
    assert source.train().fetch([0]).images.shape == (1, 3, 48, 60)
    chosen = folder(tmp_path, 28, stored_side=100)
    assert chosen.train().fetch([0]).images.shape == (1, 3, 100, 125)
