"""Data: where images come from, how they are split and batched, and what an encoder expects of them."""

from __future__ import annotations

from ..config.registry import Registry
from ..hookspecs import hookimpl
from .arrays import Arrays, TensorImages
from .base import Batch, DatasetSource, HoldOutSource, ImageSet, ImageSpec, Pixels, Subset, Views, suitable_size
from .decode import Unreadable, decode_image, image_header
from .decoders import FileDecoder, Npy
from .fashion_mnist import FashionMnist
from .folder import Folder
from .labels import encode_labels
from .loader import Loader
from .opening import no_such_data, open_source
from .prepared import Prepared
from .preprocess import Preprocess, measure, view_as
from .scan import nearest_path
from .shapes import Shapes
from .stored import ImageStore, StoredImages
from .torchvision_sources import Cifar10, Cifar100, Imagenette, Stl10
from .wrapped import Wrapped

__all__ = [
    "DEFAULT_SOURCE", "Arrays", "Batch", "DatasetSource", "FashionMnist", "FileDecoder", "Folder", "HoldOutSource",
    "ImageSet", "ImageSpec", "ImageStore", "Loader", "Pixels", "Prepared", "Preprocess", "Shapes", "StoredImages",
    "Subset", "TensorImages", "Unreadable", "Views", "Wrapped", "decode_image", "encode_labels", "image_header",
    "measure", "nearest_path", "no_such_data", "open_source", "suitable_size", "view_as",
]  # fmt: skip

DEFAULT_SOURCE = Shapes.name


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Register the sources that have a name; the others are made from Python objects."""
    for component in (Shapes, Folder, Prepared, FashionMnist, Cifar10, Cifar100, Stl10, Imagenette, Npy):
        registry.add(component)
