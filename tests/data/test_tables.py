"""Tables of image files and labels: what may stand in them, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from drawn_folders import assert_same_sources, folder, save

from akssl_core.errors import DataError

ROWS = [(f"{'cat' if i % 2 else 'dog'}/{i:02}.png", "cat" if i % 2 else "dog") for i in range(20)]


@pytest.fixture
def photos(tmp_path):
    for i, (name, _) in enumerate(ROWS):
        save(tmp_path / "photos" / name, (14 + i % 3, 12), seed=i)
    return tmp_path / "photos"


def write(path, rows=ROWS, head=("path", "label"), by=",", end="\n", start=b"", encoding="utf-8"):
    lines = [*([by.join(head)] if head else []), *(by.join(row) for row in rows)]
    path.write_bytes(start + (end.join(lines) + end).encode(encoding))
    return path


# -- what may stand in a table --------------------------------------------------------------------
FORMS = {
    "comma": {},
    "windows": {"rows": [(name.replace("/", "\\"), label) for name, label in ROWS], "end": "\r\n", "by": ";",
                "start": b"\xef\xbb\xbf"},
    "other order, a row twice, ./": {"rows": [*ROWS[::-1], (f"./{ROWS[3][0]}", ROWS[3][1])]},
    "other names, more columns": {"head": ("id", "File Name", "Class"), "by": "\t",
                                  "rows": [(str(i), *row) for i, row in enumerate(ROWS)]},
    "no header": {"head": ()},
    "no labels": {"head": (), "rows": [row[:1] for row in ROWS]},
    "quotes": {"rows": [(f'"{name}"', f'"{label}"') for name, label in ROWS]},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_table_shows_what_its_folder_shows(photos, form):
    table = write(photos / "t.csv", **FORMS[form])
    assert_same_sources(folder(photos, 12, cache_gb=0), folder(table, 12))


@pytest.mark.parametrize("by", [" ", "\t", ",", "  "])
def test_a_list_is_a_path_a_line_and_perhaps_a_label(photos, by):
    assert_same_sources(folder(photos, 12), folder(write(photos / "list.txt", head=(), by=by), 12))
    save(photos / "an image, taken.png")
    images = folder(write(photos / "list.lst", [("an image, taken.png", "7"), (ROWS[0][0], "3")], (), by), 12).all()
    assert [images.id_of(i) for i in range(2)] == ["an image, taken.png", "dog/00.png"]
    assert images.labels.tolist() == [1, 0]
    assert images.classes == ("3", "7")


def test_a_parquet_file_is_a_table(photos):
    pa = pytest.importorskip("pyarrow", reason="the extra 'parquet' is not installed")
    from pyarrow import parquet

    columns = {"pixels": [b"x"] * 20, "path": [name for name, _ in ROWS], "label": [label for _, label in ROWS]}
    parquet.write_table(pa.table(columns), photos / "t.parquet")
    assert_same_sources(folder(photos, 12), folder(photos / "t.parquet", 12))
    (photos / "t.parquet").write_bytes((photos / "t.parquet").read_bytes()[:-9])
    with pytest.raises(DataError, match=r"t\.parquet cannot be read"):
        folder(photos / "t.parquet")
    parquet.write_table(pa.table({"pixels": [b"x"]}), photos / "t.parquet")
    with pytest.raises(DataError, match="none of the 1 files named"):
        folder(photos / "t.parquet")


def test_parquet_without_its_reader_says_what_to_install(photos, monkeypatch):
    import sys

    (photos / "t.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"not installed: pip install 'akssl-core\[parquet\]'\. Or save it as CSV"):
        folder(photos / "t.parquet")


def test_labels_may_be_missing_or_numbers(photos):
    rows = [(name, str(i % 3) if i % 4 else "") for i, (name, _) in enumerate(ROWS)]
    expected = {name: int(label) if label else -1 for name, label in rows}
    for labels in (rows, [(name, label and f"{label}.0") for name, label in rows]):
        images = folder(write(photos / "t.csv", labels), 12).all()
        assert [expected[images.id_of(i)] for i in range(20)] == images.labels.tolist()
    assert -1 in images.labels
    bank, queries = folder(photos / "t.csv", 12).probe()
    assert len(bank) + len(queries) == sum(label >= 0 for label in expected.values())
    assert folder(photos / "t.csv", labels="none").labels is None


def test_columns_and_folder_are_settings(photos, tmp_path):
    rows = [(label, name, "x", "y") for name, label in ROWS]
    table = write(tmp_path / "t.csv", rows, ("kind", "where", "path", "label"))
    assert_same_sources(folder(photos, 12), folder(table, 12, image="where", label="kind", root=photos))
    with pytest.raises(DataError, match=r"data\.label: .*t\.csv has no column 'kindd'\. Did you mean 'kind'\? Columns"):
        folder(table, label="kindd")


# -- labels for a folder --------------------------------------------------------------------------
@pytest.mark.parametrize("key", [lambda name: f"photos/{name}", str, lambda name: name[4:], lambda name: name[4:6]])
def test_a_table_gives_the_images_of_a_folder_their_labels(photos, tmp_path, key):
    rows = [(key(name), f"k{int(name[4:6]) % 3}") for name, _ in ROWS[2:]] + [("gone.png", "k9"), ("99", "k9")]
    table = write(tmp_path / "labels.csv", rows, ("image_id", "label"))
    source = folder(photos, 12, labels=table)
    images = source.all()
    found = {images.id_of(i): int(images.labels[i]) for i in range(20)}
    assert found == {name: int(name[4:6]) % 3 if i >= 2 else -1 for i, (name, _) in enumerate(ROWS)}
    assert images.classes == ("k0", "k1", "k2")
    assert any("18 of 20 images have a row" in note for note in source.notes)
    assert any("2 rows of" in note and "name no image here" in note for note in source.notes)


def test_a_table_that_fits_no_image_is_refused(photos, tmp_path):
    with pytest.raises(DataError, match=r"data\.labels: .*names none of the images in .*photos"):
        folder(photos, labels=write(tmp_path / "labels.csv", [("x.png", "a")]))
    with pytest.raises(DataError, match=r"x\.png' has two labels, 'a' and 'b'"):
        folder(photos, labels=write(tmp_path / "labels.csv", [("x.png", "a"), ("x.png", "b")]))
    with pytest.raises(DataError, match="has no column of labels"):
        folder(photos, labels=write(tmp_path / "labels.csv", [("x.png",)], ("path",)))
    with pytest.raises(DataError, match="foldres cannot be read: No such file"):
        folder(photos, labels=tmp_path / "foldres")


# -- what is refused ------------------------------------------------------------------------------
BAD = {
    "none is there": ({"rows": [("1.png", "a")]}, r"none of the 1 files named in .* '1\.png' was looked for .*\.root"),
    "leaves the folder": ({"rows": [*ROWS, ("../x.png", "a")]}, r"t\.csv: '\.\./x\.png' is no path below .*\.root"),
    "absolute": ({"rows": [("/etc/passwd", "a")]}, "'/etc/passwd' is no path below"),
    "no path": ({"rows": [*ROWS, ("", "a")]}, "t.csv: '' is no path below"),
    "two labels": ({"rows": [*ROWS, (ROWS[0][0], "x")]}, "'dog/00.png' has two labels, 'dog' and 'x'"),
    "latin-1": ({"rows": [("é.png", "a")], "encoding": "latin-1"}, "is not UTF-8 from byte 11 on. Save it as UTF-8"),
    "utf-16": ({"encoding": "utf-16"}, "is not UTF-8 from byte 0 on"),
    "empty": ({"rows": [], "head": ()}, "has no rows"),
    "header alone": ({"rows": []}, "has no rows"),
    "a comma too many": ({"rows": [("a,b.png", "x")]}, "row 2 has more cells than the 2 under path, label"),
    "a quote too many": ({"rows": [('"a.png', "x")]}, "t.csv, line .*: .*Expected a CSV table"),
    "unknown columns": ({"head": ("a", "b"), "rows": [("x", "y")]}, "no column .* name images: a, b. Say .*image=NAME"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_told_in_a_line_and_nothing_is_written(photos, here, case):
    form, text = BAD[case]
    with pytest.raises(DataError, match=text) as caught:
        folder(write(photos / "t.csv", **form))
    assert "\n" not in str(caught.value)
    code, _, err = here("run", "simsiam", "--data", photos / "t.csv", "--out", "run")
    assert (code, "Traceback" in err, (photos.parent / "run").exists()) == (2, False, False)


def test_missing_files_count_as_unreadable(photos):
    rows = [*ROWS, ("gone.png", "cat"), ("gone.jpg", "cat")]
    with pytest.raises(DataError, match=r"2 of 22 files in .*t\.csv cannot be read.*gone\.jpg \(no such file\)"):
        folder(write(photos / "t.csv", rows), max_unreadable=0.04)
    images = folder(photos / "t.csv", max_unreadable=0.1).all()
    assert (len(images), images.unreadable) == (20, {"gone.png": "no such file", "gone.jpg": "no such file"})


# -- on the command line --------------------------------------------------------------------------
def test_a_run_takes_tables_labels_and_test_data(photos, tmp_path, here):
    few = ("--image-size", "12", "--batch-size", "8", "--epochs", "1", "--no-report")
    write(photos / "train.csv", ROWS[:14])
    write(photos / "test.csv", ROWS[14:])
    code, _, err = here("run", "simsiam", "--data", photos / "train.csv", "--test-data", photos / "test.csv", *few,
                        "--out", "run")  # fmt: skip
    assert code == 0, err
    told = (tmp_path / "run" / "manifest.json").read_text()
    assert json.loads(told)["data"]["images"] == 14
    assert '"knn_top1"' in told
    write(tmp_path / "labels.csv", [(name, f"k{i % 3}") for i, (name, _) in enumerate(ROWS)])
    code, out, err = here("explain", "simsiam", "--data", photos, "--labels", tmp_path / "labels.csv", *few[:4])
    assert code == 0, err
    assert "3 classes: k0, k1, k2" in out


def test_test_images_may_come_from_a_table(photos):
    rows = [*ROWS[:4], (ROWS[4][0], "")]
    bank, queries = folder(photos, 12, test=write(photos / "t.csv", rows)).probe()
    assert (len(bank), len(queries)) == (20, 4)
    assert torch.equal(queries.labels, torch.tensor([0, 0, 1, 1]))
    assert [queries.id_of(i) for i in range(4)] == ["cat/01.png", "cat/03.png", "dog/00.png", "dog/02.png"]
    with pytest.raises(DataError, match=r"t\.csv holds images in 'horse'; expected each in one of cat, dog"):
        folder(photos, test=write(photos / "t.csv", [(ROWS[0][0], "horse")]))
