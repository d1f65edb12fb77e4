"""Paths in settings: they hold from any folder, and data that was moved is told anew."""

from __future__ import annotations

import os
import re
import shutil
import types
from pathlib import Path
from typing import Union, get_args, get_origin

import pytest
import torch
from PIL import Image
from whole_runs import same

import akssl_core
from akssl_core.config.registry import KINDS
from akssl_core.config.schema import Schema, absolute_path, validate
from akssl_core.config.yaml import read_yaml
from akssl_core.errors import ConfigError
from akssl_core.plugins.manager import Plugins
from akssl_core.settings import RunSpec

pytestmark = pytest.mark.filterwarnings("default:resumed with other", "default:.* has ended and is read")
SMALL = (
    "--image-size", "8", "--batch-size", "8", "--precision", "fp32", "--epochs", "1", "--no-report",
    "--set", "backbone.name=resnet_tiny", "--set", "backbone.widths=[4,4,8,8]",
)  # fmt: skip
PATH_LIKE = re.compile(r"\b(path|files?|dir|folder|root|directory)\b", re.IGNORECASE)  # words of a field about paths
OTHERS = {
    ("callback", "tensorboard", "folder"): "taken from the run folder, wherever that lies",
    ("callback", "wandb", "run_name"): "a name, by default the run folder's",
}


