"""Whole runs: where teachers come from, what is told of them, what needs them, and targets that are kept."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

import akssl_core
from akssl_core import ConfigError, Interrupted, RunDirError
from akssl_core.nn import state_digest

RANDOM = {"source": "random", "backbone": {"name": "resnet_tiny", "widths": [4, 4, 8, 8]}}
STUDENT = {"name": "resnet_tiny", "widths": [4, 4, 4, 6]}
IMAGES = torch.randint(0, 256, (48, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
SHAPES = {"name": "shapes", "size": 60, "test_size": 20}
LABELS = torch.arange(48) % 3


def run(out: Path, teacher: Any, data: Any = (IMAGES, LABELS), *, epochs: int = 2, **given: Any) -> akssl_core.Result:
    options = {**({} if teacher is None else {"teacher": teacher}), **given.pop("options", {})}
    settings: dict[str, Any] = {
        "backbone": STUDENT, "batch_size": 16, "precision": "fp32", "device": "cpu", "report": False, **given,
    }  # fmt: skip
    return akssl_core.run("distill", data=data, epochs=epochs, out=out, options=options, **settings)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that may be a teacher."""
    folder = tmp_path_factory.mktemp("teachers") / "teacher"
    run(folder, RANDOM, backbone={"name": "resnet_tiny", "widths": [4, 4, 8, 8]})
    return folder


def header(run_dir: Path) -> dict[str, str]:
    with safe_open(run_dir / "backbone.safetensors", framework="pt") as file:
        return dict(file.metadata())


def losses(result: akssl_core.Result) -> list[float]:
    return [row["loss"] for row in result.history]


def changed(file: Path, **tensors: Tensor) -> None:
    """Other weights under some names of a file, whose hash is left out, and all else as it was."""
    with safe_open(file, framework="pt") as opened:
        metadata = {name: text for name, text in opened.metadata().items() if name != "sha256"}
    save_file({**load_file(file), **tensors}, file, metadata)


# -- the teacher of a run -------------------------------------------------------------------------
def test_header_and_manifest_tell_of_the_teacher(taught: Path, tmp_path: Path) -> None:
    result = run(tmp_path / "run", str(taught))
    sha = state_digest(akssl_core.load_backbone(taught).state_dict())
    (told,) = json.loads(header(result.run_dir)["learned_from"])
    assert told["sha256"] == sha
    assert told["source"] == str(taught)
    assert told["licence"] == "none: random weights", "inherited from the teacher's own teacher"
    (note,) = [note for note in json.loads((tmp_path / "run/manifest.json").read_text())["notes"] if sha in note]
    assert note.startswith("teacher: ")
    assert "licence none: random weights" in note
    assert result.history[-1]["loss"] > 0
    assert result.history[-1]["t_std_ratio"] > 0


