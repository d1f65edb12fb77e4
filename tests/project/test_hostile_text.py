"""Hostile texts: config files, command lines, the files of a run that is reported, and metadata of packages."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import asdict
from importlib import metadata

import pytest
import torch
from fuzz_engine import limits
from safetensors.torch import save_file
from synthetic_run import FINAL, Page, pictures, row, write_run

from akssl_core.cli.base import settings_of
from akssl_core.config.schema import validate
from akssl_core.config.yaml import DEEPEST, MOST_BYTES, MOST_VALUES, parse_yaml, read_yaml
from akssl_core.errors import AksslError, ConfigError, PluginError, RunDirError, visible
from akssl_core.plugins.installed import entries
from akssl_core.plugins.manager import Plugins
from akssl_core.plugins.table import plugin_table
from akssl_core.reporting import render
from akssl_core.rundir.checkpoints import CheckpointState
from akssl_core.rundir.folder import RunDir
from akssl_core.rundir.schemas import Manifest
from akssl_core.running.layers import check, collect, layer
from akssl_core.settings import Clip


def bomb(line, levels=40):
    """Each name stands for several of the one before it."""
    start = f"n0: &n0 {line.format('x', 'x').replace('*x', '1')}\n" if "<<" not in line else "n0: &n0 {a: 1}\n"
    return start + "".join(f"n{i}: &n{i} {line.format(f'n{i - 1}', f'n{i - 1}')}\n" for i in range(1, levels))


BAD_YAML = {
    "a billion laughs in lists": (bomb("[*{}, *{}]"), "more than .* values"),
    "a billion laughs in tables": (bomb("{{a: *{}, b: *{}}}"), "more than .* values"),
    "tables merged without end": (bomb("{{<<: [*{}, *{}]}}"), "more than .* values"),
    "a list in itself": ("a: &a [*a]", "more than .* values"),
    "a table in itself": ("a: &a {b: *a}", "more than .* values"),
    "lists without end": ("a: " + "[" * 50_000, "nested deeper"),
    "blocks without end": ("- " * 5000 + "x", "nested deeper"),
    "tables without end": ("a: " + "{b: " * 20_000, "nested deeper"),
    "many values": ("a: [" + "1," * 30_000 + "]", "more than .* values"),
    "an object": ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
    "no alias": ("a: *b", "more than .* values|undefined alias"),
    "no day": ("a: 2001-99-99", "month must be in 1..12"),
    "no date": ("a: !!timestamp x", "a value of a wrong form"),
    "no truth": ("a: !!bool x", "a value of a wrong form"),
    "no number": ("a: !!int x", "invalid literal"),
    "too long a number": ("a: " + "9" * 5000, "limit"),
    "a list as a key": ("? [a]\n: b", "unhashable"),
    "a number as a key": ("1: a", "must be a text, got 1"),
    "true as a key": ("a: [{yes: 1}]", "must be a text, got True"),
    "null as a key": ("a: {~: 1}", "must be a text, got None"),
    "two documents": ("a: 1\n---\nb: 2", "found another document"),
    "control characters": ("a: \x07", "special characters are not allowed"),
    "a tab": ("a:\n\t- b", "cannot start any token"),
}


@pytest.mark.parametrize("case", BAD_YAML)
def test_a_config_file_takes_neither_memory_nor_time(tmp_path, case):
    text, message = BAD_YAML[case]
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with limits(10), pytest.raises(ConfigError, match=message) as caught:
        read_yaml(path)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 400
    assert len(str(caught.value).splitlines()) == 1
    if "\n" not in text:
        with limits(10), pytest.raises(ConfigError, match="is not a valid value"):
            settings_of({}, [f"method.x={text.removeprefix('a: ')}" if text.startswith("a: ") else f"m={text}"])


def test_aliases_that_stand_for_little_are_fine():
    assert parse_yaml("a: &a [1, 2]\nb: {c: *a, d: *a}") == {"a": [1, 2], "b": {"c": [1, 2], "d": [1, 2]}}
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}
    assert len(parse_yaml("[" + "1," * (MOST_VALUES - 1) + "]")) == MOST_VALUES - 1
    assert parse_yaml("[" * DEEPEST + "]" * DEEPEST)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: \xff", b"\x00" * 40])
def test_config_files_that_are_no_text(tmp_path, content):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match="cannot read|not valid YAML"):
        read_yaml(tmp_path / "c.yaml")


def test_a_config_file_without_an_end(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"# x\n" * MOST_BYTES)
    for path in (tmp_path / "c.yaml", tmp_path / "zero"):
        (tmp_path / "zero").unlink(missing_ok=True)
        (tmp_path / "zero").symlink_to("/dev/zero")
        with limits(5), pytest.raises(ConfigError, match="is larger than 131072 bytes"):
            read_yaml(path)


def checked(setting, toys):
    settings = settings_of({}, [setting])
    settings["method"] = {"name": "toy", **settings.get("method", {})}
    return check(layer(collect(None, None, settings, toys), toys), toys)


@pytest.mark.parametrize(
    "setting",
    [
        "optimizer.lr=.nan", "optimizer.lr=.inf", "optimizer.lr=-.inf", "method.momentum=.nan",
        "optimizer={name: sgd, weight_decay: .inf}", "train.clip.norm=.inf", "evaluate.temperature=.inf",
        "train.epochs=1e999", "seed=-1", "seed=0x" + "f" * 4000, "train.batch_size=0x" + "f" * 4000,
        "train.image_size=100000", "train.epochs=[[[]]]", "method.out_dim={a: 1}", "data.size=!!binary aGk=",
        "optimizer.name=../../x", "method.name=[1]", "callbacks=x", "callbacks=[{}]",
    ],
)  # fmt: skip
def test_values_that_no_run_can_use(toys, setting):
    with limits(10), pytest.raises(AksslError) as caught:
        checked(setting, toys)
    assert len(str(caught.value)) < 1000
    assert len(str(caught.value).splitlines()) <= 2


def test_a_value_without_end_is_not_shown_whole(toys):
    with pytest.raises(ConfigError) as caught:
        validate(Clip, {"norm": ["x" * 10_000]}, registry=toys)
    assert len(str(caught.value)) < 400


def test_many_mistakes_are_counted(toys):
    with pytest.raises(ConfigError, match=r"and 10 more\.$") as caught:
        check(layer(collect("toy", None, {"callbacks": [1] * 20}, toys), toys), toys)
    assert len(str(caught.value).splitlines()) == 11


# -- the command line -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "arguments",
    [
        ("explain", "simsiam", "--data", "x" * 5000),
        ("explain", "simsiam", "--data", "~nobody-of-this-name"),
        ("explain", "simsiam", "--data", "\x1b[2J"),
        ("explain", "simsiam", "--set", "data.name=\udcff"),
        ("explain", "simsiam", "--set", "data.size=\udcff"),
        ("explain", "simsiam", "--set", "a.b.c=[1, 2"),
        ("explain", "simsiam", "--set", "method." + "x." * 3000 + "y=1"),
        ("explain", "simsiam\n\n\n", "--set", "seed=1"),
        ("explain", "../../simsiam"),
        ("explain", "simsiam", "--config", "x" * 5000),
        ("explain", "simsiam", "--config", "."),
        ("explain", "simsiam", "--config", "/dev/zero"),
        ("plugins", "new", "../../evil"),
        ("plugins", "new", "x" * 5000),
        ("plugins", "show", "\udcff"),
        ("find", "loss", "\x1b]0;title\x07"),
        ("data", "prepare", "x" * 5000, "--out", "x.safetensors"),
    ],
    ids=lambda arguments: " ".join(arguments).encode("ascii", "backslashreplace").decode()[:60],
)
def test_a_command_line_of_anything_is_two_lines_and_exit_code_2(here, tmp_path, arguments):
    code, out, err = here(*arguments)
    assert code == 2, err
    assert out == ""
    assert len(err.splitlines()) <= 2 or "\n\n\n" in arguments[1]
    assert "Traceback" not in err
    assert all(c.isprintable() or c == "\n" for c in err)
    assert list(tmp_path.iterdir()) == []


def test_settings_are_not_looked_for_where_no_path_can_be(here):
    code, _, err = here("run", "--config", "x" * 5000)
    assert (code, "cannot read xxx" in err) == (2, True)


@pytest.mark.parametrize("command", ["resume", "report"])
def test_a_run_folder_whose_name_cannot_be(here, command):
    assert here(command, "x" * 5000)[0] == 2


def test_what_steers_a_terminal_is_escaped():
    assert visible("a\x1b[2J\n\udcff\u202e\x9b é") == "a\\x1b[2J\\n\\udcff\\u202e\\x9b é"
    assert visible("a\nb\t", keep="\n") == "a\nb\\t"


# -- the files of a run ---------------------------------------------------------------------------
MANIFESTS = {
    "a number as status": ({"status": 5}, "status should be a text"),
    "no status": ({"status": None}, "status should be"),
    "texts as scores": ({"final": {"loss": "x"}}, "final.loss should be a valid number"),
    "a list of scores": ({"final": []}, "final should be"),
    "a text as notes": ({"notes": "text"}, "notes should be"),
    "numbers as classes": ({"data": {"class_names": [1]}}, "data.class_names.0"),
    "a list of data": ({"data": []}, "data should be"),
    "half a character": ({"final": {"\ud800": "x"}}, "final."),
    "facts within facts": ({"hardware": {"a": {"b": 1}}}, "hardware.a"),
    "a table of plugins": ({"plugins": {}}, "plugins should be"),
    "a baseline beyond any number": ({"baselines": {"knn_raw_pixels": 1e300}}, "baselines.knn_raw_pixels"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_report_of_an_odd_manifest_is_refused(tmp_path, case):
    changes, message = MANIFESTS[case]
    with pytest.raises(RunDirError, match=f"manifest.json is damaged: {message}"):
        render(write_run(tmp_path / "run", **changes))


ROWS = {"text": {"loss": "x"}, "no epoch": {"epoch": None}, "a list": {"lr": [1]}, "an epoch beyond": {"epoch": 1e300}}


@pytest.mark.parametrize("case", ROWS)
def test_a_report_of_odd_rows_is_refused(tmp_path, case):
    with pytest.raises(RunDirError, match="metrics.jsonl is damaged"):
        render(write_run(tmp_path / "run", rows=[{**row(2), **ROWS[case]}]))


@pytest.mark.parametrize("content", [b"[]", b"{", b"[" * 10_000, b'{"a": 1}', b"\xff", b""])
def test_a_report_of_odd_origins_is_refused(tmp_path, content):
    folder = write_run(tmp_path / "run")
    (folder / "provenance.json").write_bytes(content)
    with pytest.raises(RunDirError, match="provenance.json is damaged"):
        render(folder)


SAMPLES = {
    "floats": {"originals": torch.zeros(2, 3, 8, 8)},
    "three axes": {"views.global": torch.zeros(2, 8, 8, dtype=torch.uint8)},
    "no pixels": {"neighbours": torch.zeros(2, 3, 3, 0, 8, dtype=torch.uint8)},
    "fewer originals": {"originals": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)},
    "fewer labels": {"neighbour_labels": torch.zeros(2, 2, dtype=torch.int64)},
    "labels that are none": {"neighbour_labels": torch.zeros(2, 4)},
}


@pytest.mark.parametrize("case", SAMPLES)
def test_a_report_of_odd_pictures_is_refused(tmp_path, case):
    folder = write_run(tmp_path / "run")
    save_file({**pictures(), **SAMPLES[case]}, folder / "samples.safetensors")
    with pytest.raises(RunDirError, match=r"samples.safetensors is damaged"):
        render(folder)


def test_epochs_that_fall_have_a_report(tmp_path):
    rows = [{**row(2), "epoch": epoch} for epoch in (1.0, 0.5, -3.0)]
    assert Page(render(write_run(tmp_path / "run", rows=rows))).all("svg")


def test_numbers_of_any_size_and_texts_of_any_kind_have_a_report(tmp_path):
    values = [1e308, -1e308, math.nan, math.inf, None, 5e-324, 0.0, 1e-200, 1.0, 1.0 + 2e-16]
    rows = [{**row(i), "loss": v, "z_std_ratio": v, "time_load": v} for i, v in enumerate(values, 1)]
    data = {"class_names": ["\ud800", "\x00", "a" * 10_000], "classes": -5}
    labels = torch.tensor([[0, 99, 2**60, -(2**60)], [2, 1, 0, 5]])
    folder = write_run(
        tmp_path / "run", rows=rows, data=data, final={**FINAL, "knn_raw_pixels": None, "loss": 1e308},
        tensors={**pictures(), "neighbour_labels": labels}, config={"a": {"b": "2001-01-01"}}, status="\ud800",
    )  # fmt: skip
    (folder / "config.yaml").write_text("a: {b: 2001-01-01, c: !!binary aGk=, d: !!set {x, y}}")
    (folder / "unreadable.txt").write_bytes(b"\xff\x00.png\tx\n")
    with limits(20):
        page = Page(render(folder))
    assert not page.all("script")


def test_a_checkpoint_names_no_files(tmp_path):
    run = RunDir.create(tmp_path / "run")
    run.update_manifest(Manifest(status="running"))
    path = run.save_checkpoint({"w": torch.zeros(1)}, {}, CheckpointState(1), keep=1)
    state = json.loads((path / "state.json").read_text())
    opened = []

    def watch(event, arguments):
        if event == "open" and isinstance(arguments[0], str | os.PathLike):
            opened.append(str(arguments[0]))

    for name in ("../../../secret", "/dev/zero"):
        (path / "state.json").write_text(json.dumps({**state, "checksums": {**state["checksums"], name: "0" * 32}}))
        sys.addaudithook(watch)
        with pytest.raises(RunDirError, match="none of its checkpoints can be read"):
            run.latest()
    assert opened
    assert not any("secret" in name or "/dev/zero" in name for name in opened)


# -- metadata of packages -------------------------------------------------------------------------
@pytest.fixture
def site(tmp_path, monkeypatch):
    """Installs metadata alone, in front of all that is installed."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("AKSSL_PLUGINS", raising=False)

    def install(folder, points, name=b"Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n"):
        info = tmp_path / f"{folder}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_bytes(name)
        (info / "entry_points.txt").write_bytes(points)
        metadata.MetadataPathFinder.invalidate_caches(metadata.MetadataPathFinder())

    return install


