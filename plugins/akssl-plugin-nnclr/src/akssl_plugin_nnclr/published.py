"""What the sources of NNCLR's recipes say, for comparison with the recipes."""

from __future__ import annotations

from typing import Any

from akssl_core import Published

HEADS: dict[str, Any] = {"hidden_dim": 2048, "out_dim": 256, "projector_layers": 3, "predictor_dim": 4096}
VIEW: dict[str, Any] = {
    "scale": [0.08, 1.0],
    "interpolation": "bicubic",
    "flip": 0.5,
    "jitter": 0.8,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.1,
    "grayscale": 0.2,
    "blur": 0.0,
}

PUBLISHED = {
    "cifar": Published(
        "solo-learn 1.0.6, its CIFAR-10 settings",
        {
            "method": {**HEADS, "queue_size": 65536, "loss": {"temperature": 0.2}},
            "backbone": {"name": "resnet18", "stem": "cifar"},
            "augmentation": {"first": {**VIEW, "solarize": 0.0}, "second": {**VIEW, "solarize": 0.2}},
            "optimizer": {
                "name": "lars",
                "lr": {"start": 0.4, "warmup": 10, "warmup_from": 0.00003, "end": 0.0},
                "lr_per": 256,
                "momentum": 0.9,
                "eta": 0.02,
                "denominator": "sum_of_norms",
                "clip_ratio": True,
                "weight_decay": 0.00001,
                "exempt_1d": True,
            },
            "train": {"epochs": 1000, "batch_size": 256},
        },
        {"method.queue_size": "CIFAR has 50 000 images; in a longer queue the neighbour is often the image itself"},
        (
            "the stem's convolution is padded by 1, solo-learn's by 2",
            "linear layers before a batch norm have no bias, solo-learn's have one that the norm takes away",
        ),
    ),
    "imagenet": Published(
        "arXiv 2104.14548, section 4 and appendix",
        {
            "method": {**HEADS, "queue_size": 98304, "loss": {"temperature": 0.1}},
            "backbone": {"name": "resnet50"},
            "augmentation": {
                "scale": [0.08, 1.0],
                "interpolation": "bicubic",
                "flip": 0.5,
                "jitter": 0.8,
                "brightness": 0.8,
                "contrast": 0.8,
                "saturation": 0.8,
                "hue": 0.2,
                "grayscale": 0.2,
                "blur": 0.5,
            },
            "optimizer": {
                "name": "lars",
                "lr": {"start": 0.3, "warmup": 10, "end": 0.0},
                "lr_per": 256,
                "momentum": 0.9,
                "eta": 0.001,
                "weight_decay": 0.000001,
                "exempt_1d": True,
            },
            "train": {"epochs": 1000, "batch_size": 4096, "image_size": 224},
        },
        beside=(
            "no code of the authors is public; queue, temperature and optimizer are quoted second-hand and were not "
            "compared with the paper's text",
        ),
    ),
}
