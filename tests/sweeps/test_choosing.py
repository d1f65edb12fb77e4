"""`akssl choose`: rounds of fewer and longer runs, judged without labels, and what stands in its way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from many_runs import SMALL, Breaking

from akssl_core import ImageSpec, build
from akssl_core.errors import ConfigError, RunDirError
from akssl_core.rundir.folder import read_yaml
from akssl_core.sweeps import choose
from akssl_core.sweeps.choosing import _seconds
from akssl_core.sweeps.judge import told_apart

COMMON = {name: value for name, value in SMALL.items() if name not in ("epochs", "report")}
RATES = {"optimizer.lr": [0.01, 0.02, 0.03, 0.04, 0.05]}


# -- rounds ---------------------------------------------------------------------------------------
def test_a_quarter_goes_on_for_four_times_as_long(toys, tmp_path):
    told = []
    found = choose("toy", varied=RATES, epochs=8, out=tmp_path / "all", plugins=toys, tell=told.append, **COMMON)
    assert [len(trials) for trials in found.rounds] == [5, 2, 1]
    assert [sum(trial.kept for trial in trials) for trials in found.rounds] == [2, 1, 1]
    assert [{trial.images_seen for trial in trials} for trials in found.rounds] == [{16}, {64}, {256}]
    for trials in found.rounds:
        scores = [trial.told_apart for trial in trials]
        assert scores == sorted(scores, reverse=True)
        assert [trial.kept for trial in trials] == sorted((trial.kept for trial in trials), reverse=True)
    kept = {trial.candidate for trial in found.rounds[0] if trial.kept}
    assert {trial.candidate for trial in found.rounds[1]} == kept
    assert found.run_dir == found.rounds[-1][0].run_dir
    rate = read_yaml(found.run_dir / "config.yaml")["optimizer"]["lr"]
    assert found.rounds[-1][0].candidate == f"toy optimizer.lr={rate['start'] if isinstance(rate, dict) else rate}"
    assert len(told) == 1 + 8
    assert f"chosen: {found.run_dir}" in found.text
    assert f"Look at it: {found.run_dir / 'report.html'}" in found.text
    assert (found.run_dir / "report.html").exists()
    assert json.loads((tmp_path / "all" / "choice.json").read_text()) == found.record()


def test_the_same_call_again_trains_nothing(toys, tmp_path, monkeypatch):
    def again():
        return choose("toy", varied=RATES, epochs=4, out=tmp_path / "all", plugins=toys, **COMMON)

    def no_training(*arguments, **more):
        raise AssertionError("trained again")

    first = again()
    monkeypatch.setattr("akssl_core.sweeps.folder.run", no_training)
    monkeypatch.setattr("akssl_core.sweeps.folder.resume", no_training)
    assert again() == first
    with pytest.raises(ConfigError, match="begun with other settings.*epochs"):
        choose("toy", varied=RATES, epochs=8, out=tmp_path / "all", plugins=toys, **COMMON)
    with pytest.raises(ConfigError, match="begun with other settings.*candidates"):  # rounds of another length
        choose("toy", epochs=4, out=tmp_path / "all", plugins=toys, **COMMON)


def test_without_a_folder_it_makes_one_and_says_how_to_go_on(toys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = []
    found = choose("toy", epochs=1, plugins=toys, tell=told.append, **COMMON)
    assert found.out.parent == Path("runs")
    assert told[0] == f"all rounds are in {found.out}"
    assert choose("toy", epochs=1, out=found.out, plugins=toys, **COMMON) == found


def test_a_budget_is_shared_by_rounds_and_candidates(toys, tmp_path):
    rates = {"optimizer.lr": [0.01, 0.02]}
    out = tmp_path / "all"
    out.mkdir()
    (out / "seconds.json").write_text(json.dumps({f"toy-optimizer.lr={lr}-seed=0": lr for lr in (0.01, 0.02)}))
    found = choose("toy", varied=rates, budget="0.4s", out=out, plugins=toys, **COMMON)  # 0.2 s a round
    seen = {trial.candidate: trial.images_seen for trial in found.rounds[0]}
    assert seen == {"toy optimizer.lr=0.01": 16 * 10, "toy optimizer.lr=0.02": 16 * 5}
    assert found.rounds[1][0].images_seen == 2 * seen[found.rounds[1][0].candidate]


def test_steps_are_timed_once(toys, tmp_path, monkeypatch):
    timed = []
    monkeypatch.setattr("akssl_core.sweeps.choosing.seconds_per_step", lambda plan: timed.append(plan) or (0.01, 5))
    for _ in range(2):
        choose("toy", budget=0.05, out=tmp_path / "all", plugins=toys, **COMMON)
    assert len(timed) == 1


# -- what does not work ---------------------------------------------------------------------------
def test_a_candidate_that_fails_is_left_out(more, tmp_path):
    Breaking.working = False
    found = choose(["toy", "breaking"], epochs=1, out=tmp_path / "all", plugins=more, **COMMON)
    assert [[trial.candidate for trial in trials] for trials in found.rounds] == [["toy"], ["toy"]]
    assert "out of luck" in found.left_out["breaking"]
    assert "left out: breaking: " in found.text
    with pytest.raises(ConfigError, match="no candidate of round 1 has learned anything.*out of luck"):
        choose("breaking", epochs=1, out=tmp_path / "other", plugins=more, **COMMON)


def test_of_all_those_that_need_more_than_images_are_left_out(more, tmp_path):
    Breaking.recipes, whole = {"default": {**Breaking.recipes["default"], "train": {"image_size": 4}}}, Breaking.recipes
    try:
        given = {name: value for name, value in COMMON.items() if name != "image_size"}
        found = choose(epochs=1, out=tmp_path / "all", plugins=more, **given)
        assert list(found.left_out) == ["breaking"]
        with pytest.raises(ConfigError, match="image_size"):
            choose(["toy", "breaking"], epochs=1, out=tmp_path / "other", plugins=more, **given)
    finally:
        Breaking.recipes = whole


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "budget: give a time for all rounds"),
        ({"budget": "1h", "epochs": 3}, "not both"),
        ({"budget": "soon"}, "expected a time as 90s, 30m or 2h, got 'soon'"),
        ({"budget": "-3m"}, "expected a time"),
        ({"budget": ""}, "expected a time"),
        ({"epochs": 0}, "epochs: expected 1 or more, got 0"),
        ({"epochs": 1, "train": {"steps": 3}}, "'steps' follows from the budget"),
        ({"epochs": 1, "varied": {"train.epochs": [1, 2]}}, "'epochs' follows from the budget"),
        ({"epochs": 1, "seed": True}, "seeds: expected whole numbers"),
    ],
)
def test_wrong_calls_leave_nothing_behind(toys, tmp_path, given, message):
    with pytest.raises(ConfigError, match=message):
        choose("toy", out=tmp_path / "all", plugins=toys, **{**COMMON, **given})
    assert not (tmp_path / "all").exists()


def test_a_run_is_no_folder_for_it(toys, tmp_path):
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(RunDirError, match="is a run; a sweep needs its own folder"):
        choose("toy", epochs=1, out=tmp_path, plugins=toys, **COMMON)


def test_times():
    assert [_seconds(text, None) for text in ("90s", "30m", "2h", " 1.5H ", 20, 0.5)] == [90, 1800, 7200, 5400, 20, 0.5]


# -- the score ------------------------------------------------------------------------------------
def test_the_score_is_that_of_the_same_views_each_time(toys):
    images = build("data", "shapes", size=40, test_size=16).train()
    image = ImageSpec(12, 3, (0.5,) * 3, (0.2,) * 3)
    backbones = [build("backbone", "toy", image, plugins=toys).eval() for _ in range(2)]
    scores = [told_apart(backbone, images) for backbone in (*backbones, backbones[0])]
    assert scores[0] == scores[2] != scores[1]
