"""Source images a second, end to end: ours against lightly, a hand-written kornia loop, and AK_SSL.

Every side trains a ResNet-18 with the ImageNet stem on the same images with views of the same number and size, at the
same batch. Ours is the engine itself from raw uint8 images on, at our default precision and in fp32; lightly is as its
examples build it, with two loader workers; the kornia loop trains our modules in bf16. Sides take turns, an epoch of a
few batches each, timed from the end of its first step to the end of its last; ratios are taken within a turn, and
their median over the turns is told.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from plans import plan_for
from results import facts, write

from akssl_core import Callback
from akssl_core.running.plan import Plan

METHODS = ("simclr", "byol", "simsiam", "barlowtwins", "mocov2", "swav", "dino")
SIDES = ("ours", "ours fp32", "lightly", "kornia", "AK_SSL")
Tick = Callable[[], None]
Epoch = Callable[[Tick], Any]  # trains for one epoch and ticks after each step


# -- the sides ------------------------------------------------------------------------------------
def ours(method: str, data: Any, precision: str, batch: int, size: int) -> Epoch:
    """The engine, from raw images to moved weights."""
    engine = plan_for(method, data, precision, batch, size).engine([])
    steps = engine.loader.steps_per_epoch

    def epoch(tick: Tick) -> None:
        engine.callbacks = [Ticking(tick)]
        engine.now = replace(engine.now, total_steps=engine.now.step + steps)
        engine.fit()

    return epoch


class Ticking(Callback):
    """Ticks after each step."""

    def __init__(self, tick: Tick) -> None:
        self.tick = tick

    def on_step(self, engine: Any, terms: Any) -> None:
        """Once the weights have moved."""
        self.tick()


def kornia(method: str, images: torch.Tensor, batch: int, size: int) -> Epoch:
    """The hand-written loop."""
    from kornia_loop import KorniaLoop

    data = {"name": "shapes", "size": len(images)}
    loop = KorniaLoop(plan_for(method, data, "bf16", batch, size), images)

    def epoch(tick: Tick) -> None:
        for _ in range(len(images) // batch):
            loop.step()
            tick()

    return epoch


def lightly(method: str, plan: Plan, views: Callable[[Any], Any], batch: int) -> Epoch:
    """Lightly's example; `views` makes a data set of its transform."""
    import peers

    torch.manual_seed(0)
    example = peers.METHODS[method](plan.backbone, plan.image, 1000)
    loader = peers.loader_of(views(example.transform), batch, 0)
    example.modules.train()
    return lambda tick: peers.one_epoch(example, loader, 0, tick)


def sides(method: str, arguments: argparse.Namespace) -> dict[str, Epoch]:
    """All sides over images in memory."""
    batch, size, count = arguments.batch, arguments.size, (arguments.steps + 1) * arguments.batch
    data = {"name": "shapes", "size": count}
    plan = plan_for(method, data, "fp32", batch, size)
    images = plan.images.fetch(range(count)).images
    makers: dict[str, Callable[[], Epoch]] = {
        "ours": lambda: ours(method, data, "auto", batch, size),
        "ours fp32": lambda: ours(method, data, "fp32", batch, size),
        "lightly": lambda: lightly(method, plan, pil_views(images), batch),
        "kornia": lambda: kornia(method, images, batch, size),
        "AK_SSL": lambda: ak_ssl(method, images, size, batch),
    }
    broken = method in ("mocov2", "swav")  # it calls .cuda(); its queue breaks at batch 256
    cannot = {"AK_SSL"} if broken or find_spec("AK_SSL") is None else set()
    return {name: makers[name]() for name in arguments.sides if name not in cannot}


def pil_views(images: torch.Tensor) -> Callable[[Any], Any]:
    """Images in memory as lightly's transforms want them."""
    import peers

    return lambda transform: peers.PILViews(images, transform)


def ak_ssl(method: str, images: torch.Tensor, size: int, batch: int) -> Epoch:
    """The upstream."""
    from upstream import Upstream

    return Upstream(method, images, size, batch).epoch


# -- the table ------------------------------------------------------------------------------------
def turns(epochs: dict[str, Epoch], repeats: int) -> Iterator[dict[str, float]]:
    """Seconds of an epoch of each side, turn after turn; one epoch of each goes before."""
    for turn in range(repeats + 1):
        seconds = {}
        for name, epoch in epochs.items():
            ends: list[float] = []
            epoch(lambda ends=ends: ends.append(time.perf_counter()))  # type: ignore[misc]
            seconds[name] = ends[-1] - ends[0]
        if turn:
            yield seconds


def measure(epochs: dict[str, Epoch], images: int, repeats: int) -> dict[str, Any]:
    """Images a second of each side, and our ratios to the others."""
    seconds = list(turns(epochs, repeats))
    row: dict[str, Any] = {
        name: round(images / statistics.median(turn[name] for turn in seconds), 1) for name in epochs
    }
    for mine, theirs in [("ours", "lightly"), ("ours fp32", "lightly"), ("ours", "kornia"), ("ours", "AK_SSL")]:
        if mine in epochs and theirs in epochs:
            row[f"{mine} / {theirs}"] = round(statistics.median(t[theirs] / t[mine] for t in seconds), 2)
    return row


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("methods", nargs="*", default=METHODS)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4, help="batches an epoch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--out", default="throughput")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for method in arguments.methods:
        measured = measure(sides(method, arguments), arguments.steps * arguments.batch, arguments.repeats)
        rows.append({"method": method, "size": arguments.size, "batch": arguments.batch, **measured})
        print(json.dumps(rows[-1]), flush=True)
        write(arguments.out, rows, facts(repeats=arguments.repeats, steps=arguments.steps, load=os.getloadavg()[0]))


if __name__ == "__main__":
    main()
