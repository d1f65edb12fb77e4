"""`resume="auto"`: a run begins, goes on where its folder holds it, and is refused where that holds another."""

from __future__ import annotations

import json
import shutil

import pytest
from whole_runs import losses, same

from akssl_core.errors import ConfigError, RunDirError
from akssl_core.rundir.folder import RunDir
from akssl_core.running.explain import explain
from akssl_core.running.launch import resume as go_on
from akssl_core.running.launch import run

SETTINGS = {"epochs": 3, "options": {"noise": 0.1}, "train": {"checkpoint_every": 1, "log_every": 2}}


@pytest.mark.parametrize("step", [0, 5])
def test_the_same_call_begins_goes_on_and_reads(start, killed, step):
    whole = start("whole", **SETTINGS)
    killed(step, "run", resume="auto", **SETTINGS)
    result = start(resume="auto", **SETTINGS)
    assert losses(result) == losses(whole)
    assert same(result.run_dir, whole.run_dir)
    assert json.loads((result.run_dir / "manifest.json").read_text())["resumed_at"] == step
    files = {path: path.stat().st_mtime_ns for path in result.run_dir.rglob("*") if path.is_file()}
    again = start(resume="auto", **SETTINGS)
    assert again.metrics == result.metrics
    assert {path: path.stat().st_mtime_ns for path in files} == files, "a run that has ended is only read"


OTHER = [
    ({"seed": 5}, "seed: 0 -> 5"),
    ({"options": {"noise": 0.5}}, "method.noise: 0.1 -> 0.5"),
    ({"options": {}}, "method.noise: 0.1 was asked for, and is not now"),
    ({"optimizer": {"lr": 0.1}}, "optimizer.lr.start: 0.025 -> 0.1"),
    ({"recipe": "cifar"}, 'recipe: "default" -> "cifar"'),
]


@pytest.mark.parametrize(("other", "difference"), OTHER)
@pytest.mark.parametrize("step", [0, 5])
def test_another_run_is_refused_with_what_differs(start, killed, step, other, difference):
    """Before the first checkpoint too, where there are no trained steps whose meaning could change."""
    killed(step, "run", **SETTINGS)
    folder = start.folder / "run"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="holds another run than the one that is asked for: ") as caught:
        start(resume="auto", **{**SETTINGS, **other})
    assert difference in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in before} == before


BUDGET = {**SETTINGS, "epochs": None}


@pytest.fixture
def timed(monkeypatch):
    """Every step takes 0.3 s, as far as a budget is concerned."""
    monkeypatch.setattr("akssl_core.running.estimate.seconds_per_step", lambda plan, enough: (0.3, 5))


def test_a_budget_is_as_many_steps_as_fit(start, killed, timed, monkeypatch):
    result = start("ten", budget="3s", **BUDGET)
    assert result.history[-1]["step"] == 10
    rates = [row["lr"] for row in result.history]
    assert rates[-1] < 0.3 * max(rates), "the schedule ends with the steps"
    folder = RunDir.open(result.run_dir)
    assert folder.read_config()["train"]["steps"] == 10
    assert folder.origins["train.steps"] == "budget 3s at 0.3 s a step"
    killed(5, "run", budget="3s", **BUDGET)
    monkeypatch.setattr("akssl_core.running.estimate.seconds_per_step", None)  # what was begun is not timed again
    assert losses(start(resume="auto", budget="3s", **BUDGET)) == losses(result)


def test_a_budget_wins_over_the_length_in_a_file(start, killed, timed):
    asked = {**BUDGET, "config": {"train": {"epochs": 7, "steps": None}}, "budget": "3s"}
    assert start("ten", **asked).history[-1]["step"] == 10
    killed(5, "run", **asked)
    assert start(resume="auto", **asked).history[-1]["step"] == 10


def test_a_run_of_a_budget_trains_further_for_more_epochs(start, toys, photos, timed):
    short = start("run", budget="3s", **BUDGET)
    with pytest.warns(UserWarning, match=r"train.epochs: 2 -> 5; train.steps: 10 -> null"):
        result = go_on(short.run_dir, epochs=5, data=photos, plugins=toys)
    assert result.history[-1]["epoch"] == 5


def test_a_budget_shorter_than_a_step_is_told(start, timed):
    with pytest.warns(UserWarning, match=r"a step takes 0.3 s here, longer than 0.1s: one is trained"):
        assert start(budget="0.1s", **BUDGET).history[-1]["step"] == 1


