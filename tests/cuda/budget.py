"""What a training step may cost on a CUDA device: counted on the null device, kept in `budget.json`.

`python tests/cuda/budget.py --write` counts again and writes the file, after a change that alters a cost on purpose.
`python tests/cuda/budget.py --table` prints what steps of the published sizes cost. The code that is measured is the
one that Python finds: set PYTHONPATH to another checkout and its plugins to measure that.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from null_device import missing, run

from akssl_core import TokenBackbone
from akssl_core.plugins.first_party import METHODS
from akssl_core.plugins.manager import installed

FILE = Path(__file__).with_name("budget.json")
KEPT = ("waits", "pageable", "launches", "collectives", "peak_mib")
EXACT = ("waits", "pageable", "collectives")  # the others may differ by this share
SLACK = 0.03
BACKBONES: Mapping[str, Mapping[str, Any]] = {
    "resnet18": {},
    "vit_tiny": {"patch_size": 8},
    "timm/mobilenetv3_small_050": {},
    "vit_small": {"patch_size": 8},
    "vit_micro": {"drop_path": 0.1, "registers": 2, "layer_scale": 0.1},
}
TOKENS = ("vit_micro", "vit_tiny", "vit_small")  # of methods over patch tokens
PRECISIONS = ("bf16", "fp16", "fp32")
OPTIMIZERS = ("sgd", "adamw", "lars")
Cost = Mapping[str, Any]


def configurations(*, every: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and requests of every combination; or of three a method, with each backbone, precision and optimizer once.

    Any nine methods in a row have each of the 27 triples once: those of method 3 a + b are (i, i + a, i + b) modulo 3.
    Beside them each method is one of eight processes with whole parameters, and every third one with shares of them.
    """
    for number, method in enumerate(sorted(METHODS)):
        backbones = TOKENS if installed().get("method", method).accepts is TokenBackbone else tuple(BACKBONES)
        for i, j, k in product(range(3), repeat=3):
            if every or ((j - i) % 3, (k - i) % 3) == (number // 3 % 3, number % 3):
                yield _request(method, backbones[i], PRECISIONS[j], OPTIMIZERS[k])
        yield _request(method, backbones[0], "bf16", "sgd", "ddp")
        if every or number % 3 == 0:
            yield _request(method, "vit_tiny", "bf16", "adamw", "fsdp")
    for method in ("dino", "simclr"):
        yield _request(method, "vit_micro", "bf16", "adamw")


def _request(
    method: str, backbone: str, precision: str, optimizer: str, strategy: str | None = None
) -> tuple[str, dict[str, Any]]:
    """A name and what to train, among eight processes where there is a strategy for them."""
    world = 1 if strategy is None else 8
    settings = {
        "backbone": {"name": backbone, **BACKBONES[backbone]},
        "precision": precision,
        "optimizer": {"name": optimizer},
        "batch_size": 16 * world,
        "image_size": 32,
        "train": {"strategy": strategy or "ddp"},
    }
    name = f"{method} {backbone} {precision} {optimizer}" + (f" {strategy} x {world}" if strategy else "")
    return name, {"method": method, "settings": settings, "world": world}


def measure(requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The answers of `null_device.steps`, all from one process."""
    found: list[dict[str, Any]] = json.loads(run("-m", "null_device.steps", stdin=json.dumps(requests)))
    return found


def differences(name: str, found: Cost, allowed: Cost | None, kept: Sequence[str] = KEPT) -> Iterator[str]:
    """How a step differs from what it may cost, in words."""
    if "error" in found:
        yield f"{name}: {found['error']}"
    elif allowed is None:
        yield f"{name}: not in {FILE.name}"
    else:
        for what in kept:
            if abs(found[what] - allowed[what]) > (0 if what in EXACT else SLACK * allowed[what]):
                yield f"{name}: {what} {allowed[what]} -> {found[what]}"
                places = found["places"] if what == "waits" else {}
                yield from (f"    {n} x {place}" for place, n in places.items())


def write() -> None:
    """Count again and keep it; where nothing differs by more than it may, what was kept stays."""
    names, requests = zip(*configurations(), strict=True)
    costs, before = dict(zip(names, measure(requests), strict=True)), read()
    for name, cost in costs.items():
        if "error" in cost:
            raise SystemExit(f"{name}: {cost['error']}")
        allowed = before["steps"].get(name)
        if before["torch"] != torch.__version__ or any(differences(name, cost, allowed)):
            before["steps"][name] = {what: cost[what] for what in KEPT}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(before['steps'][name])}" for name in names)
    FILE.write_text(f'{{"torch": {json.dumps(torch.__version__)}, "steps": {{\n{lines}\n}}}}\n')


def read() -> dict[str, Any]:
    """What is kept: the version of torch it was counted with, and the costs of steps by name."""
    kept: dict[str, Any] = json.loads(FILE.read_text())
    return kept


# -- the table ------------------------------------------------------------------------------------
SIZES = (
    ("cifar", 32, 256, 50_000, [(32, 32)]),
    ("imagenet", 224, 128, 1_281_167, [(256, 341), (341, 256), (256, 384), (256, 320)]),
)  # recipe, px, images a process and step, images, heights and widths
HEAD = "| method | backbone | waits | pageable | launches | peak GiB | 8 processes: launches | collectives | peak GiB |"


def table(names: Sequence[str]) -> Iterator[str]:
    """Lines of Markdown: what a step in bf16 costs by the recipes, in one process and in one of eight."""
    for recipe, side, batch, images, sides in SIZES:
        yield f"\n{recipe}, {side} px, {batch} images a process, bf16, torch {torch.__version__}\n\n{HEAD}"
        yield "|---" * (HEAD.count("|") - 1) + "|"
        settings = {"recipe": recipe, "precision": "bf16", "image_size": side}
        requests = [
            {"method": name, "settings": {**settings, "batch_size": batch * world}, "images": images, "sides": sides}
            | {"world": world}
            for name, world in product(names, (1, 8))
        ]
        costs = measure(requests)
        yield from map(_row, names, costs[::2], costs[1::2])


def _row(method: str, one: Cost, eight: Cost) -> str:
    if error := one.get("error") or eight.get("error"):
        return f"| {method} | {str(error).splitlines()[-1]} |"
    of_one = (one[what] for what in ("backbone", "waits", "pageable", "launches"))
    of_eight = (eight["launches"], eight["collectives"], _gib(eight))
    return "| " + " | ".join(map(str, (method, *of_one, _gib(one), *of_eight))) + " |"


def _gib(cost: Cost) -> str:
    return f"{cost['peak_mib'] / 1024:.1f}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"count again and write {FILE.name}")
    parser.add_argument("--table", action="store_true", help="print what steps of the published sizes cost")
    parser.add_argument("methods", nargs="*", help="of the table; by default all of ours")
    asked = parser.parse_args()
    if reason := missing():
        raise SystemExit(reason)
    if asked.write:
        write()
    if asked.table:
        for line in table(asked.methods or sorted(METHODS)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
