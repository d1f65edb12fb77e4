"""TIFF and DICOM as a run sees them: the values that were written, by every way in, and what is refused."""

from __future__ import annotations

import shutil
import tarfile

import numpy as np
import pydicom
import pytest
import tifffile
import torch
from pydicom.pixels import apply_modality_lut, apply_windowing

import akssl_core
from akssl_core import DataError
from akssl_core.testing import Check, checks

TINY = {"image_size": 16, "epochs": 1, "batch_size": 4, "report": False, "backbone": "resnet_tiny"}


def source_of(path, decoder, **settings):
    return akssl_core.build("data", "folder", 24, path=path, decoder=decoder, **settings)


def shown(values, black, white):
    scaled = (values.astype(np.float64) - black) * (255 / (white - black))
    return torch.from_numpy(scaled.clip(0, 255).astype(np.float32))


def satellite(folder, bands):
    """Bands [N, H, W, C] as GeoTIFF-like files, one an image."""
    folder.mkdir(parents=True)
    for i, image in enumerate(bands):
        tifffile.imwrite(folder / f"{i:02}.tif", image, photometric="minisblack", planarconfig="contig", metadata=None)
    return folder


# -- TIFF -----------------------------------------------------------------------------------------
def test_a_run_trains_on_eight_bands_of_which_it_sees_every_value(tmp_path, rng):
    bands = rng.integers(0, 4096, (12, 20, 24, 8), dtype=np.uint16)
    folder = satellite(tmp_path / "bands", bands)
    result = akssl_core.run("simsiam", data=str(folder), out=tmp_path / "run", **TINY)
    config = (result.run_dir / "config.yaml").read_text()
    assert all(line in config for line in ("name: tiff", "channels: 8", "white: 4095"))
    pixels = source_of(folder, "tiff").all().fetch(range(4))
    assert torch.equal(pixels.images, shown(bands[:4], 0, 4095).movedim(-1, 1))
    features = akssl_core.embed(result.run_dir)[0]
    expected = result.backbone(result.preprocess.pixels(pixels)).detach()
    assert torch.allclose(torch.as_tensor(np.asarray(features))[:4], expected, atol=1e-4, rtol=1e-4)


def test_sixteen_bit_colour_and_planes_and_floats_keep_their_range(tmp_path, rng):
    colour = rng.integers(0, 65536, (20, 24, 3), dtype=np.uint16)
    (tmp_path / "colour").mkdir()
    tifffile.imwrite(tmp_path / "colour" / "a.tif", colour, photometric="rgb")
    images = source_of(tmp_path / "colour", "tiff").all()
    assert torch.equal(images.fetch([0]).image(0), shown(colour, 0, 65535).movedim(-1, 0))
    (tmp_path / "cells").mkdir()
    cells = rng.integers(0, 1024, (5, 2, 20, 24), dtype=np.uint16)  # times, channels
    tifffile.imwrite(tmp_path / "cells" / "a.tif", cells, imagej=True, metadata={"axes": "TCYX"})
    source = source_of(tmp_path / "cells", "tiff")
    assert torch.equal(source.all().fetch([0]).image(0), shown(cells[0], 0, 1023))
    assert "1 of 1 files looked into have several pages, of which the first is used" in source.notes
    (tmp_path / "heights").mkdir()
    heights = rng.normal(0, 100, (20, 24)).astype(np.float32)
    tifffile.imwrite(tmp_path / "heights" / "a.tif", heights)
    source = source_of(tmp_path / "heights", "tiff")
    assert torch.equal(source.all().fetch([0]).image(0)[0], shown(heights, float(heights.min()), float(heights.max())))


@pytest.mark.parametrize("bits", [8, 16])
def test_what_pillow_reads_whole_is_left_to_it(tmp_path, rng, bits):
    for i in range(8):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=f"uint{bits}")
        tifffile.imwrite(tmp_path / f"{i}.tif", pixels, photometric="rgb")
    text = akssl_core.explain("simsiam", data=str(tmp_path), batch_size=4).text
    assert ("name: tiff" in text or "decoder.name" in text) == (bits == 16), text


def test_the_same_batches_from_every_way_in(tmp_path, rng):
    folder = satellite(tmp_path / "bands", rng.integers(0, 4096, (6, 20, 24, 5), dtype=np.uint16))
    (tmp_path / "bands.csv").write_text("path\n" + "".join(f"bands/{i:02}.tif\n" for i in range(6)))
    shutil.make_archive(str(tmp_path / "bands"), "zip", folder)
    with tarfile.open(tmp_path / "bands.tar", "w") as tar:
        tar.add(folder, "bands")
    whole = source_of(folder, "tiff").all().fetch(range(6)).images
    for name in ("bands.csv", "bands.zip", "bands.tar"):
        assert torch.equal(source_of(tmp_path / name, "tiff").all().fetch(range(6)).images, whole)
    akssl_core.prepare(folder, tmp_path / "bands.safetensors", image_size=24)
    prepared = akssl_core.build("data", "prepared", 24, path=tmp_path / "bands.safetensors")
    assert torch.equal(prepared.all().fetch(range(6)).images, whole)


# -- DICOM ----------------------------------------------------------------------------------------
CT = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": [40, -600], "WindowWidth": [400, 1500]}


