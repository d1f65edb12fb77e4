"""Data sets that torchvision downloads and reads: cifar10, cifar100, stl10 and imagenette."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from ..config.schema import HARMLESS, Schema
from ..errors import DataError
from .arrays import TensorImages
from .base import DatasetSource, ImageSet
from .convert import channels_first
from .folder import FolderConfig, ImageFiles
from .labels import encode_labels
from .scan import scan
from .stored import StoredImages
from .wrapped import stored_labels


def data_root() -> Path:
    """The folder of data sets that are not passed by path: the one that AKSSL_DATA names, or `~/.cache/akssl`."""
    return Path(os.environ.get("AKSSL_DATA") or "~/.cache/akssl").expanduser()


class DownloadConfig(Schema):
    """Settings of a data set that can be downloaded."""

    download: bool = Field(True, description="download the data set when it is not in the data root (AKSSL_DATA)")


class OfficialSplit(DatasetSource):
    """A data set with an official split: its parts are read once, when they are asked for."""

    Config: ClassVar[type[Schema]] = DownloadConfig
    dataset: ClassVar[str]  # class in torchvision.datasets
    files: ClassVar[str]  # what a user can put into the data root by hand
    home: ClassVar[str]  # the page to get them from
    argument: ClassVar[str] = "train"  # of that class, which says what part of the data set it reads
    parts: ClassVar[tuple[Any, Any, Any]] = (True, True, False)  # its values for training, bank and queries

    def __init__(self, config: Any, image_size: int | None = None) -> None:
        super().__init__(config, image_size)
        self._read: dict[Any, ImageSet] = {}

    def open(self, files: str, **arguments: Any) -> Any:
        """The data set of torchvision, made with these arguments; its files are downloaded where they are not there.

        `files` are what a user is told to fetch by hand where that fails.

        Raises:
            DataError: they are not there and were not, or could not be, downloaded.
        """
        from torchvision import datasets  # here, because importing it takes a second that others need not wait

        root, name, make = data_root(), self.dataset, getattr(datasets, self.dataset)
        by_hand = (
            f"Put {files} from {self.home} into {root} (the environment variable AKSSL_DATA names another folder)."
        )
        try:
            return make(root, download=False, **arguments)
        except RuntimeError as error:
            if not self.config.download:
                raise DataError(f"data: {name} is not in {root}, and data.download is off. {by_hand}") from error
        try:
            root.mkdir(parents=True, exist_ok=True)
            return make(root, download=True, **arguments)
        except (RuntimeError, OSError) as error:  # OSError: no network, no space
            reason = " ".join(str(error).split())  # torchvision writes several lines
            raise DataError(f"data: {name} is not in {root} and cannot be downloaded: {reason}. {by_hand}") from error

    def read(self, part: Any) -> ImageSet:
        """One part of the data set, in memory; labels that are all -1 are none."""
        data = self.open(self.files, **{self.argument: part})
        labels = torch.as_tensor(np.asarray(stored_labels(data)), dtype=torch.int64)
        known = labels if bool((labels >= 0).any()) else None
        return TensorImages(channels_first(torch.from_numpy(data.data)), known, tuple(data.classes))

    def part(self, part: Any) -> ImageSet:
        """The images of one part, which is read once."""
        if part not in self._read:
            self._read[part] = self.read(part)
        return self._read[part]

    def train(self) -> ImageSet:
        """The official training images."""
        return self.part(self.parts[0])

    def probe(self) -> tuple[ImageSet, ImageSet]:
        """The labelled training images and the test images."""
        return self.part(self.parts[1]), self.part(self.parts[2])


class Cifar10(OfficialSplit):
    """CIFAR-10: 60 000 colour images of 32 px in 10 classes (Krizhevsky 2009)."""

    name = "cifar10"
    family = "cifar"
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, ...] = (0.2470, 0.2435, 0.2616)
    natural_size = 32
    dataset, files, home = "CIFAR10", "cifar-10-python.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar.html"


class Cifar100(Cifar10):
    """CIFAR-100: 60 000 colour images of 32 px in 100 classes (Krizhevsky 2009)."""

    name = "cifar100"
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
    dataset, files = "CIFAR100", "cifar-100-python.tar.gz"


class Stl10(OfficialSplit):
    """STL-10: 100 000 unlabelled and 13 000 labelled colour images of 96 px (Coates, Ng, Lee 2011)."""

    name = "stl10"
    natural_size = 96
    dataset, files, home = "STL10", "stl10_binary.tar.gz", "https://cs.stanford.edu/~acoates/stl10"
    argument, parts = "split", ("unlabeled", "train", "test")


class ImagenetteConfig(DownloadConfig):
    """Settings of the data source `imagenette`."""

    size: Literal["160px", "320px", "full"] = Field("320px", description="which archive: shorter side of its images")
    cache_gb: Annotated[float, HARMLESS] = Field(
        2.0, ge=0, description="memory for decoded images, so that later epochs decode nothing"
    )


class Imagenette(OfficialSplit):
    """Imagenette v2: 13 394 photos of ten easy ImageNet classes (fast.ai)."""

    name = "imagenette"
    Config = ImagenetteConfig
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of ImageNet, whose photos these are
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    natural_size = 128
    dataset, files, home = "Imagenette", "imagenette2-320.tgz", "https://github.com/fastai/imagenette"
    argument, parts = "split", ("train", "train", "val")

    def read(self, part: Any) -> ImageSet:
        """One split, decoded as a folder of files is."""
        archive = "imagenette2" + {"full": "", "320px": "-320", "160px": "-160"}[self.config.size]
        self.open(f"{archive}.tgz", size=self.config.size, split=part)
        path = data_root() / archive / part
        found = scan(path)
        labels, classes = encode_labels(found.labels or [], len(found.names))
        store = ImageFiles(FolderConfig.model_validate({"path": path, "cache_gb": self.config.cache_gb}), found)
        return StoredImages(store, range(len(found.names)), self.stored_side, labels, classes)
