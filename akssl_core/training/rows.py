"""The rows of `metrics.jsonl`: the terms of the steps since the last one, rates, times, and what probes have found."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .. import dist
from ..console import attended, say
from .callback import Observers
from .checkpoint import Checkpoints, Diverged
from .engine import Engine, Terms
from .hardware import Cores

AT_ONCE = "No weight has moved yet: look at the settings of the loss and at the images, or use --precision fp32."


class Rows:
    """Writes the rows of `metrics.jsonl` and shows them: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, checkpoints: Checkpoints, observers: Observers) -> None:
        self.checkpoints, self.run_dir, self.observers = checkpoints, checkpoints.run_dir, observers
        self._terms: dict[str, Tensor] = {}
        self._count = 0
        self._diverged: Tensor | None = None  # the first step whose loss is not finite; 0: none
        self._extra: dict[str, float] = {}
        self._since = time.perf_counter()
        self._bar: tqdm[Any] | None = None
        self._shown = 0.0
        self._cores = Cores()

    def start(self, engine: Engine) -> None:
        """Open the progress bar."""
        if dist.is_main():
            now, hidden = engine.now, not attended()
            self._bar = tqdm(total=now.total_steps, initial=now.step, unit="step", disable=hidden, file=sys.stderr)
        self._since = time.perf_counter()

    def note(self, values: Mapping[str, float]) -> None:
        """Add numbers to the row of this step."""
        self._extra.update(values)

    def add(self, terms: Terms, step: int) -> None:
        """Add up the terms of a step, and remember the first without a finite loss."""
        for name, value in terms.items():
            self._terms[name] = self._terms[name] + value if name in self._terms else value
        self._count += 1
        if "loss" in terms:  # on the device: nobody waits for it here
            here = torch.where(terms["loss"].isfinite(), 0, step)
            earlier = here if self._diverged is None else self._diverged
            self._diverged = torch.where(earlier > 0, earlier, here)
        if self._bar is not None:
            self._bar.update()

    def close(self) -> None:
        """Close the progress bar."""
        if self._bar is not None:
            self._bar.close()

    def state(self) -> dict[str, Any]:
        """The sums of steps that have no row yet, over the processes; a float32 is exact in JSON, null is NaN."""
        return {"sums": self._over_processes(), "count": self._count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with these sums."""
        sums = {name: math.nan if value is None else value for name, value in state["sums"].items()}
        self._terms = {name: torch.tensor(value, dtype=torch.float32) for name, value in sums.items()}
        self._count = state["count"]

    def _over_processes(self) -> dict[str, float]:
        """The sums of the terms, averaged over the processes: each has seen a share of every batch."""
        if not self._terms:
            return {}
        sums = dist.mean(torch.stack([value.float() for value in self._terms.values()])).tolist()
        return dict(zip(self._terms, sums, strict=True))

    def check(self, step: int) -> None:
        """Stop a run whose loss is NaN or infinite, before anything of it is kept.

        Raises:
            Diverged: it is, with the step at which it began.
        """
        first = int(self._diverged) if self._diverged is not None else 0
        if dist.any_rank(first > 0):
            began = first or step
            advice = AT_ONCE if began == 1 else self.checkpoints.cure()
            raise Diverged(f"the loss of step {began} is not a finite number. {advice}")

    def write(self, engine: Engine) -> None:
        """A row of the steps since the last one, after a `check` of them."""
        self.check(engine.now.step)
        seconds = max(time.perf_counter() - self._since, 1e-6)  # a coarse clock may not have moved
        means = {name: value / self._count for name, value in self._over_processes().items()}
        spent = engine.clock.read()
        total, images = sum(spent.values()) or 1.0, self._count * engine.batch_size
        row = {
            "step": engine.now.step,
            "epoch": round(engine.now.epoch, 6),
            **means,
            "lr": engine.optimizer.param_groups[0]["lr"],
            "images_per_s": round(images / seconds, 2),
            "seconds": round(seconds, 3),
            **{f"time_{part}": round(took / total, 4) for part, took in spent.items()},  # shares
            **self._extra,
        }
        self._terms, self._count, self._extra = {}, 0, {}
        self._since = time.perf_counter()
        if dist.is_main():
            self.run_dir.log(row)
            self._show(row, engine.now.total_steps)
            if slow := self._cores.look(images, seconds):
                warnings.warn(slow, UserWarning, stacklevel=2)
            self.observers.tell("on_row", row)

    def _show(self, row: Mapping[str, Any], total: int) -> None:
        parts = [f"epoch {row['epoch']:g}"]
        parts += [f"{name} {row[name]:.4g}" for name in ("loss", "knn_top1", "std_ratio", "rankme") if name in row]
        text = ", ".join([*parts, f"{row['images_per_s']:.0f} images/s"])
        if self._bar is not None and not self._bar.disable:
            self._bar.set_postfix_str(text)
        elif "std_ratio" in row or row["step"] == total or time.perf_counter() - self._shown > 10:
            self._shown = time.perf_counter()
            say(f"step {row['step']}/{total}: {text}")
