"""Files that Pillow does not read, or not whole: what decodes one kind of them, and the one for arrays of numpy."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from math import prod
from threading import Lock
from typing import IO, Any, ClassVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..config.schema import Component
from ..errors import DataError
from .convert import Limits, Span, planes, scaled_values, shrink, to_channels
from .decode import Inside, Unreadable

PARSING = Lock()  # numpy parses with `ast`, where two threads at once may fail (python/cpython#106905)


class FileDecoder(Component, ABC):
    """Reads the files of one kind: their values as they are stored, in any number of channels.

    It is named like the suffix of such files, and threads call it at once. Whatever it raises makes the file an
    unreadable one, with the error's text as the reason; `Unreadable` says it in your words.
    """

    kind = "decoder"
    suffixes: ClassVar[frozenset[str]]
    """Of such files, in small letters and with the dot; an empty one: files without a suffix too."""

    @abstractmethod
    def shape(self, file: IO[bytes]) -> tuple[int, int, int, int]:
        """(pages, channels, height, width) as the header of a file tells them; the first page is the image."""

    @abstractmethod
    def decode(self, file: IO[bytes]) -> np.ndarray[Any, Any]:
        """The image (channels, height, width): uint8 and bool are shown as they are, others by one scale for all."""


class Npy(FileDecoder):
    """Arrays of numpy in files of their own: (H, W), (H, W, C) or (C, H, W)."""

    name = "npy"
    suffixes = frozenset({".npy"})

    def shape(self, file: IO[bytes]) -> tuple[int, int, int, int]:
        """By the first bytes of the file."""
        shape, *_ = array_header(file)
        if len(shape) == 4:
            raise Unreadable(f"a stack of {shape[0]} images, which are read where the file itself is named")
        channels, height, width = planes(np.broadcast_to(np.uint8(0), shape), "array").shape  # takes no memory
        return 1, channels, height, width

    def decode(self, file: IO[bytes]) -> np.ndarray[Any, Any]:
        """The array; objects, which could run a program, are refused."""
        found: np.ndarray[Any, Any] = planes(read_array(file), "array").numpy()
        return found


def read_array(file: IO[bytes]) -> np.ndarray[Any, Any]:
    """An array in numpy's format, in memory of its own.

    Raises:
        Unreadable: as `array_header`.
    """
    shape, fortran_order, dtype = array_header(file)
    values = bytearray(prod(shape) * dtype.itemsize)
    if cast("io.BufferedIOBase", file).readinto(values) < len(values):  # nothing is held twice
        raise Unreadable("a file that was cut short while it was read")
    return np.ndarray(shape, dtype, values, order="F" if fortran_order else "C")


def array_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, Fortran order, type) of an array in numpy's format, if as many bytes follow; the file is then at these.

    Nothing is allocated by its word alone.

    Raises:
        Unreadable: it is no such file, holds objects, or is cut short.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        with PARSING:
            shape, fortran_order, dtype = read(file)
    except (ValueError, SyntaxError, EOFError) as error:
        raise Unreadable(f"no array in numpy's format ({' '.join(str(error).split()):.100})") from error
    if dtype.hasobject or dtype.kind not in "buif":
        raise Unreadable(f"an array of {dtype!s:.40}, not of numbers; objects are never loaded")
    start = file.tell()
    length, wanted = file.seek(0, io.SEEK_END) - start, prod(shape) * dtype.itemsize
    if min(shape, default=0) < 1 or length < wanted:
        raise Unreadable(f"an array of the shape {shape}, {wanted} bytes, of which {length} are there")
    file.seek(start)
    return shape, fortran_order, dtype


# -- what the core makes of them ------------------------------------------------------------------
def file_header(decoder: FileDecoder, file: IO[bytes]) -> tuple[int, int, int]:
    """(pages, channels, shorter side) of a file.

    Raises:
        Unreadable: the header shows it, or it tells of more pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    try:
        pages, channels, height, width = decoder.shape(file)
    except Unreadable:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise Unreadable.because(error) from error
    limit, pixels = Image.MAX_IMAGE_PIXELS, height * width
    if limit is not None and pixels * channels > 3 * limit:
        raise Unreadable(f"{pixels} pixels in {channels} channels, more than the limit of {limit} in colour")
    if min(channels, height, width) < 1 or channels > 1024:
        raise Unreadable(f"{channels} channels of {height} x {width} pixels")
    return pages, channels, min(height, width)


def _values(decoder: FileDecoder, file: IO[bytes]) -> tuple[int, np.ndarray[Any, Any]]:
    """(pages, values) of an image that is no larger than its header says."""
    pages, *_ = file_header(decoder, file)
    file.seek(0)
    try:
        values = decoder.decode(file)
    except (MemoryError, Unreadable):
        raise
    except Exception as error:  # as above
        raise Unreadable.because(error) from error
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise Unreadable("values that are no numbers (NaN or infinite)")
    return pages, values.view(np.uint8) * np.uint8(255) if values.dtype == np.bool_ else values


def decode_file(decoder: FileDecoder, file: IO[bytes], channels: int, side: int | None, limits: Limits) -> Tensor:
    """The image in a file as (channels, h, w), as `decode_image` makes it.

    Raises:
        Unreadable: it cannot be decoded, has values that are no numbers, or other channels.
    """
    _, values = _values(decoder, file)
    shown = values if values.dtype == np.uint8 else scaled_values(values, limits)
    try:
        if len(values) in (2, 4) and len(values) != channels:  # bands: nothing says that the last is an alpha
            raise DataError("of bands")
        image = to_channels(torch.from_numpy(np.ascontiguousarray(shown)), channels)
    except DataError as error:
        raise Unreadable(f"{len(values)} channels, and the others have {channels}") from error
    return image if side is None else shrink(image, side)


def look_into(decoder: FileDecoder, file: IO[bytes]) -> Inside:
    """What a file holds beside its first page and the usual eight bits.

    Raises:
        Unreadable: as `decode_file`.
    """
    pages, values = _values(decoder, file)
    return Inside(pages, None if values.dtype == np.uint8 else Span.of(values))
