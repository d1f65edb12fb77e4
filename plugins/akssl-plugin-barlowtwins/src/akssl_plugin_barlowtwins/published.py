"""What the sources of Barlow Twins' recipes say, for comparison with the recipes."""

from __future__ import annotations

from typing import Any

from akssl_core import Published


def views(first_blur: float, second_blur: float, interpolation: str) -> dict[str, Any]:
    """BYOL's unlike views, with the blur of each."""
    shared = {
        "scale": [0.08, 1.0],
        "interpolation": interpolation,
        "flip": 0.5,
        "jitter": 0.8,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.2,
        "hue": 0.1,
        "grayscale": 0.2,
    }
    first, second = {"blur": first_blur, "solarize": 0.0}, {"blur": second_blur, "solarize": 0.2}
    return {"first": {**shared, **first}, "second": {**shared, **second}}


PUBLISHED = {
    "cifar": Published(
        "lightly 1.5, its CIFAR-10 benchmark (800 epochs, batch 512)",
        {
            "method": {
                "hidden_dim": 2048,
                "out_dim": 2048,
                "projector_layers": 2,
                "bias_lr": 1.0,
                "loss": {"lambda_": 0.005},
            },
            "backbone": {"name": "resnet18", "stem": "cifar"},
            "augmentation": views(0.0, 0.0, "bilinear"),
            "optimizer": {
                "name": "sgd",
                "lr": {"start": 0.06 * 256 / 128, "per": "epoch", "warmup": 0, "end": 0.0},
                "lr_per": 256,
                "momentum": 0.9,
                "weight_decay": 0.0005,
                "exempt_1d": False,
            },
            "train": {"epochs": 800, "batch_size": 512},
        },
        beside=("images are normalised by the data's mean and deviation, lightly's by ImageNet's",),
    ),
    "imagenet": Published(
        "arXiv 2103.03230, appendix A, and facebookresearch/barlowtwins, whose lambda is 0.0051",
        {
            "method": {
                "hidden_dim": 8192,
                "out_dim": 8192,
                "projector_layers": 3,
                "bias_lr": 0.0048 / 0.2,
                "loss": {"lambda_": 0.0051, "scale": 1.0},
            },
            "backbone": {"name": "resnet50", "zero_init_residual": True},
            "augmentation": views(1.0, 0.1, "bicubic"),
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
        {
            "method.bias_lr": "the authors' gradient is a 16th of the loss's on their 16 GPUs, which the trust ratio "
            "cancels for weights alone; the gradient here is whole"
        },
    ),
}
