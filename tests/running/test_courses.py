"""A run is told how far others of its recipe came on the same data, and only where it differs from them in its seed."""

from __future__ import annotations

import pytest

from akssl_core import Course, PluginError
from akssl_core.plugins.manager import Plugins
from akssl_core.running.layers import collect
from akssl_core.running.plan import make_plan

POINTS = ((19.0, 20.0, 21.0), (33.0, 40.0, 47.0))  # deviations of 1 and 7: 5 over both
SHAPES = {"name": "shapes", "size": 64, "test_size": 32}
ASKED = {"data": SHAPES, "epochs": 2, "seed": 3, "device": "cpu"}


@pytest.fixture
def expected(monkeypatch):
    """What SimSiam's run with these settings is held against, where runs are known of `SHAPES` and two epochs."""
    plugins = Plugins()
    method = plugins.get("method", "simsiam")
    sample = make_plan(collect("simsiam", None, ASKED, plugins), plugins).fingerprint()["sample"]

    def look(points=POINTS, **asked):
        monkeypatch.setattr(method, "courses", (Course("drawn", "other", POINTS), Course("shapes", sample, points)))
        found = make_plan(collect("simsiam", None, {**ASKED, **asked}, plugins), plugins).curves().get("knn_top1")
        return found and found.expected.table()

    return look


def test_runs_of_the_same_recipe_data_and_length_are_known(expected):
    told = expected()
    assert (told["data"], told["runs"]) == ("shapes", 3)
    after = [(20.0, 5.0, 35.0), (40.0, 25.0, 55.0)]
    assert [tuple(epoch.values()) for epoch in told["epochs"]] == after
    assert expected(precision="fp32", evaluate={"every": 1.0}, train={"keep": 1}) == told


@pytest.mark.parametrize(
    "asked",
    [
        {"epochs": 3},
        {"data": {**SHAPES, "seed": 1}},
        {"batch_size": 8},
        {"image_size": 16},
        {"options": {"predictor_lr": 1.0}},
        {"backbone": "resnet18"},
        {"recipe": "cifar"},
        {"evaluate": {"k": 5}},
        {"steps": 8},
    ],
    ids=str,
)
def test_a_run_that_differs_is_held_against_nothing(expected, asked):
    assert expected() is not None
    assert expected(**asked) is None


def test_room_is_three_points_at_least():
    assert Course("shapes", "x", ((50.0, 50.1), (60.0, 60.0))).expected()[1] == (60.0, 57.0, 63.0)


@pytest.mark.parametrize("runs", [((50.0,),), ((50.0, 51.0), (50.0,))], ids=str)
def test_a_course_is_of_several_runs(runs):
    with pytest.raises(ValueError, match="expected two runs or more, as many after each epoch"):
        Course("shapes", "x", runs)


def test_a_course_without_numbers_is_told(expected):
    with pytest.raises(PluginError, match=r"simsiam: a curve cannot be drawn: .* courses of SimSiam"):
        expected(points=((float("nan"), 1.0), (1.0, 1.0)))
