"""Rules of the core: choices for what nobody decided, and settings that go badly together, whatever the method.

Choices are pure functions of the settings and of facts, in the form of `Method.choose`. What goes badly together is
refused, or told before the run starts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from .. import dist
from ..augment import Augmentation
from ..backbone import Backbone, TokenBackbone, default_backbone
from ..config import describe
from ..data import ImageSet
from ..data.labels import without
from ..data.stored import usable_cores
from ..errors import ConfigError, DataError
from ..method import Choice, Facts, Method
from ..metrics.features import spread
from ..optim import Optimizer, OptimizerConfig
from ..schedule import Now
from ..settings import CORE, Layers, RunSpec, StartSpec, TrainSpec
from ..training.hardware import Hardware

BUDGET = 200_000  # images of 32 x 32 px that a run sees when nobody says how long it should train
SLOW = 3  # times as long as with bf16 units takes a CPU without them
CPU_IMAGE_SIZE = 64  # larger views need hours on a CPU; the user may still ask for them
TRIAL = 200  # steps; in a shorter run nothing is learned, whatever its rates
FEWEST = 10  # images of which some can be held out
HEADS_ALONE, LONG_ENOUGH = 0.1, 1000  # of a run that begins from weights: share of the run, steps
FACTOR = 4  # how far a batch may be from that of the recipe's learning rate


# -- choices -------------------------------------------------------------------------------------
def view_size(natural_size: int, *, on_cpu: bool) -> Choice:
    """The side of the images in pixels: what suits the images, if it suits the machine."""
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


def readers(images: ImageSet, processes: int) -> Choice:
    """How many processes read the images, or threads decode them, in each of so many processes of this machine."""
    if images.decoder is None:
        return Choice(0, "reading needs no further processes unless you ask for them")
    cores = usable_cores()
    shared = f", shared by {processes} processes" if processes > 1 else ""
    return Choice(max(1, cores // processes), f"threads that decode, one for each of the {cores} usable cores{shared}")


def core_rules(spec: RunSpec, layers: Layers, size: Choice, images: ImageSet, hardware: Hardware) -> dict[str, Choice]:
    """The choices of the core where `spec` says nothing, by dotted path.

    Few images also reduce a recipe's batch, and with it a recipe's learning rate that nothing scales. `layers` tell
    who set what, `size` is what `view_size` says, and `images` are those that are trained on.
    """
    train, side, count = spec.train, spec.train.image_size or size.value, len(images)
    batch = train.batch_size
    if batch is None or (count < 4 * batch and not layers.set_by_user("train", "batch_size")):
        fitting = 1 << max((count // 4).bit_length() - 1, 1)  # a power of two that gives four batches, 2 or more
        batch = min(batch or 256, fitting)
    steps = max(count // batch, 1)
    epochs = passes(count, side, hardware)
    if train.steps is not None:
        epochs = Choice(-(-train.steps // steps), f"{train.steps} steps")
    length = min(train.epochs or epochs.value, (train.steps or math.inf) / steps)
    choices = {
        "train.image_size": size,
        "train.batch_size": Choice(batch, f"at least four batches from {count} images"),
        "train.epochs": epochs,
        "train.log_every": Choice(min(steps, 50), "once an epoch, at least every 50 steps"),
        "evaluate.every": Choice(float(-(-length // 10)), "about ten probes in a run"),
        "train.workers": readers(images, max(train.devices, dist.local_world())),
        "backbone": Choice(*default_backbone(spec.method_class.accepts, side)),
    }
    chosen = {path: one for path, one in choices.items() if attrgetter(path)(spec) is None}
    if train.batch_size is not None and batch != train.batch_size:
        chosen["train.batch_size"] = choices["train.batch_size"]
    if not layers.set_by_user("optimizer", "lr"):
        chosen |= _rate_for(spec, batch / (train.batch_size or batch))
    if spec.start is not None:
        chosen |= _heads_alone(spec.start, steps, round(length * steps))
    if layers.origin.get("optimizer.lr.warmup", "").startswith("rule"):
        chosen["optimizer.lr.warmup"] = Choice(min(1.0, round(length / 10, 4)), "at most a tenth of the run")
    return chosen


def _rate_for(spec: RunSpec, share: float) -> dict[str, Choice]:
    """The learning rate of a recipe at a share of its batch, where no setting scales it, and of a run from weights.

    In proportion to the batch, as Goyal et al. 2017 (arXiv 1706.02677) have it for SGD; by the square root for
    adaptive steps (Malladi et al. 2022, arXiv 2205.10287).
    """
    rates, kind = spec.optimizer.config, spec.optimizer.component
    assert isinstance(rates, OptimizerConfig)
    assert issubclass(kind, Optimizer)
    factor, why = 1.0, []
    if rates.lr_per is None and share != 1:
        factor, how = (share**0.5, "the square root of the") if kind.adaptive else (share, "in proportion to the")
        why.append(f"{how} smaller batch")
    if spec.start is not None and kind.from_weights != 1:
        factor *= kind.from_weights
        why.append(f"{kind.from_weights:g} of the rate from random weights, for the run begins from trained ones")
    return {"optimizer.lr.start": Choice(rates.lr.start * factor, "; ".join(why))} if why else {}


def _heads_alone(start: StartSpec, steps: int, total: int) -> dict[str, Choice]:
    """How long new heads learn alone in a run of so many steps, in epochs of `steps`."""
    if start.warm_heads is not None:
        return {}
    most = "an epoch" if steps > LONG_ENOUGH else f"{LONG_ENOUGH} steps"
    alone = int(min(HEADS_ALONE * total, max(steps, LONG_ENOUGH)))
    why = f"new heads learn alone for {alone} steps: a tenth of the run, at most {most}"
    return {"start.warm_heads": Choice(alone / steps, why)}


def held_out(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Images apart: those to train on, and those to choose weights by, one in ten, or up to 2000 of few.

    2000 images tell apart accuracies that differ by about 2 points (95 %, paired). They are labelled ones where
    there are any, and spread over the data; at most a fifth of the images, or 5000.

    Raises:
        DataError: there are less than ten.
    """
    count, known = len(images), images.known_labels()[0]
    if count < FEWEST:
        raise DataError(f"data: {count} images are too few to hold some out; start.keep=best takes {FEWEST}.")
    rows = torch.nonzero(images.labels >= 0).flatten() if images.labels is not None and known else torch.arange(count)
    share = max(min(max(count // 10, 2000), count // 5, 5000, len(rows) // 2), 1)
    chosen = rows[spread(len(rows), share)]
    return images.subset(without(chosen, count)), images.subset(chosen)


# -- what goes badly together ---------------------------------------------------------------------
def length(train: TrainSpec, images: int) -> Now:
    """The run before its first step."""
    per_epoch = max(images // (train.batch_size or 1), 1)
    total = per_epoch * (train.epochs or 1)
    return Now(0, per_epoch, min(total, train.steps or total))


def refuse(spec: RunSpec) -> None:
    """Refuses what no data and no machine could make work.

    Raises:
        ConfigError: micro-batches whose losses do not add up to that of the batch; fp16 or too few processes.
    """
    train, method = spec.train, spec.method_class
    if train.accumulate > 1 and not method.accumulates:
        raise ConfigError(
            f"train.accumulate: the losses of {train.accumulate} micro-batches are not that of the batch, as far as "
            f"{method.name} says (accumulates). Use 1, with a smaller batch or more processes (--devices)."
        )
    if train.strategy == "fsdp" and spec.start is not None and spec.start.statistics == "measure":
        raise ConfigError("start.statistics: 'measure' does not go with train.strategy fsdp. Use 'keep', or ddp.")
    if train.strategy == "fsdp" and train.precision == "fp16":
        raise ConfigError("train.strategy: 'fsdp' does not go with precision fp16; use bf16, fp32 or strategy ddp.")
    if train.devices != dist.world() and train.devices > 1:
        raise ConfigError(
            f"train.devices: {train.devices} processes are started by the command line, 'akssl run ... --devices "
            f"{train.devices}', or by torchrun --nproc-per-node {train.devices}; this is {dist.world()}."
        )


def refuse_backbone(spec: RunSpec, backbone: Backbone) -> None:
    """Refuses a backbone that the method does not take, and to compute blocks again that cannot be told apart.

    Raises:
        ConfigError: it has no patch tokens and the method needs them, less than two blocks, or is compiled as a whole.
    """
    if not isinstance(backbone, spec.method_class.accepts):
        kind = type(backbone).__name__
        raise ConfigError(
            f"backbone: {spec.method.name} needs a backbone over patch tokens; {kind} is not one. Take a vision "
            "transformer, as the method's recipes do where --backbone is left out, or another method."
        )
    if spec.train.recompute and spec.train.compile:
        raise ConfigError("train.recompute does not go with train.compile, which makes one of all blocks. Use one.")
    if spec.train.recompute and len(backbone.parts()) < 2:
        raise ConfigError(
            f"train.recompute: {backbone.name} has no blocks of which all but one could be dropped and computed again. "
            "Expected two or more modules of one class, with layers inside, in an nn.Sequential or nn.ModuleList. "
            "Leave it out, or give a backbone whose parts() are its blocks."
        )


def share(train: TrainSpec) -> int:
    """Images of one forward pass in one process: each process and micro-batch gets as many as every other.

    Raises:
        ConfigError: the batch cannot be shared out.
    """
    assert train.batch_size is not None
    shares = dist.world() * train.accumulate
    if train.batch_size % shares:
        raise ConfigError(
            f"train.batch_size: {train.batch_size} must be a multiple of processes x train.accumulate = {shares}; "
            f"{train.batch_size // shares * shares or shares} is."
        )
    return train.batch_size // shares


def refuse_unlabelled(spec: RunSpec, facts: Facts) -> None:
    """Refuses data without labels where the method learns from them.

    Raises:
        ConfigError: no image has one.
    """
    if spec.method_class.uses_labels and not facts.labelled:
        raise ConfigError(
            f"data: {spec.method.name} trains with labels, and none of the {facts.images} images of {spec.data.name} "
            f"has one. Use data with labels: a folder with one sub-folder per class, or (images, labels)."
        )


def batch_norms(method: Method, facts: Facts, train: TrainSpec) -> Sequence[str]:
    """A warning of what batch norms see of micro-batches.

    Raises:
        ConfigError: they see one image a forward pass, which is its own mean.
    """
    if not any(isinstance(module, _BatchNorm) for module in method.modules()):
        return ()
    if facts.forward_size < 2:
        least = 2 * facts.batch_size // facts.forward_size
        raise ConfigError(
            f"train.batch_size: the batch norms of {method.name} need at least 2 images a forward pass, and a batch of "
            f"{facts.batch_size} gives 1. Use --batch-size {least} or more."
        )
    if train.accumulate > 1:
        groups = 1 if method.shared_batch_norm else max(method.batch_norm_groups, dist.world())
        seen = facts.forward_size * dist.world() // groups
        return [f"train.accumulate: batch norms see one micro-batch of {seen} images, not all {facts.batch_size}."]
    return ()


def offered(method: type[Method], augmentation: Augmentation) -> dict[str, int]:
    """How many views of each group there are.

    Raises:
        ConfigError: they are not those that the method takes.
    """
    have = {group.name: len(group.transforms) for group in augmentation.groups()}
    for name, need in method.views.items():
        allowed = need if isinstance(need, range) else range(need, need + 1)
        if have.get(name, 0) not in allowed:
            raise ConfigError(
                f"augmentation: {method.name} takes {describe.count(need)} '{name}' views; "
                f"{augmentation.name} offers {_counts(have)}. {_other_views(method, have)}"
            )
    if extra := sorted(have.keys() - method.views.keys()):
        raise ConfigError(
            f"augmentation: {method.name} does not use '{extra[0]}' views; {augmentation.name} offers "
            f"{_counts(have)}. {_other_views(method, have)}"
        )
    return have


def _other_views(method: type[Method], have: Mapping[str, int]) -> str:
    """How to get views that a method takes, as many as there are where it may."""
    nearest = {
        name: min(max(have.get(name, 0), need.start), need.stop - 1) if isinstance(need, range) else need
        for name, need in method.views.items()
    }
    groups = " ".join(f"--set augmentation.groups.{name}.count={count}" for name, count in nearest.items() if count)
    return f"Choose another augmentation or its counts, or name the groups: --set augmentation.name=views {groups}"


def _counts(groups: Mapping[str, int]) -> str:
    return " and ".join(f"{many} {name}" for name, many in groups.items()) or "none"


def optimizer_warnings(spec: RunSpec, origin: Mapping[str, str], backbone: Backbone, images: int) -> Iterator[str]:
    """An optimizer that does not suit the backbone, the length of the run, or the batch."""
    rates, kind, now = spec.optimizer.config, spec.optimizer.component, length(spec.train, images)
    assert isinstance(rates, OptimizerConfig)
    assert issubclass(kind, Optimizer)
    if now.total_steps < TRIAL:
        return
    if isinstance(backbone, TokenBackbone) and not kind.adaptive:
        yield (
            f"optimizer: {spec.optimizer.name} for {backbone.name}, a transformer, which it hardly moves. "
            "Use --set optimizer.name=adamw."
        )
    warmup, epochs = rates.lr.warmup, now.epochs
    if warmup > epochs / 2:
        yield (
            f"optimizer.lr.warmup: {warmup:g} epochs in a run of {epochs:.3g}, so that the learning rate is still "
            "rising when most of the run is over. Use more epochs, or a tenth of them."
        )
    batch, of_recipe = spec.train.batch_size or 1, origin.get("optimizer.lr.start", origin.get("optimizer.lr", ""))
    usual = spec.method_class.recipes.get(spec.recipe, {}).get("train", {}).get("batch_size", batch)
    far = max(usual / batch, batch / usual) >= FACTOR
    if far and rates.lr_per is None and of_recipe.startswith("recipe"):
        yield (
            f"train.batch_size: {batch}, under the learning rate {rates.lr.start:g} of the recipe's batch of {usual}, "
            f"which nothing scales. Set optimizer.lr for this batch, or optimizer.lr_per={usual}."
        )


def backbone_warnings(spec: RunSpec, origin: Mapping[str, str]) -> Iterator[str]:
    """What the recipe sets of its own backbone, where another was named that could have it too."""
    own, named = spec.method_class.recipes.get(spec.recipe, {}).get("backbone", {}), spec.backbone
    if named is None or own.get("name", named.name) == named.name:
        return
    lost = {
        key: value
        for key, value in own.items()
        if getattr(named.config, key, None) not in (None, "auto", value) and origin.get(f"backbone.{key}") == "default"
    }
    if lost:
        cure = " ".join(f"--set backbone.{key}={value}" for key, value in lost.items())
        yield f"backbone: {named.name} lacks what recipe '{spec.recipe}' sets of {own['name']}: {cure}"


def padding(backbone: Backbone, augmentation: Augmentation) -> Iterator[str]:
    """Views other than the run's own size that are no whole patches."""
    side = backbone.patch_size if isinstance(backbone, TokenBackbone) else 1
    for group in augmentation.groups():
        if group.size % side and group.size != backbone.image.size:
            whole = -(-group.size // side) * side
            yield f"{backbone.name}: {group.name} views are padded from {group.size} to {whole} px, whole patches"


def recipe_notes(spec: RunSpec, origin: Mapping[str, str], natural_size: int) -> Iterator[str]:
    """The recipe that was made for images as large as these, where the default was taken because nobody chose."""
    recipes = spec.method_class.recipes
    fitting = [
        name for name, one in recipes.items() if 2 * natural_size > one.get("train", {}).get("image_size", 2**16)
    ]
    if origin.get("recipe") == CORE and fitting:
        size, epochs = (recipes[fitting[0]]["train"].get(key) for key in ("image_size", "epochs"))
        yield (
            f"recipe: 'default', for small images and minutes, because none was named. '{fitting[0]}' was made for "
            f"images of {size} px as these may be ({natural_size} px), and {epochs} epochs: --recipe {fitting[0]}"
        )
