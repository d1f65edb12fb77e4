"""A new plugin from a template: a complete distribution whose component works and whose tests pass."""

from __future__ import annotations

import ast
import builtins
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from ...config.registry import ALIASES
from ...errors import ConfigError, PluginError, did_you_mean, plain
from .. import first_party as own

__all__ = ["KINDS", "create"]

KINDS = ("method", "backbone", "augmentation", "loss", "dataset", "logger")  # of which there are templates
PREFIX = "akssl-plugin-"
LONGEST = 40
VALID = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
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
    kind, names = _checked_kind(kind), named(name)
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
        "pip_install": "pip install" if own.ON_INDEX else "pip install --find-links wheels",
        "wheels": "" if own.ON_INDEX else "  # akssl-core's, which `make wheels` in its clone writes",
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


# -- the name in all the forms in which its distribution bears it --------------------------------
@dataclass(frozen=True, slots=True)
class Names:
    """One name: `my-method`, `akssl-plugin-my-method`, `akssl_plugin_my_method`, `my_method` and `MyMethod`."""

    component: str
    distribution: str
    module: str
    stem: str
    title: str


def _checked_kind(kind: str) -> str:
    """The kind, if there is a template of it.

    Raises:
        ConfigError: there is none; with the nearest right one.
    """
    if kind in KINDS:
        return kind
    meant = [ours for ours, registered in ALIASES.items() if registered == kind]
    hint = f" Did you mean '{meant[0]}'?" if meant else did_you_mean(kind, KINDS)
    raise ConfigError(f"kind: there is no template for '{kind}'.{hint} Kinds: {', '.join(KINDS)}.")


def named(name: str) -> Names:
    """All forms of the name of a new plugin; `My_Method`, `My Method`, `akssl-plugin-my-method` are one name.

    Raises:
        ConfigError: it cannot be the name of a distribution.
        PluginError: it belongs to one of our own packages: two claims of one name make both unusable.
    """
    component = re.sub(r"[-_\s]+", "-", name.lower()).removeprefix(PREFIX)
    if not VALID.fullmatch(component) or len(component) > LONGEST:
        left = re.sub(r"[^a-z0-9]+", "-", component).lstrip("-0123456789")[:LONGEST].rstrip("-")
        raise ConfigError(
            f"name: '{name}' cannot name a distribution; use at most {LONGEST} letters, digits and '-', and begin with "
            f"a letter.{f' Did you mean {left!r}?' if left else ''}"
        )
    taken = {plain(one): owner for table in own.PROVIDERS.values() for one, owner in table.items()}
    taken |= {plain(owner.removeprefix(PREFIX)): owner for owner in taken.values()}
    if owner := taken.get(plain(component)):
        raise PluginError(
            f"name: '{component}' is taken by {owner}. Choose another name, or install that one: {own.install(owner)}"
        )
    words, distribution = component.split("-"), PREFIX + component
    title = "".join(word.capitalize() for word in words)
    return Names(component, distribution, distribution.replace("-", "_"), "_".join(words), title)
