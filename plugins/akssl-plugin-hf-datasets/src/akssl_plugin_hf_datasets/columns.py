"""Which column of a table holds the images, and which the labels."""

from __future__ import annotations

from typing import Any

from akssl_core import DataError, did_you_mean

from .words import listed

USUAL = ("image", "img", "images", "pixels", "picture", "photo")  # preferred where several columns hold images


def image_column(table: Any, asked: str | None) -> str:
    """The column with the images: the one that was asked for, the only one typed so, or the obvious one.

    Raises:
        DataError: no such column, no column that can hold images, or several.
    """
    import datasets  # type: ignore[import-untyped]

    found = {name: kind for name in table.column_names if (kind := _image_kind(table, name))}
    if asked is not None:
        _refuse_missing(table, asked, "image")
        if asked not in found and not _holds_paths(table, asked):
            raise DataError(
                f"data.image: column '{asked}' holds {_type_name(table, asked)}, no images. Columns with images: "
                f"{listed(found)}. {_EXPECTED}"
            )
        return asked
    typed = [name for name in found if isinstance(table.features[name], datasets.Image)]
    candidates = typed or list(found)
    usual = [name for name in USUAL if name in candidates]
    if not candidates:
        columns = (f"{name} ({_type_name(table, name)})" for name in table.column_names)
        raise DataError(f"data: no column holds images. Columns: {listed(columns)}. {_EXPECTED}")
    if len(candidates) > 1 and not usual:
        raise DataError(
            f"data: several columns hold images: {listed(candidates)}. Choose one: data.image={candidates[0]}"
        )
    return candidates[0] if len(candidates) == 1 else usual[0]


_EXPECTED = (
    "Expected the Image feature, a struct {bytes, path}, the bytes of image files, or uint8 arrays [H, W] or [H, W, C]."
)


def label_column(table: Any, asked: str | None, notes: list[str]) -> str | None:
    """The column with the labels: the one that was asked for, the only ClassLabel, or "label"; None for none.

    Raises:
        DataError: the column that was asked for does not exist or holds no labels.
    """
    import datasets

    if asked is not None:
        _refuse_missing(table, asked, "label")
        if not _holds_labels(table, asked):
            raise DataError(f"data.label: {_no_labels(table, asked)}")
        return asked
    typed: list[str] = [name for name in table.column_names if isinstance(table.features[name], datasets.ClassLabel)]
    if len(typed) == 1:
        return typed[0]
    if "label" in table.column_names and _holds_labels(table, "label"):
        return "label"
    if "label" in table.column_names:
        notes.append(f"labels not used: {_no_labels(table, 'label')}")
    elif typed:
        notes.append(f"labels not used: several columns hold classes: {listed(typed)}; choose one with data.label")
    return None


def _no_labels(table: Any, name: str) -> str:
    return f"column '{name}' holds {_type_name(table, name)}; expected ClassLabel, whole numbers or texts."


def _refuse_missing(table: Any, name: str, setting: str) -> None:
    if name not in table.column_names:
        hint = did_you_mean(name, table.column_names)
        raise DataError(f"data.{setting}: there is no column '{name}'.{hint} Columns: {listed(table.column_names)}.")


def _stored(table: Any, name: str) -> Any:
    """The Arrow type in which a column lies in memory."""
    import pyarrow as pa  # type: ignore[import-untyped]

    found = table.features.arrow_schema.field(name).type
    return found.storage_type if isinstance(found, pa.BaseExtensionType) else found


def _image_kind(table: Any, name: str) -> str | None:
    """How a column could hold images: "file", "bytes" or "array"; None: it cannot."""
    import datasets
    import pyarrow as pa

    feature, stored = table.features[name], _stored(table, name)
    if isinstance(feature, datasets.Image):
        return "file"
    if pa.types.is_struct(stored):
        fields = {stored.field(i).name for i in range(stored.num_fields)}
        return "file" if isinstance(feature, dict) and "bytes" in fields and fields <= {"bytes", "path"} else None
    if pa.types.is_binary(stored) or pa.types.is_large_binary(stored):
        return "bytes"
    depth = 0
    while pa.types.is_nested(stored) and not pa.types.is_struct(stored) and stored.num_fields == 1:
        stored, depth = stored.value_type, depth + 1
    return "array" if depth in (2, 3) and pa.types.is_uint8(stored) else None


def _holds_paths(table: Any, name: str) -> bool:
    import pyarrow as pa

    stored = _stored(table, name)
    return bool(pa.types.is_string(stored) or pa.types.is_large_string(stored))


def _holds_labels(table: Any, name: str) -> bool:
    import pyarrow as pa

    stored = _stored(table, name)
    tests = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
    return any(test(stored) for test in tests)


def _type_name(table: Any, name: str) -> str:
    """A column's type in a few words."""
    import datasets

    feature = table.features[name]
    if isinstance(feature, datasets.Value):
        return str(feature.dtype)
    text = str(_stored(table, name))
    return text if len(text) <= 60 else f"{text[:57]}..."
