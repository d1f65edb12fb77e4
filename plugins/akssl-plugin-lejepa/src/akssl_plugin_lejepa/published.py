"""What the sources of LeJEPA's recipes say, for comparison with the recipes."""

from __future__ import annotations

from typing import Any

from akssl_core import Published

HEAD: dict[str, Any] = {"hidden_dim": 2048, "projector_layers": 3, "directions": 1024}
COLORS: dict[str, Any] = {
    "flip": 0.5,
    "jitter": 0.8,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.1,
    "grayscale": 0.2,
    "solarize": 0.2,
}
NARROW = "projections of 64, which the paper's table 1 finds as good as wider ones; its scripts have 512"
LAYER = (
    "the authors' code has a trainable linear layer between backbone and projector and scores its output; here the "
    "backbone's features are scored"
)
README = "README of rbalestr-lab/lejepa"
NOTHING = "no source has a value for CIFAR"

PUBLISHED = {
    "cifar": Published(
        f"arXiv 2511.08544v3 (table 7, ResNets) and {README} (colours), since neither has a CIFAR recipe",
        {
            "method": {**HEAD, "out_dim": 64, "loss": {"lambda_": 0.02}},
            "augmentation": {**COLORS, "count": 4, "blur": 0.5},
            "optimizer": {"name": "adamw", "weight_decay": 0.0005, "lr": {"warmup": 10, "end": 0.001 * 0.001}},
        },
        {
            "augmentation.blur": "images of 32 px are not blurred",
            "augmentation.scale": NOTHING,
            "backbone.name": NOTHING,
            "backbone.stem": NOTHING,
            "optimizer.lr.start": f"{NOTHING}; the paper searches over 0.0005 and 0.005",
            "train.epochs": NOTHING,
            "train.batch_size": NOTHING,
        },
        (NARROW, LAYER),
    ),
    "imagenet": Published(
        f"arXiv 2511.08544v3, section 6 and appendix, and {README} (views)",
        {
            "method": {**HEAD, "out_dim": 64, "loss": {"lambda_": 0.05}},
            "backbone": {"name": "vit_small", "patch_size": 16, "drop_path": 0.1},
            "augmentation": {
                "first": {**COLORS, "scale": [0.3, 1.0], "blur": 0.5},
                "second": {**COLORS, "scale": [0.3, 1.0], "blur": 0.5},
                "local": {**COLORS, "scale": [0.05, 0.3], "blur": 0.5},
                "local_count": 6,
            },
            "optimizer": {
                "name": "adamw",
                "lr": {"start": 0.0005, "end": 0.0005 / 1000, "warmup": 10},
                "lr_per": None,
                "weight_decay": 0.05,
                "exempt_1d": False,
            },
            "train": {"epochs": 100, "batch_size": 512, "image_size": 224},
        },
        {"optimizer.exempt_1d": "biases and norms are not decayed, as is usual for transformers"},
        (NARROW, LAYER, "local views have 96 px, the paper's; the README has 98 for patches of 14 px"),
    ),
}
