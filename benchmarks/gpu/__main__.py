"""What only a real GPU can show, in three calls of less than ten minutes: `python benchmarks/gpu correct`.

`correct` compares the GPU with the CPU, `fast` measures steps and feeding, `whole` whole runs; without a name all three
run. It works in a bare clone, without network: packages that the machine lacks are unpacked from a folder of wheels
(`make gpu-wheels` fills one beforehand). Results are JSON and Markdown, and written after each row.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

if sys.version_info < (3, 11):
    raise SystemExit(f"make gpu needs Python 3.11 or newer, this is {sys.version.split()[0]}")

from bare import ROOT, environment
from supervise import Part

PARTS = {"correct": 500, "fast": 560, "whole": 500}  # seconds


def on_null_device(variables: dict[str, str]) -> dict[str, str]:
    """The variables of a process that sees the GPU which computes nothing: whether rows run shows without one."""
    sys.path.insert(0, str(ROOT / "tests" / "cuda"))
    os.environ["PYTHONPATH"] = variables["PYTHONPATH"]
    import null_device

    found: dict[str, str] = null_device.environment()
    return found


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "peaks", []], help="default: the first three")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="folder of the results")
    parser.add_argument("--rows", default="", help="only rows whose name contains this text")
    parser.add_argument("--short", action="store_true", help="tiny networks: whether every row runs, in seconds")
    parser.add_argument("--device", choices=("cuda", "cpu", "null"), default="cuda", help="null: that of tests/cuda")
    parser.add_argument("--seconds", type=float, help="time of a part")
    parser.add_argument("--wheels", type=Path, help="folder of wheels, in place of what is installed or missing")
    parser.add_argument("--cifar", type=Path, help="CIFAR-10 as a tar archive of train/CLASS/NAME.jpg")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the rows' processes end as well
    well = True
    with tempfile.TemporaryDirectory(prefix="akssl-gpu-") as scratch:
        variables = environment(Path(scratch), asked.wheels)
        if asked.device == "null":
            variables = on_null_device(variables)
        for name in asked.parts or PARTS:
            (asked.out / f"{name}.log").unlink(missing_ok=True)
            device = "cpu" if asked.device == "cpu" else "cuda"
            options = ["--part", name, "--device", device, "--out", str(asked.out), "--scratch", scratch]
            options += ["--rows", asked.rows, *["--short"] * asked.short]
            options += ["--cifar", str(asked.cifar.resolve())] if asked.cifar else []
            print(f"\n{name}", flush=True)
            well &= Part(name, asked.out, options, variables, asked.seconds or PARTS.get(name, 600)).run()
    print(f"\nresults: {asked.out}", flush=True)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
