"""A bare clone as an installed one: what a process needs to find the core, the plugins, and packages from wheels."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import tomllib

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def environment(scratch: Path, wheels: Path | None) -> dict[str, str]:
    """The variables of a process that runs the clone's own code; nothing is installed, `scratch` holds all of it.

    Plugins are found by the metadata of their distributions, so these are written as an installer would. Wheels are
    zip files that need no more than unpacking.
    """
    metadata, packages = scratch / "metadata", scratch / "packages"
    projects = [ROOT, *sorted(file.parent for file in ROOT.glob("plugins/*/pyproject.toml"))]
    for project in projects:
        _describe(tomllib.loads((project / "pyproject.toml").read_text()), metadata)
    for wheel in sorted(wheels.glob("*.whl")) if wheels else ():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
    sources = [ROOT, *(project / "src" for project in projects[1:]), HERE.parent]
    before = filter(None, [os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, [metadata, packages, *sources]), *before])}


def _describe(table: dict[str, Any], folder: Path) -> None:
    """Name, version, needs and entry points of a distribution."""
    project = table["project"]
    name, version = project["name"], project["version"]
    place = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    place.mkdir(parents=True, exist_ok=True)
    needs = [f"Requires-Dist: {need}" for need in project.get("dependencies", ())]
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *needs]
    (place / "METADATA").write_text("\n".join(lines) + "\n")
    points: list[str] = []
    for group, entries in project.get("entry-points", {}).items():
        points += [f"[{group}]", *(f"{entry} = {module}" for entry, module in entries.items())]
    (place / "entry_points.txt").write_text("\n".join(points) + "\n")
