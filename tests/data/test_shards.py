"""Prepared data in shards: the same as one file, gone on with after a kill, by several processes, and refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import pytest
import torch
from drawn_folders import assert_same_sources, same
from prepared_files import SMALL, content, names, opened, save, write_photos

from akssl_core.data import Loader, open_source
from akssl_core.data.forecast import Forecast
from akssl_core.data.prepared_file import PreparedFile
from akssl_core.data.sharding import Target, _bytes
from akssl_core.data.shards import INDEX
from akssl_core.errors import ConfigError, DataError, RunStopped
from akssl_core.rundir.files import TensorStream


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


# -- the same as one file -------------------------------------------------------------------------
@pytest.mark.parametrize("view", [None, 16, 200])
def test_shards_show_what_the_folder_shows(photos, prepared, plugins, view):
    written = prepared(photos, "shards", **SMALL)
    assert written.shards == len(names(written.path)) - 1 > 3
    assert (written.images, written.classes, len(written.unreadable)) == (44, 2, 3)
    assert written.size == sum(len(data) for name, data in content(written.path).items() if name != INDEX)
    whole = open_source({"name": str(photos), "max_unreadable": 0.2}, plugins, view)
    if view is None:
        assert_same_sources(whole, opened(written.path))
    one, several = opened(prepared(photos, max_unreadable=0.2).path, view), opened(written.path, view)
    assert_same_sources(one, several)
    assert several.train().unreadable == one.train().unreadable == whole.train().unreadable
    assert (one._file.sizes.tolist(), one._file.reduced.tolist()) == (
        several._file.sizes.tolist(), several._file.reduced.tolist()
    )  # fmt: skip


def test_batches_of_two_epochs_are_those_of_the_folder_also_from_the_middle(photos, prepared, plugins):
    path = prepared(photos, "shards", **SMALL).path
    for source in (opened(path), open_source(str(path), plugins), opened(path / INDEX)):
        sets = open_source({"name": str(photos), "max_unreadable": 0.2}, plugins).train(), source.train()
        first, second = (Loader(images, 6, seed=3) for images in sets)
        for epoch, start in ((0, 0), (1, 0), (1, 3)):
            for (a, i, k), (b, j, m) in zip(first.epoch(epoch, start), second.epoch(epoch, start), strict=True):
                assert torch.equal(a.images, b.images)
                assert torch.equal(a.sizes, b.sizes)
                assert (i.tolist(), k.tolist()) == (j.tolist(), m.tolist())


def test_squares_of_reduced_images_are_those_of_the_originals(prepared, plugins, tmp_path):
    from akssl_core.data.convert import Square

    for i in range(20):
        save(tmp_path / "large" / f"{i:02}.jpg", (90 + i, 70), seed=i)
    path = prepared(tmp_path / "large", "shards", side=27, shard_size="40kB").path
    assert len(names(path)) > 3
    square = Square.of(16, 3)
    whole, kept = open_source(str(tmp_path / "large"), plugins, 16).all(), opened(path, 16).all()
    index = [19, 0, 7, 8]
    assert torch.equal(whole.squares(index, square).images, kept.squares(index, square).images)


def test_the_split_of_a_source_and_images_of_one_class_each_come_back(prepared, plugins):
    written = prepared("shapes", "shards", side=20, size=40, test_size=20, shard_size="10kB")
    whole = plugins.get("data", "shapes")
    first, second = whole(whole.Config(size=40, test_size=20), 20), opened(written.path)
    assert written.shards > 5
    for a, b in zip((first.train(), *first.probe()), (second.train(), *second.probe()), strict=True):
        assert torch.equal(a.fetch(range(len(a))).images, b.fetch(range(len(b))).images)
        assert a.labels.tolist() == b.labels.tolist()
    assert len(second.all()) == 40


def test_a_shard_alone_is_a_prepared_file_of_its_rows(photos, prepared):
    path = prepared(photos, "shards", **SMALL).path
    begin = 0
    whole = opened(path).all()
    for shard in names(path)[:-1]:
        images = opened(path / shard).all()
        same(images, whole.subset(torch.arange(begin, begin + len(images))))
        begin += len(images)
    assert begin == 44


def test_without_labels_and_with_a_shard_that_cannot_be_read(prepared, tmp_path):
    for i in range(60):
        save(tmp_path / "flat" / f"{i:02}.png", (12, 10), seed=i)
    for i in range(20, 40):
        (tmp_path / "flat" / f"{i}.png").write_bytes(b"")
    written = prepared(tmp_path / "flat", "shards", shard_size=1200, max_unreadable=0.5)
    assert any(len(PreparedFile.mapped(written.path / name).pixels) == 0 for name in names(written.path)[:-1])
    assert_same_sources(opened(prepared(tmp_path / "flat", max_unreadable=0.5).path), opened(written.path))


# -- by several processes -------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_any_number_of_processes_writes_the_same_bytes(photos, prepared, tmp_path, kind):
    if kind == "zip":
        photos = shutil.make_archive(str(tmp_path / "packed"), "zip", photos)
    first = content(prepared(photos, "one", **SMALL).path)
    for workers in (2, 3):
        assert content(prepared(photos, f"by{workers}", workers=workers, **SMALL).path) == first


def test_what_fails_in_a_process_is_told_and_what_was_done_is_kept(photos, prepared, tmp_path, monkeypatch):
    append, parent = TensorStream.append, os.getpid()

    def full(self, name, data):
        if "00002-of" in self.file.name and os.getpid() != parent:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, name, data)

    monkeypatch.setattr(TensorStream, "append", full)
    with pytest.raises(ConfigError, match=r"^--out: cannot write \S*shards: No space left on device\. .* goes on then"):
        prepared(photos, "shards", workers=2, **SMALL)
    assert "images-00000-of" in names(tmp_path / "shards")[0]
    assert INDEX not in names(tmp_path / "shards")
    monkeypatch.setattr(TensorStream, "append", append)
    written = prepared(photos, "shards", **SMALL)
    assert written.forecast.left < 44
    assert content(written.path) == content(prepared(photos, "again", **SMALL).path)


def test_a_process_that_is_killed_is_told(photos, prepared, monkeypatch):
    append, parent = TensorStream.append, os.getpid()

    def killed(self, name, data):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        append(self, name, data)

    monkeypatch.setattr(TensorStream, "append", killed)
    with pytest.raises(RunStopped, match=r"a process that writes shards has ended .* The same command goes on; fewer"):
        prepared(photos, "shards", workers=2, **SMALL)


def test_too_many_unreadable_images_in_all_shards_stop_it(photos, prepared, tmp_path):
    for workers in (1, 2):
        with pytest.raises(DataError, match=r"3 of 45 files .*data\.max_unreadable"):
            prepared(photos, "shards", workers=workers, shard_size="60kB", max_unreadable=0.04)
    assert prepared(photos, "shards", **SMALL).unreadable.keys() == {"cat/03.png", "dog/20.jpg", "dog/folder.png"}


# -- stopped and gone on with ---------------------------------------------------------------------
SLOW = """
import time
import torch
from akssl_core import DatasetSource, TensorImages, hookimpl

