"""Hostile files: images, folders and tensors that claim, hide or name what they should not."""

from __future__ import annotations

import json
import os
import socket
import struct
import zlib
from pathlib import Path

import pytest
import torch
from conftest import ToyBackbone
from fuzz_engine import limits
from PIL import Image
from safetensors.torch import save_file
from synthetic_run import EVIL, Page

from akssl_core import run
from akssl_core.data import Folder, ImageSpec, Prepared, Preprocess, open_source
from akssl_core.data.decode import MOST_BYTES, Unreadable, open_file, read_image
from akssl_core.data.folder import FolderConfig
from akssl_core.data.prepared import PreparedConfig
from akssl_core.data.scan import DEEPEST
from akssl_core.errors import AksslError, DataError, RunDirError
from akssl_core.exporting.backbone_file import header, load_backbone


def save(path, size=(12, 9)):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        Image.effect_noise(size, 80).convert("RGB").save(file, "PNG")


def folder(path, **settings):
    return Folder(FolderConfig(path=path, **{"max_unreadable": 1.0, **settings}), 8)


# -- images that claim too much -------------------------------------------------------------------
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *more):
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return start + b"".join(more)


def tiff(width, height):
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 9)]
    table = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + table + struct.pack("<I", 8)


def webp(width, height):
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


HUGE = {
    "png": png(2**31 - 1, 2**31 - 1, chunk(b"IDAT", zlib.compress(b"0"))),
    "gif": b"GIF89a" + struct.pack("<HHBBBcHHHHB", 65535, 65535, 0, 0, 0, b",", 0, 0, 65535, 65535, 0),
    "bmp": b"BM" + struct.pack("<IIIIIiHHIIIIII", 60, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
    "tif": tiff(2**31, 2**31),
    "webp": webp(16383, 16383),
    "ppm": b"P6 99999999 99999999 255\n" + b"0" * 99,
    "pgm": b"P5 " + b"9" * 5000 + b" 9 255\n",
    "text.png": png(4, 4, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"0" * 2**28)), chunk(b"IDAT", b"")),
    "colours.png": png(4, 4, chunk(b"iCCP", b"a\0\0" + zlib.compress(b"0" * 2**28)), chunk(b"IDAT", b"")),
}  # fmt: skip


@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", HUGE)
def test_an_image_that_claims_gigabytes_takes_neither_memory_nor_time(tmp_path, name):
    path = tmp_path / f"x.{name}"
    path.write_bytes(HUGE[name])
    with limits(5), pytest.raises(Unreadable):
        read_image(path, 3, 32)


@pytest.mark.parametrize("start", [webp(20, 20), png(4, 4), b"BM", b""], ids=["webp", "png", "bmp", "zeros"])
def test_a_file_of_a_terabyte_is_not_read(tmp_path, start):
    path = tmp_path / "x.webp"
    path.write_bytes(start)
    os.truncate(path, MOST_BYTES + 1)  # a hole: it takes no space
    for read in (lambda: read_image(path, 3, 32), lambda: open_file(path).__enter__()):
        with limits(5), pytest.raises(Unreadable, match=f"a file of {MOST_BYTES + 1} bytes, more than the limit"):
            read()


# -- folders of anything --------------------------------------------------------------------------
def test_what_is_no_file_is_named_and_never_opened(tmp_path):
    tmp_path = tmp_path / "photos"
    tmp_path.mkdir()
    save(tmp_path / "good.png")
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "one.png").symlink_to("two.png")
    (tmp_path / "two.png").symlink_to("one.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "up").symlink_to("..")
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path)  # the path of a socket may be no longer than 108 characters
        try:
            server.bind("socket.png")
        finally:
            os.chdir(here)
        with limits(10):
            images = folder(tmp_path).train()
    unreadable = {name: why for name, why in images.unreadable.items() if "/" not in name}
    assert unreadable == {
        "self.png": "a link to nothing", "one.png": "a link to nothing", "two.png": "a link to nothing",
        "zero.png": "not a regular file", "pipe.png": "not a regular file", "socket.png": "not a regular file",
    }  # fmt: skip


def test_folders_within_folders_have_an_end(tmp_path):
    save(tmp_path / "good.png")
    save(tmp_path.joinpath(*["d"] * (DEEPEST - 1), "deep.png"))
    tmp_path.joinpath(*["d"] * (DEEPEST + 100)).mkdir(parents=True)
    images = folder(tmp_path).train()
    assert len(images) == 2
    assert list(images.unreadable.values()) == [f"a folder nested deeper than {DEEPEST} others"]


