"""What TensorBoard reads back from real runs, against `metrics.jsonl` and the manifest."""

from __future__ import annotations

import errno
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from akssl_plugin_tensorboard import TensorBoard, hyperparameters, numbers, tag
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.hparams.api_pb2 import Status

import akssl_core
from akssl_core.testing import settings_table

TINY = {
    "method": {"name": "simsiam", "hidden_dim": 8, "out_dim": 8, "predictor_dim": 4},
    "backbone": {"name": "resnet_tiny", "widths": [4, 4, 8, 8]},
    "epochs": 2,
    "batch_size": 16,
    "precision": "fp32",
    "device": "cpu",
    "report": False,
}


def photos():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (80, 3, 12, 12), generator=generator).to(torch.uint8), torch.arange(80) % 4


def start(out: Path, *callbacks, **settings):
    return akssl_core.run(data=photos(), out=out, callbacks=list(callbacks), **{**TINY, **settings})


def shown(folder: Path) -> EventAccumulator:
    """What TensorBoard shows of a folder."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    return events.Reload()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = shown(folder)
    read = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    return {name: points for name, points in read.items() if points}


def expected(result) -> dict[str, list[tuple[int, float]]]:
    """The scalars that `metrics.jsonl` and the final numbers stand for, as 32-bit floats."""
    found: dict[str, list[tuple[int, float]]] = {}
    rows = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        for name, value in row.items():
            if name != "step" and value is not None:
                found.setdefault(tag(name), []).append((row["step"], float(np.float32(value))))
    for name, value in result.metrics.items():
        found[f"final/{name}"] = [(rows[-1]["step"], float(np.float32(value)))]
    return found


def session(folder: Path, name: str):
    parse = {
        hparams.SESSION_START_INFO_TAG: hparams.parse_session_start_info_plugin_data,
        hparams.SESSION_END_INFO_TAG: hparams.parse_session_end_info_plugin_data,
    }[name]
    return parse(shown(folder).SummaryMetadata(name).plugin_data.content)


class Stop(BaseException):
    """Stands for a kill."""


def killed_after(step: int, patch: pytest.MonkeyPatch, out: Path, *callbacks, **settings) -> None:
    original = akssl_core.Method.after_step

    def after_step(self, now):
        if now.step == step:
            raise Stop
        original(self, now)

    with patch.context() as context:
        context.setattr(akssl_core.Method, "after_step", after_step)
        with pytest.raises(Stop):
            start(out, *callbacks, **settings)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A finished run with the logger."""
    return start(tmp_path_factory.mktemp("runs") / "logged", "tensorboard", train={"log_every": 1})


def test_every_number_of_the_rows_is_a_scalar_at_its_step(result):
    read = scalars(result.run_dir / "tensorboard")
    assert read == expected(result)
    assert {"train/loss", "train/z_std_ratio", "train/lr", "train/epoch", "probe/knn_top1", "probe/rankme"} <= set(read)
    assert {"time/forward", "time/images_per_s", "time/seconds", "final/knn_raw_pixels", "final/loss"} <= set(read)
    assert [step for step, _ in read["train/loss"]] == list(range(1, 9))
    assert len(list((result.run_dir / "tensorboard").iterdir())) == 1


def test_the_settings_are_a_text_that_repeats_the_run(result, tmp_path):
    shown_text = shown(result.run_dir / "tensorboard").Tensors("config")[0].tensor_proto.string_val[0].decode()
    settings = json.loads(re.fullmatch(r"```json\n(.*)\n```", shown_text, re.DOTALL)[1])
    assert settings["method"]["name"] == "simsiam"
    assert settings["callbacks"] == [{"name": "tensorboard", "folder": "tensorboard", "flush_seconds": 0}]
    again = akssl_core.run(config=settings, data=photos(), out=tmp_path / "again", report=False)
    assert [row["loss"] for row in again.history] == [row["loss"] for row in result.history]


