"""Views of images: operations drawn per image and per view, and the augmentations made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..draws import Draws as Draws
from ..hookspecs import hookimpl
from .base import Augmentation as Augmentation
from .base import Operation as Operation
from .base import Parameters as Parameters
from .base import Transform as Transform
from .base import ViewGroup as ViewGroup
from .blur import GaussianBlur as GaussianBlur
from .color import ColorJitter as ColorJitter
from .color import Grayscale as Grayscale
from .color import Normalize as Normalize
from .color import Solarize as Solarize
from .crop import RandomResizedCrop as RandomResizedCrop
from .per_image import PerImage as PerImage
from .per_image import PerImageAugmentation as PerImageAugmentation
from .policy import PolicyTransform as PolicyTransform
from .policy import ViewPolicy as ViewPolicy
from .views import Asymmetric as Asymmetric
from .views import MultiCrop as MultiCrop
from .views import Pair as Pair

if TYPE_CHECKING:
    from ..config.registry import Registry


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add the augmentations that a config can name."""
    registry.add(Pair)
    registry.add(Asymmetric)
    registry.add(MultiCrop)
