"""Commands that train many runs: sweep, and choose, which finds the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from ..config.yaml import parse_yaml
from ..errors import ConfigError
from .base import PATH, akssl, json_option, keywords, run_options, set_option, show


@akssl.command()
@click.option("--methods", required=True, metavar="A,B,...", help="methods to train; all: those that need only images")
@click.option("--seeds", default="0", metavar="N,M,...", help="seeds, each for every combination  [default: 0]")
@set_option("a setting with a value for all runs, or with several to try: optimizer.lr=0.1,0.3")
@click.option("--out", required=True, type=PATH, help="folder of the sweep, a run folder in it each")
@run_options("out", "seed", "devices", "set")
@click.option("--no-report", is_flag=True, help="do not write report.html of each run")
@click.option("--json", "as_json", is_flag=True, help="print the results as JSON")
@click.pass_context
def sweep(ctx: click.Context, /, methods: str, seeds: str, no_report: bool, as_json: bool, **options: Any) -> None:
    """Train every combination of methods, seeds and settings; one table with mean and deviation at the end.

    The same command again goes on with a sweep that was stopped: finished runs are read, stopped ones resumed. A run
    that fails is reported, the others go on, and the exit code is 1.
    """
    varied, single = _varied(options["assignments"])
    common = keywords({**options, "assignments": single})
    named, numbers = _listed(methods), [_seed(text) for text in _listed(seeds)]
    from ..sweeps import sweep as sweep_runs

    try:
        found = sweep_runs(named, seeds=numbers, varied=varied, report=not no_report, tell=_tell, **common)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("stopped; the same sweep command goes on with it") from error
    show(found, as_json)
    if as_json:
        click.echo(f"\n{found.written}", err=True)
    ctx.exit(1 if found.failed else 0)


@akssl.command()
@click.option("--methods", default="all", metavar="A,B,...", help="candidates  [default: all that need only images]")
@click.option("--budget", metavar="TIME", help="time for all of it, the training alone: 90s, 30m, 2h")
@click.option("--epochs", type=int, help="instead of --budget: passes over the images of the last round")
@click.option("--seed", type=int, default=0, help="of all runs  [default: 0]")
@set_option("a setting with a value for all runs, or with several to try: optimizer.lr=0.1,0.3")
@click.option("--out", type=PATH, help="folder for the runs of all rounds  [default: a new one under runs/]")
@run_options("out", "seed", "devices", "set", "epochs")
@json_option
def choose(methods: str, budget: str | None, epochs: int | None, seed: int, as_json: bool, **options: Any) -> None:
    """Find the method that fits some images, without labels, and train it.

    All candidates are trained for a short time, the best quarter anew for four times as long, until one is left. They
    are judged by how well features tell images apart in spite of crops and colours. The same command goes on with one
    that was stopped.
    """
    varied, single = _varied(options["assignments"])
    common = keywords({**options, "assignments": single})
    named = "all" if methods == "all" else _listed(methods)
    from ..sweeps import choose as choose_runs

    show(choose_runs(named, budget=budget, epochs=epochs, seed=seed, varied=varied, tell=_tell, **common), as_json)


def _tell(text: str) -> None:
    click.echo(f"akssl: {text}", err=True)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _seed(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--seeds: expected whole numbers with commas between them, got '{text}'.") from None


def _varied(assignments: Sequence[str]) -> tuple[dict[str, list[Any]], list[str]]:
    """Settings with several values by their path, and the assignments that have one.

    Values are YAML with commas between them; lists and tables keep their own: a.b=[1, 2],[3, 4] has two.
    """
    varied, single = {}, []
    for text in assignments:
        path, _, value = text.partition("=")
        try:
            values = parse_yaml(f"[{value}]")
        except ValueError:  # told with all others, where it is wrong alone too
            values = []
        if len(values) > 1:
            varied[path] = values
        else:
            single.append(text)
    return varied, single
