"""The sections of records: notes, settings with their origin, environment, unreadable files, how to use the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..config.schema import leaves
from .files import RunFiles, text_of
from .html import Html, details, join, section, table, tag

DEFAULT = "default"  # the origin of a value that nobody decided
MOST_FILES = 200


def use(run: RunFiles) -> list[Html]:
    """Three lines that load the trained backbone."""
    if not run.has_backbone:
        return []
    code = (
        "import akssl_core\n"
        f"backbone = akssl_core.load_backbone({run.path.as_posix()!r})\n"
        "features = backbone(backbone.preprocess(images))  # images: Pillow, uint8 array or tensor -> (N, D)\n"
    )
    return [section("Use the backbone", tag("pre", tag("code", code)))]


def notes(run: RunFiles) -> list[Html]:
    """The notes of a run: decisions and findings along the way."""
    found: Sequence[str] = run.manifest.get("notes", [])
    return [section("Notes", tag("ul", *(tag("li", note) for note in found)))] if found else []


def settings(run: RunFiles) -> list[Html]:
    """Every setting with who decided it: what somebody decided in the open, defaults on request."""
    if not run.config:
        return []
    undecided = DEFAULT if run.provenance else "not recorded"
    rows = [[path, _value(value), run.provenance.get(path, undecided)] for path, value in leaves(run.config)]
    columns = ["Setting", "Value", "Decided by"]
    decided = [row for row in rows if row[2] != DEFAULT]
    defaults = [row for row in rows if row[2] == DEFAULT]
    parts = [table(columns, decided, kind="wide")] if decided else []
    if defaults:
        listed = table(columns[:2], [row[:2] for row in defaults])
        parts.append(details(f"{len(defaults)} settings at their default", listed))
    return [section("Settings", *parts)]


def _value(value: Any) -> Html:
    return tag("span", text_of(value), class_="value")


def environment(run: RunFiles) -> list[Html]:
    """Hardware, data, versions and plugins."""
    kinds = {"hardware": "Hardware", "data": "Data", "versions": "Versions"}
    facts = join(_facts(run.manifest.get(key, {}), title) for key, title in kinds.items())
    plugins = _plugins(run)
    parts = [tag("div", facts, class_="facts")] if facts else []
    return [section("Environment", *parts, plugins)] if facts or plugins else []


def _facts(facts: Mapping[str, Any], title: str) -> Html:
    """Names and values; lists (the names of a thousand classes, say) are left to the manifest."""
    rows = [[name, _value(value)] for name, value in leaves(facts) if not isinstance(value, list)]
    return table([title, ""], rows) if rows else Html()


def _plugins(run: RunFiles) -> Html:
    """The plugin table, with the columns that its rows have."""
    rows: Sequence[Mapping[str, Any]] = run.manifest.get("plugins", [])
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[text_of(row[name]) if name in row else "" for name in columns] for row in rows]
    return table(columns, cells, caption="Plugins") if rows else Html()


def unreadable(run: RunFiles) -> list[Html]:
    """Files that could not be read; another image stood in for each."""
    if not run.unreadable:
        return []
    count = len(run.unreadable)
    listed = tag("ul", *(tag("li", line.replace("\t", ": ")) for line in run.unreadable[:MOST_FILES]))
    more = [tag("p", f"… and {count - MOST_FILES} more in unreadable.txt")] if count > MOST_FILES else []
    said = tag("p", f"{count} file{'' if count == 1 else 's'} could not be read; another image stood in for each.")
    return [section("Unreadable files", said, details("List", listed, *more) if count > 10 else join([listed, *more]))]