def test_a_run_trains_on_dicom_through_its_window(tmp_path, rng, write_dicom):
    stored = rng.integers(0, 4096, (8, 20, 24), dtype=np.uint16)
    for i, pixels in enumerate(stored):
        write_dicom(tmp_path / "scans" / f"{i}.dcm", pixels, **CT)
    result = akssl_core.run("simsiam", data=str(tmp_path / "scans"), out=tmp_path / "run", **TINY)
    assert "window: file" in (result.run_dir / "config.yaml").read_text()
    images = source_of(tmp_path / "scans", "dicom").all()
    data = pydicom.dcmread(tmp_path / "scans" / "3.dcm")
    data.BitsStored, data.HighBit = 16, 15
    through = apply_windowing(apply_modality_lut(stored[3], data), data)  # by pydicom's own, to its range
    low, high = through.min(), through.max()
    assert torch.allclose(images.fetch([3]).image(0)[0], shown(through, low, high), atol=1e-3)
    assert images.channels == 1


def test_a_window_of_ones_own_values_themselves_and_inverted_ones(tmp_path, rng, write_dicom):
    stored = rng.integers(-500, 500, (20, 24), dtype=np.int16)
    write_dicom(tmp_path / "a" / "0.dcm", stored, **CT | {"RescaleIntercept": 0})
    one = source_of(tmp_path / "a", {"name": "dicom", "window": [0, 101]}).all().fetch([0]).image(0)[0]
    assert torch.allclose(one, shown(stored + 0.5, -50, 50), atol=1e-3)
    source = source_of(tmp_path / "a", {"name": "dicom", "window": "none"})
    assert torch.equal(source.all().fetch([0]).image(0)[0], shown(stored, stored.min(), stored.max()))
    assert source.decided["black"] == stored.min()
    write_dicom(tmp_path / "b" / "0.dcm", stored, PhotometricInterpretation="MONOCHROME1")
    whole = source_of(tmp_path / "b", "dicom").all().fetch([0]).image(0)[0]
    assert torch.allclose(whole, 255 - shown(stored, -32768, 32767), atol=1e-3)


def test_colour_frames_and_files_without_a_suffix(tmp_path, rng, write_dicom):
    colour = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
    write_dicom(tmp_path / "a" / "IM0001", colour)
    images = source_of(tmp_path / "a", "dicom").all()
    assert torch.equal(images.fetch([0]).image(0), torch.from_numpy(colour).movedim(-1, 0))
    frames = rng.integers(0, 256, (3, 20, 24), dtype=np.uint8)
    write_dicom(tmp_path / "b" / "0.dcm", frames, NumberOfFrames=3)
    source = source_of(tmp_path / "b", "dicom")
    assert torch.allclose(source.all().fetch([0]).image(0)[0], torch.from_numpy(frames[0]).float(), atol=1e-3)
    assert "1 of 1 files looked into have several pages, of which the first is used" in source.notes


# -- what is refused ------------------------------------------------------------------------------
def fetched(place, decoder):
    images = source_of(place, decoder, max_unreadable=0).all()
    return images.fetch(range(len(images)))


def test_damaged_files_are_told_by_name_and_stop_nothing_else(tmp_path, rng, write_dicom):
    folder = satellite(tmp_path / "bands", rng.integers(0, 4096, (6, 20, 24, 8), dtype=np.uint16))
    (folder / "cut.tif").write_bytes((folder / "00.tif").read_bytes()[:700])
    (folder / "text.tif").write_text("text")
    tifffile.imwrite(
        folder / "nan.tif", np.full((20, 24, 8), np.nan, np.float32), photometric="minisblack", planarconfig="contig"
    )
    scans = tmp_path / "scans"
    for i in range(6):
        write_dicom(scans / f"{i}.dcm", rng.integers(0, 99, (20, 24), dtype=np.uint16))
    write_dicom(scans / "bare.dcm", np.zeros((20, 24), np.uint16))
    data = pydicom.dcmread(scans / "bare.dcm")
    del data.PixelData, data.Rows
    data.save_as(scans / "bare.dcm")
    write_dicom(scans / "huge.dcm", np.zeros((20, 24), np.uint16), Rows=60000, Columns=60000)
    (scans / "cut.dcm").write_bytes((scans / "0.dcm").read_bytes()[:-400])
    (scans / "text.dcm").write_text("text")
    for place, decoder, bad in ((folder, "tiff", 3), (scans, "dicom", 4)):
        source = source_of(place, decoder, max_unreadable=0.5)
        images = source.all()
        images.fetch(range(len(images)))
        assert len(images.unreadable) == bad, images.unreadable
        assert all(reason and "\n" not in reason for reason in images.unreadable.values())
        with pytest.raises(DataError, match="cannot be read") as error:
            fetched(place, decoder)
        assert "\n" not in str(error.value)
    reasons = source.all().unreadable
    assert reasons["bare.dcm"] == "DICOM without pixels"
    assert "more than the limit" in reasons["huge.dcm"]
    assert images.unreadable == reasons


def test_mixed_bands_are_one_line(tmp_path, rng):
    folder = satellite(tmp_path / "bands", rng.integers(0, 4096, (6, 20, 24, 8), dtype=np.uint16))
    tifffile.imwrite(
        folder / "few.tif", np.zeros((20, 24, 5), np.uint16), photometric="minisblack", planarconfig="contig"
    )
    with pytest.raises(DataError, match=r"different numbers of channels: 5 \('few\.tif'\), 8 \('00\.tif'\)"):
        source_of(folder, "tiff")


ALL = [*checks("tiff", kind="decoder"), *checks("dicom", kind="decoder")]


@pytest.mark.parametrize("check", ALL, ids=lambda check: f"{check.subject.component.name}-{check}")
def test_conformance(check: Check) -> None:
    check()
