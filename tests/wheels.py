"""Every distribution of this repository in `dist`, as wheel and sources, checked and installed: `make wheels`."""

from __future__ import annotations

import json
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from clean_environment import ROOT, CleanEnvironment
from packaging.metadata import ExceptionGroup, Metadata

DIST = ROOT / "dist"
SOURCES = (ROOT, *sorted((ROOT / "plugins").glob("akssl-plugin-*")))


def main() -> int:
    """Build, check, install without an index, and import; what is wrong is printed, and the exit code is 1."""
    for old in DIST.glob("akssl*"):
        old.unlink()
    with tempfile.TemporaryDirectory() as folder:
        clean = CleanEnvironment(Path(folder), DIST)
        for source in SOURCES:
            clean.build(source)
            print(source.relative_to(ROOT.parent), flush=True)
        wrong = [*faults(DIST), *not_working(clean, [source.name for source in SOURCES[1:]])]
    print("\n".join(wrong) or f"{len(SOURCES)} distributions in {DIST}: checked, installed without an index, imported")
    return int(bool(wrong))


def faults(folder: Path) -> Iterator[str]:
    """What an index would refuse in the metadata of a folder's wheels, or a user would miss in them."""
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as packed:
            names = packed.namelist()
            (file,) = (name for name in names if name.endswith(".dist-info/METADATA"))
            text = packed.read(file)
        try:
            found = Metadata.from_email(text)
        except ExceptionGroup as group:
            yield from (f"{wheel.name}: {error}" for error in group.exceptions)
            continue
        wanted = {
            "a description in Markdown": found.description and found.description_content_type == "text/markdown",
            "a summary": found.summary,
            "its licence": any(name.endswith("/LICENSE") for name in names) and found.license_expression,
            "py.typed": any(name.endswith("/py.typed") for name in names),
            "its sources beside it": (folder / f"{'-'.join(wheel.name.split('-')[:2])}.tar.gz").exists(),
        }
        yield from (f"{wheel.name} lacks {what}" for what, there in wanted.items() if not there)


def not_working(clean: CleanEnvironment, plugins: list[str]) -> Iterator[str]:
    """Install plugins from the wheels, which must bring the core; those that then do not import, with the reason."""
    clean.install(*plugins)
    done = clean.run("akssl", "plugins", "--check", "--json")
    assert done.returncode == 0, done.stderr
    rows: list[Mapping[str, str]] = json.loads(done.stdout)
    yield from (f"{row['distribution']}: {row['status']}: {row['reason']}" for row in rows if row["status"] != "ok")
    yield from (f"{name} has no entry point" for name in plugins if name not in {row["distribution"] for row in rows})


if __name__ == "__main__":
    sys.exit(main())
