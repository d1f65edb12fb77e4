"""The sections of pictures: what the method sees, what the backbone finds alike, and a map of its features."""

from __future__ import annotations

import base64
import math
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .files import RunFiles
from .html import Html, section, table, tag

VIEWS, METHOD = "views.", "method."
HUES = 10  # classes with a colour of their own; further ones share them
LARGEST = 128  # pixels a side; a larger picture is averaged down, so that the page stays small
COARSE = 64  # up to this side a picture is enlarged with its pixels kept sharp


def views(run: RunFiles) -> list[Html]:
    """Some training images with the views that the augmentation makes of them."""
    names = [name for name in run.samples if name.startswith(VIEWS)]
    names.sort(key=lambda name: (name != f"{VIEWS}global", name))  # a safetensors file keeps no order
    groups = {name.removeprefix(VIEWS): run.samples[name] for name in names}
    if not groups:
        return []
    columns = ["", *(f"{name} {v + 1}" for name, group in groups.items() for v in range(group.shape[1]))]
    originals = run.samples.get("originals")
    if originals is not None:
        columns.insert(1, "original")
    count, channels = next(iter(groups.values())).shape[::2][:2]
    rows = [_view_row(i, originals, groups) for i in range(count)]
    said = f"Each row is one training image and the views of it in the first epoch.{channel_note(channels)}"
    return [section("Sample views", tag("p", said, class_="quiet"), table(columns, rows, kind="pictures"))]


def _view_row(i: int, originals: Tensor | None, groups: dict[str, Tensor]) -> list[str]:
    first = [] if originals is None else [picture(originals[i], f"image {i + 1}")]
    made = [
        picture(view, f"image {i + 1}, {name} view {v + 1}")
        for name, group in groups.items()
        for v, view in enumerate(group[i])
    ]
    return [str(i + 1), *first, *made]


def attention(run: RunFiles) -> list[Html]:
    """Training images as the heads of the last block see them."""
    images = run.samples.get("attention")
    if images is None:
        return []
    names = ["image", *(f"head {n}" for n in range(1, images.shape[1]))]
    rows = [
        [str(i + 1), *(picture(one, f"image {i + 1}, {name}") for one, name in zip(row, names, strict=True))]
        for i, row in enumerate(images)
    ]
    said = (
        "Where the pooled features come from: a patch is as bright as a head of the last block attends to it, and the "
        "brightest of each image is shown in full."
    )
    text = tag("p", said, channel_note(images.shape[2]), class_="quiet")
    return [section("Attention", text, table(["", *names], rows, kind="pictures"))]


def of_method(run: RunFiles) -> list[Html]:
    """What the method itself shows of training images: what it has made of a masked one, say."""
    names = sorted(name for name in run.samples if name.startswith(METHOD))
    if not names:
        return []
    shown = [(name, name.split(".", 2)[-1]) for name in names]
    count, channels = run.samples[names[0]].shape[::2][:2]
    rows = [
        [str(i + 1), *(picture(run.samples[name][i, 0], f"image {i + 1}, {column}") for name, column in shown)]
        for i in range(count)
    ]
    said = f"Each row is one training image, as the method shows it after its last step.{channel_note(channels)}"
    text = tag("p", said, class_="quiet")
    return [
        section("Pictures of the method", text, table(["", *(column for _, column in shown)], rows, kind="pictures"))
    ]


def nearest(run: RunFiles) -> list[Html]:
    """Query images with the images whose features are most alike to theirs."""
    images, labels = run.samples.get("neighbours"), run.samples.get("neighbour_labels")
    if images is None:
        return []
    rows = [_query_row(run, q, images[q], None if labels is None else labels[q]) for q in range(len(images))]
    columns = ["", "query", *(f"nearest {n}" for n in range(1, images.shape[1]))]
    said = "Each row is an image and its nearest neighbours by the trained backbone."
    agreement = "" if labels is None else _agreement(labels)
    text = tag("p", said, agreement, channel_note(images.shape[2]), class_="quiet")
    return [section("Nearest neighbours", text, table(columns, rows, kind="pictures"))]


def _agreement(labels: Tensor) -> str:
    """How many neighbours share their query's label, among the pairs that have labels."""
    known = (labels[:, :1] >= 0) & (labels[:, 1:] >= 0)
    same = (labels[:, 1:] == labels[:, :1]) & known
    if not known.any():
        return ""
    return f" {int(same.sum())} of {int(known.sum())} neighbours have the label of their query (✓), the others not (✗)."


def _query_row(run: RunFiles, q: int, images: Tensor, labels: Tensor | None) -> list[str]:
    known = [-1] * len(images) if labels is None else [int(label) for label in labels]
    cells = [_shown(images[0], f"query {q + 1}", run.class_name(known[0]), "")]
    for n in range(1, len(images)):
        kind = "" if min(known[0], known[n]) < 0 else "same" if known[n] == known[0] else "other"
        cells.append(_shown(images[n], f"neighbour {n} of query {q + 1}", run.class_name(known[n]), kind))
    return [str(q + 1), *cells]


def _shown(image: Tensor, what: str, name: str, kind: str) -> Html:
    """A picture with its label under it, marked where the label agrees or differs."""
    sign, words = {"same": ("✓ ", ", same label"), "other": ("✗ ", ", other label"), "": ("", "")}[kind]
    alt = f"{what}{': ' + name if name else ''}{words}"
    mate = [tag("div", f"{sign}{name}", class_="mate", title=name)] if name else []
    return tag("div", picture(image, alt), *mate, class_=kind or None)


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


# -- pictures inside the page: uint8 tensors as PNG data URIs ---------------------------------------
def picture(image: Tensor, alt: str) -> Html:
    """An <img> of one picture (C, H, W) uint8."""
    return tag("img", src=data_uri(image), alt=alt, class_="coarse" if max(image.shape[1:]) <= COARSE else None)


def data_uri(image: Tensor, largest: int | None = LARGEST) -> str:
    """A picture (C, H, W) uint8 as a PNG inside a URI, averaged down to `largest` pixels a side."""
    visible = image[:3] if image.shape[0] >= 3 else image[:1]  # one or three channels of any number
    side = max(visible.shape[1:])
    if largest is not None and side > largest:
        visible = F.interpolate(visible[None].float(), scale_factor=largest / side, mode="area")[0].round().byte()
    planes = visible.permute(1, 2, 0).numpy()
    png = BytesIO()
    Image.fromarray(planes[:, :, 0] if planes.shape[2] == 1 else planes).save(png, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


def channel_note(channels: int) -> str:
    """Which channels of these images a picture shows; nothing where it shows all of them."""
    if channels in (1, 3):
        return ""
    shown = "the first is shown as grey" if channels == 2 else "the first three are shown as red, green and blue"
    return f" The images have {channels} channels; {shown}."
