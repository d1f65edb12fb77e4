"""A folder in which one fault is tried on a run, and what is told of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from akssl_core.rundir.folder import RunDir, read_tensors

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests" / "cuda"))
import null_device  # noqa: E402 - it stands among the tests

PLUGIN = HERE / "faults_inside.py"
COMMON = (
    "--backbone", "resnet_tiny", "--image-size", "16", "--batch-size", "16", "--precision", "fp32", "--device", "cpu",
    "--epochs", "2", "--set", "backbone.widths=[4,4,8,8]", "--set", "train.checkpoint_every=2",
    "--set", "train.log_every=1", "--plugin-file", str(PLUGIN),
)  # fmt: skip
SIMSIAM = ("--set", "method.out_dim=16", "--set", "method.predictor_dim=8")
SHAPES = ("--set", "data.size=64", "--set", "data.test_size=32")
PATIENCE = 300  # seconds until a process counts as hanging


@dataclass(frozen=True)
class Case:
    """One fault: how it is brought about, and what the command must answer."""

    name: str
    done: str  # what was done, for the table
    code: int
    says: str = ""  # pattern of the message
    settings: Sequence[str] = SHAPES
    method: Sequence[str] = ("simsiam", *SIMSIAM)
    inside: str = ""  # the fault inside the run
    environment: dict[str, str] = field(default_factory=dict)
    before: Callable[[Lab], None] | None = None
    at_gate: Callable[[Lab], None] | None = None
    after: Callable[[Lab], None] | None = None  # removes the cause
    streams: dict[str, Callable[[], int]] = field(default_factory=dict)  # of the process
    shell: str = ""  # how a shell starts it, around {}
    then: str = "resume"  # or "again": the command once more; "same": compared as it is; "": nothing to go on with
    check: Callable[[Lab], str] | None = None  # what else must hold; what is wrong, if anything
    needs_disk: bool = False
    gpus: int = 0  # of a machine that is played: CUDA devices which compute nothing
    command: Sequence[str] = ()  # in place of a run
    lost: str = "none"


@dataclass
class Record:
    """What happened."""

    name: str
    done: str
    code: int
    message: str
    traceback: bool
    kept: str
    then: str
    lost: str
    wrong: list[str]


@dataclass
class Lab:
    """A folder in which one case is tried."""

    path: Path
    case: Case
    references: dict[Any, Path]
    process: subprocess.Popen[str] | None = None

    @cached_property
    def disk(self) -> Path:
        """A small file system."""
        path = self.path / "disk"
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], check=True)
        return path

    @property
    def run(self) -> Path:
        """The run folder."""
        return (self.disk if self.case.needs_disk else self.path) / "RUN"

    def fill(self, leave: int = 0) -> None:
        """Leave so many bytes of the small file system."""
        with (self.disk / "filler").open("ab") as file, suppress(OSError):
            while True:
                status = os.statvfs(self.disk)
                free = status.f_bavail * status.f_frsize - leave
                if free <= 0:
                    break
                file.write(b"x" * min(free, 4096))
                file.flush()

    def command(self, *arguments: object) -> list[str]:
        """The command line of akssl."""
        return [sys.executable, "-m", "akssl_core", *map(str, arguments)]

    def environ(self, fault: str = "", **more: str) -> dict[str, str]:
        """The environment of a process in which a fault happens."""
        plain = {k: v for k, v in os.environ.items() if not k.startswith("FAULT")}
        known = {"OMP_NUM_THREADS": "1", "FAULT_GATE": str(self.path), "FAULT": fault}
        return {**plain, **(null_device.environment(self.case.gpus) if self.case.gpus else {}), **known, **more}

    def arguments(self, out: Path) -> list[str]:
        """`run` with the settings of the case."""
        data = [text.replace("{}", str(self.path)) for text in self.case.settings]
        return ["run", *self.case.method, *COMMON, *data, "--out", str(out)]

    def call(self, *arguments: object, fault: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command without the fault, to its end."""
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, env=self.environ(fault), cwd=self.path,
            timeout=PATIENCE,
        )  # fmt: skip

    def attempt(self) -> tuple[int, str]:
        """The command with the fault: exit code, and what it said on stderr."""
        case = self.case
        words = self.command(*(case.command or self.arguments(self.run)))
        command: Any = words
        if case.shell:
            quoted = " ".join(f"'{word}'" for word in words)
            command = ["bash", "-c", case.shell.replace("{}", quoted)]
        with (self.path / "stdout").open("w") as out, (self.path / "stderr").open("w") as err:
            streams = {"stdout": out, "stderr": err, "stdin": subprocess.DEVNULL}
            streams |= {name: make() for name, make in case.streams.items()}
            env = self.environ(case.inside, **case.environment)
            self.process = subprocess.Popen(command, env=env, cwd=self.path, text=True, **streams)
            try:
                if case.at_gate is not None:
                    self.wait_for("here")
                    case.at_gate(self)
                    (self.path / "go").touch()
                code = self.process.wait(PATIENCE)
            finally:
                if self.process.poll() is None:
                    self.process.kill()
                    self.process.wait()
        return code, (self.path / "stderr").read_text(errors="replace")

    def wait_for(self, name: str) -> None:
        """Wait until a file is there, or the process has ended."""
        deadline = time.monotonic() + PATIENCE
        while not (self.path / name).exists() and time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                raise RuntimeError(f"the run ended before the fault: {(self.path / 'stderr').read_text()[-500:]}")
            time.sleep(0.02)

    def reference(self) -> Path:
        """An unbroken run with the same settings."""
        key = (tuple(self.case.method), tuple(self.case.settings))
        if key not in self.references:
            out = self.path.parent / f"reference-{len(self.references)}"
            done = self.call(*self.arguments(out))
            if done.returncode != 0:
                raise RuntimeError(done.stderr)
            self.references[key] = out
        return self.references[key]


# -- what a run holds ------------------------------------------------------------------------------
def fingerprint(run: Path) -> dict[str, Any]:
    """Everything that must be the same bit for bit: the last checkpoint, the backbone, and the losses of all rows."""
    folder = RunDir.open(run)
    last = folder.checkpoints()[-1]
    files = [*last.glob("*.safetensors"), run / "backbone.safetensors"]
    rows = [(row["step"], row["loss"], row.get("knn_top1")) for row in folder.history]
    tensors = {f"{file.name} {name}": tensor for file in files for name, tensor in read_tensors(file)[0].items()}
    return {"step": last.name, "rows": rows, **{name: tensor.numpy().tobytes() for name, tensor in tensors.items()}}


def kept(run: Path) -> str:
    """What can be read of a run that stopped."""
    try:
        folder = RunDir.open(run)
        checkpoint, problems = folder.latest()
    except OSError:
        return "no run folder"
    rows = f"rows to step {folder.history[-1]['step']}" if folder.history else "no rows"
    saved = f"checkpoint of step {checkpoint.state.step}" if checkpoint else "no checkpoint yet"
    return "; ".join([saved, rows, *problems])


def messages(stderr: str) -> list[str]:
    """What the command itself has said, without the lines of progress."""
    return [line for line in stderr.splitlines() if line.strip() and not re.match(r"(step|image) \d+/\d+", line)]
