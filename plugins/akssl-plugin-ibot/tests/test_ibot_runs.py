"""Whole runs of iBOT: which layers wait, what is logged and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import akssl_core
from akssl_core import Callback, Schema
from akssl_core.testing import train

HEADS = {"hidden_dim": 16, "bottleneck_dim": 8, "out_dim": 12}


class Watch(Callback):
    """Remembers the heads at the start and after each step."""

    name = "watch"

    def __init__(self) -> None:
        super().__init__(Schema())
        self.rows: list[dict[str, Tensor]] = []

    def on_start(self, engine: Any) -> None:
        self.rows.append({name: p.detach().clone() for name, p in engine.method.heads.named_parameters()})

    def on_step(self, engine: Any, terms: Any) -> None:
        self.on_start(engine)


def images() -> Tensor:
    return torch.randint(0, 256, (64, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


RUN: dict[str, Any] = {
    "backbone": {"name": "vit_micro", "patch_size": 4, "width": 16, "depth": 2, "heads": 2},
    "data": images(),
    "batch_size": 16,
    "precision": "fp32",
    "device": "cpu",
}


def test_last_layers_are_frozen_in_the_first_epoch_and_nothing_else_is() -> None:
    watch = Watch()
    options = {
        **HEADS,
        "freeze_last_layer_epochs": 1,
        "norm_last_layer": False,
        "shared_head": False,
        "patch_weight": 1,
    }
    train(
        "ibot",
        [watch],
        **RUN,
        options=options,
        epochs=2,
        optimizer={"name": "adamw", "lr": {"start": 0.01, "warmup": 0}},
    )
    start, *after = watch.rows
    assert len(after) == 8
    assert sum(".last." in name for name in start) == 4
    for step, row in enumerate(after):
        for name, value in row.items():
            assert torch.equal(value, start[name]) == (".last." in name and step < 4), (step, name)


def test_a_run_logs_its_terms_and_keeps_its_pictures(tmp_path: Path) -> None:
    data = {"name": "shapes", "size": 64, "test_size": 32}
    result = akssl_core.run(
        method="ibot",
        out=tmp_path / "run",
        epochs=2,
        options=HEADS,
        image_size=16,
        **{**RUN, "data": data, "report": False},
    )
    terms = {
        "cls_loss",
        "patch_loss",
        "teacher_entropy",
        "patch_entropy",
        "patch_agreement",
        "patch_std",
        "z_std_ratio",
    }
    assert terms <= result.history[-1].keys()
    assert (tmp_path / "run" / "samples.safetensors").exists()
    assert {"knn_top1", "knn_raw_pixels"} <= result.metrics.keys()
