"""The installed plugins, by package metadata alone: nothing of a plugin is imported here."""

from __future__ import annotations

import importlib.metadata
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from ..errors import plain, visible

API = 1
CORE, MISSING = "akssl-core", "not installed"
PREFIX = "akssl.v"
LONGEST = 1000  # characters of a name that are shown
GROUP = f"{PREFIX}{API}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry point as its metadata tells it; nothing of it has been imported."""

    name: str
    value: str
    distribution: str
    version: str
    api: str
    status: str
    """"installed", "other API", "other core" (it needs another version), "clash" (two distributions claim the name) or
    "blocked" (by AKSSL_PLUGINS)."""
    reason: str = ""


def canonical(distribution: str) -> str:
    """A distribution's name in the form in which package indexes compare names."""
    return distribution.lower().replace("_", "-").replace(".", "-")


def _raw_entries() -> Iterator[Entry]:
    """Each entry point of any API version once, stale copies of one distribution's metadata left out."""
    seen: set[str] = set()
    for found in importlib.metadata.distributions():
        try:
            points = [point for point in found.entry_points if point.group.startswith(PREFIX)]
            if not points:
                continue
            distribution, own = (_told(str(text or "unknown")) for text in (found.name, found.version))
            unmet = _unmet(found.requires or ())
        except Exception as error:  # damaged metadata of one package must not hide all others
            place = getattr(found, "_path", "?")
            warnings.warn(f"the metadata in {place} cannot be read and is passed over: {error}", stacklevel=2)
            continue
        if canonical(distribution) in seen:
            continue
        seen.add(canonical(distribution))
        names: set[tuple[str, str]] = set()
        for point in points:
            name, api = _told(point.name), _told(point.group.removeprefix(PREFIX))
            if (api, plain(name)) not in names:
                names.add((api, plain(name)))
                status = "other core" if unmet else "installed"
                yield Entry(name, _told(point.value), distribution, own, api, status, unmet)


def _unmet(requirements: Iterable[str]) -> str:
    """The requirement on the core that this one does not meet, in words; "" where there is none."""
    from packaging.requirements import InvalidRequirement, Requirement  # only where there is a plugin

    core = version(CORE)
    for text in requirements:
        with suppress(InvalidRequirement):
            wanted = Requirement(text)
            due = canonical(wanted.name) == CORE and (wanted.marker is None or wanted.marker.evaluate({"extra": ""}))
            if due and core != MISSING and not wanted.specifier.contains(core, prereleases=True):
                return f"needs {CORE}{wanted.specifier}; this is {core}"
    return ""


def _told(text: str) -> str:
    """A text of metadata, as far as a table can show it."""
    return visible(text[:LONGEST])


def entries() -> list[Entry]:
    """All installed plugins with their status, sorted by name, from metadata alone."""
    raw, named = list(_raw_entries()), os.environ.get("AKSSL_PLUGINS")
    allowed = None if named is None else {plain(name) for name in named.split(",") if name.strip()}
    claims: dict[str, set[str]] = {}
    for entry in raw:
        if entry.api == str(API):
            claims.setdefault(plain(entry.name), set()).add(f"{entry.distribution} {entry.version}")
    result = []
    for entry in raw:
        status, reason = entry.status, entry.reason
        owners = claims.get(plain(entry.name), set())
        if entry.api != str(API):
            status, reason = "other API", f"made for API {entry.api}; this core offers {API}"
        elif allowed is not None and not {plain(entry.name), plain(entry.distribution)} & allowed:
            status, reason = "blocked", "not named in AKSSL_PLUGINS"
        elif len(owners) > 1:
            status, reason = "clash", f"claimed by {' and '.join(sorted(owners))}; uninstall all but one"
        result.append(replace(entry, status=status, reason=reason))
    return sorted(result, key=lambda e: (plain(e.name), e.distribution))


def version(distribution: str) -> str:
    """The installed version of a distribution, or `MISSING`."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return MISSING
