"""What the sources of distillation's recipes say, for comparison with the recipes."""

from __future__ import annotations

from typing import Any

from akssl_core import Published

VIEW: dict[str, Any] = {
    "count": 1,
    "scale": [0.14, 1.0],
    "flip": 0.5,
    "jitter": 0.8,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.1,
    "grayscale": 0.2,
    "blur": 0.0,
    "solarize": 0.0,
}
MIXTURES = (
    "mixtures are of an image and the next, one share from 0.5 to 1 a batch (arXiv 2106.05237); lightly-train's are of "
    "a permutation, and from 0 to 1"
)
OPEN = "left open: mixtures, unless targets are kept"
DECAY = "that of vision transformers (arXiv 2304.07193), where lightly-train says nothing"
ROWS = (
    "the queue holds half of the images, at most 8192, and takes part where it is filled; lightly-train's holds 16 to "
    "8192 and begins with zeros, which count as images"
)

PUBLISHED = {
    "cifar": Published(
        "field by field: variant, temperature, mixtures, view, clip and lr of lightly-train's distillation v1 "
        "and v3; batch and epochs of SEED (arXiv 2101.04731); weight decay of v1",
        {
            "method": {"variant": "similarity", "temperature": 0.07, "mixup": True},
            "augmentation": VIEW,
            "optimizer": {"name": "adamw", "lr": {"start": 5e-4}, "weight_decay": 1e-6},
            "train": {"epochs": 200, "batch_size": 256, "clip": {"norm": 1.0}},
        },
        {"method.mixup": OPEN},
        beside=(MIXTURES, ROWS, "lightly-train's lr is of a batch of 1536 and falls with its square root"),
    ),
    "imagenet": Published(
        "lightly-train's distillation v3, its default since 0.15, from DINOv2's ViT-B/14",
        {
            "method": {"variant": "similarity+tokens", "temperature": 0.07, "mixup": True},
            "augmentation": VIEW,
            "optimizer": {"name": "adamw", "lr": {"start": 5e-4}},
            "train": {"epochs": 100, "batch_size": 1536, "image_size": 224, "clip": {"norm": 1.0}},
        },
        {"method.mixup": OPEN, "optimizer.weight_decay": DECAY},
        beside=(MIXTURES, ROWS, "lightly-train's lr follows the square root of the batch"),
    ),
}
