"""The architecture as a test: who may import whom, and who alone may do what."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

CORE = Path(__file__).parents[1] / "akssl_core"
PLUGINS = Path(__file__).parents[1] / "plugins"
LAYERS = (
    {"errors", "dist", "hashing", "hookspecs", "first_party", "allocator", "convolution", "console"},
    {"config", "schedule", "files", "batch_norm", "interrupt", "sharding", "yaml_text"},
    {"registry", "discovery", "changes", "processes"},
    {"plugins"},
    {"listing"},
    {"data", "nn"},
    {"backbone", "loss", "augment"},
    {"method", "custom"},
    {"optim", "evaluation", "rundir"},
    {"callbacks", "product"},
    {"engine"},
    {"resolve", "api", "faults", "watch"},
    {"rules"},
    {"plan"},
    {"samples", "report", "cache", "exporting", "trained", "estimate"},
    {"training", "embedding", "judge"},
    {"launch"},
    {"describe", "testing", "scaffold", "sklearn", "doctor"},
    {"comparison"},
    {"sweeps"},
    {"cli", "__init__", "__main__"},
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
ABOVE_PLUGINS = {
    "api",
    "plan",
    "resolve",
    "launch",
    "cli",
    "__init__",
    "product",
    "exporting",
    "sweeps",
    "testing",
    "listing",
    "trained",
}  # may use the registry
NO_TORCH = {
    "errors", "hookspecs", "first_party", "console", "config", "schedule", "registry", "discovery", "plugins",
    "listing", "describe", "cli", "scaffold", "yaml_text",
    "__init__",
}  # fmt: skip
FILES = sorted(CORE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(CORE).parts[0].removesuffix(".py")


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def run_time_imports(file: Path, *, top: bool = False) -> list[tuple[str, int]]:
    """(dotted module, relative level) of each import that runs; those for annotations alone are left out."""
    found: list[tuple[str, int]] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if top and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            found.extend((module, node.level) for module in modules)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree(file))
    return found


def core_imports(file: Path, *, top: bool = False) -> set[str]:
    """The rooms of the core that a file imports."""
    depth = len(file.relative_to(CORE).parts)
    return {module.partition(".")[0] for module, level in run_time_imports(file, top=top) if level == depth}


def outside_imports(file: Path) -> set[str]:
    return {module for module, level in run_time_imports(file) if level == 0}


def test_every_room_has_a_place():
    assert {room_of(file) for file in FILES} == set(LEVEL)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(CORE)))
def test_imports_go_one_way(file):
    room = room_of(file)
    for other in core_imports(file):
        assert LEVEL[other] <= LEVEL[room], f"{room} must not import {other}"
        if other != room and LEVEL[other] == LEVEL[room]:
            allowed = {("schedule", "config")}
            assert (room, other) in allowed, f"{room} and {other} stand side by side"
        if other in ("registry", "plugins") and room not in ("registry", "plugins"):
            assert room in ABOVE_PLUGINS, f"{room} must not know the registry at run time"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(CORE)))
def test_no_torch_where_help_and_listings_come_from(file):
    if room_of(file) in NO_TORCH:
        top = {module.partition(".")[0] for module, level in run_time_imports(file, top=True) if level == 0}
        assert not top & {"torch", "torchvision", "numpy", "PIL", "safetensors"}
        assert core_imports(file, top=True) <= NO_TORCH


ONLY = {
    "torch.distributed": {"dist", "processes", "sharding"},
    "pluggy": {"hookspecs", "plugins"},
    "importlib.metadata": {"discovery"},
    "click": {"cli"},
    "sklearn": {"sklearn"},
    "pyarrow": {"embedding"},
}


@pytest.mark.parametrize("module", ONLY)
def test_only_one_room_uses(module):
    users = {room_of(f) for f in FILES if any(m == module or m.startswith(module + ".") for m in outside_imports(f))}
    assert users == ONLY[module]


WRITERS = {"rundir", "files", "launch", "training", "cli", "scaffold"}
WORDS = {
    r"\.backward\(": {"engine", "testing", "judge"},
    r"autocast": {"engine", "loss", "convolution", "testing"},
    r"\bprint\(|click\.echo": {"cli"},
    r"\.write_bytes\(|\.write_text\(|\.open\(.w|os\.replace|\.unlink\(|rmtree": WRITERS,
    r"^import pickle|torch\.save|torch\.load\b|yaml\.load\(|[^.\w]eval\(": set(),
}


@pytest.mark.parametrize("pattern", WORDS)
def test_only_these_rooms_say(pattern):
    users = {room_of(f) for f in FILES if re.search(pattern, _code(f), re.MULTILINE)}
    assert users <= WORDS[pattern]


def _code(file: Path) -> str:
    """The source without comments and docstrings."""
    return ast.unparse(_without_docstrings(tree(file)))


def _without_docstrings(module: ast.Module) -> ast.Module:
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return module


NAMES = r"simsiam|simclr|moco|byol|barlow|swav|dino|cifar|imagenet|fashion|stl10|resnet|vit_|\bvit\b"
OWN_PLACES = {"backbone", "data", "first_party"}  # architectures, data sets and the table of distributions


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(CORE)))
def test_the_core_names_no_method_data_set_or_architecture(file):
    if room_of(file) not in OWN_PLACES:
        code = _code(file)
        for text in ast.walk(ast.parse(code)):
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                assert _is_help(text.value) or not re.search(NAMES, text.value, re.IGNORECASE), text.value


def _is_help(text: str) -> bool:
    """Sentences for the user may give an example; a name that steers the program is a word."""
    return " " in text


@pytest.mark.parametrize("file", sorted(PLUGINS.glob("*/src/**/*.py")), ids=lambda f: f.parent.name + "/" + f.name)
def test_plugins_use_public_names_alone(file):
    import akssl_core

    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("akssl_core"):
            assert node.module in ("akssl_core", "akssl_core.nn", "akssl_core.testing"), node.module
            if node.module == "akssl_core":
                assert {alias.name for alias in node.names} <= set(akssl_core.__all__)
        if isinstance(node, ast.ImportFrom | ast.Import) and node.__class__ is ast.Import:
            assert not any(alias.name.startswith("akssl_plugin") for alias in node.names)


@pytest.mark.parametrize("file", [*FILES, *PLUGINS.glob("*/src/**/*.py")], ids=lambda f: f.name)
def test_files_and_functions_are_short(file):
    assert len(file.read_text().splitlines()) <= 400
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef):
            start = node.body[1].lineno if ast.get_docstring(node) and len(node.body) > 1 else node.lineno
            assert (node.end_lineno or 0) - start <= 60, node.name
    assert file.stem != "utils"
