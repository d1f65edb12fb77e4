"""The source `hf`: what can be opened, what is found in it, what trains and what the probes see, and whole runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from akssl_plugin_hf_datasets import HfDatasets
from akssl_plugin_hf_datasets.labels import read_labels
from PIL import Image

import akssl_core
from akssl_core import ConfigError, DataError, Plugins
from akssl_core.testing import settings_table


def ids(images):
    return [images.id_of(i) for i in range(len(images))]


def labelled(*columns, **types):
    """Parts of a data set that have nothing but labels."""
    features = datasets.Features({"label": types["label"]}) if types else None
    return [datasets.Dataset.from_dict({"label": column}, features=features) for column in columns]


# -- what can be opened ---------------------------------------------------------------------------
def write_arrow(table, path):
    with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.data.schema) as writer:
        writer.write_table(table.data.table)


def test_every_local_form_of_one_data_set(source, table, noise):
    data = table()
    data.to_parquet("feature.parquet")
    pq.write_table(pa.table({"image": data.with_format("arrow")[:]["image"], "label": data["label"][:]}), "plain.pq")
    data.save_to_disk("saved")
    write_arrow(data, "file.arrow")
    os.makedirs("folder[1]")
    shutil.copy("feature.parquet", "folder[1]/one*.parquet")
    forms = ["feature.parquet", "plain.pq", "saved", "saved/data-00000-of-00001.arrow", "file.arrow"]
    for form in [*forms, os.path.abspath("saved"), "folder[1]/one*.parquet"]:
        found = source(form)
        images = found.all()
        assert (len(images), images.channels) == (20, 3), form
        assert images.labels.tolist() == [i % 3 for i in range(20)]
        assert images.classes == (None if form == "plain.pq" else ("ant", "bee", "cat"))
        assert ids(images)[:2] == ["0.png", "1.png"]
        assert torch.equal(images.fetch([7]).image(0), torch.from_numpy(noise(7)).permute(2, 0, 1))
        assert any(note.startswith("20 images of split 'train' in column 'image', labels in") for note in found.notes)


def test_saved_splits_and_folders_with_split_files(source, table):
    train, test = table(20), table(9, first=100)
    datasets.DatasetDict(train=train, test=test).save_to_disk("saved")
    os.makedirs("parquet/data")
    os.makedirs("arrow")
    for name, part in (("train", train), ("test", test)):
        part.to_parquet(f"parquet/data/{name}-00000-of-00001.parquet")
        write_arrow(part, f"arrow/{name}.arrow")
    for form in ("saved", "parquet", "arrow"):
        found = source(form)
        bank, queries = found.probe()
        assert len(found.train()) == len(found.all()) == len(bank) == 20
        assert (len(queries), queries.id_of(0)) == (9, "100.png")
        assert torch.equal(queries.fetch([4]).images, source(form, split="test").all().fetch([4]).images)
        assert "9 labelled images of split 'test' are the probes' queries" in found.notes
        assert len(source(form, split="test").all()) == 9


def test_image_folder(source, noise):
    for split, classes in (("train", "abc"), ("test", "abc")):
        for name in classes:
            os.makedirs(f"photos/{split}/{name}")
            for i in range(4):
                Image.fromarray(noise(i)).save(f"photos/{split}/{name}/{i}.png")
    found = source("photos")
    assert found.all().classes == ("a", "b", "c")
    assert found.all().id_of(5) == os.path.join("train", "b", "1.png")
    assert len(found.probe()[1]) == 12
    shutil.copytree("photos/train/a", "flat")
    flat = source("flat")
    assert (flat.all().labels, flat.all().classes, flat.probe()) == (None, None, None)
    assert len(flat.train()) == 4
    assert "no labels: every image trains, and no accuracy is computed" in flat.notes
    Image.fromarray(noise(9)).save("flat/9.png")
    assert len(source("flat").all()) == 5, "a cached copy is not taken for the folder as it is now"


def test_a_file_written_anew_is_read_anew(source, table):
    table(4).to_parquet("t.parquet")
    assert len(source("t.parquet").all()) == 4
    os.utime("t.parquet", (1, 1))
    table(6).to_parquet("t.parquet")
    assert len(source("t.parquet").all()) == 6


def test_configurations(source, refused, table):
    for name, count in (("small", 5), ("large", 8)):
        os.makedirs(f"both/{name}")
        table(count).to_parquet(f"both/{name}/train.parquet")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("small", "large"))
    with open("both/README.md", "w") as file:
        file.write(f"---\nconfigs:\n{configs}---\n")
    assert len(source("both", config="large").all()) == 8
    text = refused("both")
    assert "['small', 'large']" in text
    assert text.endswith("Name one with data.config.")
    assert "Name one with data.config" in refused("both", config="medium")


def test_loading_is_silent_and_leaves_the_progress_bars_on(source, table, capfd):
    table().to_parquet("t.parquet")
    datasets.enable_progress_bars()
    level = datasets.logging.get_verbosity()
    capfd.readouterr()
    source("t.parquet")
    with pytest.raises(DataError):
        source("nowhere")
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()
    assert datasets.logging.get_verbosity() == level


def test_fetching_keeps_the_order_that_is_asked_for(source, table):
    table().to_parquet("t.parquet")
    images = source("t.parquet").all()
    pixels = images.fetch([2, 0, 2])
    for place, i in enumerate([2, 0, 2]):
        image, label = images[i]
        assert torch.equal(pixels.image(place), image)
        assert label == i % 3
    part = images.subset(torch.tensor([5, 3]))
    assert (ids(part), part.labels.tolist()) == (["5.png", "3.png"], [2, 0])
    assert torch.equal(part.fetch([1]).images, images.fetch([3]).images)


# -- columns --------------------------------------------------------------------------------------
def test_columns_are_chosen_by_type_then_by_name(source, refused, table, noise, encoded):
    both = table(4).add_column("thumb", table(4, first=50)["image"][:] and [{"bytes": b"x", "path": None}] * 4)
    both.to_parquet("one_typed.parquet")
    assert ids(source("one_typed.parquet").all())[0] == "0.png"
    cells = [encoded(noise(i)) for i in range(4)]
    pq.write_table(pa.table({"thumb": [b"x"] * 4, "img": cells}), "usual.parquet")
    assert source("usual.parquet").all().unreadable == {}
    pq.write_table(pa.table({"left": cells, "right": cells}), "two.parquet")
    assert "several columns hold images: left, right. Choose one: data.image=left" in refused("two.parquet")
    assert len(source("two.parquet", image="right").all()) == 4
    pq.write_table(pa.table({"x": [1], "text": ["a"], "wide": [[[1]]]}), "none.parquet")
    text = refused("none.parquet")
    assert "no column holds images. Columns: x (int64), text (string), wide (list<" in text
    assert "a struct {bytes, path}" in text
    assert "column 'x' holds int64, no images" in refused("none.parquet", image="x")
    assert "no column 'imgg'. Did you mean 'img'? Columns: thumb, img." in refused("usual.parquet", image="imgg")


def test_label_columns(source, refused, table):
    data = table(6).add_column("coarse", [0, 1] * 3).cast_column("coarse", datasets.ClassLabel(names=["x", "y"]))
    data.to_parquet("label_too.parquet")
    assert source("label_too.parquet").all().classes == ("ant", "bee", "cat")
    assert source("label_too.parquet", label="coarse").all().classes == ("x", "y")
    data.rename_column("label", "fine").to_parquet("fine.parquet")
    found = source("fine.parquet")
    assert found.all().labels is None
    assert "labels not used: several columns hold classes: fine, coarse; choose one with data.label" in found.notes
    data.rename_column("label", "fine").remove_columns("coarse").to_parquet("one.parquet")
    assert source("one.parquet").all().classes == ("ant", "bee", "cat")
    table(6).remove_columns("label").add_column("label", [0.5] * 6).to_parquet("float.parquet")
    assert any("column 'label' holds float64; expected ClassLabel" in note for note in source("float.parquet").notes)
    assert "data.label: column 'label' holds float64" in refused("float.parquet", label="label")
    assert "no column 'lable'. Did you mean 'label'?" in refused("float.parquet", label="lable")


# -- labels and the split -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("values", "numbers", "classes"),
    [
        (["b", None, "a", "b"], [1, -1, 0, 1], ("a", "b")),
        ([None, None], [-1, -1], None),
        ([10, -1, 7], [1, -1, 0], ("7", "10")),
        ([0, 2, None, -1], [0, 2, -1, -1], None),
        ([10, 7, None, 10], [1, 0, -1, 1], ("7", "10")),
        ([True, False], [1, 0], None),
    ],
)
def test_labels_of_any_kind(values, numbers, classes):
    labels, names = read_labels(labelled(values), "label")
    assert (labels.tolist(), labels.dtype, names) == (numbers, torch.int64, classes)


def test_classes_of_two_splits_are_brought_together_by_name():
    first, second = datasets.ClassLabel(names=["a", "c"]), datasets.ClassLabel(names=["c", "b"])
    same = labelled([0, 1, -1, None], [1, 0], label=first)
    assert read_labels(same, "label")[0].tolist() == [0, 1, -1, -1, 1, 0]
    parts = [*labelled([0, 1, -1], label=first), *labelled([0, 1, None], label=second)]
    labels, names = read_labels(parts, "label")
    assert (labels.tolist(), names) == ([0, 2, -1, 2, 1, -1], ("a", "b", "c"))


def test_one_image_of_each_class_in_five_is_held_out(source, table):
    table(30).to_parquet("t.parquet")
    bank, queries = source("t.parquet").probe()
    assert len(queries) == 6
    assert torch.bincount(queries.labels).tolist() == [2, 2, 2]
    assert sorted([*ids(bank), *ids(queries)]) == sorted(ids(source("t.parquet").all()))
    assert ids(source("t.parquet").train()) == ids(bank)
    assert ids(source("t.parquet").probe()[1]) == ids(queries), "the same again"


def test_a_test_split_without_labels_is_passed_over(source, refused, table):
    hidden = table(6, first=50).remove_columns("label").add_column("label", [-1] * 6)
    hidden = hidden.cast_column("label", datasets.ClassLabel(names=["ant", "bee", "cat"]))
    datasets.DatasetDict(train=table(10), test=hidden, validation=table(5), extra=table(4)).save_to_disk("d")
    found = source("d")
    assert "5 labelled images of split 'validation' are the probes' queries" in found.notes
    assert "the split 'test' has no labels, so it serves no probe" in found.notes
    assert found.probe()[1].id_of(3) == "validation/3", "names are not unique here"
    assert len(source("d", test_split="extra").probe()[1]) == 4
    assert "the split 'test' of 'd' has no labelled images. Columns: image, label." in refused("d", test_split="test")
    assert "'train' is the split to train on" in refused("d", test_split="train")
    assert "'d' has no split 'extr'. Did you mean 'extra'? Splits: train, test," in refused("d", test_split="extr")
    assert source("d", split="test").all().labels is None


def test_splits_that_hold_images_differently_are_told(refused, table, encoded, noise):
    other = datasets.Dataset.from_dict({"image": [noise()] * 3, "label": [0, 1, 2]})
    other = other.cast_column("label", datasets.ClassLabel(names=["ant", "bee", "cat"]))
    datasets.DatasetDict(train=table(6), test=other).save_to_disk("d")
    assert "the splits 'train' and 'test' of 'd' cannot be read together" in refused("d")


def test_too_few_labels(source, table):
    table(3).to_parquet("t.parquet")
    found = source("t.parquet")
    assert found.probe() is None
    assert len(found.train()) == 3
    assert any(note.startswith("too few labels to hold some out") for note in found.notes)


# -- names and runs -------------------------------------------------------------------------------
def test_the_open_family_is_the_source_with_its_path(table):
    table(10).to_parquet("t.parquet")
    plugins = Plugins()
    for name in ("hf/t.parquet", "HF/t.parquet"):
        component = plugins.get("data", name)
        assert issubclass(component, HfDatasets)
        assert (component.name, component.Config().path) == ("hf", os.path.abspath("t.parquet"))
    assert plugins.get("data", "hf//a/b").Config().path == "/a/b"
    assert plugins.get("data", "hf/t.parquet") is plugins.get("data", "hf/t.parquet")
    assert plugins.get("data", "hf") is HfDatasets
    with pytest.raises(DataError, match="'hf/' names no data set"):
        plugins.get("data", "hf/")
    with pytest.raises(akssl_core.PluginError):
        plugins.get("backbone", "hf/t.parquet")


SMALL = {
    "backbone": {"name": "resnet_tiny", "widths": [4, 4, 8, 8]}, "image_size": 16, "epochs": 1, "batch_size": 8,
    "precision": "fp32", "report": False,
}  # fmt: skip


def test_a_run_and_its_repetition(table, tmp_path):
    table(30).to_parquet("t.parquet")
    data = {"name": "hf", "path": tmp_path / "t.parquet"}
    result = akssl_core.run(method="simsiam", data=data, out="run", plugins=Plugins(), **SMALL)
    assert 0 <= result.metrics["knn_top1"] <= 100
    assert (result.run_dir / "config.yaml").read_text().count("name: hf") == 1
    again = akssl_core.run(config="run/config.yaml", out="again", report=False, plugins=Plugins())
    family = akssl_core.run(method="simsiam", data="hf/t.parquet", out="family", plugins=Plugins(), **SMALL)
    assert again.metrics["loss"] == family.metrics["loss"] == result.metrics["loss"]
    assert akssl_core.resume("run", report=False).metrics == result.metrics
    with pytest.raises(ConfigError, match=r"data.path: should be '.*/t.parquet', got 'x'"):
        akssl_core.run("simsiam", data={"name": "hf/t.parquet", "path": "x"}, plugins=Plugins(), **SMALL)


@pytest.mark.filterwarnings("ignore:resumed with other settings")
def test_a_local_path_holds_from_any_folder_and_may_be_told_anew(table, tmp_path, monkeypatch):
    table(30).to_parquet("t.parquet")
    akssl_core.run(method="simsiam", data="hf/t.parquet", out="run", plugins=Plugins(), **SMALL)
    monkeypatch.chdir(tmp_path.parent)
    assert akssl_core.resume(tmp_path / "run", epochs=2, report=False).history[-1]["epoch"] == 2
    (tmp_path / "t.parquet").rename(tmp_path / "moved.parquet")
    with pytest.raises(DataError, match=r"t.parquet' does not exist.*data.path="):
        akssl_core.evaluate(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert akssl_core.resume("run", data="hf/moved.parquet", epochs=3, report=False).history[-1]["epoch"] == 3
    assert HfDatasets.Config(path="owner/name").path == "owner/name", "a name on the hub stays one"


@pytest.fixture
def akssl(monkeypatch, capsys):
    """The command in this process: (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["akssl", *map(str, arguments)])
        (command,) = entry_points(group="console_scripts", name="akssl")
        with pytest.raises(SystemExit) as caught:
            command.load()()
        return caught.value.code, *capsys.readouterr()

    return call


