"""One cell of an image column into a small uint8 tensor, and the reason when that cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from akssl_core import Unreadable, decode_image, image_header


def look(cell: Any, folders: Sequence[Path]) -> tuple[int, int]:
    """(channels it is worth, shorter side) of the image in a cell, by its header alone.

    Raises:
        Unreadable: as `decode`, where the header shows it.
    """
    return image_header(_image(cell, folders))


def decode(cell: Any, folders: Sequence[Path], channels: int, side: int | None) -> Tensor:
    """The image in a cell as (channels, h, w) uint8, upright, its shorter side at most `side`; None: the original.

    Raises:
        Unreadable: no image in the cell, damaged bytes, a missing file, or more pixels than Pillow's limit.
    """
    return decode_image(_image(cell, folders), channels, side)


def _image(cell: Any, folders: Sequence[Path]) -> bytes | Image.Image:
    """What a cell holds; whatever goes wrong is the reason why its image cannot be read."""
    try:
        return _content(cell, folders)
    except Exception as error:  # a file that cannot be read, texts and lists that are damaged
        raise Unreadable.because(error) from error


def _content(cell: Any, folders: Sequence[Path]) -> bytes | Image.Image:
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
    return value if isinstance(value, bytes) else _file(value, folders).read_bytes()


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
