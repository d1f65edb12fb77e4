"""What the sources of MAE's recipes say, for comparison with the recipes."""

from __future__ import annotations

from typing import Any

from akssl_core import Published

METHOD: dict[str, Any] = {
    "decoder_dim": 512,
    "decoder_depth": 8,
    "decoder_heads": 16,
    "mask_ratio": 0.75,
    "loss": {"norm_pix": True},
}
VIEW: dict[str, Any] = {
    "count": 1,
    "interpolation": "bicubic",
    "flip": 0.5,
    "jitter": 0.0,
    "grayscale": 0.0,
    "blur": 0.0,
    "solarize": 0.0,
}
BEGINNING: dict[str, Any] = {"positions": "sincos", "init": "xavier_joint", "pool": "cls"}
POOL = "the mean of the patches, which the authors fine-tune; their linear probe, and solo-learn, read the class token"

PUBLISHED = {
    "cifar": Published(
        "solo-learn 1.0.6, its CIFAR-10 settings",
        {
            "method": METHOD,
            "backbone": {"name": "vit_small", "patch_size": 4, "heads": 12, **BEGINNING},
            "augmentation": {**VIEW, "scale": [0.08, 1.0]},
            "optimizer": {
                "name": "adamw",
                "lr": {"start": 0.0002, "warmup": 10, "warmup_from": 0.00003, "end": 0.0},
                "lr_per": 256,
                "betas": [0.9, 0.95],
                "weight_decay": 0.05,
                "exempt_1d": False,
            },
            "train": {"epochs": 1000, "batch_size": 256},
        },
        {"backbone.pool": POOL},
        ("the decoder's layer norms have an epsilon of 1e-6, as the authors' have; solo-learn's 1e-5",),
    ),
    "imagenet": Published(
        "facebookresearch/mae, PRETRAIN.md and main_pretrain.py, for a ViT-B; arXiv 2111.06377, appendix A.1",
        {
            "method": METHOD,
            "backbone": {"name": "vit_base", "patch_size": 16, **BEGINNING},
            "augmentation": {**VIEW, "scale": [0.2, 1.0]},
            "optimizer": {
                "name": "adamw",
                "lr": {"start": 0.00015, "warmup": 40, "end": 0.0},
                "lr_per": 256,
                "betas": [0.9, 0.95],
                "weight_decay": 0.05,
                "exempt_1d": True,
            },
            "train": {"epochs": 800, "batch_size": 4096, "image_size": 224},
        },
        {
            "backbone.patch_size": "16 px at this size too; left open, for small images",
            "backbone.pool": POOL,
        },
        ("patches kept stand in order, the authors' in that of their draws, which the encoder cannot tell apart",),
    ),
}