@pytest.fixture
def photos(tmp_path):
    """40 images of two classes in the folder `photos`, and one prepared file of them."""
    generator = torch.Generator().manual_seed(0)
    for i in range(40):
        file = tmp_path / "photos" / ("cat" if i % 2 else "dog") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(torch.randint(0, 256, (9, 9, 3), dtype=torch.uint8, generator=generator).numpy()).save(file)
    akssl_core.prepare(tmp_path / "photos", tmp_path / "p.safetensors", size=9)
    return tmp_path / "photos"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Goes to another folder, from which no relative path leads to the data."""

    def go():
        (tmp_path / "other" / "place").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "other" / "place")

    return go


@pytest.mark.parametrize("given", ["photos", "~/photos", "./photos/../p.safetensors"])
def test_a_run_goes_on_and_is_used_from_any_folder(here, photos, tmp_path, elsewhere, monkeypatch, given):
    monkeypatch.setenv("HOME", str(tmp_path))
    code, _, err = here("run", "simsiam", "--data", given, *SMALL, "--out", "run")
    assert code == 0, err
    stored = read_yaml(tmp_path / "run" / "config.yaml")["data"]["path"]
    assert os.path.isabs(stored)
    assert os.path.samefile(stored, photos if given.endswith("photos") else tmp_path / "p.safetensors")
    elsewhere()
    run = os.path.relpath(tmp_path / "run")
    for command in (
        ("resume", run, "--epochs", "2", "--no-report"),
        ("eval", run, "--seeds", "1"),
        ("embed", run, "--out", "features.npz"),
        ("report", run),
        ("explain", "--config", f"{run}/config.yaml"),
    ):
        code, _, err = here(*command)
        assert code == 0, (command, err)


def test_a_path_in_a_config_file_and_a_table_is_stored_as_an_absolute_one(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for data in ({"name": "folder", "path": "photos"}, {"name": "prepared", "path": Path("p.safetensors")}):
        table = {"method": "simsiam", "augmentation": "pair", "optimizer": "sgd", "data": data}
        spec = validate(RunSpec, table, registry=Plugins())
        assert spec.table()["data"]["path"] == str(tmp_path / data["path"])


def test_a_deleted_current_folder_is_told(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ValueError, match="should be an absolute path, for the current folder has been deleted"):
        absolute_path("photos")
    assert absolute_path("/x") == Path("/x")


# -- data that was moved --------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["photos", "p.safetensors"])
def test_moved_data_is_told_anew(here, photos, tmp_path, name):
    code, _, err = here("run", "simsiam", "--data", name, *SMALL, "--out", "run")
    assert code == 0, err
    shutil.move(tmp_path / name, tmp_path / f"moved-{name}")
    for command in (("resume", "run", "--epochs", "2"), ("eval", "run"), ("embed", "run", "--out", "f.npz")):
        code, _, err = here(*command)
        assert (code, "does not exist" in err, "--data NEW" in err) == (2, True, True), err
    code, _, err = here("resume", "run", "--data", f"moved-{name}", "--epochs", "2", "--no-report")
    assert code == 0, err
    assert "resumed with other settings: data.path: " in err
    assert "other data" not in err
    assert read_yaml(tmp_path / "run" / "config.yaml")["data"]["path"] == str(tmp_path / f"moved-{name}")
    with pytest.warns(UserWarning, match="train.epochs: 2 -> 3"):
        result = akssl_core.resume("run", data=Path(f"moved-{name}"), epochs=3, report=False)
    assert result.history[-1]["epoch"] == 3
    assert here("eval", "run", "--seeds", "1")[0] == 0
    assert here("embed", "run", "--data", f"moved-{name}", "--out", "f.npz")[0] == 0


def test_a_run_goes_on_with_a_prepared_file_of_the_same_images(here, photos, tmp_path):
    assert here("run", "simsiam", "--data", "photos", *SMALL, "--out", "run")[0] == 0
    for name in ("again", "shards-run", "other"):
        shutil.copytree(tmp_path / "run", tmp_path / name)
    assert here("resume", "run", "--epochs", "2", "--no-report")[0] == 0
    code, _, err = here("resume", "again", "--data", "p.safetensors", "--epochs", "2", "--no-report")
    assert code == 0, err
    assert 'data.name: "folder" -> "prepared"' in err
    assert same(tmp_path / "run", tmp_path / "again")
    assert akssl_core.prepare(photos, tmp_path / "shards", size=9, shard_size="2kB").shards > 3
    code, _, err = here("resume", "shards-run", "--data", "shards", "--epochs", "2", "--no-report")
    assert code == 0, err
    assert same(tmp_path / "run", tmp_path / "shards-run")
    akssl_core.prepare(photos, tmp_path / "small.safetensors", size=8)
    code, _, err = here("resume", "other", "--data", "small.safetensors", "--epochs", "2", "--no-report")
    assert (code, "images must be the same to the bit, and these are not" in err) == (2, True), err


TAKES_A_PATH = {
    "report": akssl_core.report,
    "resume": akssl_core.resume,
    "evaluate": akssl_core.evaluate,
    "embed": lambda path: akssl_core.embed(path, data="shapes"),
    "export": lambda path: akssl_core.export(path, to="safetensors"),
    "load_backbone": akssl_core.load_backbone,
    "compare": akssl_core.compare,
    "doctor": lambda path: akssl_core.doctor("simsiam", out=path),
    "run": lambda path: akssl_core.run("simsiam", out=path),
    "sweep": lambda path: akssl_core.sweep("simsiam", out=path),
    "prepare": lambda path: akssl_core.prepare("shapes", path),
    "config": lambda path: akssl_core.explain("simsiam", config=path),
}


@pytest.mark.parametrize("value", ["", 3, [], b"x"], ids=repr)
@pytest.mark.parametrize("name", TAKES_A_PATH)
def test_what_is_no_path_is_wrong_input_and_nothing_is_written(tmp_path, monkeypatch, name, value):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"expected the path of a file or a folder, got"):
        TAKES_A_PATH[name](value)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_path_on_the_command_line_is_told_with_its_option(here, tmp_path):
    for arguments in (("run", "simsiam", "--out", ""), ("sweep", "--methods", "simsiam", "--out", "")):
        code, _, err = here(*arguments)
        assert (code, "'--out': it is empty" in err) == (2, True), err
    code, _, err = here("explain", "simsiam", "--data", "")
    assert (code, "expected the path" in err) == (2, True), err
    assert list(tmp_path.iterdir()) == []


def test_other_data_in_its_place_is_warned_of(here, photos, tmp_path):
    assert here("run", "simsiam", "--data", "photos", *SMALL, "--out", "run")[0] == 0
    shutil.copytree(photos, tmp_path / "fewer")
    for i in range(8):
        (tmp_path / "fewer" / ("cat" if i % 2 else "dog") / f"{i}.png").unlink()
    code, _, err = here("resume", "run", "--data", "fewer", "--epochs", "2", "--no-report")
    assert code == 0, err
    assert "resumed with other data than the run began with: images: " in err


def test_a_finished_run_is_read_wherever_its_data_is(here, photos, tmp_path):
    assert here("run", "simsiam", "--data", "photos", *SMALL, "--out", "run")[0] == 0
    shutil.move(photos, tmp_path / "moved")
    assert here("resume", "run", "--no-report")[0] == 0
    code, _, said = here("resume", "run", "--data", "moved", "--no-report")
    assert code == 0
    assert "has ended and is read: data has no effect" in said


# -- the kind: every path-typed setting -----------------------------------------------------------
def fields():
    """(kind, component, field's name, its annotation, its metadata) of every registered component and the core."""
    plugins = Plugins()
    plugins.load_all()
    for kind in KINDS:
        for component, _ in plugins.registry.components(kind):
            yield from ((kind, component.name, *one) for one in _fields(component.Config))
    yield from (("core", "run", *one) for one in _fields(RunSpec))


def _fields(schema):
    for name, field in schema.model_fields.items():
        parts = _parts(field.annotation)
        yield schema, name, field, parts
        for part in parts:
            if isinstance(part, type) and issubclass(part, Schema):
                yield from _fields(part)


def _parts(annotation):
    if get_origin(annotation) in (Union, types.UnionType, tuple, list, dict):
        return [part for one in get_args(annotation) for part in _parts(one)]
    return [annotation]


def test_no_path_among_the_settings_of_any_component_is_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    (tmp_path / "x").touch()
    seen = set()
    for kind, component, schema, name, field, parts in fields():
        is_path = any(isinstance(part, type) and issubclass(part, Path) for part in parts)
        words = f"{name.replace('_', ' ')} {field.description or ''}"
        named = str in parts and PATH_LIKE.search(words) is not None
        if not (is_path or named) or (kind, component, name) in OTHERS:
            continue
        seen.add(f"{kind} {component}.{name}")
        for given, stored in (("x", tmp_path / "x"), ("~/x", Path("/home/somebody/x"))):
            if named and given == "~/x":
                continue  # a text may also be a name: a path is what is there
            value = schema.model_validate({name: given}).model_dump(mode="json")[name]
            assert value == str(stored), f"{kind} {component}.{name} keeps '{value}': give it the type FilePath"
    assert {"data folder.path", "data prepared.path"} <= seen
    assert "data hf.path" in seen


def test_a_home_is_found_in_every_path_of_commands_and_functions(tmp_path, monkeypatch, here, photos):
    monkeypatch.setenv("HOME", str(tmp_path))
    small = ("--batch-size", "16", "--image-size", "8", "--epochs", "1", "--precision", "fp32", "--no-report")
    code, _, err = here("run", "simsiam", "--data=~/photos", "--out=~/runs/a", *small)
    assert code == 0, err
    for command in (
        ("resume", "~/runs/a"), ("report", "~/runs/a"), ("compare", "~/runs/a", "--out=~/c.html"),
        ("embed", "~/runs/a", "--out=~/f.npz"), ("export", "~/runs/a", "--to", "safetensors", "--out=~/e.safetensors"),
        ("data", "prepare", "~/photos", "--out=~/q.safetensors"), ("explain", "--config=~/runs/a/config.yaml"),
    ):  # fmt: skip
        code, _, err = here(*command)
        assert code == 0, (command, err)
    assert akssl_core.resume("~/runs/a").run_dir == tmp_path / "runs" / "a"
    assert akssl_core.load_backbone("~/runs/a").embed_dim
    assert akssl_core.report("~/runs/a").path.is_file()
    assert akssl_core.explain(config="~/runs/a/config.yaml").settings["method.name"] == "simsiam"
    assert {"runs", "c.html", "f.npz", "e.safetensors", "q.safetensors"} <= {file.name for file in tmp_path.iterdir()}
    assert not list(tmp_path.rglob("~"))