FLAGS = (
    "--image-size", "16", "--epochs", "1", "--batch-size", "8", "--precision", "fp32", "--no-report",
    "--set", "backbone.name=resnet_tiny", "--set", "backbone.widths=[4,4,8,8]",
)  # fmt: skip


def test_the_command_line(akssl, table):
    datasets.DatasetDict(train=table(20), test=table(9, first=30)).save_to_disk("saved")
    code, out, err = akssl("run", "simsiam", "--data", "hf/./saved", *FLAGS, "--out", "A")
    assert code == 0, err
    assert "k-NN top-1" in out
    code, out, err = akssl(
        "run", "simsiam", "--set", "data.name=hf", "--set", "data.path=./saved", *FLAGS, "--out", "B"
    )
    assert code == 0, err
    for data, words in (
        ("hf/./save", "Did you mean 'saved'?"),
        ("hf/", "names no data set"),
        ("hf/beans", "switched off"),
    ):
        code, out, err = akssl("run", "simsiam", "--data", data, *FLAGS)
        assert (code, "Traceback" in err) == (2, False)
        assert words in err


def test_importing_the_plugin_imports_no_datasets():
    heavy = "{'datasets', 'pyarrow', 'huggingface_hub'}"
    code = f"import sys, akssl_plugin_hf_datasets; sys.exit(len({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_the_readme_lists_every_setting():
    assert settings_table(HfDatasets.Config) in (Path(__file__).parents[1] / "README.md").read_text()
