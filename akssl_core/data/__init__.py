"""Data: where images come from, how they are split and batched, and what an encoder expects of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..hookspecs import hookimpl
from .arrays import Arrays, TensorImages
from .base import Batch, DatasetSource, ImageSet, ImageSpec, Pixels, Subset, Views
from .fashion_mnist import FashionMnist
from .folder import Folder
from .loader import Loader
from .preprocess import Preprocess
from .shapes import Shapes
from .source_of import no_such_data, source_from
from .statistics import measure
from .torchvision_sources import Cifar10, Cifar100, Imagenette, Stl10
from .wrapped import Wrapped

if TYPE_CHECKING:
    from ..registry import Registry

DEFAULT_SOURCE = Shapes.name

__all__ = [
    "DEFAULT_SOURCE",
    "Arrays",
    "Batch",
    "DatasetSource",
    "FashionMnist",
    "Folder",
    "ImageSet",
    "ImageSpec",
    "Loader",
    "Pixels",
    "Preprocess",
    "Shapes",
    "Subset",
    "TensorImages",
    "Views",
    "Wrapped",
    "measure",
    "no_such_data",
    "source_from",
]


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Register the sources that have a name; the others are made from Python objects."""
    for source in (Shapes, Folder, FashionMnist, Cifar10, Cifar100, Stl10, Imagenette):
        registry.add(source)
