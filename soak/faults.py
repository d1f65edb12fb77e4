"""Faults tried on real runs through the command line: what happens, what it says, and whether anything is lost.

`python soak/faults.py [NAME ...]` tries all or some and writes `soak/results/faults.json` and `.md`. As root on
Linux, disks are small file systems of their own (tmpfs); elsewhere those faults are skipped and said to be.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from faults_cases import CASES as ALONE
from faults_cases import can_mount
from faults_lab import HERE, PLUGIN, Case, Lab, Record, fingerprint, kept, messages
from faults_machines import MACHINES
from null_device import missing

RESULTS = HERE / "results"
CASES = [*ALONE, *MACHINES]


# -- trying ----------------------------------------------------------------------------------------
def go_on(lab: Lab, wrong: list[str]) -> str:
    """Remove the cause and go on; whether the end is that of an unbroken run."""
    case = lab.case
    if case.after is not None:
        case.after(lab)
    for name in ("here", "go"):
        (lab.path / name).unlink(missing_ok=True)
    if case.then == "":
        return "-"
    answer = ""
    if case.then != "same":
        again = case.then == "again"
        resumed = ["resume", lab.run, "--plugin-file", PLUGIN]
        done = lab.call(*(lab.arguments(lab.run) if again else resumed))
        answer = f"{case.then}: exit code {done.returncode}, "
        if done.returncode != 0:
            wrong.append(f"going on failed: {done.stderr[-300:]}")
            return answer
    is_same = fingerprint(lab.run) == fingerprint(lab.reference())
    if not is_same:
        wrong.append("the end is not that of an unbroken run")
    return answer + ("bit-identical" if is_same else "NOT bit-identical")


def attempt(case: Case, folder: Path, references: dict[Any, Path]) -> Record:
    """Try one fault."""
    folder.mkdir()
    lab = Lab(folder, case, references)
    wrong: list[str] = []
    try:
        if case.before is not None:
            case.before(lab)
        code, stderr = lab.attempt()
        said = messages(stderr)
        shown = "Traceback" in stderr
        if code != case.code:
            wrong.append(f"exit code {code}, expected {case.code}")
        if shown:
            wrong.append("a traceback was shown")
        if not re.search(case.says, "\n".join(said)):
            wrong.append(f"the message lacks '{case.says}'")
        if len(said) > 2:
            wrong.append(f"{len(said)} lines were said")
        state = "-" if case.command else kept(lab.run)
        if case.check is not None and (found := case.check(lab)):
            wrong.append(found)
        then = go_on(lab, wrong)
    finally:
        with suppress(FileNotFoundError):
            for mount in ("RUN", "disk"):
                subprocess.run(["umount", "-q", folder / mount], check=False, capture_output=True)
    text = " / ".join(said).replace(str(folder), "...").replace(str(PLUGIN.parent) + "/", "")
    lost = case.lost if not wrong else "see what is wrong"
    return Record(case.name, case.done, code, text, shown, state, then, lost, wrong)


def table(records: Sequence[Record]) -> str:
    """The records in Markdown."""
    lines = ["| fault | what was done | exit code | message | traceback | kept at the stop | then | data lost |"]
    lines.append("| --- " * 8 + "|")
    for one in records:
        cells = [
            one.name, one.done, one.code, one.message or "-", "yes" if one.traceback else "no", one.kept, one.then,
            one.lost,
        ]  # fmt: skip
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines)


def known() -> dict[str, Record]:
    """What earlier calls have found, by fault."""
    file = RESULTS / "faults.json"
    return {one["name"]: Record(**one) for one in json.loads(file.read_text())} if file.is_file() else {}


def write(found: dict[str, Record], skipped: Sequence[str]) -> None:
    """`results/faults.json` and `.md`, in the order of the cases."""
    RESULTS.mkdir(exist_ok=True)
    records = [found[case.name] for case in CASES if case.name in found]
    (RESULTS / "faults.json").write_text(json.dumps([asdict(one) for one in records], indent=1) + "\n")
    bad = [f"- {one.name}: {'; '.join(one.wrong)}" for one in records if one.wrong]
    head = (
        f"# Faults\n\n{len(records)} of {len(CASES)} faults tried by `python soak/faults.py`, {len(bad)} answered "
        f"wrongly, {len(skipped)} skipped{': ' + ', '.join(skipped) if skipped else ''}.\n"
    )
    (RESULTS / "faults.md").write_text("\n".join([head, *bad, *([""] if bad else []), table(records), ""]))


def main(names: Sequence[str]) -> int:
    """Try the faults; 1 where one was answered wrongly."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored, and children inherit that
    if unknown := set(names) - {case.name for case in CASES}:
        sys.exit(f"no such fault: {', '.join(sorted(unknown))}. Faults: {', '.join(case.name for case in CASES)}")
    chosen = [case for case in CASES if not names or case.name in names]
    mounts = can_mount()
    no_gpu = missing()
    skipped = [case.name for case in chosen if (case.needs_disk and not mounts) or (case.gpus and no_gpu)]
    found, tried = known() if names else {}, []
    references: dict[Any, Path] = {}
    root = Path(tempfile.mkdtemp(prefix="akssl-faults-"))
    try:
        for case in chosen:
            if case.name in skipped:
                continue
            record = attempt(case, root / case.name.replace(" ", "-"), references)
            print(f"{'WRONG' if record.wrong else 'ok':5} {case.name}: {record.code}, {record.then}")
            for text in (*record.wrong, record.message) if record.wrong else ():
                print(f"      {text}")
            sys.stdout.flush()
            tried.append(record)
            write({**found, **{one.name: one for one in tried}}, skipped)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return int(any(record.wrong for record in tried))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
