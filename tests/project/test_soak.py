"""The soak in short: kills that lose nothing, steps that leave nothing behind, and that either would be noticed.

`make soak` runs the long form.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from akssl_core.rundir.folder import RunDir
from akssl_core.rundir.schemas import Manifest

SOAK = Path(__file__).parents[2] / "soak"
sys.path.append(str(SOAK))

import compare  # noqa: E402
import kills  # noqa: E402
import steps  # noqa: E402
import trap  # noqa: E402

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="forks, and reads /proc")


def script(name, *arguments):
    """A script of the soak in a process of its own, since this one may have threads, which no fork survives."""
    command = [sys.executable, str(SOAK / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rows(folder, name):
    return json.loads((folder / f"{name}.json").read_text())["rows"]


SHORT = ["swav", "dino", "mae"]  # `make soak` has all


# -- the short form -------------------------------------------------------------------------------
def test_killed_runs_end_bit_for_bit_like_whole_ones(tmp_path):
    done = script("kills.py", *SHORT, "--kills", 3, "--steps", 22, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows(tmp_path, "kills")
    assert [row["method"] for row in found] == SHORT
    for row in found:
        assert row["kills"] == row["random time"] + row["file operation"] == 3
        assert sum(row["where"].values()) == row["file operation"]
        assert row["tensors"] > 50
        assert not any(value for name, value in row.items() if name.startswith(("differing", "missing", "unreadable")))


def test_many_steps_leave_nothing_behind(tmp_path):
    """400 steps; one forgotten batch a step would be 6 MiB over the second half."""
    row, samples = steps.soak("folder", 400)
    assert row["misplaced rows"] == []
    assert [sample["step"] for sample in samples] == [100, 200, 300, 400]
    assert len({sample["handles"] for sample in samples}) == 1
    assert samples[-1]["memory"] - samples[1]["memory"] < 4 * 1024


# -- that it can fail -----------------------------------------------------------------------------
@pytest.fixture
def pair(start):
    """A finished run and a copy of it."""
    folder = start().run_dir
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    return folder, copy


def test_equal_runs_do_not_differ(pair):
    found = compare.differences(*pair)
    assert not found
    assert found.compared > 10
    assert compare.unreadable(pair[0]) == ""


def test_one_bit_of_a_weight_is_seen(pair):
    folder, copy = pair
    newest, _ = RunDir.open(copy).latest()
    newest.model["backbone.bn.weight"].view(torch.int32)[0] ^= 1
    run = RunDir.open(copy)
    run.save_checkpoint(newest.model, newest.optimizer, newest.state, keep=2)
    assert compare.differences(folder, copy).tensors == ["model backbone.bn.weight"]


def test_a_row_a_final_number_and_a_draft_are_seen_and_times_are_not(pair):
    folder, copy = pair
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    slower = [{**row, "seconds": 9e9, "images_per_s": 1, "time_load": 1} for row in lines]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in slower))
    assert not compare.differences(folder, copy)
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*slower[:-1], {"step": 12}]))
    (copy / "checkpoints" / ".00000003.part").mkdir()
    RunDir.open(copy).update_manifest(Manifest(final={"loss": 0.0}))
    found = compare.differences(folder, copy)
    assert len(found.rows) == len(found.numbers) == 1
    assert found.files == [".00000003.part"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("manifest.json", "{"),
        ("config.yaml", "a: [1"),
        ("metrics.jsonl", '{"step": 2}\n{"step": 1}\n'),
        ("metrics.jsonl", ""),
        ("checkpoints/00000012/model.safetensors", "x"),
    ],
)
def test_what_cannot_be_resumed_is_unreadable(pair, name, text):
    (pair[1] / name).write_text(text)
    assert compare.unreadable(pair[1])


def test_a_folder_that_holds_no_run_yet_is_not_unreadable(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert compare.unreadable(tmp_path) == ""


KILLED = """
import os, shutil, sys
from pathlib import Path
from trap import Trap

class Dice:
    def choice(self, phases):
        assert sys.argv[3] in phases
        return sys.argv[3]

