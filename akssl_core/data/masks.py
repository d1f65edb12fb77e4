"""Classes of pixels: masks that lie beside image files, cut as their images are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import DataError
from .base import ImageSet, Subset
from .convert import Square
from .decode import PILLOW_FORMATS, Unreadable, read_image

IGNORED = 255
"""The class of pixels that count nowhere."""
MODES = ("1", "L", "P", "I", "I;16")  # of a file whose values are classes


class Masked(Subset):
    """Those images of a set that have a mask of the same name in a folder: `a/b.jpg` has `a/b.png`.

    Raises:
        DataError: no image has one.
    """

    def __init__(self, images: ImageSet, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise DataError(f"masks: '{folder}' {what}. Expected a folder of PNG files under the names of the images.")
        rows = [i for i in range(len(images)) if self._file(images.id_of(i)).is_file()]
        if not rows:
            first = self._file(images.id_of(0))
            raise DataError(
                f"masks: none of the {len(images)} images has one in {folder}; expected {first} for the first. Give a "
                "folder of PNG files under the names of the images, whose values are numbers of classes."
            )
        super().__init__(images, torch.tensor(rows))

    def _file(self, name: str) -> Path:
        return (self.folder / name).with_suffix(".png")

    def masks(self, index: Sequence[int], square: Square) -> Tensor:
        """The classes of their pixels, from the files."""
        return torch.cat([square.nearest(self._read(i)[None]) for i in index])

    def _read(self, i: int) -> Tensor:
        """One mask (h, w) uint8, of the shape of its image.

        Raises:
            DataError: it is none, or has another shape.
        """
        file, image = self._file(self.id_of(i)), self.file_of(i)
        try:
            with Image.open(file, formats=PILLOW_FORMATS) as opened:
                mode, values = opened.mode, torch.from_numpy(np.array(opened).astype(np.int64))
        except Exception as error:  # decoders raise nearly anything on damaged bytes
            raise DataError(f"masks: {file} cannot be read: {Unreadable.because(error)}.") from error
        if mode not in MODES or values.max() > IGNORED:
            raise DataError(
                f"masks: {file} has pixels of mode {mode}, up to {values.max()}. Expected a class of 0 to {IGNORED} "
                "for each (mode L or P): write it anew so."
            )
        if image is not None and (shape := read_image(image, 1, None).shape[1:]) != values.shape:
            here, there = (f"{width} x {height} px" for height, width in (values.shape, shape))
            raise DataError(f"masks: {file} has {here}, its image {there}. Expected the same.")
        return values.to(torch.uint8)
