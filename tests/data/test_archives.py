"""The same images from a folder, a table, a zip and a tar are the same batches; archives that are bad are refused."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile

import pytest
import torch
from drawn_folders import assert_same_sources, folder, save
from prepared_files import write_photos

import akssl_core
from akssl_core.data import Loader
from akssl_core.errors import DataError


@pytest.fixture
def photos(tmp_path):
    """Ragged photos of several modes in two classes, two of them unreadable."""
    write_photos(tmp_path / "photos")
    (tmp_path / "photos" / "dog" / "folder.png").rmdir()
    return tmp_path / "photos"


def names(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def as_table(root, to):
    rows = [f"{name};{name.split('/')[0]}" for name in names(root)[::-1]]
    (root / "t.csv").write_bytes(("\ufefffile;class\r\n" + "\r\n".join(rows)).encode())
    return root / "t.csv"


def as_zip(root, to, method=zipfile.ZIP_DEFLATED, begin="photos/"):
    with zipfile.ZipFile(to / "p.zip", "w", method) as archive:
        archive.writestr("__MACOSX/photos/._x.png", b"")
        for name in names(root)[::-1]:
            archive.write(root / name, begin + name)
    return to / "p.zip"


def as_tar(root, to, begin="./photos/", form=tarfile.PAX_FORMAT):
    with tarfile.open(to / "p.tar", "w", format=form) as archive:
        archive.add(root, begin)
    return to / "p.tar"


def as_shards(root, to):
    (to / "shards").mkdir()
    for k in range(3):
        with tarfile.open(to / "shards" / f"{k}.tar", "w") as archive:
            for name in names(root)[k::3]:
                archive.add(root / name, name)
    return to / "shards"


FORMS = {
    "table": as_table,
    "zip": as_zip,
    "stored zip": lambda root, to: as_zip(root, to, zipfile.ZIP_STORED, ""),
    "tar": as_tar,
    "GNU tar": lambda root, to: as_tar(root, to, ".", tarfile.GNU_FORMAT),
    "shards": as_shards,
    "pattern of shards": lambda root, to: as_shards(root, to) / "?.tar",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_batches_over_two_epochs_and_after_a_stop(photos, tmp_path, form):
    sources = [folder(path, 16, max_unreadable=0.2) for path in (photos, FORMS[form](photos, tmp_path))]
    assert_same_sources(*sources)
    seen = []
    for source in sources:
        loader = Loader(source.train(), 8, seed=5)
        whole = [batch for epoch in range(2) for batch in loader.epoch(epoch)]
        again = list(Loader(source.train(), 8, seed=5).epoch(1, start=2))
        assert all(torch.equal(a[1], b[1]) for a, b in zip(again, whole[len(whole) // 2 + 2 :], strict=True))
        seen.append([*whole, *again])
    for (a, i, k), (b, j, m) in zip(*seen, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.sizes, b.sizes)
        assert torch.equal(i, j)
        assert torch.equal(k, m)


def test_a_run_goes_on_with_the_same_images_in_another_form(photos, tmp_path):
    data = {"name": "folder", "path": str(photos), "max_unreadable": 0.2}
    akssl_core.run("simsiam", data=data, steps=3, image_size=12, batch_size=8, out=tmp_path / "a", report=False)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    weights = []
    for name, path in (("a", photos), ("b", as_shards(photos, tmp_path))):
        with pytest.warns(UserWarning, match="resumed with other settings"):
            run = akssl_core.resume(tmp_path / name, data={**data, "path": str(path)}, steps=6, report=False)
        weights.append(run.backbone.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


# -- WebDataset's layout --------------------------------------------------------------------------
def shard(path, samples):
    with tarfile.open(path, "w") as archive:
        for name, data in samples:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def picture(seed, to):
    return save(to / "one.png", (14, 12), seed=seed).read_bytes()


@pytest.mark.parametrize("unique", [True, False])
def test_samples_have_their_labels_beside_them(tmp_path, unique):
    (tmp_path / "s").mkdir()
    for k in range(2):
        samples = []
        for i in range(6):
            key = f"{6 * k * unique + i:04}"
            label = [(f"{key}.cls", b"%d\n" % (i % 3))] if i else []
            samples += [(f"{key}.left.png", picture(6 * k + i, tmp_path)), *label, (f"{key}.json", b"{}")]
        shard(tmp_path / "s" / f"{k}.tar", samples)
    images = folder(tmp_path / "s", 12).all()
    assert images.labels.tolist() == [-1, 1, 2, 0, 1, 2] * 2
    assert images.id_of(7) == ("0007.left.png" if unique else "1.tar/0001.left.png")
    expected = folder(save(tmp_path / "f" / "x.png", (14, 12), seed=7).parent, 12).all()
    assert torch.equal(images.fetch([7]).images, expected.fetch([0]).images)


def test_shards_of_equal_names_are_no_classes(tmp_path):
    for k in range(2):
        shard(tmp_path / f"{k}.tar", [(f"{i}.png", picture(i, tmp_path)) for i in range(6)])
    images = folder(tmp_path / "?.tar", 12).all()
    assert (len(images), images.labels, images.id_of(6)) == (12, None, "1.tar/0.png")


# -- what is refused ------------------------------------------------------------------------------
def test_a_cut_or_damaged_tar_is_told(tmp_path, photos, here):
    whole = as_tar(photos, tmp_path).read_bytes()
    ends = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for size in (len(whole) // 2, len(whole) // 2 // 512 * 512, ends, 100, 0):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"cut\.tar is (cut short or damaged after \d+ files|no tar archive that)"):
            folder(tmp_path / "cut.tar")
    code, _, err = here("run", "simsiam", "--data", tmp_path / "cut.tar", "--out", "run")
    assert (code, "Traceback" in err, (tmp_path / "run").exists()) == (2, False, False)
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 // 512 * 512] + b"x" * 4096)
    with pytest.raises(DataError, match="cut short or damaged"):
        folder(tmp_path / "cut.tar")


def test_a_cut_or_damaged_zip_is_told(tmp_path, photos):
    whole = as_zip(photos, tmp_path).read_bytes()
    for size in (len(whole) - 30, len(whole) // 2, 0):
        (tmp_path / "cut.zip").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"cut\.zip is no zip archive, or cut short"):
            folder(tmp_path / "cut.zip")
    damaged = bytearray(whole)
    for place in range(200, 20_000, 100):
        damaged[place] ^= 255
    (tmp_path / "bad.zip").write_bytes(damaged)
    images = folder(tmp_path / "bad.zip", 12, max_unreadable=1.0).all()
    images.fetch(range(len(images)))
    assert any("CRC" in why or "decompressing" in why for why in images.unreadable.values())


@pytest.mark.parametrize("name", ["../../up.png", "a/../../up.png", "..\\\\up.png"])
def test_an_archive_that_leads_elsewhere_is_not_read(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "h.zip", "w") as archive:
        archive.writestr("ok.png", picture(0, tmp_path))
        archive.writestr(name, b"x")
    shard(tmp_path / "h.tar", [("ok.png", picture(0, tmp_path)), (name.replace("\\", "/"), b"x")])
    for suffix in ("zip", "tar"):
        with pytest.raises(DataError, match=r"holds '\.\./.*up\.png', a path that leaves the archive; it is not read"):
            folder(tmp_path / f"h.{suffix}")


def test_links_and_entries_that_expand_are_named_and_never_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "h.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(8):
            archive.writestr(f"/ok/{i}.png", picture(i, tmp_path))
        archive.writestr("bomb.png", bytes(2**26 + 1))
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with tarfile.open(
        shard(tmp_path / "h.tar", [(f"/ok/{i}.png", picture(i, tmp_path)) for i in range(8)]), "a"
    ) as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    for suffix, expected in (
        ("zip", {"bomb.png": "bytes that expand to", "link.png": "a link"}),
        ("tar", {"link.png": "a link"}),
    ):
        images = folder(tmp_path / f"h.{suffix}", 12, max_unreadable=1.0).all()
        images.fetch(range(len(images)))
        assert images.unreadable.keys() == expected.keys()
        assert all(why in images.unreadable[name] for name, why in expected.items())
        assert images.id_of(0) == "ok/0.png"
        with pytest.raises(DataError, match=r"data\.max_unreadable"):
            folder(tmp_path / f"h.{suffix}", 12, max_unreadable=0)


def test_an_encrypted_zip_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "e.zip", "w") as archive:
        archive.writestr("a.png", picture(0, tmp_path))
    data = bytearray((tmp_path / "e.zip").read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "e.zip").write_bytes(data)
    with pytest.raises(DataError, match=r"holds no image files\. Unreadable ones: a\.png \(encrypted\)"):
        folder(tmp_path / "e.zip")


def test_what_is_compressed_as_a_whole_or_of_another_kind_is_told(tmp_path):
    (tmp_path / "x.tar.gz").touch()
    with pytest.raises(DataError, match=r"x\.tar\.gz' is a file; expected .* an archive \(\.zip, \.tar\)"):
        folder(tmp_path / "x.tar.gz")
    (tmp_path / "x.tar").write_bytes(b"text" * 500)
    with pytest.raises(DataError, match="no tar archive that can be read"):
        folder(tmp_path / "x.tar")
    (tmp_path / "x.doc").touch()
    with pytest.raises(DataError, match=r"expected a folder of images, a table \(\.csv, \.\.\.\) or an archive"):
        folder(tmp_path / "x.doc")
