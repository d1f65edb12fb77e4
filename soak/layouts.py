"""Does the result depend on how the work is shared out? Each method on one process, two, and in two micro-batches.

Every layout trains the same five steps of the same run: one process with the whole batch is what the others are
compared with. Two processes talk through gloo, with batch norms over both, or share out the parameters (FSDP). MoCo v2,
whose batch norms must differ between parts of a batch, is compared with norms held still, as micro-batches are. A
resumed run has done its first three steps in the one layout and the others in the other. Told are the largest
differences of the loss, of any gradient and of any tensor of the method's state, relative to the largest entry of the
same tensor. Writes soak/results/layouts.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

import akssl_core
from akssl_core import dist
from akssl_core.config import describe
from akssl_core.plugins.first_party import METHODS
from akssl_core.plugins.manager import Plugins, installed
from akssl_core.rundir.folder import RunDir
from akssl_core.training.recorder import Interrupted

RESULTS = Path(__file__).parent / "results"
STEPS, BREAK = 5, 3  # steps of a run, and where one is taken over by the other layout
BATCH = 32
FAR = 1e-4  # a tensor whose largest entry is smaller is compared with this: it is zero but for rounding
SETTINGS: dict[str, Any] = {
    "data": {"name": "shapes", "size": 4 * BATCH, "test_size": 32},
    "batch_size": BATCH, "image_size": 16, "epochs": 2, "precision": "fp32", "device": "cpu", "seed": 2,
    "report": False,
    "train": {"steps": STEPS, "log_every": 1, "checkpoint_every": 1, "keep": STEPS},
    "optimizer": {"name": "sgd", "lr": 0.002, "exempt_1d": True},  # others scale rounding up
    "evaluate": {"queries": 16, "bank": 16, "online_queries": 16, "online_bank": 16},
}  # fmt: skip
CONVOLUTIONS = {"name": "smooth"}  # batch norms; behind a ReLU, one unit that rounding turns over is seen in all
TOKENS = {"name": "vit_tiny", "patch_size": 4}  # layer norms alone, but for those of the heads
COLUMNS = ("method", "backbone", "norms", "layout", "loss", "gradient", "state")


class Smooth(akssl_core.Backbone):
    """Convolutions with batch norms, and no unit that can turn over."""

    name = "smooth"
    embed_dim = 32

    def __init__(self, config: Any, image: akssl_core.ImageSpec) -> None:
        super().__init__(config, image)
        widths = (image.channels, 16, 32, 32)
        self.layers = nn.Sequential(*(self._layer(*pair) for pair in pairwise(widths)))

    @staticmethod
    def _layer(width_in: int, width_out: int) -> nn.Sequential:
        convolution = nn.Conv2d(width_in, width_out, 3, stride=2, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(width_out), nn.GELU())

    def features(self, images: torch.Tensor) -> akssl_core.Features:
        """Means over the map."""
        return akssl_core.Features(self.layers(images).mean((2, 3)))


class Watch(akssl_core.Callback):
    """Keeps the gradients of the last step as the optimizer sees them; may hold batch norms still, may stop a run."""

    name = "watch"
    still, stop_at = False, 0
    seen: dict[str, torch.Tensor]

    def on_start(self, engine: Any) -> None:
        """Look at every step of the optimizer."""
        if self.still:
            for module in engine.method.modules():
                if isinstance(module, _BatchNorm):
                    module.forward = partial(by_running_statistics, module)
        named = list(engine.method.named_parameters())

        def look(*_: Any) -> None:
            type(self).seen = {name: whole(p.grad) for name, p in named if p.grad is not None}

        engine.optimizer.register_step_pre_hook(look)

    def on_step(self, engine: Any, terms: Any) -> None:
        """Stop before this step's checkpoint, so that the one before is the last."""
        if engine.now.step == self.stop_at:
            raise Interrupted("enough")


def by_running_statistics(norm: _BatchNorm, x: torch.Tensor) -> torch.Tensor:
    """What a batch norm computes in evaluation."""
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor, put together where it is shared out."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


# -- one layout -----------------------------------------------------------------------------------
def train(case: dict[str, Any], folder: Path) -> None:
    """One run in this process's layout; the gradients of its last step lie beside it."""
    plugins = Plugins()
    Watch.still, Watch.stop_at = case["still"], case.get("stop_at", 0)
    for component in (Watch, Smooth):
        plugins.registry.add(component)
    try:
        if case.get("resume"):
            akssl_core.resume(folder, report=False, plugins=plugins)
        else:
            settings = {**SETTINGS, **case["settings"], "train": {**SETTINGS["train"], **case.get("train", {})}}
            akssl_core.run(case["method"], out=folder, callbacks=["watch"], plugins=plugins, **settings)
    except Interrupted:
        return
    if dist.is_main():
        save_file({name: grad.contiguous() for name, grad in Watch.seen.items()}, folder / "gradients.safetensors")


