"""What is no prepared file, or no longer one, is refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from prepared_files import opened, save
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from akssl_core import prepare
from akssl_core.errors import ConfigError, DataError


@pytest.fixture
def parts(prepared, tmp_path):
    """Tensors and metadata of a small file: six images, one of them unreadable, two classes, a probe."""
    for i in range(6):
        save(tmp_path / "six" / ("a" if i % 2 else "b") / f"{i}.png", (10 + i, 9), seed=i)
    (tmp_path / "six" / "a" / "1.png").write_bytes(b"")
    path = prepared(tmp_path / "six").path
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = {name: t.clone() for name, t in load_file(path).items()}
    path.unlink()
    return tensors, metadata


def assert_refused(path, message):
    with pytest.raises(DataError) as caught:
        opened(path)
    text = str(caught.value)
    assert re.search(message, text), text
    assert str(path) in text
    assert "akssl data prepare SRC --out" in text
    assert "\n" not in text
    assert len(text) < 500


def test_the_parts_are_a_good_file(parts, tmp_path):
    save_file(parts[0], tmp_path / "x.safetensors", parts[1])
    assert len(opened(tmp_path / "x.safetensors").all()) == 6


@pytest.mark.parametrize("size", ["x", 7, 10**9, 8.5])
def test_a_size_out_of_range_is_refused_before_anything_is_read(tmp_path, size):
    with pytest.raises(ConfigError, match="size: expected a whole number from 8 to 8192, got"):
        prepare("shapes", tmp_path / "x.safetensors", size=size)
    with pytest.raises(ConfigError, match="data: expected a name or a table with a 'name', got {}"):
        prepare({}, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def u8(text):
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def with_sizes(*rows):
    return {"sizes": torch.tensor(rows, dtype=torch.int32)}


def ends(*values):
    """Twice the same hostile number among harmless ones."""
    return torch.tensor([0, 1, 2, 3, *values])


TENSORS = {
    "no sizes": ({"sizes": None}, "lacks sizes"),
    "no pixels": ({"pixels": None, "names": None}, "lacks pixels, names"),
    "float pixels": ({"pixels": torch.zeros(9)}, r"'pixels' is F32 of shape .*, not U8 of shape \(N,\)"),
    "square pixels": ({"pixels": torch.zeros(9, 9, dtype=torch.uint8)}, r"'pixels' is U8 of shape \(9, 9\), not"),
    "long sizes": ({"sizes": torch.zeros(6, 2)}, r"'sizes' is F32 .* not I32 of shape \(N, 2\)"),
    "wide sizes": ({"sizes": torch.zeros(6, 3, dtype=torch.int32)}, r"shape \(6, 3\), not I32"),
    "no images": ({"sizes": torch.zeros(0, 2, dtype=torch.int32)}, "holds no image"),
    "nothing but holes": ({"sizes": torch.zeros(6, 2, dtype=torch.int32), "pixels": torch.zeros(0, dtype=torch.uint8),
                           "unreadable": u8('{"rows":{"0":"","1":"","2":"","3":"","4":"","5":""},"others":{}}')},
                          "none of its images has pixels"),
    "negative sizes": (with_sizes([-9, -9], *[[0, 0]] * 5), "run from -9 to 0 px"),
    "huge sizes": (with_sizes(*[[2**31 - 1, 2**31 - 1]] * 6), "run from 2147483647 to 2147483647 px"),
    "large sizes": (with_sizes(*[[65535, 65535]] * 6), "a shorter side of 65535 px, more than the 14"),
    "a height alone": (with_sizes([9, 0], *[[0, 0]] * 5), "a height without a width"),
    "missing pixels": ({"pixels": torch.zeros(9, dtype=torch.uint8)}, "add up to .* bytes of pixels, and it holds 9"),
    "sides that outgrow the record": ({**with_sizes(*[[20, 20]] * 6), "pixels": torch.zeros(7200, dtype=torch.uint8)},
                                      "a shorter side of 20 px, more than the 14"),
    "a word on too few images": ({"reduced": u8("\1")}, "does not say which of its images were reduced"),
    "a hole without a reason": ({"unreadable": u8('{"rows":{},"others":{}}')}, "1 images have no pixels, and 0 are"),
    "a reason without a hole": ({"unreadable": u8('{"rows":{"0":"x","7":"y"},"others":{}}')}, "have no pixels, and 2"),
    "reasons that are no JSON": ({"unreadable": u8("{")}, "list of unreadable images is wrong: Invalid JSON"),
    "reasons of another form": ({"unreadable": u8('{"rows":[],"others":{}}')}, "unreadable images is wrong: rows"),
    "reasons without end": ({"unreadable": u8("[" * 100_000)}, "list of unreadable images is wrong"),
    "too few names": ({"names": u8("a\0b")}, "names are not those of 6 images"),
    "too many names": ({"names": u8("\0" * 9)}, "names are not those of 6 images"),
    "float labels": ({"labels": torch.zeros(6)}, "'labels' is F32"),
    "few labels": ({"labels": torch.zeros(5, dtype=torch.int64)}, "5 labels for 6 images"),
    "high labels": ({"labels": ends(2**40, 2**40)}, "labels run from 0 to 1099511627776, not from -1 to 1"),
    "low labels": ({"labels": ends(-2, -2) % 2 - 2}, "labels run from -2 to -1"),
    "rows that are not there": ({"train": ends(6)}, "'train' must hold positions from 0 to 5"),
    "negative rows": ({"queries": ends(-1)}, "'queries' must hold positions from 0 to 5"),
    "no rows": ({"bank": torch.zeros(0, dtype=torch.int64)}, "'bank' must hold positions"),
    "half a probe": ({"bank": None}, "a probe needs bank, queries and labels"),
    "a probe without labels": ({"labels": None}, "a probe needs bank, queries and labels"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_damaged_tensors_are_refused(parts, tmp_path, case):
    changes, message = TENSORS[case]
    tensors = {name: t for name, t in {**parts[0], **changes}.items() if t is not None}
    save_file(tensors, tmp_path / "x.safetensors", parts[1])
    assert_refused(tmp_path / "x.safetensors", message)


RECORDS = {
    "another format": ({"format": "weights"}, "is a safetensors file without prepared images"),
    "no metadata": (None, "is a safetensors file without prepared images"),
    "another version": ({"version": "4"}, "is of version '4', and this akssl reads 1 and 2 and 3"),
    "no record": ({"record": None}, "its record is wrong: Invalid JSON"),
    "a record without end": ({"record": "[" * 100_000}, "its record is wrong"),
    "half a record": ({"record": '{"channels": 3}'}, "its record is wrong: source is missing"),
    "no channels": ({"channels": 0}, "its record is wrong: channels should be greater"),
    "many channels": ({"channels": 10**30}, "its record is wrong: channels"),
    "other channels": ({"channels": 4}, "add up to .* bytes of pixels"),
    "a side that is no number": ({"side": "9" * 5000}, "its record is wrong: side"),
    "a huge view": ({"natural_size": 60000}, "its record is wrong: natural_size .* less than or equal to 512"),
    "few classes": ({"classes": ["a"]}, "labels run from 0 to 1, not from -1 to 0"),
    "classes that are no names": ({"classes": [{}, "b"]}, "its record is wrong: classes.0"),
    "statistics of other channels": ({"mean": [0.5]}, "one number a channel"),
    "endless statistics": ({"std": [1e400, 1, 1]}, "its record is wrong: std"),
    "no deviation": ({"std": [0, 1, 1]}, "its record is wrong: std.0 should be greater than 0"),
    "what a later version may add": ({"colour": "x" * 10**6}, "its record is wrong: unknown setting 'colour'"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_damaged_metadata_is_refused(parts, tmp_path, case):
    changes, message = RECORDS[case]
    metadata = dict(parts[1])
    for name, value in (changes or {}).items():
        if name in metadata:
            metadata[name] = value
        else:
            metadata["record"] = json.dumps(json.loads(metadata["record"]) | {name: value})
    metadata = {} if changes is None else {name: value for name, value in metadata.items() if value is not None}
    save_file(parts[0], tmp_path / "x.safetensors", metadata or None)
    assert_refused(tmp_path / "x.safetensors", message)


def test_labels_without_names_have_a_limit_too(parts, tmp_path):
    record = json.dumps(json.loads(parts[1]["record"]) | {"classes": None})
    tensors = {**parts[0], "labels": torch.tensor([0, 1, 2, 3, 4, 2**20])}
    save_file(tensors, tmp_path / "x.safetensors", {**parts[1], "record": record})
    assert_refused(tmp_path / "x.safetensors", "labels run from 0 to 1048576, not from -1 to 1048575")


def header(table, data=b""):
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data


RAW = {
    "empty": lambda good: b"",
    "text": lambda good: b"these are no tensors\n" * 20,
    "a header of exabytes": lambda good: (2**60).to_bytes(8, "little") + good[8:],
    "a header that is no JSON": lambda good: good[:8] + b"x" + good[9:],
    "half": lambda good: good[: len(good) // 2],
    "without its last byte": lambda good: good[:-1],
    "with more behind": lambda good: good + b"\0",
    "a tensor of exabytes": lambda good: header(
        {"pixels": {"dtype": "U8", "shape": [2**60], "data_offsets": [0, 2**60]}}, b"123"
    ),
    "a shape that is not its bytes": lambda good: header(
        {"pixels": {"dtype": "U8", "shape": [2**62, 4], "data_offsets": [0, 3]}}, b"123"
    ),
    "a negative shape": lambda good: header({"pixels": {"dtype": "U8", "shape": [-3], "data_offsets": [0, 3]}}, b"123"),
    "an unknown type": lambda good: header({"pixels": {"dtype": "U9", "shape": [3], "data_offsets": [0, 3]}}, b"123"),
}


@pytest.mark.parametrize("case", RAW)
def test_what_is_no_whole_safetensors_file_is_refused(parts, tmp_path, case):
    path = tmp_path / "x.safetensors"
    save_file(parts[0], path, parts[1])
    path.write_bytes(RAW[case](path.read_bytes()))
    assert_refused(path, "cannot be read: ")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert_refused(tmp_path / "nowhere" / "x.safetensors", "does not exist")
    (tmp_path / "f.safetensors").mkdir()
    assert_refused(tmp_path / "f.safetensors", "cannot be read")


def test_names_that_are_no_text_can_be_shown(parts, tmp_path):
    names = torch.tensor([255, 0, 98, 0, 99, 0, 0, 0], dtype=torch.uint8)
    save_file({**parts[0], "names": names}, tmp_path / "x.safetensors", parts[1])
    assert opened(tmp_path / "x.safetensors").all().id_of(0) == "\ufffd"


# -- a file that is changed while it is read --------------------------------------------------------
def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path):
    with path.open("r+b") as file:
        file.seek(-9, os.SEEK_END)
        file.write(b"x" * 9)
    os.utime(path, ns=(0, 0))  # a clock may be too coarse to tell


@pytest.mark.parametrize("change", [cut, overwrite])
def test_a_file_that_was_written_to_is_read_no_further(parts, tmp_path, change):
    path = tmp_path / "x.safetensors"
    save_file(parts[0], path, parts[1])
    images = opened(path).all()
    images.fetch([0, 2])
    change(path)
    with pytest.raises(DataError, match=r"x\.safetensors was changed while it was read \(\d+ bytes before, \d+ now\)"):
        images.fetch([0, 2])
    assert images.id_of(0) == "a/1.png", "all but the pixels was copied"
    assert images.labels.tolist() == parts[0]["labels"].tolist()


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.with_name("new").replace(path)])
def test_a_file_that_was_replaced_or_removed_is_read_to_the_end(parts, tmp_path, change):
    path = tmp_path / "x.safetensors"
    save_file(parts[0], path, parts[1])
    (tmp_path / "new").write_bytes(b"another file")
    images = opened(path).all()
    before = images.fetch(range(6)).images
    change(path)
    assert torch.equal(images.fetch(range(6)).images, before)
