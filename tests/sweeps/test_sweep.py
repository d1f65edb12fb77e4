"""`akssl sweep`: combinations, going on with what is there, failures that stop nothing, and the table."""

from __future__ import annotations

import json
import re

import pytest
from many_runs import SMALL, Breaking
from synthetic_run import EVIL, Page

from akssl_core.cli.many import _varied
from akssl_core.errors import ConfigError, PluginError, RunDirError
from akssl_core.rundir.folder import read_yaml
from akssl_core.sweeps import sweep
from akssl_core.sweeps.grid import Combination, combinations
from akssl_core.sweeps.result import Spread


# -- combinations ---------------------------------------------------------------------------------
def test_every_combination_has_a_folder_of_its_own():
    found = combinations(["a", "b"], [0, 1], {"optimizer.lr": [0.1, 0.3], "x.y": [None, [1, 2]]})
    assert len(found) == len({one.folder for one in found}) == 16
    assert found[0].folder == "a-optimizer.lr=0.1-x.y=null-seed=0"
    assert [one.seed for one in found] == [0] * 8 + [1] * 8  # a sweep that is stopped has every method once
    assert re.fullmatch(r"[\w.=+-]+", Combination("a", {"x": "../../b c"}, 0).folder)
    odd = [Combination("a", {"x": text}, 0).folder for text in ("b c", "b_c", "b/c", "l" * 300)]
    assert len(set(odd)) == 4
    assert max(map(len, odd)) < 120


@pytest.mark.parametrize(
    ("methods", "seeds", "varied", "message"),
    [
        ([], [0], {}, "methods: expected one value or more"),
        (["a"], [0, 0], {}, "seeds: 0 is there twice"),
        (["a"], [0], {"optimizer.lr": []}, "optimizer.lr: expected one value or more"),
        (["a"], ["x"], {}, "seeds: expected whole numbers, got 'x'"),
    ],
)
def test_combinations_that_make_no_sense(methods, seeds, varied, message):
    with pytest.raises(ConfigError, match=message):
        combinations(methods, seeds, varied)


def test_values_on_the_command_line():
    varied, single = _varied(["optimizer.lr=0.1,0.3", "a.b=[1, 2],[3]", "data.size=64", "c=[1, 2]", "broken=]", "none"])
    assert varied == {"optimizer.lr": [0.1, 0.3], "a.b": [[1, 2], [3]]}
    assert single == ["data.size=64", "c=[1, 2]", "broken=]", "none"]


def test_mean_and_deviation():
    assert str(Spread((61.0, 63.0, 65.0))) == "63.0 ± 2.0"
    assert str(Spread((0.5, 0.52))) == "0.510 ± 0.014"
    assert str(Spread((61.25,))) == "61.25"
    assert str(Spread((2.0, 2.0))) == "2 ± 0"


# -- runs -----------------------------------------------------------------------------------------
def test_of_all_methods_those_that_need_more_than_images_are_left_out(more, tmp_path, monkeypatch):
    def check(cls, config, facts):
        raise ConfigError("method.teacher: there is nothing to learn from")

    monkeypatch.setattr(Breaking, "check", classmethod(check))
    told = []
    found = sweep("all", seeds=(0, 1), out=tmp_path / "all", tell=told.append, plugins=more, **SMALL)
    why = "method.teacher: there is nothing to learn from"
    assert [row.method for row in found.rows] == ["toy"]
    assert (found.failed, found.left_out) == ({}, {"breaking": why})
    assert told == [f"left out: breaking: {why}", "run 1 of 2: toy-seed=0", "run 2 of 2: toy-seed=1"]
    for text in (found.text, found.markdown, (tmp_path / "all" / "compare.html").read_text()):
        assert f"left out: breaking: {why}" in text
    assert json.loads((tmp_path / "all" / "results.json").read_text())["left_out"] == found.left_out

    monkeypatch.setattr(more.get("method", "toy"), "check", classmethod(check))
    assert sweep(("all",), seeds=(0, 1), out=tmp_path / "all", plugins=more, **SMALL).rows == found.rows  # only read
    with pytest.raises(ConfigError, match="methods: none can be trained. method.teacher"):
        sweep(["all"], out=tmp_path / "other", plugins=more, **SMALL)
    assert not (tmp_path / "other").exists()
    assert list(sweep(["breaking"], out=tmp_path / "named", plugins=more, **SMALL).failed) == ["breaking-seed=0"]


def test_a_faulty_method_is_left_out_of_all(more, tmp_path, monkeypatch):
    monkeypatch.setattr(Breaking, "check", classmethod(lambda cls, config, facts: 1 / 0))
    found = sweep("all", out=tmp_path, plugins=more, **SMALL)
    assert [row.method for row in found.rows] == ["toy"]
    assert found.left_out == {"breaking": "division by zero"}


