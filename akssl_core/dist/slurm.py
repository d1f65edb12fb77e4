"""Slurm: the processes that `srun` has started, and a batch script that goes on with a run until it is done."""

from __future__ import annotations

import re
import shlex
import warnings
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

from ..errors import ConfigError, shown

CURE = "Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT yourself, or start torchrun with srun."
FIRST_PORT, PORTS = 10_000, 20_000  # below those that Linux gives out itself, from 32768 on
STRIDE = 101  # ports from job to job, so that the steps of one do not meet those of the next


def join(environment: MutableMapping[str, str]) -> None:
    """Say in torchrun's words what srun says of this process: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and so on.

    Nothing is done where a launcher has spoken already, or where srun has started one process or none.

    Raises:
        ConfigError: srun has started several processes and does not say what they need to meet.
    """
    if (world := tasks(environment)) == 1:
        if "WORLD_SIZE" not in environment and "SLURM_PROCID" in environment:
            _tell_of_tasks(environment)
        return
    if _number(environment, "SLURM_HET_SIZE", default=1) > 1:
        raise ConfigError(f"SLURM_HET_SIZE: the ranks of a heterogeneous job cannot be told. {CURE}")
    rank, local = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_LOCALID")
    here = _tasks_here(environment) or local + 1
    if rank >= world:
        raise ConfigError(f"SLURM_PROCID: process {rank} of {world}, counted from 0, cannot be. {CURE}")
    if _has_own_gpu(environment):
        local, here = 0, 1
    job, step = _number(environment, "SLURM_JOB_ID", "SLURM_JOBID"), _number(environment, "SLURM_STEP_ID", default=0)
    named = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    nodes = next((name for name in named if name in environment), named[0])
    host = environment.get("MASTER_ADDR") or first_host(environment.get(nodes, ""), nodes)
    port = environment.get("MASTER_PORT") or str(FIRST_PORT + (STRIDE * job + step) % PORTS)
    numbers = {"RANK": rank, "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": here, "WORLD_SIZE": world}
    environment.update({name: str(number) for name, number in numbers.items()}, MASTER_ADDR=host, MASTER_PORT=port)


def alone(command: str, environment: Mapping[str, str]) -> None:
    """Refuse a command that works in one process where srun has started it several times.

    Raises:
        ConfigError: it has, and nothing says that each task has work of its own.
    """
    if (count := tasks(environment)) > 1:
        raise ConfigError(
            f"akssl {command}: srun has started {count} tasks, which would all do the same. Start one, srun -n 1; or "
            f"set WORLD_SIZE=1 where each task has work of its own."
        )


