"""Properties of the readers, for any input that hypothesis makes."""

from __future__ import annotations

import io
import math
import os
import re
import tempfile
from pathlib import Path

import fuzz_seeds
import numpy as np
import pytest
import torch
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from synthetic_run import Page, row, write_run

from akssl_core.cli.base import settings_of
from akssl_core.config.schema import leaves
from akssl_core.config.yaml import parse_yaml
from akssl_core.data import Folder, Prepared, Unreadable, decode_image
from akssl_core.data.convert import MAX_ASPECT
from akssl_core.data.folder import FolderConfig
from akssl_core.data.prepared import PreparedConfig
from akssl_core.errors import AksslError, visible
from akssl_core.exporting.backbone_file import load_backbone
from akssl_core.plugins.manager import Plugins
from akssl_core.reporting import render
from akssl_core.reporting.html import page, tag
from akssl_core.reporting.svg import ticks
from akssl_core.running.layers import check, collect, layer
from akssl_core.settings import dotted

few = settings(max_examples=60, derandomize=True, deadline=None, database=None)
many = settings(few, max_examples=300)

plain = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=20)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10)
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4))
tables = st.dictionaries(names, values, max_size=5)


@pytest.fixture(scope="module")
def core():
    """A manager with the core's own components alone."""
    manager = Plugins()
    manager.entries = [entry for entry in manager.entries if entry.name == "simsiam"]
    return manager


def message_of(call):
    """What a call that may refuse says; None where it does not refuse. Any other error fails the test."""
    try:
        call()
    except AksslError as error:
        return str(error)
    return None


def assert_told(message, longest=1000):
    assert 0 < len(message) < longest


# -- texts ----------------------------------------------------------------------------------------
@many
@given(st.text(st.characters()))
def test_what_is_shown_is_printable_and_loses_nothing(text):
    shown = visible(text)
    assert shown.isprintable()
    assert visible(shown) == shown
    assert text.isprintable() == (shown == text)
    assert visible(text, keep=text) == text


@few
@given(tables)
def test_what_yaml_writes_is_read_back(table):
    assert parse_yaml(yaml.safe_dump(table)) == table


@many
@given(st.text() | st.text("[]{}&*!|>-: \n'\"#%@`,?<a1.~_"))
@example("a: !!python/name:os.system")
@example("=: 1")
def test_any_text_is_plain_values_or_told(text):
    try:
        found = parse_yaml(text)
    except ValueError as error:
        assert_told(str(error))
        return
    assert isinstance(found, dict | list | set | str | bytes | int | float | None | yaml.YAMLObject) or (
        type(found).__module__ == "datetime"
    )


@many
@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(), max_size=6), st.text("xyz", min_size=1))
def test_dotted_settings_are_the_leaves_of_their_tables(flat, section):
    pairs = [(f"{section}.{name}", value) for name, value in flat.items()]
    assert dict(leaves(dotted(pairs))) == dict(pairs)


@few
@given(st.lists(st.text(st.characters(), max_size=30) | st.builds("{}={}".format, names, names), max_size=3))
def test_any_assignments_are_settings_or_told(assignments):
    told = message_of(lambda: settings_of({}, assignments))
    assert told is None or told


PATHS = ("seed", "train.epochs", "train.clip.norm", "optimizer.lr", "optimizer.lr.start", "optimizer.name",
         "data.size", "augmentation.first.scale", "evaluate.k", "callbacks", "backbone.name")  # fmt: skip


@few
@given(given_settings=st.dictionaries(st.sampled_from(PATHS), values, max_size=4))
@example(given_settings={"optimizer.lr": math.nan})
@example(given_settings={"backbone.name": "resnet_tiny", "seed": 3})
def test_settings_of_any_value_are_checked_and_stay_what_they_are(core, given_settings):
    try:
        table = dotted(list(given_settings.items()))
        spec = check(layer(collect("simsiam", None, table, core), core), core)
    except AksslError as error:
        assert_told(str(error), 5000)
        return
    again = check(layer(collect(None, spec.table(), {}, core), core), core)
    assert again.table() == spec.table()


# -- pages ----------------------------------------------------------------------------------------
@many
@given(st.text(st.characters(exclude_characters="\r\0")), st.text(st.characters(exclude_characters="\r\0")))
def test_a_text_in_a_page_is_that_text(text, title):
    found = Page(page("x", tag("p", text, title=title)))
    shown = [s.encode("utf-8", "replace").decode() for s in (text, title)]
    assert [attributes["title"] for attributes in found.all("p")] == shown[1:]
    assert not set(tag for tag, _ in found.elements) - {"html", "head", "meta", "title", "style", "body", "main", "p"}
    assert shown[0] in "".join(found.texts)


