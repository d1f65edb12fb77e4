"""Which of our own distributions provides what, so that a missing plugin can be named without being there."""

from __future__ import annotations

METHODS = {
    "barlowtwins": "akssl-plugin-barlowtwins",
    "byol": "akssl-plugin-byol",
    "dino": "akssl-plugin-dino",
    "mocov2": "akssl-plugin-moco",
    "mocov3": "akssl-plugin-moco",
    "simclr": "akssl-plugin-simclr",
    "simclrv2": "akssl-plugin-simclr",
    "simsiam": "akssl-plugin-simsiam",
    "swav": "akssl-plugin-swav",
}

LOSSES = {
    "barlowtwins": "akssl-plugin-barlowtwins",
    "byol": "akssl-plugin-byol",
    "dino": "akssl-plugin-dino",
    "infonce_mocov3": "akssl-plugin-moco",
    "infonce_queue": "akssl-plugin-moco",
    "negative_cosine": "akssl-plugin-simsiam",
    "ntxent": "akssl-plugin-simclr",
    "swav": "akssl-plugin-swav",
}

OTHERS = {
    "backbone": {"timm": "akssl-plugin-timm"},
    "callback": {"tensorboard": "akssl-plugin-tensorboard", "wandb": "akssl-plugin-wandb"},
    "data": {"hf": "akssl-plugin-hf-datasets"},
}  # a name, or what stands before the slash of an open family ("timm/vit_small_patch16_224")

PROVIDERS = {"method": METHODS, "loss": LOSSES, **OTHERS}
