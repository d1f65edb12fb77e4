"""Valid inputs to begin from, and how several files become one input and back."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
import yaml
from PIL import Image
from safetensors.torch import save

from akssl_core.backbone.resnet import ResNetTiny
from akssl_core.data import ImageSpec, Preprocess
from akssl_core.exporting.backbone_file import header
from akssl_core.rundir.checkpoints import CheckpointState
from akssl_core.rundir.files import digest
from akssl_core.rundir.folder import RunDir
from akssl_core.running.result import prepare

MARK = b"\n=====\n"  # between the files of one input
FILES = ("manifest.json", "metrics.jsonl", "config.yaml", "provenance.json", "unreadable.txt", "samples.safetensors",
         "METADATA", "entry_points.txt", "backbone.safetensors")  # fmt: skip
STATE = ("state.json", "model.safetensors", "optimizer.safetensors")


def pack(files: Mapping[str, bytes]) -> bytes:
    """Files as one input."""
    return MARK.join(name.encode() + b"\n" + data for name, data in files.items())


def unpack(data: bytes, folder: Path) -> None:
    """One input as files, those of a checkpoint in its folder; unknown names are left out."""
    for part in data.split(MARK)[:20]:
        name, _, content = part.partition(b"\n")
        for known in (*FILES, *STATE):
            if known.encode() == name:
                path = folder / "checkpoints" / "00000001" / known if known in STATE else folder / known
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)


def repair(data: bytes) -> bytes:
    """The length in front of a safetensors header made right again, if the header is JSON still."""
    try:
        _, length = json.JSONDecoder().raw_decode(data[8:].decode("latin-1"))
    except (ValueError, RecursionError):
        return data
    return length.to_bytes(8, "little") + data[8:]


def seal(data: bytes) -> bytes:
    """The checksums in a checkpoint's state made right again, as far as it is JSON still."""
    parts = dict(part.partition(b"\n")[::2] for part in data.split(MARK))
    try:
        state = json.loads(parts[b"state.json"])
        state.pop("digest", None)
        state["checksums"] = {name: digest(parts.get(name.encode(), b"")) for name in STATE[1:]}
        text = (json.dumps(state, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
        state["digest"] = digest(text)
        parts[b"state.json"] = json.dumps(state).encode()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return data
    return MARK.join(name + b"\n" + content for name, content in parts.items())


# -- safetensors ----------------------------------------------------------------------------------
@cache
def prepared() -> Sequence[bytes]:
    """A prepared file of a few shapes, and one of a folder with a broken file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        for i in range(6):
            (path / "photos" / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
            Image.effect_noise((9 + i, 8), 90).save(path / "photos" / f"class{i % 2}" / f"{i}.png")
        (path / "photos" / "class0" / "0.png").write_bytes(b"")
        found = []
        for name, settings in (
            ("shapes", {"size": 6, "test_size": 4}),
            (str(path / "photos"), {"max_unreadable": 0.5}),
        ):
            table = {"name": name, **settings}
            out = path / f"{len(found)}.safetensors"
            found.append(prepare(table, out, size=8).path.read_bytes())
    return found


def backbone() -> Sequence[bytes]:
    """The smallest backbone of the core."""
    image = ImageSpec(8, 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    settings = {"name": "resnet_tiny", "widths": (2, 2, 2, 4), "blocks": (1, 1, 1, 1)}
    network = ResNetTiny(ResNetTiny.Config(widths=(2, 2, 2, 4)), image)
    return [save(network.export_state(), header("simsiam", settings, network, Preprocess.of(image)))]


# -- run folders ----------------------------------------------------------------------------------
def rows() -> bytes:
    """A few lines of metrics."""
    lines = [
        {"step": i, "epoch": i / 2, "loss": 1 / i, "lr": 0.1, "seconds": 1.0, "time_load": 0.1, "time_forward": 0.4,
         "images_per_s": 50.0, "knn_top1": 20.0 + i, "std_ratio": 0.5, "rankme": 70.0}
        for i in range(1, 6)
    ]  # fmt: skip
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def manifest() -> bytes:
    """What a finished run says of itself."""
    facts = {
        "created": "2025-01-02T03:04:05+00:00", "status": "finished", "method": "toy", "seed": 7, "notes": ["a note"],
        "data": {"images": 60, "channels": 3, "classes": 3, "class_names": ["a", "b", "c"], "sample": "abc"},
        "hardware": {"device": "cpu", "precision": "fp32"}, "versions": {"python": "3.11"},
        "plugins": [{"name": "toy", "version": "0.1", "status": "installed"}],
        "baselines": {"knn_raw_pixels": 21.5, "knn_random_init": 30.25}, "verdict": "healthy",
        "curves": {"loss": {"shape": "falls <b>", "lines": {"chance": 5.5}}},
        "final": {"loss": -0.9, "knn_top1": 61.4, "std_ratio": 0.62, "rankme": 88.1, "knn_raw_pixels": 21.5},
    }  # fmt: skip
    return json.dumps(facts).encode()


def settings() -> bytes:
    """A config file."""
    table = {"method": {"name": "simsiam", "out_dim": 16}, "backbone": {"name": "resnet_tiny"}, "seed": 7,
             "data": {"name": "shapes", "size": 64}, "train": {"epochs": 3, "clip": None, "image_size": 16},
             "optimizer": {"name": "sgd", "lr": {"start": 0.1, "warmup": 1}}, "evaluate": {"k": 20}}  # fmt: skip
    return yaml.safe_dump(table).encode()


def checkpoints() -> Sequence[bytes]:
    """A run with one checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir.create(Path(folder) / "run")
        state = CheckpointState(1, 5.0)
        path = run.save_checkpoint({"w": torch.zeros(2)}, {"w/momentum": torch.ones(2)}, state, keep=2)
        files = {name: (path / name).read_bytes() for name in STATE}
    small = {"manifest.json": manifest(), "metrics.jsonl": rows(), "config.yaml": settings()}
    return [pack({**small, "provenance.json": b'{"seed": "user"}', **files}), pack({"manifest.json": b"{}", **files})]


def reports() -> Sequence[bytes]:
    """A finished run and one that has just begun."""
    pictures = {
        "originals": torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        "views.global": torch.zeros(2, 2, 3, 8, 8, dtype=torch.uint8),
        "neighbours": torch.zeros(2, 3, 3, 8, 8, dtype=torch.uint8),
        "neighbour_labels": torch.zeros(2, 3, dtype=torch.int64),
    }
    files = {"manifest.json": manifest(), "metrics.jsonl": rows(), "config.yaml": settings()}
    more = {"provenance.json": b'{"seed": "user", "train.epochs": "<b>"}', "unreadable.txt": b"a.png\tempty\n"}
    score = {"system": "trained", "k": 20, "accuracy": 61.4, "low": 60.0, "high": 62.5}
    judged = {"k": 20, "answer": "Yes <b>", "interval": "t", "notes": ["few"], "scores": [score]}
    more["evaluation.json"] = json.dumps({"results": {"knn": {"photos": {"0.1": judged}}}}).encode()
    bare = {"manifest.json": b'{"status": "running"}', "config.yaml": b"seed: 0\n", "metrics.jsonl": b""}
    return [pack({**files, **more, "samples.safetensors": save(pictures)}), pack({**files, **more}), pack(bare)]


# -- settings -------------------------------------------------------------------------------------
def configs() -> Sequence[bytes]:
    """Config files."""
    return [settings(),
            b"method: simsiam\ncallbacks: []\ndata: {name: shapes}\nepochs: 2\noptions: {out_dim: 8}\n",
            b"method: simsiam\na: &a [1]\nb: *a\n",
            b"method: simsiam\nbackbone: vit_tiny\noptimizer: lars\n"]  # fmt: skip


def assignments() -> Sequence[bytes]:
    """Values of --set."""
    return [b"optimizer.lr=0.1\nmethod.out_dim=16\ntrain.epochs=2", b"optimizer={name: lars, lr: {start: 0.1, end: 0}}",
            b"data.size=64\nevaluate.k=5\nseed=3\naugmentation.first.scale=[0.2, 1]\ntrain.clip.norm=1"]  # fmt: skip


SMALL = ("--image-size", "16", "--set", "data.size=64", "--set", "data.test_size=32", "--batch-size", "16")
LINES = (
    ("explain", "simsiam", *SMALL, "--epochs", "1", "--seed", "3"),
    ("explain", "simsiam", *SMALL, "--config", "config.yaml", "--set", "optimizer.lr=0.1"),
    ("explain", "simsiam", "--data", "photos", "--image-size", "16", "--batch-size", "4", "--backbone", "resnet_tiny"),
    ("explain", "simsiam", "--data", "photo.safetensors"),
    ("report", "run"), ("resume", "run"), ("find", "loss", "ntxent"), ("plugins", "show", "simsiam"),
    ("plugins", "--json"), ("plugins", "new", "my-method"),
    ("data", "prepare", "photos", "--out", "x.safetensors", "--size", "16", "--set", "data.channels=1"),
)  # fmt: skip


def commands() -> Sequence[bytes]:
    """Command lines, an argument a line."""
    return ["\n".join(line).encode() for line in LINES]


def fill_folder(folder: Path) -> None:
    """What the command lines speak of."""
    (folder / "config.yaml").write_bytes(settings())
    (folder / "photos").mkdir()
    for i in range(6):
        (folder / "photos" / f"{i}.png").write_bytes(images()[0])
    (folder / "run").mkdir()
    unpack(reports()[1], folder / "run")


# -- images ---------------------------------------------------------------------------------------
@cache
def images() -> Sequence[bytes]:
    """An image in every format and several modes."""
    noise = Image.effect_noise((20, 14), 90)
    kinds = (("PNG", "RGB"), ("PNG", "LA"), ("PNG", "P"), ("PNG", "I;16"), ("JPEG", "RGB"), ("JPEG", "CMYK"),
             ("WEBP", "RGBA"), ("BMP", "RGB"), ("TIFF", "RGB"), ("TIFF", "F"), ("GIF", "P"), ("PPM", "L"))  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for kind, mode in kinds:
        buffer = io.BytesIO()
        options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") and mode == "RGB" else {}
        noise.convert(mode).save(buffer, kind, **options)
        found.append(buffer.getvalue())
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        buffer = io.BytesIO()
        noise.convert("RGB").save(buffer, "TIFF", compression=compression)
        found.append(buffer.getvalue())
    return found


def trees() -> Sequence[bytes]:
    """Folders: a line is what lies there and its path."""
    return [b"good a/1.png\ngood a/2.jpg\ngood b/3.png\ngood b/4.png\nempty b/5.png",
            b"good 1.png\nloop x\nlink y.png",
            b"good a/1.png\npipe p.png\ndir d.png\nbomb c/b.png\ngood \xff/2.png\ngood c/3.png"]  # fmt: skip


def plant(data: bytes, folder: Path) -> None:
    """Make the folder that the lines of an input describe, as far as the file system allows it."""
    for line in data.split(b"\n")[:12]:
        kind, _, name = line.partition(b" ")
        parts = [part for part in name.split(b"/") if part not in (b"", b".", b"..")][:120]
        path = os.path.join(os.fsencode(folder), *parts)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _lay(kind, path, folder)
        except (OSError, ValueError):
            continue


def _lay(kind: bytes, path: bytes, folder: Path) -> None:
    if os.path.lexists(path):
        return  # a pipe would be waited for
    contents = {b"good": images()[0], b"empty": b"", b"text": b"text", b"bomb": images()[0][:16] + b"\xff" * 60}
    if kind == b"loop":
        os.symlink(os.fsencode(folder), path)
    elif kind == b"link":
        os.symlink(path, path)
    elif kind == b"zero":
        os.symlink(b"/dev/zero", path)
    elif kind == b"pipe":
        os.mkfifo(path)
    elif kind == b"dir":
        os.makedirs(path)
    else:
        with open(path, "wb") as file:
            file.write(contents.get(kind, kind))


# -- plugins --------------------------------------------------------------------------------------
def metadata() -> Sequence[bytes]:
    """The metadata of a distribution with a plugin."""
    name = b"Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n"
    points = b"[akssl.v1]\nevil = evil_module:thing\nother = a.b.c\n[akssl.v2]\nnew = x\n[console_scripts]\nx = y:z\n"
    return [pack({"METADATA": name, "entry_points.txt": points}), pack({"entry_points.txt": points})]
