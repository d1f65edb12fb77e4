"""Pictures inside the page: uint8 tensors as PNG data URIs."""

from __future__ import annotations

import base64
from io import BytesIO

from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .html import Html, tag

LARGEST = 128  # pixels a side; a larger picture is averaged down, so that the page stays small
COARSE = 64  # up to this side a picture is enlarged with its pixels kept sharp


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