def test_explain_tells_how_many_steps_fit(toys, timed):
    found = explain("toy", budget="3s", data={"name": "shapes", "size": 64}, plugins=toys)
    assert (found.settings["train.steps"], found.origins["train.steps"]) == (10, "budget 3s at 0.3 s a step")


@pytest.mark.parametrize("budget", ["ten", "3d", "0s", -1, "inf", True])
@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_budget_is_a_time(start, budget, resume):
    with pytest.raises(ConfigError, match="budget: expected a time as 90s, 30m or 2h, got"):
        start(budget=budget, resume=resume, **BUDGET)


def test_a_budget_and_epochs_are_one_too_many(start):
    with pytest.raises(ConfigError, match="Leave epochs out, or the budget"):
        start(budget="3s", **SETTINGS)


def test_what_moves_no_weight_may_differ(start, killed):
    killed(5, "run", **SETTINGS)
    with pytest.warns(UserWarning, match=r"resumed with other settings: train.keep: 2 -> 5"):
        result = start(resume="auto", **{**SETTINGS, "train": {**SETTINGS["train"], "keep": 5}})
    assert result.history[-1]["epoch"] == 3


def test_what_a_run_that_has_ended_cannot_heed_is_said(start):
    start(**SETTINGS)
    with pytest.warns(UserWarning, match="has ended and is read; .* has no effect: evaluate.k: 20 -> 5"):
        start(resume="auto", **SETTINGS, evaluate={"k": 5})


def test_a_start_that_has_gone_since_is_the_same_start(start, killed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start("first", **SETTINGS)
    began = {**SETTINGS, "start": start.folder.relative_to(tmp_path) / "first"}
    whole = start("whole", **began)
    killed(5, "run", **began)
    shutil.rmtree(start.folder / "first")
    result = start(resume="auto", **began)
    assert losses(result) == losses(whole)
    assert start(resume="auto", **began).metrics == result.metrics
    with pytest.raises(ConfigError, match="start.source: "):
        start(resume="auto", **{**SETTINGS, "start": "second"})


def test_more_epochs_take_a_run_that_has_ended_further(start):
    start(**SETTINGS)
    with pytest.warns(UserWarning, match="train.epochs: 3 -> 4"):
        assert start(resume="auto", **{**SETTINGS, "epochs": 4}).history[-1]["epoch"] == 4


def test_who_decided_a_setting_is_known_after_a_resume(start, killed, toys, photos):
    killed(5, "run", **SETTINGS)
    before = json.loads((start.folder / "run" / "provenance.json").read_text())
    with pytest.warns(UserWarning, match="resumed with other settings: evaluate.k: 20 -> 3"):
        go_on(start.folder / "run", data=photos, plugins=toys, evaluate={"k": 3})
    after = json.loads((start.folder / "run" / "provenance.json").read_text())
    assert before["method.noise"] == after["method.noise"] == "user"
    told = {"evaluate.k": "resume", "train.devices": "the launcher", "data.name": "resume", "data.type": "resume"}
    assert {path: who for path, who in after.items() if who != before[path]} == told
    with pytest.raises(ConfigError, match="method.noise: 0.1 was asked for, and is not now"):
        start(resume="auto", **{**SETTINGS, "options": {}})


def test_what_cannot_be_meant_is_refused(start, toys, photos):
    with pytest.raises(ConfigError, match=r"'auto' goes on in the folder that --out names, and none is named\. Give"):
        run("toy", data=photos, plugins=toys, resume="auto")
    with pytest.raises(ConfigError, match="--overwrite would replace"):
        start(resume="auto", overwrite=True)
    with pytest.raises(ConfigError, match="resume: expected 'auto', got 'yes'"):
        start(resume="yes")
    (start.folder / "file").write_text("")
    with pytest.raises(RunDirError, match="is a file"):
        start("file", resume="auto")
    assert [path.name for path in start.folder.iterdir()] == ["file"]


SMALL = ("--image-size", 16, "--batch-size", 16, "--epochs", 1, "--precision", "fp32", "--device", "cpu", "--no-report",
         "--set", "data.size=64", "--set", "data.test_size=32", "--backbone", "resnet_tiny")  # fmt: skip


def test_the_command_goes_on_and_exits_with_2_for_another_run(here, tmp_path):
    command = ("run", "simsiam", *SMALL, "--out", "run", "--resume", "auto")
    first, second = here(*command), here(*command)
    assert first[0] == second[0] == 0
    assert first[1] == second[1]
    code, out, err = here(*command, "--seed", 4)
    assert (code, out) == (2, "")
    assert "seed: 0 -> 4" in err
    assert len(err.strip().splitlines()) == 1
