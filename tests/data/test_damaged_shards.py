"""Shards that were damaged, made by somebody else, or of several kinds: refused, with the cure."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest
import torch
from prepared_files import SMALL, content, names, opened, write_photos
from safetensors.torch import load_file, save_file

from akssl_core.data.prepared_file import NotPrepared
from akssl_core.data.shards import INDEX, PreparedFiles, is_prepared
from akssl_core.errors import DataError


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


# -- what comes from anywhere ---------------------------------------------------------------------
@pytest.fixture
def shards(photos, prepared):
    return prepared(photos, "shards", **SMALL).path


def assert_refused(path, message):
    with pytest.raises(DataError, match=message) as caught:
        opened(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def swap(path):
    first, second, *_ = names(path)
    data = (path / first).read_bytes()
    (path / first).write_bytes((path / second).read_bytes())
    (path / second).write_bytes(data)


def index_as_shard(path):
    (path / names(path)[1]).write_bytes((path / INDEX).read_bytes())


DAMAGE = {
    "no index": (lambda path: (path / INDEX).unlink(), "is not finished: it has no images.index.safetensors"),
    "a shard is missing": (lambda path: (path / names(path)[1]).unlink(), "lacks images-00001-of-0"),
    "a shard is cut": (lambda path: os.truncate(path / names(path)[1], 999), "cannot be read: images-00001-of-"),
    "shards change places": (swap, "cannot be read: images-00000-of-.* is of other data than images.index"),
    "an index for a shard": (index_as_shard, "images-00001-of-.* is damaged: it is an index"),
    "an index that is cut": (lambda path: os.truncate(path / INDEX, 99), "cannot be read: "),
    "text for an index": (lambda path: (path / INDEX).write_text("these are no tensors\n" * 20), "cannot be read: "),
    "a folder for an index": (lambda path: ((path / INDEX).unlink(), (path / INDEX).mkdir()), "cannot be read"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_shards_are_refused_with_the_cure_and_made_whole_by_it(photos, prepared, shards, case):
    harm, message = DAMAGE[case]
    wanted = content(shards)
    harm(shards)
    assert_refused(shards, rf"{message}.*\. Run the command that made it again: it goes on\.")
    if "folder" not in case:
        prepared(photos, "shards", overwrite="places" in case, **SMALL)
        assert content(shards) == wanted


HOSTILE = {
    "paths of its own": ({"files": ["../../etc/passwd"]}, "its index is wrong: unknown setting 'files'"),
    "rows with paths": ({"rows": ["../x.safetensors"]}, "its index is wrong: rows.0"),
    "no rows": ({"rows": []}, "its index is wrong: rows"),
    "an empty shard": ({"rows": [0, 44]}, "its index is wrong: rows.0"),
    "negative rows": ({"rows": [-1]}, "its index is wrong: rows.0"),
    "endless rows": ({"rows": [10**30]}, "its index is wrong: rows.0"),
    "many shards": ({"rows": [1] * 100_000}, "its index is wrong: rows"),
    "fewer shards": ({"rows": [44]}, "lacks images-00000-of-00001"),
    "no hash": ({"of": ""}, "its index is wrong: of"),
    "another source": ({"of": "0" * 32}, "images-00000-of-.* is of other data"),
    "reasons of another form": ({"others": []}, "its index is wrong: others"),
}


def write_index(path, change=None, tensors=None, texts=None):
    parts = load_file(path / INDEX)
    metadata = PreparedFiles.mapped(path) and _texts(path / INDEX)
    index = json.dumps(json.loads(metadata["index"]) | (change or {}))
    save_file(parts | (tensors or {}), path / INDEX, {**metadata, "index": index, **(texts or {})})


def _texts(path):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_index_is_refused(shards, case):
    change, message = HOSTILE[case]
    write_index(shards, change)
    assert_refused(shards, message)


def test_a_hostile_index_of_other_tensors_or_versions_is_refused(shards, tmp_path):
    for number, (tensors, texts, message) in enumerate((
        ({"train": torch.tensor([0, 44])}, {}, "'train' must hold positions from 0 to 43"),
        ({"queries": torch.tensor([-1])}, {}, "'queries' must hold positions from 0 to 43"),
        ({"bank": torch.zeros(0, dtype=torch.int64)}, {}, "'bank' must hold positions"),
        ({"train": torch.zeros(3)}, {}, "'train' is F32"),
        ({}, {"version": "2"}, "is of version '2', and this akssl reads 1"),
        ({}, {"index": "[" * 100_000}, "its index is wrong"),
        ({}, {"format": "akssl-images", "version": "3"}, "is damaged: it lacks pixels"),
    )):  # fmt: skip
        copy = shutil.copytree(shards, tmp_path / f"copy{number}")
        write_index(copy, None, tensors, texts)
        assert_refused(copy, message)


def test_shards_of_several_kinds_are_refused(prepared, shards):
    name = names(shards)[1]
    tensors, texts = load_file(shards / name), _texts(shards / name)
    del tensors["labels"]
    save_file(tensors, shards / name, texts)
    with pytest.raises(NotPrepared, match="is damaged: its shards are of several kinds"):
        PreparedFiles.mapped(shards)


def test_a_shard_that_was_written_to_is_read_no_further(shards):
    images = opened(shards).all()
    images.fetch([0, 43])
    os.truncate(shards / names(shards)[0], 5000)
    with pytest.raises(DataError, match=r"images-00000-of-\d{5}\.safetensors was changed while it was read"):
        images.fetch([43, 0])
    images.fetch([43])


def test_a_folder_that_cannot_be_listed_is_left_to_whoever_reads_it(tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refused)
    assert not is_prepared(tmp_path)
