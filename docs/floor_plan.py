"""Measures the floor plan of `akssl_core`: `python docs/floor_plan.py [CHECKOUT]` prints what is counted."""

from __future__ import annotations

import ast
import json
import statistics
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

CORE = Path(__file__).parents[1] / "akssl_core"
LAYERS = (
    {"errors", "console", "draws", "hookspecs"},
    {"config", "dist", "masks"},
    {"loss", "rundir", "schedule", "settings"},
    {"data", "nn"},
    {"augment", "backbone"},
    {"method"},
    {"metrics", "optim", "plugins"},
    {"exporting", "reporting", "training"},
    {"evaluation", "running", "sklearn"},
    {"examining", "sweeps", "testing"},
    {"cli", "__init__", "__main__"},
)  # the lowest first: a room imports from lower ones alone
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


@dataclass(frozen=True)
class Measures:
    """What is counted of a core."""

    entries: int  # files and folders at the top of the package
    layers: int  # rooms on the longest way of imports at run time
    arrows: int  # pairs of rooms of which one imports the other at run time
    lines: int
    function_lines: tuple[int, int, int]  # median, 95th percentile and maximum, without signature and docstring
    files_over_400: int
    cycles: list[str]  # files that import each other in a circle, imports for annotations among them


def measure(core: Path = CORE) -> Measures:
    """Count everything of the core in this folder."""
    files = sorted(core.rglob("*.py"))
    texts = {file: file.read_text() for file in files}
    lengths = sorted(length for text in texts.values() for length in _function_lines(ast.parse(text)))
    rooms = room_imports(core)
    return Measures(
        entries=sum(entry.suffix == ".py" or (entry / "__init__.py").is_file() for entry in core.iterdir()),
        layers=len(layers(rooms)),
        arrows=sum(map(len, rooms.values())),
        lines=sum(len(text.splitlines()) for text in texts.values()),
        function_lines=(int(statistics.median(lengths)), lengths[int(0.95 * len(lengths))], lengths[-1]),
        files_over_400=sum(len(text.splitlines()) > 400 for text in texts.values()),
        cycles=_cycles(file_imports(core, types=True)),
    )


def room_of(module: str) -> str:
    """The room of a module of the core: `data` of `data.folder`."""
    return module.partition(".")[0]


def room_imports(core: Path = CORE, *, types: bool = False) -> dict[str, set[str]]:
    """The rooms that each room imports, without those that only list names (`__init__`, `__main__`)."""
    graph: dict[str, set[str]] = {}
    for module, others in file_imports(core, types=types).items():
        room = room_of(module)
        if not room.startswith("__"):
            graph.setdefault(room, set()).update({room_of(other) for other in others} - {room})
    return graph


def layers(graph: dict[str, set[str]]) -> list[list[str]]:
    """The rooms in layers, the lowest first: each imports from lower ones alone."""
    sorter = TopologicalSorter(graph)
    sorter.prepare()
    found = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        found.append(ready)
        sorter.done(*ready)
    return found


def file_imports(core: Path = CORE, *, types: bool = True, top: bool = False) -> dict[str, set[str]]:
    """The modules of the core that each module imports, by dotted names without the package's own."""
    modules = {dotted(file, core): file for file in core.rglob("*.py")}
    graph = {}
    for name, file in modules.items():
        found = nodes(ast.parse(file.read_text()), types=types, top=top)
        graph[name] = set(_imports(found, name, file.stem == "__init__", modules)) - {name}
    return graph


def dotted(file: Path, core: Path = CORE) -> str:
    """The module in a file, by its name within the package."""
    parts = list(file.relative_to(core).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _imports(found: Iterable[ast.AST], name: str, package: bool, known: Collection[str]) -> Iterator[str]:
    here = [] if name.startswith("__") else name.split(".")
    for node in found:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + package] if here else []
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                for candidate in (".".join([*base, alias.name]), ".".join(base)):
                    if candidate in known:
                        yield candidate
                        break


def nodes(node: ast.AST, *, types: bool, top: bool) -> Iterator[ast.AST]:
    """The nodes below this one: with those that annotations alone need or not, within functions or not."""
    for child in ast.iter_child_nodes(node):
        annotations = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if (types or not annotations) and not (top and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield child
            yield from nodes(child, types=types, top=top)


def _cycles(graph: dict[str, set[str]]) -> list[str]:
    """One circle after the other, each broken at its last arrow to find the next."""
    graph, found = {name: set(others) for name, others in graph.items() if name != "__init__"}, []
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            circle = error.args[1]
            found.append(" -> ".join(reversed(circle)))
            graph[circle[1]].discard(circle[0])
        else:
            return found


def _function_lines(module: ast.Module) -> Iterator[int]:
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body:
                yield (node.end_lineno or 0) - body[0].lineno + 2  # the signature is one


if __name__ == "__main__":
    core = Path(sys.argv[1]) / "akssl_core" if len(sys.argv) > 1 else CORE
    print(json.dumps(asdict(measure(core)), indent=2))
