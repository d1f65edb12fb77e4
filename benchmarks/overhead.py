"""How much of the machine a run keeps for training: our whole step against a bare forward and backward pass.

Both sides train the same modules of a method (its default recipe, on a ResNet-18 with the ImageNet stem) at the same
precision, memory layout and kernels on views of 32 px, batch 256. Ours starts from raw uint8 images and does everything
that a run does in a step; the bare loop has ready views and runs what the method's mathematics asks for alone: forward
(of teachers too), backward, optimizer, moving averages. Repeats are interleaved; the result is the median of the
ratios. Writes benchmarks/results/overhead.json and .md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from plans import plan_for
from results import facts, write

from akssl_core import Batch, Views
from akssl_core.config import describe
from akssl_core.method import Method
from akssl_core.nn import StepState
from akssl_core.plugins.first_party import ALONE
from akssl_core.running.plan import Plan
from akssl_core.training.convolution import fast_convolutions
from akssl_core.training.engine import Engine
from akssl_core.training.hardware import kept_memory


class Bare:
    """Forward, backward, optimizer and the method's own slow state on ready views; the yardstick."""

    def __init__(self, plan: Plan) -> None:
        self.engine: Engine = plan.engine([])
        batch, channels, layout = self.engine.batch_size, plan.image.channels, plan.hardware.layout
        views = Views()
        for group in plan.augmentation.groups():
            shape = (batch, channels, group.size, group.size)
            views[group.name] = [torch.randn(shape).contiguous(memory_format=layout) for _ in group.transforms]
        self.batch = Batch(views, torch.arange(batch))
        self.dtype = plan.hardware.dtype
        plan.method.train()
        self.slow = [part for part in plan.method.modules() if isinstance(part, StepState | Method)]

    def step(self) -> None:
        """One step."""
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            loss = self.engine.method(self.batch, self.engine.now)["loss"]
        loss.backward()
        self.engine.optimizer.step()
        self.engine.optimizer.zero_grad(set_to_none=True)
        for module in self.slow:
            module.after_step(self.engine.now)


class Ours:
    """The engine's own step over raw images: loading, views, schedules, slow state."""

    def __init__(self, plan: Plan) -> None:
        self.engine = plan.engine([])
        plan.method.train()
        self.batches = self._endless()

    def _endless(self) -> Any:
        epoch = 0
        while True:
            for pixels, index, label in self.engine.loader.epoch(epoch):
                yield pixels, index, label, epoch
            epoch += 1

    def step(self) -> None:
        """One step, from uint8 images on."""
        pixels, index, label, epoch = next(self.batches)
        self.engine._step(self.engine._micro_batches(pixels, index, label, epoch))


def seconds(side: Bare | Ours, steps: int) -> float:
    """Seconds a step takes."""
    start = time.perf_counter()
    for _ in range(steps):
        side.step()
    return (time.perf_counter() - start) / steps


def measure(method: str, precision: str, batch: int, size: int, repeats: int, steps: int) -> dict[str, Any]:
    """Images a second of both sides, interleaved, and the median of their ratios."""
    data = {"name": "shapes", "size": 4 * batch}
    bare, ours = (side(plan_for(method, data, precision, batch, size)) for side in (Bare, Ours))
    with fast_convolutions(bare.engine.method), fast_convolutions(ours.engine.method), kept_memory():
        seconds(bare, 2), seconds(ours, 2)
        pairs = [(seconds(bare, steps), seconds(ours, steps)) for _ in range(repeats)]
    return {
        "method": method,
        "precision": ours.engine.hardware.precision,
        "size": size,
        "batch": batch,
        "bare images/s": round(batch / statistics.median(pair[0] for pair in pairs), 1),
        "ours images/s": round(batch / statistics.median(pair[1] for pair in pairs), 1),
        "ratio": round(statistics.median(b / o for b, o in pairs), 3),
        "lowest ratio": round(min(b / o for b, o in pairs), 3),
        "highest ratio": round(max(b / o for b, o in pairs), 3),
    }


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("methods", nargs="*", default=sorted(ALONE))
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--precision", nargs="+", default=["auto"])
    parser.add_argument("--out", default="overhead", help="name of the results")
    arguments = parser.parse_args()
    rows = []
    for method in arguments.methods:
        for precision in arguments.precision:
            rows.append(measure(method, precision, arguments.batch, arguments.size, arguments.repeats, arguments.steps))
            print(json.dumps(rows[-1]), flush=True)
    write(arguments.out, rows, facts(repeats=arguments.repeats, steps=arguments.steps))
    columns = list(rows[0])
    print(describe.table(columns, [[str(value) for value in row.values()] for row in rows]))


if __name__ == "__main__":
    main()
