"""Fuzz the readers of akssl_core and write what came out: python soak/fuzz.py [TARGET ...] [--seconds N]."""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fuzz_engine import Crash, Outcome, Target, attempt, fuzz, traced
from fuzz_targets import TARGETS

HERE = Path(__file__).parent
RESULTS = HERE / "results"
MENDED = HERE / "mended.json"  # what fuzzing has found so far, by target: the defect, and the test that keeps it out
COLUMNS = ("target", "engine", "executions", "seconds", "lines reached", "steps reached", "crashes", "mended so far")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)}  [default: all]")
    parser.add_argument("--seconds", type=float, default=180, help="for each target  [default: 180]")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations  [default: 0]")
    parser.add_argument("--atheris", action="store_true", help="mutate with atheris (pip install atheris)")
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"no target named {', '.join(sorted(unknown))}; targets: {', '.join(TARGETS)}")
    for name in options.targets or TARGETS:
        if options.atheris:
            outcome = _with_atheris(TARGETS[name], options.seconds)
        else:
            outcome = fuzz(TARGETS[name], seconds=options.seconds, seed=options.seed)
        row = _row(outcome, "atheris" if options.atheris else "own")
        print(json.dumps({key: value for key, value in row.items() if key != "found"}), flush=True)
        for crash in outcome.crashes.values():
            lines = [line[:300] for line in crash.text.splitlines()[-12:]]
            print(f"  {crash.key}: {crash.data[:200]!r}", *lines, sep="\n    ", flush=True)
        _write(row)


def _with_atheris(target: Target, seconds: float) -> Outcome:
    """The same target under libFuzzer's mutations, in a process of its own; its corpus is replayed to count lines."""
    outcome = Outcome(target.name, seconds=seconds)
    with tempfile.TemporaryDirectory(prefix="akssl-corpus-") as folder:
        corpus, crashes = Path(folder) / "corpus", Path(folder) / "crashes.jsonl"
        corpus.mkdir()
        for i, data in enumerate(target.seeds()):
            (corpus / f"seed{i}").write_bytes(data)
        command = [sys.executable, str(HERE / "fuzz_atheris.py"), target.name, str(int(seconds)), str(crashes)]
        done = subprocess.run([*command, str(corpus)], capture_output=True, text=True, errors="replace")
        found = re.search(r"Done (\d+) runs in (\d+)", done.stderr)
        if found is None:
            raise SystemExit(done.stderr[-3000:])
        outcome.executions, outcome.seconds = int(found[1]), float(found[2])
        for line in crashes.read_text().splitlines() if crashes.exists() else ():
            crash = json.loads(line)
            outcome.crashes[crash["key"]] = Crash(crash["key"], crash["text"], bytes.fromhex(crash["data"]))
        for file in corpus.iterdir():
            with tempfile.TemporaryDirectory() as scratch, traced(outcome.edges):
                attempt(target, file.read_bytes(), Path(scratch))
            outcome.kept += 1
    return outcome


def _row(outcome: Outcome, engine: str) -> dict[str, Any]:
    """What the tables say of one target."""
    return {
        "target": outcome.target,
        "engine": engine,
        "executions": outcome.executions,
        "seconds": round(outcome.seconds, 1),
        "lines reached": outcome.lines,
        "steps reached": len(outcome.edges),
        "crashes": len(outcome.crashes),
        "found": {crash.key: crash.data[:2000].hex() for crash in outcome.crashes.values()},
    }


def _write(row: Mapping[str, Any]) -> None:
    """Put one row into both files of results, in place of the last one of its target and engine."""
    file = RESULTS / "fuzz.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    kept = [old for old in rows if (old["target"], old["engine"]) != (row["target"], row["engine"])]
    order = {name: i for i, name in enumerate(TARGETS)}
    rows = sorted([*kept, row], key=lambda r: (order.get(r["target"], 99), r["engine"]))
    where = f"{platform.machine()}, one core, Python {platform.python_version()}"
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps({"machine": where, "rows": rows}, indent=1) + "\n")
    (RESULTS / "fuzz.md").write_text(page(rows, where))


def page(rows: Sequence[Mapping[str, Any]], where: str) -> str:
    """The results as a page."""
    mended = json.loads(MENDED.read_text())
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    for row in rows:
        cells = [str(row[name]) for name in COLUMNS[:-1]] + [str(len(mended.get(row["target"], [])))]
        lines.append(f"| {' | '.join(cells)} |")
    total = sum(row["executions"] for row in rows)
    minutes = sum(row["seconds"] for row in rows) / 60
    found = [f"- {target}: {one['defect']} (`{one['test']}`)" for target, all_ in mended.items() for one in all_]
    return "\n".join(
        [
            "# Fuzzing\n",
            f"{total} inputs in {minutes:.0f} minutes on {where}; `python soak/fuzz.py` writes this page.",
            "A crash is an error that no user can mend, more than 1 GiB of memory, or more seconds than allowed.",
            "A step is one line of akssl_core after another.\n",
            *lines,
            "\n## Found by fuzzing and mended, with the test that keeps each out\n",
            *found,
            "",
        ]
    )


if __name__ == "__main__":
    main()
