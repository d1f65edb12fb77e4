"""The start is a system like the others: every place that scores a run shows it, paired and with its interval."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest
import torch
from whole_runs import AKSSL, Stop

import akssl_core
from akssl_core.examining import examine_run
from akssl_core.exporting.backbone_file import load_backbone
from akssl_core.metrics.diagnosis import KEEP
from akssl_core.rundir.folder import RunDir, read_tensors
from akssl_core.running.launch import resume, run

CALM = {"name": "pair", "jitter": 0.0, "grayscale": 0.0}
BLIND = {"name": "pair", "jitter": 1.0, "grayscale": 1.0}


@pytest.fixture
def hues():
    """600 images of 12 x 12 px; the label is the hue, which a method that must ignore colour forgets."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 6
    tint = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]])
    pixels = 90 * torch.rand(600, 3, 12, 12, generator=generator) + 60 * tint[labels][:, :, None, None]
    shades = torch.randint(0, 100, (600, 1, 1, 1), generator=generator)
    return (pixels + shades).clamp(0, 255).to(torch.uint8), labels


@pytest.fixture
def good(start, hues):
    """A run folder whose features tell the hues apart."""
    return start("good", data=hues, augmentation=CALM, report=False).run_dir


@pytest.fixture
def started(finished, tmp_path):
    """A run that began from the weights of another, on the same images."""
    return run(
        "simsiam",
        data={"name": "shapes", "size": 60, "test_size": 40},
        start=finished,
        image_size=12,
        epochs=1,
        batch_size=20,
        precision="fp32",
        seed=3,
        options={"out_dim": 16},
        out=tmp_path / "started",
    )


def manifest(run_dir):
    return json.loads((run_dir / "manifest.json").read_text())


def brackets(by):
    return f"[{by['low']:+.1f}, {by['high']:+.1f}]"


def stop():
    raise Stop


# -- where it is shown ----------------------------------------------------------------------------
def test_every_place_shows_the_start_with_a_paired_interval(started, finished, here):
    folder, final = started.run_dir, manifest(started.run_dir)["final"]
    assert final["knn_start"] == manifest(finished)["final"]["knn_top1"], "the same weights, images and preprocessing"
    assert final["knn_random_init"] == manifest(finished)["final"]["knn_random_init"], "the same network, untrained"
    assert manifest(folder)["baselines"]["knn_start"] == final["knn_start"] == started.metrics["knn_start"]

    above = manifest(folder)["above"]
    assert list(above) == ["raw_pixels", "random_init", "start"]
    for name, by in above.items():
        assert by["mean"] == pytest.approx(final["knn_top1"] - final[f"knn_{name}"])
        assert by["low"] < by["mean"] < by["high"]
        assert brackets(by) in started.diagnosis.evidence
    said = f"the start {final['knn_start']:.1f} % ({above['start']['mean']:+.1f} points {brackets(above['start'])})"
    assert said in started.diagnosis.evidence
    assert said in started.text
    assert re.search(r"k-NN top-1, the start +\d", started.text)

    page = (folder / "report.html").read_text()
    assert said in page
    assert "the weights it began from" in page
    assert f"<td>{above['start']['mean']:+.1f} {brackets(above['start'])}</td>" in page

    compared = akssl_core.compare(folder, finished)
    assert {"knn_start", "knn_top1 - knn_start"} <= compared.runs[0].metrics.keys()
    difference = compared.record()["runs"][0]["metrics"]["knn_top1 - knn_start"]
    assert difference == {"value": above["start"]["mean"], "low": above["start"]["low"], "high": above["start"]["high"]}

    findings = [one.evidence for one in examine_run(folder) if one.rule == "below-a-baseline"]
    assert findings == ([f"{started.diagnosis.words}: {started.diagnosis.evidence}"] if started.diagnosis.cause else [])


def test_eval_judges_the_start_when_its_file_is_gone(started, finished, here):
    (finished / "backbone.safetensors").unlink()
    found = akssl_core.evaluate(started.run_dir, k=20)
    assert found.metrics["knn_start"] == started.metrics["knn_start"]
    assert found.metrics["knn_random_init"] == started.metrics["knn_random_init"]
    against = {one.against: one for one in found.comparisons}
    assert list(against) == ["random init", "raw pixels", "start"]
    by = manifest(started.run_dir)["above"]["start"]
    assert (against["start"].low, against["start"].high) == (by["low"], by["high"]), "one statistic, one interval"
    assert "start [" in found.answer
    akssl_core.report(started.run_dir)
    assert ">start</th>" in (started.run_dir / "report.html").read_text()
    linear = akssl_core.evaluate(started.run_dir, "linear")
    assert "linear_start" in linear.metrics


def test_a_folder_that_does_not_keep_its_start_says_so(started, finished, here):
    (started.run_dir / "start.safetensors").unlink()
    found = akssl_core.evaluate(started.run_dir)
    assert "knn_start" not in found.metrics
    assert f"its folder does not keep them: compare with --weights {finished}" in found.notes[0]
    missing = [one.evidence for one in examine_run(started.run_dir) if one.rule == "missing-files"]
    assert missing == ["start.safetensors."]


