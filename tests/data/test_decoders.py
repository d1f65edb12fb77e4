"""Files that Pillow does not read: arrays of numpy, their scale, channels and refusals, and decoders of plugins."""

from __future__ import annotations

import io
import json
import shutil
import struct
import tarfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from drawn_folders import assert_same_sources, same, save

import akssl_core
from akssl_core import AksslError, DataError
from akssl_core.data import open_source
from akssl_core.data.prepare import prepare
from akssl_core.plugins.manager import Plugins, installed

RNG = np.random.default_rng(0)
BANDS = RNG.integers(0, 4096, (12, 20, 24, 8), dtype=np.uint16)  # 12 of 16 bits


def opened(data, size=24, plugins=None):
    return open_source(data, plugins or installed(), size)


def folder_of(path, arrays=BANDS):
    for i, array in enumerate(arrays):
        place = path / ("cat" if i % 2 else "dog") / f"{i:02}.npy"
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(place, array)
    return path


def as_shown(arrays, black=0, white=4095):
    """[N, H, W, C] as the core should show it: the whole range, and nothing rounded to 8 bits."""
    scaled = (arrays.astype(np.float64) - black) * (255 / (white - black))
    return torch.from_numpy(scaled.clip(0, 255).astype(np.float32)).movedim(-1, 1)


def first_batch(data):
    images = opened(data).all()
    return images.fetch(range(min(4, len(images)))).images


def test_arrays_in_files_keep_every_value_and_all_channels(tmp_path):
    source = opened(str(folder_of(tmp_path / "bands")))
    order = [*range(1, 12, 2), *range(0, 12, 2)]
    images = source.all()
    assert (images.channels, images.classes) == (8, ("cat", "dog"))
    assert torch.equal(images.fetch(range(12)).images, as_shown(BANDS[order]))
    assert source.decided == {"channels": 8, "black": 0, "white": 4095}
    assert any("use 12 bits (up to " in note and "data.white set" in note for note in source.notes)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_stack_is_a_folder_in_one_file(tmp_path, suffix):
    path, labels = tmp_path / f"stack.{suffix}", np.arange(12)[:, None] % 2
    np.save(path, BANDS) if suffix == "npy" else np.savez(path, images=BANDS, labels=labels)
    source = opened(str(path))
    assert torch.equal(source.all().fetch([11, 0]).images, as_shown(BANDS[[11, 0]]))
    assert source.all().id_of(3) == "03"
    assert (source.labels is None) == (suffix == "npy")
    assert suffix == "npy" or torch.equal(source.labels, torch.arange(12) % 2)


def test_an_array_of_eight_bits_is_what_the_array_itself_is(tmp_path):
    gray, few = RNG.integers(0, 256, (9, 16, 16), dtype=np.uint8), RNG.random((9, 16, 16, 5), dtype=np.float32)
    np.save(tmp_path / "gray.npy", gray)
    np.save(tmp_path / "few.npy", few)
    np.savez(tmp_path / "named.npz", first=gray, second=few)
    assert torch.equal(opened(str(tmp_path / "gray.npy")).all().fetch([4]).images, opened(gray).all().fetch([4]).images)
    shown = opened({"name": str(tmp_path / "named.npz"), "image": "second"}).all().fetch(range(9)).images
    assert torch.equal(shown, as_shown(few, 0, 1))
    with pytest.raises(DataError, match=r"known to hold images: first, second\. Say which: data\.image=NAME"):
        opened(str(tmp_path / "named.npz"))


