"""Rules for what nobody decided: pure functions of the settings and of facts, in the form of `Method.choose`."""

from __future__ import annotations

from operator import attrgetter

from ..backbone import default_backbone
from ..method import Choice
from ..optim import Optimizer, OptimizerConfig
from ..settings import Layers, RunSpec
from ..training.hardware import Hardware

BUDGET = 250_000  # images of 32 x 32 px that a run sees when nobody says how long it should train
SLOW = 3  # times as long as with bf16 units takes a CPU without them
CPU_IMAGE_SIZE = 64  # larger views need hours on a CPU; the user may still ask for them


def view_size(natural_size: int, *, on_cpu: bool) -> Choice:
    """The side of the global views in pixels: what suits the images, if it suits the machine."""
    if on_cpu and natural_size > CPU_IMAGE_SIZE:
        return Choice(CPU_IMAGE_SIZE, f"{natural_size} suits the images, {CPU_IMAGE_SIZE} suits a CPU")
    return Choice(natural_size, "the size of the images")


def passes(images: int, side: int, hardware: Hardware) -> Choice:
    """How often a run sees the images when nobody says how long it should train."""
    slow = hardware.device.type == "cpu" and hardware.precision == "fp32"
    full, few = (min(max(round(budget / images * (32 / side) ** 2), 5), 200) for budget in (BUDGET, BUDGET / SLOW))
    seen = f"about {(few if slow else full) * images} images seen, a small budget"
    if slow and few < full:
        return Choice(few, f"{seen}, because this CPU computes in fp32; --epochs {full} is the one of other machines")
    return Choice(full, seen)


def core_rules(spec: RunSpec, layers: Layers, size: Choice, images: int, hardware: Hardware) -> dict[str, Choice]:
    """The choices of the core where `spec` says nothing, by dotted path.

    Few images also reduce a recipe's batch, and with it a recipe's learning rate that nothing scales. `layers` tell
    who set what, `size` is what `view_size` says, and `images` counts those that are trained on.
    """
    train, side = spec.train, spec.train.image_size or size.value
    batch = train.batch_size
    if batch is None or (images < 4 * batch and not layers.set_by_user("train", "batch_size")):
        fitting = 1 << max((images // 4).bit_length() - 1, 1)  # a power of two that gives four batches, 2 or more
        batch = min(batch or 256, fitting)
    steps = max(images // batch, 1)
    epochs = passes(images, side, hardware)
    if train.steps is not None:
        epochs = Choice(-(-train.steps // steps), f"{train.steps} steps")
    length = train.epochs or epochs.value
    choices = {
        "train.image_size": size,
        "train.batch_size": Choice(batch, f"at least four batches from {images} images"),
        "train.epochs": epochs,
        "train.log_every": Choice(min(steps, 50), "once an epoch, at least every 50 steps"),
        "train.checkpoint_every": Choice(-(-100 // steps) * steps, "whole epochs, at least 100 steps apart"),
        "evaluate.every": Choice(float(-(-length // 10)), "about ten probes in a run"),
        "train.workers": Choice(0, "reading needs no further processes unless you ask for them"),
        "backbone": Choice(*default_backbone(spec.method_class.accepts, side)),
    }
    chosen = {path: one for path, one in choices.items() if attrgetter(path)(spec) is None}
    if train.batch_size is not None and batch != train.batch_size:
        chosen["train.batch_size"] = choices["train.batch_size"]
        if not layers.set_by_user("optimizer", "lr"):
            chosen |= _rate_for(spec, batch / train.batch_size)
    if layers.origin.get("optimizer.lr.warmup", "").startswith("rule"):
        chosen["optimizer.lr.warmup"] = Choice(min(1.0, length / 10), "at most a tenth of the run")
    return chosen


def _rate_for(spec: RunSpec, share: float) -> dict[str, Choice]:
    """The learning rate of a recipe at a share of its batch, where no setting scales it.

    In proportion, as Goyal et al. 2017 (arXiv 1706.02677) have it for SGD; by the square root for adaptive steps
    (Malladi et al. 2022, arXiv 2205.10287).
    """
    rates, kind = spec.optimizer.config, spec.optimizer.component
    assert isinstance(rates, OptimizerConfig)
    assert issubclass(kind, Optimizer)
    if rates.lr_per is not None:
        return {}
    factor, how = (share**0.5, "the square root of the") if kind.adaptive else (share, "in proportion to the")
    return {"optimizer.lr.start": Choice(rates.lr.start * factor, f"{how} smaller batch")}
