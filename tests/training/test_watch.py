"""Runs that collapse or do not learn are called so, with the right cause; default recipes are not."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from on_trial import on_trial

import akssl_core
from akssl_core import Landmark, Method
from akssl_core.metrics.diagnosis import diagnose, read_diagnosis
from akssl_core.plugins.first_party import METHODS
from akssl_core.plugins.manager import Plugins

FAULTY = Path(__file__).parents[1] / "faulty"
TINY = {
    "data": {"name": "shapes", "size": 320, "test_size": 64},
    "image_size": 8,
    "batch_size": 32,
    "precision": "fp32",
    "report": False,
}
FAULTS = {
    "hot teacher": (
        "dino",
        None,
        {"teacher_temperature": 0.5, "freeze_last_layer_epochs": 1},
        "collapsed",
        "reaches 0.5, not below the student's 0.1",
    ),
    "no stop-gradient": ("no-stop-gradient", "no_stop_gradient.py", {}, "collapsed", "no stop-gradient"),
    "of its own": ("no-stop-alone", "no_stop_alone.py", {}, "collapsed", "a missing stop-gradient"),
    "detached": ("detached-codes", "detached_codes.py", {}, "not learning", "no gradient reaches the backbone"),
    "wrong sign": ("wrong-sign", "wrong_sign.py", {}, "not learning", "its sign is wrong"),
}


def train(out, method, file=None, options=None, steps=200, **more):
    plugins = Plugins()
    if file:
        plugins.load_file(FAULTY / file)
    train = {"steps": steps, "log_every": 10, **more.pop("train", {})}
    settings = {**TINY, "epochs": 20, "train": train, **more}
    result = akssl_core.run({**on_trial(method, plugins), **(options or {})}, out=out, plugins=plugins, **settings)
    return result, json.loads((out / "manifest.json").read_text())


@pytest.mark.filterwarnings("ignore:method.teacher_temperature", "ignore:collapsed", "ignore:train.batch_size")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_run_is_called_so_within_200_steps(fault, tmp_path):
    method, file, options, verdict, cause = FAULTS[fault]
    result, manifest = train(tmp_path / "run", method, file, options, train={"stop_on_collapse": True})
    found = manifest["diagnosis"]
    assert (result.verdict, found["verdict"]) == (verdict, verdict), found
    assert cause in found["cause"]
    assert found["evidence"]
    assert found["cure"]
    assert manifest["status"] == ("collapsed" if verdict == "collapsed" else "finished")
    last = result.history[-1]["step"]
    assert last < 200 if verdict == "collapsed" else last == 200


@pytest.mark.parametrize("method", ["simsiam", "dino", "swav"])
def test_the_same_methods_as_they_are_are_healthy(method, tmp_path):
    result, manifest = train(tmp_path / "run", method, steps=120, train={"stop_on_collapse": True})
    assert manifest["diagnosis"]["verdict"] == "healthy", manifest["diagnosis"]
    assert result.history[-1]["step"] == 120


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS))
def test_no_alarm_in_the_first_200_steps_of_the_default_recipes(method, tmp_path):
    data = {"name": "shapes", "size": 2500, "test_size": 500}
    settings = {"image_size": 16, "batch_size": None, "epochs": 25, "data": data}
    result, manifest = train(tmp_path / "run", method, train={"stop_on_collapse": True}, **settings)
    assert manifest["diagnosis"]["verdict"] == "healthy", manifest["diagnosis"]
    assert result.history[-1]["step"] == 200


# -- the diagnosis of rows --------------------------------------------------------------------------
def rows_of(count=10, every=20, **columns):
    """Rows whose columns are constants or functions of the step."""
    steps = [every * (i + 1) for i in range(count)]
    return [
        {"step": s, "lr": 0.1, "loss": 1.0, **{k: f(s) if callable(f) else f for k, f in columns.items()}}
        for s in steps
    ]


EVEN = Landmark("collapsed", {"entropy": (5.5, math.inf)}, "outputs are even", "the teacher is hot.", "cool it.")


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        (rows_of(entropy=5.6), "collapsed"),
        (rows_of(entropy=5.4), "healthy"),
        (rows_of(entropy=lambda s: 5.6 if s < 190 else 5.4), "healthy"),  # it has left
        (rows_of(entropy=lambda s: 5.6 if s > 190 else 5.4), "healthy"),  # one row alone
        (rows_of(count=4, entropy=5.6), "healthy"),  # 80 steps are too few
        (rows_of(count=1, every=200, entropy=5.6), "healthy"),
        (rows_of(count=2, every=100, entropy=5.6), "collapsed"),
        (rows_of(entropy=None), "healthy"),
        (rows_of(), "healthy"),
    ],
)
def test_a_run_is_at_a_landmark_when_all_of_its_last_rows_are(rows, verdict):
    found = diagnose(rows, [EVEN])
    assert found.verdict == verdict
    if verdict == "collapsed":
        assert found.evidence.startswith("outputs are even: entropy 5.6 (bound: above 5.5)")
        assert (found.cause, found.cure) == ("the teacher is hot.", "cool it.")


def test_projections_that_began_parallel_count_at_the_end_alone():
    rows = rows_of(count=100, z_std_ratio=0.05)
    assert diagnose(rows).verdict == "healthy"
    assert diagnose(rows, scores={}).verdict == "collapsed"


def test_all_terms_of_a_landmark_must_be_there():
    both = Landmark("collapsed", {"loss": (-1.0, -0.8), "spread": (0.0, 0.5)}, "m", "c", "c")
    assert diagnose(rows_of(loss=-0.9, spread=0.4), [both]).verdict == "collapsed"
    assert diagnose(rows_of(loss=-0.9, spread=0.6), [both]).verdict == "healthy"
    assert diagnose(rows_of(loss=-0.9), [both]).verdict == "healthy"


@pytest.mark.parametrize(
    ("columns", "verdict"),
    [
        ({"std_ratio": 0.001}, "collapsed"),
        ({"std_ratio": 0.02}, "healthy"),
        ({"z_std_ratio": 0.05}, "healthy"),  # it began there
        ({"z_std_ratio": lambda s: 0.05 if s > 20 else 0.9}, "collapsed"),
        ({"z_std_ratio": lambda s: 0.4 if s > 20 else 0.9}, "collapsed"),
        ({"z_std_ratio": lambda s: 0.5 if s > 20 else 0.9}, "healthy"),
        ({"backbone_step": 0.0}, "not learning"),
        ({"backbone_step": 1e-12}, "healthy"),
        ({"backbone_step": lambda s: 0.0 if s > 20 else 1e-3}, "healthy"),  # frozen later on purpose
        ({"backbone_step": 0.0, "lr": 0.0}, "healthy"),
        ({"loss": math.nan}, "not learning"),
        ({"loss": None}, "not learning"),
    ],
)
def test_what_holds_for_every_method(columns, verdict):
    assert diagnose(rows_of(**columns)).verdict == verdict


@pytest.mark.parametrize("columns", [{"std_ratio": 0.001}, {"z_std_ratio": lambda s: 0.05 if s > 20 else 0.9}])
def test_a_spread_is_no_fault_of_a_method_that_cannot_collapse(columns):
    rows = rows_of(**columns)
    assert diagnose(rows, features="collapsed").verdict == "collapsed"
    assert diagnose(rows, features="collapsed", collapses=False).verdict == "healthy"
    assert diagnose(rows_of(entropy=5.6), [EVEN], collapses=False).verdict == "collapsed", "its own landmarks hold"
    assert diagnose(rows_of(backbone_step=0.0), collapses=False).verdict == "not learning"
    told = {"final": {"std_ratio": 0.001}, "collapses": False}  # a run that has no verdict yet
    assert read_diagnosis(told, rows).verdict == "healthy"
    assert read_diagnosis({**told, "collapses": True}, rows).verdict == "collapsed"


class Blind(Method):
    """Its features are all but alike from the start on, and its loss does not mind."""

    name, paper, recipes, collapses = "blind", "Nobody", {"default": {}}, False

    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        with torch.no_grad():
            backbone.bn.weight.fill_(1e-4)
            backbone.bn.bias.fill_(1.0)

    def step(self, batch, now):
        return {"loss": sum(self.backbone(x).square().mean() for x in batch.views["global"])}


class Minding(Blind):
    """The same, of a method that says nothing."""

    name, collapses = "minding", True


@pytest.mark.filterwarnings("ignore:collapsed")
@pytest.mark.parametrize("method", [Blind, Minding])
def test_a_run_asks_its_method_whether_a_spread_is_a_fault(method, toys, tmp_path):
    toys.registry.add(method)
    settings = {**TINY, "epochs": 20, "backbone": "toy", "optimizer": {"name": "sgd", "lr": 1e-6}}
    train = {"steps": 130, "log_every": 10, "stop_on_collapse": True}
    result = akssl_core.run(
        method.name, out=tmp_path / "run", plugins=toys, train=train, **settings, evaluate={"every": 1}
    )
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert result.metrics["std_ratio"] < 0.01
    assert manifest["collapses"] is method.collapses
    assert (result.verdict == "collapsed") is method.collapses, manifest["diagnosis"]
    assert (result.history[-1]["step"] == 130) is not method.collapses


def test_accuracy_outweighs_a_spread_and_no_landmark():
    shrunk = rows_of(z_std_ratio=lambda s: 0.05 if s > 20 else 0.9)
    good = {"knn_top1": 60.0, "knn_raw_pixels": 20.0, "knn_random_init": 30.0}
    assert diagnose(shrunk, scores=good).verdict == "healthy"
    assert diagnose(shrunk, scores={**good, "knn_top1": 31.0}).verdict == "collapsed"
    assert diagnose(shrunk, scores=good, stopped=True).verdict == "collapsed"
    assert diagnose(rows_of(entropy=5.6), [EVEN], scores=good).verdict == "collapsed"


def test_final_features_count_where_no_row_tells():
    assert diagnose(rows_of(), features="dimensional collapse").verdict == "dimensional collapse"
    assert "all but the same" in diagnose(rows_of(), features="collapsed").evidence


# -- the command ----------------------------------------------------------------------------------
ARGUMENTS = (
    "--image-size", "8", "--batch-size", "32", "--epochs", "20", "--precision", "fp32", "--out", "run",
    "--set", "data.size=320", "--set", "data.test_size=64", "--set", "train.log_every=10",
)  # fmt: skip


@pytest.mark.filterwarnings("default:collapsed")
def test_the_command_stops_says_why_and_exits_with_1(here, tmp_path):
    plugin = FAULTY / "no_stop_gradient.py"
    code, out, err = here("run", "no-stop-gradient", "--plugin-file", plugin, *ARGUMENTS, "--stop-on-collapse")
    assert code == 1, err
    assert re.search(r"^Verdict: collapsed.*\n  evidence: views agree because", out, re.MULTILINE)
    assert "cure: compare predictions with z.detach()" in out
    assert "Stopped at step" in err
    report = (tmp_path / "run" / "report.html").read_text()
    assert re.search("Collapsed[^:]*: views agree because all projections become alike", report)
