"""Settings for I-JEPA: a small budget, CIFAR and ImageNet."""

from __future__ import annotations

from typing import Any

# As the authors have it: patches alone, fixed positions, and the mean of the patches as features.
VIT: dict[str, Any] = {"class_token": False, "positions": "sincos", "pool": "mean"}
CROP: dict[str, Any] = {
    "name": "pair",
    "count": 1,
    "scale": [0.3, 1.0],
    "jitter": 0.0,
    "grayscale": 0.0,
    "blur": 0.0,
}

# Few images and minutes: a narrow network over 64 small patches, small batches for more steps, for it takes thousands.
# The target encoder is as slow as the authors': one that followed within 30 steps lost the images in a hundred.
DEFAULT: dict[str, Any] = {
    "method": {
        "predictor_dim": 64,
        "predictor_depth": 3,
        "predictor_heads": 4,
        "momentum": {"start": 0.996, "end": 1.0, "shape": "linear"},
    },
    "backbone": {"name": "vit_micro", "patch_size": 4, **VIT},
    "augmentation": CROP,
    "optimizer": {
        "name": "adamw",
        "lr": {"start": 1e-3, "warmup": 1},
        "weight_decay": 0.04,
        "exempt_1d": True,
    },
    "train": {"batch_size": 32},
}

# No source has a recipe for CIFAR: the authors' proportions at its size, over as many epochs as it takes.
CIFAR: dict[str, Any] = {
    "method": {
        "predictor_dim": 96,
        "predictor_depth": 4,
        "predictor_heads": 3,
        "momentum": {"start": 0.99, "end": 1.0, "shape": "linear"},
    },
    "backbone": {"name": "vit_tiny", "patch_size": 4, **VIT},
    "augmentation": CROP,
    "optimizer": {
        "name": "adamw",
        "lr": {"start": 5e-4, "warmup": 10, "warmup_from": 1e-4, "end": 1e-6},
        "betas": [0.9, 0.999],
        "weight_decay": {"start": 0.04, "end": 0.4},
        "exempt_1d": True,
    },
    "train": {"epochs": 300, "batch_size": 256},
}

# The authors' settings at batch 2048 with the paper's ViT-B. Patches, 16 px there, are left open for small images.
IMAGENET: dict[str, Any] = {
    "method": {
        "predictor_dim": 384,
        "predictor_depth": 6,
        "predictor_heads": 12,
        "momentum": {"start": 0.996, "end": 1.0, "shape": "linear"},
    },
    "backbone": {"name": "vit_base", **VIT},
    "augmentation": {**CROP, "flip": 0.0},
    "optimizer": {
        "name": "adamw",
        "lr": {"start": 1e-3, "warmup": 40, "warmup_from": 2e-4, "end": 1e-6},
        "betas": [0.9, 0.999],
        "weight_decay": {"start": 0.04, "end": 0.4},
        "exempt_1d": True,
    },
    "train": {"epochs": 600, "batch_size": 2048, "image_size": 224},
}

RECIPES = {"default": DEFAULT, "cifar": CIFAR, "imagenet": IMAGENET}
