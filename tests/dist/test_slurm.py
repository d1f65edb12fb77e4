"""What srun says in torchrun's words, and the batch script, without a cluster."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from akssl_core import dist
from akssl_core.errors import ConfigError
from akssl_core.dist.slurm import alone, first_host, join, script

STEP = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "7", "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_STEP_TASKS_PER_NODE": "4,3",
}  # fmt: skip
FEW = {name: STEP[name] for name in ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID")} | {
    "SLURM_NTASKS": "7", "SLURM_NODELIST": "gpu[07-08]",
}  # fmt: skip
BATCH = {
    "ENVIRONMENT": "BATCH", "SLURM_JOB_ID": "4711", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
    "SLURM_JOB_NODELIST": "gpu07",
}  # fmt: skip


def joined(given):
    environment = dict(given)
    join(environment)
    return {name: value for name, value in environment.items() if given.get(name) != value}


def test_a_task_of_srun_is_told_what_torchrun_would_tell_it():
    assert joined({**STEP, "ENVIRONMENT": "BATCH", "SLURM_NTASKS": "64"}) == {
        "RANK": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "3", "WORLD_SIZE": "7", "MASTER_ADDR": "gpu07",
        "MASTER_PORT": str(10_000 + 101 * 4711 % 20_000),
    }  # fmt: skip


def test_the_few_variables_that_every_slurm_sets_are_enough():
    found = joined(FEW)
    assert (found["RANK"], found["LOCAL_RANK"], found["WORLD_SIZE"], found["MASTER_ADDR"]) == ("5", "1", "7", "gpu07")
    assert found["LOCAL_WORLD_SIZE"] == "2", "at least those up to this one"


@pytest.mark.parametrize(("node", "here"), [("0", "2"), ("900000000", "2"), ("999999999", "3")])
def test_a_list_of_any_number_of_machines_is_walked_and_not_written_out(node, here):
    found = joined({**STEP, "SLURM_NODEID": node, "SLURM_STEP_TASKS_PER_NODE": "2(x999999999),3"})
    assert found["LOCAL_WORLD_SIZE"] == here


@pytest.mark.parametrize("given", [{}, BATCH, {**BATCH, "SLURM_NTASKS": "8"}, {**STEP, "WORLD_SIZE": "1"}])
def test_a_command_of_one_process_runs_where_one_was_started_or_asked_for(given):
    assert alone("eval", given) is None


def test_a_command_of_one_process_is_refused_in_several_tasks():
    with pytest.raises(ConfigError, match=r"akssl eval: srun has started 7 tasks, .* srun -n 1; or set WORLD_SIZE=1"):
        alone("eval", STEP)


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http", "1e4", "٣٣", "9" * 5000])
def test_what_is_no_port_is_refused(monkeypatch, port):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="MASTER_PORT: expected a free port, a whole number from 1 to 65535, got "):
        dist.start("cpu")


def test_address_and_port_may_be_set_by_hand():
    found = joined({**STEP, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"})
    assert not found.keys() & {"MASTER_ADDR", "MASTER_PORT"}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_JOB_NODELIST": "gpu[01-02]"},  # a shell of salloc
        {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"},  # srun -n 1 in a job of eight
        {**BATCH},
        {**BATCH, "SLURM_NTASKS": "1"},
        {**STEP, "WORLD_SIZE": "2", "RANK": "1"},  # srun torchrun
    ],
)
def test_one_process_or_a_launcher_that_has_spoken_is_left_as_it_is(given):
    assert joined(given) == {}


def test_a_batch_script_of_several_tasks_that_starts_one_is_told():
    with pytest.warns(UserWarning, match="this job has 8 tasks, and one process trains: put srun before the command"):
        assert joined({**BATCH, "SLURM_NTASKS": "8"}) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SLURM_LOCALID": None}, r"SLURM_LOCALID: .*expected a whole number of it, got None\. Set RANK, WORLD_SIZE"),
        ({"SLURM_PROCID": "one"}, r"SLURM_PROCID: .*got 'one'"),
        ({"SLURM_JOB_ID": None}, "SLURM_JOB_ID"),
        ({"SLURM_STEP_NODELIST": None}, r"SLURM_STEP_NODELIST: .*got ''\. Set MASTER_ADDR"),
        ({"SLURM_STEP_NODELIST": None, "SLURM_JOB_NODELIST": "n["}, r"SLURM_JOB_NODELIST: .*got 'n\['"),
        ({"SLURM_STEP_TASKS_PER_NODE": "four"}, r"SLURM_STEP_TASKS_PER_NODE: expected tasks as 2\(x3\),1, got 'four'"),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x20000000000)"}, r"SLURM_STEP_TASKS_PER_NODE: expected tasks"),
        ({"SLURM_STEP_NODELIST": "gpu[a]"}, r"expected machines as node\[01-04,7\], got 'gpu\[a\]'"),
        ({"SLURM_HET_SIZE": "2"}, "heterogeneous job"),
        ({"SLURM_LOCALID": "-1"}, r"SLURM_LOCALID: .*got '-1'"),
        ({"SLURM_PROCID": "1000"}, r"SLURM_PROCID: process 1000 of .*, counted from 0, cannot be"),
    ],
)
def test_what_cannot_be_told_is_refused_with_words(change, message):
    given = {name: value for name, value in {**STEP, **change}.items() if value is not None}
    with pytest.raises(ConfigError, match=message) as caught:
        joined(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node[01-04,7]", "node01"),
        ("node[7,01-04]", "node7"),
        ("login-2.site.org,node[1-2]", "login-2.site.org"),
        ("rack[2-3]n[05-08],x", "rack2n05"),
        ("a[1-2]b,c", "a1b"),
    ],
)
def test_the_first_machine_of_a_list(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize("nodes", ["", "node[", "node]", "node[]", "a b", "[,]"])
def test_what_is_no_list_of_machines_is_refused(nodes):
    with pytest.raises(ConfigError, match="Set MASTER_ADDR"):
        first_host(nodes)


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ({"SLURM_GPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": "0"}, ("0", "1")),
        ({"SLURM_TRES_PER_TASK": "gres/gpu:1"}, ("0", "1")),
        ({"SLURM_GPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, ("1", "3")),
        ({"CUDA_VISIBLE_DEVICES": "0"}, ("1", "3")),
    ],
)
def test_a_task_with_a_gpu_of_its_own_takes_the_first_that_it_sees(more, place):
    found = joined({**STEP, **more})
    assert (found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"]) == place


def test_steps_and_jobs_that_follow_each_other_meet_at_other_ports():
    ports = {
        joined({**STEP, "SLURM_JOB_ID": str(4700 + job), "SLURM_STEP_ID": str(step)})["MASTER_PORT"]
        for job in range(20)
        for step in range(20)
    }
    assert len(ports) == 400
    assert all(10_000 <= int(port) < 30_000 for port in ports)


def test_the_script_asks_for_a_gpu_a_task_and_quotes_what_a_shell_would_read(tmp_path):
    command = ["python", "-m", "akssl_core", "run", "simsiam", "--data", "my photos", "--set", "callbacks=[{name: a}]"]
    text = script(tmp_path / "a run.sbatch", command, name="akssl-simsiam", tasks=4, gpus=True)
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    wanted = ("--ntasks-per-node=4", "--gpus-per-node=4", "--requeue", "--signal=B:USR1@300", f"--chdir={Path.cwd()}")
    assert {f"#SBATCH {option}" for option in wanted} <= set(lines)
    assert f"#SBATCH --output='{tmp_path}/a run-%j.log'" in lines
    (started,) = (line for line in lines if line.startswith("srun "))
    assert shlex.split(started) == ["srun", "--export=ALL", "--kill-on-bad-exit=1", *command, "&"]
    other = script(tmp_path / "x", command, name="n", tasks=1, gpus=False, cores=5)
    assert "--gpus" not in other
    assert "#SBATCH --cpus-per-task=5" in other.splitlines()


@pytest.mark.parametrize(
    ("size", "rank", "message"),
    [("2", None, "RANK: expected"), ("2", "x", "RANK: expected"), ("1e9", "0", "WORLD_SIZE: expected"),
     ("", "", "WORLD_SIZE: expected"), ("-1", "0", "WORLD_SIZE: expected"), ("2", "5", "RANK: process 5 of WORLD_SIZE=2")],
)  # fmt: skip
def test_what_no_launcher_sets_is_refused(monkeypatch, size, rank, message):
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(ConfigError, match=message):
        dist.start("cpu")
