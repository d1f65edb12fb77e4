"""What the sources of SimCLR's recipes say, for comparison with the recipes."""

from __future__ import annotations

from typing import Any

from akssl_core import Published

BESIDE = ("images are normalised by mean and deviation, the authors' stay between 0 and 1",)
LARS: dict[str, Any] = {"name": "lars", "lr_per": 256, "momentum": 0.9, "eta": 0.001, "lr_inside_momentum": True}


def views(strength: float, blur: float) -> dict[str, Any]:
    """The authors' views: colours of 0.8, 0.8, 0.8 and 0.2 times a strength."""
    factors = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
    colors = {name: factor * strength for name, factor in factors.items()}
    crop = {"scale": [0.08, 1.0], "interpolation": "bicubic", "flip": 0.5}
    return {**crop, "jitter": 0.8, **colors, "grayscale": 0.2, "blur": blur}


CIFAR: dict[str, Any] = {
    "method": {"out_dim": 128, "projector_layers": 3, "loss": {"temperature": 0.5, "scale": 2.0}},
    "backbone": {"name": "resnet18", "stem": "cifar", "zero_init_residual": True},
    "augmentation": views(0.5, blur=0.0),
    "optimizer": {**LARS, "lr": {"start": 1.0, "warmup": 10, "end": 0.0}, "weight_decay": 0.0001},
    "train": {"epochs": 1000, "batch_size": 512},
}
IMAGENET: dict[str, Any] = {
    "method": {"out_dim": 128, "projector_layers": 2, "loss": {"temperature": 0.1, "scale": 2.0}},
    "backbone": {"name": "resnet50", "zero_init_residual": True},
    "augmentation": views(1.0, blur=0.5),
    "optimizer": {**LARS, "lr": {"start": 0.3, "warmup": 10, "end": 0.0}, "weight_decay": 0.000001},
    "train": {"epochs": 100, "batch_size": 4096, "image_size": 224},
}
IMAGENET_V2: dict[str, Any] = {
    "method": {"out_dim": 128, "projector_layers": 3, "loss": {"temperature": 0.1, "scale": 2.0}},
    "backbone": {"name": "resnet50", "zero_init_residual": True},
    "augmentation": views(1.0, blur=0.5),
    "optimizer": {
        **LARS,
        "lr": {"start": 0.1 * 4096**0.5 / (4096 / 256), "warmup": 0.05 * 800, "end": 0.0},
        "weight_decay": 0.0001,
    },
    "train": {"epochs": 800, "batch_size": 4096, "image_size": 224},
}

COMMAND = "README of google-research/simclr, its CIFAR-10 command"
CODE = "the factor of the loss from google-research/simclr"
PUBLISHED = {
    "cifar": Published(
        COMMAND, CIFAR, {"method.projector_layers": "version 1's head; `simclrv2` has the command's 3"}, BESIDE
    ),
    "imagenet": Published(f"arXiv 2002.05709, section 2.2 and appendix A; {CODE}", IMAGENET, beside=BESIDE),
}
PUBLISHED_V2 = {
    "cifar": Published(COMMAND, CIFAR, beside=BESIDE),
    "imagenet": Published(
        f"arXiv 2006.10029, appendix; {CODE}",
        IMAGENET_V2,
        beside=(*BESIDE, "other batches scale the learning rate linearly, the paper by the square root"),
    ),
}
