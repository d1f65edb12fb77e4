"""Image files into small uint8 tensors, and the reason when a file is not an image that can be read."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .convert import pil_to_tensor

# Pillow reads more formats, among them PostScript, which runs programs. A renamed file must not reach those.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})


class Unreadable(Exception):
    """A file that should be an image cannot be read as one; the text is the reason."""


def read_image(path: Path, channels: int, side: int) -> Tensor:
    """The image as (channels, h, w) uint8, upright, its shorter side at most `side` and never enlarged.

    JPEG files are decoded at the smallest of the scales 1, 1/2, 1/4, 1/8 that is large enough.

    Raises:
        Unreadable: empty, truncated, no image, or more pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    try:
        # Opened by hand: given a path, Pillow maps plain TIFFs into memory, and misreads those that lie on their side.
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            _refuse_bomb(image)
            factor = min(1.0, side / min(image.size))
            image.draft(None, (round(image.width * factor), round(image.height * factor)))
            return pil_to_tensor(image, channels, side)
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise Unreadable(_reason(path, error)) from error


def shorter_side(path: Path) -> int:
    """The shorter side by the file's header alone.

    Raises:
        Unreadable: as `read_image`, where the header shows it.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            _refuse_bomb(image)
            return min(image.size)
    except Exception as error:  # as above
        raise Unreadable(_reason(path, error)) from error


def _refuse_bomb(image: Image.Image) -> None:
    """Refuse at the size where Pillow only warns: such a file may need gigabytes."""
    limit, pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and pixels > limit:
        raise Unreadable(f"{pixels} pixels, more than the limit of {limit} (PIL.Image.MAX_IMAGE_PIXELS)")


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, Unreadable):
        return str(error)
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more pixels than the limit of {Image.MAX_IMAGE_PIXELS} (PIL.Image.MAX_IMAGE_PIXELS)"
    if isinstance(error, UnidentifiedImageError):
        return "an empty file" if path.stat().st_size == 0 else "not an image in a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
