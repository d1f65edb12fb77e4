"""`akssl_core.evaluate` and `akssl eval`: what is judged, what stays as it was, and what the numbers mean."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
import torchvision
from on_trial import on_trial
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import akssl_core
from akssl_core import ConfigError, DataError, RunDirError
from akssl_core.evaluation import split
from akssl_core.evaluation.opened import Trained, open_trained
from akssl_core.evaluation.split import Split
from akssl_core.plugins.first_party import METHODS
from akssl_core.plugins.manager import installed
from akssl_core.rundir.files import CannotWrite
from akssl_core.rundir.folder import RunDir, read_tensors, read_yaml
from akssl_core.running.layers import collect
from akssl_core.running.plan import make_plan
from akssl_core.settings import Given

PROTOCOLS = ("knn", "linear", "finetune")


@pytest.fixture
def few_steps(monkeypatch):
    """Fine-tuning that lasts an instant."""
    monkeypatch.setattr("akssl_core.evaluation.protocols.EPOCHS", 1)
    monkeypatch.setattr("akssl_core.evaluation.protocols.LEAST", 3)


def contents(folder):
    """A hash of every file but evaluation.json, and its time."""
    return {
        str(file.relative_to(folder)): (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "evaluation.json"
    }


# -- the run stays as it is -----------------------------------------------------------------------
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_byte_of_the_run_changes_but_its_results(finished, protocol, few_steps):
    before = contents(finished)
    state = torch.get_rng_state()
    akssl_core.evaluate(finished, protocol, labels=(0.5, 1.0), seeds=2)
    assert contents(finished) == before
    assert (finished / "evaluation.json").is_file()
    assert torch.equal(torch.get_rng_state(), state)


def test_equal_calls_give_equal_results(finished, few_steps):
    for protocol in PROTOCOLS:
        first, again = (akssl_core.evaluate(finished, protocol, labels=0.5, seeds=2) for _ in range(2))
        assert first == again


# -- what is beside it ----------------------------------------------------------------------------
def test_random_init_is_the_runs_own_beginning(finished):
    plan = make_plan(Given([("config.yaml", read_yaml(finished / "config.yaml"))]), installed())
    began, built = plan.method.encoder.state_dict(), open_trained(finished).untrained().state_dict()
    assert began.keys() == built.keys()
    assert all(torch.equal(value, built[name]) for name, value in began.items())
    trained, _ = read_tensors(finished / "backbone.safetensors")
    assert not torch.equal(trained["conv1.weight"], built["conv1.weight"])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_begins_with_what_is_built_again(method, tmp_path):
    """Encoders that are slow copies too, and methods that start their backbone in a way of their own."""
    settings = {
        "method": on_trial(method),
        "data": {"name": "shapes", "size": 40},
        "image_size": 16,
        "batch_size": 20,
        "seed": 5,
    }
    try:
        plan = make_plan(collect(None, None, settings, installed()), installed())
    except ConfigError as error:
        assert "patch tokens" in str(error)  # noqa: PT017 # it takes transformers alone
        plan = make_plan(collect(None, None, {**settings, "backbone": "vit_tiny"}, installed()), installed())
    folder = RunDir(tmp_path)
    folder.write_config(plan.spec.table(), plan.provenance)
    plan.backbone.preprocess = plan.preprocess
    built = Trained(tmp_path, plan.backbone, None, installed()).untrained().state_dict()
    began = plan.method.encoder.state_dict()
    assert began.keys() == built.keys()
    assert all(torch.equal(value, built[name]) for name, value in began.items())


def test_scores_with_all_labels_are_those_of_the_run_and_its_baselines(finished):
    final = json.loads((finished / "manifest.json").read_text())["final"]
    found = akssl_core.evaluate(finished, k=20).metrics
    assert found == {name: final[name] for name in ("knn_top1", "knn_random_init", "knn_raw_pixels")}


def test_systems_shares_and_neighbours_each_have_a_score(finished):
    found = akssl_core.evaluate(finished, labels=(0.2, 1.0), seeds=3, k=(1, 20))
    keys = [(score.labels, score.system, score.k) for score in found.scores]
    systems = ("trained", "random init", "raw pixels")
    assert keys == [(share, system, k) for share in (0.2, 1.0) for system in systems for k in (1, 20)]
    assert [len(score.draws) for score in found.scores] == [3] * 6 + [1] * 6
    assert found.labels == (0.2, 1.0)
    for score in found.scores:
        assert score.accuracy == pytest.approx(sum(score.draws) / len(score.draws))
        assert score.low <= score.accuracy <= score.high
    assert {one.k for one in found.comparisons} == {20}


def test_weights_from_a_file_are_compared(finished, tmp_path):
    trained, _ = read_tensors(finished / "backbone.safetensors")
    save_file({**trained, "fc.weight": torch.zeros(3, 8)}, tmp_path / "w.safetensors")
    found = akssl_core.evaluate(finished, weights=tmp_path / "w.safetensors")
    assert "knn_given_weights" in found.metrics
    assert any("fc.weight" in note for note in found.notes)
    assert any("0.485" in note for note in found.notes)
    save_file({f"state_dict.{name}": value for name, value in trained.items()}, tmp_path / "under.safetensors")
    under = akssl_core.evaluate(finished, weights=tmp_path / "under.safetensors")
    assert under.metrics == found.metrics, "names are matched as by --start"
    same = akssl_core.evaluate(finished, weights=finished / "backbone.safetensors").metrics
    assert same["knn_given_weights"] == same["knn_top1"]


def test_weights_of_torchvision_are_taken_as_they_are(tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18().eval()
    save_file(theirs.state_dict(), tmp_path / "resnet18.safetensors")
    spec = akssl_core.ImageSpec(64, 3, (0.5,) * 3, (0.5,) * 3)
    ours = akssl_core.build("backbone", "resnet18", spec, stem="imagenet")
    ours.preprocess = akssl_core.Preprocess.of(spec)
    given, notes = Trained(tmp_path, ours, None, installed()).with_weights(tmp_path / "resnet18.safetensors")
    assert "resnet18.safetensors: left out, a head: fc.bias, fc.weight" in notes
    theirs.fc = nn.Identity()
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = theirs((images / 255 - mean[:, None, None]) / std[:, None, None])
        torch.testing.assert_close(given(given.preprocess(images)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {**t, "conv1.weight": torch.zeros(64, 3, 7, 7)}, r"weights: 'conv1.weight' is of shape \(64, 3, 7"),
        (lambda t: {name: v for name, v in t.items() if name != "conv1.weight"}, "weights: .* have none, 'conv1"),
    ],
)
def test_weights_of_another_network_are_refused(finished, tmp_path, change, message):
    trained, _ = read_tensors(finished / "backbone.safetensors")
    save_file(change(trained), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=message):
        akssl_core.evaluate(finished, weights=tmp_path / "w.safetensors")
    assert not (finished / "evaluation.json").exists()


# -- data -----------------------------------------------------------------------------------------
def test_other_data_and_how_it_is_split(finished, photos):
    found = akssl_core.evaluate(finished, data=photos)
    assert (found.data, found.split["train_images"], found.split["test_images"]) == ("Tensor", 51, 13)
    assert "held out" in found.split["how"]
    assert found.split["classes"] == 3
    fewer = akssl_core.evaluate(finished, data=photos, train_images=20, test_images=10).split
    assert (fewer["train_images"], fewer["test_images"]) == (20, 10)


def test_data_without_labels_is_refused(finished, photos, tmp_path):
    before = contents(finished)
    with pytest.raises(DataError, match="Labels are required"):
        akssl_core.evaluate(finished, data=photos[0])
    with pytest.raises(DataError, match="neither a data source nor"):
        akssl_core.evaluate(finished, data="shappes")
    with pytest.raises(DataError, match="cannot use a int"):
        akssl_core.evaluate(finished, data=3)
    assert contents(finished) == before


def test_a_run_from_python_objects_asks_for_them_again(photos, tmp_path):
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(432, 8), nn.BatchNorm1d(8))

    kept = dict(image_size=12, epochs=1, precision="fp32", batch_size=16, options={"out_dim": 8}, report=False)
    folder = akssl_core.run("simsiam", data=photos, backbone=network(), out=tmp_path / "run", **kept).run_dir
    with pytest.raises(ConfigError, match="module=Sequential"):
        akssl_core.evaluate(folder, data=photos)
    with pytest.raises(ConfigError, match="was trained on a Python object"):
        akssl_core.evaluate(folder, backbone=network())
    mine = network()
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    found = akssl_core.evaluate(folder, data=photos, backbone=mine)
    assert all(torch.equal(value, before[name]) for name, value in mine.state_dict().items())
    final = json.loads((folder / "manifest.json").read_text())["final"]
    assert found.metrics["knn_random_init"] == final["knn_random_init"]
    assert found.metrics["knn_top1"] == final["knn_top1"]


def test_images_in_both_parts_are_found(finished, photos):
    images, labels = photos[0].clone(), photos[1]
    assert Split.of(akssl_core.data.Arrays(images, labels), "x").twice == split.Twice((), (), 13)
    source = akssl_core.data.Arrays(images, labels)
    bank, queries = source.probe()
    twin = int(queries.id_of(4))
    images[twin] = images[int(bank.id_of(7))]
    found = akssl_core.evaluate(finished, data=(images, labels))
    assert (found.split["overlap"], found.split["overlap_ids"]) == (1, [str(twin)])
    assert "1 of 13 test images are also training images" in found.notes[0]
    assert found.split["near_copies"] == 0, "it is told once"


def test_near_copies_in_both_parts_are_found(finished, tmp_path):
    draw = np.random.default_rng(0)
    for part, kind, i in ((part, kind, i) for part in ("train", "test") for kind in "ab" for i in range(8)):
        folder = tmp_path / part / kind
        folder.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(draw.integers(0, 256, (4, 4, 3), np.uint8))
        image = small.resize((24, 24), Image.Resampling.BICUBIC)
        image.save(folder / f"{part}{i}.png")
        if part == "train" and kind == "a" and i < 2:
            copy = tmp_path / "test" / "a" / f"copy{i}.png"
            copy.parent.mkdir(parents=True, exist_ok=True)
            (image.resize((20, 20)) if i else image.point(lambda value: value * 4 // 5)).save(copy)
    data = {"name": "folder", "path": str(tmp_path / "train"), "test": str(tmp_path / "test")}
    found = akssl_core.evaluate(finished, data=data)
    assert found.split["overlap"] == 0
    assert found.split["near_copies_ids"] == ["a/copy0.png", "a/copy1.png"]
    (told,) = [note for note in found.notes if "near copies" in note]
    assert told.startswith("2 of 18 test images are also near copies of training images (`akssl dedup` finds such)")


def test_of_many_test_images_some_are_compared_with_near_copies(monkeypatch, photos):
    monkeypatch.setattr(split, "COMPARED", 4)
    assert Split.of(akssl_core.data.Arrays(*photos), "x").twice.looked_at == 4
    monkeypatch.setattr(split, "MOST_COMPARED", 20)
    assert Split.of(akssl_core.data.Arrays(*photos), "x").twice.looked_at == 0


def test_unreadable_images_are_left_out_and_told(here, finished, tmp_path):
    generator = np.random.default_rng(0)
    for kind in ("a", "b"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(15):
            pixels = generator.integers(0, 256, (14, 14, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / kind / f"{i:02}.png")
    (tmp_path / "photos" / "a" / "03.png").write_bytes(b"no image")
    found = akssl_core.evaluate(finished, data=tmp_path / "photos")
    assert found.data == str(tmp_path / "photos")
    assert found.split["train_images"] + found.split["test_images"] == 29
    assert list(found.split["unreadable"]) == ["a/03.png"]
    assert found.split["overlap"] == 0, "a stand-in is no image of its own"
    code, _, err = here("data", "prepare", tmp_path / "photos", "--out", "f.safetensors", "--size", 14)
    assert code == 0, err
    prepared = akssl_core.evaluate(finished, data=tmp_path / "f.safetensors")
    assert prepared.scores == found.scores, "a prepared file holds the same images"
    assert prepared.split["how"] == "the split that the file was prepared with"
    akssl_core.prepare(tmp_path / "photos", tmp_path / "small.safetensors", size=8)
    with pytest.warns(UserWarning, match="data: images that were reduced are judged at 12 px .* add --image-size 12"):
        akssl_core.evaluate(finished, data=tmp_path / "small.safetensors")


# -- the file and the command ---------------------------------------------------------------------
def test_results_are_collected_by_protocol_data_and_labels(finished, photos):
    first = akssl_core.evaluate(finished, labels=(0.5, 1.0), seeds=2)
    akssl_core.evaluate(finished, data=photos)
    akssl_core.evaluate(finished, "linear", labels=1.0)
    table = json.loads((finished / "evaluation.json").read_text())
    assert table["format"] == "akssl-evaluation-1"
    assert {p: {d: sorted(of) for d, of in by.items()} for p, by in table["results"].items()} == {
        "knn": {first.data: ["0.5", "1"], "Tensor": ["1"]},
        "linear": {first.data: ["1"]},
    }
    assert table["results"]["knn"][first.data]["0.5"] == first.only(0.5).record()
    tensors, metadata = read_tensors(finished / "backbone.safetensors")
    del metadata["sha256"]
    save_file({name: value + 1 for name, value in tensors.items()}, finished / "backbone.safetensors", metadata)
    akssl_core.evaluate(finished)
    assert list(json.loads((finished / "evaluation.json").read_text())["results"]) == ["knn"], "others are outdated"


def test_the_command_says_what_python_says(here, finished):
    code, out, err = here("eval", finished, "--labels", "0.5,1.0", "--seeds", 2, "--k", "5,20", "--json")
    assert code == 0, err
    assert json.loads(out) == akssl_core.evaluate(finished, labels=(0.5, 1.0), seeds=2, k=(5, 20)).record()
    code, out, err = here("eval", finished, "--protocol", "linear", "--set", "data.size=50")
    assert code == 0, err
    assert "Protocol: linear, linear probe" in out
    assert "50 training and 40 test images of 10 classes" in out
    assert "Did it help?" in out
    assert "Interval: mean over the draws" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--labels", "0.1;1"), "--labels: expected numbers with commas"),
        (("--labels", "1.5"), "labels: 1.5 is no share"),
        (("--labels", "nan"), "labels: nan is no share"),
        (("--seeds", "0"), "seeds: expected a whole number from 1"),
        (("--k", "0"), "k: expected a whole number from 1"),
        (("--weights", "none.safetensors"), "none.safetensors cannot be read"),
        (("--data", "shapez"), "Did you mean 'shapes'?"),
        (("--set", "train.epochs=3"), "--set train: only settings of the data"),
        (("--set", "data.sise=3"), "Did you mean 'size'?"),
        (("--protocol", "linear", "--k", "5"), "k: a setting of the protocol 'knn'; this is 'linear'. Leave it out"),
        (("--epochs", "5"), "epochs: a setting of the protocol 'finetune'; this is 'knn'"),
        (("--protocol", "finetune", "--epochs", "0"), "epochs: expected a whole number from 1"),
        (("--protocol", "kn"), "'kn' is not one of 'knn', 'linear', 'finetune'"),
    ],
)
def test_bad_input_is_one_line(here, finished, arguments, message):
    code, out, err = here("eval", finished, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (finished / "evaluation.json").exists()


def test_results_that_cannot_be_kept_are_given_all_the_same(finished, monkeypatch):
    def refuse(self, found):
        raise CannotWrite("cannot write: the file system is read-only")

    monkeypatch.setattr(RunDir, "write_evaluations", refuse)
    with pytest.warns(UserWarning, match="not kept: cannot write"):
        found = akssl_core.evaluate(finished)
    assert found.file is None
    assert found.metrics


def test_a_damaged_results_file_is_written_anew(finished):
    (finished / "evaluation.json").write_text("{")
    assert akssl_core.evaluate(finished).file == finished / "evaluation.json"
    table = json.loads((finished / "evaluation.json").read_text())
    for results in (3, {"knn": [1]}, {"knn": {next(iter(table["results"]["knn"])): "?"}, "linear": 2}):
        (finished / "evaluation.json").write_text(json.dumps({**table, "results": results}))
        akssl_core.evaluate(finished)
        assert json.loads((finished / "evaluation.json").read_text())["results"]["knn"] == table["results"]["knn"]


def test_a_run_that_is_replaced_loses_its_results(finished):
    akssl_core.evaluate(finished)
    RunDir.create(finished, overwrite=True).unlock()
    assert not (finished / "evaluation.json").exists()


def test_numbers_of_numpy_are_numbers(finished):
    found = akssl_core.evaluate(finished, labels=np.linspace(0.5, 1, 2), k=np.arange(5, 7), seeds=np.int64(2))
    assert json.loads(json.dumps(found.record()))["labels"] == [0.5, 1.0]


def test_bad_python_input(finished, tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'linear'"):
        akssl_core.evaluate(finished, "liner")
    for labels in (None, "all", (), [0.1, "x"], True):
        with pytest.raises(ConfigError, match="labels: "):
            akssl_core.evaluate(finished, labels=labels)
    for wrong in ({"k": ()}, {"k": "5"}, {"seeds": None}, {"train_images": 0}, {"batch_size": 2.5}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}: expected a"):
            akssl_core.evaluate(finished, **wrong)
    with pytest.raises(ConfigError, match="none of auto, lbfgs, sgd"):
        akssl_core.evaluate(finished, "linear", solver="adam")
    with pytest.raises(RunDirError, match=r"holds no run.*Did you mean 'finished'"):
        akssl_core.evaluate(tmp_path / "finishd")
    (finished / "backbone.safetensors").unlink()
    with pytest.raises(RunDirError, match="The run is finished, and its file was lost"):
        akssl_core.evaluate(finished)