# -- what is kept, and when -----------------------------------------------------------------------
def test_features_before_the_first_step_are_those_of_the_start_bit_for_bit(started, finished):
    source, kept = load_backbone(finished), load_backbone(started.run_dir / "start.safetensors")
    images = torch.randint(0, 256, (9, 3, 12, 12), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    with torch.no_grad():
        assert torch.equal(source(source.preprocess(images)), kept(kept.preprocess(images)))
    assert any(
        "kept in the run folder as start.safetensors, 0.0" in note for note in manifest(started.run_dir)["notes"]
    )


def test_baseline_zero_is_there_before_the_first_update(start, good, hues, at_step, tmp_path):
    at_step(1, stop)
    with pytest.raises(Stop):
        start("stopped", data=hues, start=good, report=False)
    folder = RunDir.open(tmp_path / "stopped")
    assert not folder.history
    assert folder.manifest.baselines["knn_start"] == manifest(good)["final"]["knn_top1"]
    files = folder.path / "start.safetensors", good / "backbone.safetensors"
    kept, first = (read_tensors(file)[0] for file in files)
    assert kept.keys() == first.keys()
    assert all(torch.equal(tensor, first[name]) for name, tensor in kept.items())


def test_a_resumed_run_is_as_far_above_its_start_as_an_unbroken_one(start, good, hues, toys, at_step, tmp_path):
    settings = {"data": hues, "start": good, "report": False, "train": {"checkpoint_every": 4}}
    whole = start("whole", **settings)
    at_step(6, stop)
    with pytest.raises(Stop):
        start("stopped", **settings)
    (good / "backbone.safetensors").unlink()
    resumed = resume(tmp_path / "stopped", data=hues, plugins=toys, report=False)
    assert resumed.diagnosis == whole.diagnosis
    assert manifest(resumed.run_dir)["above"] == manifest(whole.run_dir)["above"]
    (tensors, header), (expected, other) = (
        read_tensors(found.run_dir / "start.safetensors") for found in (resumed, whole)
    )
    assert header == other  # safetensors writes its texts in any order, so bytes may differ
    assert all(torch.equal(tensors[name], expected[name]) for name in tensors.keys() | expected.keys())


def test_without_the_answers_of_the_baselines_intervals_are_wide(start, good, hues, toys, at_step, tmp_path):
    at_step(6, stop)
    with pytest.raises(Stop):
        start("stopped", data=hues, start=good, report=False, train={"checkpoint_every": 4})
    (tmp_path / "stopped" / "baselines.safetensors").write_bytes(b"damaged")
    resumed = resume(tmp_path / "stopped", data=hues, plugins=toys, report=False)
    assert "above" not in manifest(resumed.run_dir)
    assert "the start" in resumed.diagnosis.evidence


def test_without_labels_the_start_is_kept_and_nothing_claimed(start, good, hues):
    result = start("unlabelled", data=hues[0], start=good, report=False)
    assert (result.run_dir / "start.safetensors").is_file()
    assert "knn_start" not in result.metrics
    assert result.diagnosis.words == "healthy"


# -- a start that was made worse ------------------------------------------------------------------
def test_a_run_that_made_a_good_start_worse_is_told_so(start, good, hues):
    hot = {"name": "sgd", "lr": 20.0}
    at_once = {"source": str(good), "warm_heads": 0}
    result = start("worse", data=hues, start=at_once, augmentation=BLIND, optimizer=hot, epochs=6)
    assert result.metrics["knn_start"] > 90
    assert result.diagnosis.words == "healthy, but worse than the start"
    assert result.diagnosis.cure == KEEP
    assert f"  cure: {KEEP}" in result.text
    assert manifest(result.run_dir)["above"]["start"]["high"] < 0
    assert 'class="verdict bad"' in (result.run_dir / "report.html").read_text()
    assert any(one.cure == KEEP for one in examine_run(result.run_dir))


# -- other ways to run ----------------------------------------------------------------------------
def test_every_run_of_a_sweep_begins_from_the_start(here, finished, tmp_path):
    common = ("--start", finished, "--image-size", 12, "--batch-size", 20, "--epochs", 1, "--precision", "fp32",
              "--set", "data.size=60", "--set", "data.test_size=40", "--no-report")  # fmt: skip
    words = ("sweep", "--methods", "simsiam", "--seeds", "0,1", *common, "--out", "sweep", "--json")
    code, out, err = here(*words)
    assert code == 0, err
    (row,) = json.loads(out)["rows"]
    first = manifest(finished)["final"]["knn_top1"]
    assert row["metrics"]["knn_start"]["values"] == [first, first]
    assert len(row["metrics"]["knn_top1 - knn_start"]["values"]) == 2
    assert all(path.is_file() for path in (tmp_path / "sweep").glob("*-seed=*/start.safetensors"))
    assert "knn_start" in (tmp_path / "sweep" / "results.md").read_text()
    (finished / "backbone.safetensors").unlink()
    code, again, err = here(*words)
    assert (code, json.loads(again)["rows"]) == (0, [row]), err


@pytest.mark.slow
def test_two_processes_begin_from_the_start_as_one_does(finished, tmp_path):
    words = ("--start", str(finished), "--image-size", "12", "--batch-size", "20", "--epochs", "1", "--precision",
             "fp32", "--device", "cpu", "--set", "data.size=60", "--set", "data.test_size=40")  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for devices in ("1", "2"):
        command = [*AKSSL, "run", "simsiam", *words, "--devices", devices, "--out", devices]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("k-NN top-1, the start") == 1
    one, two = (tmp_path / name for name in "12")
    assert manifest(one)["baselines"] == manifest(two)["baselines"]
    assert manifest(two)["baselines"]["knn_start"] == manifest(finished)["final"]["knn_top1"]
    kept = [read_tensors(folder / "start.safetensors")[0] for folder in (one, two)]
    assert all(torch.equal(tensor, kept[1][name]) for name, tensor in kept[0].items())
    assert list(manifest(two)["above"]) == ["raw_pixels", "random_init", "start"]
    with pytest.warns(UserWarning, match="train.epochs: 1 -> 2"):
        longer = resume(two, epochs=2, report=False)  # in one process, which never saw the first step
    assert list(manifest(longer.run_dir)["above"]) == ["raw_pixels", "random_init", "start"]
