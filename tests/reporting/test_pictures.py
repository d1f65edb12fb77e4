from __future__ import annotations

import base64
import io

import pytest
import torch
from PIL import Image
from synthetic_run import Page, pictures, write_run

from akssl_core.reporting import render


def decoded(attrs):
    return Image.open(io.BytesIO(base64.b64decode(attrs["src"].partition(",")[2])))


def test_pictures_are_the_tensors_of_the_run(tmp_path):
    page = Page(render(write_run(tmp_path / "run", tensors=pictures())))
    images = page.all("img")
    assert len(images) == 2 * 4 + 2 * 6
    assert all(attrs["alt"] for attrs in images)
    original = next(attrs for attrs in images if attrs["alt"] == "image 2")
    expected = pictures()["originals"][1].permute(1, 2, 0)
    assert decoded(original).tobytes() == expected.contiguous().numpy().tobytes()


def test_neighbours_with_the_label_of_their_query_are_marked(tmp_path):
    page = Page(render(write_run(tmp_path / "run", tensors=pictures())))
    assert "3 of 5 neighbours have the label of their query" in page.text
    kinds = [attrs.get("class") for attrs in page.all("div") if attrs.get("class") in ("same", "other")]
    assert kinds == ["same", "other", "same", "same", "other"]
    alts = [attrs["alt"] for attrs in page.all("img")]
    assert "neighbour 1 of query 1: class 0, same label" in alts
    assert "neighbour 3 of query 1" in alts


def test_classes_have_their_names_where_they_are_known(tmp_path):
    folder = write_run(tmp_path / "run", tensors=pictures(), data={"classes": 3, "class_names": ["cat", "dog", "owl"]})
    assert "✓ cat" in Page(render(folder)).text


def test_what_the_heads_attend_to_is_shown_beside_the_image(tmp_path):
    tensors = {**pictures(), "attention": torch.arange(8, dtype=torch.uint8).view(2, 4, 1, 1, 1).repeat(1, 1, 3, 4, 4)}
    page = Page(render(write_run(tmp_path / "run", tensors=tensors)))
    shown = {attrs["alt"]: decoded(attrs).getpixel((0, 0)) for attrs in page.all("img") if "head" in attrs["alt"]}
    assert shown == {f"image {i + 1}, head {n}": (4 * i + n,) * 3 for i in range(2) for n in (1, 2, 3)}
    assert 'id="attention"' not in render(write_run(tmp_path / "cnn", tensors=pictures()))


def test_neighbours_without_labels_are_shown_unmarked(tmp_path):
    tensors = pictures()
    del tensors["neighbour_labels"]
    html = render(write_run(tmp_path / "run", tensors=tensors))
    assert "nearest 3" in html
    assert "label" not in html.partition('id="nearest-neighbours"')[2].partition("</section>")[0]


@pytest.mark.parametrize(
    ("channels", "mode", "said"),
    [
        (1, "L", None),
        (2, "L", "The images have 2 channels; the first is shown as grey."),
        (13, "RGB", "The images have 13 channels; the first three are shown as red, green and blue."),
    ],
)
def test_images_of_any_channels_are_shown(tmp_path, channels, mode, said):
    page = Page(render(write_run(tmp_path / "run", tensors=pictures(channels))))
    assert {decoded(attrs).mode for attrs in page.all("img")} == {mode}
    assert (said or "channels;") in page.text if said else "channels;" not in page.text


def test_large_pictures_are_made_smaller(tmp_path):
    tensors = {"views.global": torch.full((1, 2, 3, 200, 300), 77, dtype=torch.uint8)}
    page = Page(render(write_run(tmp_path / "run", tensors=tensors)))
    assert {decoded(attrs).size for attrs in page.all("img")} == {(128, 85)}
    assert {decoded(attrs).getpixel((5, 5)) for attrs in page.all("img")} == {(77, 77, 77)}
