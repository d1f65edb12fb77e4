"""The sections on features as a whole: a map of some images, and how much of the space they fill."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .files import RunFiles
from .html import Html, section, tag
from .pictures import channel_note, data_uri
from .svg import line_chart

HUES = 10  # classes with a colour of their own; further ones share them


def embedding_map(run: RunFiles) -> list[Html]:
    """Images where their features lie in the plane that shows most of them; a dot shows its image under the pointer.

    It needs no script: the pictures are one image, of which each dot shows its part.
    """
    places, images = run.samples.get("map"), run.samples.get("map_images")
    if places is None or images is None:
        return []
    labels = run.samples.get("map_labels", torch.full((len(places),), -1))
    columns = math.ceil(math.sqrt(len(images)))
    sprite = f"--sprite: url({data_uri(_sheet(images, columns), largest=None)}); --columns: {columns}"
    side = 100 / max(columns - 1, 1)
    dots = [
        _dot(place, (i % columns * side, i // columns * side), run.class_name(label), label)
        for i, (place, label) in enumerate(zip(places.tolist(), labels.tolist(), strict=True))
    ]
    share = float(run.samples["map_share"])
    said = (
        f"{len(places)} of {int(run.samples['map_total'])} images by their two first principal components, which hold "
        f"{100 * share:.0f} % of the variance. Point at a dot, or move to it with the Tab key, to see its image."
    )
    text = tag("p", said, channel_note(images.shape[1]), class_="quiet")
    return [section("Map of features", text, _legend(run, labels), tag("div", *dots, class_="map", style=sprite))]


def _dot(place: list[float], part: tuple[float, float], name: str, label: int) -> Html:
    """One image: where it lies in percent, which part of the pictures is its own, and its colour."""
    x, y = 2 + 96 * place[0], 2 + 96 * (1 - place[1])
    colour = f"; --hue: {label % HUES * 36}" if label >= 0 else ""
    style = f"left: {x:.1f}%; top: {y:.1f}%; --at: {part[0]:.4g}% {part[1]:.4g}%{colour}"
    return tag("span", class_="point" if label >= 0 else "point plain", style=style, tabindex=0, title=name or None)


def _legend(run: RunFiles, labels: Tensor) -> Html:
    """The classes with their colours, as far as these tell them apart."""
    present = sorted({label for label in labels.tolist() if label >= 0})
    if not present or len(present) > HUES:
        return Html("")
    keys = [tag("span", run.class_name(label), class_="key", style=f"--hue: {label % HUES * 36}") for label in present]
    return tag("div", *keys, class_="legend")


def _sheet(images: Tensor, columns: int) -> Tensor:
    """Pictures (N, C, S, S) side by side, row after row: (C, rows * S, columns * S)."""
    count, channels, height, width = images.shape
    rows = math.ceil(count / columns)
    sheet = torch.zeros(rows * columns, channels, height, width, dtype=images.dtype)
    sheet[:count] = images
    grid = sheet.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return grid.reshape(channels, rows * height, columns * width)


def spectrum(run: RunFiles) -> list[Html]:
    """The variances along the principal directions of the features, on a logarithmic scale."""
    variances = run.samples.get("spectrum")
    if variances is None or not (variances > 0).any():
        return []
    points = [(float(i + 1), math.log10(v) if v > 0 else math.nan) for i, v in enumerate(variances.tolist())]
    title = "log10 of the share of variance"
    chart = tag("figure", tag("h3", title), line_chart(points, title=title, x_label="principal direction"))
    said = (
        "Features that use their space fall slowly; a cliff after a few directions is dimensional collapse "
        "(Jing et al. 2022, arXiv 2110.09348)."
    )
    return [section("Spectrum", tag("p", said, class_="quiet"), tag("div", chart, class_="charts"))]
