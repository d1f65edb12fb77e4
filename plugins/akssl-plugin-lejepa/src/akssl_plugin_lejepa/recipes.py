"""Settings for LeJEPA: a small budget, CIFAR and ImageNet."""

from __future__ import annotations

from typing import Any

# Few images and minutes: four views of one size, all of them global, a narrow projector and fewer directions. Colours
# change strongly and brightness little: under strong changes of brightness an untrained network sees no likeness.
# Batches of 64, since twice the steps were worth more than a test of twice the rows (measured, README).
DEFAULT: dict[str, Any] = {
    "method": {
        "hidden_dim": 512,
        "out_dim": 32,
        "projector_layers": 3,
        "directions": 256,
        "loss": {"name": "lejepa", "lambda_": 0.02},
    },
    "augmentation": {
        "name": "pair",
        "count": 4,
        "scale": [0.3, 1.0],
        "brightness": 0.3,
        "contrast": 0.3,
        "saturation": 0.8,
        "hue": 0.2,
        "grayscale": 0.5,
    },
    "optimizer": {"name": "adamw", "lr": {"start": 2e-3, "end": 2e-6, "warmup": 0.5}, "weight_decay": 0.01},
    "train": {"batch_size": 64},
}

COLORS: dict[str, Any] = {
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.1,
    "grayscale": 0.2,
    "solarize": 0.2,
}

# No source has a CIFAR recipe. The paper's weights for four views and its weight decay for ResNets, the authors' views
# without blur, and a rate between the two that the paper searches over.
CIFAR: dict[str, Any] = {
    "method": {
        "hidden_dim": 2048,
        "out_dim": 64,
        "projector_layers": 3,
        "directions": 1024,
        "loss": {"name": "lejepa", "lambda_": 0.02},
    },
    "backbone": {"name": "resnet18", "stem": "cifar"},
    "augmentation": {"name": "pair", "count": 4, "scale": [0.2, 1.0], **COLORS, "blur": 0.0},
    "optimizer": {"name": "adamw", "lr": {"start": 1e-3, "end": 1e-6, "warmup": 10}, "weight_decay": 5e-4},
    "train": {"epochs": 400, "batch_size": 256},
}

# A ViT-S/16 with the views of the authors' README and the optimizer of the paper's ImageNet runs.
LARGE: dict[str, Any] = {"scale": [0.3, 1.0], **COLORS, "blur": 0.5}
IMAGENET: dict[str, Any] = {
    "method": {
        "hidden_dim": 2048,
        "out_dim": 64,
        "projector_layers": 3,
        "directions": 1024,
        "loss": {"name": "lejepa", "lambda_": 0.05},
    },
    "backbone": {"name": "vit_small", "patch_size": 16, "drop_path": 0.1},
    "augmentation": {
        "name": "multicrop",
        "first": LARGE,
        "second": LARGE,
        "local": {**LARGE, "scale": [0.05, 0.3]},
        "local_count": 6,
    },
    "optimizer": {
        "name": "adamw",
        "lr": {"start": 5e-4, "end": 5e-7, "warmup": 10},
        "weight_decay": 0.05,
        "exempt_1d": True,
    },
    "train": {"epochs": 100, "batch_size": 512, "image_size": 224},
}

RECIPES = {"default": DEFAULT, "cifar": CIFAR, "imagenet": IMAGENET}
