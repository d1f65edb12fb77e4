"""Settings under which SimSiam is known to work: a small budget, CIFAR and ImageNet, and four views (FastSiam)."""

from __future__ import annotations

from typing import Any

# Few images and minutes: heads narrow enough for a CPU, and a fast predictor, which is what made a short run learn (a
# predictor near its optimum is what section 5.2 of the paper asks for). Colours change strongly and brightness little:
# under strong changes of brightness an untrained network sees no likeness between two views of an image.
DEFAULT: dict[str, Any] = {
    "method": {"hidden_dim": 512, "out_dim": 512, "projector_layers": 2, "predictor_dim": 128, "predictor_lr": 10.0},
    "augmentation": {
        "name": "pair",
        "scale": [0.3, 1.0],
        "brightness": 0.3,
        "contrast": 0.3,
        "saturation": 0.8,
        "hue": 0.2,
        "grayscale": 0.5,
    },
    "optimizer": {"name": "sgd", "lr": {"start": 0.3}, "lr_per": 256, "momentum": 0.9, "weight_decay": 5e-4},
    "train": {"batch_size": 128},
}

# The paper's views are MoCo v2's (arXiv 2003.04297, section 2): weak jitter; blur at 224 px alone.
PAPER_VIEWS: dict[str, Any] = {
    "name": "pair",
    "scale": [0.2, 1.0],
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "grayscale": 0.2,
}

# Appendix D of the paper: ResNet-18 with a 3 x 3 stem, no blur, a projector of two layers.
CIFAR: dict[str, Any] = {
    "method": {"hidden_dim": 2048, "out_dim": 2048, "projector_layers": 2, "predictor_dim": 512},
    "backbone": {"name": "resnet18", "stem": "cifar", "zero_init_residual": True},
    "augmentation": {**PAPER_VIEWS, "blur": 0.0},
    "optimizer": {
        "name": "sgd",
        "lr": {"start": 0.03, "per": "epoch"},
        "lr_per": 256,
        "momentum": 0.9,
        "weight_decay": 5e-4,
    },
    "train": {"epochs": 800, "batch_size": 512},
}

# Section 3 of the paper: ResNet-50, 100 epochs, batch 512, no warm-up, weight decay on every parameter.
IMAGENET: dict[str, Any] = {
    "method": {"hidden_dim": 2048, "out_dim": 2048, "projector_layers": 3, "predictor_dim": 512},
    "backbone": {"name": "resnet50", "zero_init_residual": True},
    "augmentation": {**PAPER_VIEWS, "blur": 0.5},
    "optimizer": {
        "name": "sgd",
        "lr": {"start": 0.05, "per": "epoch"},
        "lr_per": 256,
        "momentum": 0.9,
        "weight_decay": 1e-4,
    },
    "train": {"epochs": 100, "batch_size": 512, "image_size": 224},
}

# FastSiam (doi 10.1007/978-3-031-16788-1_4): four views, whose mean is the target, batch 32, 25 epochs. The paper's
# rate is not known to us; here SimSiam's per image.
FASTSIAM: dict[str, Any] = {
    **IMAGENET,
    "augmentation": {**IMAGENET["augmentation"], "count": 4},
    "train": {"epochs": 25, "batch_size": 32, "image_size": 224},
}

RECIPES = {"default": DEFAULT, "cifar": CIFAR, "imagenet": IMAGENET, "fastsiam": FASTSIAM}
