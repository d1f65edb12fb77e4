"""Settings for iBOT: a small budget, CIFAR and ImageNet."""

from __future__ import annotations

from typing import Any

# DINO's colours at a small budget: strong changes of colour, weak ones of brightness, which an untrained network sees
# more of than of anything else.
SMALL: dict[str, Any] = {
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.8,
    "hue": 0.2,
    "grayscale": 0.5,
}

# Few images and minutes: a narrow network whose patches' mean says more than a class token does before any training,
# narrow heads with last layers as drawn (trained ones soon make all outputs even), small batches for more steps, a
# teacher that follows faster than the paper's, patches that count less, and no local crops, which have 4 patches where
# the global ones have 16.
DEFAULT: dict[str, Any] = {
    "method": {
        "hidden_dim": 256,
        "bottleneck_dim": 64,
        "out_dim": 256,
        "head_layers": 2,
        "shared_head": False,
        "head_init_std": None,
        "teacher_temperature": 0.04,
        "patch_temperature": 0.04,
        "patch_weight": {"start": 0.3, "warmup": 2},
        "momentum": {"start": 0.98, "end": 1.0},
        "freeze_last_layer_epochs": None,
    },
    "backbone": {"name": "vit_micro", "class_token": False, "pool": "mean"},
    "augmentation": {
        "name": "multicrop",
        "first": {"scale": [0.4, 1.0], **SMALL},
        "second": {"scale": [0.4, 1.0], **SMALL},
        "local": {"scale": [0.15, 0.4], **SMALL},
        "local_count": 0,
    },
    "optimizer": {
        "name": "adamw",
        "lr": {"start": 1e-3, "warmup": 1},
        "weight_decay": 0.04,
        "exempt_1d": True,
    },
    "train": {"batch_size": 64, "clip": {"norm": 3.0, "per": "parameter"}},
}

# The paper takes its colours from BYOL (arXiv 2006.07733); the authors resample bicubically.
COLORS: dict[str, Any] = {
    "interpolation": "bicubic",
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.1,
    "grayscale": 0.2,
}
WARM: dict[str, Any] = {"start": 0.04, "end": 0.07, "shape": "linear", "over": 30, "per": "epoch"}
CLIP: dict[str, Any] = {"norm": 3.0, "per": "parameter"}

# No source has a recipe for CIFAR: the authors' settings at its size, a narrower head, four local crops without blur.
CIFAR: dict[str, Any] = {
    "method": {
        "hidden_dim": 1024,
        "bottleneck_dim": 256,
        "out_dim": 4096,
        "norm_last_layer": False,
        "teacher_temperature": WARM,
        "patch_temperature": WARM,
        "momentum": {"start": 0.99, "end": 1.0},
    },
    "backbone": {"name": "vit_tiny", "patch_size": 4, "drop_path": 0.1},
    "augmentation": {
        "name": "multicrop",
        "first": {"scale": [0.25, 1.0], **COLORS, "blur": 0.0},
        "second": {"scale": [0.25, 1.0], **COLORS, "blur": 0.0, "solarize": 0.2},
        "local": {"scale": [0.05, 0.25], **COLORS, "blur": 0.0},
        "local_count": 4,
    },
    "optimizer": {
        "name": "adamw",
        "lr": {"start": 5e-4, "end": 1e-6, "warmup": 10},
        "lr_per": 256,
        "weight_decay": {"start": 0.04, "end": 0.4},
        "exempt_1d": True,
    },
    "train": {"epochs": 300, "batch_size": 256, "clip": CLIP},
}

# The authors' README: ViT-S/16 for 800 epochs on 16 GPUs. Patches have 16 px there; left open, they fit small images
# too. The last learning rate is 1e-6 at the batch.
IMAGENET: dict[str, Any] = {
    "method": {
        "hidden_dim": 2048,
        "bottleneck_dim": 256,
        "out_dim": 8192,
        "shared_head": True,
        "norm_last_layer": False,
        "teacher_temperature": WARM,
        "patch_temperature": WARM,
        "momentum": {"start": 0.996, "end": 1.0},
    },
    "backbone": {"name": "vit_small", "drop_path": 0.1},
    "augmentation": {
        "name": "multicrop",
        "first": {"scale": [0.25, 1.0], **COLORS, "blur": 1.0},
        "second": {"scale": [0.25, 1.0], **COLORS, "blur": 0.1, "solarize": 0.2},
        "local": {"scale": [0.05, 0.25], **COLORS, "blur": 0.5},
        "local_count": 10,
    },
    "optimizer": {
        "name": "adamw",
        "lr": {"start": 5e-4, "end": 2.5e-7, "warmup": 10},
        "lr_per": 256,
        "weight_decay": {"start": 0.04, "end": 0.4},
        "exempt_1d": True,
    },
    "train": {"epochs": 800, "batch_size": 1024, "image_size": 224, "clip": CLIP},
}

RECIPES = {"default": DEFAULT, "cifar": CIFAR, "imagenet": IMAGENET}
