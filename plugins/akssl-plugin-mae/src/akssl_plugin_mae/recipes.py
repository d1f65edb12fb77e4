"""Settings for MAE: a small budget, CIFAR and ImageNet."""

from __future__ import annotations

from typing import Any

# As the authors begin: fixed positions, Xavier's weights; and the mean of the patches, which is what the loss trains.
VIT: dict[str, Any] = {"positions": "sincos", "init": "xavier_joint", "pool": "mean"}
CROP: dict[str, Any] = {
    "name": "pair",
    "count": 1,
    "scale": [0.2, 1.0],
    "interpolation": "bicubic",
    "jitter": 0.0,
    "grayscale": 0.0,
    "blur": 0.0,
}

# Few images and minutes: a narrow network over few patches, of which half stay visible (a quarter of 16 tells little of
# the rest), a decoder of two blocks, small batches for more steps, and crops of half an image and more: a fifth of a
# small one is blurred when it is as large as the whole, and has next to nothing to fill in.
DEFAULT: dict[str, Any] = {
    "method": {"decoder_dim": 96, "decoder_depth": 2, "decoder_heads": 3, "mask_ratio": 0.5},
    "backbone": {"name": "vit_micro", **VIT},
    "augmentation": {**CROP, "scale": [0.5, 1.0]},
    "optimizer": {
        "name": "adamw",
        "lr": {"start": 2e-3, "warmup": 0.5},
        "betas": [0.9, 0.95],
        "weight_decay": 0.05,
        "exempt_1d": True,
    },
    "train": {"batch_size": 64},
}

# Solo-learn's CIFAR-10 settings, with the mean of the patches as features.
CIFAR: dict[str, Any] = {
    "method": {
        "decoder_dim": 512,
        "decoder_depth": 8,
        "decoder_heads": 16,
        "mask_ratio": 0.75,
        "loss": {"name": "mae", "norm_pix": True},
    },
    "backbone": {"name": "vit_small", "patch_size": 4, "heads": 12, **VIT},
    "augmentation": {**CROP, "scale": [0.08, 1.0]},
    "optimizer": {
        "name": "adamw",
        "lr": {"start": 2e-4, "warmup": 10, "warmup_from": 3e-5},
        "lr_per": 256,
        "betas": [0.9, 0.95],
        "weight_decay": 0.05,
        "exempt_1d": False,
    },
    "train": {"epochs": 1000, "batch_size": 256},
}

# The authors' run of 800 epochs with a ViT-B. Patches have 16 px there; left open, they fit small images too.
IMAGENET: dict[str, Any] = {
    "method": {
        "decoder_dim": 512,
        "decoder_depth": 8,
        "decoder_heads": 16,
        "mask_ratio": 0.75,
        "loss": {"name": "mae", "norm_pix": True},
    },
    "backbone": {"name": "vit_base", **VIT},
    "augmentation": CROP,
    "optimizer": {
        "name": "adamw",
        "lr": {"start": 1.5e-4, "warmup": 40},
        "lr_per": 256,
        "betas": [0.9, 0.95],
        "weight_decay": 0.05,
        "exempt_1d": True,
    },
    "train": {"epochs": 800, "batch_size": 4096, "image_size": 224},
}

RECIPES = {"default": DEFAULT, "cifar": CIFAR, "imagenet": IMAGENET}
