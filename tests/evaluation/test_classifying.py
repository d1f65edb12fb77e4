"""`finetune` and `predict`: a classifier learns, is calibrated, comes out of its file as it went in; and bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from whole_runs import SMALL

import akssl_core
from akssl_core import ConfigError, DataError, RunDirError
from akssl_core.evaluation import classifying
from akssl_core.exporting.backbone_file import learned_from_of, licences_of

QUICK = {"epochs": 100, "batch_size": 16}


@pytest.fixture
def photos(tmp_path):
    """Thirty noisy photos, dark ones of cats and bright ones of dogs."""
    generator = np.random.default_rng(0)
    for i in range(30):
        file = tmp_path / "photos" / ("cat" if i % 2 else "dog") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 160, (14, 14, 3)) + (0 if i % 2 else 95)
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    return tmp_path / "photos"


@pytest.fixture
def model(finished, photos, tmp_path):
    """A classifier that tells them apart."""
    return akssl_core.finetune(finished, tmp_path / "m.safetensors", data=photos, scratch=False, **QUICK).path


def header(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_a_classifier_learns_and_says_what_it_is_worth(finished, photos, tmp_path):
    found = akssl_core.finetune(finished, tmp_path / "m.safetensors", data=photos, **QUICK)
    assert found.classes == ("cat", "dog")
    assert found.accuracy.mean > 80
    assert found.accuracy.low < found.accuracy.mean <= found.accuracy.high
    assert found.scratch is not None
    assert found.gain.mean == pytest.approx(found.accuracy.mean - found.scratch.mean)
    assert (found.trained_on, found.tested_on) == (20, 6)  # a fifth of 30 tests, a fifth of the other 24 is held out
    assert found.temperature > 0
    assert "points against the same network from scratch" in found.text
    assert json.loads(header(found.path)["measured"])["accuracy"]["mean"] == found.accuracy.mean


def test_the_head_alone_leaves_the_backbone_as_it_is(finished, photos, tmp_path):
    for parts in ("head", "all"):
        path = tmp_path / f"{parts}.safetensors"
        found = akssl_core.finetune(finished, path, data=photos, parts=parts, scratch=False, **QUICK)
        before, after = load_file(finished / "backbone.safetensors"), load_file(path)
        same = all(torch.equal(after[f"backbone.{name}"], tensor) for name, tensor in before.items())
        assert same is (parts == "head")
        assert found.scratch is None
        assert found.steps == (100 if parts == "all" else 0)
        assert ("100 steps of all parts" in found.text) is (parts == "all")
        if parts == "head":
            assert found.accuracy == found.probe


def test_the_linear_layer_gives_the_scores_of_the_probe(finished, photos, tmp_path):
    path = akssl_core.finetune(finished, tmp_path / "m.safetensors", data=photos, parts="head", scratch=False).path
    classifier = akssl_core.load_classifier(path)
    features, ids, labels = akssl_core.embed(finished, data=photos)
    scores = features @ classifier.head.weight.T + classifier.head.bias
    probabilities = (scores / classifier.temperature).softmax(1)
    found = akssl_core.predict(path, photos)
    assert found.ids == ids
    torch.testing.assert_close(found.probabilities, probabilities, rtol=0, atol=1e-5)
    assert (probabilities.argmax(1) == labels).double().mean() > 0.8


def test_equal_calls_give_equal_files_and_leave_the_random_state(finished, photos, tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    paths = [
        akssl_core.finetune(finished, tmp_path / f"{i}.safetensors", data=photos, scratch=False, **QUICK).path
        for i in range(2)
    ]
    assert torch.equal(before, torch.get_rng_state())
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_temperature_is_the_likeliest_and_the_error_that_of_the_bins():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4000, 5, generator=generator)
    truth = torch.multinomial(scores.softmax(1), 1, generator=generator)[:, 0]
    none = torch.zeros(0, dtype=torch.int64)
    work = classifying._Work(None, ("a",) * 5, None, none, None, truth, truth, 1, 0, 1, torch.device("cpu"))
    assert work.temperature(3 * scores) == pytest.approx(3, rel=0.1)
    nine = torch.zeros(9, dtype=torch.int64)
    few = classifying._Work(None, ("a", "b"), None, none, None, nine, none, 1, 0, 1, work.device)
    assert 0.5 < few.temperature(torch.tensor([[2.0, -2.0]] * 9)) < 1, "nine that are right make nothing certain"
    assert work.calibration_error(scores) < 3
    assert work.calibration_error(5 * scores) > 20
    sure = torch.zeros(4, 2)
    sure[:, 0] = 30
    half = classifying._Work(None, ("a", "b"), None, none, None, none, torch.tensor([0, 0, 1, 1]), 1, 0, 1, work.device)
    assert half.calibration_error(sure) == pytest.approx(50)


def test_predictions_of_images_without_labels_in_each_table(model, photos, tmp_path, here):
    (photos / "cat" / "1.png").write_bytes(b"broken")
    found = akssl_core.predict(model, {"name": "folder", "path": str(photos), "labels": "none"}, tmp_path / "p.csv")
    assert list(found.unreadable) == ["cat/1.png"]
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert [row["id"] for row in rows] == found.ids
    assert [row["class"] for row in rows] == found.predicted
    assert [float(row["p_dog"]) for row in rows] == found.probabilities[:, 1].tolist()
    code, out, err = here("predict", model, "--data", photos, "--out", tmp_path / "p.npz", "--json")
    assert code == 0, err
    assert [one["class"] for one in json.loads(out)["images"]] == found.predicted
    with np.load(tmp_path / "p.npz") as arrays:
        assert np.array_equal(arrays["probabilities"], found.probabilities.numpy())
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    akssl_core.predict(model, photos, tmp_path / "p.parquet")
    assert parquet.read_table(tmp_path / "p.parquet").column("class").to_pylist() == found.predicted


def test_the_backbone_of_a_classifier_is_used_as_a_run_s_is_and_keeps_its_licence(finished, photos, tmp_path, here):
    origin = [{"source": "theirs", "licence": "cc-by-nc-4.0", "sha256": "0"}]
    weights, texts = load_file(finished / "backbone.safetensors"), header(finished / "backbone.safetensors")
    save_file(weights, tmp_path / "b.safetensors", {**texts, "learned_from": json.dumps(origin)})
    first = akssl_core.finetune(tmp_path / "b.safetensors", tmp_path / "m.safetensors", data=photos, **QUICK)
    classifier = akssl_core.load_classifier(first.path)
    features, _, _ = akssl_core.embed(first.path, data=photos)
    again = akssl_core.embed(tmp_path / "b.safetensors", data=photos).features
    assert not torch.allclose(features, again), "those of the backbone that was trained on"
    probabilities = akssl_core.predict(first.path, photos).probabilities
    with torch.no_grad():
        scores = classifier.head(features) / classifier.temperature
    torch.testing.assert_close(scores.softmax(1), probabilities, rtol=0, atol=1e-5)
    second = akssl_core.finetune(first.path, tmp_path / "n.safetensors", data=photos, parts="head", **QUICK)
    assert json.loads(header(first.path)["learned_from"]) == origin
    assert json.loads(header(second.path)["learned_from"]) == origin
    code, _, err = here("run", "simsiam", "--start", first.path, "--out", tmp_path / "run", *SMALL)
    assert code == 0, err
    (begun,) = json.loads(header(tmp_path / "run" / "backbone.safetensors")["learned_from"])
    assert begun["licence"] == "cc-by-nc-4.0"


def test_weights_of_others_are_named_in_the_file(finished, photos, tmp_path):
    save_file(load_file(finished / "backbone.safetensors"), tmp_path / "plain.safetensors")
    texts = json.loads(header(finished / "backbone.safetensors")["backbone"])
    source = {"source": tmp_path / "plain.safetensors", "mean": [0.5] * 3, "std": [0.5] * 3, "size": 16}
    source |= {"licence": "mit", "backbone": texts}
    found = akssl_core.finetune(source, tmp_path / "m.safetensors", data=photos, parts="head", **QUICK)
    (origin,) = json.loads(header(found.path)["learned_from"])
    assert (origin["licence"], origin["source"]) == ("mit", str(tmp_path / "plain.safetensors"))


def test_a_classifier_takes_the_place_of_no_backbone_that_it_begins_from(finished, photos, tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes((Path(finished) / "backbone.safetensors").read_bytes())
    before = file.read_bytes()
    with pytest.raises(akssl_core.ConfigError, match="is what it begins from"):
        akssl_core.finetune(file, file, data=photos, overwrite=True)
    assert file.read_bytes() == before


def test_labels_of_a_table(finished, photos, tmp_path, here):
    (tmp_path / "labels.csv").write_text(
        "file,label\n" + "".join(f"{'cat' if i % 2 else 'dog'}/{i}.png,{i % 3}\n" for i in range(30))
    )
    code, out, err = here(
        "finetune", finished, "--data", photos, "--labels", tmp_path / "labels.csv",
        "--out", tmp_path / "m.safetensors", "--parts", "head", "--no-scratch", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["classes"] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"out": "m.pt"}, ConfigError, "must end in .safetensors"),
        ({"out": "no/m.safetensors"}, ConfigError, "there is no folder 'no'"),
        ({"out": "there.safetensors"}, ConfigError, "exists already. Replace it with --overwrite"),
        ({"parts": "heads"}, ConfigError, "Did you mean 'head'"),
        ({"share": 0}, ConfigError, "above 0 and at most 1"),
        ({"epochs": 0}, ConfigError, "epochs: expected a whole number from 1"),
        ({"data": "photos/cat"}, DataError, "has no labelled images"),
        ({"data": ([np.zeros((12, 12, 3), np.uint8)] * 9, [0] * 9)}, DataError, "too few labels"),
        ({"labels": "none.csv"}, akssl_core.AksslError, "none.csv"),
        ({"labels": "0.1"}, ConfigError, "0.1 is no table of labels. To train on a share of them: --share 0.1"),
    ],
)
def test_bad_input_is_told_before_training(finished, photos, tmp_path, monkeypatch, settings, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.safetensors").write_text("mine")
    given = {"out": "new.safetensors", "data": "photos", **settings}
    with pytest.raises(error, match=message) as caught:
        akssl_core.finetune(finished, **given)
    assert len(str(caught.value).splitlines()) <= 2
    assert (tmp_path / "there.safetensors").read_text() == "mine"
    assert not (tmp_path / "new.safetensors").exists()


def test_files_that_are_no_classifiers(finished, model, photos, tmp_path):
    with pytest.raises(RunDirError, match="is a folder; expected a file that akssl finetune has written"):
        akssl_core.predict(finished, photos)
    with pytest.raises(RunDirError, match="is a backbone, as akssl run leaves it; expected a classifier"):
        akssl_core.predict(finished / "backbone.safetensors", photos)
    with pytest.raises(RunDirError, match="is a classifier of akssl finetune; expected a backbone"):
        akssl_core.load_backbone(model)
    tensors, texts = load_file(model), header(model)
    save_file({**tensors, "head.bias": 1 + tensors["head.bias"]}, tmp_path / "odd.safetensors", texts)
    with pytest.raises(RunDirError, match="damaged: its weights are not those that were written"):
        akssl_core.load_classifier(tmp_path / "odd.safetensors")
    del texts["sha256"]
    for changed in ({"classes": '["one"]'}, {"temperature": "0"}, {"temperature": "NaN"}, {"classes": "{"}):
        save_file(tensors, tmp_path / "odd.safetensors", {**texts, **changed})
        with pytest.raises(RunDirError, match="damaged"):
            akssl_core.load_classifier(tmp_path / "odd.safetensors")
    save_file({**tensors, "head.weight": torch.zeros(3, 8)}, tmp_path / "odd.safetensors", texts)
    with pytest.raises(RunDirError, match="the weights of its classes are not of shape"):
        akssl_core.load_classifier(tmp_path / "odd.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(model.read_bytes()[:-40])
    with pytest.raises(RunDirError, match="cannot be read"):
        akssl_core.load_classifier(tmp_path / "cut.safetensors")
    with pytest.raises(ConfigError, match="is a classifier, which is exported to onnx alone"):
        akssl_core.export(model, "safetensors")


def test_onnx_gives_the_same_probabilities(model, photos, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the export extra is not installed")
    pytest.importorskip("onnxscript", reason="the export extra is not installed")
    found = akssl_core.export(model, "onnx")
    assert found.path == tmp_path / "m.onnx"
    classifier = akssl_core.load_classifier(model)
    pictures = [Image.open(file) for file in sorted(photos.rglob("*.png"))]
    images = classifier.preprocess(pictures)
    session = onnxruntime.InferenceSession(found.path, providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(probabilities, classifier(images).numpy(), atol=1e-4)


@pytest.mark.parametrize("text", ["", "[", "3", "[3]", '{"licence": "mit"}', "null", "[" * 100_000])
def test_a_header_that_says_nothing_readable_of_licences(text):
    assert learned_from_of({"learned_from": text}) == []
    assert licences_of({"learned_from": text}) is None
