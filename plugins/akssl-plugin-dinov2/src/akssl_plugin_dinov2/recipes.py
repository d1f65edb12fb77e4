"""Settings for DINOv2: a small budget, CIFAR and ImageNet."""

from __future__ import annotations

from typing import Any

# Colours change strongly and brightness little, as in the small recipe of DINO.
SMALL: dict[str, Any] = {
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.8,
    "hue": 0.2,
    "grayscale": 0.5,
}

# Few images and minutes: a narrow network and narrow heads, with batch norms in that on images and last layers as drawn
# (trained ones soon make the targets of images nearly even), two local crops, small batches for more steps, a teacher
# that follows fast because the run has a thousand of them and is sharp, and patches whose weight rises over two epochs
# and stays small, since they would take most of what so narrow a network learns.
DEFAULT: dict[str, Any] = {
    "method": {
        "hidden_dim": 256,
        "bottleneck_dim": 64,
        "out_dim": 256,
        "patch_out_dim": 256,
        "head_layers": 2,
        "head_batch_norm": True,
        "projection_batch_norm": True,
        "head_init_std": None,
        "norm_last_layer": True,
        "teacher_temperature": 0.04,
        "momentum": {"start": 0.9, "end": 0.99},
        "freeze_last_layer_epochs": None,
        "patch_weight": {"start": 0.3, "warmup": 2},
    },
    "backbone": {"name": "vit_micro"},
    "augmentation": {
        "name": "multicrop",
        "first": {"scale": [0.4, 1.0], **SMALL},
        "second": {"scale": [0.4, 1.0], **SMALL},
        "local": {"scale": [0.15, 0.4], **SMALL},
        "local_count": 2,
    },
    "optimizer": {
        "name": "adamw",
        "lr": {"start": 1e-3, "warmup": 1},
        "weight_decay": 0.04,
        "exempt_1d": True,
    },
    "train": {"batch_size": 64, "clip": {"norm": 3.0, "per": "parameter"}},
}

COLORS: dict[str, Any] = {
    "interpolation": "bicubic",
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.1,
    "grayscale": 0.2,
}

# No source has a recipe for CIFAR: the authors' settings at its size, without what large networks need (LayerScale,
# layer-wise rates) and without blur.
CIFAR: dict[str, Any] = {
    "method": {
        "hidden_dim": 1024,
        "bottleneck_dim": 256,
        "out_dim": 4096,
        "patch_out_dim": 4096,
        "teacher_temperature": {"start": 0.04, "end": 0.07, "shape": "linear", "over": 120},
        "momentum": {"start": 0.99, "end": 1.0},
    },
    "backbone": {"name": "vit_tiny", "patch_size": 4, "drop_path": 0.1, "drop_path_shape": "uniform"},
    "augmentation": {
        "name": "multicrop",
        "first": {"scale": [0.32, 1.0], **COLORS, "blur": 0.0},
        "second": {"scale": [0.32, 1.0], **COLORS, "blur": 0.0, "solarize": 0.2},
        "local": {"scale": [0.05, 0.32], **COLORS, "blur": 0.0},
        "local_count": 4,
        "local_size": 16,
    },
    "optimizer": {
        "name": "adamw",
        "lr": {"start": 2e-3 * (512 / 1024) ** 0.5, "end": 1e-6, "warmup": 40},
        "weight_decay": {"start": 0.04, "end": 0.4},
        "exempt_1d": True,
    },
    "train": {"epochs": 400, "batch_size": 512, "clip": {"norm": 3.0, "per": "model"}},
}

# The authors' short run of a ViT-L/16, for a ViT-S: a lower rate, less stochastic depth, half of the batch; with heads
# and targets of their long runs. Patches, 16 px there, are left open for small images.
IMAGENET: dict[str, Any] = {
    "method": {
        "hidden_dim": 2048,
        "bottleneck_dim": 256,
        "out_dim": 65536,
        "patch_out_dim": 65536,
        "teacher_temperature": {"start": 0.04, "end": 0.07, "shape": "linear", "over": 30},
        "momentum": {"start": 0.992, "end": 1.0},
        "koleo": {"group": 64},
    },
    "backbone": {"name": "vit_small", "layer_scale": 1e-5, "drop_path": 0.1, "drop_path_shape": "uniform"},
    "augmentation": {
        "name": "multicrop",
        "first": {"scale": [0.32, 1.0], **COLORS, "blur": 1.0},
        "second": {"scale": [0.32, 1.0], **COLORS, "blur": 0.1, "solarize": 0.2},
        "local": {"scale": [0.05, 0.32], **COLORS, "blur": 0.5},
        "local_count": 8,
    },
    "optimizer": {
        "name": "adamw",
        "lr": {"start": 2e-3, "end": 1e-6, "warmup": 10},
        "weight_decay": {"start": 0.04, "end": 0.4},
        "exempt_1d": True,
        "layer_decay": 0.9,
        "patch_embed_rate": 0.2,
    },
    "train": {"epochs": 100, "batch_size": 1024, "image_size": 224, "clip": {"norm": 3.0, "per": "network"}},
}

RECIPES = {"default": DEFAULT, "cifar": CIFAR, "imagenet": IMAGENET}
