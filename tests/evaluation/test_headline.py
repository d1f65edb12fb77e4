"""A method is judged by the protocol that it names: `eval` makes it, and the verdict waits for it."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from conftest import ToyMethod

import akssl_core
from akssl_core import hookimpl
from akssl_core.examining import examine_run
from akssl_core.metrics.diagnosis import Diagnosis
from akssl_core.reporting import render
from akssl_core.rundir.folder import RunDir
from akssl_core.rundir.schemas import Manifest
from akssl_core.running.launch import run

SHAPES = {"name": "shapes", "size": 60, "test_size": 40}


class Tuned(ToyMethod):
    """A method that is judged by fine-tuning."""

    name = "tuned"
    headline = "finetune"


@pytest.fixture
def more(toys, monkeypatch):
    """The toys with this method, and fine-tuning that lasts an instant."""

    class Plugin:
        @hookimpl
        def akssl_register(self, registry):
            registry.add(Tuned)

    monkeypatch.setattr("akssl_core.evaluation.protocols.EPOCHS", 1)
    monkeypatch.setattr("akssl_core.evaluation.protocols.LEAST", 3)
    toys.register(Plugin(), "tuned")
    return toys


@pytest.fixture
def tuned(more, tmp_path):
    return run("tuned", data=SHAPES, image_size=12, epochs=1, precision="fp32", out=tmp_path / "run", plugins=more)


def diagnosis(folder):
    return Diagnosis(**json.loads((folder / "manifest.json").read_text())["diagnosis"])


def test_the_verdict_says_what_is_to_come_and_by_which_command(tuned):
    found, folder = tuned.diagnosis, tuned.run_dir
    assert found.words == "healthy, but not judged by fine-tuning yet"
    assert "This method is judged by fine-tuning, which akssl eval has yet to do with all labels." in found.evidence
    assert "k-NN accuracy" in found.evidence
    assert not found.cause
    assert "\nVerdict: healthy, but not judged by fine-tuning yet\n" in tuned.text
    assert 'class="verdict open"' in render(folder)
    assert "below-a-baseline" not in [one.rule for one in examine_run(folder)]


def test_eval_judges_by_it_and_every_place_takes_the_result(tuned, more):
    folder = tuned.run_dir
    found = akssl_core.evaluate(folder, seeds=2, plugins=more)
    assert found.protocol == "finetune"
    told = diagnosis(folder)
    assert "yet" not in told.words
    assert told.outcome
    assert told.evidence.startswith(f"accuracy by fine-tuning {found.accuracy:.1f} %; raw pixels ")
    by = {one.against: one for one in found.comparisons}["random init"]
    random = (
        f"{found.metrics['finetune_random_init']:.1f} % ({by.difference:+.1f} points [{by.low:+.1f}, {by.high:+.1f}])"
    )
    assert f"the untrained backbone {random}" in told.evidence
    assert akssl_core.compare(folder).runs[0].verdict == told.words
    assert akssl_core.compare(folder).record()["runs"][0]["diagnosis"] == asdict(told)
    assert told.evidence in render(folder).replace("&#x27;", "'")
    assert json.loads((folder / "manifest.json").read_text())["verdict"] == told.verdict == "healthy"


def test_results_of_another_kind_leave_the_verdict(tuned, more, photos):
    folder = tuned.run_dir
    akssl_core.evaluate(folder, "knn", plugins=more)
    akssl_core.evaluate(folder, labels=0.5, seeds=1, plugins=more)
    akssl_core.evaluate(folder, data=photos, seeds=1, plugins=more)
    short = akssl_core.evaluate(folder, epochs=2, seeds=1, plugins=more)
    assert "shorter than by default: the verdict of the run stays as it is" in short.notes
    assert "a linear head: 2 epochs in steps of 64 images" in short.meaning
    assert diagnosis(folder) == tuned.diagnosis


def test_as_long_as_by_default_is_long_enough_for_a_verdict(tuned, more):
    assert "1 epoch in steps" in akssl_core.evaluate(tuned.run_dir, epochs=1, seeds=1, plugins=more).meaning
    assert "yet" in diagnosis(tuned.run_dir).words
    assert not akssl_core.evaluate(tuned.run_dir, epochs=3, seeds=1, plugins=more).notes
    assert "yet" not in diagnosis(tuned.run_dir).words


def test_labels_that_raw_pixels_cannot_learn_from_are_told_before_any_network_is_tuned(tuned, more, monkeypatch):
    monkeypatch.setattr("akssl_core.evaluation.protocols.train_whole", lambda *_, **__: pytest.fail("tuned"))
    with pytest.raises(akssl_core.DataError, match="a single image to learn from.* a larger share of the labels"):
        akssl_core.evaluate(tuned.run_dir, labels=0.01, plugins=more)


def test_a_fault_stays_a_fault(tuned, more):
    folder = RunDir.open(tuned.run_dir)
    fault = Diagnosis("collapsed", "all alike.", "c.", "d.")
    folder.update_manifest(Manifest(verdict="collapsed", diagnosis=asdict(fault)))
    akssl_core.evaluate(folder.path, seeds=1, plugins=more)
    assert diagnosis(folder.path) == fault


def test_the_method_s_protocol_comes_first_in_the_report(tuned, more):
    akssl_core.evaluate(tuned.run_dir, "knn", plugins=more)
    akssl_core.evaluate(tuned.run_dir, seeds=1, plugins=more)
    page = render(tuned.run_dir)
    assert page.index("finetune on shapes") < page.index("knn, k = 20 on shapes")


def test_settings_of_another_protocol_are_refused_by_the_default(tuned, more):
    with pytest.raises(akssl_core.ConfigError, match="k: a setting of the protocol 'knn'; this is 'finetune'"):
        akssl_core.evaluate(tuned.run_dir, k=5, plugins=more)
