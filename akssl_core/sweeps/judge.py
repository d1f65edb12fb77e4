"""What a backbone is worth without labels, by the same images and views for all that are compared."""

from __future__ import annotations

import torch
from torch import Tensor

from ..augment import Pair
from ..backbone import Backbone
from ..data import ImageSet
from ..draws import Draws
from ..metrics import health
from ..metrics.features import spread

IMAGES, VIEWS, AT_ONCE = 2000, 2, 200


def told_apart(backbone: Backbone, images: ImageSet) -> float:
    """`metrics.health.told_apart` of up to 2,000 images by two views each, drawn as in the recipes of two views."""
    return health.told_apart(view_features(backbone, images))


@torch.no_grad()
def view_features(backbone: Backbone, images: ImageSet, seed: int = 0) -> Tensor:
    """Features (N, 2, D) float32 of two views of each of N images, up to 2,000 of them."""
    views = Pair(Pair.Config(count=VIEWS), backbone.image)
    rows = []
    for index in torch.split(spread(len(images), min(IMAGES, len(images))), AT_ONCE):
        drawn = views(images.fetch(index.tolist()), Draws.of(seed, 0, index))
        rows.append(torch.stack([backbone(view) for view in drawn["global"]], 1).float())
    return torch.cat(rows)