def test_a_licence_is_taken_over_and_unknown_is_said(taught: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(load_file(taught / "backbone.safetensors"), weights)
    plain = {"source": str(weights), "backbone": RANDOM["backbone"]}
    with pytest.raises(ConfigError, match=r"method.teacher: how the images .* is unknown. Set method.teacher.mean"):
        run(tmp_path / "a", plain)
    known = {**plain, "mean": [0.5] * 3, "std": [0.25] * 3}
    for licence, said in ((None, "unknown"), ("Apache-2.0", "Apache-2.0")):
        result = run(tmp_path / said, {**known, "licence": licence}, epochs=1)
        assert json.loads(header(result.run_dir)["learned_from"])[0]["licence"] == said


def test_weights_of_another_network_are_refused_by_the_setting(taught: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(load_file(taught / "backbone.safetensors"), weights)
    teacher = {"source": str(weights), "backbone": "resnet18", "mean": [0.5] * 3, "std": [0.25] * 3}
    with pytest.raises(ConfigError, match=r"^method.teacher: the weights are not those of this backbone"):
        run(tmp_path / "run", teacher)
    with pytest.raises(ConfigError, match=r"method.teacher.backbone: .* says itself of which network it is"):
        run(tmp_path / "run", {"source": str(taught), "backbone": "resnet18"})


def test_a_teacher_that_makes_the_same_of_all_images_is_refused(taught: Path, tmp_path: Path) -> None:
    dead = tmp_path / "dead.safetensors"
    shutil.copy(taught / "backbone.safetensors", dead)
    tensors = load_file(dead)
    changed(dead, **{name: torch.zeros_like(value) for name, value in tensors.items() if name.startswith("conv1")})
    with pytest.raises(ConfigError, match=r"method.teacher: .*dead.safetensors makes the same of 32 unlike images"):
        run(tmp_path / "run", str(dead))


def test_a_teacher_of_another_size_sees_the_same_crop_larger(taught: Path, tmp_path: Path) -> None:
    result = run(tmp_path / "run", {"source": str(taught), "size": 24}, options={"variant": "similarity+tokens"})
    assert "24 px" in json.loads(header(result.run_dir)["learned_from"])[0]["images"]
    assert result.metrics["loss"] > 0


def test_statistics_of_mixtures_are_measured_anew(taught: Path, tmp_path: Path) -> None:
    batches = {}
    for mixup in (False, True):
        result = run(tmp_path / f"run{mixup}", str(taught), IMAGES, options={"mixup": mixup})
        batches[mixup] = int(result.backbone.state_dict()["bn1.num_batches_tracked"])
    assert batches == {False: 6, True: 1}, "those of training, or one of all 48 images"


# -- without the teacher --------------------------------------------------------------------------
def test_a_student_is_used_without_its_teacher_and_not_trained(taught: Path, tmp_path: Path) -> None:
    """The folder of the teacher is gone, and then moved."""
    teacher, moved = tmp_path / "teacher", tmp_path / "moved"
    shutil.copytree(taught, teacher)
    data = SHAPES
    student = run(tmp_path / "run", str(teacher), data=data, image_size=16).run_dir
    teacher.rename(moved)
    assert akssl_core.embed(student, data=IMAGES).features.shape == (48, 6)
    assert akssl_core.evaluate(student, protocol="knn", seeds=1).metrics
    assert akssl_core.export(student, to="safetensors", out=tmp_path / "student.safetensors")
    with pytest.raises(ConfigError, match=r"method.teacher.source: '.*teacher' does not exist. Put it back, or name"):
        akssl_core.resume(student, epochs=3)
    with pytest.warns(UserWarning, match="resumed with other settings: method.teacher.source: "):
        result = akssl_core.resume(student, epochs=3, options={"teacher": {"source": str(moved)}}, report=False)
    assert result.history[-1]["epoch"] == 3


def test_a_run_goes_on_with_the_same_teacher_alone(taught: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(taught, teacher)
    student = run(tmp_path / "run", str(teacher), data=SHAPES, image_size=16).run_dir
    rows = (student / "metrics.jsonl").read_bytes()
    first = load_file(teacher / "backbone.safetensors")["conv1.weight"]
    changed(teacher / "backbone.safetensors", **{"conv1.weight": first * 1.01})
    with pytest.raises(ConfigError, match=r"method.teacher: .*teacher holds other weights than those that the run"):
        akssl_core.resume(student, epochs=3)
    assert (student / "metrics.jsonl").read_bytes() == rows, "nothing was touched"


class Stopping(Dataset[Any]):
    """Images of which one asks the process to stop, the `after`th time that any is read."""

    def __init__(self, after: int | None) -> None:
        self.after, self.read = after, 0

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        self.read += 1
        if self.read == self.after:
            os.kill(os.getpid(), signal.SIGINT)
        return IMAGES[i], int(LABELS[i])


@pytest.mark.parametrize(
    "options", [{}, {"variant": "similarity+tokens", "queue_size": 20}, {"targets": "t.safetensors"}]
)
def test_a_stopped_run_goes_on_bit_for_bit(options: dict[str, Any], taught: Path, tmp_path: Path) -> None:
    if "targets" in options:
        options = {"targets": str(tmp_path / options["targets"])}
    whole = run(tmp_path / "whole", str(taught), Stopping(None), epochs=4, options=options)
    with pytest.raises(Interrupted):
        run(tmp_path / "half", str(taught), Stopping(260), epochs=4, options=options)
    rest = akssl_core.resume(tmp_path / "half", data=Stopping(None), report=False)
    for name, tensor in whole.backbone.state_dict().items():
        assert torch.equal(tensor, rest.backbone.state_dict()[name]), name
    assert losses(whole) == losses(rest)


# -- targets that are kept ------------------------------------------------------------------------
def test_kept_targets_are_those_of_the_live_teacher(taught: Path, tmp_path: Path) -> None:
    """The first epochs of a live run, and those of one with targets of as many views, are the same."""
    kept = {"targets": tmp_path / "targets.safetensors", "target_views": 3}
    live = run(tmp_path / "live", str(taught), epochs=3)
    made = run(tmp_path / "made", str(taught), epochs=3, options=kept)
    assert losses(made) == pytest.approx(losses(live), abs=1e-5)
    again = run(tmp_path / "again", str(taught), epochs=3, options=kept)
    alone = run(tmp_path / "alone", None, epochs=3, options=kept)
    assert losses(alone) == losses(again) == losses(made)
    (told,) = json.loads(header(alone.run_dir)["learned_from"])
    assert told["sha256 of the teacher"] == json.loads(header(live.run_dir)["learned_from"])[0]["sha256"]
    assert told["licence"] == "none: random weights"


@pytest.mark.filterwarnings("default:resumed with other settings")
def test_a_student_of_kept_targets_goes_on_without_its_teacher(taught: Path, tmp_path: Path) -> None:
    teacher, kept = tmp_path / "teacher", {"targets": tmp_path / "targets.safetensors", "target_views": 1}
    shutil.copytree(taught, teacher)
    student = run(tmp_path / "run", str(teacher), data=SHAPES, image_size=16, options=kept).run_dir
    teacher.rename(tmp_path / "moved")
    with (
        pytest.warns(UserWarning, match="resumed with other settings: train.epochs: 2 -> 3"),
        pytest.warns(UserWarning, match="method.targets: taken as they are, without their teacher. method.teacher: "),
    ):
        assert akssl_core.resume(student, epochs=3, report=False).history[-1]["epoch"] == 3


def test_views_come_back_in_turn_under_any_seed(taught: Path, tmp_path: Path) -> None:
    kept = {"targets": tmp_path / "targets.safetensors", "target_views": 2}
    run(tmp_path / "a", str(taught), IMAGES, options=kept)
    result = run(tmp_path / "b", None, IMAGES, epochs=4, options=kept, seed=5)
    assert len(result.history) == 4
    assert load_file(kept["targets"])["targets"].shape == (2, 48, 8)


def test_the_targets_of_a_mirrored_view_are_not_those_of_the_image(taught: Path, tmp_path: Path) -> None:
    still = {"name": "pair", "count": 1, "scale": [1.0, 1.0], "ratio": [1.0, 1.0], "jitter": 0.0, "grayscale": 0.0}
    found = {}
    for flip in (0.0, 1.0):
        kept = {"targets": tmp_path / f"{flip}.safetensors", "target_views": 1}
        run(tmp_path / f"run{flip}", str(taught), IMAGES, epochs=1, options=kept, augmentation={**still, "flip": flip})
        found[flip] = load_file(kept["targets"])["targets"][0]
    teacher = akssl_core.load_backbone(taught)
    with torch.no_grad():
        of_images, of_mirrored = (teacher(teacher.preprocess(x)) for x in (IMAGES, IMAGES.flip(-1)))
    torch.testing.assert_close(found[0.0], of_images, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1.0], of_mirrored, atol=1e-4, rtol=1e-4)
    assert float((of_images - of_mirrored).abs().max()) > 1e-2
    kept = {"targets": tmp_path / "0.0.safetensors", "target_views": 1}
    with pytest.raises(ConfigError, match=r"is of other pixels .*: augmentation.flip: 0.0 there, 1.0 here"):
        run(tmp_path / "wrong", None, IMAGES, epochs=1, options=kept, augmentation={**still, "flip": 1.0})
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"data": (IMAGES.flip(0), LABELS)}, "is of other pixels than this run's: data.sample: "),
        ({"image_size": 24}, "is of other pixels than this run's: image.size: 16 there, 24 here"),
        ({"options": {"target_views": 3}}, "holds 2 views of each image, and target_views is 3"),
    ],
)
def test_targets_of_something_else_are_refused(given: Any, words: str, taught: Path, tmp_path: Path) -> None:
    kept = {"targets": tmp_path / "targets.safetensors", "target_views": 2}
    run(tmp_path / "a", str(taught), options=kept)
    given = {**given, "options": {**kept, **given.get("options", {})}}
    with pytest.raises(ConfigError, match=words):
        run(tmp_path / "b", None, **given)


def test_targets_are_held_against_the_teacher_that_is_at_hand(taught: Path, tmp_path: Path) -> None:
    kept = {"targets": tmp_path / "targets.safetensors", "target_views": 2}
    run(tmp_path / "a", str(taught), options=kept)
    with pytest.raises(ConfigError, match=r"is of a teacher with the SHA-256 .*, and method.teacher has"):
        run(tmp_path / "b", RANDOM, options=kept)
    rows = load_file(kept["targets"])["targets"]
    changed(kept["targets"], targets=rows.roll(1, 1))
    with pytest.raises(ConfigError, match=r"has other features of [1-8] of 8 images than the teacher has"):
        run(tmp_path / "c", str(taught), options=kept)


def test_a_file_that_holds_no_targets_is_refused(taught: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="was not written by distill"):
        run(tmp_path / "a", None, options={"targets": taught / "backbone.safetensors"})
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"no tensors")
    with pytest.raises((ConfigError, RunDirError), match=r"method.targets: .*damaged.safetensors cannot be read"):
        run(tmp_path / "a", None, options={"targets": damaged})
