"""That benchmarks run: on a few tiny batches, whose figures mean nothing."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import accuracy  # noqa: E402
import adaptation  # noqa: E402
import augment  # noqa: E402
import busy  # noqa: E402
import choosing  # noqa: E402
import courses  # noqa: E402
import distillation  # noqa: E402
import duplicates  # noqa: E402
import feeding  # noqa: E402
import finetuning  # noqa: E402
import overhead  # noqa: E402
import results  # noqa: E402
import searching  # noqa: E402
import start_care  # noqa: E402
import tuned  # noqa: E402
import tuning  # noqa: E402
from pages import draw_photos  # noqa: E402

import akssl_core  # noqa: E402
from akssl_core.plugins.manager import installed  # noqa: E402
from akssl_core.rundir.folder import RunDir  # noqa: E402


@pytest.mark.filterwarnings("ignore")
def test_busy_has_a_rate_for_each_load_and_leaves_no_process_behind(tmp_path, monkeypatch):
    started = []

    class Noted(subprocess.Popen):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            started.append(self)

    monkeypatch.setattr(busy.subprocess, "Popen", Noted)
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(busy, "find_spec", lambda name: None)
    small = ["simsiam", "--batch", "4", "--steps", "1", "--repeats", "1", "--precision", "fp32", "--waiting", "passive"]
    monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / "busy.py"), *small])
    busy.main()
    rows = json.loads((tmp_path / "busy.json").read_text())["rows"]
    assert [row["threads"].partition(" ")[0] for row in rows] == ["chosen", "all"]
    for row in rows:
        assert row["waiting"] == "passive"
        assert all(row[name] > 0 for name in ("images/s", "beside 1", "beside 2", "kept beside 1", "kept beside 2"))
    assert len(started) == 1 + 1 + 2  # a side, and busy ones beside it
    assert all(process.poll() is not None for process in started)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_feeding(monkeypatch, tmp_path, threads, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(feeding, "FILES", ((50, 40, "4:2:0"), (900, 800, "4:4:4")))
    feeding.main(["--batch", "8", "--repeats", "1"])
    decoding, batches = (
        json.loads((tmp_path / f"feeding-{name}.json").read_text())["rows"] for name in ("decoding", "batches")
    )
    assert [row["JPEG"][:9] for row in decoding] == ["50 x 40, ", "900 x 800"]
    assert [row["panoramas"] for row in batches] == [0, 1, 1]
    assert all(row["ratio"] > 0 for row in decoding + batches)
    assert batches[1]["strip MB"] < 1.1 * batches[1]["MB of pixels"] < batches[1]["canvas MB"] / 2


@pytest.mark.filterwarnings("ignore")
def test_adaptation_goes_on_after_the_lines_that_are_there(monkeypatch, tmp_path, threads, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(adaptation, "SMALL", {"backbone": "resnet_tiny", "image_size": 16, "batch_size": 8})
    for name in ("cat", "dog"):
        draw_photos(tmp_path / "train" / name, 20)
    few = ["--images", "32", "--seen", "32", "--methods", "simsiam"]
    asked = ["--data", str(tmp_path), "--names", "shapes", "folder", *few, "--work", str(tmp_path / "runs")]
    adaptation.main(asked)
    told = json.loads(capsys.readouterr().out)
    assert (told["combinations"], told["worse than the start"]) == (2, 0)
    rows = [json.loads(line) for line in (tmp_path / "runs" / "rows.jsonl").read_text().splitlines()]
    assert [(row["from"], row["to"]) for row in rows] == [("shapes", "folder"), ("folder", "shapes")]
    assert all(row["share"] or row["gain"][0] == 0 for row in rows)
    monkeypatch.setattr(adaptation, "measured", None)
    adaptation.main(asked)
    assert json.loads(capsys.readouterr().out) == told


@pytest.mark.filterwarnings("ignore")
def test_accuracy_has_a_line_for_each_system_and_reads_files(monkeypatch, tmp_path, threads):
    for folder, (part, name) in enumerate([("train", "cat"), ("train", "dog"), ("test", "cat"), ("test", "dog")]):
        (tmp_path / part / name).mkdir(parents=True)
        for i in range(30):
            Image.new("RGB", (8, 8), (i, 60 * folder, 2 * i)).save(tmp_path / part / name / f"{i}.png")
    monkeypatch.setattr(accuracy, "IMAGES", 40)
    monkeypatch.setattr(accuracy, "EPOCHS", 1)
    monkeypatch.setattr(accuracy, "DATA", {"shapes": {"name": "shapes", "size": 64, "test_size": 64}})
    accuracy.read_cifar(tmp_path, None)
    assert {job.data for job in accuracy.jobs([])} == {"shapes", "cifar-10"}
    assert not {job.system for job in accuracy.jobs([]) if job.data == "shapes"} & {*accuracy.SLOW}
    assert {job.seed for job in accuracy.jobs(accuracy.SLOW) if job.data == "shapes"} == {0, 1, 2}
    assert len(accuracy.Job("cifar-10", "simsiam", 0).source.train()) == 40
    systems = (("cifar-10", "raw pixels"), ("cifar-10", "random init"), ("shapes", "simsiam"))
    rows = [accuracy.perform(accuracy.Job(data, system, 0), 1, "fp32") for data, system in systems]
    accuracy.write(rows, tmp_path / "accuracy.json")
    table = json.loads((tmp_path / "accuracy.json").read_text())
    assert [(line["data"], line["system"]) for line in table["summary"]] == [systems[2], *systems[:2]]
    assert all(0 <= row["knn"] <= 100 and 0 <= row["linear"] <= 100 for row in rows)
    assert "## cifar-10" in (tmp_path / "accuracy.md").read_text()


def test_accuracy_takes_default_recipes_from_a_sweep(monkeypatch, tmp_path, threads):
    data = {"name": "shapes", "size": 128, "test_size": 64}
    monkeypatch.setattr(accuracy, "DATA", {"shapes": data})
    monkeypatch.setattr(accuracy, "EPOCHS", 1)
    (of_sweep,) = akssl_core.sweep(["simsiam"], seeds=(1,), data=data, epochs=1, out=tmp_path / "shapes").rows
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    row = accuracy.perform(accuracy.Job("shapes", "simsiam", 1), 1, "auto", tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert row["loss"] == of_sweep.metrics["loss"].mean
    assert row["minutes"] == round(of_sweep.metrics["seconds"].mean / 60, 2)
    accuracy.perform(accuracy.Job("shapes", "simsiam", 2), 1, "auto", tmp_path)  # made here, as the sweep would
    (of_sweep,) = akssl_core.sweep(["simsiam"], seeds=(1, 2), data=data, epochs=1, out=tmp_path / "shapes").rows
    assert of_sweep.seeds == (1, 2)


def test_accuracy_goes_on_after_the_rows_that_it_kept(monkeypatch, tmp_path):
    def row(system, knn):
        return {"data": "shapes", "system": system, "seed": 0, "knn": knn, "linear": knn}

    monkeypatch.setattr(accuracy, "RESULTS", tmp_path)
    before = {"rows": [row("simsiam", 1.0), row("random init", 2.0)]}
    (tmp_path / "accuracy.json").write_text(json.dumps(before))
    results.Kept(tmp_path / "work" / "rows.jsonl").add(row("random init", 3.0))
    accuracy.main(["random init", "--data", "shapes", "--seeds", "0", "--work", str(tmp_path / "work")])
    table = json.loads((tmp_path / "accuracy.json").read_text())
    assert table["rows"] == [row("simsiam", 1.0), row("random init", 3.0)]


def test_both_sides_are_tuned_alike(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(tuned, "FILE", tmp_path / "results" / "tuning.json")
    with pytest.raises(LookupError, match="simsiam is not among the rows of tuning.json: run tuning.py first"):
        tuned.chosen("simsiam tuned")
    other = {"system": "byol", "rate": 1.0, "colours": 1.0, "k-NN": 20.0}
    results.write("tuning", [other], {})
    for name, value in {"SHARE": 8, "QUERIES": 4, "EPOCHS": 1}.items():
        monkeypatch.setattr(tuning, name, value)
    for of in ("cat", "dog"):
        draw_photos(tmp_path / "cifar" / "train" / of, 20)
    asked = ["simsiam", "--cifar", str(tmp_path / "cifar"), "--work", str(tmp_path / "work"), "--jobs", "1"]
    tables = []
    for _ in range(2):  # the second time nothing is trained
        tuning.main(asked)
        tables.append(json.loads((tmp_path / "results" / "tuning.json").read_text())["rows"])
    assert tables[0] == tables[1]
    assert tables[0][0] == other  # what was not asked for stays
    rows = tables[0][1:]
    rates = [(row["rate"], row["colours"]) for row in rows]
    assert rates == [*((rate, 1.0) for rate in tuned.RATES), (tuned.best(rows[:3], "simsiam").rate, tuned.PALER)]
    assert tuned.chosen("simsiam tuned") == tuned.best(rows, "simsiam")
    assert tuned.chosen("simsiam") == tuned.Factors()


def test_factors_change_recipes_and_the_transforms_of_peers():
    own = akssl_core.explain("dino").settings
    settings = tuned.changed("dino", tuned.Factors(3.0, 0.5))
    assert settings["optimizer"] == {"lr": 3 * own["optimizer.lr"]}
    assert {name: settings["augmentation"]["local"][name] for name in tuned.COLOURS} == {
        name: own[f"augmentation.local.{name}"] / 2 for name in tuned.COLOURS
    }
    assert tuned.changed("dino", tuned.Factors()) == {}
    jitter = v2.ColorJitter(0.4, 0.8, 0.2, 0.1)
    view = v2.Compose([v2.RandomApply([jitter], p=0.8), v2.ToImage()])
    example = tuned.painted(lambda: SimpleNamespace(transform=[view, view]), 0.5)()  # the two views share theirs
    assert example.transform[0] is view
    assert (jitter.brightness, jitter.contrast, jitter.saturation) == ((0.8, 1.2), (0.6, 1.4), (0.9, 1.1))
    assert jitter.hue == (-0.05, 0.05)


def test_choosing_compares_its_choice_with_all_in_full(monkeypatch, tmp_path, threads):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setitem(accuracy.DATA, "shapes", {"name": "shapes"})
    scores = iter([0.1, 0.2, 0.3])  # of two candidates and of the better one again: the second is chosen
    monkeypatch.setattr("akssl_core.sweeps.choosing.told_apart", lambda backbone, images: next(scores))
    asked = ["--data", "shapes", "--methods", "simsiam", "simclr", "--epochs", "1", "--size", "256"]
    choosing.main([*asked, "--out", str(tmp_path / "runs")])
    (row,) = json.loads((tmp_path / "results" / "choosing.json").read_text())["rows"]
    assert (row["candidates"], row["chosen"], row["images seen"]) == (2, "simclr", 256)
    sweep = tmp_path / "runs" / "all" / "shapes"
    right = {name: RunDir.open(sweep / f"{name}-seed=0").manifest.final["knn_top1"] for name in asked[3:5]}
    assert row["points lost"] == pytest.approx(max(right.values()) - right["simclr"], abs=0.01)
    assert right[row["best"]] == max(right.values())
    choosing.keep("choosing", [{"data": "photos"}])
    assert results.known(tmp_path / "results" / "choosing.json") == [row, {"data": "photos"}]
    assert choosing.correlation({"a": 0.1, "b": None, "c": 0.3}, {"a": 2, "b": 1, "c": 3}) == 1
    assert choosing.correlation({"a": 0.1, "b": 0.2, "c": 0.3}, {"a": 2, "b": 1, "c": 3}) == 0.5


def test_numbers_of_a_sweep_are_compared_with_k_nn(monkeypatch, tmp_path, threads):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    network = {"name": "resnet_tiny", "widths": [4, 4, 8, 8]}
    small = {"backbone": network, "image_size": 16, "epochs": 1, "batch_size": 16, "report": False}
    drawn = {"name": "shapes", "size": 64, "test_size": 32}
    akssl_core.sweep(["simsiam", "simclr"], seeds=(0, 1), data=drawn, out=tmp_path / "all", **small)
    choosing.main(["--sweep", str(tmp_path / "all")])
    file = tmp_path / "results" / "choosing-numbers.json"
    rows = json.loads(file.read_text())["rows"]
    assert [(row["data"], row["number"]) for row in rows] == [("all", number) for number in choosing.NUMBERS]
    assert all(row["runs"] == 4 and -1 <= row["rank correlation"] <= 1 for row in rows)
    assert all(len(row["points lost, by seed"].split(", ")) == 2 for row in rows)
    (tmp_path / "all").rename(tmp_path / "photos")
    choosing.main(["--sweep", str(tmp_path / "photos")])
    assert json.loads(file.read_text())["rows"] == [*rows, *({**row, "data": "photos"} for row in rows)]


def test_searching_finds_what_a_plain_sort_finds(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    searching.main(["--rows", "500"])
    (row,) = json.loads((tmp_path / "searching.json").read_text())["rows"]
    assert (row["rows"], row["features"]) == (500, 384)
    assert 0 <= row["comparing s"] < row["search s"]


def test_courses_are_written_into_the_package_of_a_method(monkeypatch, tmp_path, threads):
    monkeypatch.setattr(courses.inspect, "getfile", lambda of: str(tmp_path / "package.py"))
    network = {"name": "resnet_tiny", "widths": [4, 4, 8, 8]}
    small = {"backbone": network, "image_size": 16, "epochs": 2, "batch_size": 16, "report": False}
    data = {"name": "shapes", "size": 64, "test_size": 32}
    for name, seeds in (("all", (0, 1, 2)), ("few", (0, 1))):
        akssl_core.sweep(["simsiam"], seeds=seeds, data=data, out=tmp_path / name, **small)
    courses.main([str(tmp_path / "few")])
    assert not (tmp_path / "courses.py").exists()
    courses.main([str(tmp_path / "all")])
    written = runpy.run_path(str(tmp_path / "courses.py"))["COURSES"]
    *others, course = written["simsiam"]
    assert tuple(others) == installed().get("method", "simsiam").courses  # of other data: they stay
    folders = [RunDir.open(tmp_path / "all" / f"simsiam-seed={seed}") for seed in range(3)]
    assert course.data == "64 images of shapes"
    assert course.sample == folders[0].manifest.data.sample
    assert course.knn_top1[-1] == tuple(round(folder.history[-1]["knn_top1"], 1) for folder in folders)


def test_distillation_trains_each_run_once(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    small = ["--images", "256", "--size", "8", "--teacher", "vit_micro", "--teacher-epochs", "1", "--epochs", "1"]
    small += ["--views", "1", "--bank", "20", "--queries", "20", "--seeds", "0", "--out", str(tmp_path / "runs")]
    tables = []
    for _ in range(2):
        distillation.main(small)
        tables.append(json.loads((tmp_path / "results" / "distillation-shapes.json").read_text())["rows"])
    assert tables[0] == tables[1], "read, not trained again"
    assert [row["run"] for row in tables[0]] == ["teacher", "live", "cached", "alone"]
    assert all(row["of live seconds"] > 0 for row in tables[0][1:])
    live, cached, _ = (row["of its FLOPs"] for row in tables[0][1:])
    student, taught = (distillation.forward(8, network) for network in ("resnet_tiny", "vit_micro"))
    assert live == pytest.approx((taught + 3 * student) / (6 * taught), abs=1e-3), (
        "the teacher once, the student thrice"
    )
    assert cached == pytest.approx(3 * student / (6 * taught), abs=1e-3)
    of = {name: RunDir.open(tmp_path / "runs" / name).history for name in ("live-0", "rate", "alone-0")}
    live, rate, _ = (sum(row["seconds"] * (1 - row.get("time_evaluate", 0)) for row in rows) for rows in of.values())
    assert of["alone-0"][-1]["step"] == max(1, round(live / rate * 256 / distillation.BATCH)), "for as many seconds"


@pytest.mark.filterwarnings("ignore")
def test_duplicates_finds_what_it_has_planted(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    small = ["--images", "20", "--copies", "8", "--show", str(tmp_path / "wrong.png")]
    duplicates.main(["shapes", "--part", "train", *small])
    (row,) = json.loads((tmp_path / "duplicates.json").read_text())["rows"]
    assert (row["images"], row["planted"], row["precision"]) == (28, 8, 1)
    assert row["recall"] >= 0.75
    assert (tmp_path / "wrong.png").is_file()


@pytest.mark.filterwarnings("ignore")
def test_finetuning_chooses_on_validation_images_and_fits_nothing_twice(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(finetuning, "SMALL", {"backbone": "resnet_tiny", "image_size": 16, "batch_size": 16})
    monkeypatch.setattr(finetuning, "LENGTHS", {0.5: (1, 2), 1.0: (1,)})
    small = ["simsiam", "--data", "shapes", "--images", "80", "--epochs", "1", "--draws", "2", "2"]
    finetuning.main([*small, "--work", str(tmp_path / "work")])
    rows = json.loads((tmp_path / "results" / "finetuning.json").read_text())["rows"]
    assert {(row["labels"], row["draws"]) for row in rows} == {("50 %", 2), ("100 %", 2)}
    fits = [json.loads(line) for line in (tmp_path / "work" / "fits.jsonl").read_text().splitlines()]
    tried = {(one["share"], one["epochs"]): one for one in fits if one["part"] == "validation"}
    assert tried.keys() == {(0.5, 1), (0.5, 2), (1.0, 1)}
    assert all(one["tested_on"] == 20 for one in tried.values()), "the second and seventh of eight of a class"
    for name, told in (("accuracy", "the classifier"), ("scratch", "from scratch")):
        best = max((1, 2), key=lambda epochs: tried[0.5, epochs][name]["mean"])
        (row,) = (row for row in rows if row["labels"] == "50 %" and row["best for"] in ("both", told))
        assert row["epochs"] == best
        means = [one[name]["mean"] for one in fits if (one["part"], one["share"], one["epochs"]) == ("test", 0.5, best)]
        shown = row["fine-tuned" if name == "accuracy" else "from scratch"]
        assert float(shown.partition(" ")[0]) == pytest.approx(sum(means) / 2, abs=0.06)
    monkeypatch.setattr(finetuning, "fit", None)
    finetuning.main([*small, "--work", str(tmp_path / "work")])


def test_overhead():
    row = overhead.measure("simsiam", "fp32", batch=4, size=32, repeats=1, steps=1)
    assert row["ratio"] > 0


def test_operations_beside_torchvision_do_the_same(monkeypatch):
    monkeypatch.setattr(augment, "SIZES", {32: (32, 2)})
    for ours, theirs in augment.operations(32).values():
        torch.testing.assert_close(ours(), theirs(), atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore")
def test_start_care_has_a_row_for_each_care(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(start_care, "CARES", {"none": {}, "heads first": {"warm": None, "rate": 0.3, "decay": 0.9}})
    for number in range(40):
        path = tmp_path / "images" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((12, 12), 30 + 40 * (number % 2)).convert("RGB").save(path)
    folder = str(tmp_path / "images")
    small = ["--methods", "mocov3", "--size", "12", "--source-epochs", "1", "--epochs", "2", "--seeds", "0"]
    start_care.main([*small, "--source", folder, "--target", folder])
    rows = json.loads((tmp_path / "results" / "start-care.json").read_text())["rows"]
    assert [row["care"] for row in rows] == ["from random weights", "none", "heads first"]
    assert all(0 <= row["k-NN"] <= 100 for row in rows)
