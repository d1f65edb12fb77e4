"""What the sources of SwAV's recipes say, for comparison with the recipes."""

from __future__ import annotations

from typing import Any

from akssl_core import Published

STRONG: dict[str, Any] = {
    "flip": 0.5,
    "jitter": 0.8,
    "brightness": 0.8,
    "contrast": 0.8,
    "saturation": 0.8,
    "hue": 0.2,
    "grayscale": 0.2,
    "blur": 0.5,
}
HEADS: dict[str, Any] = {
    "hidden_dim": 2048,
    "out_dim": 128,
    "projection_batch_norm": False,
    "prototypes": 3000,
    "epsilon": 0.05,
    "iterations": 3,
    "loss": {"temperature": 0.1},
}
PAPER = "arXiv 2006.09882, appendix A, and the scripts of facebookresearch/swav"
TYPO = ("the red channel is normalised by 0.229, in the authors' code by 0.228",)


def imagenet(queue: int, lr: dict[str, Any], train: dict[str, Any]) -> dict[str, Any]:
    """What both published batch sizes share, with what they do not."""
    large, small = {**STRONG, "scale": [0.14, 1.0]}, {**STRONG, "scale": [0.05, 0.14]}
    return {
        "method": {**HEADS, "queue_size": queue, "queue_from_epoch": 15, "freeze_prototypes_epochs": 1},
        "backbone": {"name": "resnet50", "zero_init_residual": False},
        "augmentation": {"first": large, "second": large, "local": small, "local_count": 6},
        "optimizer": {
            "name": "lars",
            "lr": lr,
            "lr_per": None,
            "momentum": 0.9,
            "eta": 0.001,
            "denominator": "sum_of_norms",
            "clip_ratio": False,
            "weight_decay": 0.000001,
            "exempt_1d": False,
        },
        "train": {**train, "image_size": 224},
    }


PUBLISHED = {
    "cifar": Published(
        "solo-learn 1.0.6, its CIFAR-10 settings",
        {
            "method": {**HEADS, "queue_size": 3840, "queue_from_epoch": 50, "freeze_prototypes_epochs": 2},
            "backbone": {"name": "resnet18", "stem": "cifar"},
            "augmentation": {**STRONG, "scale": [0.08, 1.0], "interpolation": "bicubic"},
            "optimizer": {
                "name": "lars",
                "lr": {"start": 0.6, "warmup": 10, "warmup_from": 0.00003, "end": 0.0},
                "lr_per": 256,
                "momentum": 0.9,
                "eta": 0.02,
                "denominator": "sum_of_norms",
                "clip_ratio": True,
                "weight_decay": 0.000001,
                "exempt_1d": True,
            },
            "train": {"epochs": 1000, "batch_size": 256},
        },
        beside=(
            "the stem's convolution is padded by 1, solo-learn's by 2",
            "the queue starts to fill at epoch 50 and is used once full, solo-learn's fills from the start",
        ),
    ),
    "imagenet": Published(
        PAPER,
        imagenet(
            0,
            {"start": 4.8, "end": 0.0048, "warmup": 10, "warmup_from": 0.3},
            {"epochs": 800, "batch_size": 4096},
        ),
        beside=TYPO,
    ),
    "imagenet_small_batch": Published(
        PAPER,
        imagenet(3840, {"start": 0.6, "end": 0.0006, "warmup": 0}, {"epochs": 400, "batch_size": 256}),
        beside=TYPO,
    ),
}
