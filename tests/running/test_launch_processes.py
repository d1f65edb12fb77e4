"""Whole runs on two processes: from one command, from two launchers, and when one of them dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from whole_runs import AKSSL, SETTINGS, SMALL

from akssl_core.rundir.folder import RunDir
from akssl_core.running.launch import resume, run


def start(command, folder):
    """The command in a process of its own, its words kept."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, env=env)


def wait_for(found, process):
    """Until something is there; a process that ends before it is a failure."""
    while not found():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_two_processes_from_one_command_are_one_run(tmp_path):
    """They end where one process ends, and any number of processes can go on from there."""
    one = run("simsiam", out=tmp_path / "one", **SETTINGS)
    two = start([*AKSSL, "run", "simsiam", "--devices", "2", "--epochs", "2", *SMALL, "--out", "two"], tmp_path)
    out, err = two.communicate(timeout=300)
    assert two.returncode == 0, err
    assert out.count("\nVerdict: ") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    folder = RunDir.open(tmp_path / "two")
    assert folder.manifest.status == "finished"
    assert [row["step"] for row in folder.history] == [4, 8]
    for mine, theirs in zip(one.history, folder.history, strict=True):
        assert abs(mine["loss"] - theirs["loss"]) < 1e-4
    weights = [RunDir.open(path).latest()[0].model for path in (tmp_path / "one", tmp_path / "two")]
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, atol=1e-4, rtol=1e-2, msg=name)
    with pytest.warns(UserWarning, match=r"train.epochs: 2 -> 3; train.devices: 2 -> 1"):
        longer = resume(tmp_path / "two", epochs=3, report=False)
    assert [row["step"] for row in longer.history] == [4, 8, 12]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_heads_learn_alone_on_two_processes_as_on_one(tmp_path, strategy):
    """Parameters that need no gradient for a time are waited for by nobody, and all of them move afterwards."""
    first = run("simsiam", out=tmp_path / "first", **SETTINGS).run_dir
    begun = {**SETTINGS, "start": {"source": str(first), "warm_heads": 0.75}}
    one = run("byol", out=tmp_path / "one", **begun)
    (tmp_path / "two.yaml").write_text((one.run_dir / "config.yaml").read_text())
    command = [*AKSSL, "run", "--config", "two.yaml", "--devices", "2", "--out", "two"]
    process = start([*command, "--set", f"train.strategy={strategy}"], tmp_path)
    _out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    weights, (two, _) = RunDir.open(one.run_dir).latest()[0].model, RunDir.open(tmp_path / "two").latest()
    given = RunDir.open(first).latest()[0].model
    assert not torch.equal(two.model["backbone.conv1.weight"], given["backbone.conv1.weight"])
    for name, expected in weights.items():
        torch.testing.assert_close(two.model[name], expected, atol=1e-4, rtol=1e-2, msg=name)


VIT = {"name": "vit_tiny", "patch_size": 8, "depth": 4, "drop_path": 0.3, "registers": 2}
SHARED_OUT = {
    "a teacher, clipping, SGD": ("byol", {"backbone": VIT, "optimizer": {"name": "sgd", "lr": 0.01}}, ()),
    "blocks twice, AdamW": ("simsiam", {"optimizer": {"name": "adamw", "lr": 1e-3}}, ("train.recompute=true",)),
    "bf16": ("byol", {"backbone": VIT, "optimizer": {"name": "sgd", "lr": 0.01}, "precision": "bf16"}, ()),
}


BESIDE = pytest.mark.slow  # the bf16 row shares out the same network under the same optimizer


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=BESIDE if case.startswith("a teacher") else ()) for case in SHARED_OUT]
)
def test_shared_out_parameters_train_the_same(tmp_path, case):
    """FSDP on two processes, with its optimizers, clipping and a teacher, against one process."""
    method, more, only_there = SHARED_OUT[case]
    one = run(method, out=tmp_path / "one", **{**SETTINGS, **more, "train": {"clip": {"norm": 0.1}}})
    (tmp_path / "two.yaml").write_text((one.run_dir / "config.yaml").read_text())
    command = [*AKSSL, "run", "--config", "two.yaml", "--devices", "2", "--out", "two"]
    for setting in ("train.strategy=fsdp", *only_there):
        command += ["--set", setting]
    process = start(command, tmp_path)
    _out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    two, close = RunDir.open(tmp_path / "two"), 1e-4 if "SGD" in case else 5e-3
    for mine, theirs in zip(one.history, two.history, strict=True):
        assert abs(mine["loss"] - theirs["loss"]) < close
        assert mine["std_ratio"] == pytest.approx(theirs["std_ratio"], rel=1e-2)
    weights, (checkpoint, _) = RunDir.open(one.run_dir).latest()[0].model, two.latest()
    assert checkpoint.model.keys() == weights.keys()
    for name, expected in weights.items():
        torch.testing.assert_close(checkpoint.model[name], expected, atol=close, rtol=1e-2, msg=name)
    with pytest.warns(UserWarning, match="train.epochs: 2 -> 3"):
        assert resume(tmp_path / "two", epochs=3, report=False).history[-1]["step"] == 12


