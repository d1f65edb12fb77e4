"""What the sources of DINO's recipes say, for comparison with the recipes."""

from __future__ import annotations

from typing import Any

from akssl_core import Published

COLORS: dict[str, Any] = {
    "interpolation": "bicubic",
    "flip": 0.5,
    "jitter": 0.8,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.1,
    "grayscale": 0.2,
}
HEADS: dict[str, Any] = {
    "hidden_dim": 2048,
    "bottleneck_dim": 256,
    "out_dim": 65536,
    "head_layers": 3,
    "head_batch_norm": False,
    "center_momentum": 0.9,
    "momentum": {"start": 0.996, "end": 1.0},
    "freeze_last_layer_epochs": 1,
    "loss": {"student_temperature": 0.1},
}


def multicrop(border: float, smallest: float) -> dict[str, Any]:
    """Global crops from `smallest` of the image's area up, local ones from 0.05 to `border`."""
    return {
        "first": {**COLORS, "scale": [smallest, 1.0], "blur": 1.0, "solarize": 0.0},
        "second": {**COLORS, "scale": [smallest, 1.0], "blur": 0.1, "solarize": 0.2},
        "local": {**COLORS, "scale": [0.05, border], "blur": 0.5, "solarize": 0.0},
        "local_count": 8,
    }


def vit(method: dict[str, Any], epochs: int, batch_size: int) -> dict[str, Any]:
    """The README's ViT-S/16; the last learning rate is 1e-6 at the batch."""
    return {
        "method": {**HEADS, **method},
        "backbone": {"name": "vit_small", "patch_size": 16, "drop_path": 0.1},
        "augmentation": multicrop(0.4, 0.4),
        "optimizer": {
            "name": "adamw",
            "lr": {"start": 0.0005, "end": 0.000001 / (batch_size / 256), "warmup": 10},
            "lr_per": 256,
            "betas": [0.9, 0.999],
            "weight_decay": {"start": 0.04, "end": 0.4},
            "exempt_1d": True,
        },
        "train": {
            "epochs": epochs,
            "batch_size": batch_size,
            "image_size": 224,
            "clip": {"norm": 3.0, "per": "parameter"},
        },
    }


PUBLISHED = {
    "cifar": Published(
        "solo-learn 1.0.6, its CIFAR-10 settings",
        {
            "method": {
                "hidden_dim": 2048,
                "bottleneck_dim": 256,
                "out_dim": 4096,
                "head_batch_norm": False,
                "teacher_temperature": 0.07,
                "momentum": {"start": 0.9995, "end": 1.0},
                "freeze_last_layer_epochs": 1,
                "loss": {"student_temperature": 0.1},
            },
            "backbone": {"name": "resnet18", "stem": "cifar"},
            "augmentation": {
                "first": {**COLORS, "scale": [0.08, 1.0], "blur": 0.0, "solarize": 0.0},
                "second": {**COLORS, "scale": [0.08, 1.0], "blur": 0.0, "solarize": 0.2},
            },
            "optimizer": {
                "name": "lars",
                "lr": {"start": 0.3, "warmup": 10, "warmup_from": 0.00003, "end": 0.0},
                "lr_per": 256,
                "eta": 0.02,
                "denominator": "sum_of_norms",
                "clip_ratio": True,
                "momentum": 0.9,
                "weight_decay": 0.000001,
                "exempt_1d": True,
            },
            "train": {"epochs": 1000, "batch_size": 256, "clip": None},
        },
        beside=("the stem's convolution is padded by 1, solo-learn's by 2",),
    ),
    "imagenet": Published(
        "README of facebookresearch/dino (7c446df): ViT-S/16 for 100 epochs on 8 GPUs, 74.0 % linear, 69.3 % k-NN",
        vit({"teacher_temperature": 0.04, "norm_last_layer": True}, epochs=100, batch_size=512),
    ),
    "imagenet_boosted": Published(
        "the same README: ViT-S/16 for 300 epochs on 16 GPUs, 76.0 % linear, 73.3 % k-NN (arXiv 2104.14294)",
        vit(
            {
                "teacher_temperature": {"start": 0.04, "end": 0.07, "shape": "linear", "over": 30, "per": "epoch"},
                "norm_last_layer": False,
            },
            epochs=300,
            batch_size=1024,
        ),
    ),
    "imagenet_resnet": Published(
        "the same README: ResNet-50 for 100 epochs",
        {
            "method": {**HEADS, "teacher_temperature": 0.04, "norm_last_layer": True},
            "backbone": {"name": "resnet50"},
            "augmentation": multicrop(0.14, 0.14),
            "optimizer": {
                "name": "sgd",
                "lr": {"start": 0.03, "end": 0.000001 / (512 / 256), "warmup": 10},
                "lr_per": 256,
                "momentum": 0.9,
                "weight_decay": 0.0001,
                "exempt_1d": True,
            },
            "train": {
                "epochs": 100,
                "batch_size": 512,
                "image_size": 224,
                "clip": {"norm": 3.0, "per": "parameter"},
            },
        },
    ),
}
