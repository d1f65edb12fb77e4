"""Many images in one array: a .npy file, which is mapped into memory, or an array of a .npz file."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import DataError, visible
from .arrays import check_axes
from .convert import as_tensor
from .decode import Unreadable, open_file
from .decoders import array_header, read_array
from .files import Files, Label, few
from .tables import LABELS, Reading, as_labels, chosen

STACKS = (".npy", ".npz")
IMAGES = ("images", "image", "x", "data", "pixels", "arr0")


class StackFiles(Files):
    """The images of one array by their numbers, each as if it was a file of its own.

    Raises:
        DataError: it cannot be read, holds objects, or no stack of images.
    """

    def __init__(self, path: Path, reading: Reading) -> None:
        try:
            self.images, labels = _of_zip(path, reading) if path.suffix.lower() == ".npz" else (_mapped(path), None)
        except (Unreadable, OSError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
            raise DataError(f"data: {path} cannot be read: {' '.join(str(error).split()):.200}.") from error
        check_axes(as_tensor(self.images))
        count = len(self.images)
        if labels is not None and len(labels) != count:
            raise DataError(f"data: {path} has {len(labels)} labels for {count} images; expected one an image.")
        width = len(str(count - 1))
        super().__init__(str(path), [f"{row:0{width}}" for row in range(count)], labels or [])

    @contextmanager
    def open(self, row: int) -> Iterator[IO[bytes]]:
        """One image in numpy's format."""
        file = io.BytesIO()
        np.lib.format.write_array(file, np.asarray(self.images[row]), allow_pickle=False)
        file.seek(0)
        yield file


def _mapped(path: Path) -> np.ndarray[Any, Any]:
    with open_file(path, most=None) as file:
        array_header(file)
    found: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return found


def _of_zip(path: Path, reading: Reading) -> tuple[np.ndarray[Any, Any], list[Label] | None]:
    """The images and the labels, by the usual names of their arrays or those that were asked for."""
    with zipfile.ZipFile(path) as archive:
        arrays = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        images = chosen(arrays, reading.image, IMAGES, f"image: {path}")
        if images is None and len(arrays) != 1:
            names = few([*map(visible, arrays)], 20)
            raise DataError(f"data: no array of {path} is known to hold images: {names}. Say which: data.image=NAME.")
        label = chosen(arrays, reading.label, LABELS, f"label: {path}")
        found = _member(archive, arrays[images or next(iter(arrays))])
        labels = None if label in (None, images) else _member(archive, arrays[label or ""])
    return found, None if labels is None else as_labels(labels.reshape(len(labels), -1)[:, 0].tolist())


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray[Any, Any]:
    if info.file_size > 2**26 and info.file_size > 100 * info.compress_size:
        raise Unreadable(f"{info.compress_size} bytes that expand to {info.file_size}")
    return read_array(io.BytesIO(archive.read(info)))
