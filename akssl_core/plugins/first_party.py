"""Which of our own distributions provides what, and how to install it: for a plugin that is not there."""

from __future__ import annotations

from collections.abc import Mapping

PACKAGES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "akssl-plugin-barlowtwins": {"method": ("barlowtwins",), "loss": ("barlowtwins",)},
    "akssl-plugin-byol": {"method": ("byol",), "loss": ("byol",)},
    "akssl-plugin-dino": {"method": ("dino",), "loss": ("dino",)},
    "akssl-plugin-dinov2": {"method": ("dinov2",), "loss": ("dinov2", "dinov2_patches", "gram", "koleo")},
    "akssl-plugin-distill": {
        "method": ("distill",),
        "loss": ("distill_feature", "distill_feature_tokens", "distill_similarity", "distill_tokens"),
    },
    "akssl-plugin-hf-datasets": {"data": ("hf",)},
    "akssl-plugin-ibot": {"method": ("ibot",), "loss": ("ibot", "ibot_patch")},
    "akssl-plugin-ijepa": {"method": ("ijepa",), "loss": ("ijepa",)},
    "akssl-plugin-lejepa": {"method": ("lejepa",), "loss": ("lejepa",)},
    "akssl-plugin-mae": {"method": ("mae",), "loss": ("mae",)},
    "akssl-plugin-moco": {"method": ("mocov2", "mocov3"), "loss": ("infonce_mocov3", "infonce_queue")},
    "akssl-plugin-nnclr": {"method": ("nnclr",), "loss": ("nnclr",)},
    "akssl-plugin-scientific": {"decoder": ("dicom", "tiff")},
    "akssl-plugin-simclr": {"method": ("simclr", "simclrv2"), "loss": ("dcl", "dclw", "ntxent")},
    "akssl-plugin-simsiam": {"method": ("simsiam",), "loss": ("negative_cosine",)},
    "akssl-plugin-swav": {"method": ("swav",), "loss": ("swav",)},
    "akssl-plugin-tensorboard": {"callback": ("tensorboard",)},
    "akssl-plugin-timm": {"backbone": ("timm",)},
    "akssl-plugin-vicreg": {"method": ("vicreg",), "loss": ("vicreg",)},
    "akssl-plugin-wandb": {"callback": ("wandb",)},
}  # kind -> names, or what stands before the slash of an open family ("timm/vit_small_patch16_224")

PROVIDERS = {
    kind: {name: package for package, kinds in PACKAGES.items() for name in kinds.get(kind, ())}
    for kind in ("method", "loss", "backbone", "callback", "data", "decoder")
}
METHODS, LOSSES = PROVIDERS["method"], PROVIDERS["loss"]
TAUGHT = ("distill",)  # who learns from another network, which a user must name
ALONE = tuple(name for name in METHODS if name not in TAUGHT)
TO_BEGIN = METHODS["simsiam"]  # for who has no plugin yet
TO_ADAPT = ("simclr", "mocov2", "barlowtwins", "byol", "simsiam", "swav", "dino")
TO_ADAPT_TOKENS = ("dino", "mocov3", *TO_ADAPT)
"""With which to go on from weights whose own method is unknown, the first choice first: convolutions, transformers."""
ON_INDEX = False
"""Whether pip finds our distributions by name; what messages and pages say of installing follows (docs/release.md)."""
IN_A_CLONE = " (in a clone of the repository)"


def install(*distributions: str, newer: bool = False) -> str:
    """The command that installs distributions: those of strangers by name, ours from a clone until `ON_INDEX`."""
    ours = {} if ON_INDEX else {"akssl-core": ".", **{name: f"./plugins/{name}" for name in PACKAGES}}
    words = ["-U"] * newer + [ours.get(name, name) for name in distributions]
    return f"pip install {' '.join(words)}{IN_A_CLONE if ours.keys() & set(distributions) else ''}"
