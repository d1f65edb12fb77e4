"""The other peer: stable-pretraining's LeJEPA as its script for ten classes of ImageNet builds it.

Loss, projector, transforms, optimizer, schedule and batch size are those of `benchmarks/imagenet10/lejepa-vit-small.py`
in rbalestr-lab/stable-pretraining (version 0.1.8). Only what a common budget fixes is different, as in `peers.py`: the
backbone, the images, the epochs, the size of the views, their mean and standard deviation, no blur below 64 px; and the
warm-up, ten of its six hundred epochs, is in proportion. Needs `pip install -e .[bench]`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from peers import Example, local_size, statistics
from PIL import Image
from stable_pretraining.data import transforms
from stable_pretraining.methods.lejepa import LeJEPA, SlicedEppsPulley
from torch import Tensor, nn

from akssl_core import Backbone, ImageSpec

RATE, DECAY, WARM, LEAST = 4e-4, 0.05, 10 / 600, 1e-3  # learning rate, weight decay; shares of the run and of the rate
GLOBAL, LOCAL = 2, 6  # views


def lejepa(backbone: Backbone, image: ImageSpec, epochs: int) -> Example:
    """Two global and six local views; the projector is made by the library for a network of as many features."""
    model = LeJEPA("vit_tiny_patch16_224")  # for its loss and projector alone, of which the first layer is replaced
    projector = model.projector
    projector[0] = nn.Linear(backbone.embed_dim, projector[0].out_features)
    sigreg: SlicedEppsPulley = model.sigreg
    modules = nn.ModuleList([backbone, projector])
    optimizer = torch.optim.AdamW(modules.parameters(), lr=RATE, weight_decay=DECAY, betas=(0.9, 0.999))

    def loss(views: list[Tensor], epoch: int) -> Tensor:
        rows = torch.cat([backbone(torch.cat(views[:GLOBAL])), backbone(torch.cat(views[GLOBAL:]))])
        value: Tensor = model._compute_loss(projector(rows).unflatten(0, (len(views), -1)), GLOBAL, sigreg, model.lamb)[
            0
        ]
        return value

    def schedule(epoch: float) -> None:
        done = epoch / epochs
        course = done / WARM if done < WARM else 0.5 * (1 + math.cos(math.pi * (done - WARM) / (1 - WARM)))
        for group in optimizer.param_groups:
            group["lr"] = RATE * (LEAST + (1 - LEAST) * course)

    return Example(128, Views(image), modules, optimizer, loss, encoder=backbone, after_backward=schedule)


class Views:
    """An image of Pillow -> its eight views; an object, so that spawned workers can be handed it."""

    def __init__(self, image: ImageSpec) -> None:
        sizes = [(image.size, (0.3, 1.0))] * GLOBAL + [(local_size(image), (0.05, 0.3))] * LOCAL
        self.several = transforms.MultiViewTransform(
            {f"view {number}": chain(image, *of) for number, of in enumerate(sizes)}
        )

    def __call__(self, pixels: Image.Image) -> list[Tensor]:
        """The views, in order."""
        return [view["image"] for view in self.several({"image": pixels}).values()]


def chain(image: ImageSpec, size: int, scale: tuple[float, float]) -> Any:
    """The script's changes of one view."""
    blur = [transforms.GaussianBlur(kernel_size=23, sigma=(0.1, 2.0), p=0.5)] if image.size >= 64 else []
    return transforms.Compose(
        transforms.RGB(),
        transforms.RandomResizedCrop((size, size), scale=scale),
        transforms.RandomHorizontalFlip(p=0.5),
        transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8),
        transforms.RandomGrayscale(p=0.2),
        *blur,
        transforms.RandomSolarize(threshold=128, p=0.2),
        transforms.ToImage(**statistics(image)),
    )


METHODS = {"lejepa": lejepa}
