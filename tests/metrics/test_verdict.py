"""One verdict: every surface says the same words of a run, and one margin decides what is learned."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from html import unescape
from types import SimpleNamespace

import pytest
import torch
from synthetic_run import FINAL, ROWS, row, write_run

import akssl_core
from akssl_core.examining import examine_run
from akssl_core.metrics.diagnosis import Diagnosis, diagnose, margin, read_diagnosis
from akssl_core.metrics.interval import Interval, interval
from akssl_core.reporting import render
from akssl_core.rundir.folder import RunDir
from akssl_core.running.process import read_result
from akssl_core.sweeps import _finish
from akssl_core.sweeps.grid import Combination

ALIKE = [row(step, z_std_ratio=0.9 if step < 40 else 0.02) for step in range(10, 201, 10)]
STILL = [row(step, backbone_step=0.0) for step in range(10, 201, 10)]
BELOW = {"knn_top1": 20.0}
BETTER = {"knn_top1": 33.75}  # 3.5 points above the untrained backbone
UNLABELLED = {"loss": 0.1, "std_ratio": 0.5, "rankme": 40.0}
RUNS = {
    "healthy, learned": {},
    "healthy, but barely better than the untrained backbone": {"scores": BETTER},
    "healthy, but did not beat the untrained backbone": {"scores": {"knn_top1": 25.0}},
    "healthy, but did not beat raw pixels": {"scores": {"knn_top1": 20.0, "knn_random_init": 10.0}},
    "healthy, but did not beat raw pixels and the untrained backbone": {"scores": BELOW},
    "healthy": {"final": UNLABELLED},
    "collapsed": {"final": UNLABELLED, "rows": ALIKE},
    "collapsed, did not beat raw pixels and the untrained backbone": {"scores": BELOW, "rows": ALIKE},
    "collapsed, barely better than the untrained backbone": {"scores": BETTER, "features": "collapsed"},
    "not learning": {"rows": STILL},  # good numbers of a backbone that never moved are no learning
    "not learning, barely better than the untrained backbone": {"scores": BETTER, "rows": STILL},
    "dimensional collapse, barely better than the untrained backbone": {
        "scores": BETTER,
        "features": "dimensional collapse",
    },
    "dimensional collapse, did not beat raw pixels and the untrained backbone": {
        "scores": BELOW,
        "features": "dimensional collapse",
    },
    "healthy, but worse than the start": {"scores": {"knn_start": 70.0}},
    "healthy, but did not beat the start": {"scores": {"knn_start": 62.0}},
    "healthy, but barely better than the start": {"scores": {"knn_start": 60.0}},
    "collapsed, worse than the start": {"scores": {"knn_start": 70.0}, "rows": ALIKE},
}


def judged(path, *, scores=None, final=None, rows=ROWS, features="healthy"):
    """A run folder as a run with these numbers leaves it, and its verdict."""
    final = final or {**FINAL, **(scores or {})}
    found = diagnose(rows, scores=final, features=features)
    status = "collapsed" if found.verdict == "collapsed" else "finished"
    write_run(path, rows=rows, final=final, status=status, verdict=found.verdict, diagnosis=asdict(found))
    return found


def result_of(folder):
    """What Python returns of the run in a folder."""
    return read_result(RunDir.open(folder), SimpleNamespace(preprocess=object()))


@pytest.mark.parametrize("words", RUNS)
def test_every_surface_says_the_same_words(words, tmp_path):
    folder = tmp_path / "run"
    found = judged(folder, **RUNS[words])
    assert found.words == words
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["verdict"] == found.verdict
    assert Diagnosis(**manifest["diagnosis"]) == found

    result = result_of(folder)
    assert (result.verdict, result.diagnosis) == (found.verdict, found)

    console = result.text
    assert f"Verdict: {words}\n" in console
    for part in (found.evidence, found.cause, found.cure):
        assert part in console

    sentence = unescape(re.search(r'<p class="verdict \w+"[^>]*>(.*?)</p>', render(folder)).group(1))
    assert sentence[0].lower() + sentence[1:] == str(found)

    findings = [one for one in examine_run(folder) if one.rule in ("collapsed-or-stuck", "below-a-baseline")]
    told = [(one.evidence, one.cause, one.cure) for one in findings]
    assert told == ([(f"{words}: {found.evidence}", found.cause, found.cure)] if found.cause else [])

    compared = akssl_core.compare(folder)
    assert re.search(rf" {re.escape(words)}$", compared.text, re.MULTILINE)
    assert f"<td>{words}</td>" in compared.page()
    assert compared.record()["runs"][0]["diagnosis"] == asdict(found)


@pytest.mark.parametrize("words", RUNS)
def test_a_sweep_says_the_same_words(words, tmp_path):
    one = Combination("toy", {}, 0)
    judged(tmp_path / one.folder, **RUNS[words])
    found = _finish(tmp_path, [one], {}, {})
    assert [dict(line.verdicts) for line in found.rows] == [{words: 1}]
    assert words in found.text
    assert words in (tmp_path / "results.md").read_text()


def test_a_collapse_of_the_rank_and_a_small_gain_are_one_verdict(tmp_path):
    found = judged(tmp_path / "run", scores=BETTER, features="dimensional collapse")
    assert "learned" not in str(found)
    assert "learned" not in re.search(r'<p class="verdict.*?</p>', render(tmp_path / "run")).group(0).lower()
    clear = judged(tmp_path / "clear", scores={"knn_top1": 45.0}, features="dimensional collapse")
    assert clear.words == "healthy, learned"


def test_a_run_below_its_untrained_backbone_says_so_on_the_console(tmp_path):
    judged(tmp_path / "run", scores={"knn_top1": 28.0, "knn_raw_pixels": 40.0})
    said = result_of(tmp_path / "run").text
    assert "Verdict: healthy, but did not beat raw pixels and the untrained backbone\n" in said
    assert "the untrained backbone 30.2 % (-2.2 points [-6.2, +1.7])" in said
    assert "\n  cure: train longer" in said


# -- the margin -----------------------------------------------------------------------------------
def test_the_margin_is_that_of_chance():
    assert margin(50, 50, 5000) == pytest.approx(1.96, abs=0.01)
    assert margin(50, 50, 1000) == pytest.approx(4.38, abs=0.01)
    assert margin(100, 100, 64) > 2  # a perfect score of few images is not certain
    assert margin(30, 31, 1000) == margin(31, 30, 1000)


def answers(score, queries, *, shift=0):
    """A right answer for the first images, from `shift` on."""
    return 100 * torch.roll(torch.arange(queries) < score / 100 * queries, shift).double()


@pytest.mark.parametrize(
    ("queries", "shift", "outcome"),
    [
        (5000, 0, "learned"),
        (5000, 2500, "barely better than the untrained backbone"),  # right and wrong of other images each
        (40, 0, "barely better than the untrained backbone"),
    ],
)
def test_a_gain_is_clear_where_its_paired_interval_lies_above_zero(queries, shift, outcome):
    gain = answers(34, queries) - answers(32.5, queries, shift=shift)
    paired = {"random_init": interval(gain[None], least=-100, most=100)}
    found = diagnose(ROWS, scores={**FINAL, "knn_top1": 34.0, "knn_random_init": 32.5}, paired=paired)
    assert found.outcome == outcome
    assert f"32.5 % ({gain.mean():+.1f} points [{paired['random_init'].low:+.1f}, " in found.evidence


def test_a_run_that_made_its_start_worse_is_told_how_to_keep_it(tmp_path):
    scores = {**FINAL, "knn_start": 63.0}
    worse = diagnose(ROWS, scores=scores, paired={"start": Interval(-1.6, -2.4, -0.8)})
    assert worse.words == "healthy, but worse than the start"
    assert "the start 63.0 % (-1.6 points [-2.4, -0.8])" in worse.evidence
    assert all(cure in worse.cure for cure in ("akssl adapt", "lower optimizer.lr", "longer start.warm_heads"))
    assert worse.fell_short
    unsure = diagnose(ROWS, scores=scores, paired={"start": Interval(-1.6, -3.4, 0.2)})
    assert unsure.outcome == "did not beat the start"
    assert "akssl adapt" not in unsure.cure


@pytest.mark.parametrize("gain", [0.0, 1.0, 3.0, 4.0, 4.5, 6.0, 20.0])
@pytest.mark.parametrize("features", ["healthy", "dimensional collapse", "collapsed"])
def test_no_gain_gives_two_verdicts(gain, features):
    found = diagnose(ROWS, scores={**FINAL, "knn_top1": 30.25 + gain}, features=features)
    learned = gain > margin(30.25 + gain, 30.25, 1000)
    assert (found.outcome == "learned") == learned
    assert (found.verdict == "healthy") == (learned or features == "healthy")


# -- run folders of earlier versions ----------------------------------------------------------------
OLD = {"verdict": "healthy", "evidence": "", "cause": "", "cure": ""}
STUCK = {"verdict": "not learning", "evidence": "it stands still.", "cause": "c.", "cure": "d."}


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({}, "healthy, learned"),
        ({"diagnosis": OLD}, "healthy, learned"),
        ({"diagnosis": None, "final": {**FINAL, "knn_top1": None}}, "healthy"),
        ({"diagnosis": OLD, "final": {**FINAL, **BELOW}}, list(RUNS)[4]),
        ({"diagnosis": STUCK}, "not learning"),
        ({"diagnosis": {**STUCK, "verdict": "dimensional collapse"}, "final": {**FINAL, **BETTER}}, list(RUNS)[11]),
        ({"status": "collapsed", "final": {}}, "collapsed"),
        ({"status": "running", "final": None, "diagnosis": STUCK}, "not learning"),
        ({"status": "running", "final": None}, "healthy"),
        ({"diagnosis": ["of", "another", "form"]}, "healthy, learned"),
    ],
)
def test_the_manifest_of_an_earlier_version_is_read(manifest, words):
    assert read_diagnosis({"status": "finished", "final": FINAL, **manifest}, ROWS).words == words


@pytest.mark.parametrize("status", ["running", "stopped", "failed"])
def test_a_run_that_has_not_ended_tells_its_fault_and_no_outcome(status, tmp_path):
    fault = asdict(diagnose(ALIKE))
    folder = write_run(tmp_path / "run", rows=ALIKE, status=status, final={}, diagnosis=fault)
    assert "Collapsed: the projections of different images" in render(folder)
    assert any(one.rule == "collapsed-or-stuck" for one in examine_run(folder))
    assert akssl_core.compare(folder).runs[0].verdict == "collapsed"
    sound = write_run(tmp_path / "sound", status=status, final={})
    assert akssl_core.compare(sound).runs[0].verdict == "-"
