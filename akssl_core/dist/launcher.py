"""Several processes on one machine from one command: torchrun's launcher, with the answers of ours."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


GRACE = 300  # seconds from a signal to the end of the processes, for a step and its checkpoint; torch gives 30


def launch(devices: int, arguments: Sequence[str]) -> tuple[int, str]:
    """Run `akssl ARGUMENTS` in several processes; its exit code, and what to tell the user where one died.

    When a process ends with an error the others are stopped; its exit code is that of all.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE))
    if "SIGUSR1" in signal.Signals.__members__:  # as schedulers send it before the time is over
        signal.signal(signal.SIGUSR1, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id="akssl",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "akssl_core", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode, ""  # it has said why
        cause = failure.signal_name() or f"exit code {failure.exitcode}"
        return 1, f"process {rank} of {devices} ended ({cause}) and the others were stopped."
    except SignalException:
        return 1, ""  # the processes have said what they saved
    return 0, ""
