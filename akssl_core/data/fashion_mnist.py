"""Fashion-MNIST from its four IDX files (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747)."""

from __future__ import annotations

import gzip
import struct
import zlib
from math import prod
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from ..errors import DataError
from .arrays import TensorImages
from .base import ImageSet
from .torchvision_sources import DownloadConfig, OfficialSplit, data_root

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts the files
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def read_idx(path: Path) -> Tensor:
    """The uint8 array of an IDX file, plain or gzipped.

    The format: two zero bytes, the type (8: uint8), the number of axes, each axis as a big-endian uint32,
    then the values (LeCun's description of the MNIST files).

    Raises:
        DataError: it cannot be read, is no IDX file of uint8, or has fewer or more values than it says.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"data: {path} cannot be read: {error}. Fetch it again.") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise DataError(f"data: {path} is not an IDX file of uint8: it starts with {data[:4].hex(' ') or 'nothing'}.")
    start = 4 + 4 * data[3]
    shape = struct.unpack(f">{data[3]}I", data[4:start]) if len(data) >= start else ()
    if not shape or len(data) - start != prod(shape):
        raise DataError(f"data: {path} is damaged: {len(data)} bytes do not fit its header. Fetch it again.")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=start).view(shape)


class FashionMnistConfig(DownloadConfig):
    """Settings of the data source `fashion-mnist`."""

    size: int | None = Field(None, ge=1, description="train on the first so many images; null: all 60000")


class FashionMnist(OfficialSplit):
    """Fashion-MNIST: 70 000 gray images of clothes, 28 px, 10 classes.

    The files are looked for in `fashion-mnist` in the data root, in Debian's package, and where torchvision
    puts them; they are downloaded when they are in none of these.
    """

    name = "fashion-mnist"
    Config = FashionMnistConfig
    mean = (0.2860,)
    std = (0.3530,)
    natural_size = 28
    dataset, files = "FashionMNIST", "a folder fashion-mnist with the four files (plain or .gz)"
    home = "https://github.com/zalandoresearch/fashion-mnist"

    def read(self, part: Any) -> ImageSet:
        """The test images, or the first `size` of the training images."""
        images, labels = (read_idx(path) for path in self._find()[0 if part else 2 :][:2])
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise DataError(
                f"data: fashion-mnist holds images of shape {tuple(images.shape)} and labels of shape "
                f"{tuple(labels.shape)}; expected (N, H, W) and (N,). Fetch the files again."
            )
        size = (part and self.config.size) or len(images)
        if size > len(images):
            raise DataError(f"data.size: {size} is more than the {len(images)} training images of fashion-mnist.")
        return TensorImages(images[:size, None], labels[:size].long(), CLASSES)

    def _find(self) -> list[Path]:
        """The four files in the order of `FILES`, each plain or, where there is no such, gzipped.

        Raises:
            DataError: in a folder some are there and others are missing.
        """
        downloaded = data_root() / "FashionMNIST" / "raw"
        for folder in (data_root() / "fashion-mnist", DEBIAN, downloaded):
            found = {name: p for name in FILES for p in (folder / f"{name}.gz", folder / name) if p.is_file()}
            if missing := [name for name in FILES if found and name not in found]:
                lacking = f"lacks {', '.join(missing)} (plain or .gz) of the four Fashion-MNIST files"
                raise DataError(f"data: {folder} {lacking}.")
            if found:
                return list(found.values())
        self.open(self.files)
        return [downloaded / name for name in FILES]
