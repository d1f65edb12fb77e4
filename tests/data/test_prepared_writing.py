"""How prepared files get to disk: whole or not at all, by one process at a time."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from prepared_files import write_photos

import akssl_core.data.folder as folder_module
from akssl_core.data import prepare as cache
from akssl_core.errors import ConfigError, DataError
from akssl_core.rundir import files
from akssl_core.rundir.files import TensorStream, alone_with, atomic_file, take_lock
from akssl_core.rundir.folder import read_tensors


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


def test_an_error_midway_leaves_what_was_there(photos, prepared, tmp_path, monkeypatch):
    original, read = folder_module.decode_image, []

    def fails(file, channels, side, white):
        read.append(file)
        if len(read) > 35:
            raise RuntimeError("boom")
        return original(file, channels, side, white)

    monkeypatch.setattr(folder_module, "decode_image", fails)
    for content in (None, b"before"):
        read.clear()
        if content is not None:
            (tmp_path / "photos.safetensors").write_bytes(content)
        with pytest.raises(RuntimeError, match="boom"):
            prepared(photos, overwrite=True, max_unreadable=0.2)
        kept = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
        assert kept == ({} if content is None else {"photos.safetensors": content})


def test_a_full_disk_is_told(photos, prepared, tmp_path, monkeypatch):
    def full(self, name, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TensorStream, "append", full)
    with pytest.raises(
        ConfigError, match=r"^--out: cannot write \S*photos\.safetensors: No space left on device\. Free"
    ):
        prepared(photos, max_unreadable=0.2)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_too_many_unreadable_images_stop_it(photos, prepared, tmp_path):
    with pytest.raises(DataError, match=r"3 of 45 files .*03\.png .*data\.max_unreadable"):
        prepared(photos, max_unreadable=0.04)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("photos.bin", r"must end in \.safetensors.*Try .*photos\.bin\.safetensors"),
        ("nowhere/photos.safetensors", "no folder '.*nowhere' .*Make it first"),
        ("there.safetensors", "is a folder; expected a file"),
        ("old.safetensors", "exists already.*--overwrite"),
        ("link.safetensors", "is a link to 'lost', where nothing is. Remove it"),
    ],
)
def test_targets_that_cannot_be_written_are_refused_before_anything_is_read(prepared, tmp_path, name, message):
    (tmp_path / "there.safetensors").mkdir()
    (tmp_path / "old.safetensors").write_bytes(b"old")
    (tmp_path / "link.safetensors").symlink_to("lost")
    with pytest.raises(ConfigError, match=message):
        prepared("no such data", name, overwrite=name != "old.safetensors")
    assert (tmp_path / "old.safetensors").read_bytes() == b"old"


def test_the_same_source_gives_the_same_bytes(photos, prepared):
    first = prepared(photos, max_unreadable=0.2).path.read_bytes()
    assert prepared(photos, overwrite=True, max_unreadable=0.2).path.read_bytes() == first


def test_a_stream_is_what_safetensors_reads(tmp_path):
    fixed = {"a": torch.arange(3), "b": torch.zeros(2, 2, dtype=torch.int32)}
    with atomic_file(tmp_path / "x.safetensors") as file:
        stream = TensorStream(file, fixed, ("c", "d"), {"word": 'é"\n'})
        stream.append("c", b"123")
        fixed["b"][1, 0] = 7
        stream.append("c", b"45")
        stream.finish()
    tensors, metadata = read_tensors(tmp_path / "x.safetensors")
    assert metadata == {"word": 'é"\n'}
    assert {name: t.tolist() for name, t in tensors.items()} == {
        "a": [0, 1, 2], "b": [[0, 0], [7, 0]], "c": [49, 50, 51, 52, 53], "d": []
    }  # fmt: skip
    assert tensors["a"].data_ptr() % 8 == 0


def test_a_second_process_that_prepares_the_same_file_is_refused(photos, prepared, tmp_path, monkeypatch):
    whole = prepared(photos, max_unreadable=0.2).path.read_bytes()
    finish, seen = TensorStream.finish, []

    def with_another(self):
        monkeypatch.setattr(TensorStream, "finish", finish)
        with pytest.raises(ConfigError) as caught:
            prepared(photos, overwrite=True, max_unreadable=0.2)
        seen.append(str(caught.value))
        finish(self)

    monkeypatch.setattr(TensorStream, "finish", with_another)
    assert prepared(photos, overwrite=True, max_unreadable=0.2).path.read_bytes() == whole
    assert seen[0].startswith(f"--out: another process (pid {os.getpid()}) is writing {tmp_path}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "photos.safetensors"]


def test_a_file_that_another_process_has_made_meanwhile_is_kept(photos, prepared, tmp_path, monkeypatch):
    def takes_long(data, plugins, side):
        (tmp_path / "photos.safetensors").write_bytes(b"of the other")
        return original(data, plugins, side)

    original = cache.open_source
    monkeypatch.setattr(cache, "open_source", takes_long)
    with pytest.raises(ConfigError, match=r"exists already.*--overwrite"):
        prepared(photos, max_unreadable=0.2)
    assert (tmp_path / "photos.safetensors").read_bytes() == b"of the other"


def test_a_lock_is_taken_once_and_not_on_a_file_that_its_holder_removed(tmp_path, monkeypatch):
    target = tmp_path / "x"
    with alone_with(target), pytest.raises(BlockingIOError, match=str(os.getpid())):
        take_lock(tmp_path / ".x.lock")
    assert list(tmp_path.iterdir()) == []
    lock = files._lock

    def late(descriptor):
        monkeypatch.setattr(files, "_lock", lock)
        (tmp_path / "y").unlink()
        lock(descriptor)

    monkeypatch.setattr(files, "_lock", late)
    descriptor = take_lock(tmp_path / "y")
    assert os.path.samestat(os.fstat(descriptor), (tmp_path / "y").stat())
    os.close(descriptor)


def test_a_lock_that_finds_no_room_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        take_lock(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
