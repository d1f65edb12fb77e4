"""`akssl_core.dedup` and `akssl dedup`: copies in groups, what is kept, what is never touched, and bad input."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import akssl_core
from akssl_core.evaluation import copies
from akssl_core.metrics.copies import difference, differences, signatures, thumbnail


def drawn(seed, height=60, width=64):
    """A smooth picture with an edge, uint8 (h, w, 3)."""
    draw = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.rand(1, 3, 6, 6, generator=draw), (height, width), mode="bicubic").clamp(0, 1)
    image = (40 + 150 * coarse[0]).permute(1, 2, 0).numpy().astype(np.uint8)
    x, y = (int(v) for v in torch.randint(5, 30, (2,), generator=draw))
    image[y : y + 20, x : x + 25] = 255 - image[y : y + 20, x : x + 25]
    return Image.fromarray(image)


COPIES = {
    "bright.png": lambda image: image.point(lambda value: min(255, round(1.3 * value))),
    "cropped.png": lambda image: image.crop((2, 1, 63, 58)),
    "dark.png": lambda image: image.point(lambda value: round(0.7 * value)),
    "large.png": lambda image: image.resize((96, 90), Image.Resampling.LANCZOS),
    "small.png": lambda image: image.resize((32, 30), Image.Resampling.BILINEAR),
}


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures, six copies of the first, and a file that is none."""
    (tmp_path / "photos").mkdir()
    for i in range(12):
        drawn(i).save(tmp_path / "photos" / f"{i:02}.png")
    for name, made in COPIES.items():
        made(drawn(0)).save(tmp_path / "photos" / name)
    drawn(0).save(tmp_path / "photos" / "jpeg.jpg", quality=60)
    (tmp_path / "photos" / "broken.png").write_bytes((tmp_path / "photos" / "01.png").read_bytes()[:90])
    return tmp_path


def test_copies_stand_beside_the_largest_and_nothing_is_deleted(finished, folder):
    before = sorted((folder / "photos").iterdir())
    page, names = folder / "d.html", folder / "delete.txt"
    found = akssl_core.dedup(finished, data=folder / "photos", out=page, list_to=names)
    expected = ["large.png", "00.png", "bright.png", "dark.png", "jpeg.jpg", "cropped.png", "small.png"]
    assert found.groups[0][0] == "large.png"
    assert [set(group) for group in found.groups] == [set(expected)]
    assert found.groups[0][-2:] == ["cropped.png", "small.png"], "in the order of what would be kept"
    assert all(0 <= d <= 1 for d in found.differences[0])
    assert found.delete == [str(folder / "photos" / name) for name in found.groups[0][1:]]
    assert names.read_text().splitlines() == found.delete
    assert page.read_text().count("data:image/png;base64,") == 7
    assert list(found.unreadable) == ["broken.png"]
    assert "6 near copies of 1 among 18 images" in found.text
    assert found.text.endswith(f"Written: {page}\n\nWritten: {names}")
    assert sorted((folder / "photos").iterdir()) == before


def test_arrays_have_numbers_and_equal_ones_keep_the_first(finished):
    images = np.stack([np.asarray(drawn(i, 32, 32)) for i in (1, 2, 1, 3, 2, 1)])
    found = akssl_core.dedup(finished, data=images)
    assert found.groups == [["0", "2", "5"], ["1", "4"]]
    assert found.delete == ["2", "5", "4"]
    assert all(d < 0.01 for row in found.differences for d in row)


