"""Data: where images come from, how they are split and batched, and what an encoder expects of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..hookspecs import hookimpl
from .arrays import Arrays as Arrays
from .arrays import TensorImages as TensorImages
from .base import Batch as Batch
from .base import DatasetSource as DatasetSource
from .base import HoldOutSource as HoldOutSource
from .base import ImageSet as ImageSet
from .base import ImageSpec as ImageSpec
from .base import Pixels as Pixels
from .base import Subset as Subset
from .base import Views as Views
from .base import suitable_size as suitable_size
from .decode import Unreadable as Unreadable
from .decode import decode_image as decode_image
from .decode import image_header as image_header
from .fashion_mnist import FashionMnist as FashionMnist
from .folder import Folder as Folder
from .labels import encode_labels as encode_labels
from .loader import Loader as Loader
from .opening import no_such_data as no_such_data
from .opening import open_source as open_source
from .prepared import Prepared as Prepared
from .preprocess import Preprocess as Preprocess
from .preprocess import measure as measure
from .scan import nearest_path as nearest_path
from .shapes import Shapes as Shapes
from .stored import ImageStore as ImageStore
from .stored import StoredImages as StoredImages
from .torchvision_sources import Cifar10, Cifar100, Imagenette, Stl10
from .wrapped import Wrapped as Wrapped

if TYPE_CHECKING:
    from ..config.registry import Registry

DEFAULT_SOURCE = Shapes.name


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Register the sources that have a name; the others are made from Python objects."""
    for source in (Shapes, Folder, Prepared, FashionMnist, Cifar10, Cifar100, Stl10, Imagenette):
        registry.add(source)
