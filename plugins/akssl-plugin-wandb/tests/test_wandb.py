"""What W&B's offline files hold after real runs, against `metrics.jsonl` and the manifest. Nothing is sent."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import wandb
from akssl_plugin_wandb import Wandb, heading, numbers
from safetensors.torch import load_file
from wandb.proto.wandb_internal_pb2 import Record
from wandb.sdk.wandb_run import Run

import akssl_core
from akssl_core.testing import settings_table

TINY = {
    "method": {"name": "simsiam", "hidden_dim": 8, "out_dim": 8, "predictor_dim": 4},
    "backbone": {"name": "resnet_tiny", "widths": [4, 4, 8, 8]},
    "train": {"log_every": 1, "checkpoint_every": 4},
    "epochs": 2,
    "batch_size": 16,
    "precision": "fp32",
    "device": "cpu",
    "report": False,
}
OWN = ("_runtime", "_step", "_timestamp", "_wandb")  # what W&B adds to each row


@pytest.fixture(scope="module", autouse=True)
def own_world(tmp_path_factory):
    """W&B without the user's key, folders and server; its environment is left as it was."""
    before, home = dict(os.environ), tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    os.environ |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "WANDB_BASE_URL": "http://127.0.0.1:9"}
    yield home
    wandb.teardown()
    os.environ.clear()
    os.environ.update(before)


def photos():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (80, 3, 12, 12), generator=generator).to(torch.uint8), torch.arange(80) % 4


def start(out: Path, *callbacks, **settings):
    return akssl_core.run(data=photos(), out=out, callbacks=list(callbacks), **{**TINY, **settings})


def records(file: Path):
    """The records of a `.wandb` file: a header, then blocks of 32 KiB in the format of LevelDB's log."""
    data, whole = file.read_bytes(), b""
    assert data[:4] in (b"", b":W&B"), "empty until its first record is written"
    at, block = 7, 2**15
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if at + 7 + length > len(data):
            return  # still being written
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several parts
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def parts(run_dir: Path) -> list[list[Record]]:
    """The records of each part of a run, in the order in which the parts were written."""
    files = sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    return [complete(file) for file in files]


def complete(file: Path) -> list[Record]:
    """All records of a file: W&B's service closes it a moment after the run has finished."""
    deadline = time.monotonic() + 60
    while True:
        found = list(records(file))
        if any(record.HasField("exit") for record in found):
            return found
        assert time.monotonic() < deadline, f"{file} was not finished"
        time.sleep(0.02)


def table(items) -> dict:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def rows(part: list[Record]) -> list[dict]:
    """The rows of one part with their step, without what W&B adds."""
    found = [(r.history.step.num, table(r.history.item)) for r in part if r.HasField("history")]
    return [{"step": step, **{k: v for k, v in row.items() if k not in OWN}} for step, row in found]


def summary(part: list[Record]) -> dict:
    found: dict = {}
    for record in part:
        if record.HasField("summary"):
            found |= table(record.summary.update)
    return {name: value for name, value in found.items() if name.startswith("final/")}


def header(part: list[Record]):
    (run,) = (record.run for record in part if record.HasField("run"))
    return run


def exit_code(part: list[Record]) -> int:
    (code,) = (record.exit.exit_code for record in part if record.HasField("exit"))
    return code


def expected(run_dir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{("step" if k == "step" else heading(k)): v for k, v in line.items() if v is not None} for line in lines]


class Stop(BaseException):
    """Stands for a kill."""


def killed_after(step: int, patch: pytest.MonkeyPatch, out: Path, *callbacks) -> None:
    original = akssl_core.Method.after_step

    def after_step(self, now):
        if now.step == step:
            raise Stop
        original(self, now)

    with patch.context() as context:
        context.setattr(akssl_core.Method, "after_step", after_step)
        with pytest.raises(Stop):
            start(out, *callbacks)


@pytest.fixture(scope="module")
def result(tmp_path_factory, own_world):
    """A finished run with the logger."""
    logger = {"name": "wandb", "project": "p", "entity": "e", "group": "g", "tags": ["a", "b"]}
    return start(tmp_path_factory.mktemp("runs") / "logged", logger)


def test_every_number_of_the_rows_is_in_the_history_at_its_step(result):
    (part,) = parts(result.run_dir)
    assert rows(part) == expected(result.run_dir)
    assert [row["step"] for row in rows(part)] == list(range(1, 9))
    last = rows(part)[-1]
    assert {"train/loss", "train/z_std_ratio", "train/lr", "train/epoch", "probe/knn_top1", "time/forward"} <= set(last)


