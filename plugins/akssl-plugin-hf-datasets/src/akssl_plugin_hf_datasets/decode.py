"""One cell of an image column into a small uint8 tensor, and the reason when that cannot be."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

# Pillow reads more formats, among them PostScript, which runs programs. The bytes of a table must not reach those.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
MAX_ASPECT = 4  # a longer image keeps its middle: one panorama must not blow up the canvas of its whole batch
GRAY = ("1", "L", "LA", "F", "I", "I;16", "I;16L", "I;16B", "I;16N")


class Unreadable(Exception):
    """A cell that should be an image cannot be read as one; the text is the reason."""


def look(cell: Any, folders: Sequence[Path]) -> tuple[int, int]:
    """(channels it is worth, shorter side) of the image in a cell, by its header alone.

    Raises:
        Unreadable: as `decode`, where the header shows it.
    """
    try:
        image = _opened(cell, folders)
        return 1 if image.mode in GRAY else 3, min(image.size)
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise Unreadable(_reason(error)) from error


def decode(cell: Any, folders: Sequence[Path], channels: int, side: int) -> Tensor:
    """The image in a cell as (channels, h, w) uint8, upright, its shorter side at most `side`, never enlarged.

    JPEG files are decoded at the smallest of the scales 1, 1/2, 1/4, 1/8 that is large enough.

    Raises:
        Unreadable: no image in the cell, damaged bytes, a missing file, or more pixels than Pillow's limit.
    """
    try:
        image = _opened(cell, folders)
        factor = min(1.0, side / min(image.size))
        image.draft(None, (round(image.width * factor), round(image.height * factor)))
        image.load()
        image = _shrunk(_plain(_middle(_upright(image)), "L" if channels == 1 else "RGB"), side)
    except Exception as error:  # as above
        raise Unreadable(_reason(error)) from error
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def _opened(cell: Any, folders: Sequence[Path]) -> Image.Image:
    """The image in an Arrow scalar: {bytes, path}, the bytes of a file, the path of one, or an array."""
    import pyarrow as pa  # type: ignore[import-untyped]

    cell = cell.value if isinstance(cell, pa.ExtensionScalar) else cell
    if not cell.is_valid:
        raise Unreadable("no image in this row")
    if isinstance(cell, pa.ListScalar):
        return _picture(_array(cell.values))
    value = cell.as_py()
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not value:
        raise Unreadable("no image in this row" if value is None else "empty")
    data = value if isinstance(value, bytes) else _file(value, folders).read_bytes()
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    _refuse_bomb(image)
    return image


def _file(path: str, folders: Sequence[Path]) -> Path:
    """The file at a path that may be relative to one of the folders."""
    for folder in folders:
        if (folder / path).is_file():
            return folder / path
    raise Unreadable(f"no file '{path}'")


def _array(values: Any) -> np.ndarray[Any, Any]:
    """Nested Arrow lists of one image as an array, without a Python object for each pixel."""
    import pyarrow as pa
    from pyarrow import compute

    shape = [len(values)]
    while pa.types.is_nested(values.type):
        lengths = compute.list_value_length(values).unique().to_pylist()
        if len(lengths) != 1 or lengths[0] is None:
            raise Unreadable("an array whose rows differ in length")
        shape.append(lengths[0])
        values = values.flatten()
    if values.null_count:
        raise Unreadable("an array with missing values")
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(shape)


def _picture(pixels: np.ndarray[Any, Any]) -> Image.Image:
    """An array [H, W], [H, W, C] or [C, H, W] as a Pillow image."""
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] > 4:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if 0 in pixels.shape or (pixels.ndim == 3 and pixels.shape[2] not in (2, 3, 4)):
        raise Unreadable(f"an array of shape {pixels.shape}; expected [H, W] or [H, W, C] with 1 to 4 channels")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _refuse_bomb(image: Image.Image) -> None:
    """Refuse at the size where Pillow only warns: such an image may need gigabytes."""
    limit, count = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and count > limit:
        raise Unreadable(f"{count} pixels, more than the limit of {limit} (PIL.Image.MAX_IMAGE_PIXELS)")


def _upright(image: Image.Image) -> Image.Image:
    """The image turned by its EXIF tag."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged tags raise nearly anything, and must not cost a good image
        return image


def _middle(image: Image.Image) -> Image.Image:
    """The part that stays when the long side is cut to 4 times the short."""
    width, height = min(image.width, MAX_ASPECT * image.height), min(image.height, MAX_ASPECT * image.width)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _plain(image: Image.Image, mode: str) -> Image.Image:
    """Any Pillow mode as "L" or "RGB": transparency over white, 16 bits scaled to 8."""
    if image.mode.startswith("I"):
        levels = np.asarray(image).clip(0, 65535) / 257  # the fixed scale 255 / 65535 keeps images comparable
        image = Image.fromarray(levels.round().astype(np.uint8))
    elif image.mode == "F":
        levels = np.asarray(image)
        if not (levels.min() >= 0 and levels.max() <= 1):
            raise Unreadable("a float image with values outside [0, 1]")
        image = Image.fromarray((levels * 255).round().astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    """The shorter side at most `side`: whole pixels are averaged down to twice that, the rest is resampled."""
    shorter = min(image.size)
    if shorter <= side:
        return image
    size = (side * image.width // shorter, side * image.height // shorter)
    factor = shorter // (2 * side)
    image = image.reduce(factor) if factor > 1 else image
    return image.resize(size, Image.Resampling.LANCZOS)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more pixels than the limit of {Image.MAX_IMAGE_PIXELS} (PIL.Image.MAX_IMAGE_PIXELS)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