def test_values_below_zero_and_fractions_have_the_scale_of_a_sample(tmp_path):
    values = RNG.normal(-100, 400, (10, 16, 16, 2))
    np.save(tmp_path / "ct.npy", values)
    source = opened(str(tmp_path / "ct.npy"))
    black, white = source.decided["black"], source.decided["white"]
    assert (black, white) == (values.min(), values.max())
    assert any(f"run from {black:g} to {white:g}" in note for note in source.notes)
    path = str(tmp_path / "ct.npy")
    assert torch.equal(first_batch(path), as_shown(values[:4], black, white))
    given = opened({"name": path, "black": -500, "white": 500})
    assert torch.equal(given.all().fetch([0]).images, as_shown(values[:1], -500, 500))
    assert not any("run from" in note for note in given.notes)
    with pytest.raises(AksslError, match="black should be less than white, got 5 and 5"):
        opened({"name": path, "black": 5, "white": 5})
    with pytest.raises(DataError, match=r"data\.black: 1e\+06 is not below the white of these images"):
        opened({"name": path, "black": 1e6})


def test_the_same_batches_from_a_folder_a_table_archives_and_a_prepared_file(tmp_path):
    root = folder_of(tmp_path / "bands")
    rows = [f"bands/{file.relative_to(root)},{file.parent.name}" for file in sorted(root.rglob("*.npy"))]
    (tmp_path / "bands.csv").write_text("\n".join(["path,label", *rows]))
    shutil.make_archive(str(tmp_path / "bands"), "zip", root)
    with tarfile.open(tmp_path / "bands.tar", "w") as tar:
        tar.add(root, "bands")
    whole = opened(str(root))
    for name in ("bands.zip", "bands.tar"):
        assert_same_sources(whole, opened({"name": str(tmp_path / name), "decoder": "npy"}))
    table = opened({"name": str(tmp_path / "bands.csv"), "decoder": "npy"})
    assert torch.equal(table.all().fetch(range(12)).images, whole.all().fetch(range(12)).images)
    out = tmp_path / "bands.safetensors"
    prepare(str(root), out, size=None, views=(), image_size=24, overwrite=False, plugins=installed())
    assert_same_sources(whole, opened(str(out)))
    assert akssl_core.prepare(root, tmp_path / "shards", image_size=24, shard_size="4kB").shards > 2
    assert_same_sources(whole, opened(str(tmp_path / "shards")))


def test_a_prepared_file_keeps_what_is_shown_of_reduced_deep_images(tmp_path):
    big = RNG.integers(0, 65536, (6, 60, 80), dtype=np.uint16)
    np.save(tmp_path / "big.npy", big)
    out = tmp_path / "big.safetensors"
    prepare(str(tmp_path / "big.npy"), out, size=None, views=(), image_size=16, overwrite=False, plugins=installed())
    whole, kept = opened(str(tmp_path / "big.npy"), 16), opened(str(out), 16)
    same(whole.all(), kept.all())
    assert whole.all().fetch([0]).images.shape == (1, 1, 27, 36)
    square = akssl_core.Preprocess(16, 1, (0.0,), (1.0,), 16).square
    assert torch.equal(whole.all().squares([5, 1], square).images, kept.all().squares([5, 1], square).images)


def bad(array=None, *, data=None):
    """The bytes of a file: those of an array, or the first of them."""
    if array is not None:
        file = io.BytesIO()
        np.save(file, array, allow_pickle=True)
        data = file.getvalue()
    return data


