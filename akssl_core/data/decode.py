"""Image files into small tensors, and the reason when one is not an image that can be read."""

from __future__ import annotations

import errno
import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .convert import Limits, Span, deep_values, pil_channels, pil_to_tensor

# Pillow reads more formats, among them PostScript, which runs programs. A renamed file must not reach those.
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000", "DIB", "ICO", "QOI", "TGA")
_SUFFIXES = "jpg jpeg jpe jfif mpo png webp bmp dib tif tiff gif ppm pgm pbm pnm avif jp2 j2k jpx ico qoi tga"
SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split(" "))
logging.getLogger("PIL").addHandler(logging.NullHandler())  # what is wrong with a file is told here
MOST_BYTES = 2**30  # of a file; more than the pixels that Pillow allows take in any format


class Unreadable(Exception):
    """A file or a cell that should be an image cannot be read as one; the text is the reason."""

    @classmethod
    def because(cls, error: Exception) -> Unreadable:
        """The reason that lies in any error which opening or decoding an image raised."""
        if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
            return cls(f"more pixels than the limit of {Image.MAX_IMAGE_PIXELS} (PIL.Image.MAX_IMAGE_PIXELS)")
        if isinstance(error, UnidentifiedImageError):
            return cls("not an image in a known format")
        if isinstance(error, OSError) and error.strerror:
            return cls(error.strerror)
        return cls(" ".join(str(error).split()) or type(error).__name__)


def decode_image(
    image: bytes | IO[bytes] | Image.Image, channels: int, side: int | None, limits: Limits | None = None
) -> Tensor:
    """An image as (channels, h, w) uint8, upright: the whole of it, or its shorter side at most `side`.

    Gray of more than 8 bits is float32 in 0..255, nothing rounded.

    It comes as the bytes of a file, an open file, or a Pillow image of any mode. With a `side`, the longer one is cut
    to at most 4 times the shorter, and JPEG files are decoded at the smallest of the scales 1, 1/2, 1/4, 1/8 that is
    large enough. Nothing is enlarged.

    Args:
        image: what is decoded.
        channels: 1 for gray, 3 for colour.
        side: in pixels; None: every pixel of the original.
        limits: the values of such gray that become 0 and 255; None: 0 and 65535, of fractions 0 and 1.

    Raises:
        Unreadable: empty, truncated, no image, or more pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    try:
        opened = _opened(image)
        if side is not None and side < min(opened.size):
            factor = side / min(opened.size)
            opened.draft(None, (round(opened.width * factor), round(opened.height * factor)))
        return pil_to_tensor(opened, channels, side, limits)
    except MemoryError:
        raise  # which says nothing of the image
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise Unreadable.because(error) from error


def image_header(image: bytes | IO[bytes] | Image.Image) -> tuple[int, int]:
    """(channels it is worth, shorter side) of an image, by its header alone; gray of any depth is worth 1, else 3.

    Raises:
        Unreadable: as `decode_image`, where the header shows it.
    """
    try:
        opened = _opened(image)
        return pil_channels(opened), min(opened.size)
    except Exception as error:  # as above
        raise Unreadable.because(error) from error


def read_image(path: Path, channels: int, side: int | None) -> Tensor:
    """The image in a file, as `decode_image` makes it.

    Raises:
        Unreadable: no such file, or as `decode_image`.
    """
    with open_file(path) as file:
        return decode_image(file, channels, side)


def is_image(path: Path) -> bool:
    """Whether a file without a suffix begins like an image."""
    try:
        with open_file(path) as file:
            return image_header(file)[1] > 0
    except Unreadable:
        return False


@dataclass(frozen=True, slots=True)
class Inside:
    """What a file holds beside the first page and the usual eight bits."""

    pages: int = 1
    span: Span | None = None
    """The values, where they have more than 8 bits."""
    cut: bool = False
    """It is colour with 16 bits a channel, of which Pillow reads 8."""


def look_inside(file: IO[bytes]) -> Inside:
    """What the image in a file holds.

    Raises:
        Unreadable: as `decode_image`.
    """
    try:
        image = _opened(file)
        cut = image.mode in ("RGB", "RGBA", "CMYK") and any(";16" in str(tile) for tile in getattr(image, "tile", ()))
        values = deep_values(image)
        return Inside(int(getattr(image, "n_frames", 1)), None if values is None else Span.of(values), cut)
    except Exception as error:  # as above
        raise Unreadable.because(error) from error


@contextmanager
def open_file(path: Path, most: int | None = MOST_BYTES) -> Iterator[IO[bytes]]:
    """A file opened by hand: given a path, Pillow maps plain TIFFs into memory, and misreads those on their side.

    Raises:
        Unreadable: it cannot be opened, or is longer than any image: Pillow reads some formats into memory before it
            looks at them.
        OSError: the fault is not the file's: this process has too many open, or no memory.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if most is not None and size > most:
                raise Unreadable(f"a file of {size} bytes, more than the limit of {most}")
            yield file
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        raise Unreadable.because(error) from error


def _opened(image: bytes | IO[bytes] | Image.Image) -> Image.Image:
    """The Pillow image, of a safe format and size."""
    if isinstance(image, Image.Image):
        return image
    file = io.BytesIO(image) if isinstance(image, bytes) else image
    try:
        opened = Image.open(file, formats=_formats())
    except UnidentifiedImageError as error:
        if file.seek(0, io.SEEK_END) == 0:
            raise Unreadable("an empty file") from error
        file.seek(0)
        if file.read(4) in (b"II*\0", b"MM\0*"):
            cure = "data.decoder=tiff reads it"
            raise Unreadable(f"a TIFF of a kind that Pillow does not read, as with 5 bands; {cure}") from error
        raise
    _refuse_bomb(opened)
    return opened


@cache
def _formats() -> tuple[str, ...]:
    """Those that the installed Pillow knows."""
    Image.init()
    return tuple(name for name in PILLOW_FORMATS if name in Image.OPEN)


def _refuse_bomb(image: Image.Image) -> None:
    """Refuse at the size where Pillow only warns: such a file may need gigabytes."""
    limit, pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and pixels > limit:
        raise Unreadable(f"{pixels} pixels, more than the limit of {limit} (PIL.Image.MAX_IMAGE_PIXELS)")
