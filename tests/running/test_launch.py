"""Whole runs: the files they leave, the same numbers twice, going on after a stop, and what bad input leaves."""

from __future__ import annotations

import json
import math
import shutil

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from whole_runs import Stop, losses, same

import akssl_core
from akssl_core.errors import AksslError, ConfigError, DataError, PluginError, RunDirError, RunStopped
from akssl_core.method import Curve
from akssl_core.plugins.manager import installed
from akssl_core.rundir.folder import RunDir, read_tensors
from akssl_core.running.launch import resume, run
from akssl_core.running.layers import collect
from akssl_core.running.plan import make_plan
from akssl_core.schedule import Now

FILES = {"config.yaml", "manifest.json", "metrics.jsonl", "checkpoints", "backbone.safetensors", "report.html"}


def test_a_run_leaves_all_files_and_numbers(start):
    result = start()
    assert {p.name for p in result.run_dir.iterdir()} >= FILES
    manifest = json.loads((result.run_dir / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["final"] == result.metrics
    assert manifest["repeatable"] is False
    assert manifest["data"]["classes"] == 3
    assert {"torch", "akssl-core"} <= manifest["versions"].keys()
    assert {"loss", "knn_top1", "knn_raw_pixels", "knn_random_init", "std_ratio", "rankme"} <= result.metrics.keys()
    rows = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.history
    assert {"step", "epoch", "loss", "z_norm", "lr", "images_per_s"} <= rows[0].keys()
    parts = ("load", "augment", "forward", "backward", "optimizer")
    assert all(rows[0][f"time_{part}"] > 0 for part in parts)
    assert sum(value for key, value in rows[0].items() if key.startswith("time_")) == pytest.approx(1, abs=1e-3)
    assert "knn_top1" in rows[-1]
    assert not [p for p in result.run_dir.rglob("*") if p.name.endswith((".part", ".pt", ".pkl"))]


def test_backbone_and_preprocess_work_together_and_from_the_file(start, toys):
    result = start()
    images = torch.randint(0, 256, (5, 3, 12, 12), dtype=torch.uint8)
    features = result.backbone(result.preprocess(images))
    assert features.shape == (5, 8)
    assert not result.backbone.training
    for path in (result.run_dir, result.run_dir / "backbone.safetensors"):
        loaded = akssl_core.load_backbone(path, plugins=toys)
        torch.testing.assert_close(loaded(loaded.preprocess(images)), features, rtol=0, atol=0)


def test_the_same_seed_repeats_a_run_bit_for_bit(start):
    options = {"noise": 0.1}
    first, again, other = start("a", options=options), start("b", options=options), start("c", options=options, seed=1)
    assert losses(first) == losses(again) != losses(other)
    assert same(first.run_dir, again.run_dir)


def test_config_yaml_repeats_the_run(start, toys, photos, tmp_path):
    first = start("a", epochs=1)
    again = run(config=first.run_dir / "config.yaml", data=photos, out=tmp_path / "b", plugins=toys)
    assert losses(first) == losses(again)


@pytest.mark.parametrize("step", [1, 3, 4, 5])
def test_a_run_that_was_killed_goes_on_bit_for_bit(start, toys, photos, monkeypatch, step):
    settings = {"epochs": 3, "options": {"noise": 0.1}, "train": {"checkpoint_every": 1, "log_every": 2}}
    whole = start("whole", **settings)
    method = toys.get("method", "toy")
    original = method.after_step

    def killed(self, now: Now):
        if now.step == step:
            raise Stop
        original(self, now)

    monkeypatch.setattr(method, "after_step", killed)
    with pytest.raises(Stop):
        start("killed", **settings)
    monkeypatch.setattr(method, "after_step", original)
    folder = whole.run_dir.parent / "killed"
    assert json.loads((folder / "manifest.json").read_text())["status"] == "failed"
    result = resume(folder, data=photos, plugins=toys)
    assert losses(result) == losses(whole)
    assert same(folder, whole.run_dir)
    assert {k: v for k, v in result.metrics.items() if k != "seconds"} == {
        k: v for k, v in whole.metrics.items() if k != "seconds"
    }


def test_a_resumed_run_counts_the_seconds_before_it(start, photos, toys):
    first = start(epochs=1)
    file = first.run_dir / "metrics.jsonl"
    rows = [json.loads(line) | {"seconds": 1000.0} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(UserWarning, match="train.epochs: 1 -> 2"):
        longer = resume(first.run_dir, data=photos, epochs=2, plugins=toys)
    assert 1000 * len(rows) < longer.metrics["seconds"] < 1000 * len(rows) + 900


def test_resuming_a_finished_run_only_reads_it(start, toys, photos):
    first = start()
    again = resume(first.run_dir, plugins=toys)
    with pytest.warns(UserWarning, match="run has ended and is read: data has no effect"):
        resume(first.run_dir, data="nosuch", plugins=toys)
    assert again.metrics == first.metrics
    assert again.history == first.history
    kept = (first.run_dir / "config.yaml").read_bytes()
    with pytest.warns(UserWarning, match="has no effect: train.log_every: "):
        resume(first.run_dir, data=photos, train={"log_every": 7}, plugins=toys)
    assert (first.run_dir / "config.yaml").read_bytes() == kept


def test_a_run_does_not_replace_what_it_begins_from(start, toys):
    first = start()
    with pytest.raises(ConfigError, match=r"start.source: .*run.* is in the folder that --overwrite empties"):
        start(start=str(first.run_dir), overwrite=True)
    assert (first.run_dir / "backbone.safetensors").exists()


def test_resume_asks_for_objects_again(start, toys, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(toys.get("method", "toy"), "after_step", lambda self, now: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            start()
    with pytest.raises(ConfigError, match=r"started from Python with an object \(tuple\)"):
        resume(tmp_path / "run", plugins=toys)


def test_unlabelled_images_train_without_knn(start, photos):
    result = start(data=photos[0])
    assert "knn_top1" not in result.metrics
    assert {"std_ratio", "rankme"} <= result.metrics.keys()
    assert (result.run_dir / "report.html").exists()


def test_labels_never_change_the_training(start, photos):
    """Another naming of the classes splits off the same queries, so the training images are the same too."""
    images, labels = photos
    first, renamed = start("a", data=(images, labels)), start("b", data=(images, (labels + 1) % 3))
    assert losses(first) == losses(renamed)
    assert same(first.run_dir, renamed.run_dir)


class Own(Dataset):
    """A data set of a user."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i], i % 3


@pytest.mark.parametrize("kind", ["tensor", "array", "channels last", "dataset", "list of labels"])
def test_data_of_many_kinds(start, photos, kind):
    images, labels = photos
    data = {
        "tensor": images,
        "array": images.numpy(),
        "channels last": images.permute(0, 2, 3, 1).numpy(),
        "dataset": Own(images),
        "list of labels": (images, labels.tolist()),
    }[kind]
    assert start(data=data, epochs=1).metrics["loss"] > 0


@pytest.mark.parametrize(("channels", "size"), [(1, 12), (13, 12), (3, 8), (2, 20)])
def test_channels_and_sizes(start, channels, size):
    images = torch.randint(0, 256, (24, channels, size, size), dtype=torch.uint8)
    result = start(data=images, epochs=1)
    assert result.preprocess.channels == channels
    assert result.backbone(result.preprocess(images[:2])).shape == (2, 8)


def test_a_module_of_the_users_own(start, toys, photos):
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    before = {k: v.clone() for k, v in module.state_dict().items()}
    result = start(backbone=module, epochs=1)
    assert result.backbone.embed_dim == 6
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items()), "a copy is trained"
    assert any(not torch.equal(v, before[k]) for k, v in result.backbone.module.state_dict().items())
    stored, _header = read_tensors(result.run_dir / "backbone.safetensors")
    assert stored.keys() == module.state_dict().keys()
    with pytest.raises(ConfigError, match=r"your own Sequential: load_backbone\(path, module=Sequential"):
        akssl_core.load_backbone(result.run_dir, plugins=toys)
    fresh = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    loaded = akssl_core.load_backbone(result.run_dir, module=fresh, plugins=toys)
    x = result.preprocess(photos[0][:3])
    torch.testing.assert_close(loaded(x), result.backbone(x))
    with pytest.raises(ConfigError, match="do not fit"):
        akssl_core.load_backbone(result.run_dir, module=nn.Conv2d(3, 7, 3), plugins=toys)


@pytest.mark.parametrize("name", ["resnet_tiny", "vit_tiny"])
def test_a_run_goes_on_from_the_backbone_of_another(tmp_path, photos, name):
    settings = {"data": photos, "epochs": 1, "batch_size": 8, "report": False}
    first = run("simsiam", **settings, backbone=name, out=tmp_path / "a")
    given = akssl_core.load_backbone(first.run_dir)
    before = {key: value.clone() for key, value in given.state_dict().items()}
    second = run("simsiam", **settings, backbone=given, out=tmp_path / "b", train={"checkpoint_every": 1})
    assert all(torch.equal(value, before[key]) for key, value in given.state_dict().items()), "a copy is trained"
    plan = make_plan(collect("simsiam", None, {"data": photos, "backbone": given}, installed()), installed())
    assert all(torch.equal(value, before[key]) for key, value in plan.backbone.state_dict().items())
    manifest = json.loads((second.run_dir / "manifest.json").read_text())
    assert manifest["repeatable"] is False
    assert any("begins from the weights" in note for note in manifest["notes"])
    loaded = akssl_core.load_backbone(second.run_dir)
    trained = second.backbone.state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in loaded.state_dict().items())
    assert any(not torch.equal(value, trained[key]) for key, value in before.items())
    assert len(akssl_core.embed(second.run_dir, data=photos)[0]) == len(photos[0])
    assert akssl_core.evaluate(second.run_dir, data=photos).text
    akssl_core.export(second.run_dir, to="safetensors", out=tmp_path / "b.safetensors")
    with pytest.warns(UserWarning, match="epochs: 1 -> 2"):
        assert resume(second.run_dir, data=photos, epochs=2, report=False).history[-1]["epoch"] == 2
    for checkpoint in (second.run_dir / "checkpoints").iterdir():
        shutil.rmtree(checkpoint) if checkpoint.is_dir() else checkpoint.unlink()
    with pytest.raises(ConfigError, match="begins from the weights .*Pass it again"):
        resume(second.run_dir, data=photos, epochs=3, report=False)


def test_weights_that_do_not_fit_the_views_are_told_with_the_cure(tmp_path, photos):
    first = run("simsiam", data=photos, epochs=1, batch_size=8, backbone="vit_tiny", out=tmp_path / "a", report=False)
    given = akssl_core.load_backbone(first.run_dir)
    with pytest.raises(ConfigError, match=rf"do not fit .*Use image_size={given.image.size}"):
        run("simsiam", data=photos, backbone=given, image_size=40, out=tmp_path / "b")


def test_per_image_callables_as_augmentation(start, photos):
    from torchvision import transforms

    views = transforms.Compose([transforms.RandomResizedCrop(12), transforms.ToTensor()])
    assert start(augmentation=views, epochs=1).metrics["loss"] > 0


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"epochs": -1}, ConfigError, "train.epochs: should be greater than or equal to 1, got -1"),
        ({"epoch": 2}, ConfigError, "unknown setting 'epoch'. Did you mean 'epochs'"),
        ({"options": {"out_din": 3}}, ConfigError, "method: unknown setting 'out_din'. Did you mean 'out_dim'"),
        ({"backbone": "resnet81"}, ConfigError, "backbone: no backbone named 'resnet81'. Did you mean 'resnet"),
        ({"data": "./nowhere"}, DataError, "'./nowhere' is neither a data source nor an existing folder"),
        ({"data": "shaped"}, DataError, "Did you mean 'shapes'"),
        ({"batch_size": 10_000}, DataError, "10000 is more than the"),
        ({"optimizer": {"name": "sdg"}}, ConfigError, "Did you mean 'sgd'"),
        ({"optimizer": {"lr": "fast"}}, ConfigError, "optimizer.lr: expected a number or a table"),
        ({"precision": "int8"}, ConfigError, "train.precision: should be 'auto', 'fp32', 'bf16' or 'fp16', got 'int8'"),
        ({"image_size": 4}, ConfigError, "train.image_size: should be greater than or equal to 8, got 4"),
        ({"backbone": 7}, ConfigError, "expected a registered name or an nn.Module"),
        ({"seed": -1}, ConfigError, "seed: should be greater than or equal to 0"),
        ({"devices": 2}, ConfigError, "torchrun --nproc-per-node 2"),
    ],
)
def test_bad_input_names_the_field_and_leaves_no_folder(start, tmp_path, settings, error, message):
    with pytest.raises(error) as caught:
        start(**settings)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2
    assert isinstance(caught.value, AksslError)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_is_refused_before_anything_happens(start):
    first = start()
    before = (first.run_dir / "metrics.jsonl").read_text()
    with pytest.raises(RunDirError, match="already holds a run"):
        start()
    assert (first.run_dir / "metrics.jsonl").read_text() == before
    assert start(overwrite=True, seed=5).history != first.history


def test_a_run_that_is_refused_late_leaves_the_one_that_it_was_to_replace(start, toys, tmp_path, monkeypatch):
    def refuses(self, shown):
        raise ConfigError("method.targets: of other pixels")

    first = start()
    (first.run_dir / "mine.txt").write_text("keep")
    before = {file: file.read_bytes() for file in first.run_dir.rglob("*") if file.is_file() and file.name != ".lock"}
    with monkeypatch.context() as patched:
        patched.setattr(toys.get("method", "toy"), "before_training", refuses)
        for name in ("run", "new"):
            with pytest.raises(ConfigError, match="of other pixels"):
                start(name, overwrite=True, seed=5)
    after = {file: file.read_bytes() for file in first.run_dir.rglob("*") if file.is_file() and file.name != ".lock"}
    assert after == before
    assert not (tmp_path / "new").exists()
    assert start(overwrite=True, seed=5).history != first.history
    assert not (first.run_dir / ".replaced").exists()


def test_what_fails_before_its_first_row_keeps_its_checkpoints(start, toys, photos, at_step, tmp_path):
    def fails():
        raise RunStopped("no memory is left.")

    often = {"epochs": 2, "report": False, "train": {"checkpoint_every": 2, "log_every": 1000}}
    whole = start("whole", **often)
    at_step(6, fails)
    (tmp_path / "made").mkdir()
    for name in ("made", "new"):
        with pytest.raises(RunStopped):
            start(name, **often)
        resumed = resume(tmp_path / name, data=photos, plugins=toys, report=False)
        assert same(whole.run_dir, resumed.run_dir)
        at_step(6, fails)


def test_a_diverging_run_stops_and_says_what_to_do(start, toys, tmp_path, monkeypatch):
    method = toys.get("method", "toy")
    original = method.step

    def broken(self, batch, now):
        terms = original(self, batch, now)
        return {**terms, "loss": terms["loss"] * float("nan")} if now.step >= 1 else terms

    monkeypatch.setattr(method, "step", broken)
    with pytest.raises(RuntimeError, match=r"the loss of step 2 is not a finite number.*Lower optimizer.lr"):
        start(train={"log_every": 1})
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert "step 2" in manifest["error"]
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == [1]


def test_the_callers_random_state_is_left_as_it_was(start):
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    start(epochs=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "high"])
def test_a_curve_that_cannot_be_drawn_is_told_before_anything_happens(start, toys, tmp_path, monkeypatch, value):
    method = toys.get("method", "toy")
    curves = classmethod(lambda cls, config, facts: {"loss": Curve("falls", {"even outputs": value})})
    start("earlier")
    kept = (tmp_path / "earlier" / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(method, "curves", curves)
    for name in ("new", "earlier"):
        with pytest.raises(PluginError, match=r"^method toy: a curve cannot be drawn: lines\.even outputs .*$") as told:
            start(name, overwrite=True)
        assert "\n" not in str(told.value)
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "earlier" / "metrics.jsonl").read_bytes() == kept


@pytest.mark.parametrize("terms", [None, 3, {}, {"loss": 0.5}, [1]], ids=repr)
def test_a_step_that_returns_no_terms_is_told(start, toys, tmp_path, monkeypatch, terms):
    monkeypatch.setattr(toys.get("method", "toy"), "step", lambda self, batch, now: terms)
    with pytest.raises(PluginError, match="method toy: its step returned .*; expected tensors by name with one 'loss'"):
        start()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [3, [], [3], ()], ids=repr)
def test_what_is_no_augmentation_is_told(start, value):
    with pytest.raises(ConfigError, match="augmentation: expected a registered name, a callable or a list of them"):
        start(augmentation=value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 2**70}, "seed: should be less than"),
        ({"options": {3: 4}}, "method: unknown setting '3'"),
        ({"config": {3: 4}}, "unknown setting '3'"),
    ],
)
def test_keys_and_numbers_of_another_kind_are_told(start, settings, message):
    with pytest.raises(ConfigError, match=message):
        start(**settings)


def test_numbers_of_numpy_are_numbers(start):
    result = start(optimizer={"lr": numpy.float32(0.25), "momentum": numpy.float64(0.5)}, epochs=numpy.int64(1))
    settings = RunDir.open(result.run_dir).read_config()
    assert (settings["optimizer"]["lr"]["start"], settings["optimizer"]["momentum"]) == (0.25, 0.5)
    assert result.history[-1]["epoch"] == 1


def test_a_run_on_smaller_views_leaves_a_backbone_for_whole_images(start):
    result = start(image_size=16, augmentation={"size": 0.75})
    groups = RunDir.open(result.run_dir).read_config()["augmentation"]
    assert (groups["size"], result.backbone.image.size, result.preprocess.size) == (0.75, 16, 16)
    assert math.isfinite(result.metrics["loss"])
