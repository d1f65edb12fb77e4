"""The product of a run as a file, `backbone.safetensors`, and a backbone from such a file.

The tensors are a plain state dict under the key names of the library the backbone comes from; the header says
how to build the network and how to feed it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .backbone import Backbone, WrappedBackbone
from .config import BackboneRef, Ref
from .data import ImageSpec, Preprocess
from .errors import ConfigError, RunDirError
from .plugins import Plugins, installed
from .registry import STAND_IN
from .rundir import RunDir, read_tensors

FORMAT = "akssl-backbone-1"
FILE = "backbone.safetensors"


def header(method: str, backbone: Mapping[str, Any], encoder: Backbone, preprocess: Preprocess) -> dict[str, str]:
    """What a stranger needs to use the weights: every value is a text, nested ones are JSON."""
    image = encoder.image
    return {
        "format": FORMAT,
        "method": method,
        "backbone": json.dumps(dict(backbone)),
        "feature_size": str(encoder.embed_dim),
        "image": json.dumps({"size": image.size, "channels": image.channels, "mean": image.mean, "std": image.std}),
        "preprocess": json.dumps(preprocess.to_dict()),
        "torch": str(torch.__version__),
        "notes": json.dumps(encoder.notes),
    }


def export_backbone(
    run_dir: RunDir, method: str, backbone: Mapping[str, Any], encoder: Backbone, preprocess: Preprocess
) -> Path:
    """Write `backbone.safetensors` into a run folder."""
    return run_dir.write_tensors(FILE, encoder.export_state(), header(method, backbone, encoder, preprocess))


def file_of(path: Path | str) -> Path:
    """The file that a run folder, or a path to the file itself, means."""
    return Path(path) / FILE if Path(path).is_dir() else Path(path)


def read_product(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights and the header.

    Raises:
        RunDirError: there is no such file, or it is not one of ours.
    """
    if not file.is_file():
        hint = " The run has not finished yet." if (file.parent / "manifest.json").is_file() else ""
        raise RunDirError(f"{file} does not exist.{hint}")
    tensors, metadata = read_tensors(file)
    if metadata.get("format") != FORMAT:
        raise RunDirError(f"{file} was not written by akssl: its header lacks format = {FORMAT}.")
    return tensors, metadata


def load_backbone(path: Path | str, *, module: nn.Module | None = None, plugins: Plugins | None = None) -> Backbone:
    """A trained backbone in eval mode, from a run folder or a `.safetensors` file.

    It maps normalised float images (N, C, H, W) to features (N, D); its `preprocess` turns PIL images, uint8
    tensors or arrays into such images. `module` is the network to fill when the run trained one of your own.

    Raises:
        RunDirError: there is no such file, or it is not one of ours.
        ConfigError: the run trained your own module and none was given, or its weights do not fit.
    """
    file = file_of(path)
    tensors, metadata = read_product(file)
    image = json.loads(metadata["image"])
    spec = ImageSpec(image["size"], image["channels"], tuple(image["mean"]), tuple(image["std"]))
    with torch.random.fork_rng(devices=[]):
        backbone = _empty(json.loads(metadata["backbone"]), spec, module, plugins or installed())
    target: nn.Module = backbone.module if isinstance(backbone, WrappedBackbone) else backbone
    try:
        target.load_state_dict(tensors)
    except RuntimeError as error:
        raise ConfigError(f"{file}: the weights do not fit the module that was given: {error}") from error
    backbone.preprocess = Preprocess.from_dict(json.loads(metadata["preprocess"]))
    return backbone.eval()


def _empty(settings: Mapping[str, Any], image: ImageSpec, module: nn.Module | None, plugins: Plugins) -> Backbone:
    """The network without its weights."""
    if module is not None:
        return module if isinstance(module, Backbone) else WrappedBackbone(module, image)
    if settings["name"] == STAND_IN:
        raise ConfigError(
            f"this backbone is your own {settings['type']}: load_backbone(path, module={settings['type']}(...))."
        )
    ref: Ref = BackboneRef.model_validate(dict(settings), context={"registry": plugins})
    result: Backbone = ref.build(image)
    return result
