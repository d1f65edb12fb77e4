"""A folder that timm loads by its path and transformers through timm: what its files say, and how it is proved."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..backbone import Backbone, Counterpart
from ..data import Preprocess
from ..rundir.files import tensor_bytes
from .backbone_file import BACKBONE_FORMAT, OWN, learned_from_of
from .formats import Content, Format, elsewhere, pictures_for

MARK = {"publisher": "akssl"}  # in the header, by which a folder is known that may be replaced
MODES = {1: "L", 3: "RGB"}  # of Pillow, by the number of channels; images of others are no pictures to timm
KEPT = ("method", "feature_size", "image", "preprocess", "torch", "sha256")  # of a backbone file's header


class Folder(Format):
    """`model.safetensors` of a folder: weights under timm's names, the rest of what akssl needs in the header."""

    name, packages = "timm", ("timm", "safetensors")

    def takes(self, backbone: Backbone) -> bool:
        """Whether timm builds this network from a name and arguments alone."""
        found = backbone.counterpart(self.name)
        return found is not None and found.config is not None

    def make(self, backbone: Backbone) -> Content:
        """The weights; transformers reads no file whose format is not "pt"."""
        state = _of(backbone).state
        return lambda metadata: tensor_bytes(state, {**metadata, **MARK, "format": "pt"})

    def snippet(self, backbone: Backbone, file: Path) -> str:
        """By timm alone, from pictures where they are such to Pillow."""
        assert backbone.preprocess is not None
        size, channels = backbone.preprocess.size, backbone.preprocess.channels
        lines = [
            "import timm, torch",
            f"model = timm.create_model({f'local-dir:{file.as_posix()}'!r}, pretrained=True).eval()",
        ]
        if channels not in MODES:
            shape = f"(N, {channels}, {size}, {size})"
            return "\n".join([*lines, f"features = model(images)  # float32 tensor {shape}, normalised"])
        lines += [
            "prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
            f"images = torch.stack([prepare(image.convert({MODES[channels]!r})) for image in images])",
            f"features = model(images)  # of Pillow images -> (N, {backbone.embed_dim})",
        ]
        return "\n".join(lines)

    def features(self, backbone: Backbone, file: Path, pictures: Tensor) -> Tensor:
        """The features (N, D) of pictures (N, C, H, W) uint8 by a fresh process that runs the snippet."""
        code, mode = self.snippet(backbone, file), MODES.get(pictures.shape[1])
        assert backbone.preprocess is not None
        if mode is None:
            return elsewhere(code, backbone.preprocess(pictures), as_array=False)
        made = "images = [Image.fromarray(one.permute(1, 2, 0).squeeze(2).numpy()) for one in images]"
        return elsewhere(f"from PIL import Image\n{made}\n{code}", pictures, as_array=False)


def config_of(backbone: Backbone) -> dict[str, Any]:
    """`config.json` as timm lays it out: the network, and how images are prepared for it."""
    prepared, found = backbone.preprocess, _of(backbone).config
    assert prepared is not None
    assert found is not None
    images = {
        "num_classes": 0,
        "input_size": [prepared.channels, prepared.size, prepared.size],
        "interpolation": "bilinear",
        "crop_pct": _share(prepared),
        "crop_mode": "center",
        "mean": list(prepared.mean),
        "std": list(prepared.std),
    }
    return {
        **found,
        "num_classes": 0,
        "num_features": backbone.embed_dim,
        "pretrained_cfg": {**images, **found["pretrained_cfg"]},
    }


def texts_of(backbone: Backbone, header: Mapping[str, str]) -> dict[str, str]:
    """The header of a published file: all that akssl needs to load it, and nothing of the folders of this machine.

    Nothing where timm calls the weights otherwise than we do.
    """
    if _of(backbone).state.keys() != backbone.export_state().keys():
        return {}
    shown = {"backbone": without_folders(json.loads(header["backbone"])), "learned_from": origins(header)}
    kept = {name: header[name] for name in KEPT if name in header}
    return {**kept, **{name: json.dumps(value) for name, value in shown.items()}, OWN: BACKBONE_FORMAT}


def origins(header: Mapping[str, str]) -> list[dict[str, str]]:
    """What a backbone has learned from, without the folders of this machine."""
    found: list[dict[str, str]] = without_folders(learned_from_of(header))
    return found


def without_folders(value: Any) -> Any:
    """The value with the last name alone of each absolute path in it."""
    if isinstance(value, Mapping):
        return {name: without_folders(one) for name, one in value.items()}
    if isinstance(value, list):
        return [without_folders(one) for one in value]
    return os.path.basename(value) if isinstance(value, str) and os.path.isabs(value) else value


def to_prove_with(backbone: Backbone) -> Tensor:
    """Pictures (N, C, H, W) uint8 that are as large as after the resize, so that two libraries crop the same pixels."""
    assert backbone.preprocess is not None
    side = backbone.preprocess.resize
    return pictures_for(backbone, (side, side + 2 * (side // 8)))


def _of(backbone: Backbone) -> Counterpart:
    found = backbone.counterpart(Folder.name)
    assert found is not None, "asked for after `takes`"
    return found


def _share(prepared: Preprocess) -> float:
    """The part of the resized side that the crop has; timm divides by it and rounds down."""
    exact = prepared.size / prepared.resize
    return exact if math.floor(prepared.size / exact) == prepared.resize else prepared.size / (prepared.resize + 0.5)
