"""The `akssl` command: parsing and printing, nothing else. Torch is imported by the commands that need it."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import traceback
import warnings
from types import FrameType
from typing import NoReturn

import click

from ..console import fill_closed_streams, say
from ..errors import AksslError, RunStopped, visible
from . import judge, many, plugins, runs, use
from .base import akssl

__all__ = ["akssl", "judge", "main", "many", "plugins", "runs", "use"]

ENDS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if name in signal.Signals.__members__]
KEEP = "\n\t"  # that lay out what is printed
TRAIN = {"run", "resume", "adapt"}  # the commands that leave a run to go on with


def main() -> NoReturn:
    """Run the command line: 0 done, 2 the input is wrong, 1 anything else."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    words = [word for word in arguments if word != "--debug"]
    warnings.showwarning = lambda message, *_, **__: say(f"akssl: warning: {visible(str(message), keep=KEEP)}")
    fill_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    if threading.current_thread() is threading.main_thread():
        for number in ENDS:
            signal.signal(number, _terminated)
    try:
        status = akssl.main(words, prog_name="akssl", standalone_mode=False)
        _leave(status if isinstance(status, int) else 0)
    except click.MissingParameter as error:
        page = error.ctx.command_path if error.ctx else "akssl"
        _fail(f"{error.format_message()} Its meaning: {page} --help", 2, debug, once=True)
    except (AksslError, click.UsageError) as error:
        _fail(error.format_message() if isinstance(error, click.UsageError) else str(error), 2, debug, once=True)
    except RunStopped as error:
        _fail(str(error), 1, debug)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code, debug)
    except (KeyboardInterrupt, click.Abort) as error:
        said = str(error.__cause__ or error)  # click puts its own exception around an interrupt
        on = "; 'akssl resume RUN_DIR' goes on from the last checkpoint" if TRAIN.intersection(words[:1]) else ""
        _fail(said or f"stopped{on}.", 1, debug, once=True)
    except Exception as error:
        _fail(f"{type(error).__name__}: {error} (--debug shows the traceback)", 1, debug)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """These signals end the command as SIGINT does, with a message and an exit code; a run that trains saves before."""
    raise KeyboardInterrupt


def _fail(message: str, code: int, debug: bool, *, once: bool = False) -> NoReturn:
    """End the command with a message; `once`: the processes of a run on this machine have the same to say."""
    if debug:
        traceback.print_exc()
    if not once or all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "SLURM_LOCALID")):
        say(f"akssl: {visible(message, keep=KEEP)}")
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End the command. A signal from now on ends the process without a word, and not in the midst of tidying up."""
    if threading.current_thread() is threading.main_thread():
        for number in ENDS:
            signal.signal(number, signal.SIG_DFL)
    sys.exit(code)
