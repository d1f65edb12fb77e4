"""The order of what follows a step, which rows and checkpoints rely on."""

from __future__ import annotations

import pytest

from akssl_core.running.launch import run
from akssl_core.training.callback import Callback
from akssl_core.training.checkpoint import Checkpoints
from akssl_core.training.rows import Rows
from akssl_core.training.watch import Probe, Vitals, Watch

PARTS = {
    "probe": (Probe, "scores"),
    "vitals": (Vitals, "measure"),
    "row": (Rows, "write"),
    "watch": (Watch, "look"),
    "save": (Checkpoints, "save"),
}


@pytest.fixture
def seen(toys, monkeypatch):
    """What happens in a run with the callback "own", in order."""
    events = []

    def watched(name, original):
        def call(*args, **more):
            events.append(name)
            return original(*args, **more)

        return call

    class Own(Callback):
        name = "own"

        def on_step(self, engine, terms):
            events.append(f"step {engine.now.step}")

        def on_epoch(self, engine):
            events.append("epoch")

    toys.registry.add(Own)
    for name, (owner, method) in PARTS.items():
        monkeypatch.setattr(owner, method, watched(name, getattr(owner, method)))
    return events


def test_callbacks_probe_vitals_row_watch_checkpoint(seen, toys, photos, tmp_path):
    steps = {"steps": 7, "log_every": 2, "checkpoint_every": 3}
    run(
        "toy", data=photos, plugins=toys, out=tmp_path / "run", callbacks=["own"], batch_size=16, epochs=3,
        train=steps, evaluate={"every": 2}, precision="fp32", report=False,
    )  # fmt: skip
    row, saved = ["row", "watch"], ["row", "watch", "save"]
    assert seen == [
        "step 1",
        "step 2", "vitals", *row,
        "step 3", "vitals", "epoch", *saved,
        "step 4", "vitals", *row,
        "step 5",
        "step 6", "vitals", "epoch", "probe", *saved,
        "step 7", "vitals", "epoch", "probe", *saved,
    ]  # fmt: skip
