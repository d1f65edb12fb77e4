"""`akssl compare`: what differs, what came out, what it cost, as text, JSON and one page."""

from __future__ import annotations

import json
import re

import pytest
from synthetic_run import CONFIG, EVIL, FINAL, ROWS, Page, row, write_run

import akssl_core
from akssl_core.errors import ConfigError
from akssl_core.reporting.svg import COLOURS, DASHES, overlay_chart, series

SCORE = {"system": "trained", "labels": 1.0, "k": 20, "accuracy": 66.5, "low": 64.25, "high": 68.75}
OTHER = {**SCORE, "system": "random init", "accuracy": 30.0}
EVALUATION = {"results": {"knn": {"photos": {"1": {"k": 20, "scores": [OTHER, {**SCORE, "k": 10}, SCORE]}}}}}


@pytest.fixture
def two(tmp_path):
    first = {**CONFIG, "train": {**CONFIG["train"], "batch_size": 16}}
    second = {**first, "method": {"name": "toy", "out_dim": 8}, "optimizer": {"lr": 0.3}}
    a = write_run(tmp_path / "a", config=first)
    b = write_run(tmp_path / "b", config=second, final={**FINAL, "knn_top1": None, "extra": 2.0}, status="collapsed")
    return a, b


def test_settings_that_differ(two):
    found = akssl_core.compare(*two)
    assert found.settings == {"method.out_dim": (4, 8), "optimizer.lr": (None, 0.3)}
    assert re.search(r"^method\.out_dim +4 +8$", found.text, re.MULTILINE)
    assert "All settings are the same." in akssl_core.compare(two[0]).text


def test_final_numbers_and_cost(two):
    first, second = akssl_core.compare(*two).runs
    assert str(first.metrics["knn_top1"]) == "61.4"
    assert str(second.metrics["knn_top1"]) == "-"
    assert second.status == "collapsed"
    assert first.cost == {"seconds": 2.0 * len(ROWS), "images_per_s": 50.0, "images_seen": 30 * 16.0}
    text = akssl_core.compare(*two).text
    assert re.search(r"^a +toy +finished +-0.9 +61.4 ", text, re.MULTILINE)
    assert re.search(r"^b +30 +50 +480$", text, re.MULTILINE)


def test_intervals_of_an_evaluation(two):
    (two[0] / "evaluation.json").write_text(json.dumps(EVALUATION))
    found = akssl_core.compare(*two)
    assert str(found.runs[0].metrics["knn on photos, labels 1"]) == "66.5 [64.25, 68.75]"
    assert "knn on photos, labels 1" not in found.runs[1].metrics
    assert found.record()["runs"][0]["metrics"]["knn on photos, labels 1"] == {
        "value": 66.5,
        "low": 64.25,
        "high": 68.75,
    }
    assert "66.5 [64.25, 68.75]" in found.page()


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[]",
        "null",
        '{"results": 3}',
        '{"results": {"knn": [1]}}',
        '{"results": {"knn": {"x": {"1": null}}}}',
        '{"results": {"knn": {"x": {"1": {"scores": [3, {"system": "trained", "accuracy": "high"}]}}}}}',
        "[" * 100_000,
    ],
)
def test_an_evaluation_of_another_form_is_passed_over(two, text):
    (two[0] / "evaluation.json").write_text(text)
    assert list(akssl_core.compare(two[0]).runs[0].metrics) == list(FINAL)


def test_a_run_that_has_only_begun(tmp_path, two):
    folder = tmp_path / "young"
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "manifest.json").write_text('{"status": "running"}')
    found = akssl_core.compare(two[0], folder)
    assert found.runs[1].cost == {}
    assert re.search(r"^young +None +running +- +-", found.text, re.MULTILINE)
    Page(found.page())


def test_the_page_holds_every_run_in_every_chart(two):
    page = Page(akssl_core.compare(*two).page())
    charts = [attrs for attrs in page.all("svg") if attrs.get("role") == "img"]
    titles = [attrs["aria-label"].split(" over")[0] for attrs in charts]
    assert titles[:2] == ["Loss", "k-NN accuracy, %"]
    own = [attrs["class"] for attrs in page.all("g")]
    assert own.count("series-0") == own.count("series-1") == len(charts) + 1  # and once in the legend
    assert [attrs["id"] for attrs in page.all("section")] == ["scores", "curves", "cost", "settings-that-differ"]