class Slow(TensorImages):
    def fetch(self, index):
        time.sleep(0.02)
        return super().fetch(index)

class Source(DatasetSource):
    '''Noise that takes time.'''
    name, natural_size = 'slow', 8
    def train(self):
        noise = torch.randint(0, 256, (120, 3, 8, 8), generator=torch.Generator().manual_seed(0))
        return Slow(noise.to(torch.uint8), torch.arange(120) % 2, ('a', 'b'))

@hookimpl
def akssl_register(registry):
    registry.add(Source)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_killed_is_gone_on_with(prepared, plugins, tmp_path, workers):
    (tmp_path / "slow.py").write_text(SLOW)
    plugins.load_file(tmp_path / "slow.py")
    wanted, shards = content(prepared("slow", "whole", shard_size=900).path), tmp_path / "shards"
    words = f"data prepare slow --plugin-file slow.py --shard-size 900 --workers {workers} --out shards"
    command = [sys.executable, "-m", "akssl_core", *words.split()]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=tmp_path) as first:
        while not (shards.is_dir() and [name for name in os.listdir(shards) if name.startswith("images-0")]):
            assert first.poll() is None
            time.sleep(0.005)
        first.kill()
    kept = {name for name in os.listdir(shards) if name.startswith("images-0")}
    times = {name: (shards / name).stat().st_mtime_ns for name in kept}
    assert 1 <= len(kept) < len(wanted) - 2
    with pytest.raises(DataError, match=rf"shards is not finished: it has no {INDEX}.*it goes on"):
        open_source(str(shards), plugins)
    for _ in range(3000):  # processes of the killed one end by themselves
        try:
            second = prepared("slow", "shards", shard_size=900, workers=workers)
            break
        except ConfigError as error:
            if "another process" not in str(error):
                raise
            time.sleep(0.1)
    done = second.images - second.forecast.left
    assert done >= sum(len(PreparedFile.mapped(shards / name)) for name in kept), "processes may have ended a shard"
    assert {name: (shards / name).stat().st_mtime_ns for name in kept} == times
    assert content(shards) == wanted