NAMES = (b"\xff\xfe", os.fsencode(f"{EVIL.replace('/', '!')}"), b"a\nb", b"\x1b[2J", "ü".encode(), b'"><img src=x>')


def test_class_and_file_names_of_any_bytes_go_through_a_whole_run(tmp_path, toys):
    root = os.fsencode(tmp_path / "photos")
    for i, name in enumerate(NAMES):
        for j in range(4):
            save(os.path.join(root, name, b"%d%s.png" % (j, NAMES[j])))
        with open(os.path.join(root, name, b"broken" + NAMES[i] + b".png"), "wb") as file:
            file.write(b"text")
    result = run(
        "toy", data={"name": "folder", "path": str(tmp_path / "photos"), "max_unreadable": 1.0}, image_size=8,
        batch_size=4, steps=2, out=tmp_path / "run", precision="fp32", device="cpu", plugins=toys,
    )  # fmt: skip
    manifest = json.loads((result.run_dir / "manifest.json").read_text(encoding="utf-8"))
    assert "\ufffd\ufffd" in manifest["data"]["class_names"]
    assert len(manifest["data"]["class_names"]) == len(NAMES)
    page = Page((result.run_dir / "report.html").read_text(encoding="utf-8"))
    assert not page.all("script")
    assert all(image["src"].startswith("data:image/png") for image in page.all("img"))
    assert manifest["unreadable"] == len(NAMES)


def test_names_that_cannot_be_told_apart_stay_two_classes(tmp_path):
    for name in (b"\xfe", b"\xff"):
        for i in range(3):
            save(os.path.join(os.fsencode(tmp_path), name, b"%d.png" % i))
    images = folder(tmp_path).all()
    assert images.classes == ("\ufffd", "\ufffd")
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_folder_of_a_name_that_is_no_text(tmp_path, toys):
    root = os.path.join(os.fsencode(tmp_path), b"\xff")
    for i in range(8):
        save(os.path.join(root, b"%d.png" % i))
    result = run("toy", data=os.fsdecode(root), image_size=8, batch_size=4, steps=1, out=tmp_path / "run",
                 precision="fp32", device="cpu", plugins=toys)  # fmt: skip
    assert "8 image files" in (result.run_dir / "manifest.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-this-name/x", "a\0b", "a" * 300 + "/b", "\udcff", "\x1b[2J"])
def test_paths_that_cannot_be(name, plugins):
    for data in (name, Path(name), name + ".safetensors", Path(name + ".safetensors")):
        if isinstance(data, str):
            with pytest.raises(DataError, match="neither a data source nor"):
                open_source(data, plugins)
        else:
            with pytest.raises(DataError, match="does not exist|cannot be read"):
                open_source({"name": "prepared" if data.suffix == ".safetensors" else "folder", "path": data}, plugins)


def test_messages_do_not_steer_the_terminal(tmp_path):
    for i in range(3):
        (tmp_path / f"\x1b[2J\n{i}.png").write_text("text")
    with pytest.raises(DataError) as caught:
        folder(tmp_path)
    assert "\x1b" not in str(caught.value)
    assert "\\x1b[2J\\n0.png" in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    with limits(5), pytest.raises(DataError, match="not a regular file"):
        Prepared(PreparedConfig(path=tmp_path / "x.safetensors"))


