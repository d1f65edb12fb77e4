"""What is fuzzed: every reader of akssl_core that is given bytes, text or folders from anywhere."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import fuzz_seeds as seeds
import torch
from fuzz_engine import Target
from PIL import Image

from akssl_core.cli import akssl
from akssl_core.cli.base import settings_of
from akssl_core.data import Folder, Prepared, Unreadable, decode_image, image_header
from akssl_core.data.folder import FolderConfig
from akssl_core.data.prepared import PreparedConfig
from akssl_core.exporting.backbone_file import load_backbone
from akssl_core.plugins.installed import entries
from akssl_core.plugins.manager import BUILT_IN, Plugins
from akssl_core.plugins.table import plugin_table
from akssl_core.reporting import render
from akssl_core.rundir.folder import RunDir
from akssl_core.running.layers import check, collect, layer

METHOD = "simsiam"


@cache
def plugins() -> Plugins:
    """A manager with the core's own components and one method."""
    manager = Plugins()
    manager.entries = [entry for entry in manager.entries if entry.name == METHOD]
    manager.load_all()
    return manager


# -- safetensors ----------------------------------------------------------------------------------
def prepared(data: bytes, folder: Path) -> None:
    """A file of prepared images: opened, and every image looked at."""
    path = folder / "x.safetensors"
    path.write_bytes(data)
    source = Prepared(PreparedConfig(path=path), 16)
    parts = [source.all(), source.train(), *(source.probe() or ())]
    for images in parts:
        count = min(len(images), 8)
        images.fetch(range(count))
        written([*(images.id_of(i) for i in range(count)), *(images.classes or ()), *images.unreadable.values()])
    written(source.notes)


def backbone(data: bytes, folder: Path) -> None:
    """A backbone file: loaded, and shown an image."""
    path = folder / "backbone.safetensors"
    path.write_bytes(data)
    network = load_backbone(path, plugins=plugins())
    assert network.preprocess is not None
    features = network(network.preprocess(Image.new("RGB", (40, 30))))
    assert features.ndim == 2


# -- run folders ----------------------------------------------------------------------------------
def checkpoint(data: bytes, folder: Path) -> None:
    """The small files of a run and its checkpoints, as `resume` reads them."""
    seeds.unpack(data, folder)
    run = RunDir.open(folder)
    assert isinstance(run.manifest.table(), dict)
    assert isinstance(run.read_config(), dict)
    run.latest()


def report(data: bytes, folder: Path) -> None:
    """A run folder made into its report: no text of it becomes markup."""
    seeds.unpack(data, folder)
    page = render(folder).encode()
    assert not re.search(rb"<(script|iframe|object|embed|link)\b", page, re.IGNORECASE)


# -- settings -------------------------------------------------------------------------------------
def config(data: bytes, folder: Path) -> None:
    """A config file, up to validated settings."""
    path = folder / "config.yaml"
    path.write_bytes(data)
    given = collect(None, path, {}, plugins())
    written([str(check(layer(given, plugins()), plugins()).table())])


def assignments(data: bytes, folder: Path) -> None:
    """Lines of `--set` and what they amount to."""
    settings = settings_of({}, data.decode("utf-8", "surrogateescape").split("\n"))
    given = collect(None, None, {**settings, "method": {**settings.get("method", {}), "name": METHOD}}, plugins())
    check(layer(given, plugins()), plugins())


COMMANDS = ("explain", "report", "resume", "find", "plugins", "data")
FORBIDDEN = re.compile(
    "devices|cifar|stl|imagenette|fashion|/dev|\\.\\.|check|^/|^~|=/|=~", re.IGNORECASE
)  # slow, or elsewhere


def command(data: bytes, folder: Path) -> None:
    """A whole command line, one argument a line; nothing of it ends with a traceback."""
    arguments = [a.replace("\0", "") for a in data.decode("utf-8", "surrogateescape").split("\n")]
    if arguments[0] not in COMMANDS or any(FORBIDDEN.search(argument) for argument in arguments):
        return
    seeds.fill_folder(folder)
    before = os.getcwd()
    try:
        os.chdir(folder)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            akssl.main(arguments, prog_name="akssl", standalone_mode=False)
    finally:
        os.chdir(before)


