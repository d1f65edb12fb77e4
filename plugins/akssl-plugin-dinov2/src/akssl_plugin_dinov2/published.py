"""What the source of DINOv2's recipes says, for comparison with the recipes."""

from __future__ import annotations

from typing import Any

from akssl_core import Published

SOURCE = "facebookresearch/dinov2 (b8931f7), configs/train/vitl16_short.yaml, for a ViT-L/16"
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
VALUES: dict[str, Any] = {
    "method": {
        "hidden_dim": 2048,
        "bottleneck_dim": 256,
        "out_dim": 65536,
        "shared_head": True,
        "head_layers": 3,
        "head_batch_norm": False,
        "projection_batch_norm": False,
        "head_init_std": 0.02,
        "norm_last_layer": False,
        "mask_chance": 0.5,
        "mask_ratio": [0.1, 0.5],
        "targets": "center",
        "teacher_temperature": {"start": 0.04, "end": 0.07, "shape": "linear", "over": 30, "per": "step"},
        "momentum": {"start": 0.992, "end": 1.0},
        "freeze_last_layer_epochs": 1,
        "patch_weight": 1.0,
        "koleo_weight": 0.1,
        "koleo": {"group": 64},
        "gram": None,
        "loss": {"student_temperature": 0.1},
        "patch_loss": {"student_temperature": 0.1},
    },
    "backbone": {
        "name": "vit_large",
        "patch_size": 16,
        "layer_scale": 1e-5,
        "drop_path": 0.3,
        "drop_path_shape": "uniform",
        "drop_path_kind": "subset",
        "registers": 0,
    },
    "augmentation": {
        "first": {**COLORS, "scale": [0.32, 1.0], "blur": 1.0, "solarize": 0.0},
        "second": {**COLORS, "scale": [0.32, 1.0], "blur": 0.1, "solarize": 0.2},
        "local": {**COLORS, "scale": [0.05, 0.32], "blur": 0.5, "solarize": 0.0},
        "local_count": 8,
    },
    "optimizer": {
        "name": "adamw",
        "lr": {"start": 0.004 * (2048 / 1024) ** 0.5, "end": 0.000001, "warmup": 10},
        "lr_per": None,
        "betas": [0.9, 0.999],
        "weight_decay": {"start": 0.04, "end": 0.4},
        "exempt_1d": True,
        "layer_decay": 0.9,
        "patch_embed_rate": 0.2,
    },
    "train": {"epochs": 100, "batch_size": 2048, "clip": {"norm": 3.0, "per": "network"}},
}
BESIDE = (
    "each global crop has hidden patches by its own chance; the authors hide some in just half of a batch, by shares "
    "that are spread evenly over it",
    "an epoch is one of the data; the authors' has 1250 steps",
    "the token of hidden patches has the learning rate of the heads, the authors' that of the first layer",
    "without local crops the loss on images is a mean; the authors' is two thirds of it",
)
HEADS = "a head for images and one for patches, as in the authors' long runs"
TARGETS = "balanced, as in the authors' long runs and in all of DINOv3"
DEPTH = "a rate for small networks; up to it each image is dropped by itself, as in the authors' code"
PUBLISHED = {
    "cifar": Published(
        f"{SOURCE}, since no source has a CIFAR recipe",
        VALUES,
        {
            "method.hidden_dim": "a narrower network",
            "method.out_dim": "at most one for every 8 of 50,000 images",
            "method.patch_out_dim": "as out_dim",
            "method.shared_head": HEADS,
            "method.targets": TARGETS,
            "method.teacher_temperature.over": "in proportion to a longer run",
            "method.momentum.start": "a run of 39,000 steps, not of 125,000",
            "method.koleo.group": "all images of a step",
            "backbone.name": "the smallest of the usual transformers",
            "backbone.patch_size": "64 patches of an image of 32 px",
            "backbone.layer_scale": "what begins at 1e-5 takes longer than a small network needs",
            "backbone.drop_path": DEPTH,
            "backbone.drop_path_kind": DEPTH,
            "augmentation.first.blur": "images of 32 px have no finer detail",
            "augmentation.second.blur": "images of 32 px have no finer detail",
            "augmentation.local.blur": "images of 32 px have no finer detail",
            "augmentation.local_count": "small crops of small images are much alike",
            "augmentation.local_size": "16 patches",
            "optimizer.lr.start": "0.002 by the root of batch / 1024",
            "optimizer.lr.warmup": "in proportion to a longer run",
            "optimizer.layer_decay": "a network of random weights, and no deep one",
            "optimizer.patch_embed_rate": "a network of random weights, and no deep one",
            "train.epochs": "of few images",
            "train.batch_size": "of few images",
            "train.clip.per": "one norm for all",
        },
        BESIDE,
    ),
    "imagenet": Published(
        SOURCE,
        {**VALUES, "train": {**VALUES["train"], "image_size": 224}},
        {
            "method.patch_out_dim": "as out_dim",
            "method.shared_head": HEADS,
            "method.targets": TARGETS,
            "backbone.name": "a network that one machine trains",
            "backbone.patch_size": "16 px at this size; left open, for small images",
            "backbone.drop_path": DEPTH,
            "backbone.drop_path_kind": DEPTH,
            "optimizer.lr.start": "0.002 at batch 1024: 0.004 is for a ViT-L",
            "train.batch_size": "of one machine",
        },
        BESIDE,
    ),
}
