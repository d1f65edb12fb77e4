"""The sections of pictures: what the method sees, and what the backbone finds alike."""

from __future__ import annotations

import base64
from io import BytesIO

from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .files import RunFiles
from .html import Html, section, table, tag

VIEWS = "views."
LARGEST = 128  # pixels a side; a larger picture is averaged down, so that the page stays small
COARSE = 64  # up to this side a picture is enlarged with its pixels kept sharp


def views(run: RunFiles) -> list[Html]:
    """Some training images with the views that the augmentation makes of them."""
    groups = {name.removeprefix(VIEWS): run.samples[name] for name in _view_names(run)}
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


def _view_names(run: RunFiles) -> list[str]:
    """The groups of views, the global ones first: a safetensors file keeps no order."""
    names = [name for name in run.samples if name.startswith(VIEWS)]
    return sorted(names, key=lambda name: (name != f"{VIEWS}global", name))


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


# -- pictures inside the page: uint8 tensors as PNG data URIs ---------------------------------------
def picture(image: Tensor, alt: str) -> Html:
    """An <img> of one picture (C, H, W) uint8."""
    return tag("img", src=data_uri(image), alt=alt, class_="coarse" if max(image.shape[1:]) <= COARSE else None)


def data_uri(image: Tensor, largest: int | None = LARGEST) -> str:
    """A picture (C, H, W) uint8 as a PNG inside a URI, averaged down to `largest` pixels a side."""
    planes = _fit(_visible(image), largest).permute(1, 2, 0).numpy()
    png = BytesIO()
    Image.fromarray(planes[:, :, 0] if planes.shape[2] == 1 else planes).save(png, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


def channel_note(channels: int) -> str:
    """Which channels of these images a picture shows; nothing where it shows all of them."""
    if channels in (1, 3):
        return ""
    shown = "the first is shown as grey" if channels == 2 else "the first three are shown as red, green and blue"
    return f" The images have {channels} channels; {shown}."


def _visible(image: Tensor) -> Tensor:
    """One or three channels of a picture that may have any number."""
    return image[:3] if image.shape[0] >= 3 else image[:1]


def _fit(image: Tensor, largest: int | None) -> Tensor:
    side = max(image.shape[1:])
    if largest is None or side <= largest:
        return image
    smaller = F.interpolate(image[None].float(), scale_factor=largest / side, mode="area")
    return smaller[0].round().byte()
