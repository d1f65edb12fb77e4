"""What the sources of VICReg's recipes say, for comparison with the recipes."""

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
NO_BIAS = "hidden layers have no bias, the sources' have one that the batch norm behind it takes away"

PUBLISHED = {
    "cifar": Published(
        "solo-learn 1.0.6, its CIFAR-10 settings",
        {
            "method": {
                "hidden_dim": 2048,
                "out_dim": 2048,
                "projector_layers": 3,
                "loss": {"invariance_weight": 25.0, "variance_weight": 2 * 25.0, "covariance_weight": 1.0},
            },
            "backbone": {"name": "resnet18", "stem": "cifar"},
            "augmentation": {**COLORS, "scale": [0.2, 1.0], "blur": 0.0, "solarize": 0.1},
            "optimizer": {
                "name": "lars",
                "lr": {"start": 0.3, "warmup": 10, "warmup_from": 0.00003, "end": 0.0},
                "lr_per": 256,
                "momentum": 0.9,
                "eta": 0.02,
                "denominator": "sum_of_norms",
                "clip_ratio": True,
                "weight_decay": 0.0001,
                "exempt_1d": True,
            },
            "train": {"epochs": 1000, "batch_size": 256},
        },
        beside=(
            "solo-learn adds the variance terms of both views, which is a weight of 50 on their mean",
            "the stem's convolution is padded by 1, solo-learn's by 2",
            NO_BIAS,
        ),
    ),
    "imagenet": Published(
        "facebookresearch/vicreg, its command for 1000 epochs, and arXiv 2105.04906, section 4.2",
        {
            "method": {
                "hidden_dim": 8192,
                "out_dim": 8192,
                "projector_layers": 3,
                "loss": {"invariance_weight": 25.0, "variance_weight": 25.0, "covariance_weight": 1.0},
            },
            "backbone": {"name": "resnet50", "zero_init_residual": True},
            "augmentation": {
                "first": {**COLORS, "scale": [0.08, 1.0], "blur": 1.0, "solarize": 0.0},
                "second": {**COLORS, "scale": [0.08, 1.0], "blur": 0.1, "solarize": 0.2},
            },
            "optimizer": {
                "name": "lars",
                "lr": {"start": 0.2, "end": 0.001 * 0.2, "warmup": 10},
                "lr_per": 256,
                "eta": 0.001,
                "momentum": 0.9,
                "weight_decay": 0.000001,
                "exempt_1d": True,
            },
            "train": {"epochs": 1000, "batch_size": 2048, "image_size": 224},
        },
        beside=("runs of 100 epochs at batch 512 have a rate of 0.3 per 256 images, by the authors", NO_BIAS),
    ),
}
