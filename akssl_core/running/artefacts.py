"""What a method has to show at the end of a run: asked for once, checked, and never a reason to lose the run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import dist
from ..backbone.base import evaluating
from ..data import Batch
from ..data.base import LARGEST
from ..draws import Draws
from ..errors import shown, told
from ..method import Artefacts, Method
from ..schedule import Now
from ..training.engine import Engine
from ..training.hardware import seed_generators
from .plan import Plan
from .samples import sample_index


@dataclass
class Kept:
    """The artefacts of a method that can be kept, on the CPU."""

    pictures: dict[str, Tensor] = field(default_factory=dict)
    """Name -> (B, C, H, W) uint8."""
    numbers: dict[str, float] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """What cannot be kept, and why."""

    def samples(self) -> dict[str, Tensor]:
        """The pictures as `samples.safetensors` holds them, which keeps no order: `method.<number>.<name>`."""
        return {f"method.{i:03}.{name}": images[:, None] for i, (name, images) in enumerate(self.pictures.items())}


def of_run(plan: Plan, engine: Engine, taken: Collection[str]) -> Kept:
    """The artefacts of a run that has ended, in its main process; `taken` are names of numbers that it has already.

    The images are those whose views the report shows.
    """
    method = engine.method
    if type(method).artefacts is Method.artefacts:
        return Kept()
    if engine.sharded:
        kept = Kept(problems=["no process has all parameters (train.strategy fsdp), so they were not asked for"])
    else:
        seed_generators(engine.device, plan.spec.seed)
        kept = of_method(method, _batch(plan, engine), engine.now, taken)
    if kept.problems:
        text = f"method {method.name}: left out of its artefacts: {'; '.join(kept.problems)}"
        warnings.warn(text, UserWarning, stacklevel=2)
    return kept


def of_method(method: Method, batch: Batch, now: Now, taken: Collection[str] = ()) -> Kept:
    """The artefacts of a method as it stands; whatever it does wrong is a problem that is told."""
    try:
        with evaluating(method), dist.acting_in(dist.Imagined(1)):
            found: Any = method.artefacts(batch, now)
            if not isinstance(found, Artefacts):
                return Kept(problems=[f"artefacts() returned {shown(found)} instead of Artefacts(...)"])
            return _checked(found, len(batch), taken)
    except Exception as error:  # the run is worth more than its pictures
        return Kept(problems=[f"all, for artefacts() failed: {told(error)}"])


def _batch(plan: Plan, engine: Engine) -> Batch:
    index, seed = sample_index(plan), plan.spec.seed
    pixels = plan.images.fetch(index.tolist()).to(engine.device)
    views, labels = plan.augmentation(pixels, Draws.of(seed, 0, index)), plan.images.labels
    label = None if labels is None else labels[index].to(engine.device)
    return Batch(views, index.to(engine.device), label, seed, engine.now.step, index)


def _checked(found: Artefacts, images: int, taken: Collection[str]) -> Kept:
    kept = Kept()
    for name, picture in _tensors(found.pictures, "picture", kept.problems).items():
        if picture.ndim != 4 or len(picture) != images or not 0 < min(picture.shape) <= max(picture.shape) <= LARGEST:
            shape = tuple(picture.shape)
            kept.problems.append(
                f"picture '{name}' is {shape}; expected ({images}, C, H, W), an image of the batch each"
            )
        elif not picture.isfinite().all():
            kept.problems.append(f"picture '{name}' has values that are not finite; expected values in [0, 1]")
        else:
            kept.pictures[name] = (picture.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    for name, value in _named(found.numbers, "number", kept.problems).items():
        if name in taken:
            kept.problems.append(f"number '{name}', which the run has already; give it another name")
        elif not math.isfinite(number := float(value)):
            kept.problems.append(f"number '{name}' is {number}; expected a finite one")
        else:
            kept.numbers[name] = number
    tensors = _tensors(found.tensors, "tensor", kept.problems)
    kept.tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    return kept


def _named(values: Mapping[Any, Any], what: str, problems: list[str]) -> dict[str, Any]:
    """Those under a name that a file can hold."""
    good = {n: x for n, x in values.items() if isinstance(n, str) and n.isprintable() and n not in ("", "__metadata__")}
    problems += [f"{what} {shown(name)}, which is no name" for name in values if name not in good]
    return good


def _tensors(values: Mapping[Any, Any], what: str, problems: list[str]) -> dict[str, Tensor]:
    """Those of them that are tensors of real numbers."""
    named = _named(values, what, problems)
    good = {
        n: x for n, x in named.items() if isinstance(x, Tensor) and x.layout == torch.strided and not x.is_complex()
    }
    problems += [
        f"{what} '{name}' is {shown(x)}, no tensor of real numbers" for name, x in named.items() if name not in good
    ]
    return good
