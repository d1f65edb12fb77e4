"""What the source of I-JEPA's recipes says, for comparison with the recipes."""

from __future__ import annotations

from typing import Any

from akssl_core import Published

SOURCE = "facebookresearch/ijepa, configs/in1k_vith14_ep300.yaml, for a ViT-H/14"
VALUES: dict[str, Any] = {
    "method": {
        "targets": 4,
        "target_area": [0.15, 0.2],
        "target_aspect": [0.75, 1.5],
        "context_area": [0.85, 1.0],
        "predictor_dim": 384,
        "predictor_depth": 12,
        "predictor_heads": 16,
        "momentum": {"start": 0.996, "end": 1.0, "shape": "linear"},
    },
    "backbone": {"patch_size": 14, "class_token": False, "positions": "sincos", "pool": "mean"},
    "augmentation": {
        "count": 1,
        "scale": [0.3, 1.0],
        "interpolation": "bilinear",
        "flip": 0.0,
        "jitter": 0.0,
        "grayscale": 0.0,
        "blur": 0.0,
        "solarize": 0.0,
    },
    "optimizer": {
        "name": "adamw",
        "lr": {"start": 0.001, "warmup": 40, "warmup_from": 0.0002, "end": 0.000001},
        "lr_per": None,
        "betas": [0.9, 0.999],
        "weight_decay": {"start": 0.04, "end": 0.4},
        "exempt_1d": True,
    },
    "train": {"epochs": 300, "batch_size": 2048},
}
CONTEXT = "the authors keep what is left of a square for all images of a batch; here a random part of the patches"
BESIDE = (
    "blocks reach the last row and column, height and width are drawn independently, and the context of an image does "
    "not depend on the batch: see what it does",
    "patches are projected by torch's first weights, the authors' by a truncated normal of 0.02",
)

PUBLISHED = {
    "cifar": Published(
        f"{SOURCE}, since no source has a CIFAR recipe",
        VALUES,
        {
            "method.context_area": CONTEXT,
            "method.predictor_dim": "half of the encoder's width",
            "method.predictor_depth": "a third of the encoder's depth",
            "method.predictor_heads": "as many as the encoder's, as in the source",
            "method.momentum.start": "a run of 60,000 steps, not of 187,000",
            "backbone.name": "the smallest of the usual transformers",
            "backbone.patch_size": "64 patches of an image of 32 px",
            "augmentation.flip": "small data; context and targets see the same image",
            "optimizer.lr.start": "for a batch of 256",
            "optimizer.lr.warmup": "in proportion to a shorter run",
            "optimizer.lr.warmup_from": "a fifth of the rate, as in the source",
            "train.batch_size": "of a data set that is 25 times smaller",
        },
        BESIDE,
    ),
    "imagenet": Published(
        f"{SOURCE}; arXiv 2301.08243, appendix A, for a ViT-B/16",
        {**VALUES, "train": {**VALUES["train"], "image_size": 224}},
        {
            "method.context_area": CONTEXT,
            "method.predictor_depth": "the paper's for a ViT-B",
            "method.predictor_heads": "as many as a ViT-B's, as in the source",
            "backbone.name": "the paper's ViT-B",
            "backbone.patch_size": "16 px at this size, the paper's for a ViT-B; left open, for small images",
            "train.epochs": "the paper's for a ViT-B",
        },
        BESIDE,
    ),
}