def test_shards_that_were_cut_or_lost_are_made_again(photos, prepared):
    path = prepared(photos, "shards", **SMALL).path
    wanted = content(path)
    first, second, third, *_ = names(path)
    os.truncate(path / first, (path / first).stat().st_size - 1)
    (path / third).unlink()
    (path / f".{third}.part").write_bytes(b"a draft")
    before = (path / second).stat().st_mtime_ns
    assert prepared(photos, "shards", **SMALL).path == path
    assert content(path) == wanted
    assert (path / second).stat().st_mtime_ns == before


def other_name(photos):
    (photos / "cat" / "00.jpg").rename(photos / "cat" / "00b.jpg")


def other_label(photos):
    (photos / "cat" / "00.jpg").rename(photos / "dog" / "00.jpg")


def other_pixels(photos):
    save(photos / "cat" / "00.jpg", (20, 24), seed=99)


@pytest.mark.parametrize("change", [other_name, other_label, other_pixels, None])
def test_shards_of_other_data_or_settings_are_kept_unless_they_may_be_replaced(photos, prepared, change):
    path = prepared(photos, "shards", **SMALL).path
    (path / INDEX).unlink()
    how = dict(SMALL)
    if change is None:
        how["shard_size"] = "200kB"
    else:
        change(photos)
    before = content(path)
    with pytest.raises(ConfigError, match=r"holds shards of other data, or of other settings \(images-00000.*--overwr"):
        prepared(photos, "shards", **how)
    assert content(path) == before
    assert content(prepared(photos, "shards", overwrite=True, **how).path) == content(prepared(photos, "o", **how).path)


def test_a_finished_folder_is_replaced_by_force_alone(photos, prepared):
    path = prepared(photos, "shards", **SMALL).path
    before, times = content(path), {name: (path / name).stat().st_mtime_ns for name in names(path)}
    with pytest.raises(ConfigError, match=r"shards' is finished already\. Replace it with --overwrite"):
        prepared(photos, "shards", **SMALL)
    images = opened(path).all()
    assert prepared(photos, "shards", overwrite=True, **SMALL).forecast.left == 44
    assert content(path) == before
    assert all((path / name).stat().st_mtime_ns != times[name] for name in names(path))
    assert len(images.fetch(range(44))) == 44, "what was opened before is read to the end"


@pytest.mark.parametrize("part", ["", INDEX])
def test_shards_are_not_written_over_those_that_they_are_made_of(photos, prepared, part):
    made = prepared(photos, "shards", **SMALL)
    before = content(made.path)
    with pytest.raises(ConfigError, match="is where the images are read from"):
        prepared(made.path / part, "shards", shard_size="5kB", overwrite=True)
    assert content(made.path) == before


