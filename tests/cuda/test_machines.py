"""Runs on a machine with one GPU, played by the null device: which device they take, and what they leave of it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from null_device import environment, missing, run

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

SMALL = (
    "run", "simsiam", "--backbone", "resnet_tiny", "--set", "backbone.widths=[4,4,8,8]", "--image-size", "16",
    "--epochs", "1", "--batch-size", "16", "--set", "data.size=64", "--set", "data.test_size=32", "--no-report",
    "--out", "run",
)  # fmt: skip


def akssl(folder, *more):
    """The command on a machine with one GPU: exit code and what it says."""
    command = [sys.executable, "-m", "akssl_core", *SMALL, *more]
    done = subprocess.run(command, cwd=folder, env=environment(1), capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr


AGAIN = pytest.mark.slow  # the same setting, said in another way


@pytest.mark.parametrize("where", [("--device", "cpu"), pytest.param(("--set", "train.device=cpu"), marks=AGAIN)])
def test_two_processes_on_the_cpu_leave_the_gpu_alone(tmp_path, where):
    code, err = akssl(tmp_path, "--devices", "2", *where)
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["hardware"]["device"] == "cpu"


@pytest.mark.parametrize("where", [(), pytest.param(("--device", "cuda"), marks=AGAIN)])
def test_more_processes_than_gpus_are_one_line(tmp_path, where):
    code, err = akssl(tmp_path, "--devices", "2", *where)
    assert code == 2
    (line,) = err.strip().splitlines()
    assert line.startswith("akssl: train.devices: 2 processes on this machine, where torch sees 1 CUDA device(s);")
    assert not (tmp_path / "run").exists()


STATE = """
import json
import sys
import torch
import akssl_core

settings = json.load(sys.stdin)
torch.cuda.manual_seed(5)
torch.manual_seed(6)
before = torch.cuda.get_rng_state(), torch.get_rng_state()
akssl_core.explain("byol", **settings)
akssl_core.run("byol", out="run", **settings)
after = torch.cuda.get_rng_state(), torch.get_rng_state()
print(json.dumps([torch.equal(*pair) for pair in zip(before, after)]))
"""


def test_a_run_leaves_the_callers_random_numbers_on_the_gpu_as_they_were(tmp_path):
    settings = {
        "backbone": {"name": "vit_tiny", "patch_size": 8}, "image_size": 16, "epochs": 1, "batch_size": 16,
        "data": {"name": "shapes", "size": 64, "test_size": 32}, "report": False,
    }  # fmt: skip
    assert json.loads(run("-c", STATE, stdin=json.dumps(settings), folder=tmp_path)) == [True, True]
