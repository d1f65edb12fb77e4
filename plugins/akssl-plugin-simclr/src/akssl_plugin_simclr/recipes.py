"""Settings under which SimCLR is known to work: a small budget, CIFAR and ImageNet, for the heads of v1 and v2."""

from __future__ import annotations

from typing import Any

# Few images and minutes: a head as wide as the small backbone, and AdamW, whose step does not depend on how small the
# head's first weights are. Colours change strongly and brightness little: under strong changes of brightness an
# untrained network sees no likeness between two views of an image, and a short run ends before it has found any.
DEFAULT: dict[str, Any] = {
    "method": {"hidden_dim": 128, "out_dim": 128, "loss": {"name": "ntxent", "temperature": 0.2}},
    "augmentation": {
        "name": "pair",
        "scale": [0.3, 1.0],
        "brightness": 0.3,
        "contrast": 0.3,
        "saturation": 0.8,
        "hue": 0.2,
        "grayscale": 0.5,
    },
    "optimizer": {"name": "adamw", "lr": {"start": 6e-3, "warmup": 1}, "weight_decay": 0.01},
    "train": {"batch_size": 128},
}

# Views of five eighths of the side, of which about two take the time of one, and in which things are about as
# large as in the whole images that the backbone is used for (arXiv 1906.06423). Chosen on held-out images of CIFAR-10.
FAST: dict[str, Any] = {**DEFAULT, "augmentation": {**DEFAULT["augmentation"], "size": 0.625}}

# The authors' LARS keeps the learning rate inside the momentum. Their code's loss is twice the paper's, and their rates
# and weight decays belong to it: with the paper's, weight decay would weigh twice as much beside the gradient, and
# biases and norms, which have no trust ratio, would take half of their steps.
LARS: dict[str, Any] = {"name": "lars", "lr_per": 256, "momentum": 0.9, "eta": 1e-3, "lr_inside_momentum": True}

# The CIFAR-10 run of the authors' README (github.com/google-research/simclr): half the colour strength, no blur. Its
# command has the projector of three layers, which is version 2's.
CIFAR: dict[str, Any] = {
    "method": {"out_dim": 128, "projector_layers": 2, "loss": {"name": "ntxent", "temperature": 0.5, "scale": 2.0}},
    "backbone": {"name": "resnet18", "stem": "cifar", "zero_init_residual": True},
    "augmentation": {
        "name": "pair",
        "scale": [0.08, 1.0],
        "interpolation": "bicubic",
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.4,
        "hue": 0.1,
        "grayscale": 0.2,
        "blur": 0.0,
    },
    "optimizer": {**LARS, "lr": {"start": 1.0, "warmup": 10}, "weight_decay": 1e-4},
    "train": {"epochs": 1000, "batch_size": 512},
}

# Section 2.2 and appendix A of arXiv 2002.05709: full colour strength, blur in half of the views.
PAPER_VIEWS: dict[str, Any] = {
    "name": "pair",
    "scale": [0.08, 1.0],
    "interpolation": "bicubic",
    "brightness": 0.8,
    "contrast": 0.8,
    "saturation": 0.8,
    "hue": 0.2,
    "grayscale": 0.2,
    "blur": 0.5,
}

IMAGENET: dict[str, Any] = {
    "method": {"out_dim": 128, "projector_layers": 2, "loss": {"name": "ntxent", "temperature": 0.1, "scale": 2.0}},
    "backbone": {"name": "resnet50", "zero_init_residual": True},
    "augmentation": PAPER_VIEWS,
    "optimizer": {**LARS, "lr": {"start": 0.3, "warmup": 10}, "weight_decay": 1e-6},
    "train": {"epochs": 100, "batch_size": 4096, "image_size": 224},
}

# Appendix of arXiv 2006.10029: lr 0.1 sqrt(4096) = 6.4, which is 0.4 per 256; 5 % of the epochs are warm-up.
IMAGENET_V2: dict[str, Any] = {
    **IMAGENET,
    "method": {**IMAGENET["method"], "projector_layers": 3},
    "optimizer": {**LARS, "lr": {"start": 0.4, "warmup": 40}, "weight_decay": 1e-4},
    "train": {"epochs": 800, "batch_size": 4096, "image_size": 224},
}

RECIPES = {"default": DEFAULT, "fast": FAST, "cifar": CIFAR, "imagenet": IMAGENET}
RECIPES_V2 = {
    "default": DEFAULT,
    "cifar": {**CIFAR, "method": {**CIFAR["method"], "projector_layers": 3}},
    "imagenet": IMAGENET_V2,
}
