"""The contest by the clock: that it runs, whose clock it is, and how it goes on."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import clock
import results
import speedrun
from pages import draw_photos

import akssl_core
from akssl_core.plugins.manager import Plugins
from akssl_core.reporting.files import RunFiles


@dataclass(frozen=True)
class Example:
    """Of a peer: what changes with the epochs."""

    after_backward: Callable[[float], None]


@pytest.mark.filterwarnings("ignore:budget. a step takes")  # on a busy machine, longer than these 0.6 s
def test_a_speedrun_ends_with_a_scored_backbone_and_goes_on_after_its_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    for part, photos in (("train", 32), ("test", 8)):
        for of in ("cat", "dog"):
            draw_photos(tmp_path / "cifar" / part / of, photos)
    asked = ["ours", "--cifar", str(tmp_path / "cifar"), "--minutes", "0.01", "--seeds", "0"]
    speedrun.main([*asked, "--settings", '{"method": "simclr", "batch_size": 8}'])
    (row,) = json.loads((tmp_path / "results" / "speedrun.json").read_text())["rows"]
    assert (row["system"], row["runs"]) == ("ours", 1)
    assert 0 <= row["median k-NN"] <= 100
    assert row["longest s"] > 0

    monkeypatch.setattr(speedrun, "race", lambda _, system, minutes, seed, __: [{"k-NN": 10.0 + seed, "seconds": 1.0}])
    again = [*asked[:-1], "1", "2", "--work", str(tmp_path / "work")]
    speedrun.main([*asked[:-1], "1"])  # of other settings: the run of seed 0 goes
    assert json.loads((tmp_path / "results" / "speedrun.json").read_text())["rows"][0]["runs"] == 1
    speedrun.main(asked)
    here = results.cpu()
    monkeypatch.setattr(results, "cpu", lambda: "another")
    speedrun.main(again)
    found = json.loads((tmp_path / "results" / "speedrun.json").read_text())
    (table,) = found["rows"]
    assert table["runs"] == 3  # that of seed 0 is kept
    assert found["facts"]["cpu"] == f"{here} (seeds 0); another (seeds 1, 2)"
    monkeypatch.setattr(speedrun, "race", None)  # nothing is run a second time
    speedrun.main(again)
    assert json.loads((tmp_path / "results" / "speedrun.json").read_text())["rows"] == [table]

    speedrun.main([*asked, "--reach", "1", "--settings", '{"method": "simclr", "batch_size": 8}'])
    (row,) = json.loads((tmp_path / "results" / "speedrun-reach.json").read_text())["rows"]
    assert row["k-NN"] >= row["goal"] == 1
    assert row["seconds"] > 0
    (tmp_path / "results" / "speedrun.json").unlink()
    held = speedrun.tables(tmp_path / "cifar", tmp_path, validation=True)
    assert [len(Path(held[of]).read_text().splitlines()) - 1 for of in ("path", "test")] == [57, 7]


def test_ours_leaves_its_backbone_after_its_last_step_or_when_the_time_is_over(monkeypatch, tmp_path):
    ended = []
    monkeypatch.setattr(clock, "leave", lambda file, backbone, mean, std: ended.append(Path(file).touch()))
    monkeypatch.setattr(clock, "time", SimpleNamespace(time=lambda: 100.0))
    plugins = Plugins()
    plugins.register(clock, "clock")
    small = {"data": {"name": "shapes", "size": 16, "test_size": 16}, "image_size": 8, "batch_size": 8, "epochs": 2}
    for until, rows in ((101.0, 3), (99.0, 0)):  # before the row of the step that is the last
        out = tmp_path / f"{until}"
        with pytest.raises(clock.Over):
            akssl_core.run(
                "simclr", **small, backbone={"name": "resnet_tiny", "widths": [4, 4, 8, 8]}, out=out, plugins=plugins,
                callbacks=[{"name": "clock", "file": str(tmp_path / "file"), "until": until}], train={"log_every": 1},
            )  # fmt: skip
        assert len(RunFiles.read(out).rows) == rows
    assert len(ended) == 2


def test_one_run_of_a_peer_leaves_what_it_has_at_each_time(monkeypatch, tmp_path):
    """A peer that adds 1 to its weights each second, of a clock that no test waits for."""
    clock = itertools.count(100.0)
    monkeypatch.setattr(speedrun, "time", SimpleNamespace(time=lambda: next(clock)))

    def train(name, pixels, backbone, *, tick, epochs, methods, image, **asked):
        (weights := next(backbone.parameters()).data).zero_()
        example = methods[name](backbone, image, epochs)
        while True:
            weights += 1
            example.after_backward(0.0)
            tick()

    course = []

    def make(backbone, image, epochs):
        return Example(lambda epoch: course.append(epoch / epochs))

    monkeypatch.setitem(sys.modules, "peers", SimpleNamespace(train=train, METHODS={"simclr": make}, Example=Example))
    monkeypatch.setattr(speedrun, "pixels_of", lambda data: None)
    due = [(str(tmp_path / f"{until}.safetensors"), until) for until in (105.0, 120.0)]
    speedrun.train("lightly simclr", {}, due, 0, {})
    left = [next(speedrun.read(Path(file)).parameters()).unique().tolist() for file, _ in due]
    assert left == [[1], [9]], "the clock is read twice a step"
    assert course == sorted(course)
    assert 0 < course[0] < 0.2
    assert 0.9 < course[-1] <= 1


def test_the_contest_runs_peers_once_for_all_times_that_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    raced = []

    def race(arguments, system, minutes, seed, settings):
        raced.append((system, tuple(minutes)))
        return [{"k-NN": of, "seconds": 60 * of} for of in minutes]

    monkeypatch.setattr(speedrun, "race", race)
    peer, other = "lightly simclr", "stable-pretraining lejepa"
    asked = ["ours", peer, other, "--cifar", str(tmp_path), "--seeds", "0", "--work", str(tmp_path / "work")]
    speedrun.main([*asked, "--minutes", "2"])
    speedrun.main([*asked, "--minutes", "10", "5", "2"])
    assert raced[:3] == [("ours", (2,)), (peer, (2,)), (other, (2,))]
    assert raced[3:] == [("ours", (5,)), ("ours", (10,)), (peer, (5, 10)), (other, (5,)), (other, (10,))]
    rows = json.loads((tmp_path / "results" / "speedrun.json").read_text())["rows"]
    assert {(row["system"], row["median k-NN"]) for row in rows} == set(
        itertools.product(["ours", peer, other], [2.0, 5.0, 10.0])
    )
