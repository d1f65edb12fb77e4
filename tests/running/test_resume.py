"""Going on with a run: with other settings, after damage or an awkward kill, and one process at a time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from torch import nn
from whole_runs import Stop, losses, same, timeless

import akssl_core
from akssl_core.errors import ConfigError, RunDirError
from akssl_core.reporting import render
from akssl_core.rundir import folder as rundir
from akssl_core.rundir.files import digest, json_bytes
from akssl_core.rundir.folder import RunDir, read_tensors
from akssl_core.running.launch import resume

EVERY_STEP = {"train": {"checkpoint_every": 1, "log_every": 2}}


@pytest.fixture
def go_on(toys, photos):
    return lambda folder, **settings: resume(folder, data=photos, plugins=toys, **settings)


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def edit(folder, section, name, value):
    table = yaml.safe_load((folder / "config.yaml").read_text())
    table[section][name] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(table))


# -- other settings -------------------------------------------------------------------------------
def test_a_finished_run_trains_on_for_more_epochs(start, go_on):
    first = start(epochs=2)
    with pytest.warns(UserWarning, match=r"resumed with other settings: train.epochs: 2 -> 4"):
        more = go_on(first.run_dir, epochs=4)
    assert more.history[: len(first.history)] == first.history
    assert more.history[-1]["step"] == 2 * first.history[-1]["step"]
    assert yaml.safe_load((first.run_dir / "config.yaml").read_text())["train"]["epochs"] == 4
    told = manifest(first.run_dir)
    assert told["status"] == "finished"
    assert told["resumed_at"] == first.history[-1]["step"]
    assert told["final"]["loss"] == more.history[-1]["loss"]
    assert any("train.epochs: 2 -> 4" in note for note in told["notes"])


def test_a_run_does_not_end_before_the_step_it_has_reached(start, go_on):
    done = start(epochs=2)
    before = {name: (done.run_dir / name).read_bytes() for name in ("config.yaml", "manifest.json", "metrics.jsonl")}
    step = done.history[-1]["step"]
    with pytest.raises(ConfigError, match=rf"step {step} is reached, .* would end at step {step // 2}\. Give more"):
        go_on(done.run_dir, epochs=1)
    assert {name: (done.run_dir / name).read_bytes() for name in before} == before


def test_python_objects_in_place_of_named_parts_are_refused(start, go_on):
    folder = start().run_dir
    with pytest.raises(ConfigError, match='augmentation.name: "pair" -> "custom"'):
        go_on(folder, epochs=4, augmentation=[lambda image: image] * 2)
    with pytest.raises(ConfigError, match='backbone.name: "toy" -> "custom"'):
        go_on(folder, epochs=4, backbone=network(4))


def network(width):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_network_of_another_shape_is_told(start, go_on):
    folder = start(backbone=network(8)).run_dir
    before = manifest(folder)
    with pytest.raises(ConfigError, match=r"saved of another network: '.*' is of shape .*, here .*\. Give the"):
        go_on(folder, epochs=4, backbone=network(4))
    assert manifest(folder) == before


def test_a_lost_backbone_is_written_again(start, go_on):
    file = start().run_dir / "backbone.safetensors"
    before = read_tensors(file)[0]
    file.unlink()
    with pytest.raises(RunDirError, match=r"is finished, and its file was lost\. Go on with it: akssl resume"):
        akssl_core.load_backbone(file.parent)
    go_on(file.parent)
    after = read_tensors(file)[0]
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_setting_that_came_after_the_checkpoint_is_at_its_default(start, go_on):
    folder = start().run_dir
    for file in (folder / "checkpoints").glob("*/state.json"):
        table = json.loads(file.read_text())
        del table["digest"], table["settings"]["method"]["noise"]
        file.write_bytes(json_bytes({**table, "digest": digest(json_bytes(table))}))
    with pytest.raises(ConfigError, match=r"these differ: method.noise: null -> 0.5\. Put"):
        go_on(folder, epochs=3, options={"noise": 0.5})
    with pytest.warns(UserWarning, match=r"resumed with other settings: train.epochs: 2 -> 3$"):
        go_on(folder, epochs=3)


@pytest.mark.parametrize("text", ["train: 3", "train: []", "train:\n  device: 3"])
def test_a_config_of_another_form_is_wrong_input(start, go_on, text):
    folder = start().run_dir
    rest = yaml.safe_load((folder / "config.yaml").read_text())
    del rest["train"]
    (folder / "config.yaml").write_text(f"{yaml.safe_dump(rest)}{text}\n")
    with pytest.raises(ConfigError, match=r"train\.(precision|device)"):
        go_on(folder, epochs=4)


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"seed": 5}, "seed: 0 -> 5"),
        ({"options": {"noise": 0.5}}, "method.noise: 0.0 -> 0.5"),
        ({"batch_size": 16}, "train.batch_size: 8 -> 16"),
        ({"optimizer": {"momentum": 0.5}}, "optimizer.momentum: 0.9 -> 0.5"),
    ],
)
def test_what_would_change_the_meaning_of_the_steps_so_far_is_refused(start, go_on, settings, difference):
    folder = start().run_dir
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}
    with pytest.raises(ConfigError, match="a run goes on with the settings it began with") as caught:
        go_on(folder, epochs=4, **settings)
    assert difference in str(caught.value)
    assert "train.epochs" not in str(caught.value)
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_config_edited_by_hand_is_refused_with_the_difference(start, killed, go_on):
    folder = killed(**EVERY_STEP)
    edit(folder, "train", "batch_size", 12)
    edit(folder, "method", "out_dim", 6)
    with pytest.raises(ConfigError, match=r"method.out_dim: 4 -> 6; train.batch_size: 8 -> 12\. Put them back"):
        go_on(folder)
    edit(folder, "train", "batch_size", 8)
    edit(folder, "method", "out_dim", 4)
    assert losses(go_on(folder)) == losses(start("whole", **EVERY_STEP))


def test_harmless_settings_are_accepted_told_and_written_down(start, killed, go_on):
    whole, folder = start("whole", **EVERY_STEP), killed(**EVERY_STEP)
    edit(folder, "evaluate", "k", 3)
    with pytest.warns(UserWarning, match=r"resumed with other settings: train.keep: 2 -> 5; evaluate.k: 20 -> 3"):
        go_on(folder, train={"keep": 5})
    table = yaml.safe_load((folder / "config.yaml").read_text())
    assert (table["train"]["keep"], table["evaluate"]["k"]) == (5, 3)
    assert same(folder, whole.run_dir)
    assert len(RunDir.open(folder).checkpoints()) >= 5


# -- awkward moments ------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["provenance.json", "metrics.jsonl", "manifest.json"])
def test_a_run_killed_before_it_had_all_its_first_files_begins_again(start, go_on, monkeypatch, name):
    original = rundir.write_atomic

    def dies(path, data):
        if path.name == name:
            raise Stop
        return original(path, data)

    whole = start("whole")
    with monkeypatch.context() as patch:
        patch.setattr(rundir, "write_atomic", dies)
        with pytest.raises(Stop):
            start("killed")
    folder = start.folder / "killed"
    assert not (folder / "manifest.json").exists()
    result = go_on(folder)
    assert timeless(result) == timeless(whole)
    assert same(folder, whole.run_dir)
    assert manifest(folder).keys() == manifest(whole.run_dir).keys() | {"resumed_at"}


def test_a_run_killed_before_its_report_gets_it_when_it_is_resumed(start, go_on):
    whole = start()
    page = (whole.run_dir / "report.html").read_text()
    (whole.run_dir / "report.html").unlink()
    assert go_on(whole.run_dir, report=False).metrics == whole.metrics
    assert not (whole.run_dir / "report.html").exists()
    go_on(whole.run_dir)
    assert (whole.run_dir / "report.html").read_text() == page


def test_a_run_stopped_while_its_report_is_written_has_ended(start, go_on, monkeypatch):
    def stop(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("akssl_core.running.process.render", stop)
        with pytest.raises(KeyboardInterrupt):
            start("r")
    assert manifest(start.folder / "r")["status"] == "finished"
    assert "error" not in manifest(start.folder / "r")
    go_on(start.folder / "r")
    assert (start.folder / "r" / "report.html").exists()


def test_a_resumed_run_that_stops_again_has_a_report(killed, go_on, toys, monkeypatch):
    def dies(self, now):
        raise Stop

    folder = killed(**EVERY_STEP)
    with monkeypatch.context() as patch:
        patch.setattr(toys.get("method", "toy"), "after_step", dies)
        with pytest.raises(Stop):
            go_on(folder)
    assert "Failed" in render(folder)
    assert manifest(folder)["error"] == "Stop"
    go_on(folder)
    assert "error" not in manifest(folder)


# -- one process at a time ------------------------------------------------------------------------
HOLD = """
import sys, time
from pathlib import Path
from akssl_core.rundir.files import take_lock
take_lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_folder_is_one_process_s_until_it_is_killed(start, killed, go_on):
    whole, folder = start("whole", **EVERY_STEP), killed(**EVERY_STEP)
    command = [sys.executable, "-c", HOLD, str(folder / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            before = (folder / "manifest.json").read_bytes()
            with pytest.raises(RunDirError, match=rf"another process \(pid {other.pid}\) is training in this folder"):
                go_on(folder)
            with pytest.raises(RunDirError, match="another process"):
                start("killed", overwrite=True)
            assert (folder / "manifest.json").read_bytes() == before
        finally:
            os.kill(other.pid, signal.SIGKILL)
    assert losses(go_on(folder)) == losses(whole)


def test_the_lock_ends_with_the_run_whether_it_ended_well_or_not(start, killed, go_on):
    for folder in (start("good").run_dir, killed()):
        run = RunDir.open(folder)
        run.lock()
        with pytest.raises(RunDirError, match=f"pid {os.getpid()}"):
            RunDir.open(folder).lock()
        run.unlock()
    with pytest.raises(ConfigError):
        go_on(start.folder / "good", seed=7)
    RunDir.open(start.folder / "good").lock()


# -- damage ---------------------------------------------------------------------------------------
def damage(checkpoint):
    file = checkpoint / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_a_damaged_checkpoint_costs_its_steps_and_a_warning(start, killed, go_on):
    whole, folder = start("whole", **EVERY_STEP), killed(**EVERY_STEP)
    newest = RunDir.open(folder).checkpoints()[-1]
    damage(newest)
    with pytest.warns(UserWarning, match=f"checkpoint {newest.name} is damaged"):
        result = go_on(folder)
    assert timeless(result) == timeless(whole)
    assert same(folder, whole.run_dir)
    assert manifest(folder)["resumed_at"] == int(newest.name) - 1
    assert any("is damaged" in note for note in manifest(folder)["notes"])


def test_without_a_whole_checkpoint_nothing_is_begun_anew(killed, go_on):
    folder = killed(**EVERY_STEP)
    rows = (folder / "metrics.jsonl").read_bytes()
    for checkpoint in RunDir.open(folder).checkpoints():
        damage(checkpoint)
    with pytest.raises(RunDirError, match="none of its checkpoints can be read; checkpoint 0000"):
        go_on(folder)
    assert (folder / "metrics.jsonl").read_bytes() == rows


def test_without_any_checkpoint_a_run_begins_anew(start, killed, go_on):
    whole, folder = start("whole", **EVERY_STEP), killed(**EVERY_STEP)
    shutil.rmtree(folder / "checkpoints")
    assert timeless(go_on(folder)) == timeless(whole)


# -- callbacks ------------------------------------------------------------------------------------
def test_a_callback_of_the_users_own_takes_its_state_back(start, toys, killed, go_on):
    heard = []

    class Sum(akssl_core.Callback):
        name = "sum"
        total = 0.0

        def on_start(self, engine):
            heard.append((engine.now.step, self.total))

        def on_step(self, engine, terms):
            self.total += engine.now.step

        def state(self):
            return {"total": self.total}

        def restore(self, state):
            self.total = state["total"]

    toys.registry.add(Sum)
    folder = killed(step=5, callbacks=["sum"], **EVERY_STEP)
    go_on(folder)
    assert heard == [(0, 0.0), (5, 1.0 + 2 + 3 + 4 + 5)]
    newest = RunDir.open(folder).latest()[0]
    assert ("Sum", {"total": sum(range(13))}) in newest.state.callbacks
