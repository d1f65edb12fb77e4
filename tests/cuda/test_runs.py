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


WHOLE = """
import json
import sys
import warnings

import torch
import akssl_core

warnings.simplefilter("ignore")  # of a run this short
settings = json.load(sys.stdin)
first = akssl_core.run("byol", out="run", **settings)
longer = akssl_core.resume("run", epochs=3)
embedded = akssl_core.embed("run")
judged = akssl_core.evaluate("run", "finetune", labels=0.5, seeds=2, epochs=1)
exported = akssl_core.export("run", "safetensors")
print(json.dumps({
    "hardware": first.manifest.hardware,
    "steps": [row["step"] for row in longer.history],
    "embedded": list(embedded.features.shape),
    "exported": exported.path.name,
    "judged": judged.scores,
}))
"""


def rows(folder):
    """Steps that have a row."""
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def akssl(folder, *arguments, devices=1):
    return run("-m", "akssl_core", *arguments, folder=folder, devices=devices)


@pytest.mark.parametrize("precision", ["auto", pytest.param("fp16", marks=pytest.mark.slow)])
def test_a_run_goes_from_its_first_step_to_its_export(precision, tmp_path):
    found = json.loads(run("-c", WHOLE, stdin=json.dumps({**SETTINGS, "precision": precision}), folder=tmp_path))
    assert found["hardware"]["device"] == "cuda"
    assert found["hardware"]["precision"] == "bf16" if precision == "auto" else precision
    assert found["steps"] == [4, 8, 12]
    print(found)


SMALL = (
    "--backbone", "vit_tiny", "--set", "backbone.patch_size=8", "--image-size", "16", "--batch-size", "16",
    "--set", "data.size=64", "--set", "data.test_size=32", "--no-report", "--epochs", "1",
)  # fmt: skip


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_on_a_device_each(strategy, tmp_path):
    akssl(
        tmp_path,
        "run",
        "byol",
        "--devices",
        "2",
        *SMALL,
        "--out",
        "two",
        "--set",
        f"train.strategy={strategy}",
        devices=2,
    )
    assert rows(tmp_path / "two") == [4]
