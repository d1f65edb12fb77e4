"""The map of features and their spectrum in the report."""

from __future__ import annotations

import base64
import io
import re

import pytest
import torch
from PIL import Image
from synthetic_run import EVIL, Page, write_run

from akssl_core.errors import RunDirError
from akssl_core.reporting import render


def mapped(count=7, channels=3, classes=3):
    """What a run leaves for the map: image i is filled with the value 10 i."""
    images = (torch.arange(count, dtype=torch.uint8) * 10).view(-1, 1, 1, 1).expand(count, channels, 4, 4).contiguous()
    places = torch.linspace(0, 1, count)[:, None].expand(count, 2).contiguous()
    tensors = {"map": places, "map_images": images, "map_share": torch.tensor(0.25), "map_total": torch.tensor(90)}
    tensors["spectrum"] = 0.5 ** torch.arange(1.0, 9.0)
    return tensors if classes is None else {**tensors, "map_labels": torch.arange(count) % classes}


def points(page):
    return [attrs for attrs in page.all("span") if (attrs.get("class") or "").startswith("point")]


def test_each_dot_shows_its_own_image(tmp_path):
    html = render(write_run(tmp_path / "run", tensors=mapped()))
    page = Page(html)
    assert "7 of 90 images" in page.text
    assert "25 % of the variance" in page.text
    sheet = re.search(r"--sprite: url\(data:image/png;base64,([^)]*)\); --columns: (\d+)", html)
    columns = int(sheet[2])
    picture = Image.open(io.BytesIO(base64.b64decode(sheet[1])))
    assert picture.size == (4 * columns, 4 * columns)
    for i, dot in enumerate(points(page)):
        x, y = (float(v) / 100 for v in re.search(r"--at: ([\d.]+)% ([\d.]+)%", dot["style"]).groups())
        column, row = round(x * (columns - 1)), round(y * (columns - 1))  # what background-position means in percent
        assert picture.getpixel((4 * column + 1, 4 * row + 1)) == (10 * i,) * 3
        assert dot["tabindex"] == "0"


def test_dots_lie_where_the_features_do_and_have_their_class(tmp_path):
    page = Page(render(write_run(tmp_path / "run", tensors=mapped(), data={"class_names": ["a", "b", EVIL]})))
    dots = points(page)
    lefts = [float(re.search(r"left: ([\d.]+)%", dot["style"])[1]) for dot in dots]
    tops = [float(re.search(r"top: ([\d.]+)%", dot["style"])[1]) for dot in dots]
    assert lefts == sorted(lefts)
    assert tops == sorted(tops, reverse=True)
    assert [dot["title"] for dot in dots[:3]] == ["a", "b", EVIL]
    hues = [re.search(r"--hue: (\d+)", dot["style"])[1] for dot in dots]
    assert hues[0] == hues[3] != hues[1]
    assert len([1 for attrs in page.all("span") if attrs.get("class") == "key"]) == 3
    assert not page.all("script")


@pytest.mark.parametrize("channels", [1, 2, 13])
def test_images_of_any_channels_and_without_labels(tmp_path, channels):
    page = Page(render(write_run(tmp_path / "run", tensors=mapped(channels=channels, classes=None))))
    assert len(points(page)) == 7
    assert all(dot["class"] == "point plain" for dot in points(page))


def test_a_legend_of_many_classes_is_left_out(tmp_path):
    page = Page(render(write_run(tmp_path / "run", tensors=mapped(count=30, classes=30))))
    assert not [1 for attrs in page.all("span") if attrs.get("class") == "key"]


def test_the_spectrum_is_drawn_where_there_is_one(tmp_path):
    assert 'id="spectrum"' in render(write_run(tmp_path / "a", tensors=mapped()))
    nothing = {**mapped(), "spectrum": torch.zeros(4)}
    assert 'id="spectrum"' not in render(write_run(tmp_path / "b", tensors=nothing))
    assert 'id="map-of-features"' not in render(write_run(tmp_path / "c"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"map": torch.rand(6, 2)},
        {"map": torch.rand(7, 3)},
        {"map": torch.full((7, 2), torch.nan)},
        {"map": torch.full((7, 2), 7.0)},
        {"map_labels": torch.zeros(3, dtype=torch.int64)},
        {"map_total": torch.zeros(2, dtype=torch.int64)},
        {"spectrum": torch.zeros(2, 2)},
    ],
)
def test_a_map_that_does_not_fit_its_images_is_damaged(tmp_path, wrong):
    with pytest.raises(RunDirError, match=r"samples\.safetensors is damaged"):
        render(write_run(tmp_path / "run", tensors={**mapped(), **wrong}))
