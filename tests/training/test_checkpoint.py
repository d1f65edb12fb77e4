"""Checkpoints are copied at once and written while training goes on; when, where nobody has said, is the clock's."""

from __future__ import annotations

import errno
import os
import threading

import pytest
import torch
from whole_runs import same, timeless

import akssl_core
from akssl_core.rundir.files import CannotWrite
from akssl_core.rundir.folder import RunDir, read_tensors
from akssl_core.running.launch import resume
from akssl_core.training import checkpoint

PATIENCE = 30  # seconds for another thread
EVERY = {"epochs": 3, "options": {"noise": 0.1}, "train": {"checkpoint_every": 2, "log_every": 1, "keep": 99}}
OPEN = {"epochs": 4, "options": {"noise": 0.1}, "train": {"log_every": 4}, "evaluate": {"every": 2}}


@pytest.fixture
def slow(toys, monkeypatch):
    """With the callback "passing" the write of step 2 waits until step 3 is done; how it went."""
    passed, found = threading.Event(), {"passed": None, "at once": 0, "most": 0}
    original = RunDir.save_checkpoint

    class Passing(akssl_core.Callback):
        name = "passing"

        def on_step(self, engine, terms):
            if engine.now.step == 3:
                passed.set()

    def save(self, model, optimizer, state, *, keep):
        found["at once"] += 1
        found["most"] = max(found["most"], found["at once"])
        if state.step == 2 and state.settings["callbacks"]:
            found["passed"] = passed.wait(PATIENCE)
        path = original(self, model, optimizer, state, keep=keep)
        found["at once"] -= 1
        return path

    toys.registry.add(Passing)
    monkeypatch.setattr(RunDir, "save_checkpoint", save)
    return found


def checkpoints(folder):
    return {int(path.name): path for path in RunDir.open(folder).checkpoints()}


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(start, slow):
    whole, result = start("whole", **EVERY), start(callbacks=["passing"], **EVERY)
    assert slow["passed"]
    assert slow["most"] == 1
    assert timeless(result) == timeless(whole)
    first, second = checkpoints(whole.run_dir), checkpoints(result.run_dir)
    assert list(first) == list(second) == [2, 4, 6, 8, 10, 12, 14, 16, 18]
    for step, path in second.items():
        for name in ("model.safetensors", "optimizer.safetensors"):
            a, b = (read_tensors(folder / name)[0] for folder in (first[step], path))
            assert all(torch.equal(a[key], b[key]) for key in a.keys() | b.keys())


def test_a_callback_that_goes_on_counting_does_not_change_its_state_in_a_checkpoint(start, toys, slow):
    class Counter(akssl_core.Callback):
        name = "counter"
        seen = {"steps": 0}

        def on_step(self, engine, terms):
            self.seen["steps"] = engine.now.step

        def state(self):
            return self.seen

    toys.registry.add(Counter)
    folder = start(callbacks=["counter", "passing"], **EVERY).run_dir
    path = checkpoints(folder)[2]
    assert '"steps": 2' in (path / "state.json").read_text()


@pytest.mark.parametrize("step", [2, 18])
def test_a_disk_that_refuses_a_checkpoint_is_told_soon_or_at_the_end(start, toys, photos, monkeypatch, tmp_path, step):
    whole, original = start("whole", **EVERY), RunDir.save_checkpoint

    def save(self, model, optimizer, state, *, keep):
        if state.step == step:
            raise CannotWrite("cannot write it") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, model, optimizer, state, keep=keep)

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "save_checkpoint", save)
        with pytest.raises(CannotWrite, match="cannot write it"):
            start(**EVERY)
    assert step not in checkpoints(tmp_path / "run")
    assert max(checkpoints(tmp_path / "run"), default=0) <= max(step - 2, 0)
    assert same(resume(tmp_path / "run", data=photos, plugins=toys).run_dir, whole.run_dir)


# -- when ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("apart", "expected"), [(0.0, [4, 6, 8, 12, 16, 18, 20, 24]), (1e9, [12, 24])], ids=["ripe", "never ripe"]
)
def test_where_nobody_says_when_probes_and_the_clock_do_and_change_nothing(start, monkeypatch, apart, expected):
    whole = start("whole", **{**OPEN, "train": {"log_every": 4, "checkpoint_every": 24}})
    written = []
    monkeypatch.setattr(checkpoint.Checkpoints, "save", _noted(written, checkpoint.Checkpoints.save))
    monkeypatch.setattr(checkpoint, "APART", apart)
    result = start(**OPEN)
    assert written == expected
    assert timeless(result) == timeless(whole)
    assert same(result.run_dir, whole.run_dir)


def _noted(written, save):
    """Note the step of each checkpoint, and have it on the disk before the next step, as a fast disk would."""

    def call(self, engine, *args):
        written.append(engine.now.step)
        save(self, engine, *args)
        self.settle()

    return call


def test_a_run_goes_on_bit_for_bit_from_where_the_clock_has_saved_it(start, toys, photos, at_step, monkeypatch):
    whole = start("whole", **OPEN)
    monkeypatch.setattr(checkpoint, "APART", 0.0)

    def stop():
        raise akssl_core.RunStopped("stop")

    at_step(7, stop)
    with pytest.raises(akssl_core.RunStopped):
        start(**OPEN)
    folder = whole.run_dir.parent / "run"
    assert max(checkpoints(folder)) in (4, 6)  # of step 6 if that of step 4 was on the disk by then
    result = resume(folder, data=photos, plugins=toys)
    assert timeless(result) == timeless(whole)
    assert same(folder, whole.run_dir)


def test_steps_that_somebody_has_set_know_no_clock(start, monkeypatch):
    monkeypatch.setattr(checkpoint, "APART", 0.0)
    assert list(checkpoints(start(**EVERY, evaluate={"every": 1}).run_dir)) == list(range(2, 19, 2))
