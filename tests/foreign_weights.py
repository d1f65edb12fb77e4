"""Weights under key names of libraries that the tests do not need, from lists of names and shapes.

`python tests/foreign_weights.py` makes the lists again, with transformers and timm installed: each is of a small
network of that library, filled by `filled`, and holds the first values of its features of `IMAGES`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

FILES = {
    "core": Path(__file__).parent / "backbone" / "foreign_keys.json",
    "timm": Path(__file__).parents[1] / "plugins" / "akssl-plugin-timm" / "tests" / "foreign_keys.json",
}


def images(size):
    """(2, 3, size, size)."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def filled(shapes):
    """Random tensors of these shapes by name, the same wherever they are made."""
    draw, tensors = torch.Generator().manual_seed(0), {}
    for name in sorted(shapes):
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(0)
        else:
            tensors[name] = 0.05 * torch.randn(shapes[name], generator=draw) + name.endswith("running_var")
    return tensors


def expanded(listed, depth=12):
    """All names of a list with their shapes; it has those of the first of `depth` blocks, marked by {}."""
    return {
        name.replace("{}", str(i)): [int(side) for side in shape.split()]
        for name, shape in listed.items()
        for i in range(depth if "{}" in name else 1)
    }


def _record(network, size):
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    network.load_state_dict(filled(shapes))
    body = next((getattr(network, part) for part in ("vit", "dinov2") if hasattr(network, part)), network).eval()
    with torch.no_grad():
        out = body(images(size)).last_hidden_state
    features = out[:, 0] if out.ndim == 3 else out.mean((2, 3))
    listed = shapes
    if out.ndim == 3:  # all blocks are alike
        first = {name: shape for name, shape in shapes.items() if not re.search(r"layers?\.[1-9]", name)}
        listed = {re.sub(r"(layers?\.)0(?=\.)", r"\1{}", name): shape for name, shape in first.items()}
    return {
        "size": size,
        "keys": {name: " ".join(map(str, shape)) for name, shape in listed.items()},
        "features": [round(value, 6) for value in features[0, :12].tolist()],
    }


def _make():
    import transformers as t

    vit = dict(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, image_size=64)
    vit |= {"patch_size": 16, "layer_norm_eps": 1e-6}
    small = vit | {
        "hidden_size": 384,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        "patch_size": 14,
        "image_size": 56,
    }
    core = {
        "ViTModel": (t.ViTModel(t.ViTConfig(**vit)), 64, "vit_tiny", {"patch_size": 16}),
        "ViTForImageClassification": (
            t.ViTForImageClassification(t.ViTConfig(**vit)),
            64,
            "vit_tiny",
            {"patch_size": 16},
        ),
        "ResNetModel": (
            t.ResNetModel(t.ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic")),
            96,
            "resnet18",
            {},
        ),
    }
    timm = {
        "Dinov2Model": (t.Dinov2Model(t.Dinov2Config(**small)), 56, "timm/vit_small_patch14_dinov2", {}),
        "Dinov2ForImageClassification": (
            t.Dinov2ForImageClassification(t.Dinov2Config(**small)),
            56,
            "timm/vit_small_patch14_dinov2",
            {},
        ),
        "Dinov2WithRegistersModel": (
            t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**small, num_register_tokens=4)),
            56,
            "timm/vit_small_patch14_reg4_dinov2",
            {},
        ),
        "DINOv3ViTModel": (
            t.DINOv3ViTModel(
                t.DINOv3ViTConfig(
                    **small | {"patch_size": 16, "image_size": 64, "layer_norm_eps": 1e-5}, num_register_tokens=4
                )
            ),
            64,
            "timm/vit_small_patch16_dinov3_qkvb",
            {"pool": "token"},
        ),
    }
    for place, networks in (("core", core), ("timm", timm)):
        table = {
            f"transformers {t.__version__} {title}": {"backbone": name, "settings": settings, **_record(network, size)}
            for title, (network, size, name, settings) in networks.items()
        }
        FILES[place].write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    _make()