HUGE = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (99999999, 99999999, 3), }".ljust(128)
REFUSED = {
    "objects": (
        bad(np.array([[{}, 1], [2, 3]], dtype=object)),
        "an array of object, not of numbers; objects are never",
    ),
    "huge": (HUGE, "bytes, of which 0 are there"),
    "cut": (bad(np.zeros((30, 30)))[:-8], "7200 bytes, of which 7192 are there"),
    "empty": (b"", "no array in numpy's format"),
    "nan": (bad(np.full((20, 20, 3), np.nan)), r"values that are no numbers \(NaN or infinite\)"),
    "stack": (bad(np.zeros((7, 20, 20, 3))), "a stack of 7 images, which are read where the file itself is named"),
    "texts": (bad(np.full((20, 20), "x")), "an array of <U1, not of numbers"),
    "no bands": (bad(np.zeros((0, 20, 20))), "of which 0 are there"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_arrays_are_told_by_name_and_stop_nothing_else(tmp_path, kind):
    data, told = REFUSED[kind]
    root = folder_of(tmp_path / "x", BANDS[..., :3])
    (root / "cat" / "odd.npy").write_bytes(data)
    source = opened({"name": str(root), "max_unreadable": 0.1})
    images = source.all()
    images.fetch(range(len(images)))
    assert [*images.unreadable] == ["cat/odd.npy"]
    for name in root.rglob("[01]*.npy"):
        name.unlink()
    with pytest.raises(DataError, match=f"files.* in .*{told}") as error:
        first_batch(str(root / "cat"))
    assert "\n" not in str(error.value)


def test_a_stack_that_cannot_be_used_is_refused(tmp_path):
    path = tmp_path / "x.npy"
    for array, told in (
        (np.array([{}], dtype=object), "objects are never loaded"),
        (np.zeros(5), "expected .N, H, W, C.*got the shape .5,."),
        (np.zeros((9, 9, 3)), "looks like one image"),
    ):
        path.write_bytes(bad(array))
        with pytest.raises(DataError, match=told):
            opened(str(path))
    path.write_bytes(HUGE)
    with pytest.raises(DataError, match="of which 0 are there"):
        opened(str(path))
    np.savez_compressed(tmp_path / "bomb.npz", images=np.zeros((2**14, 100, 100), np.uint8))
    with pytest.raises(DataError, match="bytes that expand to"):
        opened(str(tmp_path / "bomb.npz"))
    np.savez(tmp_path / "few.npz", images=BANDS, labels=[1, 2])
    with pytest.raises(DataError, match="has 2 labels for 12 images"):
        opened(str(tmp_path / "few.npz"))


def test_mixed_numbers_of_channels_are_refused_in_a_line(tmp_path):
    root = folder_of(tmp_path / "x")
    np.save(root / "cat" / "few.npy", BANDS[0, :, :, :5])
    with pytest.raises(
        DataError, match=r"different numbers of channels: 5 \('cat/few.npy'\), 8 \('cat/01.npy'\)\. Keep"
    ):
        opened(str(root))
    source = opened({"name": str(root), "channels": 8, "max_unreadable": 0.1})
    source.all().fetch(range(13))
    assert source.all().unreadable == {"cat/few.npy": "5 channels, and the others have 8"}


def test_arrays_beside_photos_are_no_images(tmp_path):
    save(tmp_path / "x" / "a.png")
    np.save(tmp_path / "x" / "a.npy", BANDS[0])
    source = opened(str(tmp_path / "x"))
    assert (len(source.all()), source.decided) == (1, {})
    assert "1 files of other kinds are left out: 1 .npy" in source.notes
    assert len(opened({"name": str(tmp_path / "x"), "decoder": "npy"}).all()) == 1


def test_a_run_keeps_the_scale_and_judges_other_images_by_it(tmp_path):
    root, dark = folder_of(tmp_path / "bands"), folder_of(tmp_path / "dark", BANDS // 16)
    settings = {"image_size": 16, "epochs": 1, "batch_size": 4, "report": False, "backbone": "resnet_tiny"}
    result = akssl_core.run("simsiam", data=str(root), out=tmp_path / "run", **settings)
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert all(line in config for line in ("white: 4095", "black: 0", "channels: 8", "name: npy"))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert any("left out: saturation, hue" in note for note in manifest["notes"])
    features = akssl_core.embed(result.run_dir, data=str(dark))[0]
    pixels = as_shown(BANDS[[*range(1, 12, 2), *range(0, 12, 2)]] // 16)
    expected = result.backbone(result.preprocess.pixels(akssl_core.Pixels(pixels))).detach()
    assert torch.allclose(torch.as_tensor(np.asarray(features)), expected, atol=1e-4, rtol=1e-4)
    assert result.preprocess.limits == (0, 4095)
    assert "values of more than 8 bits from 0 to 4095 as 0 to 1" in result.preprocess.rule
    several = BANDS[:2] // 16
    assert torch.equal(result.preprocess(several), result.preprocess.pixels(akssl_core.Pixels(as_shown(several))))
    file = result.run_dir / "backbone.safetensors"
    assert akssl_core.load_backbone(file).preprocess == result.preprocess
    assert np.array_equal(akssl_core.embed(file, data=str(dark))[0], features)
    with pytest.warns(UserWarning, match=r"settings: train\.epochs: 1 -> 2$"):
        akssl_core.resume(result.run_dir, epochs=2)
    found = akssl_core.search(result.run_dir, str(root / "cat" / "01.npy"), data=str(root), k=1)
    assert found.images == [["cat/01.npy"]]
    assert float(found.distances) < 1e-5


def test_bands_are_no_colours_with_transparency(tmp_path):
    four = folder_of(tmp_path / "four", BANDS[..., :4])
    with pytest.raises(DataError, match="4 channels"):
        first_batch({"name": "folder", "path": str(four), "channels": 3})


def test_sixteen_bit_colour_is_told_to_lose_bits(tmp_path):
    save(tmp_path / "x" / "a.png")
    assert not any("16 bits a colour" in note for note in opened(str(tmp_path / "x")).notes)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", 9, 9, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(9 * 55))),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    (tmp_path / "x" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    assert any("1 of 1 files looked into have 16 bits a colour" in note for note in opened(str(tmp_path / "x")).notes)


class Planes(akssl_core.FileDecoder):
    """Three planes of one byte a pixel behind two bytes that are the height and the width."""

    name = "planes"
    suffixes = frozenset({".planes"})

    def shape(self, file):
        height, width = file.read(2)
        return 1, 3, height, width

    def decode(self, file):
        _, channels, height, width = self.shape(file)
        return np.frombuffer(file.read(), np.uint8).reshape(channels, height, width)


def test_a_plugin_decodes_files_of_its_own(tmp_path):
    class Module:
        @akssl_core.hookimpl
        def akssl_register(registry):
            registry.add(Planes)

    plugins = Plugins()
    plugins.register(Module, "planes")
    pixels = RNG.integers(0, 256, (3, 12, 14), dtype=np.uint8)
    for name in ("a", "b"):
        (tmp_path / f"{name}.planes").write_bytes(bytes([12, 14]) + pixels.tobytes())
    (tmp_path / "c.planes").write_bytes(b"")
    source = opened({"name": str(tmp_path), "decoder": "planes", "max_unreadable": 0.5}, 12, plugins)
    assert torch.equal(source.all().fetch([1]).image(0), torch.from_numpy(pixels))
    assert "not enough values" in source.all().unreadable["c.planes"]
    with pytest.raises(DataError, match=r"holds no image files.*There are 3 \.planes\. data\.decoder=NAME names"):
        opened(str(tmp_path), 12, plugins)
    with pytest.raises(AksslError, match="no decoder named 'planets'"):
        opened({"name": str(tmp_path), "decoder": "planets"})


def test_headers_are_parsed_one_at_a_time(tmp_path, monkeypatch):
    """Python may take a good file for a bad one where two threads parse at once (python/cpython#106905)."""
    parse, inside, most = np.lib.format.read_array_header_1_0, [], []

    def slow(file):
        inside.append(file)
        most.append(len(inside))
        time.sleep(0.001)
        inside.pop()
        return parse(file)

    images = opened(str(folder_of(tmp_path / "bands"))).all()
    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", slow)
    with ThreadPoolExecutor(8) as threads:
        [*threads.map(lambda row: images.fetch([row]), range(12))]
    assert len(most) >= 12
    assert max(most) == 1
