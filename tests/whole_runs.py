"""How tests compare the folders of whole runs."""

from __future__ import annotations

import torch

from akssl_core.rundir.folder import read_tensors


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
