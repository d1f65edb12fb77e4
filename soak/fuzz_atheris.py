"""One target under atheris, as `fuzz.py --atheris` starts it: TARGET SECONDS CRASHES CORPUS."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-not-found, unused-ignore]

with atheris.instrument_imports(include=["akssl_core"]):
    from fuzz_engine import attempt
    from fuzz_targets import TARGETS

NAME, SECONDS, CRASHES, CORPUS = sys.argv[1:]
seen: set[str] = set()


def one(data: bytes) -> None:
    """One input; a failure is written down once, and fuzzing goes on."""
    with tempfile.TemporaryDirectory(prefix="akssl-fuzz-") as folder:
        crash = attempt(TARGETS[NAME], data, Path(folder))
    if crash is not None and crash.key not in seen:
        seen.add(crash.key)
        with Path(CRASHES).open("a") as file:
            file.write(json.dumps({"key": crash.key, "text": crash.text, "data": crash.data.hex()}) + "\n")


flags = [f"-max_total_time={SECONDS}", "-max_len=65536", "-rss_limit_mb=0", "-timeout=0", "-handle_alrm=0"]
atheris.Setup([sys.argv[0], *flags, CORPUS], one)
atheris.Fuzz()
