"""Faults of the machine and of other code while a run trains: what it says, what it keeps, and how it goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest
from prepared_files import save
from stopped_runs import SETTINGS, kept, state

from akssl_core.errors import DataError, RunDirError
from akssl_core.rundir.checkpoints import CheckpointState
from akssl_core.rundir.files import CannotWrite
from akssl_core.rundir.folder import RunDir
from akssl_core.running.launch import resume, run
from akssl_core.training.checkpoint import Diverged
from akssl_core.training.recorder import Interrupted


@pytest.fixture
def start(toys, photos, tmp_path):
    def begin(name="run", **settings):
        return run("toy", plugins=toys, out=tmp_path / name, **{"data": photos, **SETTINGS, **settings})

    return begin


# -- the disk --------------------------------------------------------------------------------------
def refuse(number):
    def fsync(descriptor):
        raise OSError(number, os.strerror(number))

    return fsync


def once_saved(folder, step, act):
    """Do something when the thread that writes checkpoints has nothing left to do."""

    def later():
        for _ in range(6000):
            if (folder / "checkpoints" / f"{step:08}").exists():
                return act()
            time.sleep(0.01)
        raise AssertionError(f"no checkpoint of step {step}")

    return later


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses_stops_a_run_and_loses_nothing(start, at_step, toys, photos, tmp_path, monkeypatch, number):
    whole = start("whole")
    with monkeypatch.context() as patch:
        at_step(5, once_saved(tmp_path / "run", 4, lambda: patch.setattr(os, "fsync", refuse(number))))
        with pytest.raises(CannotWrite, match=os.strerror(number)):
            start()
    saved, row = kept(tmp_path / "run")
    assert saved == 4
    assert 6 <= row <= 8  # as far as training came before the disk had refused the checkpoint of step 6
    resume(tmp_path / "run", data=photos, plugins=toys, report=False)
    assert state(tmp_path / "run") == state(whole.run_dir)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_row_that_does_not_fit_stops_a_run(start, at_step, toys, photos, tmp_path):
    whole = start("whole")
    rows, aside = tmp_path / "run" / "metrics.jsonl", tmp_path / "rows"

    def fill():
        rows.rename(aside)
        rows.symlink_to("/dev/full")

    at_step(5, once_saved(tmp_path / "run", 4, fill))
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
    at_step(1, lambda: shutil.rmtree(tmp_path / "run"))  # before the first checkpoint, which a thread writes
    with pytest.raises(CannotWrite, match="The folder is gone"):
        start()
    assert not (tmp_path / "run").exists()
    folder = RunDir(tmp_path / "run")
    with pytest.raises(CannotWrite, match="The folder is gone"):
        folder.save_checkpoint({}, {}, CheckpointState(1), keep=1)
    assert not (tmp_path / "run").exists()


def test_a_lock_that_cannot_be_written_is_told(start, toys, photos, at_step, tmp_path, monkeypatch):
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        start()

    def refused(path, *arguments, **more):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("akssl_core.rundir.files.os.open", refused)
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
    assert f"Files that could not be read: {result.run_dir / 'unreadable.txt'}" in result.text


def test_a_run_that_too_many_images_have_stopped_goes_on_with_a_higher_limit(start, at_step, toys, folder, tmp_path):
    at_step(3, lambda: (folder / "a" / "02.png").write_bytes(b"no image"))
    with pytest.raises(DataError, match=r"or raise data\.max_unreadable"):
        start(data={"name": str(folder), "cache_gb": 0, "max_unreadable": 0}, epochs=5)
    with pytest.warns(UserWarning, match=r"data\.max_unreadable: 0\.0 -> 0\.5"):
        result = resume(tmp_path / "run", data={"max_unreadable": 0.5}, plugins=toys, report=False)
    assert result.history[-1]["step"] == 10


def test_going_on_with_other_data_is_told(start, at_step, toys, photos, tmp_path):
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        start()
    with pytest.warns(UserWarning, match=r"resumed with other data than the run began with: sample: \w+ -> \w+$"):
        resume(tmp_path / "run", data=(photos[0] // 2, photos[1]), plugins=toys, report=False)


# -- numbers ---------------------------------------------------------------------------------------
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


def test_a_checkpoint_that_a_slow_disk_still_takes_is_waited_for(start, spoil, tmp_path, monkeypatch):
    flush = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (time.sleep(0.3), flush(descriptor)))
    spoil(5, lambda out, method: {**out, "loss": out["loss"] * float("nan")}, 0)
    with pytest.raises(Diverged, match=r"step 5 is not a finite number.*last checkpoint is from before"):
        start(train={"checkpoint_every": 4, "log_every": 4})
    assert kept(tmp_path / "run") == (4, 4)


def test_a_loss_that_is_no_number_at_once_is_no_matter_of_the_rate(start, spoil):
    spoil(1, lambda out, method: {**out, "loss": out["loss"] * float("nan")}, 0)
    with pytest.raises(Diverged, match=r"step 1 is not a finite number\. No weight has moved yet: .* of the loss"):
        start()


def test_no_checkpoint_is_promised_where_none_was_written(start, spoil):
    spoil(2, lambda out, method: {**out, "loss": out["loss"] * float("nan")}, 0)
    with pytest.raises(Diverged, match=r"step 2 is not a finite number\. Lower .* --precision fp32\.$"):
        start()


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
        monkeypatch.setattr("akssl_core.rundir.folder.datetime", Earlier)
        monkeypatch.setattr("time.time", lambda: 0.0)
        monkeypatch.setattr("time.perf_counter", lambda: 1e6)

    at_step(5, set_back)
    result = start()
    assert all(0 < row["images_per_s"] < float("inf") and row["seconds"] >= 0 for row in result.history[5:])
    manifest = json.loads((result.run_dir / "manifest.json").read_text())
    assert "2001" < manifest["created"] <= manifest["updated"]
