"""Whole runs on CUDA devices: trained, stopped, gone on with, judged, exported; in one process and in two."""

from __future__ import annotations

import json

import pytest
from null_device import missing, run

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

SETTINGS = {
    "backbone": {"name": "vit_tiny", "patch_size": 8},
    "data": {"name": "shapes", "size": 64, "test_size": 32},
    "image_size": 16,
    "batch_size": 16,
    "epochs": 2,
    "report": False,
}


@pytest.fixture(autouse=True)
def fresh_memory(monkeypatch):
    """Each tensor has memory of its own, which is zero: so is what kernels would have computed, indices among it."""
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")


ENDED = "collapsed"  # all features are zero
WHOLE = """
import json
import sys
import warnings

import akssl_core

warnings.simplefilter("ignore")  # of a run this short
settings = json.load(sys.stdin)
first = akssl_core.run("byol", out="run", **settings)
longer = akssl_core.resume("run", epochs=3)
judged = akssl_core.evaluate("run", "finetune", labels=0.5, seeds=2, epochs=1)
print(json.dumps({
    "before": [row["step"] for row in first.history],
    "after": [row["step"] for row in longer.history],
    "embedded": list(akssl_core.embed("run").features.shape),
    "judged": [score.system for score in judged.scores],
    "exported": akssl_core.export("run", "safetensors").path.name,
}))
"""


@pytest.mark.parametrize("precision", ["auto", pytest.param("fp16", marks=pytest.mark.slow)])  # the same again
def test_a_run_is_trained_gone_on_with_judged_and_exported(precision, tmp_path):
    found = json.loads(run("-c", WHOLE, stdin=json.dumps({**SETTINGS, "precision": precision}), folder=tmp_path))
    assert found["before"] == [4, 8]
    assert found["after"] == [4, 8, 12]
    assert found["embedded"] == [64, 192]
    assert found["judged"] == ["trained", "random init", "raw pixels"]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == ENDED
    hardware = {"device": "cuda", "name": "Null H100", "precision": "bf16" if precision == "auto" else precision}
    assert hardware.items() <= manifest["hardware"].items()
    assert (tmp_path / "run" / found["exported"]).is_file()


ASKED = (
    "--backbone", "vit_tiny", "--set", "backbone.patch_size=8", "--image-size", "16", "--batch-size", "16",
    "--set", "data.size=64", "--set", "data.test_size=32", "--no-report", "--epochs", "1", "--out", "run",
)  # fmt: skip


AGAIN = pytest.mark.slow  # launcher, devices and NCCL are those of fsdp


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=AGAIN), "fsdp"])
def test_two_processes_train_on_a_device_each(strategy, tmp_path):
    command = ["run", "byol", "--devices", "2", "--set", f"train.strategy={strategy}", *ASKED]
    run("-m", "akssl_core", *command, folder=tmp_path, devices=2)
    history = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history] == [4]
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == ENDED
