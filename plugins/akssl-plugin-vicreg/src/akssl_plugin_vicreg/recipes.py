"""Settings for VICReg: a small budget, CIFAR and ImageNet."""

from __future__ import annotations

from typing import Any

# Few images and minutes: a narrow expander, small batches for more steps, and AdamW. Colours change strongly and
# brightness little: under strong changes of brightness an untrained network sees no likeness between two views.
DEFAULT: dict[str, Any] = {
    "method": {"hidden_dim": 256, "out_dim": 256, "projector_layers": 3},
    "augmentation": {
        "name": "pair",
        "scale": [0.3, 1.0],
        "brightness": 0.3,
        "contrast": 0.3,
        "saturation": 0.8,
        "hue": 0.2,
        "grayscale": 0.5,
    },
    "optimizer": {"name": "adamw", "lr": {"start": 4e-3, "warmup": 0.5}, "weight_decay": 0.01},
    "train": {"batch_size": 64},
}

COLORS: dict[str, Any] = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "grayscale": 0.2}

# Solo-learn's CIFAR-10 settings: its variance term lacks the half, which a weight of 50 makes up for.
CIFAR: dict[str, Any] = {
    "method": {
        "hidden_dim": 2048,
        "out_dim": 2048,
        "projector_layers": 3,
        "loss": {"name": "vicreg", "variance_weight": 50.0},
    },
    "backbone": {"name": "resnet18", "stem": "cifar"},
    "augmentation": {
        "name": "pair",
        "scale": [0.2, 1.0],
        "interpolation": "bicubic",
        **COLORS,
        "blur": 0.0,
        "solarize": 0.1,
    },
    "optimizer": {
        "name": "lars",
        "lr": {"start": 0.3, "warmup": 10, "warmup_from": 3e-5},
        "lr_per": 256,
        "momentum": 0.9,
        "eta": 0.02,
        "denominator": "sum_of_norms",
        "clip_ratio": True,
        "weight_decay": 1e-4,
        "exempt_1d": True,
    },
    "train": {"epochs": 1000, "batch_size": 256},
}

# The authors' run of 1000 epochs: ResNet-50, batch 2048, LARS, BYOL's views, a cosine to a thousandth of the peak.
PAPER_VIEW: dict[str, Any] = {"scale": [0.08, 1.0], "interpolation": "bicubic", **COLORS}
IMAGENET: dict[str, Any] = {
    "method": {"hidden_dim": 8192, "out_dim": 8192, "projector_layers": 3},
    "backbone": {"name": "resnet50", "zero_init_residual": True},
    "augmentation": {
        "name": "asymmetric",
        "first": {**PAPER_VIEW, "blur": 1.0},
        "second": {**PAPER_VIEW, "blur": 0.1, "solarize": 0.2},
    },
    "optimizer": {
        "name": "lars",
        "lr": {"start": 0.2, "end": 2e-4, "warmup": 10},
        "lr_per": 256,
        "momentum": 0.9,
        "weight_decay": 1e-6,
        "exempt_1d": True,
    },
    "train": {"epochs": 1000, "batch_size": 2048, "image_size": 224},
}

RECIPES = {"default": DEFAULT, "cifar": CIFAR, "imagenet": IMAGENET}