def test_the_final_numbers_are_the_summary_and_the_run_has_succeeded(result):
    (part,) = parts(result.run_dir)
    assert summary(part) == {f"final/{name}": value for name, value in result.metrics.items()}
    assert "final/knn_raw_pixels" in summary(part)
    assert exit_code(part) == 0


def test_the_settings_and_names_are_those_of_the_run(result, tmp_path):
    run = header(parts(result.run_dir)[0])
    assert (run.project, run.entity, run.run_group, list(run.tags)) == ("p", "e", "g", ["a", "b"])
    assert run.display_name == "logged"
    settings = {name: value for name, value in table(run.config.update).items() if name != "_wandb"}
    again = akssl_core.run(config={**settings, "callbacks": []}, data=photos(), out=tmp_path / "again", report=False)
    assert [row["loss"] for row in again.history] == [row["loss"] for row in result.history]


def test_nothing_about_the_machine_is_written(result):
    """No code, requirements, system metrics, console, host or command line."""
    (part,) = parts(result.run_dir)
    kinds = {record.WhichOneof("record_type") for record in part}
    assert kinds <= {"header", "run", "history", "summary", "exit", "telemetry", "request", "config", "final", "metric"}
    run = header(part)
    assert (run.host, run.git.remote_url, run.git.commit) == ("", "", "")
    assert not [file for file in result.run_dir.glob("wandb/offline-run-*/files/**/*") if file.is_file()]


def test_weights_are_bit_identical_with_and_without_the_logger(result, tmp_path):
    plain = start(tmp_path / "plain")
    first, second = (load_file(run.run_dir / "backbone.safetensors") for run in (result, plain))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [row["loss"] for row in plain.history] == [row["loss"] for row in result.history]


def test_rows_without_a_number_are_left_out():
    row = {"step": 3, "loss": 0.5, "knn_top1": None, "rankme": math.nan, "gap": math.inf, "note": "x", "n": 2}
    assert numbers(row) == {"step": 3, "loss": 0.5, "n": 2}


def test_a_resumed_run_keeps_its_id_and_one_that_replaces_it_does_not(tmp_path, monkeypatch):
    """Checkpoints stand at 4 and 8: killed in step 7, the run goes on from 4."""
    killed_after(6, monkeypatch, tmp_path / "run", "wandb")
    (first,) = parts(tmp_path / "run")
    assert rows(first) == expected(tmp_path / "run")
    assert summary(first) == {}
    assert exit_code(first) == 1

    result = akssl_core.resume(tmp_path / "run", data=photos(), report=False)
    again, second = parts(tmp_path / "run")
    assert rows(again) == rows(first), "the first part stays"
    assert rows(second) == expected(tmp_path / "run")[4:]
    assert summary(second) == {f"final/{name}": value for name, value in result.metrics.items()}
    assert header(second).run_id == header(first).run_id

    start(tmp_path / "run", "wandb", overwrite=True, epochs=1)
    assert header(parts(tmp_path / "run")[-1]).run_id != header(first).run_id


class Served:
    """A run whose server has rows up to step 5."""

    url = "https://example.org/run"
    starting_step = 6

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.summary: dict[str, float] = {}
        self.code: int | None = None

    def log(self, values, step):
        self.steps.append(step)

    def finish(self, exit_code):
        self.code = exit_code


def test_online_goes_on_where_the_server_stands(tmp_path, monkeypatch, capfd):
    (tmp_path / "manifest.json").write_text('{"resumed_at": 4}')
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "run-id.txt").write_text("abcd1234\n")
    asked, run = SimpleNamespace(), Served()
    monkeypatch.setattr(wandb, "init", lambda **settings: (asked.__dict__.update(settings), run)[1])
    logger = akssl_core.build("callback", "wandb", mode="online", run_name="mine")
    logger.on_run({}, tmp_path)
    assert (asked.mode, asked.resume, asked.id, asked.name) == ("online", "allow", "abcd1234", "mine")
    for step in (5, 6, 7):
        logger.on_row({"step": step, "loss": 1.0})
    logger.on_finish({"loss": 1.0})
    assert (run.steps, run.summary, run.code) == ([6, 7], {"final/loss": 1.0}, 0)
    assert capfd.readouterr() == ("", "wandb: https://example.org/run\n"), "where to look is told, but not on stdout"


