"""The `akssl` command: parsing and printing, nothing else. Torch is imported by the commands that need it."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import NoReturn

import click

from ..errors import AksslError, RunStopped
from . import data as data
from . import doctor as doctor
from . import plugins as plugins
from . import runs as runs
from .base import akssl


def main() -> NoReturn:
    """Run the command line: 0 done, 2 the input is wrong, 1 anything else."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    warnings.showwarning = lambda message, *_, **__: click.echo(f"akssl: warning: {message}", err=True)
    try:
        status = akssl.main([a for a in arguments if a != "--debug"], prog_name="akssl", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except (AksslError, click.UsageError) as error:
        _fail(error.format_message() if isinstance(error, click.UsageError) else str(error), 2, debug)
    except RunStopped as error:
        _fail(str(error), 1, debug)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code, debug)
    except (KeyboardInterrupt, click.Abort) as error:
        said = str(error.__cause__ or error)  # click puts its own exception around an interrupt
        _fail(said or "stopped; 'akssl resume RUN_DIR' goes on from the last checkpoint.", 1, debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has what it wanted
        sys.exit(0)
    except Exception as error:
        _fail(f"{type(error).__name__}: {error} (--debug shows the traceback)", 1, debug)


def _fail(message: str, code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    if os.environ.get("RANK", "0") == "0" or code != 2:  # of several processes, all find the same mistake
        click.echo(f"akssl: {message}", err=True)
    sys.exit(code)
