"""Settings under which SwAV is known to work: a small budget, CIFAR and ImageNet."""

from __future__ import annotations

from typing import Any

# The colour changes of the paper's views (appendix A), which are SimCLR's (arXiv 2002.05709).
COLORS: dict[str, Any] = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "grayscale": 0.2}

# Few images and minutes: few prototypes, a narrow projector with a batch norm behind it, two small crops that cost less
# than half a large view, AdamW as for contrastive losses, and predictions half as sharp as the paper's: with 0.1 the
# seed decided whether clusters had formed by the end. Colours change strongly and brightness little: under strong
# changes of brightness an untrained network sees no likeness between two views of an image.
SMALL: dict[str, Any] = {**COLORS, "brightness": 0.2, "contrast": 0.2, "grayscale": 0.5}
DEFAULT: dict[str, Any] = {
    "method": {
        "hidden_dim": 256,
        "out_dim": 64,
        "projection_batch_norm": True,
        "prototypes": 256,
        "queue_size": 256,
        "queue_from_epoch": 1,
        "freeze_prototypes_epochs": 1,
        "loss": {"name": "swav", "temperature": 0.2},
    },
    "augmentation": {
        "name": "multicrop",
        "first": {**SMALL, "scale": [0.4, 1.0]},
        "second": {**SMALL, "scale": [0.4, 1.0]},
        "local": {**SMALL, "scale": [0.15, 0.4]},
        "local_count": 2,
    },
    "optimizer": {"name": "adamw", "lr": {"start": 4e-3, "warmup": 0.5}, "weight_decay": 0.01},
    "train": {"batch_size": 128},
}

# ResNet-18 with a 3 x 3 stem, two views, 1000 epochs: the CIFAR-10 settings of solo-learn 1.0.6.
CIFAR: dict[str, Any] = {
    "method": {
        "hidden_dim": 2048,
        "out_dim": 128,
        "prototypes": 3000,
        "queue_size": 3840,
        "queue_from_epoch": 50,
        "freeze_prototypes_epochs": 2,
    },
    "backbone": {"name": "resnet18", "stem": "cifar"},
    "augmentation": {"name": "pair", **COLORS, "scale": [0.08, 1.0], "interpolation": "bicubic", "blur": 0.5},
    "optimizer": {
        "name": "lars",
        "lr": {"start": 0.6, "warmup": 10, "warmup_from": 3e-5},
        "lr_per": 256,
        "momentum": 0.9,
        "eta": 0.02,
        "denominator": "sum_of_norms",
        "clip_ratio": True,
        "weight_decay": 1e-6,
    },
    "train": {"epochs": 1000, "batch_size": 256},
}

# Appendix A of the paper: ResNet-50, views 2 x 224 and 6 x 96 px, weight decay on every parameter. Learning rates
# are those of the batch beside them and are not scaled.
PAPER_METHOD: dict[str, Any] = {
    "hidden_dim": 2048,
    "out_dim": 128,
    "prototypes": 3000,
    "queue_from_epoch": 15,
    "freeze_prototypes_epochs": 1,
}
PAPER_VIEWS: dict[str, Any] = {
    "name": "multicrop",
    "first": {**COLORS, "scale": [0.14, 1.0], "blur": 0.5},
    "second": {**COLORS, "scale": [0.14, 1.0], "blur": 0.5},
    "local": {**COLORS, "scale": [0.05, 0.14], "blur": 0.5},
    "local_count": 6,
}
PAPER_OPTIMIZER: dict[str, Any] = {
    "name": "lars",
    "lr_per": None,
    "momentum": 0.9,
    "eta": 1e-3,
    "denominator": "sum_of_norms",
    "weight_decay": 1e-6,
    "exempt_1d": False,
}
IMAGENET: dict[str, Any] = {
    "method": {**PAPER_METHOD, "queue_size": 0},
    "backbone": {"name": "resnet50"},
    "augmentation": PAPER_VIEWS,
    "optimizer": {**PAPER_OPTIMIZER, "lr": {"start": 4.8, "end": 4.8e-3, "warmup": 10, "warmup_from": 0.3}},
    "train": {"epochs": 800, "batch_size": 4096, "image_size": 224},
}
IMAGENET_SMALL_BATCH: dict[str, Any] = {
    "method": {**PAPER_METHOD, "queue_size": 3840},
    "backbone": {"name": "resnet50"},
    "augmentation": PAPER_VIEWS,
    "optimizer": {**PAPER_OPTIMIZER, "lr": {"start": 0.6, "end": 6e-4}},
    "train": {"epochs": 400, "batch_size": 256, "image_size": 224},
}

RECIPES = {"default": DEFAULT, "cifar": CIFAR, "imagenet": IMAGENET, "imagenet_small_batch": IMAGENET_SMALL_BATCH}
