"""What a backbone is worth without labels, by the same images and views for all that are compared."""

from __future__ import annotations

import torch
from torch import Tensor

from ..augment import Pair
from ..backbone import Backbone
from ..data import ImageSet
from ..metrics import health
from ..running.samples import view_features

IMAGES = 2000


def told_apart(backbone: Backbone, images: ImageSet) -> float:
    """`metrics.health.told_apart` of up to 2,000 images by two views each."""
    return health.told_apart(common_views(backbone, images))


def common_views(backbone: Backbone, images: ImageSet) -> Tensor:
    """Features (N, 2, D) of two views of up to 2,000 images, drawn as in the recipes of two views, by any backbone."""
    views, device = Pair(Pair.Config(count=1), backbone.image), torch.device("cpu")
    return view_features(backbone, images, views, seed=0, device=device, most=IMAGES)