# -- images ---------------------------------------------------------------------------------------
def image(data: bytes, folder: Path) -> None:
    """The bytes of an image file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image_header(data)
        pixels = decode_image(data, 3, 32)
    assert pixels.dtype == torch.uint8 or (pixels.dtype == torch.float32 and 0 <= pixels.min() <= pixels.max() <= 255)
    assert pixels.shape[0] == 3
    assert min(pixels.shape) > 0


def images(data: bytes, folder: Path) -> None:
    """A tree of files, links, pipes and folders with any names, as a folder of images."""
    seeds.plant(data, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = Folder(FolderConfig(path=folder, max_unreadable=1.0, cache_gb=0.01), 16)
        found = source.all()
        found.fetch(range(min(len(found), 16)))
    source.probe()
    written([*source.notes, *(found.classes or ()), *(found.id_of(i) for i in range(len(found)))])
    written([text for pair in found.unreadable.items() for text in pair])


# -- plugins --------------------------------------------------------------------------------------
def metadata(data: bytes, folder: Path) -> None:
    """The metadata of an installed distribution; nothing of it is imported."""
    info = folder / "evil-1.0.dist-info"
    info.mkdir()
    seeds.unpack(data, info)
    modules = set(sys.modules)
    with only_path(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        listed = entries()
        manager = Plugins()
        rows = plugin_table(manager)
        manager._tried.update(BUILT_IN)  # the core's own components are always the same
        manager.names("method")
        told = [str(manager._missing("method", entry.name)) for entry in listed[:3] if entry.status != "installed"]
    assert set(sys.modules) == modules, "something was imported"
    written([*told, *(text for row in rows for text in row.values())])


@contextmanager
def only_path(folder: Path) -> Iterator[None]:
    """Metadata is looked for in one folder alone."""
    before = sys.path
    sys.path = [str(folder)]
    importlib.metadata.MetadataPathFinder().invalidate_caches()
    try:
        yield
    finally:
        sys.path = before


def written(texts: list[str]) -> None:
    """That texts which end up in files and on terminals can be written there."""
    for text in texts:
        json.dumps(text, ensure_ascii=False).encode()


DESCRIPTORS = (b'"dtype":"F64"', b'"shape":[9999999999]', b'"data_offsets":[0,0]', b'"__metadata__"', b"[" * 5000)
YAML_WORDS = (b"&a ", b"*a", b"<<: ", b"!!python/object:x ", b"!!timestamp x", b"!!binary x", b"? [", b"{", b"[" * 3000,
              b"2001-99-99", b".nan", b".inf", b"0x", b"1:99", b"\xff", b"null", b"9" * 5000, b"optimizer:", b"name:",
              b"data:", b"path:", b"lr:", b"train:", b"~", b"- ", b": ", b"|", b"%YAML", b"---\n", b"on")  # fmt: skip
JSON_WORDS = (b"null", b"[]", b"{}", b"[" * 3000, b"1e999", b"NaN", b'"x"', b"-1", b"true", b'{"a":1}', b"<script>",
              b"9" * 5000, b"\\ud800", b"\xff")  # fmt: skip
TREE_WORDS = (b"<img src=x>", b"\xff", b"\n", b"/", b"../", b"a.png", b"loop", b"pipe", b"dir", b"zero", b"bomb")
INI_WORDS = (b"[akssl.v1]", b"[akssl.v99]", b"[akssl.v]", b"=", b":", b"Name: ", b"../x", b"os:system", b"\r", b"\xff")

plugins()  # imported now, and not within the time of an input

TARGETS = {
    target.name: target
    for target in (
        Target("prepared", prepared, seeds.prepared, DESCRIPTORS, repair=seeds.repair),
        Target("backbone", backbone, seeds.backbone, DESCRIPTORS + JSON_WORDS, repair=seeds.repair),
        Target("checkpoint", checkpoint, seeds.checkpoints, JSON_WORDS, repair=seeds.seal),
        Target("report", report, seeds.reports, JSON_WORDS),
        Target("config", config, seeds.configs, YAML_WORDS, seconds=15.0),
        Target("assignments", assignments, seeds.assignments, YAML_WORDS, seconds=15.0),
        Target("command", command, seeds.commands, YAML_WORDS, seconds=20.0),
        Target("image", image, seeds.images, allowed=(Unreadable,)),
        Target("folder", images, seeds.trees, TREE_WORDS),
        Target("metadata", metadata, seeds.metadata, INI_WORDS),
    )
}
