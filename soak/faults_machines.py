"""Faults of devices and of clusters, whose commands are played: what is not there, and what stops before it is done."""

from __future__ import annotations

import signal

from faults_cases import RESUME, no_folder, sends
from faults_lab import SHAPES, Case, Lab

from akssl_core.rundir.folder import RunDir


def write_script(lab: Lab) -> None:
    """The batch script of the run, and a Slurm of two commands: one starts a task, one writes down what it is asked."""
    lab.call(*lab.arguments(lab.run), "--slurm")
    commands = {
        "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
        "scontrol": f'echo "$@" >> {lab.path}/asked',
    }
    (lab.path / "bin").mkdir()
    for name, text in commands.items():
        (lab.path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (lab.path / "bin" / name).chmod(0o755)


def was_queued(lab: Lab) -> str:
    """Whether the job was put back, once."""
    said = (lab.path / "asked").read_text() if (lab.path / "asked").exists() else ""
    return "" if said == "requeue 7\n" else f"scontrol was asked: {said!r}"


def is_like_one(lab: Lab) -> str:
    """Losses of two processes, against one process with the whole batch."""
    alone = lab.path / "alone"
    lab.call(*lab.arguments(alone), "--devices", "1")
    rows = [RunDir.open(path).history for path in (lab.run, alone)]
    apart = max(abs(mine["loss"] - theirs["loss"]) for mine, theirs in zip(*rows, strict=True))
    return "" if apart < 1e-4 else f"losses differ by {apart:g}"


TASKS = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2",
    "SLURM_STEP_NODELIST": "localhost",
}  # fmt: skip
TWO = "SLURM_PROCID=1 SLURM_LOCALID=1 {} & SLURM_PROCID=0 SLURM_LOCALID=0 {}; code=$?; wait; exit $code"
BATCH = "export PATH=$PWD/bin:$PATH SLURM_JOB_ID=7 SLURM_CPUS_PER_TASK=1; exec bash RUN.sbatch"
AUTO = (*SHAPES, "--resume", "auto")
MACHINES = [
    Case("device that is not there", "--device xpu", 2, r"torch sees no XPU device\. Use .*cpu or auto",
         settings=(*SHAPES, "--device", "xpu"), check=no_folder, then=""),
    Case("more processes than GPUs", "--device cuda --devices 2, one CUDA device (played)", 2,
         r"2 processes on this machine, where torch sees 1 CUDA device\(s\)", gpus=1,
         settings=(*SHAPES, "--device", "cuda", "--devices", "2"), check=no_folder, then=""),
    Case("processes on the CPU beside a GPU", "--device cpu --devices 2, one CUDA device (played)", 0, gpus=1,
         settings=(*SHAPES, "--devices", "2"), check=is_like_one, then=""),
    Case("two tasks of srun", "the variables of `srun -n 2`, no torchrun", 0, shell=TWO, environment=TASKS,
         check=is_like_one, then=""),
    Case("srun without a machine", "two tasks, and a list of machines that is none", 2,
         r"SLURM_STEP_NODELIST: expected machines as node\[01-04,7\]", shell=TWO,
         environment={**TASKS, "SLURM_STEP_NODELIST": "node["}, check=no_folder, then=""),
    Case("SIGUSR1", "in step 5, as a scheduler sends it before the limit; then the same command, --resume auto", 1,
         f"stopped by SIGUSR1 at step 5; all is saved.*{RESUME}", settings=AUTO, inside="gate",
         at_gate=sends(signal.SIGUSR1), then="again"),
    Case("time limit of a job", "SIGUSR1 to the script of --slurm in step 5: it calls scontrol requeue", 1,
         "stopped by SIGUSR1 at step 5; all is saved", settings=AUTO, inside="gate", before=write_script, shell=BATCH,
         at_gate=sends(signal.SIGUSR1), check=was_queued, then="again"),
]  # fmt: skip
