"""What the sources of BYOL's recipes say, for comparison with the recipes."""

from __future__ import annotations

from typing import Any

from akssl_core import Published


def views(first_blur: float, second_blur: float, interpolation: str) -> dict[str, Any]:
    """The paper's unlike views (appendix B), with the blur of each."""
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
                "hidden_dim": 1024,
                "out_dim": 256,
                "predictor_dim": 1024,
                "momentum": {"start": 0.99, "end": None},
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
        {
            "optimizer.lr.start": "lightly's loss is a quarter of the paper's, which is used here",
            "optimizer.weight_decay": "lightly's loss is a quarter of the paper's, so decay weighs four times as much",
            "method.momentum.end": "the paper's rises to 1",
        },
        ("images are normalised by the data's mean and deviation, lightly's by ImageNet's",),
    ),
    "imagenet": Published(
        "arXiv 2006.07733, section 3 and appendix, and the authors' preset of 1000 epochs (google-deepmind)",
        {
            "method": {
                "hidden_dim": 4096,
                "out_dim": 256,
                "predictor_dim": 4096,
                "momentum": {"start": 0.996, "end": 1.0},
            },
            "backbone": {"name": "resnet50", "zero_init_residual": False},
            "augmentation": views(1.0, 0.1, "bicubic"),
            "optimizer": {
                "name": "lars",
                "lr": {"start": 0.2, "warmup": 10, "end": 0.0},
                "lr_per": 256,
                "eta": 0.001,
                "momentum": 0.9,
                "weight_decay": 0.0000015,
                "exempt_1d": True,
            },
            "train": {"epochs": 1000, "batch_size": 4096, "image_size": 224},
        },
        beside=(
            "the target starts as a copy, the authors' from weights of its own",
            "brightness is a factor, the authors' is added",
        ),
    ),
}
