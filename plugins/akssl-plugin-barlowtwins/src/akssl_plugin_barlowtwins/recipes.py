"""Settings for Barlow Twins: a small budget, CIFAR and ImageNet."""

from __future__ import annotations

from typing import Any

# Few images and minutes: a narrow projector with a larger weight on the off-diagonal, whose sum grows with the square
# of the width, small batches for more steps, and AdamW at one rate for all parameters. Colours change strongly and
# brightness little: under strong changes of brightness an untrained network sees no likeness between two views.
SMALL_VIEWS: dict[str, Any] = {
    "name": "pair",
    "scale": [0.3, 1.0],
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.8,
    "hue": 0.2,
    "grayscale": 0.5,
}
DEFAULT: dict[str, Any] = {
    "method": {
        "hidden_dim": 256,
        "out_dim": 256,
        "projector_layers": 3,
        "bias_lr": 1.0,
        "loss": {"name": "barlowtwins", "lambda_": 0.02},
    },
    "augmentation": SMALL_VIEWS,
    "optimizer": {"name": "adamw", "lr": {"start": 4e-3, "warmup": 0.5}, "weight_decay": 0.01},
    "train": {"batch_size": 64},
}

# Appendix A of the paper, which takes BYOL's views (arXiv 2006.07733): blur and solarization differ between them.
PAPER_VIEW: dict[str, Any] = {
    "scale": [0.08, 1.0],
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.1,
    "grayscale": 0.2,
}

# Lightly's benchmark on CIFAR-10 (version 1.5): ResNet-18 with a 3 x 3 stem, no blur, a projector of two layers,
# SGD at 0.06 per 128 images without warm-up. The paper has no CIFAR recipe.
CIFAR: dict[str, Any] = {
    "method": {
        "hidden_dim": 2048,
        "out_dim": 2048,
        "projector_layers": 2,
        "bias_lr": 1.0,
        "loss": {"name": "barlowtwins", "lambda_": 0.005},
    },
    "backbone": {"name": "resnet18", "stem": "cifar"},
    "augmentation": {
        "name": "asymmetric",
        "first": {**PAPER_VIEW, "blur": 0.0},
        "second": {**PAPER_VIEW, "blur": 0.0, "solarize": 0.2},
    },
    "optimizer": {
        "name": "sgd",
        "lr": {"start": 0.12, "per": "epoch"},
        "lr_per": 256,
        "momentum": 0.9,
        "weight_decay": 5e-4,
    },
    "train": {"epochs": 800, "batch_size": 512},
}

# Appendix A of the paper: ResNet-50, 1000 epochs, batch 2048, LARS; a cosine to a thousandth of the peak. Biases and
# norms: the paper's rates are 0.0048 beside 0.2, a factor of 0.024. The authors' code sums the correlation over 16 GPUs
# out of autograd's sight and then averages gradients, so that its gradient is a 16th of the loss's. The trust ratio
# cancels that for weights. Biases and norms have none, and the gradient here is whole, so their factor is 0.024 / 16.
IMAGENET: dict[str, Any] = {
    "method": {"hidden_dim": 8192, "out_dim": 8192, "projector_layers": 3, "bias_lr": 0.0015},
    "backbone": {"name": "resnet50", "zero_init_residual": True},
    "augmentation": {
        "name": "asymmetric",
        "first": {**PAPER_VIEW, "interpolation": "bicubic", "blur": 1.0},
        "second": {**PAPER_VIEW, "interpolation": "bicubic", "blur": 0.1, "solarize": 0.2},
    },
    "optimizer": {
        "name": "lars",
        "lr": {"start": 0.2, "end": 2e-4, "warmup": 10},
        "lr_per": 256,
        "momentum": 0.9,
        "weight_decay": 1e-6,
        "exempt_1d": True,
    },
    "train": {"epochs": 1000, "batch_size": 2048, "image_size": 224},
}

RECIPES = {"default": DEFAULT, "cifar": CIFAR, "imagenet": IMAGENET}
