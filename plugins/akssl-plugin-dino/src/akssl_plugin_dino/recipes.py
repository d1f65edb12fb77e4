"""Settings under which DINO is known to work: a small budget, CIFAR, ImageNet with a ViT (twice) and with a ResNet."""

from __future__ import annotations

from typing import Any

# Colours change strongly and brightness little: under strong changes of brightness an untrained network sees no
# likeness between two views of an image, and a short run ends before it has found any.
SMALL: dict[str, Any] = {
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.8,
    "hue": 0.2,
    "grayscale": 0.5,
}

# Few images and minutes: a narrow head with batch norms and first weights of the usual size, two local crops, a
# teacher that follows fast up to the end, because the run has a thousand steps, and is not too sharp for it, and a last
# layer as drawn: in so few steps one that trains makes all outputs all but even.
DEFAULT: dict[str, Any] = {
    "method": {
        "hidden_dim": 256,
        "bottleneck_dim": 64,
        "out_dim": 256,
        "head_layers": 2,
        "head_batch_norm": True,
        "projection_batch_norm": True,
        "head_init_std": None,
        "teacher_temperature": 0.06,
        "momentum": {"start": 0.9, "end": 0.99},
        "freeze_last_layer_epochs": None,
    },
    "augmentation": {
        "name": "multicrop",
        "first": {"scale": [0.4, 1.0], **SMALL},
        "second": {"scale": [0.4, 1.0], **SMALL},
        "local": {"scale": [0.15, 0.4], **SMALL},
        "local_count": 2,
    },
    "optimizer": {"name": "sgd", "lr": {"start": 0.1}, "lr_per": 256, "momentum": 0.9, "weight_decay": 1e-4},
    "train": {"batch_size": 128, "clip": {"norm": 3.0, "per": "parameter"}},
}

# The paper takes its colours from BYOL (arXiv 2006.07733); every source resamples bicubically.
COLORS: dict[str, Any] = {
    "interpolation": "bicubic",
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.1,
    "grayscale": 0.2,
}

# Solo-learn's ResNet-18 recipe for CIFAR-10, without local crops, blur or clipping. Its LARS takes the smaller of
# learning rate and trust ratio, which is by the sum of norms.
CIFAR: dict[str, Any] = {
    "method": {
        "hidden_dim": 2048,
        "bottleneck_dim": 256,
        "out_dim": 4096,
        "teacher_temperature": 0.07,
        "momentum": {"start": 0.9995, "end": 1.0},
    },
    "backbone": {"name": "resnet18", "stem": "cifar"},
    "augmentation": {
        "name": "asymmetric",
        "first": {"scale": [0.08, 1.0], **COLORS, "blur": 0.0},
        "second": {"scale": [0.08, 1.0], **COLORS, "blur": 0.0, "solarize": 0.2},
    },
    "optimizer": {
        "name": "lars",
        "lr": {"start": 0.3, "warmup": 10, "warmup_from": 3e-5},
        "lr_per": 256,
        "eta": 0.02,
        "denominator": "sum_of_norms",
        "clip_ratio": True,
        "momentum": 0.9,
        "weight_decay": 1e-6,
        "exempt_1d": True,
    },
    "train": {"epochs": 1000, "batch_size": 256},
}


def multicrop(large: list[float], small: list[float]) -> dict[str, Any]:
    """The paper's two global and eight local views, by the areas of their crops."""
    return {
        "name": "multicrop",
        "first": {"scale": large, **COLORS, "blur": 1.0},
        "second": {"scale": large, **COLORS, "blur": 0.1, "solarize": 0.2},
        "local": {"scale": small, **COLORS, "blur": 0.5},
        "local_count": 8,
    }


CLIP: dict[str, Any] = {"norm": 3.0, "per": "parameter"}


def imagenet_vit(batch_size: int, epochs: int, method: dict[str, Any]) -> dict[str, Any]:
    """ViT-S/16 as the authors' README trains it; the last learning rate is 1e-6 at the batch."""
    return {
        "method": method,
        "backbone": {"name": "vit_small", "patch_size": 16, "drop_path": 0.1},
        "augmentation": multicrop([0.4, 1.0], [0.05, 0.4]),
        "optimizer": {
            "name": "adamw",
            "lr": {"start": 5e-4, "end": 1e-6 * 256 / batch_size, "warmup": 10},
            "lr_per": 256,
            "weight_decay": {"start": 0.04, "end": 0.4},
            "exempt_1d": True,
        },
        "train": {"epochs": epochs, "batch_size": batch_size, "image_size": 224, "clip": CLIP},
    }


# The README's plain run, on 8 GPUs; and its longer one on 16, with a hotter teacher and a free last layer.
IMAGENET = imagenet_vit(512, 100, {"teacher_temperature": 0.04, "norm_last_layer": True})
IMAGENET_BOOSTED = imagenet_vit(
    1024,
    300,
    {
        "teacher_temperature": {"start": 0.04, "end": 0.07, "shape": "linear", "over": 30, "per": "epoch"},
        "norm_last_layer": False,
    },
)

# ResNet-50 for 100 epochs: SGD, constant weight decay and teacher temperature, wider global and smaller local crops.
# The last learning rate is 1e-6 at this batch: 2 x 5e-7.
IMAGENET_RESNET: dict[str, Any] = {
    "method": {"teacher_temperature": 0.04, "norm_last_layer": True},
    "backbone": {"name": "resnet50"},
    "augmentation": multicrop([0.14, 1.0], [0.05, 0.14]),
    "optimizer": {
        "name": "sgd",
        "lr": {"start": 0.03, "end": 5e-7, "warmup": 10},
        "lr_per": 256,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "exempt_1d": True,
    },
    "train": {"epochs": 100, "batch_size": 512, "image_size": 224, "clip": CLIP},
}

RECIPES = {
    "default": DEFAULT,
    "cifar": CIFAR,
    "imagenet": IMAGENET,
    "imagenet_boosted": IMAGENET_BOOSTED,
    "imagenet_resnet": IMAGENET_RESNET,
}