numbers = st.none() | st.floats(allow_nan=True, allow_infinity=True)


@few
@given(st.lists(st.dictionaries(st.sampled_from(("loss", "lr", "std_ratio", "knn_top1", "time_load", "x")), numbers)))
def test_any_numbers_have_a_report(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = write_run(Path(folder) / "run", rows=[{**row(i), **more} for i, more in enumerate(rows, 1)])
        found = Page(render(path))
    assert not re.search(r"\b(nan|inf)\b", " ".join(a["d"] for a in found.all("path")))


@many
@given(st.floats(-1e100, 1e100), st.floats(-1e100, 1e100))
def test_ticks_are_few_and_enclose_what_they_mark(low, high):
    low, high = min(low, high), max(low, high)
    found = ticks(low, high)
    assert 2 <= len(found) <= 12
    if high - low > 1e-9 * max(abs(low), abs(high)) and high - low > 1e-100:
        assert found[0] <= low + 1e-6 * (high - low)
        assert found[-1] >= high - 1e-6 * (high - low)


# -- files ----------------------------------------------------------------------------------------
@many
@given(st.sampled_from(range(16)), st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=6))
def test_an_image_with_changed_bytes_is_an_image_or_told(which, changes):
    data = bytearray(fuzz_seeds.images()[which])
    for place, value in changes:
        data[place % len(data)] = value
    try:
        pixels = decode_image(bytes(data), 3, 8)
    except Unreadable as error:
        assert_told(str(error))
        return
    assert pixels.dtype == torch.uint8 or (pixels.dtype == torch.float32 and 0 <= pixels.min() <= pixels.max() <= 255)
    short, long = sorted(pixels.shape[1:])
    assert 0 < short <= 8
    assert long <= MAX_ASPECT * short + MAX_ASPECT


@few
@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from(("L", "RGB", "RGBA", "P", "1", "CMYK")), st.integers(1, 9)
)
def test_images_of_any_size_are_reduced_and_never_enlarged(width, height, mode, side):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, "TIFF")
    channels, *shape = decode_image(buffer.getvalue(), 3, side).shape
    assert channels == 3
    assert min(shape) == min(side, width, height)


FILE_NAMES = st.binary(min_size=1, max_size=12).filter(
    lambda name: not name.startswith(b".") and not {0, ord("/")} & set(name)
)


@few
@given(st.lists(st.tuples(FILE_NAMES, FILE_NAMES), min_size=1, max_size=8, unique=True))
def test_a_folder_of_any_names_is_read(paths):
    with tempfile.TemporaryDirectory() as root:
        for top, name in paths:
            os.makedirs(os.path.join(os.fsencode(root), top), exist_ok=True)
            with open(os.path.join(os.fsencode(root), top, name + b".png"), "wb") as file:
                file.write(fuzz_seeds.images()[0])
        images = Folder(FolderConfig(path=root), 8).all()
        assert len(images) == len(paths)
        assert images.fetch(range(len(paths))).unreadable == ()
        tops = {top for top, _ in paths}
        splits = {b"train", b"val", b"valid", b"validation", b"test"}
        assume(not tops <= splits)
        assert len(images.classes or ()) == (len(tops) if len(tops) > 1 else 0)
        texts = [images.id_of(i) for i in range(len(paths))] + list(images.classes or ())
        assert "\0".join(texts).encode()


@many
@given(st.sampled_from((0, 1)), st.lists(st.tuples(st.integers(0, 2**13), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_prepared_file_with_changed_bytes_is_read_or_told(which, changes):
    data = bytearray(fuzz_seeds.prepared()[which])
    for place, value in changes:
        data[place % len(data)] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(data)
        assert_told(message_of(lambda: shown(path)) or "whole")


def shown(path):
    images = Prepared(PreparedConfig(path=path), 8).all()
    return images.fetch(range(len(images)))


@few
@given(changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_backbone_file_with_changed_bytes_is_loaded_or_told(core, changes):
    data = bytearray(fuzz_seeds.backbone()[0])
    for place, value in changes:
        data[place % len(data)] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(data)
        assert_told(message_of(lambda: load_backbone(path, plugins=core)) or "whole", 2000)