def test_names_cannot_become_markup(tmp_path):
    config = {**CONFIG, "data": {"name": EVIL}}
    runs = [
        write_run(tmp_path / "<img src=x onerror=alert(1)>", config=config, method=EVIL, status=EVIL),
        write_run(tmp_path / "b", final={**FINAL, EVIL: 1.0}),
    ]
    html = akssl_core.compare(*runs).page()
    page = Page(html)
    assert not page.all("script")
    assert not page.all("img")
    assert EVIL in page.text
    assert "http://" not in html
    assert "https://" not in html


def test_a_curve_without_points_keeps_its_colour(tmp_path):
    empty = write_run(tmp_path / "empty", rows=[], final=None, status="running")
    single = write_run(tmp_path / "single", rows=[row(2)])
    page = Page(akssl_core.compare(empty, single).page())
    assert len(page.all("circle")) == len([attrs for attrs in page.all("svg") if attrs.get("role") == "img"])
    assert overlay_chart([("a", []), ("b", [(0.0, 1.0)])], title="t", x_label="x").count("<circle") == 1


def test_many_curves_look_different():
    assert len({series(number) for number in range(COLOURS * (DASHES + 1))}) == COLOURS * (DASHES + 1)


def test_runs_of_one_name_are_told_by_their_paths(tmp_path):
    for parent in ("x", "y"):
        (tmp_path / parent).mkdir()
        write_run(tmp_path / parent / "run")
    names = [run.name for run in akssl_core.compare(tmp_path / "x" / "run", tmp_path / "y" / "run").runs]
    assert names == [str(tmp_path / "x" / "run"), str(tmp_path / "y" / "run")]


def test_the_command(here, two):
    code, out, err = here("compare", *two, "--out", "compare.html")
    assert (code, err) == (0, "")
    assert "The page: compare.html" in out
    Page((two[0].parent / "compare.html").read_text())
    code, _, err = here("compare", *two, "--out", "compare.html")
    assert (code, "exists already. Replace it with --overwrite" in err) == (2, True)
    assert here("compare", *two, "--out", "compare.html", "--overwrite")[0] == 0
    code, out, _ = here("compare", *two, "--json")
    assert (code, json.loads(out)["settings"]["optimizer.lr"]) == (0, [None, 0.3])


def test_what_is_refused(here, two):
    code, _, err = here("compare", two[0], two[0].parent / "aa")
    assert (code, "holds no run" in err) == (2, True)
    with pytest.raises(ConfigError, match="expected the folders of two or more runs"):
        akssl_core.compare()
    with pytest.raises(ConfigError, match="out: there is no folder 'nowhere' to write compare.html to"):
        akssl_core.compare(*two, out="nowhere/compare.html")


def test_a_number_that_stands_for_a_schedule_is_beside_its_start(tmp_path):
    a = write_run(tmp_path / "a", config={**CONFIG, "optimizer": {"lr": 0.3}})
    b = write_run(tmp_path / "b", config={**CONFIG, "optimizer": {"lr": {"start": 0.1, "end": 0.0}}})
    found = akssl_core.compare(a, b).settings
    assert found == {"optimizer.lr.start": (0.3, 0.1), "optimizer.lr.end": (None, 0.0)}


LOST = {
    "metrics.jsonl: 15 of 16 lines can be read": lambda run: append(run, "half a li"),
    "metrics.jsonl has no rows, and the run has ended": lambda run: (run / "metrics.jsonl").write_text(""),
    "manifest.json says nothing of how the run went": lambda run: (run / "manifest.json").write_text("{}"),
}


def append(run, text):
    with (run / "metrics.jsonl").open("a") as rows:
        rows.write(text)


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("lost", LOST)
def test_what_rows_and_manifest_have_lost_is_said(here, two, lost):
    LOST[lost](two[0])
    for command in (("report", two[0]), ("compare", *two)):
        code, _, err = here(*command)
        assert (code, err) == (0, f"akssl: warning: {two[0]}: {lost}\n")