def tasks(environment: Mapping[str, str]) -> int:
    """How many processes the step has that this one belongs to, where no launcher has spoken.

    1 in a batch script and in a shell of `salloc`: there SLURM_NTASKS is of the job, and nothing has started its tasks.
    """
    started = _in_step(environment) or (environment.get("ENVIRONMENT") != "BATCH" and "SLURM_PROCID" in environment)
    if "WORLD_SIZE" in environment or not started:
        return 1
    return _number(environment, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", default=1)


def _in_step(environment: Mapping[str, str]) -> bool:
    """Whether variables tell of a step, which srun starts."""
    return any(name in environment for name in ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID", "SLURM_STEPID"))


def _tell_of_tasks(environment: Mapping[str, str]) -> None:
    """Say in a batch script that one process trains, where the job has tasks for several."""
    of_job = _number(environment, "SLURM_NTASKS", default=1)
    if environment.get("ENVIRONMENT") == "BATCH" and not _in_step(environment) and of_job > 1:
        text = f"this job has {of_job} tasks, and one process trains: put srun before the command to start all of them"
        warnings.warn(text, UserWarning, stacklevel=3)


def _number(environment: Mapping[str, str], *names: str, default: int | None = None) -> int:
    """The number in the first of these variables that there is."""
    text = next((environment[name] for name in names if name in environment), default)
    try:
        if (number := int(text)) >= 0:  # type: ignore[arg-type] # None is told as well
            return number
        raise ValueError
    except (TypeError, ValueError):
        raise ConfigError(
            f"{names[0]}: srun has started several processes; expected a whole number of it, got {shown(text)}. {CURE}"
        ) from None


def _tasks_here(environment: Mapping[str, str]) -> int | None:
    """How many tasks this machine has, by a list as `2(x3),1`; None where that is not told.

    Raises:
        ConfigError: it is no such list.
    """
    named = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
    name = next((name for name in named if name in environment), named[0])
    node = _number(environment, "SLURM_NODEID", default=0)
    for part in filter(None, environment.get(name, "").split(",")):
        found = re.fullmatch(r"(\d{1,9})(?:\(x(\d{1,9})\))?", part, re.ASCII)
        if found is None:
            raise ConfigError(f"{name}: expected tasks as 2(x3),1, got {shown(environment[name])}. {CURE}")
        if node < (machines := int(found[2] or 1)):
            return int(found[1])
        node -= machines
    return None


def _has_own_gpu(environment: Mapping[str, str]) -> bool:
    """Whether Slurm has given each task a GPU of its own, the only one that it sees."""
    given = "SLURM_GPUS_PER_TASK" in environment or "gpu" in environment.get("SLURM_TRES_PER_TASK", "")
    return given and "," not in environment.get("CUDA_VISIBLE_DEVICES", "")


def first_host(nodes: str, name: str = "SLURM_JOB_NODELIST") -> str:
    """`node03`, of `node[03-05,7],other`: the first machine of a list as Slurm writes them, in the variable `name`.

    Raises:
        ConfigError: it is no such list.
    """
    found = re.match(r"((?:[\w.-]|\[\d[\d,-]*\])+)(?:,|$)", nodes)
    if found is None:
        raise ConfigError(
            f"{name}: expected machines as node[01-04,7], got {shown(nodes)}. Set MASTER_ADDR to the "
            f"machine of the first process."
        )
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", found[1])


# -- a batch script ------------------------------------------------------------------------------
CORES = 8  # of a task, where no setting says how many it uses
SCRIPT = """\
#!/bin/bash
# Written by akssl run --slurm. Look through the lines #SBATCH, then: sbatch {file}
#SBATCH --job-name={name}
#SBATCH --nodes=1
#SBATCH --ntasks-per-node={tasks}
{gpus}#SBATCH --cpus-per-task={cores}
#SBATCH --time=24:00:00
##SBATCH --partition=NAME
##SBATCH --account=NAME
#SBATCH --chdir={place}
#SBATCH --output={log}
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300

# On several machines gloo and NCCL may need the name of the network between them:
# export GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
# The tasks get what this script has set, also after sbatch --export=NONE.

# 300 s before the time is over Slurm sends USR1: the run saves and stops, and the job queues again to go on with it.
stopping=
trap 'stopping=yes; kill -USR1 "$run"' USR1
srun --export=ALL --kill-on-bad-exit=1 {command} &
run=$!
wait "$run"
code=$?
if [ -n "$stopping" ]; then
    wait "$run"
    code=$?
    [ "$code" -eq 0 ] || [ "$code" -eq 2 ] || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def script(file: Path, command: Sequence[str], *, name: str, tasks: int, gpus: bool, cores: int = CORES) -> str:
    """A script for sbatch that runs a command in several tasks on one machine, again after each time limit.

    Args:
        file: where it is to lie; what the job prints goes beside it.
        command: a run that goes on with what its folder holds, and saves on SIGUSR1.
        name: of the job.
        tasks: processes.
        gpus: whether each needs a GPU.
        cores: for each.
    """
    return SCRIPT.format(
        file=shlex.quote(str(file)),
        name=name,
        tasks=tasks,
        cores=cores,
        gpus=f"#SBATCH --gpus-per-node={tasks}\n" if gpus else "",
        place=shlex.quote(str(Path.cwd())),
        log=shlex.quote(f"{file.with_suffix('')}-%j.log"),
        command=shlex.join(command),
    )
