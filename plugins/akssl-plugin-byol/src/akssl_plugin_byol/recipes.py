"""Settings for BYOL: a small budget, CIFAR and ImageNet."""

from __future__ import annotations

from typing import Any

# Few images and minutes: narrow heads, a target that follows quickly, and views drawn alike. Colours change strongly
# and brightness little: under strong changes of brightness an untrained network sees no likeness between two views
# of an image, and a short run ends before it has found any.
SMALL_VIEWS: dict[str, Any] = {
    "name": "pair",
    "scale": [0.3, 1.0],
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.8,
    "hue": 0.2,
    "grayscale": 0.5,
}
DEFAULT: dict[str, Any] = {
    "method": {
        "hidden_dim": 512,
        "out_dim": 128,
        "predictor_dim": 512,
        "projection_batch_norm": True,
        "momentum": {"start": 0.97, "end": 1.0},
    },
    "augmentation": SMALL_VIEWS,
    "optimizer": {"name": "sgd", "lr": {"start": 0.3}, "lr_per": 256, "momentum": 0.9, "weight_decay": 5e-4},
    "train": {"batch_size": 128},
}

# Appendix B of the paper: both views are cropped and jittered alike; blur and solarization differ.
PAPER_VIEW: dict[str, Any] = {
    "scale": [0.08, 1.0],
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.1,
    "grayscale": 0.2,
}

# Lightly's benchmark on CIFAR-10 (version 1.5): ResNet-18 with a 3 x 3 stem, no blur, SGD without warm-up. Its loss
# is a quarter of the paper's, so its lr of 0.06 per 128 is divided by 4 here and its weight decay of 5e-4 multiplied
# by 4. Its target momentum stays at 0.99; here it rises to 1 as in the paper.
CIFAR: dict[str, Any] = {
    "method": {
        "hidden_dim": 1024,
        "out_dim": 256,
        "predictor_dim": 1024,
        "momentum": {"start": 0.99, "end": 1.0},
    },
    "backbone": {"name": "resnet18", "stem": "cifar"},
    "augmentation": {
        "name": "asymmetric",
        "first": {**PAPER_VIEW, "blur": 0.0},
        "second": {**PAPER_VIEW, "blur": 0.0, "solarize": 0.2},
    },
    "optimizer": {
        "name": "sgd",
        "lr": {"start": 0.03, "per": "epoch"},
        "lr_per": 256,
        "momentum": 0.9,
        "weight_decay": 2e-3,
    },
    "train": {"epochs": 800, "batch_size": 512},
}

# Section 3 of the paper, its preset of 1000 epochs: ResNet-50, LARS, batch 4096, 10 epochs of warm-up.
IMAGENET: dict[str, Any] = {
    "method": {
        "hidden_dim": 4096,
        "out_dim": 256,
        "predictor_dim": 4096,
        "momentum": {"start": 0.996, "end": 1.0},
    },
    "backbone": {"name": "resnet50"},
    "augmentation": {
        "name": "asymmetric",
        "first": {**PAPER_VIEW, "interpolation": "bicubic", "blur": 1.0},
        "second": {**PAPER_VIEW, "interpolation": "bicubic", "blur": 0.1, "solarize": 0.2},
    },
    "optimizer": {
        "name": "lars",
        "lr": {"start": 0.2, "warmup": 10},
        "lr_per": 256,
        "momentum": 0.9,
        "weight_decay": 1.5e-6,
    },
    "train": {"epochs": 1000, "batch_size": 4096, "image_size": 224},
}

RECIPES = {"default": DEFAULT, "cifar": CIFAR, "imagenet": IMAGENET}
