"""Rules for what nobody decided: pure functions of the settings and of facts, in the form of `Method.choose`."""

from __future__ import annotations

from operator import attrgetter

from ..backbone import default_backbone
from ..method import Choice
from ..settings import RunSpec

BUDGET = 250_000  # images of 32 x 32 px that a run sees when nobody says how long it should train
CPU_IMAGE_SIZE = 64  # larger views need hours on a CPU; the user may still ask for them


def view_size(natural_size: int, *, on_cpu: bool) -> Choice:
    """The side of the global views in pixels: what suits the images, if it suits the machine."""
    if on_cpu and natural_size > CPU_IMAGE_SIZE:
        return Choice(CPU_IMAGE_SIZE, f"{natural_size} suits the images, {CPU_IMAGE_SIZE} suits a CPU")
    return Choice(natural_size, "the size of the images")


def core_rules(spec: RunSpec, size: Choice, images: int, *, batch_is_users: bool) -> dict[str, Choice]:
    """The choices of the core where `spec` says nothing, by dotted path; few images also reduce a recipe's batch.

    `size` is what `view_size` says; `images` counts those that are trained on.
    """
    train, side = spec.train, spec.train.image_size or size.value
    batch, epochs = train.batch_size, train.epochs
    if batch is None or (images < 4 * batch and not batch_is_users):
        fitting = 1 << max((images // 4).bit_length() - 1, 1)  # a power of two that gives four batches, 2 or more
        batch = min(batch or 256, fitting)
    steps = max(images // batch, 1)
    if epochs is None:
        budget = min(max(round(BUDGET / images * (32 / side) ** 2), 5), 200)
        epochs = budget if train.steps is None else -(-train.steps // steps)
    choices = {
        "train.image_size": size,
        "train.batch_size": Choice(batch, f"at least four batches from {images} images"),
        "train.epochs": Choice(epochs, f"about {epochs * images} images seen, a small budget"),
        "train.log_every": Choice(min(steps, 50), "once an epoch, at least every 50 steps"),
        "train.checkpoint_every": Choice(-(-100 // steps) * steps, "whole epochs, at least 100 steps apart"),
        "evaluate.every": Choice(float(-(-epochs // 10)), "about ten probes in a run"),
        "train.workers": Choice(0, "reading needs no further processes unless you ask for them"),
        "backbone": Choice(*default_backbone(spec.method_class.accepts, side)),
    }
    gives_way = {"train.batch_size"} if batch != train.batch_size else set()
    return {path: one for path, one in choices.items() if path in gives_way or attrgetter(path)(spec) is None}
