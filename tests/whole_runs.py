"""A small run in words and as keywords, and how tests compare the folders of whole runs."""

from __future__ import annotations

import sys

import torch

from akssl_core.rundir.folder import read_tensors

SETTINGS = {
    "backbone": {"name": "resnet_tiny", "widths": [4, 4, 8, 8]}, "image_size": 16, "epochs": 2, "batch_size": 16,
    "precision": "fp32", "device": "cpu", "data": {"name": "shapes", "size": 64, "test_size": 32}, "report": False,
}  # fmt: skip
SMALL = (
    "--backbone", "resnet_tiny", "--image-size", "16", "--batch-size", "16", "--precision", "fp32", "--no-report",
    "--device", "cpu", "--set", "data.size=64", "--set", "data.test_size=32", "--set", "backbone.widths=[4,4,8,8]",
)  # fmt: skip
AKSSL = (sys.executable, "-m", "akssl_core")


class Stop(BaseException):
    """Stands for a kill: nothing may catch it and tidy up."""


def state(run_dir):
    """All tensors of a run's last checkpoint."""
    folder = sorted((run_dir / "checkpoints").iterdir())[-1]
    model, _ = read_tensors(folder / "model.safetensors")
    optimizer, _ = read_tensors(folder / "optimizer.safetensors")
    return {**model, **{f"optimizer {k}": v for k, v in optimizer.items()}}


def same(first, second):
    a, b = state(first), state(second)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def losses(result):
    return [(row["step"], row["loss"]) for row in result.history]


def timeless(result):
    """The rows of a run without what tells time."""
    return [
        {k: v for k, v in row.items() if k not in ("images_per_s", "seconds") and not k.startswith("time_")}
        for row in result.history
    ]
