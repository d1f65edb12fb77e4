"""A run, ready to start: the resolved settings and the parts they build, checked against each other.

Everything a user can get wrong is found here, before a run folder exists.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import dist
from .augment import Augmentation, PerImageAugmentation
from .augment.random import Draws
from .backbone import Backbone, WrappedBackbone, default_backbone
from .callbacks import Callback
from .data import DatasetSource, ImageSet, ImageSpec, Loader, Pixels, Preprocess, Views, measure, source_from
from .engine import Engine, Hardware, TrainSpec, choose_hardware
from .errors import ConfigError, DataError
from .method import Method
from .optim import OptimizerConfig, parameter_groups
from .plugins import STAND_IN, Plugins
from .resolve import Given, Layers, RunSpec, check, layer, provenance

BUDGET = 250_000  # images of 32 x 32 px that a run sees when nobody says how long it should train
CPU_IMAGE_SIZE = 64  # larger views need hours on a CPU; the user may still ask for them


@dataclass
class Plan:
    """All parts of a run. Building one draws from torch's generator, seeded by the run's seed."""

    spec: RunSpec
    provenance: dict[str, str]
    hardware: Hardware
    source: DatasetSource
    images: ImageSet
    image: ImageSpec
    preprocess: Preprocess
    backbone: Backbone
    augmentation: Augmentation
    method: Method
    notes: list[str]

    def engine(self, callbacks: Sequence[Callback]) -> Engine:
        """The engine over these parts."""
        train, seed = self.spec.train, self.spec.seed
        rates = self.spec.optimizer.config
        assert isinstance(rates, OptimizerConfig)
        groups = parameter_groups(self.method, self.method.param_rules(), rates)
        optimizer = self.spec.optimizer.build().build(groups)

        def views(pixels: Pixels, index: torch.Tensor, epoch: int) -> Views:
            return self.augmentation(pixels, Draws.of(seed, epoch, index))  # drawn on the CPU: no wait for a GPU

        return Engine(
            self.method,
            optimizer,
            rates,
            self.loader(),
            views,
            train,
            self.hardware,
            seed=seed,
            callbacks=callbacks,
        )

    def loader(self) -> Loader:
        """The batches of this process."""
        train = self.spec.train
        assert train.batch_size is not None
        return Loader(
            self.images,
            train.batch_size,
            seed=self.spec.seed,
            world=dist.world(),
            rank=dist.rank(),
            workers=train.workers or 0,
        )

    def consequences(self) -> list[tuple[str, str]]:
        """What the settings amount to: lengths, effective learning rate, sizes."""
        train, rates = self.spec.train, self.spec.optimizer.config
        assert isinstance(rates, OptimizerConfig)
        assert train.batch_size is not None
        per_epoch = len(self.images) // train.batch_size
        steps = min(per_epoch * (train.epochs or 1), train.steps or per_epoch * (train.epochs or 1))
        scale = 1.0 if rates.lr_per is None else train.batch_size / rates.lr_per
        trained = sum(p.numel() for p in self.method.parameters() if p.requires_grad)
        return [
            ("training images", f"{len(self.images)}"),
            ("optimizer steps", f"{steps} ({per_epoch} an epoch)"),
            ("images seen", f"{steps * train.batch_size}"),
            ("peak learning rate", f"{rates.lr.start * scale:g} (setting {rates.lr.start:g} x {scale:g})"),
            ("trained parameters", f"{trained / 1e6:.2f} million"),
            ("feature size", f"{self.backbone.embed_dim}"),
        ]

    @property
    def spec_hash(self) -> str:
        """Tells apart configurations; stored with each checkpoint."""
        text = json.dumps(self.spec.table(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def has_objects(self) -> bool:
        """Whether a part came from Python as an object, so that config.yaml alone cannot repeat the run."""
        spec = self.spec
        named = (spec.data, spec.augmentation, *([spec.backbone] if spec.backbone else ()))
        return any(ref.name == STAND_IN for ref in named)

    def backbone_table(self) -> dict[str, Any]:
        """The backbone's name and settings."""
        table: dict[str, Any] = self.spec.table()["backbone"]
        return table

    def fingerprint(self) -> dict[str, Any]:
        """What the data is, and a hash over a sample of it."""
        count = len(self.images)
        digest = hashlib.blake2b(digest_size=16)
        for place in sorted({i * count // 16 for i in range(16)}):
            image, label = self.images[place]
            digest.update(f"{tuple(image.shape)} {label}".encode())
            digest.update(image.numpy().tobytes())
        labels = self.images.labels
        classes = None if labels is None else int((labels[labels >= 0].bincount() > 0).sum())
        return {
            "images": count,
            "channels": self.image.channels,
            "classes": classes,
            "class_names": self.images.classes,
            "sample": digest.hexdigest(),
        }


def make_plan(given: Given, plugins: Plugins) -> Plan:
    """Resolve the settings and build every part of the run.

    Raises:
        AksslError: anything the user can mend, before anything was written.
    """
    layers = layer(given, plugins)
    spec = check(layers, plugins)  # mistakes are told before data is read
    hardware = choose_hardware(spec.train)
    _check_devices(spec.train)
    source = _source(spec, given)
    size = _fill_size(layers, spec, source, hardware)
    images = source.train()
    image = _image_spec(source, images, size)
    _fill_lengths(layers, spec, len(images), size)
    _fill_backbone(layers, spec, image, plugins, given)
    spec = check(layers, plugins)
    _check_shares(spec.train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        backbone = _backbone(spec, image, given)
        method = _method(spec, backbone)
    augmentation = _augmentation(spec, image, given)
    _check_views(method, augmentation)
    plan = Plan(
        spec=spec,
        provenance=provenance(spec, layers),
        hardware=hardware,
        source=source,
        images=images,
        image=image,
        preprocess=Preprocess.of(image),
        backbone=backbone,
        augmentation=augmentation,
        method=method,
        notes=[],
    )
    plan.loader()  # the batch size must fit the data
    plan.notes += [f"precision {hardware.precision} on {hardware.device.type}: {hardware.reason}"]
    plan.notes += [*source.notes, *backbone.notes, *augmentation.notes]
    return plan


# -- parts ----------------------------------------------------------------------------------------
def _source(spec: RunSpec, given: Given) -> DatasetSource:
    data = given.objects.get("data")
    if data is not None:
        source = source_from(data, spec.train.image_size)
        if source is None:
            raise DataError(
                f"data: cannot use a {type(data).__name__}. Give a source name, a folder, a torch Dataset, "
                f"a uint8 array or tensor [N, H, W, C] or [N, C, H, W], or a pair (images, labels)."
            )
        return source
    result: DatasetSource = spec.data.build(spec.train.image_size)
    return result


def _image_spec(source: DatasetSource, images: ImageSet, size: int) -> ImageSpec:
    if source.mean is not None and source.std is not None:
        return ImageSpec(size, images.channels, source.mean, source.std)
    mean, std = measure(images)
    source.notes.append(f"normalisation measured on a sample of the data: mean {mean}, std {std}")
    return ImageSpec(size, len(mean), mean, std)


def _backbone(spec: RunSpec, image: ImageSpec, given: Given) -> Backbone:
    module = given.objects.get("backbone")
    if isinstance(module, Backbone):
        return module
    if isinstance(module, nn.Module):
        return WrappedBackbone(module, image)
    if module is not None:
        raise ConfigError(f"backbone: expected a registered name or an nn.Module, got a {type(module).__name__}.")
    assert spec.backbone is not None
    result: Backbone = spec.backbone.build(image)
    return result


def _method(spec: RunSpec, backbone: Backbone) -> Method:
    wanted = spec.method.component.accepts  # type: ignore[attr-defined]
    if not isinstance(backbone, wanted):
        raise ConfigError(
            f"backbone: {spec.method.name} needs a backbone over patch tokens; {type(backbone).__name__} is not one."
        )
    result: Method = spec.method.build(backbone)
    return result


def _augmentation(spec: RunSpec, image: ImageSpec, given: Given) -> Augmentation:
    callables = given.objects.get("augmentation")
    if isinstance(callables, Augmentation):
        return callables
    if callables is not None:
        return PerImageAugmentation(callables, image)
    result: Augmentation = spec.augmentation.build(image)
    return result


# -- rules for what nobody decided ----------------------------------------------------------------
def _fill_size(layers: Layers, spec: RunSpec, source: DatasetSource, hardware: Hardware) -> int:
    if spec.train.image_size is not None:
        return spec.train.image_size
    size, reason = source.natural_size, "rule: the size of the images"
    if hardware.device.type == "cpu" and size > CPU_IMAGE_SIZE:
        reason = f"rule: {size} suits the images, {CPU_IMAGE_SIZE} suits a CPU"
        size = CPU_IMAGE_SIZE
    layers.set(["train", "image_size"], size, reason)
    source.asked_size = size  # photos are decoded about that large
    return size


def _fill_lengths(layers: Layers, spec: RunSpec, count: int, size: int) -> None:
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


def _fill_backbone(layers: Layers, spec: RunSpec, image: ImageSpec, plugins: Plugins, given: Given) -> None:
    if spec.backbone is None and "backbone" not in given.objects:
        name, reason = default_backbone(spec.method.component.accepts, image.size)  # type: ignore[attr-defined]
        layers.set(["backbone", "name"], name, f"rule: {reason}")


# -- cross-checks ---------------------------------------------------------------------------------
def _check_devices(train: TrainSpec) -> None:
    if train.devices != dist.world() and train.devices > 1:
        raise ConfigError(
            f"train.devices: {train.devices} processes are started by torchrun: "
            f"torchrun --nproc-per-node {train.devices} -m akssl_core run ..."
        )


def _check_shares(train: TrainSpec) -> None:
    """Every process and micro-batch gets as many images as every other."""
    assert train.batch_size is not None
    share = dist.world() * train.accumulate
    if train.batch_size % share:
        raise ConfigError(
            f"train.batch_size: {train.batch_size} must be a multiple of processes x train.accumulate = {share}; "
            f"{train.batch_size // share * share or share} is."
        )


def _check_views(method: Method, augmentation: Augmentation) -> None:
    """The groups of views a method takes against those its augmentation offers."""
    offered = {group.name: len(group.transforms) for group in augmentation.groups()}
    for name, need in method.views.items():
        allowed = need if isinstance(need, range) else range(need, need + 1)
        have = offered.get(name, 0)
        if have not in allowed:
            wanted = f"{need}" if isinstance(need, int) else f"{need.start} to {need.stop - 1}"
            raise ConfigError(
                f"augmentation: {method.name} takes {wanted} '{name}' views; "
                f"{augmentation.name} offers {_counts(offered)}. Choose another augmentation or its counts."
            )
    if extra := sorted(offered.keys() - method.views.keys()):
        raise ConfigError(
            f"augmentation: {method.name} does not use '{extra[0]}' views; {augmentation.name} offers "
            f"{_counts(offered)}. Choose an augmentation with {_counts(dict.fromkeys(method.views, 2))} alone."
        )


def _counts(groups: Mapping[str, int]) -> str:
    return " and ".join(f"{count} {name}" for name, count in groups.items()) or "none"