def test_a_second_process_that_prepares_the_same_folder_is_refused(photos, prepared, monkeypatch):
    finish, seen = TensorStream.finish, []

    def with_another(self):
        monkeypatch.setattr(TensorStream, "finish", finish)
        with pytest.raises(ConfigError) as caught:
            prepared(photos, "shards", **SMALL)
        seen.append(str(caught.value))
        finish(self)

    monkeypatch.setattr(TensorStream, "finish", with_another)
    path = prepared(photos, "shards", **SMALL).path
    assert seen[0].startswith(f"--out: another process (pid {os.getpid()}) is writing {path}")
    assert content(path) == content(prepared(photos, "again", **SMALL).path)


# -- forecasts and targets ------------------------------------------------------------------------
def test_the_forecast_is_said_first_and_kept(photos, prepared, capsys):
    written = prepared(photos, "shards", **SMALL)
    told = written.forecast
    assert capsys.readouterr().err == f"{told.text}\n"
    assert (told.images, told.left, told.shards) == (44, 44, written.shards)
    assert 0.7 * written.size < told.bytes < 1.3 * written.size
    assert 2**27 < told.memory < 2**36
    assert 0 < told.minutes < 1
    assert json.loads(json.dumps(written.table()))["forecast"]["bytes"] == told.bytes


def test_a_forecast_reads_well():
    told = Forecast(10**6, 3 * 10**11, 300, 999_000, 2 * 10**9, 123.4)
    assert told.text == (
        "1000000 images, 1000 of them kept: about 300.00 GB in 300 files, 123 minutes, 2.00 GB of memory a process"
    )


@pytest.mark.parametrize("name", ["shards", "one.safetensors"])
def test_a_disk_with_too_little_room_is_told_before_anything_is_written(photos, prepared, tmp_path, monkeypatch, name):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(1000))
    with pytest.raises(ConfigError, match=r"^--out: 44 images will take about \d\.\d MB, and 0\.0 MB are free"):
        prepared(photos, name, max_unreadable=0.2)
    assert names(tmp_path) == ["photos"]


@pytest.mark.parametrize(
    ("size", "amount"),
    [("1GB", 10**9), ("500 mb", 5 * 10**8), ("1.5GiB", 3 * 2**29), (7, 7), ("64k", 64000), ("1B", 1)],
)
def test_sizes_are_written_in_several_ways(size, amount):
    assert _bytes(size) == amount


@pytest.mark.parametrize("size", ["", "0", 0, -1, "GB", "1 PB", "1e9", True, "9" * 5000, 1.5e300, None])
def test_a_size_that_is_none_is_refused(size, tmp_path):
    with pytest.raises(ConfigError, match="--shard-size: expected a size of files, as 1GB or 500MB, got"):
        _bytes(size)


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        (
            "x.safetensors",
            {"shard_size": "1GB"},
            r"--shard-size: shards lie in a folder, and '.*' names a file\. Try x",
        ),
        ("x.safetensors", {"workers": 2}, "--workers: several processes write shards, not one file"),
        ("x", {"workers": 0}, "--workers: expected a whole number from 1 to 1024, got 0"),
        ("file", {}, "'.*file' is a file; expected a folder for shards"),
        ("full", {}, r"full' holds other files \(mine\.txt\)\. Choose a new or an empty folder"),
        ("no/x", {}, "there is no folder '.*no'"),
        ("x.bin", {}, r"must end in \.safetensors.* a name without suffix for a folder of shards"),
    ],
)
def test_targets_that_cannot_be_written_are_refused_before_anything_is_read(prepared, tmp_path, name, how, message):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(ConfigError, match=message):
        prepared("no such data", name, overwrite=True, **how)
    assert names(tmp_path) == ["file", "full"]


def test_a_folder_is_meant_by_a_size_a_name_without_suffix_or_one_that_is_there(tmp_path):
    (tmp_path / "there.v1").mkdir()
    assert Target.of(tmp_path / "x", None, None).shard_size == 10**9
    assert Target.of(tmp_path / "x.v1", "2GB", None).shard_size == 2 * 10**9
    assert Target.of(tmp_path / "there.v1", None, None).shard_size
    assert not Target.of(tmp_path / "x.v1", None, None).shard_size
    assert not Target.of(tmp_path / "x.safetensors", None, None).shard_size