folder = Path(sys.argv[1])
Trap(folder, int(sys.argv[2]), Dice(), lambda text: print(text, flush=True)).arm()
(folder.parent / "elsewhere").write_text("not counted")
with (folder / ".new.part").open("wb") as file:
    file.write(b"0123456789")
    file.flush()
    os.fsync(file.fileno())
(folder / ".new.part").replace(folder / "new")
shutil.rmtree(folder / "00000003")
print("lived")
"""
OLD = {"a", "b"}


@pytest.mark.parametrize(
    ("at", "phase", "said", "new", "old"),
    [
        (1, "half", "write new half", {".new.part": 5}, OLD),
        (2, "before", "fsync new before", {".new.part": 10}, OLD),
        (3, "before", "replace new before", {".new.part": 10}, OLD),
        (3, "after", "replace new after", {"new": 10}, OLD),
        (4, "half", "rmtree checkpoint half", {"new": 10}, {"b"}),
        (4, "after", "rmtree checkpoint after", {"new": 10}, set()),
        (0, "before", "lived", {"new": 10}, set()),
    ],
)
def test_a_trap_kills_at_the_operation_it_is_set_to(tmp_path, at, phase, said, new, old):
    folder = tmp_path / "run"
    (folder / "00000003").mkdir(parents=True)
    for name in OLD:
        (folder / "00000003" / name).write_text("")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(at), phase],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(SOAK)},
    )  # fmt: skip
    assert done.stdout.strip() == said, done.stderr
    assert done.returncode == (-9 if at else 0)
    assert {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()} == new
    assert {file.name for file in (folder / "00000003").glob("*")} == old


def test_blows_are_half_and_half_with_a_few_signals():
    blows = kills.planned(30, random.Random(0))
    assert {name: blows.count(name) for name in set(blows)} == {"time": 15, "operation": 15, "SIGINT": 2, "SIGTERM": 1}


def test_kinds_of_files_have_no_numbers():
    folder = Path("/runs/a")
    names = ("checkpoints/.00000003.part", ".manifest.json.part", "checkpoints/.00000003.old.part", "checkpoints")
    assert [trap.kind_of(folder / name, folder) for name in names] == [
        "checkpoint", "manifest.json", "checkpoint", "checkpoints",
    ]  # fmt: skip


def test_a_slope_is_that_of_the_line():
    assert steps.slope([(0, 5.0), (100, 7.0), (200, 9.0)]) == pytest.approx(0.02)


def test_what_leaks_is_told_from_what_does_not():
    text = "".join(json.dumps({"step": step, "time_load": 0.25, "loss": 0.5}) + "\n" for step in steps.expected(1000))
    size, objects = steps.weight(text)
    assert 30 < size / 1024 < 60  # a hundred rows
    assert objects == 100 * (2 + 3 + 1)
    flat = [
        {
            "step": step,
            "memory": 9000 + size * step // 1_024_000,
            "allocated": 700,
            "objects": 10**5 + objects * step // 1000,
            "handles": 5,
            "threads": 2,
        }
        for step in (100, 500, 900)
    ]

    def leaks(samples, text=text):
        return steps.leaks(steps.summary("tensors", 1000, samples, text))

    assert not leaks(flat)
    for name in ("memory", "allocated", "objects"):
        assert leaks([{**one, name: one[name] + one["step"]} for one in flat]), "one a step"
    assert leaks([*flat[:-1], {**flat[-1], "handles": 6}])
    assert leaks(flat, text.partition("\n")[2])


def test_misplaced_rows_are_found():
    due = [{"step": step} for step in steps.expected(40)]
    assert [row["step"] for row in due] == [10, 20, 30, 40]

    def found(rows):
        return steps.disorder("".join(json.dumps(row) + "\n" for row in rows), 40)

    assert found(due) == []
    assert found(due[:2] + due[3:]) == ["step 30 is missing"]
    assert found([*due, {"step": 41}]) == ["step 41 is not due"]
    assert found([due[0], due[0], *due[1:]]) == ["step 10 follows step 10"]
    assert found([due[1], due[0], *due[2:]]) == ["step 10 follows step 20"]
    assert steps.disorder('{"step": 10}\n{"ste', 10) == ['line 2: {"ste']
