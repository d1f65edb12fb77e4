"""Names that texts recommend are public, and every field of a public class is documented."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap

import pytest
from floor_plan import CORE

import akssl_core
from akssl_core import Schema

OPEN = {f"akssl_core.{module}" for module in ("nn", "masks", "dist", "sklearn", "testing")}
FILES = sorted(CORE.rglob("*.py"))
PARSED = {file: ast.parse(file.read_text()) for file in FILES}
CLASSES = [value for name in akssl_core.__all__ if inspect.isclass(value := getattr(akssl_core, name))]


def is_public(path: str) -> bool:
    """Whether `akssl_core.a.b` can be had by names that are public."""
    parts = path.split(".")
    place = ".".join(parts[:2])
    if place in OPEN:
        return len(parts) == 2 or hasattr(importlib.import_module(place), parts[2])
    return parts[1] in {*akssl_core.__all__, "__version__", "__main__"}


def texts(tree: ast.AST) -> list[str]:
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def messages(tree: ast.AST) -> list[str]:
    """The texts of errors that are raised."""
    raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc is not None]
    return [text for error in raised for text in texts(error)]


def defined(tree: ast.Module) -> set[str]:
    return {n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}


HOOKS = defined(PARSED[CORE / "hookspecs.py"])
PRIVATE = set[str]().union(*(defined(tree) for tree in PARSED.values())) - set(akssl_core.__all__) - HOOKS


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CORE)))
def test_texts_recommend_public_names(file):
    for text in texts(PARSED[file]):
        for path in re.findall(r"\bakssl_core(?:\.[A-Za-z_]\w*)+", text):
            assert is_public(path), f"{path} is not public: {text!r}"
        for path in re.findall(r"\bfrom (akssl_core\.[\w.]+) import", text):
            assert path in OPEN, f"{path} is not public: {text!r}"
    for text in messages(PARSED[file]):
        named = {name for quoted in re.findall(r"`([^`]+)`", text) for name in re.findall(r"[A-Za-z_]\w*", quoted)}
        called = set(re.findall(r"\b([A-Za-z_]\w*)\(", text))
        assert not (named | called) & PRIVATE, f"a message names what is not public: {text!r}"


def test_private_names_are_seen():
    assert not is_public("akssl_core.data.Arrays")
    assert is_public("akssl_core.nn.EMA")
    assert not is_public("akssl_core.nn.no_such_block")


def own_fields(cls: type) -> list[str]:
    """The attributes that a class adds to its bases and has types for, without private ones."""
    inherited = {name for base in cls.__mro__[1:] for name in inspect.get_annotations(base)}
    if dataclasses.is_dataclass(cls):
        names = [field.name for field in dataclasses.fields(cls)]
    elif issubclass(cls, Schema):
        names = [name for name, field in cls.model_fields.items() if not field.description]
    else:
        names = list(inspect.get_annotations(cls))
    return [name for name in names if name not in inherited and not name.startswith("_")]


def documented(cls: type) -> set[str]:
    """The attributes with a text under them, and those that the class's own text names in backquotes."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    under = {
        node.target.id
        for node, after in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    }
    return under | set(re.findall(r"`(\w+)`", cls.__doc__ or ""))


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if own_fields(cls)], ids=lambda cls: cls.__name__)
def test_fields_of_public_classes_are_documented(cls):
    assert set(own_fields(cls)) <= documented(cls)
