"""Schemas as text: each field with its type, default, range and meaning, for help pages and READMEs."""

from __future__ import annotations

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from .schema import Ref, Schema

_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def type_name(annotation: Any) -> str:
    """A type as a user would say it: `number`, `whole number`, `a | b`, `name of a loss`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(args[0])
    if origin is Literal:
        return " | ".join(str(arg) for arg in args)
    if origin in (Union, types.UnionType):
        return " | ".join("null" if arg is types.NoneType else type_name(arg) for arg in args)
    if origin in (tuple, list):
        inner = [type_name(arg) for arg in args if arg is not Ellipsis]
        return f"list of {inner[0]}" if Ellipsis in args or origin is list else f"({', '.join(inner)})"
    if isinstance(annotation, type) and issubclass(annotation, Ref):
        article = "an" if annotation.kind[0] in "aeo" else "a"
        return f"name of {article} {annotation.kind}"
    if isinstance(annotation, type) and issubclass(annotation, Schema):
        return annotation.type_in_words
    plain = {int: "whole number", float: "number", str: "text", bool: "true | false", Path: "path"}
    return plain.get(annotation, "any value" if annotation is Any else "table" if origin else str(annotation))


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    return "null" if value is None else str(value.model_dump(mode="json") if isinstance(value, Schema) else value)


def _range(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(constraint, key):g}"
        for constraint in field.metadata
        for key, sign in _SIGNS.items()
        if getattr(constraint, key, None) is not None
    ]
    return ", ".join(bounds)


def count(number: int | range) -> str:
    """How many, as a number or `2 to 16`."""
    return str(number) if isinstance(number, int) else f"{number.start} to {number.stop - 1}"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Aligned columns of text; the last column is not padded."""
    everything = [list(header), *[list(line) for line in lines]]
    widths = [max(len(line[i]) for line in everything) for i in range(len(header))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in everything]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    cells = [list(header), ["---"] * len(header), *[[cell.replace("|", "\\|") for cell in line] for line in lines]]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


HEADER = ("setting", "type", "default", "range", "meaning")


def cells(schema: type[Schema]) -> list[tuple[str, ...]]:
    """The settings of a schema, in their declared order, as lines of a table."""
    return [
        (field.alias or name, type_name(field.annotation), _default(field), _range(field), field.description or "")
        for name, field in schema.model_fields.items()
    ]


def settings_table(schema: type[Schema]) -> str:
    """The settings of a schema as a Markdown table, their names as code."""
    return markdown(HEADER, [[f"`{name}`", *others] for name, *others in cells(schema)])
