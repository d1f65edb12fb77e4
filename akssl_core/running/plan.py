"""A run, ready to start: the resolved settings and the parts they build, checked against each other.

Everything a user can get wrong is found here, before a run folder exists.
"""

from __future__ import annotations

import copy
import hashlib
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from .. import dist
from ..augment import Augmentation, PerImageAugmentation
from ..backbone import Backbone, TokenBackbone, WrappedBackbone
from ..backbone.weights import Account
from ..config.registry import STAND_IN
from ..config.schema import first_mistake, is_harmless
from ..data import DatasetSource, ImageSet, ImageSpec, Loader, Pixels, Preprocess, Views, measure, open_source
from ..dist.sharding import shard
from ..draws import Draws
from ..errors import ConfigError, PluginError
from ..exporting.weights import Weights
from ..method import Choice, Facts, Method, Shown
from ..nn import Frozen
from ..optim import OptimizerConfig, depth_rules, parameter_groups
from ..plugins.manager import Plugins
from ..rundir.schemas import Described, Expected, Interval
from ..settings import CORE, Given, Layers, RunSpec
from ..training.engine import Engine, Hook
from ..training.hardware import Hardware, choose_hardware, choose_threads
from . import rules, start
from .layers import check, layer, provenance

SEEN = "measured on a sample of the files"
OF_ITSELF = (CORE, "default", "rule: ", SEEN)
"""Who decides what no user has asked for, beside the recipe."""
BETWEEN_SEEDS = ("method.name", "recipe", "data.", "seed", "train.precision", "evaluate.every")
"""Settings that may differ between runs that are held against each other, beside those that move no weight; data are
told apart by their hash."""
GIVEN_WEIGHTS = "the run begins from the weights of the backbone that was passed from Python"


@dataclass
class Sight:
    """The machine, the data and the views of a run, found before all settings are decided."""

    hardware: Hardware
    source: DatasetSource
    size: Choice
    """The side of view that suits images and machine."""
    images: ImageSet
    """Those to train on."""
    held: ImageSet | None
    """Those held out of training, to choose by which weights the run leaves."""
    image: ImageSpec
    augmentation: Augmentation


