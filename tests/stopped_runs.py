"""What the tests of stopped runs share: settings of a small run, and what it has kept."""

from __future__ import annotations

from akssl_core.rundir.folder import RunDir, read_tensors

SETTINGS = {
    "epochs": 3,
    "precision": "fp32",
    "batch_size": 16,
    "report": False,
    "options": {"noise": 0.1},
    "train": {"checkpoint_every": 2, "log_every": 1},
}


def state(run_dir):
    folder = RunDir.open(run_dir)
    last = folder.checkpoints()[-1]
    tensors = [read_tensors(file)[0] for file in (last / "model.safetensors", last / "optimizer.safetensors")]
    rows = [(row["step"], row["loss"]) for row in folder.history]
    return [last.name, rows, {name: t.tolist() for part in tensors for name, t in part.items()}]


def kept(run_dir):
    folder = RunDir.open(run_dir)
    checkpoint, problems = folder.latest()
    assert problems == []
    return checkpoint.state.step, folder.history[-1]["step"]
