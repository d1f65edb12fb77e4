"""`make gpu` in its short form: every row runs without a GPU, and what goes wrong in one is told and left behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from null_device import missing

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu"

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="make gpu needs the tomllib of Python 3.11")

DRAWN = """
import os
import time
from rows import Found, NotHere, Rows, bounded

ROWS = Rows()

@ROWS.add("fine")
def fine(setup):
    yield bounded("number", 2.0, least=1, unit="m")
    yield bounded("too small", 0.5, least=1, most=3)

@ROWS.add("raises")
def raises(setup):
    yield Found("first", "found")
    raise ValueError("a mistake")

@ROWS.add("dies")
def dies(setup):
    os._exit(7)
    yield

@ROWS.add("hangs", limit=0.2)
def hangs(setup):
    time.sleep(600)
    yield

@ROWS.add("absent")
def absent(setup):
    raise NotHere("needs a sieve")
    yield

@ROWS.add("long", short=False)
def long(setup):
    yield Found("never", "in the short form")

@ROWS.add("last")
def last(setup):
    print("not a message")
    yield Found("reached", "yes", "yes", True)
"""


def table(folder, *arguments, code=0):
    """The lines of each part that a call of the command leaves, and its facts."""
    command = [sys.executable, str(SCRIPT), *arguments, "--short", "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    found = {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}
    return {name: part["rows"] for name, part in found.items()}


def names_of(lines, verdict):
    return {line["row"] for line in lines if line["verdict"] == verdict}


def test_rows_run_on_a_cpu_and_agree_with_themselves(tmp_path):
    found = table(tmp_path, "correct", "whole", "--device", "cpu")
    verdicts = {line["verdict"] for lines in found.values() for line in lines}
    assert verdicts == {"pass", "measured", "not here"}
    assert {"batch norm over two ranks", "views simclr 224 px"} <= names_of(found["correct"], "pass")
    assert names_of(found["whole"], "not here") == {"CIFAR-10 simclr resnet18"}
    assert "| batch norm over two ranks | outputs apart | pass |" in (tmp_path / "correct.md").read_text()
    assert (tmp_path / "trace.json.gz").stat().st_size > 1000


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_rows_run_on_a_gpu_that_computes_nothing(tmp_path):
    found = table(tmp_path, "correct", "fast", "--device", "null", code=1)
    assert names_of(found["correct"], "crashed") == set()
    assert names_of(found["fast"], "crashed") == {"nvJPEG"}  # which the null device has not
    assert not any(names_of(lines, "out of time") for lines in found.values())
    assert any(line["what"] == "peak" for line in found["fast"])


@pytest.mark.slow  # half a minute of processes that start
def test_a_run_is_killed_and_resumed_to_the_same_bits(tmp_path):
    (lines,) = table(tmp_path, "correct", "--device", "cpu", "--rows", "killed").values()
    assert [line["verdict"] for line in lines] == ["pass", "pass"]


# -- the runner -----------------------------------------------------------------------------------
@pytest.fixture
def rows(tmp_path, monkeypatch):
    """A part of its own, `drawn`, run by what runs the real ones."""
    monkeypatch.syspath_prepend(str(SCRIPT))
    (tmp_path / "drawn.py").write_text(DRAWN)
    from bare import environment
    from supervise import Part

    variables = environment(tmp_path / "scratch", None)
    variables["PYTHONPATH"] += f":{tmp_path}"
    options = ["--part", "drawn", "--device", "cpu", "--out", str(tmp_path), "--scratch", str(tmp_path), "--rows", ""]

    def run(seconds):
        part = Part("drawn", tmp_path, [*options, "--short"], variables, seconds)
        return part.run(), json.loads((tmp_path / "drawn.json").read_text())["rows"]

    return run


def test_what_goes_wrong_in_a_row_ends_that_row_alone(rows, tmp_path):
    well, lines = rows(120)
    assert not well
    assert [(line["row"], line["what"], line["verdict"]) for line in lines] == [
        ("fine", "number", "pass"),
        ("fine", "too small", "fail"),
        ("raises", "first", "measured"),
        ("raises", "", "crashed"),
        ("dies", "", "crashed"),
        ("hangs", "", "out of time"),
        ("absent", "", "not here"),
        ("last", "reached", "pass"),
    ]
    assert [line["found"] for line in lines][:2] == ["2 m", "0.5"]
    assert lines[1]["wanted"] == ">= 1 and <= 3"
    assert lines[3]["found"] == "ValueError: a mistake"
    assert lines[4]["found"] == "its process ended with 7"
    assert "not a message" in (tmp_path / "drawn.log").read_text()


def test_a_part_that_cannot_begin_says_why(rows, tmp_path):
    (tmp_path / "drawn.py").write_text("import a_package_that_is_missing")
    well, lines = rows(120)
    assert not well
    assert "No module named 'a_package_that_is_missing'" in lines[0]["found"]


def test_a_part_ends_when_its_time_is_up(rows):
    well, lines = rows(0)
    assert well
    assert lines == []


def test_a_bare_clone_has_plugins_and_packages_of_wheels(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT))
    from bare import environment

    with zipfile.ZipFile(tmp_path / "found_in_a_wheel-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("found_in_a_wheel.py", "")
    code = "import found_in_a_wheel\nfrom akssl_core.plugins.installed import entries\n"
    code += "print([(e.name, e.status) for e in entries()])"
    variables = environment(tmp_path / "scratch", tmp_path)
    command = [sys.executable, "-S", "-c", "import found_in_a_wheel"]  # -S: nothing that is installed
    subprocess.run(command, env=variables, check=True, cwd=tmp_path)
    done = subprocess.run([sys.executable, "-c", code], env=variables, check=True, cwd=tmp_path, capture_output=True)
    assert "('simclr', 'installed')" in done.stdout.decode()
    metadata = {path.name for path in (tmp_path / "scratch" / "metadata").iterdir()}
    assert len(metadata) == 1 + len(list(ROOT.glob("plugins/*/pyproject.toml")))


def test_the_commands_for_what_is_not_measured_name_rows_that_there_are():
    code = "import correct, fast, json, whole\n"
    code += "print(json.dumps({m.__name__: [row.name for row in m.ROWS] for m in (correct, fast, whole)}))"
    done = subprocess.run([sys.executable, "-c", code], env=on_path(), check=True, capture_output=True)
    rows = json.loads(done.stdout)
    part, named = "", 0
    for word in re.findall(r'PART=\w+|ROWS="[^"]+"', (ROOT / "docs" / "performance.md").read_text()):
        part = word.removeprefix("PART=") if word.startswith("PART=") else part
        if word.startswith("ROWS=") and part:
            assert any(word[6:-1] in row for row in rows[part]), word
            named += 1
    assert named > 20


def on_path():
    """The variables of a process that finds the rows."""
    places = [SCRIPT, SCRIPT.parent, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
