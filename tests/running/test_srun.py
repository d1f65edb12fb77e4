"""Processes that srun starts, and the batch script that queues itself again: a cluster's commands are played."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest
from whole_runs import AKSSL, SETTINGS, SMALL

from akssl_core.rundir.folder import RunDir
from akssl_core.running.launch import run

PLAIN = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}


@pytest.fixture
def srun(tmp_path):
    """Starts a command as `srun -n N` on one machine does, and waits: (exit code, stdout, stderr) of each process."""

    def started(tasks, command, **more):
        step = {
            "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": str(len(list(tmp_path.iterdir()))),
            "SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_STEP_NODELIST": "localhost", "SLURM_NODEID": "0",
            "SLURM_STEP_TASKS_PER_NODE": str(tasks), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        processes = [
            subprocess.Popen(
                [*AKSSL, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
                env={**PLAIN, **step, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), **more},
            )
            for i in range(tasks)
        ]  # fmt: skip
        said = [process.communicate(timeout=300) for process in processes]
        return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]

    return started


def test_tasks_of_srun_are_one_run_that_goes_on(srun, tmp_path):
    """They end where one process ends, and the same command goes on with more epochs, then reads."""
    one = run("simsiam", out=tmp_path / "one", **SETTINGS)
    command = ["run", "simsiam", *SMALL, "--out", "two", "--resume", "auto", "--epochs"]
    answers = srun(2, [*command, "2"])
    assert [code for code, *_ in answers] == [0, 0], answers
    assert sum(out.count("\nVerdict: ") for _, out, _ in answers) == 1
    folder = RunDir.open(tmp_path / "two")
    for mine, theirs in zip(one.history, folder.history, strict=True):
        assert abs(mine["loss"] - theirs["loss"]) < 1e-4
    answers = srun(2, [*command, "3"])
    assert [code for code, *_ in answers] == [0, 0], answers
    assert [row["step"] for row in RunDir.open(tmp_path / "two").history] == [4, 8, 12]
    answers = srun(2, [*command, "3"])
    assert [code for code, *_ in answers] == [0, 0], answers
    assert sum(out.count("\nVerdict: ") for _, out, _ in answers) == 1


def test_what_srun_does_not_say_is_told(srun, tmp_path):
    answers = srun(2, ["run", "simsiam", *SMALL, "--out", "run"], SLURM_STEP_NODELIST="node[")
    assert [code for code, *_ in answers] == [2, 2]
    assert sum(err.count("akssl: SLURM_STEP_NODELIST: expected machines as node[01-04,7]") for *_, err in answers) == 1
    assert not (tmp_path / "run").exists()


def test_commands_of_one_process_are_refused_in_several_tasks(srun, tmp_path):
    answers = srun(2, ["report", "run"])
    assert [code for code, *_ in answers] == [2, 2]
    said = "akssl report: srun has started 2 tasks, which would all do the same"
    assert sum(err.count(said) for *_, err in answers) == 1
    ((code, _, err),) = srun(1, ["report", "run"])
    assert (code, "holds no run" in err) == (2, True)


def test_processes_that_do_not_meet_say_where(srun, tmp_path):
    (answer,) = srun(1, ["run", "simsiam", *SMALL, "--out", "run"], WORLD_SIZE="2", RANK="x", MASTER_PORT="29500")
    assert answer[0] == 1
    assert "the 2 processes of this run did not meet at " in answer[2]
    assert "Traceback" not in answer[2]


SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
exec "$@"
"""


@pytest.fixture
def cluster(tmp_path):
    """srun, which starts one task, and scontrol, which writes down what it is asked for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"srun": SRUN, "scontrol": f'#!/bin/bash\necho "$@" >> {tmp_path}/asked\n'}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    own = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1", "OMP_NUM_THREADS": "1"}
    return {**PLAIN, **own, "PATH": f"{folder}:{os.environ['PATH']}"}


def test_the_script_queues_again_before_the_limit_and_ends_when_the_run_does(cluster, tmp_path):
    more = ("--epochs", "50", "--devices", "1", "--set", "train.checkpoint_every=200")
    words = [*AKSSL, "run", "simsiam", *SMALL, *more, "--out", "run", "--slurm"]
    written = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    file = tmp_path / "run.sbatch"
    assert written.stdout == f"sbatch {file}\n"
    assert not (tmp_path / "run").exists(), "nothing is trained"
    again = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert (again.returncode, "exists already" in again.stderr) == (2, True)

    job = subprocess.Popen(["bash", file], cwd=tmp_path, env=cluster, text=True, stderr=subprocess.PIPE)
    while not (tmp_path / "run" / "metrics.jsonl").is_file() or not RunDir.open(tmp_path / "run").history:
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    _, err = job.communicate(timeout=120)
    assert "stopped by SIGUSR1 at step" in err
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert job.returncode == 1
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "stopped"

    done = subprocess.run(["bash", file], cwd=tmp_path, env=cluster, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert RunDir.open(tmp_path / "run").history[-1]["epoch"] == 50
    assert RunDir.open(tmp_path / "run").manifest.table()["resumed_at"] > 0
    assert (tmp_path / "asked").read_text() == "requeue 7\n", "a run that has ended does not queue again"


@pytest.mark.parametrize(
    ("settings", "cores"),
    [
        ((), 8),
        (("--workers", 12), 13),
        (("--set", "train.threads=6"), 6),
        (("--workers", 2, "--set", "train.threads=6"), 6),
    ],
)
def test_the_script_asks_for_as_many_cores_as_the_settings_use(here, tmp_path, settings, cores):
    assert here("run", "simsiam", *settings, "--slurm", "--out", "run")[0] == 0
    assert f"#SBATCH --cpus-per-task={cores}\n" in (tmp_path / "run.sbatch").read_text()


@pytest.mark.parametrize(("settings", "code"), [(("--seed", "-1"), 2), (("--data", "./nowhere"), 2)])
def test_wrong_settings_are_told_before_they_queue_where_they_can_be(here, tmp_path, settings, code):
    found, _, err = here("run", "simsiam", *settings, "--slurm", "--out", "run")
    assert (found, "Traceback" in err) == (code, False)
    assert not list(tmp_path.iterdir())
