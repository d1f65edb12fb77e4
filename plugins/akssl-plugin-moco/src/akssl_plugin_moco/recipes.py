"""Settings under which MoCo is known to work: a small budget, CIFAR and ImageNet."""

from __future__ import annotations

from typing import Any

# Few images and minutes: narrow heads with batch norms, a key encoder that follows fast and a short queue that it
# renews. Colours change strongly and brightness little: under strong changes of brightness an untrained network sees
# no likeness between two views of an image, and a short run ends before it has found any.
SMALL_VIEWS: dict[str, Any] = {
    "name": "pair",
    "scale": [0.3, 1.0],
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.8,
    "hue": 0.2,
    "grayscale": 0.5,
}

V2_DEFAULT: dict[str, Any] = {
    "method": {
        "hidden_dim": 128,
        "out_dim": 128,
        "head_batch_norm": True,
        "projection_batch_norm": True,
        "queue_size": 1024,
        "momentum": 0.97,
        "symmetric": False,
        "bn_splits": 1,
        "loss": {"name": "infonce_queue", "temperature": 0.2},
    },
    "augmentation": SMALL_VIEWS,
    "optimizer": {"name": "sgd", "lr": {"start": 0.06}, "lr_per": 256, "momentum": 0.9, "weight_decay": 5e-4},
    "train": {"batch_size": 128},
}

V3_DEFAULT: dict[str, Any] = {
    "method": {
        "hidden_dim": 512,
        "out_dim": 128,
        "momentum": {"start": 0.9, "end": 1.0},
        "loss": {"name": "infonce_mocov3", "temperature": 0.2},
    },
    "augmentation": SMALL_VIEWS,
    "optimizer": {"name": "sgd", "lr": {"start": 0.3}, "lr_per": 256, "momentum": 0.9, "weight_decay": 5e-4},
    "train": {"batch_size": 128},
}

# Section 2 of arXiv 2003.04297: SimCLR's views with weaker jitter; blur at 224 px alone.
V2_VIEWS: dict[str, Any] = {
    "name": "pair",
    "scale": [0.2, 1.0],
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "grayscale": 0.2,
}

# The authors' CIFAR-10 demo: a wide range of crops, a short queue, a low temperature.
V2_CIFAR: dict[str, Any] = {
    "method": {
        "queue_size": 4096,
        "momentum": 0.99,
        "bn_splits": 8,
        "loss": {"name": "infonce_queue", "temperature": 0.1},
    },
    "backbone": {"name": "resnet18", "stem": "cifar"},
    "augmentation": {**V2_VIEWS, "scale": [0.08, 1.0], "blur": 0.0},
    "optimizer": {
        "name": "sgd",
        "lr": {"start": 0.03, "per": "epoch"},
        "lr_per": 256,
        "momentum": 0.9,
        "weight_decay": 5e-4,
    },
    "train": {"epochs": 800, "batch_size": 512},
}

# Arxiv 2003.04297: ResNet-50, 200 epochs on 8 GPUs, no warm-up, weight decay on every parameter.
V2_IMAGENET: dict[str, Any] = {
    "method": {
        "hidden_dim": 2048,
        "out_dim": 128,
        "queue_size": 65536,
        "momentum": 0.999,
        "bn_splits": 8,
        "loss": {"name": "infonce_queue", "temperature": 0.2},
    },
    "backbone": {"name": "resnet50"},
    "augmentation": {**V2_VIEWS, "blur": 0.5},
    "optimizer": {
        "name": "sgd",
        "lr": {"start": 0.03, "per": "epoch"},
        "lr_per": 256,
        "momentum": 0.9,
        "weight_decay": 1e-4,
    },
    "train": {"epochs": 200, "batch_size": 256, "image_size": 224},
}


def _v3_views(smallest: float, first_blur: float, second_blur: float, **crop: Any) -> dict[str, Any]:
    """BYOL's unlike views (arXiv 2104.02057, section 3), with the crop's smallest area and the blur of each."""
    colors = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "grayscale": 0.2}
    shared = {"scale": [smallest, 1.0], **crop, **colors}
    return {
        "name": "asymmetric",
        "first": {**shared, "blur": first_blur, "solarize": 0.0},
        "second": {**shared, "blur": second_blur, "solarize": 0.2},
    }


V3_METHOD: dict[str, Any] = {"hidden_dim": 4096, "out_dim": 256, "momentum": {"start": 0.99, "end": 1.0}}

# Solo-learn's recipe. Its LARS takes the smaller of learning rate and trust ratio, which is by the sum of norms.
V3_CIFAR: dict[str, Any] = {
    "method": {**V3_METHOD, "loss": {"name": "infonce_mocov3", "temperature": 0.2}},
    "backbone": {"name": "resnet18", "stem": "cifar"},
    "augmentation": _v3_views(0.08, 0.0, 0.0, interpolation="bicubic"),
    "optimizer": {
        "name": "lars",
        "lr": {"start": 0.3, "warmup": 10, "warmup_from": 3e-5},
        "lr_per": 256,
        "eta": 0.02,
        "denominator": "sum_of_norms",
        "clip_ratio": True,
        "momentum": 0.9,
        "weight_decay": 1e-6,
    },
    "train": {"epochs": 1000, "batch_size": 256},
}

# The authors' ResNet-50 of 300 epochs.
V3_IMAGENET: dict[str, Any] = {
    "method": {**V3_METHOD, "head": "resnet", "loss": {"name": "infonce_mocov3", "temperature": 1.0}},
    "backbone": {"name": "resnet50", "zero_init_residual": True},
    "augmentation": _v3_views(0.2, 1.0, 0.1),
    "optimizer": {
        "name": "lars",
        "lr": {"start": 0.3, "warmup": 10},
        "lr_per": 256,
        "momentum": 0.9,
        "weight_decay": 1e-6,
    },
    "train": {"epochs": 300, "batch_size": 4096, "image_size": 224},
}

# The authors' ViT-S: fixed positions, 12 heads, weight decay on every parameter.
V3_IMAGENET_VIT: dict[str, Any] = {
    "method": {
        **V3_METHOD,
        "head": "vit",
        "freeze_patch_projection": True,
        "loss": {"name": "infonce_mocov3", "temperature": 0.2},
    },
    "backbone": {"name": "vit_small", "patch_size": 16, "positions": "sincos", "heads": 12, "init": "xavier"},
    "augmentation": _v3_views(0.08, 1.0, 0.1),
    "optimizer": {
        "name": "adamw",
        "lr": {"start": 1.5e-4, "warmup": 40},
        "lr_per": 256,
        "weight_decay": 0.1,
        "exempt_1d": False,
    },
    "train": {"epochs": 300, "batch_size": 4096, "image_size": 224},
}

V2_RECIPES = {"default": V2_DEFAULT, "cifar": V2_CIFAR, "imagenet": V2_IMAGENET}
V3_RECIPES = {
    "default": V3_DEFAULT,
    "cifar": V3_CIFAR,
    "imagenet": V3_IMAGENET,
    "imagenet_vit": V3_IMAGENET_VIT,
}
