"""Rules for what nobody decided: each looks at the data or the hardware and leaves its reason."""

from __future__ import annotations

from ..backbone import default_backbone
from ..data import DatasetSource
from ..method import Facts
from ..settings import RunSpec
from .layers import Layers

BUDGET = 250_000  # images of 32 x 32 px that a run sees when nobody says how long it should train
CPU_IMAGE_SIZE = 64  # larger views need hours on a CPU; the user may still ask for them


def fill_size(layers: Layers, spec: RunSpec, source: DatasetSource, *, on_cpu: bool) -> int:
    """The side of the global views in pixels."""
    if spec.train.image_size is not None:
        return spec.train.image_size
    size, reason = source.natural_size, "rule: the size of the images"
    if on_cpu and size > CPU_IMAGE_SIZE:
        reason = f"rule: {size} suits the images, {CPU_IMAGE_SIZE} suits a CPU"
        size = CPU_IMAGE_SIZE
    layers.set(["train", "image_size"], size, reason)
    source.asked_size = size  # photos are decoded about that large
    return size


def fill_lengths(layers: Layers, spec: RunSpec, count: int, size: int) -> None:
    """Batch size, epochs and the periods of rows, probes and checkpoints."""
    train = spec.train
    batch = train.batch_size
    if batch is None or (count < 4 * batch and layers.origin["train.batch_size"].startswith("recipe")):
        batch = _fitting_batch(count, batch or 256)
        layers.set(["train", "batch_size"], batch, f"rule: at least four batches from {count} images")
    steps = max(count // batch, 1)
    epochs = train.epochs
    if epochs is None:
        epochs = min(max(round(BUDGET / count * (32 / size) ** 2), 5), 200)
        if train.steps is not None:
            epochs = -(-train.steps // steps)
        layers.set(["train", "epochs"], epochs, f"rule: about {epochs * count} images seen, a small budget")
    if train.log_every is None:
        layers.set(["train", "log_every"], min(steps, 50), "rule: once an epoch, at least every 50 steps")
    if train.checkpoint_every is None:
        layers.set(
            ["train", "checkpoint_every"], -(-100 // steps) * steps, "rule: whole epochs, at least 100 steps apart"
        )
    if spec.evaluate.every is None:
        layers.set(["evaluate", "every"], float(-(-epochs // 10)), "rule: about ten probes in a run")
    if train.workers is None:
        layers.set(["train", "workers"], 0, "rule: reading needs no further processes unless you ask for them")


def _fitting_batch(count: int, wanted: int) -> int:
    """The largest power of two that gives four batches, between 2 and what was wanted."""
    fitting = 1 << max((count // 4).bit_length() - 1, 1)
    return min(wanted, fitting)


def fill_backbone(layers: Layers, spec: RunSpec, size: int) -> None:
    """The backbone, where nobody named one."""
    if spec.backbone is None:
        name, reason = default_backbone(spec.method_class.accepts, size)
        layers.set(["backbone", "name"], name, f"rule: {reason}")


def fill_method(layers: Layers, spec: RunSpec, facts: Facts) -> None:
    """The method's own settings that follow the size of the data, unless the user has set them."""
    for name, choice in spec.method_class.choose(spec.method.config, facts).items():
        if not layers.set_by_user("method", name):
            layers.set(["method", name], choice.value, f"rule: {choice.reason}")
