"""What the sources of MoCo's recipes say, for comparison with the recipes."""

from __future__ import annotations

from typing import Any

from akssl_core import Published

WEAK: dict[str, Any] = {"jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "hue": 0.1, "grayscale": 0.2, "flip": 0.5}


def v2_views(smallest: float, blur: float) -> dict[str, Any]:
    """Views drawn alike."""
    return {**WEAK, "saturation": 0.4, "scale": [smallest, 1.0], "blur": blur}


def v3_views(smallest: float, first_blur: float, second_blur: float, interpolation: str = "bilinear") -> dict[str, Any]:
    """Views that differ in blur and solarization."""
    shared = {**WEAK, "saturation": 0.2, "scale": [smallest, 1.0], "interpolation": interpolation}
    first, second = {"blur": first_blur, "solarize": 0.0}, {"blur": second_blur, "solarize": 0.2}
    return {"first": {**shared, **first}, "second": {**shared, **second}}


GROUPS = (
    "running statistics of batch norms move once for each group, the authors' once a step, by one group of eight",
)
V2_SGD: dict[str, Any] = {
    "name": "sgd",
    "lr": {"start": 0.03, "per": "epoch", "warmup": 0, "end": 0.0},
    "lr_per": 256,
    "momentum": 0.9,
    "exempt_1d": False,
}
V2_PUBLISHED = {
    "cifar": Published(
        "the authors' CIFAR-10 demo (facebookresearch/moco, branch colab-notebook)",
        {
            "method": {
                "out_dim": 128,
                "queue_size": 4096,
                "momentum": 0.99,
                "bn_splits": 8,
                "loss": {"temperature": 0.1},
            },
            "backbone": {"name": "resnet18", "stem": "cifar"},
            "augmentation": v2_views(0.08, blur=0.0),
            "optimizer": {**V2_SGD, "weight_decay": 0.0005},
            "train": {"epochs": 800, "batch_size": 512},
        },
        beside=("the demo's head is one linear layer, version 1's; here it has version 2's two", *GROUPS),
    ),
    "imagenet": Published(
        "arXiv 2003.04297, what it takes from arXiv 1911.05722, and facebookresearch/moco",
        {
            "method": {
                "hidden_dim": 2048,
                "out_dim": 128,
                "head_batch_norm": False,
                "queue_size": 65536,
                "momentum": 0.999,
                "symmetric": False,
                "bn_splits": 8,
                "loss": {"temperature": 0.2},
            },
            "backbone": {"name": "resnet50", "zero_init_residual": False},
            "augmentation": v2_views(0.2, blur=0.5),
            "optimizer": {**V2_SGD, "weight_decay": 0.0001},
            "train": {"epochs": 200, "batch_size": 256, "image_size": 224},
        },
        beside=GROUPS,
    ),
}

V3_HEADS: dict[str, Any] = {"hidden_dim": 4096, "out_dim": 256, "momentum": {"start": 0.99, "end": 1.0}}
V3_PUBLISHED = {
    "cifar": Published(
        "solo-learn 1.0.6, its CIFAR-10 settings",
        {
            "method": {**V3_HEADS, "loss": {"temperature": 0.2}},
            "backbone": {"name": "resnet18", "stem": "cifar"},
            "augmentation": v3_views(0.08, 0.0, 0.0, "bicubic"),
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
            "train": {"epochs": 1000, "batch_size": 256},
        },
        beside=("the stem's convolution is padded by 1, solo-learn's by 2",),
    ),
    "imagenet": Published(
        "README and code of facebookresearch/moco-v3, ResNet-50 of 300 epochs (arXiv 2104.02057)",
        {
            "method": {**V3_HEADS, "head": "resnet", "loss": {"temperature": 1.0}},
            "backbone": {"name": "resnet50", "zero_init_residual": True},
            "augmentation": v3_views(0.2, 1.0, 0.1),
            "optimizer": {
                "name": "lars",
                "lr": {"start": 0.3, "warmup": 10, "end": 0.0},
                "lr_per": 256,
                "eta": 0.001,
                "momentum": 0.9,
                "weight_decay": 0.000001,
                "exempt_1d": True,
            },
            "train": {"epochs": 300, "batch_size": 4096, "image_size": 224},
        },
    ),
    "imagenet_vit": Published(
        "README and code of facebookresearch/moco-v3, ViT-S (arXiv 2104.02057)",
        {
            "method": {**V3_HEADS, "head": "vit", "freeze_patch_projection": True, "loss": {"temperature": 0.2}},
            "backbone": {
                "name": "vit_small",
                "patch_size": 16,
                "positions": "sincos",
                "heads": 12,
                "init": "xavier",
                "drop_path": 0.0,
            },
            "augmentation": v3_views(0.08, 1.0, 0.1),
            "optimizer": {
                "name": "adamw",
                "lr": {"start": 0.00015, "warmup": 40, "end": 0.0},
                "lr_per": 256,
                "betas": [0.9, 0.999],
                "weight_decay": 0.1,
                "exempt_1d": False,
            },
            "train": {"epochs": 300, "batch_size": 4096, "image_size": 224},
        },
    ),
}
