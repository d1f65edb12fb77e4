"""Folders that hold a backbone as a run leaves it, without a run."""

from __future__ import annotations

import json

import torch
from torch import nn

import akssl_core
from akssl_core import ImageSpec, Preprocess
from akssl_core.backbone import WrappedBackbone
from akssl_core.config.registry import STAND_IN
from akssl_core.exporting.backbone_file import header
from akssl_core.rundir.files import tensor_bytes


def write_backbone(folder, name, *, size=32, channels=3, module=None, learned_from=(), **settings):
    """A folder with the backbone file of a run, random weights, and statistics that batch norms could have."""
    torch.manual_seed(0)
    image = ImageSpec(size, channels, (0.45,) * channels, (0.2,) * channels)
    table = {"name": name, **settings}
    if module is not None:
        backbone, table = WrappedBackbone(module, image), {"name": STAND_IN, "type": type(module).__name__}
    else:
        backbone = akssl_core.build("backbone", name, image, **settings)
    for part in backbone.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 2)
    folder.mkdir(exist_ok=True)
    data = tensor_bytes(backbone.export_state(), header("toy", table, backbone, Preprocess.of(image), learned_from))
    (folder / "backbone.safetensors").write_bytes(data)
    return folder


def write_run(folder, name, *, config=None, manifest=None, **settings):
    """The same with the files by which a folder is that of a run that has ended."""
    write_backbone(folder, name, **settings)
    (folder / "config.yaml").write_text(json.dumps(config or {"seed": 0}))
    (folder / "manifest.json").write_text(json.dumps({"status": "finished", "method": "toy", **(manifest or {})}))
    return folder