@dataclass
class Plan(Sight):
    """All parts of a run. Building one draws from torch's generator, seeded by the run's seed."""

    spec: RunSpec
    provenance: dict[str, str]
    preprocess: Preprocess
    backbone: Backbone
    method: Method
    facts: Facts
    notes: list[str]
    warnings: list[str]
    account: Account | None
    """What became of the weights that the run begins from."""
    random: Backbone | None
    """The encoder with random weights, where the run begins from others."""
    begun: Mapping[str, str] | None
    """Source, licence and SHA-256 of those others, where they are somebody's."""
    has_objects: bool
    """Whether a part came from Python as an object, so that config.yaml alone cannot repeat the run."""

    def take_threads(self) -> None:
        """Compute with as many threads as the settings say from here on; on a CPU they say it afterwards."""
        train = self.spec.train
        if train.threads == "auto" and self.hardware.device.type == "cpu":
            choice = choose_threads()
            train = train.model_copy(update={"threads": choice.value})
            self.spec = self.spec.model_copy(update={"train": train})
            self.provenance["train.threads"] = f"rule: {choice.reason}"
        if train.threads != "auto":
            cores = os.cpu_count() or 1
            if train.threads > cores:  # config.yaml may be of a larger machine
                text = f"train.threads: {train.threads}, and this machine has {cores} cores: it computes with as many"
                warnings.warn(text, UserWarning, stacklevel=3)
            torch.set_num_threads(min(train.threads, cores))

    def engine(self, callbacks: Sequence[Hook]) -> Engine:
        """The engine over these parts."""
        seed = self.spec.seed
        rates = self.spec.optimizer.config
        assert isinstance(rates, OptimizerConfig)
        plain = self._shard() if self.spec.train.strategy == "fsdp" and dist.world() > 1 else None
        own = [*depth_rules(self.method.backbone, rates), *start.first_rules(self.method, self.spec.start)]
        groups = parameter_groups(self.method, [*self.method.param_rules(), *own], rates)
        optimizer = self.spec.optimizer.build().build(groups)

        def views(pixels: Pixels, index: torch.Tensor, epoch: int) -> Views:
            draws = Draws.of(*self.method.drawn_by(seed, epoch), index)
            return self.augmentation(pixels, draws)  # drawn on the CPU: no wait for a GPU

        parts = self.method, optimizer, rates, self.loader(), views, self.spec.train, self.hardware
        return Engine(*parts, seed=seed, callbacks=callbacks, plain=plain, start=self.spec.start)

    def shown(self) -> Shown:
        """The training images as they are shown."""

        def views(index: torch.Tensor, seed: int, epoch: int) -> Views:
            pixels = self.images.fetch(index.tolist()).to(self.hardware.device)
            return self.augmentation(pixels, Draws.of(seed, epoch, index))

        def identity() -> dict[str, Any]:
            names = "\0".join(self.images.id_of(i) for i in range(len(self.images)))
            known = {name: value for name, value in self.fingerprint().items() if not name.startswith("class")}
            ids = hashlib.blake2b(names.encode("utf-8", "replace"), digest_size=16).hexdigest()
            table = self.spec.table()["augmentation"]
            return {"data": {**known, "ids": ids}, "augmentation": table, "image": asdict(self.image)}

        return Shown(len(self.images), self.facts.forward_size, self.hardware.device, views, identity)

    def _shard(self) -> Backbone:
        """Share the parameters out over the processes; a copy of the encoder that has room for all of them."""
        self.method.to(self.hardware.device)
        plain: Backbone = copy.deepcopy(self.method.encoder)
        chains = [part.parts() for part in self.method.modules() if isinstance(part, Backbone)]
        shard(self.method, chains, self.hardware.device, self.hardware.dtype)
        return plain

    def loader(self) -> Loader:
        """The batches of this process."""
        size, workers = self.spec.train.batch_size, self.spec.train.workers or 0
        assert size is not None
        return Loader(
            self.images,
            size,
            seed=self.spec.seed,
            world=dist.world(),
            rank=dist.rank(),
            workers=workers,
            device=self.hardware.device,
        )

    def curves(self) -> dict[str, Described]:
        """How the method's terms move in a healthy run, and how far others of its recipe came on the same data.

        Raises:
            PluginError: a report could not draw what the method says.
        """
        method = self.spec.method_class
        try:
            of = method.curves(self.spec.method.config, self.facts)
            found = {name: Described(shape=curve.shape, lines=dict(curve.lines)) for name, curve in of.items()}
            expected = self._expected()
            return {**found, "knn_top1": Described(expected=expected)} if expected else found
        except ValidationError as error:
            raise PluginError(
                f"method {method.name}: a curve cannot be drawn: {first_mistake(error)}. Mend Method.curves or "
                f"courses of {method.__name__}: they hold finite numbers."
            ) from error

    def _expected(self) -> Expected | None:
        """What is known of runs that differ from this one in nothing but their seeds."""
        spec = self.spec
        by_itself = (*OF_ITSELF, f"recipe 'default' of {spec.method.name}")
        asked = {path for path, who in self.provenance.items() if not who.startswith(by_itself)}
        told = {path for path in asked if path.startswith("evaluate.") or not is_harmless(path, spec)}
        if spec.start or spec.train.steps or not all(path.startswith(BETWEEN_SEEDS) for path in told):
            return None
        sample = self.fingerprint()["sample"]
        for course in spec.method_class.courses:
            if course.sample == sample and len(course.knn_top1) == spec.train.epochs:
                epochs = [Interval(mean=mean, low=low, high=high) for mean, low, high in course.expected()]
                return Expected(data=course.data, runs=len(course.knn_top1[0]), epochs=epochs)
        return None

    def fingerprint(self) -> dict[str, Any]:
        """Size, channels and classes of the data, and a hash over a sample of it."""
        images = len(self.images)
        digest = hashlib.blake2b(digest_size=16)
        for place in sorted({i * images // 16 for i in range(16)}):
            image, label = self.images[place]
            digest.update(f"{tuple(image.shape)} {label}".encode())
            digest.update(image.numpy().tobytes())
        labels = self.images.labels
        classes = None if labels is None else int((labels[labels >= 0].bincount() > 0).sum())
        return {
            "images": images,
            "channels": self.image.channels,
            "classes": classes,
            "class_names": self.images.classes,
            "sample": digest.hexdigest(),
        }


def make_plan(given: Given, plugins: Plugins, *, anew: bool = True) -> Plan:
    """Resolve the settings and build every part of the run; one that is not begun anew has its weights already.

    Raises:
        AksslError: anything the user can mend, before anything was written.
    """
    begun, given = start.begin(given, plugins) if anew else (None, given)
    layers = layer(given, plugins)
    spec = check(layers, plugins)  # mistakes are told before data is read
    rules.refuse(spec)
    sight = _look(spec, given, plugins, begun)
    layers.fill(rules.core_rules(spec, layers, sight.size, sight.images, sight.hardware))
    if "data" not in given.objects:
        found = {f"data.{name}": Choice(one, SEEN) for name, one in sight.source.decided.items()}
        layers.fill({path: choice for path, choice in found.items() if layers.get(*path.split(".")) != choice.value})
    spec = check(layers, plugins)
    views = rules.offered(spec.method_class, sight.augmentation)
    share = rules.share(spec.train)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(spec.seed)  # weights are drawn on the CPU; a GPU's numbers stay its own
        backbone = _backbone(spec, sight.image, given)
        rules.refuse_backbone(spec, backbone)
        if isinstance(backbone, TokenBackbone):
            sight.augmentation.fit_patches(backbone.patch_size)
        facts = _facts(spec, sight, backbone, views, share)
        rules.refuse_unlabelled(spec, facts)
        choices = spec.method_class.choose(spec.method.config, facts)
        layers.fill({f"method.{name}": one for name, one in choices.items() if not layers.set_by_user("method", name)})
        return _build(check(layers, plugins), layers, sight, facts, backbone, given, begun)


def _look(spec: RunSpec, given: Given, plugins: Plugins, begun: Weights | None) -> Sight:
    """Open what the settings name.

    Raises:
        AksslError: the hardware, the data or the augmentation cannot be had.
    """
    hardware = choose_hardware(spec.train)
    source = open_source(given.objects.get("data", spec.data), plugins, spec.train.image_size)
    size = rules.view_size(source.natural_size, on_cpu=hardware.device.type == "cpu")
    if spec.train.image_size is None:
        source.asked_size = size.value  # photos are decoded about that large
    images, held = source.train(), None
    if spec.start is not None and spec.start.keep == "best":
        images, held = rules.held_out(images)
        source.notes.append(f"{len(held)} images are held out of training, to choose weights by (start.keep)")
    mean, std = source.mean, source.std
    if spec.start is not None and (known := start.normalisation(spec.start, begun, images.channels)):
        mean, std = known
        source.notes.append(f"normalisation of the weights that the run begins from: mean {mean}, std {std}")
    elif mean is None or std is None:
        mean, std = measure(images)
        source.notes.append(f"normalisation measured on a sample of the data: mean {mean}, std {std}")
    image = ImageSpec(spec.train.image_size or size.value, images.channels, mean, std)
    return Sight(hardware, source, size, images, held, image, _augmentation(spec, image, given))


def _build(
    spec: RunSpec,
    layers: Layers,
    sight: Sight,
    facts: Facts,
    backbone: Backbone,
    given: Given,
    begun: Weights | None,
) -> Plan:
    """The parts that are trained, checked against the facts, and the plan of them all."""
    origin, augmentation = provenance(spec, layers), sight.augmentation
    warnings = [*sight.source.warnings, *spec.method_class.check(spec.method.config, facts)]
    fresh = copy.deepcopy(backbone) if begun else None
    account = begun.fill(backbone) if begun else None  # before a method makes copies of it
    start.freeze(backbone, spec.start)
    method: Method = spec.method.build(backbone)
    random = spec.method_class.untrained(spec.method.config, fresh) if fresh else None
    spec = start.with_care(spec, origin, method, account)
    warnings += [start.UNKNOWN] if begun and spec.start and spec.start.mean is None else []
    warnings += rules.batch_norms(method, facts, spec.train)
    warnings += rules.optimizer_warnings(spec, origin, backbone, facts.images)
    warnings += rules.backbone_warnings(spec, origin)
    hardware = sight.hardware
    notes = [f"precision {hardware.precision} on {hardware.device.type}: {hardware.reason}"]
    notes += [*sight.source.notes, *backbone.notes, *augmentation.notes, *rules.padding(backbone, augmentation)]
    notes += rules.recipe_notes(spec, origin, sight.source.natural_size)
    notes += [GIVEN_WEIGHTS] if "backbone" in given.objects and backbone.name != STAND_IN else []
    notes += [*(f"start: {line}" for line in account.lines()), start.kept(backbone)] if account else []
    notes += _frozen_notes(method)
    notes += start.care_notes(spec, method, rules.length(spec.train, facts.images))
    notes += [f"warning: {text}" for text in warnings]
    plan = Plan(
        **vars(sight),
        spec=spec,
        provenance=origin,
        preprocess=Preprocess.of(sight.image, sight.source.limits),
        backbone=backbone,
        method=method,
        facts=facts,
        notes=notes,
        warnings=warnings,
        account=account,
        random=random,
        begun=begun.about() if begun else None,
        has_objects=bool(given.objects),
    )
    plan.loader()  # the batch size must fit the data
    return plan


def _frozen_notes(method: Method) -> Iterator[str]:
    """Where the weights come from that the method reads beside its own."""
    for name, part in method.named_modules():
        if isinstance(part, Frozen):
            yield f"{name}: {'; '.join(f'{what} {text}' for what, text in part.about.items())}"


# -- parts ----------------------------------------------------------------------------------------
def _backbone(spec: RunSpec, image: ImageSpec, given: Given) -> Backbone:
    module = given.objects.get("backbone")
    assert spec.backbone is not None
    if spec.backbone.name != STAND_IN:
        result: Backbone = spec.backbone.build(image)
        return result if module is None else _begun_from(module, result)
    if isinstance(module, nn.Module):  # a copy is trained, and the caller's stays as it is
        module = copy.deepcopy(module)
        return module if isinstance(module, Backbone) else WrappedBackbone(module, image)
    if module is not None:
        raise ConfigError(f"backbone: expected a registered name or an nn.Module, got a {type(module).__name__}.")
    needed: Backbone = spec.backbone.build(image)  # the stand-in says what it needs
    return needed


def _begun_from(given: Backbone, fresh: Backbone) -> Backbone:
    """A backbone of this run, with the weights of one that was passed.

    Raises:
        ConfigError: they do not fit, as at another size of view.
    """
    try:
        fresh.load_state_dict(given.state_dict())
    except RuntimeError as error:
        has, takes = given.image, fresh.image
        raise ConfigError(
            f"backbone: the weights of the {given.name} that was passed, made for {has.channels} x {has.size} x "
            f"{has.size} px, do not fit this run's {takes.channels} x {takes.size} x {takes.size}. "
            f"Use image_size={has.size} and images of {has.channels} channels."
        ) from error
    return fresh


def _augmentation(spec: RunSpec, image: ImageSpec, given: Given) -> Augmentation:
    callables = given.objects.get("augmentation")
    if isinstance(callables, Augmentation):
        return callables
    if callables is not None:
        return PerImageAugmentation(callables, image)
    result: Augmentation = spec.augmentation.build(image)
    return result


def _facts(spec: RunSpec, sight: Sight, backbone: Backbone, views: Mapping[str, int], share: int) -> Facts:
    """The facts a method may decide by, once the core has chosen."""
    train, image, images = spec.train, sight.image, len(sight.images)
    assert train.batch_size is not None
    epochs = rules.length(train, images).epochs
    rates = spec.optimizer.config
    assert isinstance(rates, OptimizerConfig)
    labelled, classes = sight.images.known_labels()
    groups = sight.augmentation.groups()
    size = next((group.size for group in groups if group.name == "global"), groups[0].size)
    side = -(-size // backbone.patch_size) if isinstance(backbone, TokenBackbone) else None
    family = re.match("[a-z]*", backbone.name.rpartition("/")[2].lower())
    return Facts(
        images=images,
        batch_size=train.batch_size,
        forward_size=share,
        image_size=size,
        epochs=epochs,
        views=views,
        peak_rate=rates.lr.peak(epochs) * rates.scale(train.batch_size),
        labelled=labelled,
        classes=classes,
        channels=image.channels,
        backbone=family.group() if family else "",
        embed_dim=backbone.embed_dim,
        tokens=(side, side) if side else None,
    )
