"""Faults of the machine and of other code while a run trains: what it says, what it keeps, and how it goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from datetime import datetime, timezone
from pathlib import Path

import pytest
from prepared_files import save
from torch.utils.data import Dataset

import akssl_core
from akssl_core.callbacks import Diverged, ProbeData
from akssl_core.errors import ConfigError, DataError, RunDirError, RunStopped
from akssl_core.files import CannotWrite
from akssl_core.interrupt import Interrupted
from akssl_core.launch import resume, run
from akssl_core.rundir import RunDir, read_tensors

SETTINGS = {
    "epochs": 3,
    "precision": "fp32",
    "batch_size": 16,
    "report": False,
    "options": {"noise": 0.1},
    "train": {"checkpoint_every": 2, "log_every": 1},
}


@pytest.fixture
def start(toys, photos, tmp_path):
    def begin(name="run", **settings):
        return run("toy", plugins=toys, out=tmp_path / name, **{"data": photos, **SETTINGS, **settings})

    return begin


@pytest.fixture
def at_step(toys, monkeypatch):
    """Do something at the end of a step, once."""
    method = toys.get("method", "toy")

    def arrange(step, act):
        original, done = method.after_step, []

        def after_step(self, now):
            if now.step + 1 == step and not done:
                done.append(step)
                act()
            original(self, now)

        monkeypatch.setattr(method, "after_step", after_step)

    return arrange


def state(run_dir):
    folder = RunDir.open(run_dir)
    last = folder.checkpoints()[-1]
    tensors = [read_tensors(file)[0] for file in (last / "model.safetensors", last / "optimizer.safetensors")]
    rows = [(row["step"], row["loss"]) for row in folder.history]
    return [last.name, rows, {name: t.tolist() for part in tensors for name, t in part.items()}]


def kept(run_dir):
    folder = RunDir.open(run_dir)
    checkpoint, problems = folder.latest()
    assert problems == []
    return checkpoint.state["step"], folder.history[-1]["step"]


# -- the disk --------------------------------------------------------------------------------------
def refuse(number):
    def fsync(descriptor):
        raise OSError(number, os.strerror(number))

    return fsync


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses_stops_a_run_and_loses_nothing(start, at_step, toys, photos, tmp_path, monkeypatch, number):
    whole = start("whole")
    with monkeypatch.context() as patch:
        at_step(5, lambda: patch.setattr(os, "fsync", refuse(number)))
        with pytest.raises(CannotWrite, match=os.strerror(number)):
            start()
    assert kept(tmp_path / "run") == (4, 6)
    resume(tmp_path / "run", data=photos, plugins=toys, report=False)
    assert state(tmp_path / "run") == state(whole.run_dir)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_row_that_does_not_fit_stops_a_run(start, at_step, toys, photos, tmp_path):
    whole = start("whole")
    rows, aside = tmp_path / "run" / "metrics.jsonl", tmp_path / "rows"

    def fill():
        rows.rename(aside)
        rows.symlink_to("/dev/full")

    at_step(5, fill)
    with pytest.raises(CannotWrite, match=r"cannot write .*metrics\.jsonl: No space left on device\. Free"):
        start()
    rows.unlink()
    aside.rename(rows)
    assert kept(tmp_path / "run") == (4, 4)
    resume(tmp_path / "run", data=photos, plugins=toys, report=False)
    assert state(tmp_path / "run") == state(whole.run_dir)


def test_a_run_that_cannot_start_leaves_nothing_behind(start, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse(errno.ENOSPC))
        for name in ("run", "mine"):
            with pytest.raises(RunDirError, match=r"out: cannot create .*: No space left on device\. Mend that, or"):
                start(name)
    assert not (tmp_path / "run").exists()
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    assert start("mine", epochs=1).metrics["loss"] is not None


def test_a_folder_that_was_deleted_does_not_come_back(start, at_step, tmp_path):
    at_step(3, lambda: shutil.rmtree(tmp_path / "run"))
    with pytest.raises(CannotWrite, match="The folder is gone"):
        start()
    assert not (tmp_path / "run").exists()
    folder = RunDir(tmp_path / "run")
    with pytest.raises(CannotWrite, match="The folder is gone"):
        folder.save_checkpoint({}, {}, {"step": 1}, keep=1)
    assert not (tmp_path / "run").exists()


def test_a_lock_that_cannot_be_written_is_told(start, toys, photos, at_step, tmp_path, monkeypatch):
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        start()

    def refused(path, *arguments, **more):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("akssl_core.files.os.open", refused)
    with pytest.raises(CannotWrite, match="Read-only file system"):
        resume(tmp_path / "run", data=photos, plugins=toys)


# -- the data --------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path):
    """40 images in two classes."""
    for i in range(40):
        save(tmp_path / "images" / "ab"[i % 2] / f"{i:02}.png", (12, 12), seed=i)
    shutil.copytree(tmp_path / "images", tmp_path / "copy")
    return tmp_path / "images"


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


CHANGES = {
    "gone": (Path.unlink, "No such file"),
    "truncated": (truncate, "truncated|Truncated"),
    "garbage": (lambda path: path.write_bytes(b"x" * 300), "not an image in a known format"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_images_that_break_while_a_run_trains_stop_it_and_lose_nothing(start, at_step, toys, folder, tmp_path, change):
    data = {"name": str(folder), "cache_gb": 0, "max_unreadable": 0}
    whole = start("whole", data=data, epochs=5)
    act, message = CHANGES[change]
    at_step(4, lambda: [act(path) for path in folder.rglob("*.png")])
    with pytest.raises(DataError, match=message):
        start(data=data, epochs=5)
    shutil.rmtree(folder)
    (tmp_path / "copy").rename(folder)
    assert kept(tmp_path / "run")[0] in (2, 4)  # as far as the batches that were read ahead
    resume(tmp_path / "run", plugins=toys, report=False)
    assert state(tmp_path / "run") == state(whole.run_dir)


def test_one_image_that_goes_is_stood_in_for_and_recorded(start, at_step, folder, tmp_path):
    at_step(2, (folder / "a" / "02.png").unlink)
    result = start(data={"name": str(folder), "cache_gb": 0}, epochs=5)
    assert (result.run_dir / "unreadable.txt").read_text() == "a/02.png\tNo such file or directory\n"


# -- numbers ---------------------------------------------------------------------------------------
@pytest.fixture
def spoil(toys, monkeypatch):
    """Change the terms of one forward pass of one step."""
    method = toys.get("method", "toy")

    def arrange(step, change, micro=0):
        original, seen = method.step, []

        def spoilt(self, batch, now):
            out = original(self, batch, now)
            seen.append(now.step + 1)
            return change(out, self) if now.step + 1 == step and seen.count(step) == micro + 1 else out

        monkeypatch.setattr(method, "step", spoilt)

    return arrange


@pytest.mark.filterwarnings("ignore:train.accumulate")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("settings", "micro", "step", "left"),
    [
        ({}, 0, 5, (4, 4)),
        ({"train": {"checkpoint_every": 4, "log_every": 4}}, 0, 6, (4, 4)),
        ({"train": {"checkpoint_every": 2, "log_every": 1, "accumulate": 2}}, 1, 5, (4, 4)),
    ],
)
def test_a_loss_that_is_no_number_is_named_and_what_was_good_is_kept(
    start, spoil, tmp_path, value, settings, micro, step, left
):
    spoil(step, lambda out, method: {**out, "loss": out["loss"] * value}, micro)
    with pytest.raises(Diverged, match=f"the loss of step {step} is not a finite number.*last checkpoint is from bef"):
        start(**settings)
    assert kept(tmp_path / "run") == left


def test_weights_that_are_no_numbers_do_not_replace_good_ones(start, spoil, toys, photos, tmp_path, monkeypatch):
    whole = start("whole")

    def overflow(out, method):
        next(method.parameters()).register_hook(lambda gradient: gradient * float("inf"))
        return out

    spoil(6, overflow)
    with pytest.raises(Diverged, match="the weights after step 6 are not finite numbers, though the loss was one"):
        start()
    assert kept(tmp_path / "run") == (4, 6)
    monkeypatch.undo()
    resume(tmp_path / "run", data=photos, plugins=toys, report=False)
    assert state(tmp_path / "run") == state(whole.run_dir)


def test_a_clock_that_goes_back_or_stands_still_leaves_sane_numbers(start, at_step, monkeypatch):
    class Earlier(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2001, 1, 1, tzinfo=timezone.utc)

    def set_back():
        monkeypatch.setattr("akssl_core.rundir.datetime", Earlier)
        monkeypatch.setattr("time.time", lambda: 0.0)
        monkeypatch.setattr("time.perf_counter", lambda: 1e6)

    at_step(5, set_back)
    result = start()
    assert all(0 < row["images_per_s"] < float("inf") and row["seconds"] >= 0 for row in result.history[5:])
    manifest = json.loads((result.run_dir / "manifest.json").read_text())
    assert "2001" < manifest["created"] <= manifest["updated"]


# -- memory and other processes --------------------------------------------------------------------
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
        monkeypatch.setattr(ProbeData, "encoder_scores", fail)
    with pytest.raises(RunStopped, match=f"{message}.*'akssl resume RUN_DIR' goes on"):
        start()


def test_an_error_of_another_kind_stays_what_it_is(start, spoil):
    spoil(1, lambda *a: (_ for _ in ()).throw(FileNotFoundError(errno.ENOENT, "No such file", "allocations.csv")))
    with pytest.raises(FileNotFoundError, match=r"allocations\.csv"):
        start()


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
    at_step(3, data.flag.touch)  # the next epoch starts its processes anew
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
