"""The images that a report shows: views of some, what the encoder finds alike, and a map of their features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..augment import Augmentation
from ..backbone import Backbone, TokenBackbone
from ..data import ImageSet
from ..draws import Draws
from ..metrics.features import embed, sample, spread
from ..metrics.nearest import neighbours
from .plan import Plan

IMAGES = 6  # rows of views
HEADS, DARK = 6, 0.1  # whose attention is shown, and the brightness where they do not attend
QUERIES, NEAREST, POOL = 8, 6, 2000
MAPPED, THUMBNAIL = 500, 24  # images on the map, and their side in pixels there
COMPARED, DRAWS, AT_ONCE = 600, 2, 100  # images whose views are compared, and views of each


def sample_index(plan: Plan) -> Tensor:
    """The positions (R,) of the training images whose views are shown."""
    return spread(len(plan.images), min(IMAGES, len(plan.images)))


def sample_tensors(plan: Plan, encoder: Backbone, device: torch.device) -> dict[str, Tensor]:
    """uint8 pictures by name: `originals` (R, C, S, S), `views.<group>` (R, V, C, s, s), `neighbours`, `map_images`.

    `attention` (R, 1 + heads, C, S, S) where the backbone has heads. Beside them the places `map` (M, 2) in [0, 1] of
    the mapped images, and the `spectrum` of their features. The encoder stands on `device`; all of this is on the CPU.
    """
    index = sample_index(plan)
    pixels = plan.images.fetch(index.tolist())
    views = plan.augmentation(pixels, Draws.of(plan.spec.seed, 0, index)).items()  # those of the first epoch
    shown = {f"views.{name}": torch.stack([_pictures(plan, v) for v in group], 1) for name, group in views if group}
    shown |= {"originals": _shown(plan, plan.images, index.tolist()), **_attention(plan, encoder, index, device)}
    return {**shown, **_neighbours(plan, encoder, device), **_map(plan, encoder, device)}


@torch.no_grad()
def _attention(plan: Plan, encoder: Backbone, index: Tensor, device: torch.device) -> dict[str, Tensor]:
    """Images, each followed by itself as bright as each head of the last block attends to its patches."""
    if not isinstance(encoder, TokenBackbone):
        return {}
    images = plan.preprocess.pixels(plan.preprocess.fetch(plan.images, index.tolist()).to(device))
    weights = encoder.attention(images)
    if weights is None:
        return {}
    weights = weights[:, :HEADS].float().cpu()
    light = weights / weights.amax((2, 3), keepdim=True).clamp(min=1e-12)
    light = F.interpolate(light, scale_factor=float(encoder.patch_size))[..., : images.shape[2], : images.shape[3]]
    shown = _pictures(plan, images)[:, None]
    lit = (shown * (DARK + (1 - DARK) * light[:, :, None])).round().to(torch.uint8)
    return {"attention": torch.cat([shown, lit], 1)}


@torch.no_grad()
def view_features(
    encoder: Backbone,
    images: ImageSet,
    augmentation: Augmentation,
    *,
    seed: int,
    device: torch.device,
    most: int = COMPARED,
) -> Tensor:
    """Features (N, V, D) on the CPU of augmented views of a sample of images: the first global one, drawn twice.

    The encoder is in eval mode and on `device`.
    """
    rows = []
    for index in torch.split(spread(len(images), min(most, len(images))), AT_ONCE):
        pixels = images.fetch(index.tolist()).to(device)
        drawn = [augmentation(pixels, Draws.of(seed, epoch, index)) for epoch in range(DRAWS)]
        rows.append(torch.stack([encoder(next(iter(views.values()))[0]) for views in drawn], 1))
    return torch.cat(rows).float().cpu()


def _neighbours(plan: Plan, encoder: Backbone, device: torch.device) -> dict[str, Tensor]:
    """Queries, each followed by the images whose features are nearest to its own."""
    pair = plan.source.probe()
    bank = sample(pair[0] if pair else plan.images, POOL)
    queries = sample(pair[1] if pair else plan.images, QUERIES)
    known, asked = (embed(encoder, of, plan.preprocess, device=device) for of in (bank, queries))
    found = neighbours(known, asked, NEAREST)
    rows = [torch.cat([_shown(plan, queries, [i]), _shown(plan, bank, row)]) for i, row in enumerate(found.tolist())]
    result = {"neighbours": torch.stack(rows)}
    if bank.labels is not None and queries.labels is not None:
        result["neighbour_labels"] = torch.cat([queries.labels[:, None], bank.labels[found]], dim=1)
    return result


def _map(plan: Plan, encoder: Backbone, device: torch.device) -> dict[str, Tensor]:
    """Images of the probe's bank in the plane of their first two principal components; nothing for one image."""
    pair = plan.source.probe()
    every = pair[0] if pair else plan.images
    images = sample(every, MAPPED)
    features = embed(encoder, images, plan.preprocess, device=device).double()
    if len(features) < 3 or features.shape[1] < 2 or not features.isfinite().all():
        return {}
    centred = features - features.mean(0)
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    variances = singular.square() / singular.square().sum().clamp(min=torch.finfo(singular.dtype).tiny)
    flat = centred @ directions[:2].T
    low, high = flat.amin(0), flat.amax(0)
    pictures = [
        F.interpolate(_shown(plan, images, [i]).float(), size=(THUMBNAIL, THUMBNAIL), mode="area")
        for i in range(len(images))
    ]
    result = {
        "map": ((flat - low) / (high - low).clamp(min=1e-12)).float(),
        "map_images": torch.cat(pictures).round().to(torch.uint8),
        "map_share": variances[:2].sum().float(),
        "map_total": torch.tensor(len(every)),
        "spectrum": variances.float(),
    }
    return result if images.labels is None else {**result, "map_labels": images.labels}


def _shown(plan: Plan, images: ImageSet, index: list[int]) -> Tensor:
    return _pictures(plan, plan.preprocess.pixels(plan.preprocess.fetch(images, index)))


def _pictures(plan: Plan, images: Tensor) -> Tensor:
    """Normalised images (N, C, S, S) as uint8 pictures."""
    return (plan.image.pictures(images.cpu()) * 255).round().to(torch.uint8)
