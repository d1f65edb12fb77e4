"""The architecture as a test: who may import whom, and who alone may do what."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from floor_plan import CORE, LEVEL, dotted, file_imports, layers, measure, nodes, room_imports
from floor_plan import room_of as room_of_module

PLUGINS = Path(__file__).parents[2] / "plugins"
NO_TORCH = {
    "errors", "hookspecs", "console", "config", "schedule", "settings", "plugins", "cli", "__init__",
}  # fmt: skip
WITH_TORCH = {"plugins.lookup"}  # imported by what needs torch anyway
HEAVY = {"torch", "torchvision", "numpy", "PIL", "safetensors"}
FILES = sorted(CORE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(CORE).parts[0].removesuffix(".py")


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def outside_imports(file: Path, *, top: bool = False) -> set[str]:
    """What a file imports from outside of the core; `top`: when it is imported, not when a function is called."""
    found = set()
    for node in nodes(tree(file), types=False, top=top):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module or "")
    return found


def test_every_room_has_a_place():
    assert {room_of(file) for file in FILES} == set(LEVEL)


@pytest.mark.parametrize("room", sorted(room_imports()))
def test_imports_go_one_way(room):
    for other in room_imports()[room]:
        assert LEVEL[other] < LEVEL[room], f"{room} must not import {other}"


def test_the_plan_is_small():
    found = measure()
    assert found.entries <= 31, "a concern has a room; a file at the top is a word that a plugin author uses"
    assert found.layers <= 16
    assert found.files_over_400 == 0
    assert found.cycles == []
    assert layers(room_imports(types=True)), "rooms stand in layers even with the imports for annotations"
    assert all(now <= most for now, most in zip(found.function_lines, (5, 18, 46), strict=True)), found.function_lines


def test_no_torch_where_help_and_listings_come_from():
    imports = file_imports(types=False, top=True)
    for file in FILES:
        module = dotted(file)
        if room_of(file) in NO_TORCH and module not in WITH_TORCH:
            assert not {name.partition(".")[0] for name in outside_imports(file, top=True)} & HEAVY, module
            assert {room_of_module(other) for other in imports[module]} <= NO_TORCH, module


ONLY = {
    "torch.distributed": {"dist"},
    "pluggy": {"hookspecs", "plugins"},
    "importlib.metadata": {"plugins"},
    "click": {"cli"},
    "sklearn": {"sklearn"},
    "pyarrow": {"data", "evaluation"},
}


@pytest.mark.parametrize("module", ONLY)
def test_only_one_room_uses(module):
    users = {room_of(f) for f in FILES if any(m == module or m.startswith(module + ".") for m in outside_imports(f))}
    assert users == ONLY[module]


WRITERS = {"rundir", "running", "cli", "plugins"}
WORDS = {
    r"\.backward\(": {"training", "testing", "evaluation"},
    r"\bisatty\(": {"console"},
    r"yaml\.(\w*load\w*|parse)\(": {"config"},
    r"autocast": {"training", "loss", "testing", "nn"},
    r"\bprint\(|click\.echo": {"cli"},
    r"\.write_bytes\(|\.write_text\(|\.open\(.w|os\.replace|\.unlink\(|rmtree": WRITERS,
    r"^import pickle|torch\.save|yaml\.load\(|[^.\w]eval\(": set(),
    r"torch\.load\b": {"running"},
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


NAMES = (
    r"simsiam|simclr|moco|byol|barlow|swav|dino|vicreg|nnclr|lejepa|ijepa|ibot|\bmae\b"
    r"|cifar|imagenet|fashion|stl10|resnet|vit_|\bvit\b"
)
OWN_PLACES = {"backbone", "data"}  # architectures and data sets
TABLE = CORE / "plugins" / "first_party.py"  # the table of distributions


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(CORE)))
def test_the_core_names_no_method_data_set_or_architecture(file):
    if room_of(file) not in OWN_PLACES and file != TABLE:
        code = _code(file)
        for text in ast.walk(ast.parse(code)):
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                assert _is_help(text.value) or not re.search(NAMES, text.value, re.IGNORECASE), text.value


def _is_help(text: str) -> bool:
    """Sentences for the user may give an example; a name that steers the program is a word."""
    return " " in text


TEMPLATES = CORE / "plugins" / "scaffold" / "templates"
PUBLIC = sorted([*PLUGINS.glob("*/src/**/*.py"), *PLUGINS.glob("*/tests/**/*.py"), *TEMPLATES.glob("*/*.py.tmpl")])


@pytest.mark.parametrize("file", PUBLIC, ids=lambda f: f.parent.name + "/" + f.name)
def test_plugins_use_public_names_alone(file):
    import akssl_core
    from akssl_core import dist, masks, nn, testing

    public = {"akssl_core": {*akssl_core.__all__, "sklearn"}, "akssl_core.testing": {*testing.__all__}}
    public |= {f"akssl_core.{module.__name__.rpartition('.')[2]}": {*dir(module)} for module in (dist, masks, nn)}
    source = re.sub(r"@@\{?\w+\}?", "name", file.read_text())
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("akssl_core"):
            assert node.module in public, node.module
            assert {alias.name for alias in node.names} <= public[node.module]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            assert not [name for name in names if name.startswith("akssl_core.")], names
            assert "src" not in file.parts or not [name for name in names if name.startswith("akssl_plugin")], names


@pytest.mark.parametrize("file", [*FILES, *PLUGINS.glob("*/src/**/*.py")], ids=lambda f: f.name)
def test_files_and_functions_are_short(file):
    assert len(file.read_text().splitlines()) <= 400
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef):
            start = node.body[1].lineno if ast.get_docstring(node) and len(node.body) > 1 else node.lineno
            assert (node.end_lineno or 0) - start <= 60, node.name
    assert file.stem != "utils"