def test_a_sweep_and_the_same_again(toys, tmp_path, monkeypatch):
    out = tmp_path / "sweep"
    varied = {"optimizer.lr": [0.01, 0.05]}
    found = sweep("toy", out=out, seeds=[0, 1], varied=varied, plugins=toys, **SMALL)
    assert found.failed == {}
    assert [row.seeds for row in found.rows] == [(0, 1), (0, 1)]
    assert {row.settings["optimizer.lr"] for row in found.rows} == {0.01, 0.05}
    row = next(row for row in found.rows if row.settings["optimizer.lr"] == 0.05)
    losses = []
    for seed in (0, 1):
        folder = out / f"toy-optimizer.lr=0.05-seed={seed}"
        config = read_yaml(folder / "config.yaml")
        assert (config["optimizer"]["lr"]["start"], config["seed"]) == (0.05, seed)
        losses.append(json.loads((folder / "manifest.json").read_text())["final"]["loss"])
    assert row.metrics["loss"].values == tuple(losses)
    assert losses[0] != losses[1]

    written = json.loads((out / "results.json").read_text())
    assert {len(row["metrics"]["loss"]["values"]) for row in written["rows"]} == {2}
    assert re.search(r"^\| toy \| 0.05 \| 2 \| .* ± .*\|$", (out / "results.md").read_text(), re.MULTILINE)
    page = Page((out / "compare.html").read_text())
    assert [attrs["id"] for attrs in page.all("section")][:3] == ["sweep", "scores", "curves"]

    def no_training(*_, **__):
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr("akssl_core.sweeps.folder.run", no_training)
        patch.setattr("akssl_core.sweeps.folder.resume", no_training)
        assert sweep("toy", out=out, seeds=[0, 1], varied=varied, plugins=toys, **SMALL).rows == found.rows
    with monkeypatch.context() as patch:  # one component, told by its name alone or by a table
        patch.setattr("akssl_core.sweeps.folder.run", no_training)
        for optimizer in ("sgd", {"name": "sgd"}):
            again = sweep("toy", out=tmp_path / "named", plugins=toys, **{**SMALL, "optimizer": optimizer})
            assert again.failed == {"toy-seed=0": "trained again"}
    with pytest.raises(ConfigError, match=r"begun with other settings: train.epochs: 1 -> 2\. Put them back"):
        sweep("toy", out=out, seeds=[0, 1], varied=varied, plugins=toys, **{**SMALL, "epochs": 2})


def test_a_failed_run_stops_no_other_and_is_tried_again(more, tmp_path):
    told = []
    found = sweep(["Breaking", "toy"], out=tmp_path / "s", plugins=more, tell=told.append, **SMALL)
    assert list(found.failed) == ["breaking-seed=0"]
    assert "out of luck" in found.failed["breaking-seed=0"]
    assert [row.method for row in found.rows] == ["toy"]
    assert "failed: breaking-seed=0: " in found.text
    assert told[0] == "run 1 of 2: breaking-seed=0"
    before = (tmp_path / "s" / "toy-seed=0" / "manifest.json").read_text()
    Breaking.working = True
    try:
        again = sweep(["breaking", "toy"], out=tmp_path / "s", plugins=more, **SMALL)
    finally:
        Breaking.working = False
    assert again.failed == {}
    assert {row.method for row in again.rows} == {"breaking", "toy"}
    assert (tmp_path / "s" / "toy-seed=0" / "manifest.json").read_text() == before


def test_a_stopped_run_is_resumed(toys, tmp_path, monkeypatch):
    import akssl_core.sweeps.folder as room

    settings = {**SMALL, "epochs": 4, "train": {"checkpoint_every": 1}}
    whole = sweep("toy", out=tmp_path / "whole", plugins=toys, **settings)
    sweep("toy", out=tmp_path / "s", plugins=toys, **settings)
    folder = tmp_path / "s" / "toy-seed=0"
    manifest = json.loads((folder / "manifest.json").read_text())
    last = sorted((folder / "checkpoints").iterdir())[-1]
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    (folder / "manifest.json").write_text(json.dumps({**manifest, "final": None, "status": "stopped"}))
    resumed = []
    real = room.resume
    monkeypatch.setattr(room, "resume", lambda path, **more: resumed.append(path) or real(path, **more))
    found = sweep("toy", out=tmp_path / "s", plugins=toys, **settings)
    assert resumed == [folder]
    assert json.loads((folder / "manifest.json").read_text())["resumed_at"] > 0
    assert found.rows[0].metrics["loss"] == whole.rows[0].metrics["loss"]


