"""What the source of iBOT's recipes says, for comparison with the recipes."""

from __future__ import annotations

from typing import Any

from akssl_core import Published

SOURCE = "README and main_ibot.py of bytedance/ibot (da316d8): ViT-S/16 for 800 epochs on 16 GPUs"
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
WARM: dict[str, Any] = {"start": 0.04, "end": 0.07, "shape": "linear", "over": 30.0, "per": "epoch"}
VALUES: dict[str, Any] = {
    "method": {
        "hidden_dim": 2048,
        "bottleneck_dim": 256,
        "out_dim": 8192,
        "head_layers": 3,
        "shared_head": True,
        "norm_last_layer": False,
        "mask_chance": 0.5,
        "mask_ratio": [0.1, 0.5],
        "mask_shape": "block",
        "patch_weight": 1.0,
        "teacher_temperature": WARM,
        "patch_temperature": WARM,
        "center_momentum": 0.9,
        "momentum": {"start": 0.996, "end": 1.0},
        "freeze_last_layer_epochs": 1,
        "loss": {"student_temperature": 0.1},
        "patch_loss": {"student_temperature": 0.1},
    },
    "backbone": {"name": "vit_small", "patch_size": 16, "drop_path": 0.1},
    "augmentation": {
        "first": {**COLORS, "scale": [0.25, 1.0], "blur": 1.0, "solarize": 0.0},
        "second": {**COLORS, "scale": [0.25, 1.0], "blur": 0.1, "solarize": 0.2},
        "local": {**COLORS, "scale": [0.05, 0.25], "blur": 0.5, "solarize": 0.0},
        "local_count": 10,
    },
    "optimizer": {
        "name": "adamw",
        "lr": {"start": 0.0005, "end": 0.00000025, "warmup": 10},
        "lr_per": 256,
        "betas": [0.9, 0.999],
        "weight_decay": {"start": 0.04, "end": 0.4},
        "exempt_1d": True,
    },
    "train": {"epochs": 800, "batch_size": 1024, "clip": {"norm": 3.0, "per": "parameter"}},
}
BESIDE = ("random numbers of a mask are those of the step and the image, the authors' those of a data worker",)

PUBLISHED = {
    "cifar": Published(
        f"{SOURCE}, since no source has a CIFAR recipe",
        VALUES,
        {
            "method.hidden_dim": "for a narrower backbone",
            "method.out_dim": "12 images an output",
            "method.momentum.start": "a run of 59,000 steps, not of a million",
            "backbone.name": "the smallest of the usual transformers",
            "backbone.patch_size": "64 patches of an image of 32 px",
            "augmentation.first.blur": "images of 32 px are blurred enough",
            "augmentation.second.blur": "as for the first crop",
            "augmentation.local.blur": "as for the first crop",
            "augmentation.local_count": "crops of 16 px cost a quarter of the global ones, not a fifth",
            "optimizer.lr.end": "1e-6 at the batch, as in the source",
            "train.epochs": "of a data set that is 25 times smaller",
            "train.batch_size": "of a data set that is 25 times smaller",
        },
        BESIDE,
    ),
    "imagenet": Published(
        f"{SOURCE}, 77.9 % linear, 75.2 % k-NN",
        {**VALUES, "train": {**VALUES["train"], "image_size": 224}},
        {"backbone.patch_size": "16 px at this size, as in the source; left open, for small images"},
        BESIDE,
    ),
}
