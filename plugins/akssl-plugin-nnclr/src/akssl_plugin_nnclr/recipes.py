"""Settings for NNCLR: a small budget, CIFAR and ImageNet."""

from __future__ import annotations

from typing import Any

# Few images and minutes: narrow heads, a short queue that is filled within the first epoch, and AdamW. Colours change
# strongly and brightness little: under strong changes of brightness an untrained network sees no likeness of two views.
DEFAULT: dict[str, Any] = {
    "method": {
        "hidden_dim": 256,
        "out_dim": 128,
        "projector_layers": 3,
        "predictor_dim": 512,
        "queue_size": 2048,
        "loss": {"name": "nnclr", "temperature": 0.2},
    },
    "augmentation": {
        "name": "pair",
        "scale": [0.3, 1.0],
        "brightness": 0.3,
        "contrast": 0.3,
        "saturation": 0.8,
        "hue": 0.2,
        "grayscale": 0.5,
    },
    "optimizer": {"name": "adamw", "lr": {"start": 6e-3, "warmup": 1}, "weight_decay": 0.01},
    "train": {"batch_size": 128},
}

# Solo-learn's CIFAR-10 settings: BYOL's views without blur; its queue is longer than CIFAR's 50,000 images.
VIEW: dict[str, Any] = {
    "scale": [0.08, 1.0],
    "interpolation": "bicubic",
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.1,
    "grayscale": 0.2,
    "blur": 0.0,
}
CIFAR: dict[str, Any] = {
    "method": {
        "hidden_dim": 2048,
        "out_dim": 256,
        "projector_layers": 3,
        "predictor_dim": 4096,
        "queue_size": 32768,
        "loss": {"name": "nnclr", "temperature": 0.2},
    },
    "backbone": {"name": "resnet18", "stem": "cifar"},
    "augmentation": {"name": "asymmetric", "first": VIEW, "second": {**VIEW, "solarize": 0.2}},
    "optimizer": {
        "name": "lars",
        "lr": {"start": 0.4, "warmup": 10, "warmup_from": 3e-5},
        "lr_per": 256,
        "momentum": 0.9,
        "eta": 0.02,
        "denominator": "sum_of_norms",
        "clip_ratio": True,
        "weight_decay": 1e-5,
        "exempt_1d": True,
    },
    "train": {"epochs": 1000, "batch_size": 256},
}

# The paper's ImageNet run: ResNet-50, SimCLR's views, batch 4096, LARS, 1000 epochs.
IMAGENET: dict[str, Any] = {
    "method": {
        "hidden_dim": 2048,
        "out_dim": 256,
        "projector_layers": 3,
        "predictor_dim": 4096,
        "queue_size": 98304,
        "loss": {"name": "nnclr", "temperature": 0.1},
    },
    "backbone": {"name": "resnet50"},
    "augmentation": {
        "name": "pair",
        "scale": [0.08, 1.0],
        "interpolation": "bicubic",
        "brightness": 0.8,
        "contrast": 0.8,
        "saturation": 0.8,
        "hue": 0.2,
        "grayscale": 0.2,
        "blur": 0.5,
    },
    "optimizer": {
        "name": "lars",
        "lr": {"start": 0.3, "warmup": 10},
        "lr_per": 256,
        "momentum": 0.9,
        "weight_decay": 1e-6,
        "exempt_1d": True,
    },
    "train": {"epochs": 1000, "batch_size": 4096, "image_size": 224},
}

RECIPES = {"default": DEFAULT, "cifar": CIFAR, "imagenet": IMAGENET}