def test_the_settings_are_hyperparameters_of_a_session_that_succeeded(result):
    folder = result.run_dir / "tensorboard"
    values = session(folder, hparams.SESSION_START_INFO_TAG).hparams
    assert values["method.name"].string_value == "simsiam"
    assert values["train.batch_size"].number_value == 16
    assert values["method.fixed_predictor_lr"].bool_value is True
    assert json.loads(values["backbone.widths"].string_value) == [4, 4, 8, 8]
    assert session(folder, hparams.SESSION_END_INFO_TAG).status == Status.Value("STATUS_SUCCESS")


def test_weights_are_bit_identical_with_and_without_the_logger(result, tmp_path):
    plain = start(tmp_path / "plain", train={"log_every": 1})
    first, second = (load_file(run.run_dir / "backbone.safetensors") for run in (result, plain))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [row["loss"] for row in plain.history] == [row["loss"] for row in result.history]


def test_rows_without_a_number_are_left_out():
    row = {"step": 3, "loss": 0.5, "knn_top1": None, "rankme": math.nan, "gap": math.inf, "note": "x", "n": 2}
    assert numbers(row) == {"step": 3.0, "loss": 0.5, "n": 2.0}


def test_settings_become_simple_values_by_their_paths():
    settings = {"a": {"b": {"c": 1, "none": None}, "on": False}, "list": [1, {"x": None}], "text": "t", "empty": {}}
    assert hyperparameters(settings) == {"a.b.c": 1, "a.on": False, "list": '[1, {"x": null}]', "text": "t"}


@pytest.mark.parametrize("kill", [1, 6])
def test_a_resumed_run_shows_each_step_once(tmp_path, monkeypatch, kill):
    """Checkpoints stand at 4 and 8; killed in step 7, rows 5 and 6 come again, and killed in step 2, row 1."""
    settings = {"train": {"log_every": 1, "checkpoint_every": 4}}
    killed_after(kill, monkeypatch, tmp_path / "run", "tensorboard", **settings)
    folder = tmp_path / "run" / "tensorboard"
    before = scalars(folder)
    assert [step for step, _ in before["train/loss"]] == list(range(1, kill + 1))
    assert hparams.SESSION_END_INFO_TAG not in shown(folder).Tags()["tensors"], "it has not succeeded"

    result = akssl_core.resume(tmp_path / "run", data=photos(), report=False)
    assert scalars(folder) == expected(result)
    assert [step for step, _ in scalars(folder)["train/loss"]] == list(range(1, 9))
    assert len(list(folder.iterdir())) == 2
    assert len(shown(folder).Tensors("config")) == 1
    assert session(folder, hparams.SESSION_END_INFO_TAG).status == Status.Value("STATUS_SUCCESS")


def test_a_resumed_run_whose_event_files_are_gone_says_again_what_it_is(tmp_path, monkeypatch):
    settings = {"train": {"log_every": 1, "checkpoint_every": 4}}
    killed_after(6, monkeypatch, tmp_path / "run", "tensorboard", **settings)
    folder = tmp_path / "run" / "tensorboard"
    for file in folder.iterdir():
        file.unlink()
    akssl_core.resume(tmp_path / "run", data=photos(), report=False)
    assert [step for step, _ in scalars(folder)["train/loss"]] == [5, 6, 7, 8]
    assert session(folder, hparams.SESSION_START_INFO_TAG).hparams["method.name"].string_value == "simsiam"


def test_a_run_that_replaces_another_shows_none_of_it_and_spares_other_files(tmp_path):
    folder = tmp_path / "run" / "logs" / "tb"
    logger = {"name": "tensorboard", "folder": "logs/tb"}
    start(tmp_path / "run", logger, train={"log_every": 1})
    (folder / "events.out.tfevents.123.host").write_bytes(b"")
    result = start(tmp_path / "run", logger, overwrite=True, epochs=1)
    assert scalars(folder) == expected(result)
    assert {step for step, _ in scalars(folder)["train/loss"]} == {4}
    assert (folder / "events.out.tfevents.123.host").exists()


