"""That benchmarks run: on a few tiny batches, whose figures mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import busy  # noqa: E402
import results  # noqa: E402


@pytest.mark.filterwarnings("ignore")
def test_busy_has_a_rate_for_each_load_and_leaves_no_process_behind(tmp_path, monkeypatch):
    started = []

    class Noted(subprocess.Popen):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            started.append(self)

    monkeypatch.setattr(busy.subprocess, "Popen", Noted)
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(busy, "find_spec", lambda name: None)
    small = ["simsiam", "--batch", "4", "--steps", "1", "--repeats", "1", "--precision", "fp32", "--waiting", "passive"]
    monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / "busy.py"), *small])
    busy.main()
    rows = json.loads((tmp_path / "busy.json").read_text())["rows"]
    assert [row["threads"].partition(" ")[0] for row in rows] == ["chosen", "all"]
    for row in rows:
        assert row["waiting"] == "passive"
        assert all(row[name] > 0 for name in ("images/s", "beside 1", "beside 2", "kept beside 1", "kept beside 2"))
    assert len(started) == 1 + 1 + 2  # a side, and busy ones beside it
    assert all(process.poll() is not None for process in started)