# -- backbone files -------------------------------------------------------------------------------
IMAGE = ImageSpec(8, 3, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def backbone_file(tmp_path, toys):
    """Writes a backbone file whose header is changed."""

    def write(**changes):
        network = ToyBackbone(ToyBackbone.Config(), IMAGE)
        metadata = header("toy", {"name": "toy"}, network, Preprocess.of(IMAGE)) | changes
        path = tmp_path / "backbone.safetensors"
        tensors = {name: t.clone() for name, t in network.export_state().items()}
        save_file(tensors, path, {name: text for name, text in metadata.items() if text is not None})
        return path

    return write


def told(**changes):
    table = {"size": 8, "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3} | changes
    return json.dumps({name: value for name, value in table.items() if value is not None})


def test_the_file_is_good_before_it_is_changed(backbone_file, toys):
    backbone = load_backbone(backbone_file(), plugins=toys)
    assert backbone(backbone.preprocess(Image.new("RGB", (20, 30)))).shape == (1, 8)


def test_weights_that_are_not_those_that_were_written_are_told(backbone_file, toys):
    with pytest.raises(RunDirError, match="is damaged: its weights are not those that were written"):
        load_backbone(backbone_file(sha256=64 * "0"), plugins=toys)


HEADERS = {
    "no image": ({"image": None}, "header is wrong: image Invalid JSON"),
    "no preprocess": ({"preprocess": None}, "header is wrong: preprocess"),
    "no backbone": ({"backbone": None}, "header is wrong: backbone"),
    "text": ({"image": "text"}, "header is wrong: image Invalid JSON"),
    "a list": ({"image": "[1, 2]"}, "header is wrong: image"),
    "without end": ({"image": "[" * 100_000}, "header is wrong: image"),
    "no size": ({"image": told(size=None)}, "image.size is missing"),
    "a size of exabytes": ({"image": told(size=10**9)}, "image.size should be less"),
    "a preprocess of exabytes": ({"preprocess": told(resize=10**9)}, "preprocess.resize should be less"),
    "a crop beyond the image": ({"preprocess": told(resize=4)}, "is wrong: resize must not be smaller than size"),
    "another number of means": ({"image": told(mean=[0.5])}, "is wrong: mean and std have one number a channel"),
    "no deviation": ({"image": told(std=[0, 1, 1])}, "image.std.0 should be greater than 0"),
    "no number": ({"image": told(mean=[float("nan"), 0, 0])}, "image.mean.0 should be a finite number"),
    "other channels": ({"image": told(channels=1, mean=[0.5], std=[1])}, "its weights are not those of toy: 'conv"),
    "a backbone without a name": ({"backbone": "{}"}, "header is wrong: it names no backbone."),
    "a name that is no text": ({"backbone": '{"name": [1]}'}, "header is wrong: it names no backbone."),
    "an unknown backbone": ({"backbone": '{"name": "no-such"}'}, "no backbone named 'no-such'"),
    "a name that is a path": ({"backbone": '{"name": "../../evil"}'}, "no backbone named"),
    "an unknown setting": ({"backbone": '{"name": "toy", "x": 1}'}, "unknown setting 'x'"),
    "weights of another network": ({"backbone": '{"name": "resnet_tiny"}'}, "its weights are not those of resnet_tiny"),
    "a network of terabytes": (
        {"backbone": '{"name": "resnet_tiny", "widths": [8192, 8192, 8192, 8192], "blocks": [64, 64, 64, 64]}'},
        "its weights are not those of resnet_tiny",
    ),
    "a network without end": ({"backbone": '{"name": "resnet_tiny", "blocks": [999999999, 1, 1, 1]}'}, "blocks.0"),
    "your own": ({"backbone": '{"name": "custom"}'}, "this backbone is your own module"),
    "another format": ({"format": "x"}, "was not written by akssl"),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_damaged_backbone_files_are_refused(backbone_file, toys, case):
    changes, message = HEADERS[case]
    path = backbone_file(**changes)
    with limits(20), pytest.raises(AksslError) as caught:
        load_backbone(path, plugins=toys)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 700
    assert "\n" not in str(caught.value)


LENGTHS = {
    "a header of exabytes": (2**60).to_bytes(8, "little") + b"{}",
    "a tensor of terabytes": {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
    "shapes that overflow": {"w": {"dtype": "F32", "shape": [2**63, 2**63], "data_offsets": [0, 4]}},
    "tensors over each other": {k: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for k in "ab"},
    "a header without end": (10**6).to_bytes(8, "little") + b"[" * 10**6,
}


@pytest.mark.parametrize("case", LENGTHS)
def test_headers_that_look_like_terabytes(tmp_path, toys, case):
    data = LENGTHS[case]
    if isinstance(data, dict):
        text = json.dumps(data).encode()
        data = len(text).to_bytes(8, "little") + text + b"0123"
    path = tmp_path / "backbone.safetensors"
    path.write_bytes(data)
    with limits(5), pytest.raises(RunDirError, match="cannot be read as safetensors"):
        load_backbone(path, plugins=toys)


def test_a_file_of_weights_fetches_none(backbone_file, toys, monkeypatch):
    asked = []

    class Fetching(ToyBackbone):
        name = "fetching"

        class Config(ToyBackbone.Config):
            pretrained: bool = True

        def __init__(self, config, image):
            asked.append(config.pretrained)
            super().__init__(config, image)

    toys.registry.add(Fetching)
    load_backbone(backbone_file(backbone='{"name": "fetching", "pretrained": true}'), plugins=toys)
    assert asked
    assert not any(asked)


def test_loading_a_backbone_leaves_the_random_state_alone(backbone_file, toys):
    path = backbone_file()
    before = torch.random.get_rng_state()
    load_backbone(path, plugins=toys)
    assert torch.equal(torch.random.get_rng_state(), before)
