"""Run folders that version 0.1.0 wrote before the core got its floor plan can be read, resumed, judged and exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import akssl_core

WRITTEN = Path(__file__).parent / "written_by_0.1"


@pytest.fixture
def old(tmp_path):
    """Copies of a finished run and of one that was killed."""
    shutil.copytree(WRITTEN, tmp_path / "old")
    return tmp_path / "old"


def test_a_finished_run_is_read(old):
    result = akssl_core.resume(old / "finished")
    assert result.verdict
    assert result.history[-1]["step"] == 12
    assert (
        result.metrics["knn_top1"] == json.loads((old / "finished" / "manifest.json").read_text())["final"]["knn_top1"]
    )
    assert (old / "finished" / "report.html").is_file()


def test_a_finished_run_is_trained_further(old):
    with pytest.warns(UserWarning, match="train.epochs: 2 -> 3"):
        result = akssl_core.resume(old / "finished", epochs=3)
    assert result.history[-1]["step"] == 18


def test_a_killed_run_goes_on_from_its_checkpoint(old):
    with pytest.warns(UserWarning, match="train.steps: null -> 8"):
        result = akssl_core.resume(old / "stopped", train={"steps": 8})
    assert [row["step"] for row in result.history] == list(range(1, 9))
    manifest = json.loads((old / "stopped" / "manifest.json").read_text())
    assert manifest["resumed_at"] == 4
    assert manifest["status"] in ("finished", "collapsed")


def test_a_finished_run_is_judged_embedded_exported_and_loaded(old):
    run = old / "finished"
    akssl_core.evaluate(run, protocol="linear", seeds=1)
    kept = json.loads((run / "evaluation.json").read_text())["results"]
    assert set(kept) == {"knn", "linear"}  # the old entry stays
    features = akssl_core.embed(run).features
    assert features.shape == (96, 16)
    exported = akssl_core.export(run, to="safetensors")
    assert exported.path.is_file()
    backbone = akssl_core.load_backbone(run)
    assert torch.isfinite(backbone(torch.zeros(2, 3, 16, 16))).all()


def test_old_runs_are_reported_compared_and_examined(old, here):
    for arguments in (("report", old / "finished"), ("compare", old / "finished", old / "stopped")):
        code, out, err = here(*map(str, arguments))
        assert (code, err) == (0, "")
        assert "simsiam" in out or "report.html" in out
    for name in ("finished", "stopped"):
        code, out, err = here("doctor", str(old / name))
        assert code in (0, 1), err
        assert name in out