def test_a_process_that_dies_stops_the_others_and_the_run_goes_on(tmp_path):
    command = [*AKSSL, "run", "simsiam", "--devices", "2", "--epochs", "9999", *SMALL, "--out", "run"]
    process = start([*command, "--set", "train.checkpoint_every=2"], tmp_path)
    wait_for(lambda: list((tmp_path / "run" / "checkpoints").glob("0*")), process)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    _out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "process 1 of 2 ended (SIGKILL) and the others were stopped" in err
    assert "Traceback" not in err
    steps = int(sorted((tmp_path / "run" / "checkpoints").glob("0*"))[-1].name)
    with pytest.warns(UserWarning, match=r"train.devices: 2 -> 1"):
        result = resume(tmp_path / "run", report=False, steps=steps + 2, epochs=steps // 4 + 2)
    assert result.history[-1]["step"] == steps + 2


def test_a_signal_stops_all_processes_after_the_same_step(tmp_path):
    command = [*AKSSL, "run", "simsiam", "--devices", "2", "--epochs", "9999", *SMALL, "--out", "run"]
    process = start(command, tmp_path)
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").is_file() and RunDir.open(tmp_path / "run").history, process)
    process.send_signal(signal.SIGTERM)
    _out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    checkpoint, problems = RunDir.open(tmp_path / "run").latest()
    assert err.count(f"at step {checkpoint.state.step}; all is saved") == 1
    assert not problems
    assert RunDir.open(tmp_path / "run").manifest.status == "stopped"


SLOW_DISK = """
import time
import akssl_core
from akssl_core.rundir import folder

save = folder.save_checkpoint
folder.save_checkpoint = lambda *args, **kwargs: (time.sleep(2), save(*args, **kwargs))[1]


class Unused(akssl_core.Logger):
    name = "unused"


@akssl_core.hookimpl
def akssl_register(registry):
    registry.add(Unused)
"""


@pytest.mark.parametrize("target", ["processes", "launcher"])
def test_nobody_leaves_before_the_checkpoint_is_written(tmp_path, target):
    """A scheduler tells each process; the first that ends makes the launcher stop the others."""
    (tmp_path / "slow.py").write_text(SLOW_DISK)
    command = [*AKSSL, "run", "simsiam", "--devices", "2", "--epochs", "9999", *SMALL, "--out", "run"]
    more = ("--plugin-file", "slow.py", "--set", "train.checkpoint_every=100000")
    process = start([*command, *more], tmp_path)
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").is_file() and RunDir.open(tmp_path / "run").history, process)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    for pid in children if target == "processes" else [process.pid]:
        os.kill(int(pid), signal.SIGUSR1)
    _out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    checkpoint, _ = RunDir.open(tmp_path / "run").latest()
    assert checkpoint is not None, err
    assert err.count(f"at step {checkpoint.state.step}; all is saved") == 1
    assert RunDir.open(tmp_path / "run").manifest.status == "stopped"


def test_wrong_input_is_told_once(tmp_path):
    process = start([*AKSSL, "run", "simsiam", "--devices", "2", "--epochs", "-1"], tmp_path)
    _out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.count("train.epochs: should be greater than or equal to 1, got -1") == 1
    assert "Traceback" not in err


def test_two_launchers_meet_and_agree_on_the_folder(tmp_path):
    """Two machines, as far as one machine can play them: a launcher each, and no name for the run folder."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "one"]
    command = [*launcher, "-m", "akssl_core", "run", "simsiam", "--epochs", "1", *SMALL]
    processes = [start(command, tmp_path) for _ in range(2)]
    answers = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert sum(out.count("\nVerdict: ") for out, _ in answers) == 1
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "manifest.json").read_text())["status"] == "finished"
