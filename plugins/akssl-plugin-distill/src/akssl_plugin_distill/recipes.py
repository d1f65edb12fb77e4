"""Settings for distillation: a small budget, CIFAR and ImageNet. The teacher is the user's."""

from __future__ import annotations

from typing import Any

# Few images and minutes: whom the teacher finds alike, which is learned from far fewer images than its features are, in
# many steps of small batches. Without mixtures, so that kept targets teach the same.
DEFAULT: dict[str, Any] = {
    "method": {"variant": "similarity", "mixup": False},
    "augmentation": {
        "name": "pair",
        "count": 1,
        "scale": [0.3, 1.0],
        "brightness": 0.3,
        "contrast": 0.3,
        "saturation": 0.8,
        "hue": 0.2,
        "grayscale": 0.2,
    },
    "optimizer": {"name": "adamw", "lr": {"start": 3e-3}, "weight_decay": 0.01},
    "train": {"batch_size": 64, "clip": {"norm": 1.0}},
}

# lightly-train's view for distillation: a wide crop, colours of half the usual strength, no blur.
VIEW: dict[str, Any] = {
    "name": "pair",
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

CIFAR: dict[str, Any] = {
    "method": {"variant": "similarity", "temperature": 0.07},
    "augmentation": VIEW,
    "optimizer": {"name": "adamw", "lr": {"start": 5e-4}, "weight_decay": 1e-6},
    "train": {"epochs": 200, "batch_size": 256, "clip": {"norm": 1.0}},
}

IMAGENET: dict[str, Any] = {
    "method": {"variant": "similarity+tokens", "temperature": 0.07},
    "augmentation": VIEW,
    "optimizer": {"name": "adamw", "lr": {"start": 5e-4}, "weight_decay": 0.04},
    "train": {"epochs": 100, "batch_size": 1536, "image_size": 224, "clip": {"norm": 1.0}},
}

RECIPES = {"default": DEFAULT, "cifar": CIFAR, "imagenet": IMAGENET}
