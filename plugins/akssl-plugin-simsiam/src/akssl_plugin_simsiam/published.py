"""What the sources of SimSiam's recipes say, for comparison with the recipes."""

from __future__ import annotations

from typing import Any

from akssl_core import Published

HEADS: dict[str, Any] = {"hidden_dim": 2048, "out_dim": 2048, "predictor_dim": 512, "predictor_lr": 1.0}


def views(blur: float) -> dict[str, Any]:
    """The views of MoCo v2."""
    colors = {"jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "grayscale": 0.2}
    return {"scale": [0.2, 1.0], "flip": 0.5, **colors, "blur": blur}


def sgd(lr: float, weight_decay: float) -> dict[str, Any]:
    """A cosine by epochs without warm-up, weight decay on every parameter."""
    return {
        "name": "sgd",
        "lr": {"start": lr, "per": "epoch", "warmup": 0, "end": 0.0},
        "lr_per": 256,
        "momentum": 0.9,
        "weight_decay": weight_decay,
        "exempt_1d": False,
    }


PUBLISHED = {
    "cifar": Published(
        "arXiv 2011.10566, appendix D; first weights as in facebookresearch/simsiam",
        {
            "method": {**HEADS, "projector_layers": 2},
            "backbone": {"name": "resnet18", "stem": "cifar", "zero_init_residual": True},
            "augmentation": views(0.0),
            "optimizer": sgd(0.03, 0.0005),
            "train": {"epochs": 800, "batch_size": 512},
        },
    ),
    "fastsiam": Published(
        "Pototzky, Sultan and Schmidt-Thieme, FastSiam, GCPR 2022, doi 10.1007/978-3-031-16788-1_4, abstract; heads, "
        "policy and optimizer of arXiv 2011.10566, section 3",
        {
            "method": {**HEADS, "projector_layers": 3, "fixed_predictor_lr": True},
            "backbone": {"name": "resnet50", "zero_init_residual": True},
            "augmentation": {**views(0.5), "count": 4},
            "optimizer": sgd(0.05, 0.0001),
            "train": {"epochs": 25, "batch_size": 32, "image_size": 224},
        },
        beside=(
            "the learning rate is SimSiam's per image, since the paper's could not be looked up",
            "projections are averaged as they are; whether the paper brings them to unit length first is not known",
        ),
    ),
    "imagenet": Published(
        "arXiv 2011.10566, section 3; a constant rate of the predictor as in facebookresearch/simsiam",
        {
            "method": {**HEADS, "projector_layers": 3, "fixed_predictor_lr": True},
            "backbone": {"name": "resnet50", "zero_init_residual": True},
            "augmentation": views(0.5),
            "optimizer": sgd(0.05, 0.0001),
            "train": {"epochs": 100, "batch_size": 512, "image_size": 224},
        },
    ),
}