def test_a_run_that_the_user_has_open_stays_theirs(tmp_path):
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
    theirs = wandb.init(project="theirs", mode="offline", dir=tmp_path, settings=settings)
    try:
        start(tmp_path / "run", "wandb", epochs=1)
        assert wandb.run is theirs
        theirs.log({"mine": 1})
    finally:
        theirs.finish()
    assert [set(row) for row in rows(parts(tmp_path)[0])] == [{"step", "mine"}]
    assert len(rows(parts(tmp_path / "run")[0])) == 4


def test_a_server_that_cannot_be_reached_costs_one_warning_and_no_run(tmp_path, monkeypatch):
    def refused(**settings):
        raise wandb.errors.CommError("connection refused")

    monkeypatch.setattr(wandb, "init", refused)
    with pytest.warns(UserWarning, match=r"logger 'wandb' failed and is dropped: .*connection refused") as caught:
        result = start(tmp_path / "run", {"name": "wandb", "mode": "online"})
    assert len(caught) == 1
    assert len(result.history) == 8


def test_online_without_a_key_is_not_asked_for_one_where_nobody_can_answer(tmp_path, monkeypatch):
    with open(os.devnull) as nobody:
        monkeypatch.setattr(sys, "stdin", nobody)
        with pytest.warns(
            UserWarning, match="logger 'wandb' failed and is dropped: UsageError.*wandb.?login"
        ) as caught:
            result = start(tmp_path / "run", {"name": "wandb", "mode": "online"}, epochs=1)
    assert len(caught) == 1
    assert len(result.history) == 4


@pytest.mark.parametrize("method", ["log", "finish"])
def test_a_connection_that_breaks_costs_one_warning_and_no_run(tmp_path, monkeypatch, method):
    original, calls = getattr(Run, method), []

    def broken(self, *args, **kwargs):
        calls.append(self)
        raise BrokenPipeError("service gone")

    monkeypatch.setattr(Run, method, broken)
    with pytest.warns(UserWarning, match=r"logger 'wandb' failed and is dropped: .*service gone") as caught:
        result = start(tmp_path / "run", "wandb")
    assert len(caught) == len(calls) == 1
    assert json.loads((result.run_dir / "manifest.json").read_text())["status"] == "finished"
    assert len(result.history) == 8
    monkeypatch.setattr(Run, method, original)
    calls[0].finish()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"projct": "x"}, r"unknown setting 'projct'\. Did you mean 'project'\? Settings here: entity, group, mode,"),
        ({"mode": "on"}, "mode: should be 'online', 'offline' or 'disabled', got 'on'"),
        ({"project": ""}, "project: .*at least 1 character"),
        ({"tags": "a"}, "tags: .*list, got 'a'"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(akssl_core.ConfigError, match=message):
        start(tmp_path / "run", {"name": "wandb", **settings})
    assert not (tmp_path / "run").exists()


SCRIPT = """
import json, os, sys
import akssl_plugin_wandb
print("imported", "wandb" in sys.modules)
sys.path.insert(0, sys.argv[1])
import akssl_core, torch
images = torch.randint(0, 256, (80, 3, 12, 12)).to(torch.uint8)
for mode in ("disabled", "offline"):
    logger = {"name": "wandb", "mode": mode}
    akssl_core.run(data=images, out=f"{sys.argv[1]}/{mode}", callbacks=[logger], **json.loads(sys.argv[2]))
    print(mode, "wandb" in sys.modules, os.path.exists(f"{sys.argv[1]}/{mode}/wandb"))
print(os.environ["WANDB_ERROR_REPORTING"])
"""


def test_wandb_is_imported_only_to_log_and_never_writes_to_stdout(tmp_path):
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(tmp_path), json.dumps({**TINY, "epochs": 1})]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "imported False\ndisabled False False\noffline True True\nfalse\n"
    assert "wandb" not in done.stderr


def test_nothing_is_written_outside_the_run_but_the_log_of_the_service(result, own_world):
    written = [file.relative_to(own_world) for file in own_world.rglob("*") if file.is_file()]
    assert all(file.match("wandb/logs/core-debug-*.log") for file in written), written


def test_the_readme_lists_the_settings():
    assert settings_table(Wandb.Config) in (Path(__file__).parents[1] / "README.md").read_text()
