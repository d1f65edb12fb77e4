"""Folders of image files: what their sub-folders mean and what their files hold."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from drawn_folders import folder, save
from PIL import Image

from akssl_core.errors import DataError


# -- what sub-folders mean ------------------------------------------------------------------------
def split_root(path):
    for i in range(40):
        save(path / ("train" if i < 30 else "test") / ("cat" if i % 2 else "dog") / f"{i:02}.png", (12, 12), seed=i)
    return path


def test_the_parts_of_a_root_are_the_official_split(tmp_path):
    root = split_root(tmp_path)
    source, named = folder(root), folder(root / "train", test=root / "test")
    for part in (source, named):
        bank, queries = part.probe()
        ids = [[images.id_of(i) for i in range(len(images))] for images in (part.train(), bank, queries)]
        assert [len(names) for names in ids] == [30, 30, 10]
        assert "cat/31.png" in ids[2]
        assert (part.warnings, part.all().classes) == ([], ("cat", "dog"))
    assert any("holds test, train: runs train on train alone" in note for note in source.notes)
    assert source.notes[-1] == f"10 images in {root / 'test'} are the probes' queries"
    (root / "test").rename(root / "val")
    assert len(folder(root).probe()[1]) == 10


def test_a_part_of_other_classes_does_not_test(tmp_path):
    root = split_root(tmp_path)
    (root / "test" / "cat").rename(root / "test" / "horse")
    for source, tests in ((folder(root), 6), (folder(root, test=root / "train"), 30)):
        assert len(source.all()) == 30
        assert len(source.probe()[1]) == tests
    assert folder(root, labels="none").probe() is None


def test_parts_beside_other_folders_are_warned_of(tmp_path):
    root = split_root(tmp_path)
    save(root / "more" / "1.png")
    assert "more, test, train look like dates, albums or parts of a data set" in folder(root).warnings[0]


def test_a_pattern_fits_one_path_or_tars(tmp_path):
    for name in ("a/1.png", "b/2.png"):
        save(tmp_path / name)
    assert len(folder(tmp_path / "[a]", 12).all()) == 1
    with pytest.raises(DataError, match=r"x\*' does not exist, and no path fits it as a pattern"):
        folder(tmp_path / "x*")
    with pytest.raises(DataError, match=r"2 paths fit '.*', 'a' among them\. Only tar archives"):
        folder(tmp_path / "*")


@pytest.mark.parametrize(
    "names", [("2019", "2020"), ("2019-05-01", "2019-06"), ("100CANON", "101CANON"), ("Album A", "x")]
)
def test_sub_folders_that_look_like_dates_are_asked_about(tmp_path, names):
    for i in range(20):
        save(tmp_path / names[i % 2] / f"{i}.png", (12, 12), seed=i)
    assert ("data.labels=none" in "".join(folder(tmp_path).warnings)) == (names[1] != "x")
    source = folder(tmp_path, labels="none")
    assert (source.labels, source.probe(), len(source.train()), source.warnings) == (None, None, 20, [])


def test_nothing_is_held_out_where_the_user_says_so(tmp_path):
    for i in range(20):
        save(tmp_path / ("cat" if i % 2 else "dog") / f"{i}.png", (12, 12), seed=i)
    source = folder(tmp_path, hold_out=False)
    assert (len(source.train()), source.probe(), source.warnings) == (20, None, [])
    assert source.all().labels is not None
    assert any("hold_out=false" in note for note in source.notes)


# -- what files hold ------------------------------------------------------------------------------
@pytest.mark.parametrize(("bits", "suffix"), [(10, "png"), (12, "tif"), (14, "png"), (16, "tif")])
def test_the_bits_that_sixteen_bit_files_use_are_measured_said_and_kept(tmp_path, bits, suffix):
    values = np.linspace(0, 2**bits - 1, 48 * 48).round().astype(np.uint16).reshape(48, 48)
    for i in range(3):
        Image.fromarray(values).save(tmp_path / f"{i}.{suffix}")
    source = folder(tmp_path, 48, channels=1)
    shown = source.all().fetch([0]).image(0)
    assert torch.equal(shown[0], torch.from_numpy((values * (255 / (2**bits - 1))).astype(np.float32)))
    assert any(f"use {bits} bits" in note and "data.white" in note for note in source.notes) == (bits < 16)
    dark = folder(tmp_path, 48, channels=1, white=65535).all().fetch([0]).image(0)
    assert dark.max().item() == pytest.approx(255 * (2**bits - 1) / 65535)


def test_every_file_that_can_be_decoded_is_read_and_the_rest_is_counted_by_kind(tmp_path):
    picture = Image.effect_noise((12, 12), 50).convert("RGB")
    known = ("a.png", "b.tga", "c.jfif", "d.jp2", "e.pbm", "f.ico")
    for name in known:
        picture.save(tmp_path / name, {"c.jfif": "JPEG"}.get(name))
    picture.save(tmp_path / "bare", "PNG")
    for name in ("x.svg", "y.svg", "z.txt", "README"):
        (tmp_path / name).write_text("<svg/>")
    picture.save(tmp_path / "pages.tif", save_all=True, append_images=[picture, picture])
    source = folder(tmp_path, 12)
    images = source.all()
    assert [images.id_of(i) for i in range(len(images))] == [*known[:1], *sorted([*known[1:], "bare", "pages.tif"])]
    images.fetch(range(len(images)))
    assert images.unreadable == {}
    told = next(note for note in source.notes if note.startswith("4 files of other kinds are left out: 2 .svg, "))
    assert all(kind in told for kind in ("1 .txt", "1 without suffix"))
    assert any("1 of 8 files looked into have several pages" in note for note in source.notes)


def test_a_tiff_that_pillow_does_not_read_is_told_as_such(tmp_path):
    tags = [(256, 4, 1, 2), (257, 4, 1, 2), (258, 3, 5, 200), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 220),
            (277, 3, 1, 5), (278, 4, 1, 2), (279, 4, 1, 20)]  # fmt: skip
    head = struct.pack("<4sIH", b"II*\0", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    bits = struct.pack("<5H", *[8] * 5)
    (tmp_path / "bands.tif").write_bytes(head.ljust(200, b"\0") + bits.ljust(20, b"\0") + bytes(20))
    with pytest.raises(DataError, match="a TIFF of a kind that Pillow does not read, as with 5 bands"):
        folder(tmp_path)