@pytest.mark.parametrize(
    ("points", "name"),
    [(b"[akssl.v1]\n\xff = x", b""), (b"[akssl.v1]\nno sign", b""), (b"[akssl.v1]\na = b", b"Name: \xff")],
)
def test_metadata_that_cannot_be_read_hides_no_other_plugin(site, points, name):
    site("evil", points, name)
    with pytest.warns(UserWarning, match="evil-1.0.dist-info cannot be read and is passed over"):
        names = {entry.name for entry in entries()}
    assert "simsiam" in names


@pytest.mark.parametrize("name", [b"", b"Metadata-Version: 2.1\n"])
def test_a_package_without_a_name_or_version(site, name):
    site("evil", b"[akssl.v1]\nevil-one = evil_module\n", name)
    (entry,) = [entry for entry in entries() if entry.name == "evil-one"]
    assert entry.version == "unknown"


@pytest.mark.parametrize("text", ["1" * 2_000_000, "\x1b" * 2_000_000])
def test_names_of_any_length_are_cut(site, text):
    site(
        "evil",
        f"[akssl.v{text}]\n{text[:9]}evil-one{text} = {text}\n".encode(),
        f"Name: {text}\nVersion: {text}\n".encode(),
    )
    (entry,) = [entry for entry in entries() if "evil-one" in entry.name]
    assert entry.status == "other API"
    assert max(len(str(value)) for value in asdict(entry).values()) < 10_000


@pytest.mark.parametrize("value", ["../../evil", "os.path:", ".", "..", "a b", "", "x" * 5000, "\x1b[2J", "evil:x.y"])
def test_what_an_entry_point_names_is_not_imported_before_it_is_asked_for(site, value):
    site("evil", f"[akssl.v1]\nevil-one = {value}\n[akssl.v]\nevil-two = x\n".encode())
    before = set(sys.modules)
    manager = Plugins()
    manager.entries = [entry for entry in manager.entries if entry.name.startswith("evil")]
    table = plugin_table(manager)
    assert set(sys.modules) <= before | {"akssl_core.plugins.table"}
    assert [r["status"] for r in table] == ["installed", "other API"]
    assert not any("\x1b" in text for r in table for text in r.values())
    with pytest.raises(PluginError, match="evil"):
        manager.get("method", "evil-one")
