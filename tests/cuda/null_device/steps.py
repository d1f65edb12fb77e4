"""What a training step costs: requests as a JSON list on stdin, their answers as one on stdout.

A request is `{"method": NAME, "settings": {...}}` and, where it matters, `"images"`: how many there are, `"sides"`:
their heights and widths in turn, `"world"`: among how many processes this one trains, `"operators"`: list them.
An answer is `{"waits": ..., "launches": ..., "peak_mib": ..., ...}`, or `{"error": TRACEBACK}`.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch.distributed as distributed
from torch import Tensor
from torch.utils.data import Dataset

from akssl_core.plugins.manager import installed
from akssl_core.running.layers import collect
from akssl_core.running.plan import make_plan
from null_device.counting import counts, waits
from null_device.operators import Operators

RANDOM = ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_")
WARM, WARM_DDP = 2, 11  # steps before the one that is measured; DDP waits in its first ten to time itself


class Photos(Dataset[Tensor]):
    """So many images of noise, of these sizes in turn."""

    def __init__(self, count: int, sides: list[tuple[int, int]]) -> None:
        self.count = count
        self.images = [torch.randint(256, (3, *side), dtype=torch.uint8) for side in sides]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Tensor:
        return self.images[i % len(self.images)]


class Meter:
    """Follows an engine and counts what one of its steps does, from the loading of its batch on."""

    def __init__(self, warm: int) -> None:
        self.warm = warm
        self.cost: dict[str, Any] = {}
        self._listening = ExitStack()

    def on_start(self, engine: Any) -> None:
        """Before the first step."""
        self._steps = 0

    def on_step(self, engine: Any, terms: Any) -> None:
        """After each step."""
        self._steps += 1
        if self._steps == self.warm:
            torch.cuda.reset_peak_memory_stats()
            self._before, self._places = counts(), self._listening.enter_context(waits())
        elif self._steps == self.warm + 1:
            after = counts()
            self._listening.close()
            self.cost = {name: after[name] - self._before[name] for name in after} | {"places": self._places}
            self.cost["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)

    def on_epoch(self, engine: Any) -> None:
        """Nothing of it is counted."""

    def on_end(self, engine: Any) -> None:
        """Nor of this."""


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Train a few steps as a request says."""
    gc.collect()
    torch.cuda.empty_cache()
    operators = Operators() if request.get("operators") else nullcontext()
    world = request.get("world", 1)
    meter = Meter(WARM if world == 1 else WARM_DDP)
    try:
        with _among(world):
            engine = _plan(request, meter.warm + 2).engine([meter])  # a step follows, for which a loader may prepare
            with operators:
                engine.fit()
    except Exception:
        return {"error": traceback.format_exc()}
    kinds = sorted(operators.seen) if isinstance(operators, Operators) else None
    return meter.cost | {"backbone": engine.method.backbone.name, "operators": kinds}


def _plan(request: Mapping[str, Any], steps: int) -> Any:
    data = Photos(request.get("images", 640), request.get("sides", [(40, 40)]))
    settings = {"data": data, "epochs": 20, **request["settings"]}
    settings["train"] = {"steps": steps, **settings.get("train", {})}
    method: Any = installed().get("method", request["method"])
    given = collect({"name": method.name, **method.trial_settings}, None, settings, installed())
    saved = {} if method.trial_settings else dict.fromkeys(RANDOM, lambda weights, *_, **__: weights)
    with mock.patch.multiple(torch.nn.init, **saved) if saved else nullcontext():  # a teacher needs its own
        return make_plan(given, installed())


@contextmanager
def _among(world: int) -> Iterator[None]:
    """As the first of so many processes, one a machine, of which the others are not there."""
    if world == 1:
        yield
        return
    import torch.testing._internal.distributed.fake_pg  # noqa: F401  (registers the backend "fake")

    distributed.init_process_group("cpu:fake,cuda:nccl", rank=0, world_size=world, store=distributed.HashStore())
    try:
        with mock.patch.dict(os.environ, {"LOCAL_WORLD_SIZE": "1"}):
            yield
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    gc.collect()
    gc.freeze()  # what was imported stays, and need not be looked through after each request
    print(json.dumps([answer(request) for request in json.load(sys.stdin)]))
