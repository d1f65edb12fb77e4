"""A whole run on two processes: one of them probes, writes and speaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys

SMALL = (
    "--backbone", "resnet_tiny", "--image-size", "16", "--epochs", "2", "--batch-size", "16", "--precision", "fp32",
    "--set", "data.size=64", "--set", "data.test_size=32", "--set", "backbone.widths=[4,4,8,8]",
)  # fmt: skip


def test_two_processes_train_one_run(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "akssl_core", "run", "simsiam", "--devices", "2", *SMALL, "--out", "RUN"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Verdict on collapse") == 1
    manifest = json.loads((tmp_path / "RUN" / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    rows = [json.loads(line) for line in (tmp_path / "RUN" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 8]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["RUN"]