def work(cases: Path) -> None:
    """All runs of one layout, in one group of processes."""
    torch.set_num_threads(1)
    dist.start("cpu")
    for folder, case in json.loads(cases.read_text()).items():
        train(case, Path(folder))
    dist.stop()


def launch(processes: int, cases: dict[Path, dict[str, Any]], folder: Path) -> None:
    """Have these runs done by so many processes."""
    file = folder / f"cases-{processes}.json"
    file.write_text(json.dumps({str(path): case for path, case in cases.items()}))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), __file__, "--cases", str(file)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[:8000])


# -- comparison -----------------------------------------------------------------------------------
def outcome(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Losses of all steps, gradients of the last, and the state after it."""
    run = RunDir.open(folder)
    checkpoint, _ = run.latest()
    assert checkpoint is not None
    assert checkpoint.state.step == STEPS
    losses = {str(row["step"]): torch.tensor(row["loss"]) for row in run.history}
    assert len(losses) == STEPS, losses
    return {"loss": losses, "gradient": load_file(folder / "gradients.safetensors"), "state": checkpoint.model}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest relative difference between tensors of the same name."""
    assert one.keys() == other.keys()
    gaps = [
        float((other[name].double() - x.double()).abs().max() / x.double().abs().max().clamp(min=FAR))
        for name, x in one.items()
    ]
    return max(gaps)


# -- the table ------------------------------------------------------------------------------------
def plans(methods: list[str]) -> list[dict[str, Any]]:
    """What is trained, for each method: its backbone, and whether norms are held still."""
    found = []
    for method in methods:
        apart = not installed().get("method", method).shared_batch_norm
        if issubclass(Smooth, installed().get("method", method).accepts):
            found.append({"method": method, "settings": {"backbone": CONVOLUTIONS}, "still": apart})
        found.append({"method": method, "settings": {"backbone": TOKENS}, "still": True})
    return found


def table(methods: list[str]) -> list[dict[str, str]]:
    """One row for each method, backbone and layout."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        cases = {str(i): case for i, case in enumerate(plans(methods))}
        single = {root / f"{i}-one": case for i, case in cases.items()}
        double = {root / f"{i}-two": case for i, case in cases.items()}
        adding = {i: case for i, case in cases.items() if case["still"] and accumulates(case["method"])}
        single |= {root / f"{i}-micro": {**case, "train": {"accumulate": 2}} for i, case in adding.items()}
        halved = {i: {**case, "stop_at": BREAK + 1} for i, case in cases.items()}
        double |= {
            root / f"{i}-fsdp": {**case, "train": {"strategy": "fsdp"}}
            for i, case in cases.items()
            if case["settings"]["backbone"] is TOKENS
        }
        launch(1, single | {root / f"{i}-one-two": case for i, case in halved.items()}, root)
        launch(2, double | {root / f"{i}-two-one": case for i, case in halved.items()}, root)
        launch(2, {root / f"{i}-one-two": {**case, "resume": True} for i, case in cases.items()}, root)
        launch(1, {root / f"{i}-two-one": {**case, "resume": True} for i, case in cases.items()}, root)
        return [row for i, case in cases.items() for row in compared(root, i, case)]


LAYOUTS = {
    "two": "2 processes",
    "fsdp": "2 processes, FSDP",
    "micro": "2 micro-batches",
    "one-two": "1, resumed on 2",
    "two-one": "2, resumed on 1",
}


def compared(root: Path, i: str, case: dict[str, Any]) -> list[dict[str, str]]:
    """The differences of one method's layouts from one process with the whole batch."""
    expected = outcome(root / f"{i}-one")
    rows = []
    for key, layout in LAYOUTS.items():
        row = {
            "method": case["method"],
            "backbone": case["settings"]["backbone"]["name"],
            "norms": "held still" if case["still"] else "training",
            "layout": layout,
        }
        folder = root / f"{i}-{key}"
        if folder.exists():
            found = outcome(folder)
            rows.append({**row, **{kind: f"{difference(expected[kind], found[kind]):.1e}" for kind in expected}})
        elif key == "micro" and case["still"]:
            rows.append({**row, "loss": "refused", "gradient": "-", "state": "-"})
    return rows


def accumulates(method: str) -> bool:
    """Whether the method can be trained in micro-batches."""
    return bool(installed().get("method", method).accumulates)


def main() -> None:
    """Compare, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("methods", nargs="*", default=sorted(METHODS))
    parser.add_argument("--cases", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cases:
        return work(arguments.cases)
    rows = table(arguments.methods)
    cells = [[row[column] for column in COLUMNS] for row in rows]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "layouts.json").write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")
    (RESULTS / "layouts.md").write_text(describe.markdown(COLUMNS, cells) + "\n")
    print(describe.table(COLUMNS, cells))


if __name__ == "__main__":
    main()