@pytest.mark.parametrize(("seconds", "on_disk"), [(0, [1, 2, 3, 4]), (3600, [])], ids=["at once", "waiting"])
def test_rows_are_on_disk_as_soon_as_asked(tmp_path, monkeypatch, seconds, on_disk):
    seen = []
    finish = TensorBoard.on_finish

    def look_first(self, metrics):
        seen.extend(step for step, _ in scalars(tmp_path / "run" / "tensorboard").get("train/loss", []))
        finish(self, metrics)

    monkeypatch.setattr(TensorBoard, "on_finish", look_first)
    logger = {"name": "tensorboard", "flush_seconds": seconds}
    result = start(tmp_path / "run", logger, epochs=1, train={"log_every": 1})
    assert seen == on_disk
    assert scalars(tmp_path / "run" / "tensorboard") == expected(result), "the rest is written at the end"


class FullDisk:
    """A file on a disk that is full after so many bytes."""

    def __init__(self, file, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> None:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.file.write(data)

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.file.close()


@pytest.mark.parametrize("room", [0, 100_000], ids=["from the start", "later"])
def test_a_full_disk_costs_one_warning_and_no_run(tmp_path, monkeypatch, room):
    opened = Path.open

    def full(self, mode="r", *args, **kwargs):
        file = opened(self, mode, *args, **kwargs)
        return FullDisk(file, room) if "tfevents" in self.name and mode == "xb" else file

    monkeypatch.setattr(Path, "open", full)
    if room:
        with monkeypatch.context() as patch:
            row = TensorBoard.on_row
            patch.setattr(TensorBoard, "on_row", lambda self, r: (setattr(self.events._file, "room", 0), row(self, r)))
            result = failing(tmp_path)
    else:
        result = failing(tmp_path)
    assert json.loads((result.run_dir / "manifest.json").read_text())["status"] == "finished"
    assert len(result.history) == 8


def failing(tmp_path: Path):
    with pytest.warns(UserWarning, match="logger 'tensorboard' failed and is dropped: .*No space left") as caught:
        result = start(tmp_path / "run", "tensorboard", train={"log_every": 1})
    assert len(caught) == 1
    return result


def test_a_folder_that_cannot_be_made_costs_one_warning_and_no_run(tmp_path):
    with pytest.warns(UserWarning, match=r"logger 'tensorboard' failed and is dropped: .*File exists") as caught:
        result = start(tmp_path / "run", {"name": "tensorboard", "folder": "config.yaml"}, epochs=1)
    assert len(caught) == 1
    assert len(result.history) == 1


@pytest.mark.parametrize("folder", ["/elsewhere/x", "../x", "a/../../x", "\\\\host\\x", "C:x", "..\\x"])
def test_a_folder_outside_the_run_is_refused(folder):
    with pytest.raises(akssl_core.ConfigError) as caught:
        akssl_core.build("callback", "tensorboard", folder=folder)
    assert str(caught.value) == (
        f"folder: should stay below the run folder, as 'tensorboard' or 'logs/tensorboard' do, got {folder!r}"
    )


@pytest.mark.parametrize("folder", ["tensorboard", "logs/tb", ".", "a..b"])
def test_a_folder_inside_the_run_is_taken(folder):
    assert akssl_core.build("callback", "TensorBoard", folder=folder).config.folder == folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"foldr": "x"}, r"unknown setting 'foldr'\. Did you mean 'folder'\? Settings here: flush_seconds, folder\."),
        ({"folder": ""}, "folder: .*at least 1 character"),
        ({"flush_seconds": -1}, "flush_seconds: .*greater than or equal to 0, got -1"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(akssl_core.ConfigError, match=message):
        start(tmp_path / "run", {"name": "tensorboard", **settings})
    assert not (tmp_path / "run").exists()


def test_importing_the_plugin_imports_no_tensorboard():
    code = "import sys, akssl_plugin_tensorboard; print(*[m for m in sys.modules if m.split('.')[0] == 'tensorboard'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_a_run_with_the_logger_imports_neither_torchs_writer_nor_tensorflow():
    code = (
        "import sys; import akssl_plugin_tensorboard.events; "
        "print(*[m for m in ('tensorflow', 'torch.utils.tensorboard') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_the_readme_lists_the_settings():
    assert settings_table(TensorBoard.Config) in (Path(__file__).parents[1] / "README.md").read_text()
