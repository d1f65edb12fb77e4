"""Tables that name image files and their labels: CSV, lists, Parquet. What is wrong with one is a `DataError`."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from ..config.schema import DecoderRef, FilePath, Schema
from ..errors import DataError, did_you_mean, plain, visible
from .decode import SUFFIXES
from .decoders import FileDecoder
from .files import Files, FolderFiles, Label, few
from .scan import nearest_path

LISTS, TABLES = (".txt", ".lst"), (".csv", ".tsv", ".txt", ".lst", ".parquet")
IMAGES = ("path", "file", "filename", "image", "filepath", "imagepath", "imagefile", "img", "imageid", "id")
LABELS = ("label", "class", "target", "category", "classname", "labels")
LINE = re.compile(
    rf"(.+\.(?:npy|dcm|dicom|{'|'.join(suffix[1:] for suffix in sorted(SUFFIXES))}))(?:[\s,;]+(.*))?", re.IGNORECASE
)


class Reading(Schema):
    """How image files are read: those of a table, an archive or a folder."""

    image: str | None = Field(
        None,
        description="column of a table that names the images, or array of a .npz that holds them; null: the one with a "
        "usual name",
    )
    label: str | None = Field(
        None, description="column of a table, or array of a .npz, with the labels; null: the one with a usual name"
    )
    root: FilePath | None = Field(
        None, description="folder where the paths in a table begin, and which they stay in; null: that of the table"
    )
    decoder: DecoderRef | None = Field(
        None,
        description="what reads the files, of which those of its kind alone are taken: npy, dicom, tiff, or that of a "
        "plugin; null: Pillow, in a folder whose first files are of another kind what reads these",
    )

    @property
    def suffixes(self) -> frozenset[str]:
        """Of the files that are taken."""
        if self.decoder is None:
            return SUFFIXES
        assert issubclass(self.decoder.component, FileDecoder)
        return self.decoder.component.suffixes


def read_table(path: Path, reading: Reading) -> tuple[list[str], list[Label] | None]:
    """The images that a file names, and their labels, if it has some."""
    return picked(str(path), _parquet(path) if path.suffix.lower() == ".parquet" else _columns(path), reading)


def picked(place: str, columns: Mapping[str, Sequence[Any]], reading: Reading) -> tuple[list[str], list[Label] | None]:
    """The columns that name images and labels."""
    if not columns or not len(next(iter(columns.values()))):
        raise DataError(f"data: {place} has no rows; expected one an image.")
    image = chosen(columns, reading.image, IMAGES, f"image: {place}")
    if image is None and len(columns) > 1:
        names = few([*map(visible, columns)])
        raise DataError(f"data: no column of {place} is known to name images: {names}. Say which: data.image=NAME.")
    label = chosen(columns, reading.label, LABELS, f"label: {place}")
    cells = columns[image or next(iter(columns))]
    texts = ["" if cell is None else str(cell).strip() for cell in cells]
    return texts, None if label in (None, image) else as_labels(columns[label or ""])


def usual(names: Iterable[str], known: Sequence[str]) -> str | None:
    """The first of some known names that there is, however it is written."""
    found = {plain(str(name)): name for name in names}
    return next((found[name] for name in known if name in found), None)


def chosen(columns: Collection[str], asked: str | None, known: Sequence[str], where: str) -> str | None:
    """The column that was asked for, or the first with a usual name."""
    if asked is not None and asked not in columns:
        names = few([*map(visible, columns)], 20)
        raise DataError(f"data.{where} has no column '{asked}'.{did_you_mean(asked, columns)} Columns: {names}.")
    return asked or usual(columns, known)


def as_labels(cells: Sequence[Any]) -> list[Label]:
    """Texts, or whole numbers where all are; empty cells, not-a-numbers and -1 are unknown."""
    texts = [None if cell is None or cell != cell else str(cell).strip() or None for cell in cells]
    if all(re.fullmatch(r"-?\d{1,15}(\.0)?", text) for text in texts if text is not None):
        return [None if text is None or float(text) == -1 else int(float(text)) for text in texts]
    return list(texts)


def _columns(path: Path) -> dict[str, list[str]]:
    """The columns of a file of lines by name; Windows may have written it."""
    try:
        text = "" if os.path.exists(path) and not os.path.isfile(path) else path.read_text("utf-8-sig")  # of no pipe
    except UnicodeDecodeError as error:
        raise DataError(f"data: {path} is not UTF-8 from byte {error.start} on. Save it as UTF-8.") from error
    except (OSError, ValueError) as error:  # ValueError: of a path that cannot be
        near = nearest_path(path) if isinstance(error, FileNotFoundError) else None
        hint = f" Did you mean '{near}'?" if near else ""
        raise DataError(f"data: {path} cannot be read: {getattr(error, 'strerror', error)}.{hint}") from error
    first = text.lstrip().partition("\n")[0].strip()
    is_list = path.suffix.lower() in LISTS and bool(LINE.fullmatch(first) or not re.search(r"[,;\t]", first))
    rows = [_of_list(line) for line in text.split("\n") if line.strip()] if is_list else _of_csv(path, text, first)
    names = [cell.strip() for cell in rows[0]] if rows else []
    if is_list or any(map(LINE.fullmatch, names)):  # there is no header
        names, rows = ["path", "label"][: max(map(len, rows), default=0)], [[], *rows]
    if odd := next((number for number, row in enumerate(rows, 1) if len(row) > len(names)), None):
        cure = "A comma within a cell takes quotes around it; the first line names the columns."
        raise DataError(f"data: {path}, row {odd} has more cells than the {len(names)} under {few(names)}. {cure}")
    return {name: [row[i] if i < len(row) else "" for row in rows[1:]] for i, name in enumerate(names)}


def _of_list(line: str) -> list[str]:
    found = LINE.fullmatch(line.strip())
    return [cell for cell in found.groups() if cell] if found else [line.strip()]


def _of_csv(path: Path, text: str, first: str) -> list[list[str]]:
    reader = csv.reader(io.StringIO(text), delimiter=max(",;\t|", key=first.count), strict=True)
    try:
        return [row for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise DataError(f"data: {path}, line {reader.line_num}: {error}. Expected a CSV table.") from error


def _parquet(path: Path) -> dict[str, list[Any]]:
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]
    except ImportError as error:
        cure = "pip install 'akssl-core[parquet]'. Or save it as CSV."
        raise DataError(f"data: {path} takes pyarrow, which is not installed: {cure}") from error
    try:
        columns: dict[str, list[Any]] = parquet.read_table(path).to_pydict()
    except (OSError, ValueError, ArrowException) as error:
        raise DataError(f"data: {path} cannot be read: {' '.join(str(error).split()):.200}.") from error
    return columns


# -- what they name -------------------------------------------------------------------------------
def table_files(path: Path, reading: Reading) -> FolderFiles:
    """The files that a table names, in the order of a folder, with its labels."""
    (texts, labels), root = read_table(path, reading), reading.root or path.parent
    found: dict[str, Label] = {}
    for text, label in zip(texts, labels or [None] * len(texts), strict=True):
        name = _inside(root, text)
        if name is None:
            cure = "Paths in a table begin in its folder and stay there; data.root=DIR names another folder."
            raise DataError(f"data: {path}: '{visible(text):.200}' is no path below {root}. {cure}")
        _label(found, name, label, path)
    there = sorted(name for name in found if os.path.isfile(root / name))
    if not there:
        raise DataError(
            f"data: none of the {len(found)} files named in {path} is there: '{visible(next(iter(found)))}' was looked "
            f"for in {root}. data.root=DIR names the folder where the paths begin."
        )
    files = FolderFiles(root, there, labels and [found[name] for name in there])
    files.place, files.broken = str(path), {name: "no such file" for name in found.keys() - set(there)}
    if len(texts) > len(found):
        files.notes = [f"{len(texts) - len(found)} rows of {path} name an image again"]
    return files


def _label(found: dict[str, Label], name: str, label: Label, path: Path) -> None:
    if (other := found.setdefault(name, label)) != label:
        both = f"has two labels, '{other}' and '{label}'; expected one (several an image are not supported)"
        raise DataError(f"data: {path}: '{visible(name)}' {both}.")


def _inside(root: Path, text: str) -> str | None:
    """The path relative to the folder that a cell means, with `/` between folders; None: it leaves the folder."""
    begin = os.path.join(os.path.normpath(root), "")
    path = os.path.normpath(os.path.join(begin, text))
    if "\\" in text and not os.path.exists(path):  # written on Windows
        path = os.path.normpath(os.path.join(begin, text.replace("\\", "/")))
    return path[len(begin) :].replace(os.sep, "/") if path.startswith(begin) and "\0" not in path else None


def matched(path: Path, reading: Reading, files: Files) -> tuple[list[Label], list[str]]:
    """The label that a table has for each file, by path or by name without suffix, None where it has none; notes."""
    (texts, labels), root = read_table(path, reading), reading.root or path.parent
    if labels is None:
        raise DataError(f"data.labels: {path} has no column of labels. Say which it is: data.label=NAME.")
    keys: tuple[Callable[[str], str], ...] = (lambda text: os.path.normpath(root / text), os.path.normpath, _stem)
    paths = [os.path.normpath(files.path(row) or name) for row, name in enumerate(files.names)]
    for key, names in zip(keys, (paths, files.names, [*map(_stem, files.names)]), strict=True):
        rows: dict[str, Label] = {}
        for text, label in zip(texts, labels, strict=True):
            _label(rows, key(text.replace("\\", "/")), label, path)
        if len(set(names)) == len(names) and (found := rows.keys() & set(names)):
            lost = few(sorted(rows.keys() - found), 3)
            notes = [f"{len(found)} of {len(names)} images have a row in {path}"]
            notes += [f"{len(rows) - len(found)} rows of {path} name no image here: {lost}"] if lost else []
            return [rows.get(name) for name in names], notes
    return [None] * len(files.names), [f"{path} names none of the images in {files.place}"]


def _stem(name: str) -> str:
    return os.path.splitext(os.path.basename(name))[0]