def test_json_says_the_same(here, finished, folder):
    code, out, err = here("dedup", finished, "--data", "photos", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["groups"][0]["keep"] == "large.png"
    assert len(told["delete"]) == len(told["groups"][0]["copies"]) == 6
    assert (told["images"], list(told["unreadable"]), told["written"]) == (18, ["broken.png"], [])


def test_more_copies_than_are_looked_up_are_one_group(finished):
    images = np.stack([np.asarray(drawn(i, 32, 32)) for i in (*[1] * 15, *range(2, 6))])
    images[range(15), 0, 0, 0] = range(15)
    found = akssl_core.dedup(finished, data=images)
    assert [len(group) for group in found.groups] == [15]


def test_a_chain_ends_where_an_image_is_no_copy_of_the_one_kept():
    order = {i: (0, 0, i) for i in range(4)}
    pairs = torch.tensor([[0, 1], [1, 2], [2, 3]])
    groups = copies._groups(
        pairs, torch.tensor([0.5, 0.5, 0.5]), lambda first, _: torch.full((len(first),), 2.0), order
    )
    assert groups == [[(0, 0.0), (1, 0.5)], [(2, 0.0), (3, 0.5)]]


def test_a_list_takes_the_place_of_no_image_and_holds_any_name(here, finished, tmp_path):
    strange = os.fsdecode(b"bad\xff.png")
    (tmp_path / "twins").mkdir()
    for name in ("a.png", strange):
        drawn(1, 32, 32).save(tmp_path / "twins" / name)
    before = (tmp_path / "twins" / "a.png").read_bytes()
    code, _, err = here("dedup", finished, "--data", "twins", "--list-to", "twins/a.png", "--overwrite")
    assert (code, "'twins/a.png' is one of the images" in err) == (2, True), err
    assert (tmp_path / "twins" / "a.png").read_bytes() == before
    code, _, err = here("dedup", finished, "--data", "twins", "--list-to", "l.txt")
    assert code == 0, err
    assert (tmp_path / "l.txt").read_bytes().endswith(b"bad\xff.png\n")


@pytest.mark.parametrize("pictures", [1, 2])
def test_one_image_has_no_copies(finished, pictures):
    found = akssl_core.dedup(finished, data=np.stack([np.asarray(drawn(i, 32, 32)) for i in range(pictures)]))
    assert (found.groups, found.delete) == ([], [])
    assert found.text == f"0 near copies of 0 among {pictures} images"


def test_plain_images_are_copies_only_where_they_are_equal():
    plain = [torch.full((1, 16, 16), value, dtype=torch.uint8) for value in (0, 0, 90)]
    apart = differences(plain, torch.full((3, 2), 16), torch.tensor([0, 0]), torch.tensor([1, 2]))
    assert apart.tolist() == [0, 90]


@pytest.mark.parametrize("side", [21, 42])
@pytest.mark.parametrize("kept_first", [True, False])
def test_pixels_that_were_picked_in_unequal_steps(side, kept_first):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8))
    pair = [noise, noise.resize((side, side), Image.Resampling.BOX)]
    images = [thumbnail(torch.from_numpy(np.array(image)).permute(2, 0, 1)) for image in pair]
    rows = torch.tensor([[0], [1]] if kept_first else [[1], [0]])
    assert differences(images, torch.tensor([[28, 28], [side, side]]), *rows).item() < 0.02
    assert differences(images, torch.full((2, 2), 28), *rows).item() > 1  # as if both had been this large


def test_a_window_has_nearly_the_signature_of_its_image():
    images = [thumbnail(torch.from_numpy(np.array(drawn(i))).permute(2, 0, 1)) for i in range(40)]
    window = thumbnail(torch.from_numpy(np.array(COPIES["cropped.png"](drawn(7)))).permute(2, 0, 1))
    similar = signatures([*images, window])
    assert (similar @ similar[-1])[:-1].argmax() == 7


def test_other_colours_and_mirrored_images_are_no_copies():
    image = torch.from_numpy(np.array(drawn(3, 32, 32))).permute(2, 0, 1)[None].float()
    assert difference(image, image).item() < 0.01
    assert difference(image, image.flip(3)).item() > 2
    assert difference(image, image[:, [1, 2, 0]]).item() > 1


def test_a_run_of_other_channels(finished, folder):
    gray = {"name": "folder", "path": str(folder / "photos"), "channels": 1, "max_unreadable": 1.0}
    assert [len(group) for group in akssl_core.dedup(finished, data=gray).groups] == [7]
    with pytest.raises(akssl_core.AksslError, match="5 channels"):
        akssl_core.dedup(finished, data=np.zeros((3, 5, 16, 16), np.uint8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "empty"), "empty holds no image files"),
        (("--data", "photoz"), "Did you mean"),
        (("--data", "photos", "--out", "no/d.html"), "--out: there is no folder 'no'"),
        (("--data", "photos", "--list-to", "notes.txt"), "--list-to: 'notes.txt' exists already. Replace it with"),
        (("--list-to", "a.txt"), "--list-to: images of shapes"),
        (("--data", "photos", "--list-to", "a.txt", "--out", "a.txt"), "--list-to: is the same file as --out."),
        (("--data", "photos", "--batch-size", "0"), "batch_size: expected"),
        (("--data", "unreadable"), "is an image"),
    ],
)
def test_bad_input_is_one_line(here, finished, folder, arguments, message):
    (folder / "notes.txt").write_text("no list")
    (folder / "empty").mkdir()
    (folder / "unreadable").mkdir()
    (folder / "unreadable" / "a.png").write_text("no image")
    code, out, err = here("dedup", "finished", *arguments)
    assert (code, out) == (2, ""), err
    assert message in err
    assert err.count("\n") == 1
    assert (folder / "notes.txt").read_text() == "no list"
