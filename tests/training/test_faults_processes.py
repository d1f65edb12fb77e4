"""Memory, other processes, signals and observers of a run: what it says, what it keeps, and how it goes on."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from types import SimpleNamespace

import pytest
import torch
from stopped_runs import SETTINGS, kept, state
from torch.utils.data import Dataset

import akssl_core
from akssl_core.errors import ConfigError, RunDirError, RunStopped
from akssl_core.running.launch import resume, run
from akssl_core.schedule import Now
from akssl_core.training.faults import explain_faults
from akssl_core.training.recorder import Interrupted
from akssl_core.training.watch import Probe


@pytest.fixture
def start(toys, photos, tmp_path):
    def begin(name="run", **settings):
        return run("toy", plugins=toys, out=tmp_path / name, **{"data": photos, **SETTINGS, **settings})

    return begin


TORCH = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes"
WORDS = {
    "torch": (RuntimeError(TORCH), r"out of memory after step 0 \(it asked for 12 bytes\)\. Weights.*batch of 16"),
    "Python": (MemoryError(), "out of memory after step 0. Weights"),
    "the system": (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory after step 0. Weights"),
    "files": (OSError(errno.EMFILE, "Too many open files"), "too many files were open after step 0. Allow more"),
    "a pipe": (BrokenPipeError(errno.EPIPE, "Broken pipe"), "a process that reads images ended after step 0"),
    "no answer": (EOFError(), r"a process that reads images ended after step 0 \(no answer\)"),
}


@pytest.mark.parametrize("case", WORDS)
@pytest.mark.parametrize("place", ["training", "probing"])
def test_what_runs_out_is_named_wherever_it_does(start, spoil, monkeypatch, case, place):
    error, message = WORDS[case]

    def fail(*arguments):
        raise error

    if place == "training":
        spoil(1, fail)
    else:
        monkeypatch.setattr(Probe, "encoder_scores", fail)
    with pytest.raises(RunStopped, match=f"{message}.*'akssl resume RUN_DIR' goes on"):
        start()


def test_an_error_of_another_kind_stays_what_it_is(start, spoil):
    spoil(1, lambda *a: (_ for _ in ()).throw(FileNotFoundError(errno.ENOENT, "No such file", "allocations.csv")))
    with pytest.raises(RunStopped, match=r"failed in step 0: FileNotFoundError: .*allocations\.csv"):
        start()


MEMORY = [
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000000 bytes. Error code 12 (Cannot allocate memory)",
    "[enforce fail at alloc_cpu.cpp:81] data. DefaultCPUAllocator: not enough memory: you tried to allocate 64 bytes.",
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.2 GiB is free.",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call.",
    "MPS backend out of memory (MPS allocated: 17.5 GB, other allocations: 512 MB, max allowed: 18.1 GB).",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "unable to mmap 1024 bytes from file </torch_42_7_0>: Cannot allocate memory (12)",
    "unable to allocate shared memory(shm) for file </torch_42_7_0>: No space left on device (28)",
    "std::bad_alloc",
]
NOT_MEMORY = [
    "couldn't allocate a port",
    "reallocation of a buffer that is exported is not possible",
    "Expected a 'cuda' device type for allocator but got cpu",
    "module 'x' has no attribute 'alloc_'",
    "Unrecognized key 'x' in CUDA allocator config",
    "The tensor has a non-zero number of elements, but its data is not allocated yet.",
    "Inplace update to inference tensor outside InferenceMode is not allowed; allocate a new one",
]


@pytest.mark.parametrize("text", [*MEMORY, *NOT_MEMORY])
def test_only_an_allocator_without_memory_is_out_of_memory(text):
    engine = SimpleNamespace(method=torch.nn.Linear(2, 2), batch_size=16, now=Now(3, 4, 8))
    expected = (
        (RunStopped, "out of memory after step 3.*batch of 16") if text in MEMORY else (RuntimeError, re.escape(text))
    )
    with pytest.raises(RuntimeError, match=expected[1]) as caught, explain_faults(engine):
        raise RuntimeError(text)
    assert caught.type is expected[0]


class Deadly(Dataset):
    """A data set of a user whose processes are killed while a file is there."""

    def __init__(self, images, flag):
        self.images, self.flag, self.owner = images, flag, os.getpid()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        if self.flag.exists() and os.getpid() != self.owner:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.images[i], i % 3


def test_a_killed_loader_process_stops_a_run_and_loses_nothing(start, at_step, toys, photos, tmp_path):
    data = Deadly(photos[0], tmp_path / "flag")
    whole = start("whole", data=data, workers=2)
    at_step(3, data.flag.touch)  # the next image that a process reads ends it
    with pytest.raises(RunStopped, match=r"a process that reads images ended after step \d.*'akssl resume RUN_DIR'"):
        start(data=data, workers=2)
    data.flag.unlink()
    resume(tmp_path / "run", data=data, plugins=toys, report=False)
    assert state(tmp_path / "run") == state(whole.run_dir)


def test_a_folder_in_which_a_run_trains_is_refused(start, at_step, toys, photos, tmp_path):
    whole, seen = start("whole"), []

    def others():
        for call in (
            start,
            lambda: start(overwrite=True),
            lambda: resume(tmp_path / "run", data=photos, plugins=toys),
        ):
            with pytest.raises(RunDirError) as caught:
                call()
            seen.append(str(caught.value))

    at_step(3, others)
    start()
    assert "already holds a run" in seen[0]
    assert all(f"another process (pid {os.getpid()}) is training in this folder" in text for text in seen[1:])
    assert state(tmp_path / "run") == state(whole.run_dir)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_stops(start, at_step, toys, photos, tmp_path, number):
    whole = start("whole")
    at_step(5, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted, match=f"stopped by {number.name} at step 5; all is saved: 'akssl resume"):
        start()
    assert kept(tmp_path / "run") == (5, 5)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "stopped"
    resume(tmp_path / "run", data=photos, plugins=toys, report=False)
    assert state(tmp_path / "run") == state(whole.run_dir)


def test_a_second_signal_stops_at_once(start, at_step, toys, photos, tmp_path):
    whole = start("whole")
    at_step(5, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt) as caught:
        start()
    assert not isinstance(caught.value, Interrupted)
    assert kept(tmp_path / "run") == (4, 4)
    resume(tmp_path / "run", data=photos, plugins=toys, report=False)
    assert state(tmp_path / "run") == state(whole.run_dir)


# -- observers -------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["__init__", "on_run", "on_row", "on_finish"])
def test_a_logger_that_raises_anywhere_is_dropped(start, toys, tmp_path, method):
    whole = start("whole")

    class Bad(akssl_core.Logger):
        name = "bad"

    def fail(self, *arguments):
        raise ConnectionError("the server is gone")

    setattr(Bad, method, fail)
    toys.registry.add(Bad)
    with pytest.warns(UserWarning, match="logger 'bad' failed and is dropped: ConnectionError") as caught:
        start(callbacks=["bad"])
    assert len(caught) == 1
    assert state(tmp_path / "run") == state(whole.run_dir)


def test_a_logger_that_says_what_to_mend_is_heard(start, toys, tmp_path):
    class Wrong(akssl_core.Logger):
        name = "wrong"

        def __init__(self, config):
            raise ConfigError("callbacks: no such server.")

    toys.registry.add(Wrong)
    with pytest.raises(ConfigError, match="no such server"):
        start(callbacks=["wrong"])
    assert not (tmp_path / "run").exists()
