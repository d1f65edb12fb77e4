"""A new plugin from a template: a complete distribution whose component works and whose tests pass."""

from __future__ import annotations

import ast
import builtins
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template

from ...config.registry import ALIASES
from ...errors import ConfigError
from .names import KINDS, Names, checked_kind, named

__all__ = ["KINDS", "create"]

TEMPLATES = Path(__file__).parent / "templates"
SUFFIX = ".tmpl"  # keeps tools that look for Python or TOML away from what is neither yet
SOURCE, TESTS = "src/@@module/__init__.py", "tests/test_@@stem.py"
COMMON = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "LICENSE": "LICENSE",
    "gitignore": ".gitignore",
    "test.yml": ".github/workflows/test.yml",
    "publish.yml": ".github/workflows/publish.yml",
    "py.typed": "src/@@module/py.typed",
}  # template -> file of the distribution
OWN = {"plugin.py": SOURCE, "tests.py": TESTS}  # the same, in the folder of each kind


class _Template(Template):
    """A template with `@@name` and `@@{name}`, which mean nothing in Python, YAML, TOML or Markdown."""

    delimiter = "@@"


def create(name: str, kind: str = "method", parent: Path = Path(".")) -> Path:
    """Write a new plugin, ready to install and to test, into `parent / "akssl-plugin-NAME"`; returns that folder.

    All of its files are written, or none.

    Args:
        name: what users will type; letters, digits and `-`.
        kind: "method", "backbone", "augmentation", "loss", "dataset" or "logger".
        parent: the folder that gets the new one.

    Raises:
        ConfigError: the name or the kind cannot be used, or the folder exists; nothing is overwritten.
        PluginError: the name belongs to one of our own packages.
    """
    kind, names = checked_kind(kind), named(name)
    folder = parent / names.distribution
    if folder.exists():
        raise ConfigError(f"{folder} exists already and is left as it is. Choose another name, or move it away.")
    files = _rendered(kind, names)
    _refuse_homonym(names, files)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{names.distribution}-", dir=parent) as draft:
            for path, text in files.items():
                target = Path(draft) / names.distribution / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text, encoding="utf-8")
            (Path(draft) / names.distribution).rename(folder)
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror}. Choose another folder.") from error
    return folder


def _rendered(kind: str, names: Names) -> dict[str, str]:
    """The text of each file of the distribution by its path."""
    values = {
        "name": names.component,
        "distribution": names.distribution,
        "module": names.module,
        "stem": names.stem,
        "class": names.title,
        "kind": kind,
        "a_kind": f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}",
        "registry_kind": ALIASES.get(kind, kind),
    }
    values |= {part: _filled(kind, f"{part}.md", values).strip() for part in ("use", "settings")}
    files = {target: _filled("common", source, values) for source, target in COMMON.items()}
    files |= {target: _filled(kind, source, values) for source, target in OWN.items()}
    return {_Template(target).substitute(values): text for target, text in files.items()}


def _filled(folder: str, name: str, values: Mapping[str, str]) -> str:
    """One template with its placeholders filled in; an unknown one is an error of ours."""
    text = (TEMPLATES / folder / f"{name}{SUFFIX}").read_text(encoding="utf-8")
    return _Template(text).substitute(values)


def _refuse_homonym(names: Names, files: Mapping[str, str]) -> None:
    """Refuse a name whose class would hide something that its own module or tests use."""
    sources = [text for path, text in files.items() if path.endswith(".py")]
    if names.title in dir(builtins) or any(names.title in _imported(text, beside=names.module) for text in sources):
        raise ConfigError(
            f"name: '{names.component}' would make a class {names.title}, and the plugin uses another of that name; "
            f"add a word, as in 'my-{names.component}'."
        )


def _imported(source: str, *, beside: str) -> Iterator[str]:
    """The names that a module imports, except those from the module `beside` it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.module != beside):
            yield from (alias.asname or alias.name for alias in node.names)
