"""Streams that are closed, full or read by nobody, and signals to the command: no reason to lose a run."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from akssl_core.cli.runs import _show
from akssl_core.console import attended, fill_closed_streams, say
from akssl_core.running.launch import run


class Deaf(io.TextIOBase):
    """A stream that takes nothing."""

    def __init__(self, number):
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))

    def isatty(self):
        raise OSError(self.number, os.strerror(self.number))


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS = {"full": Deaf(errno.ENOSPC), "no terminal": Deaf(errno.EIO), "no reader": Deaf(errno.EPIPE), "none": None}


@pytest.mark.parametrize("stream", [*STREAMS, "closed"])
def test_a_run_goes_on_where_nobody_can_hear_it(toys, photos, tmp_path, monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", STREAMS[stream] if stream in STREAMS else closed())
    say("a line")
    assert not attended()
    result = run("toy", plugins=toys, data=photos, out=tmp_path / "run", epochs=1, precision="fp32", report=False)
    assert result.metrics["loss"] is not None


def test_streams_that_a_parent_has_closed_do_not_become_files(tmp_path):
    code = "from akssl_core.console import fill_closed_streams as fill; fill(); print(open('x', 'w').fileno() > 2)"
    command = f"exec '{sys.executable}' -c \"import sys; {code.replace('print(', 'sys.exit(not ')}\" <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, check=False, timeout=60).returncode == 0
    fill_closed_streams()  # open ones are left alone
    assert os.fstat(0)


def test_a_reader_that_has_read_enough_ends_a_listing_as_done(tmp_path):
    command = [sys.executable, "-m", "akssl_core", "plugins", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 0


def test_another_pipe_that_breaks_is_told(here, monkeypatch):
    def broken(*arguments, **settings):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("akssl_core.running.launch.run", broken)
    code, _, err = here("run", "simsiam")
    assert (code, err) == (1, "akssl: a process that this one was talking to has ended (Broken pipe).\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPIPE])
def test_a_summary_that_cannot_be_shown_fails_no_run(monkeypatch, capsys, number):
    result = SimpleNamespace(metrics={"loss": 1.0}, text="a summary", run_dir=Path("RUN"))
    monkeypatch.setattr(sys, "stdout", Deaf(number))
    _show(result)
    assert capsys.readouterr().err == (
        f"akssl: the summary cannot be shown: {os.strerror(number)}. Everything is in RUN.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "work", "said"),
    [
        (("run", "simsiam"), "launch.run", "stopped; 'akssl resume RUN_DIR' goes on from the last checkpoint."),
        (("explain", "simsiam"), "explain.explain", "stopped."),
    ],
)
def test_sigterm_ends_a_command_with_a_message(here, monkeypatch, arguments, work, said):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(f"akssl_core.running.{work}", lambda *a, **k: signal.raise_signal(signal.SIGTERM))
    try:
        code, _, err = here(*arguments)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (code, err.strip()) == (1, f"akssl: {said}")