def test_names_cannot_become_markup(toys, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError(EVIL)

    monkeypatch.setattr("akssl_core.sweeps.folder.run", fail)
    sweep("toy", out=tmp_path / "s", plugins=toys, **SMALL)
    html = (tmp_path / "s" / "compare.html").read_text()
    assert not Page(html).all("script")
    assert EVIL in Page(html).text


# -- what is refused before anything is trained ---------------------------------------------------
@pytest.mark.parametrize(
    ("methods", "settings", "error", "message"),
    [
        ("toyy", {}, PluginError, "Did you mean 'toy'"),
        ("toy", {"varied": {"optimizer.lrr": [1, 2]}}, ConfigError, "Did you mean 'lr'"),
        ("toy", {"epoch": 2}, ConfigError, "unknown setting 'epoch'"),
        ("toy", {"devices": 2}, ConfigError, "2 processes are not possible here"),
        ("toy", {"seed": 2}, ConfigError, "'seed' is not for a sweep; use seeds"),
        ("toy", {"varied": {"seed": [2]}}, ConfigError, "'seed' is not for a sweep; use seeds"),
        ("toy", {"varied": {"method.name": ["other"]}}, ConfigError, "'method' is not for a sweep; use methods"),
        ("toy", {"varied": {"method": ["other"]}}, ConfigError, "'method' is not for a sweep; use methods"),
        ("toy", {"varied": {"train.devices": [2]}}, ConfigError, "2 processes are not possible here"),
        ("toy", {"varied": {"optimizer.lr": "0.1"}}, ConfigError, "optimizer.lr: expected a list of values, got '0.1'"),
        ("toy", {"varied": 3}, ConfigError, "varied: expected a table"),
        ("toy", {"seeds": 3}, ConfigError, "seeds: expected a list of values, got 3"),
        (None, {}, ConfigError, "methods: expected a list of values, got None"),
        ([3], {}, ConfigError, "method: expected a name, got 3"),
    ],
)
def test_mistakes_are_told_first(toys, tmp_path, methods, settings, error, message):
    with pytest.raises(error, match=message):
        sweep(methods, out=tmp_path / "s", plugins=toys, **settings)
    assert not (tmp_path / "s").exists()


def test_settings_of_the_method_are_common_to_all_runs(toys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("train: {log_every: 4}\n")
    found = sweep("toy", out=tmp_path / "s", plugins=toys, config="~/c.yaml", method={"out_dim": 6}, **SMALL)
    settings = read_yaml(found.runs[0] / "config.yaml")
    assert (settings["method"]["out_dim"], settings["train"]["log_every"]) == (6, 4)


def test_a_run_is_no_sweep(toys, tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(RunDirError, match="is a run; a sweep needs its own folder"):
        sweep("toy", out=tmp_path, plugins=toys, **SMALL)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sweep.json").write_text("{")
    with pytest.raises(RunDirError, match="cannot be read"):
        sweep("toy", out=tmp_path / "broken", plugins=toys, **SMALL)


def test_all_means_every_installed_method(more, tmp_path, monkeypatch):
    monkeypatch.setattr("akssl_core.sweeps.folder.run", lambda **settings: None)
    found = sweep("all", out=tmp_path / "s", plugins=more, **SMALL)
    assert set(found.failed) == {"toy-seed=0", "breaking-seed=0"}  # there is nothing to read


# -- the command ----------------------------------------------------------------------------------
TINY = ("--data", "shapes", "--image-size", "12", "--epochs", "1", "--batch-size", "16", "--precision", "fp32")
TINY += ("--set", "data.size=32", "--set", "data.test_size=16", "--no-report")


def test_the_command(here, tmp_path):
    command = ("sweep", "--methods", "simsiam,SimCLR", "--out", "s", *TINY)
    code, out, err = here(*command)
    assert code == 0, err
    assert "run 2 of 2: simclr-seed=0" in err
    assert re.search(r"^simsiam +1 +\d", out, re.MULTILINE)
    assert "Written to s: results.md, results.json, compare.html" in out
    code, out, _ = here(*command, "--json")
    assert (code, {row["method"] for row in json.loads(out)["rows"]}) == (0, {"simsiam", "simclr"})
    (tmp_path / "s" / "simclr-seed=0" / "manifest.json").write_text("broken")
    code, out, _ = here(*command)
    assert (code, "failed: simclr-seed=0" in out) == (1, True)
    code, _, err = here("sweep", "--methods", "simsiam", "--seeds", "0,x", "--out", "s2", *TINY)
    assert (code, "expected whole numbers with commas between them, got 'x'" in err) == (2, True)


def test_an_interrupted_sweep_says_how_to_go_on(here, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt("stopped at step 3")

    monkeypatch.setattr("akssl_core.sweeps.folder.run", stop)
    code, _, err = here("sweep", "--methods", "simsiam", "--out", "s", *TINY)
    assert (code, err.splitlines()[-1]) == (1, "akssl: stopped; the same sweep command goes on with it")
