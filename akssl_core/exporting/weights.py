"""Weights of any origin: found, read, and what they say of the network and of its images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field, PositiveFloat, ValidationError, model_validator
from torch import Tensor

from ..backbone import Backbone
from ..backbone.weights import Account, Several, fit, load_weights, whole_prefix
from ..config.schema import HARMLESS, BackboneRef, Schema, user_path, validate
from ..data import ImageSpec, nearest_path
from ..data.base import LARGEST
from ..errors import LONGEST, AksslError, ConfigError, did_you_mean, visible
from ..nn import state_digest
from ..plugins.manager import Plugins, installed
from ..rundir.folder import RunDir, read_tensors
from ..settings import PICKLES, WeightsSpec, absolute_if_there
from .backbone_file import (
    CLASSIFIER_FORMAT,
    OURS,
    file_of,
    format_of,
    kind_of,
    licences_of,
    load_backbone,
    read_backbone_file,
)
from .classifier import load_classifier, parts_of

BESIDE = ("preprocessor_config.json", "config.json")  # where hubs say how the images of weights were normalised
USUAL = 224  # px; the side at which networks are compared with a file
RANDOM = "random"  # the source of weights that nobody has trained
UNKNOWN = "unknown"
"""The licence of weights that say nothing of it."""


@dataclass(frozen=True)
class Weights:
    """Weights for a network."""

    spec: WeightsSpec
    setting: str
    """The setting that names them, for messages."""
    tensors: Mapping[str, Tensor] = field(repr=False)
    backbone: Mapping[str, Any] | None = None
    """Settings of their network; None: the file does not say."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    licence: str | None = None
    """Identifiers of their licences, where they are known."""
    file: Path | None = None
    """The backbone file of ours that they stand in."""
    method: str = ""
    """That trained them, where the file says so."""

    def about(self) -> dict[str, str] | None:
        """Source, licence and SHA-256; None for those of a run that has learned from no others."""
        if self.file is not None and self.licence is None:
            return None
        digest = state_digest(dict(self.tensors))
        return {"source": self.spec.source, "licence": self.licence or UNKNOWN, "sha256": digest}

    def fill(self, backbone: Backbone) -> Account:
        """Give a backbone these weights.

        Raises:
            ConfigError: they are not all accounted for.
        """
        return load_weights(self.tensors, backbone, prefix=self.spec.prefix, who=self.setting)


@dataclass(frozen=True)
class LoadedBackbone:
    """A network with its weights, which a method reads beside the one that it trains."""

    backbone: Backbone
    """In eval mode, on the CPU."""
    image: ImageSpec
    """How images reach it; `view_as` makes them of those of the run."""
    about: Mapping[str, str]
    """Source, network, images, licence and SHA-256, for `Frozen`."""


def read_weights(spec: WeightsSpec, plugins: Plugins, setting: str) -> Weights:
    """The weights of a path or a name.

    Raises:
        AksslError: there are none; the message begins with the name of the setting.
    """
    path, name = user_path(spec.source), visible(spec.source)[:LONGEST]
    if os.path.isdir(path):
        return _of_file(spec, setting, file_of(path))
    if path.suffix.lower() in PICKLES:
        raise ConfigError(
            f"{setting}: {name} may be a pickle, which can run code when it is read. Convert it once: "
            f"akssl convert {name} --out {name.removesuffix(path.suffix)}.safetensors"
        )
    if path.is_absolute() or os.path.exists(path):
        return _of_file(spec, setting, path)
    try:
        stock = plugins.get("backbone", spec.source).stock()  # type: ignore[attr-defined]
    except AksslError as error:
        near = nearest_path(path) if len(path.parts) > 1 else None
        hint = f" (did you mean '{visible(str(near))}'?)" if near else ""
        raise ConfigError(
            f"{setting}: '{name}' is neither a run folder nor a .safetensors file{hint}, and as a name: "
            f"{visible(str(error))}"
        ) from error
    if stock is None:
        raise ConfigError(f"{setting}: there are no published weights of {name}. Give a file or a run folder.")
    return Weights(spec, setting, stock.tensors, {"name": spec.source}, stock.mean, stock.std, stock.licence)


def _of_file(spec: WeightsSpec, setting: str, file: Path) -> Weights:
    """The weights of one file.

    Raises:
        ConfigError: there is none.
        RunDirError: it is damaged.
    """
    if not os.path.isfile(file):
        name = visible(str(file))[:LONGEST]
        if os.path.exists(file):
            raise ConfigError(f"{setting}: '{name}' holds no weights. Give a run folder or a .safetensors file.")
        if RunDir(file.parent).begun:
            read_backbone_file(file)  # it says how to go on with a run that has not ended
        if os.path.isdir(folder := user_path(spec.source)):
            raise ConfigError(
                f"{setting}: '{visible(str(folder))[:LONGEST]}' is a folder without a run in it (no {file.name}). Give "
                f"a run folder or a .safetensors file here; a folder of images is given with --data."
            )
        beside = [other.name for other in file.parent.glob("*")] if os.path.isdir(file.parent) else []
        near = visible(did_you_mean(file.name, beside))
        raise ConfigError(f"{setting}: there is no '{name}'.{near} Give a run folder or a .safetensors file.")
    tensors, metadata = read_tensors(file)
    if (kind := format_of(metadata)) not in OURS:
        return Weights(spec, setting, tensors, None, *_normalisation_beside(file))
    tensors, metadata, header = read_backbone_file(file, kind)
    if kind == CLASSIFIER_FORMAT:
        tensors = parts_of(tensors)["backbone"]
    table = {**header.backbone, **({"pretrained": False} if header.backbone.get("pretrained") else {})}
    image, method = header.preprocess, metadata.get("method", "")
    return Weights(spec, setting, tensors, table, image.mean, image.std, licences_of(metadata), file, method)


class _Told(Schema):
    """How images were normalised."""

    mean: tuple[float, ...] = Field(min_length=1, max_length=256)
    std: tuple[PositiveFloat, ...] = Field(min_length=1, max_length=256)


def _normalisation_beside(file: Path) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and deviation in the files that hubs store beside weights, where there are any."""
    for name in BESIDE:
        try:
            table = json.loads((file.parent / name).read_bytes())
            table = {**table, **table.get("pretrained_cfg", {})}
            told = _Told(mean=table.get("image_mean", table.get("mean")), std=table.get("image_std", table.get("std")))
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            continue
        if len(told.mean) == len(told.std):
            return told.mean, told.std
    return None, None


def network_of(weights: Weights, plugins: Plugins) -> str:
    """The one installed backbone that accounts for all tensors.

    Raises:
        ConfigError: none does, or several, no tensor has the prefix, or the file holds several networks.
    """
    try:
        if weights.spec.prefix:
            whole_prefix(weights.spec.prefix, weights.tensors)
        fitting = list(_fitting(weights, plugins))
    except ConfigError as error:
        raise ConfigError(f"{weights.setting}: {error}") from error
    if len(fitting) == 1:
        return fitting[0]
    found = f"those of {' and '.join(fitting)}" if fitting else "of no backbone that is tried"
    first = f"its first tensor is '{visible(next(iter(weights.tensors), ''))}'"
    by = "--backbone" if weights.setting == "start" else f"{weights.setting}.backbone"
    raise ConfigError(
        f"{weights.setting}: {weights.spec.source} does not say of which network it is, and its shapes are {found} "
        f"({first}). Name it with {by}: {', '.join(fitting or plugins.names('backbone'))}, or one of an installed "
        f"library."
    )


def _fitting(weights: Weights, plugins: Plugins) -> Iterator[str]:
    """The backbones that account for all tensors, tried on outlines without memory."""
    for name in plugins.names("backbone"):
        component: Any = plugins.get("backbone", name)
        try:
            with torch.device("meta"):
                outline = component(component.Config(), ImageSpec(USUAL, 3, (0.5,) * 3, (0.5,) * 3))
            fit(weights.tensors, outline.export_state(), outline.keys, prefix=weights.spec.prefix)
        except Several:
            raise
        except (AksslError, NotImplementedError, RuntimeError, ValidationError):
            continue
        yield component.name


class BackboneSource(WeightsSpec):
    """A second network for a method, with its weights; a text alone is its source: `teacher: runs/first`.

    A field of a method's `Config` is `teacher: BackboneSource | None = Field(None, description=...)`, and its
    constructor has `config.teacher.load("method.teacher", backbone.image)`.
    """

    type_in_words = "source | table"
    source: Annotated[str, AfterValidator(absolute_if_there), HARMLESS] = Field(
        min_length=1,
        description="run folder, .safetensors file, or name of a backbone that has published weights; 'random': none",
    )
    backbone: BackboneRef | None = Field(None, description="the network, where the weights do not say which it is")
    size: int | None = Field(
        None, ge=8, le=LARGEST, description="side of its images in pixels; null: as it was trained, else the run's"
    )
    licence: str | None = Field(
        None, description="identifier of the licence of its weights; null: as they are published"
    )

    @model_validator(mode="before")
    @classmethod
    def _text(cls, raw: Any) -> Any:
        return {"source": str(raw)} if isinstance(raw, str | Path) else raw

    def load(self, setting: str, shown: ImageSpec, plugins: Plugins | None = None) -> LoadedBackbone:
        """The network with its weights, each of which is accounted for.

        Args:
            setting: the setting's path, with which messages begin: "method.teacher".
            shown: how images reach the backbone of the run; it decides what the weights leave open.
            plugins: another plugin manager than the process-wide one.

        Raises:
            AksslError: there are no such weights, they are of another network, or it is unknown how images are
                normalised for them.
        """
        plugins = plugins or installed()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            backbone, image, licence = self._found(setting, shown, plugins)
        image = replace(image, size=self.size or image.size)
        about = {
            "source": self.source,
            "backbone": backbone.name,
            "images": f"{image.size} px, mean {image.mean}, std {image.std}",
            "licence": self.licence or licence or UNKNOWN,
            "sha256": state_digest(backbone.state_dict()),
        }
        return LoadedBackbone(backbone.eval(), image, about)

    def _found(self, setting: str, shown: ImageSpec, plugins: Plugins) -> tuple[Backbone, ImageSpec, str | None]:
        """The network with its weights, how its images reach it, and their licence."""
        if self.source == RANDOM:
            if self.backbone is None:
                raise ConfigError(f"{setting}.backbone: is missing; random weights are of the network that it names.")
            image = replace(shown, size=self.size or shown.size)
            return self.backbone.build(image), image, "none: random weights"
        weights = read_weights(self, plugins, setting)
        mean, std = self.mean or weights.mean, self.std or weights.std
        if mean is None or std is None:
            raise ConfigError(
                f"{setting}: how the images of these weights were normalised is unknown. Set {setting}.mean and "
                f"{setting}.std, as they are published with the weights."
            )
        if weights.file is not None:
            if self.backbone is not None:
                raise ConfigError(f"{setting}.backbone: {weights.file} says itself of which network it is. Leave it.")
            backbone = _ours(weights.file, plugins)
            return backbone, _as_spec(backbone.image, mean, std), weights.licence
        image = _as_spec(replace(shown, size=self.size or shown.size), mean, std)
        network = self.backbone
        if network is None:
            table = weights.backbone or {"name": network_of(weights, plugins)}
            network = validate(_Network, {"backbone": table}, registry=plugins).backbone
        backbone = network.build(image)
        weights.fill(backbone)
        return backbone, image, weights.licence


def _ours(file: Path, plugins: Plugins) -> Backbone:
    """The backbone of a file of ours; of a classifier, that under it."""
    if kind_of(file) == CLASSIFIER_FORMAT:
        return load_classifier(file, plugins=plugins).backbone
    return load_backbone(file, plugins=plugins)


class _Network(Schema):
    """A network alone."""

    backbone: BackboneRef


def _as_spec(image: ImageSpec, mean: tuple[float, ...], std: tuple[float, ...]) -> ImageSpec:
    """The same images under another normalisation."""
    means, stds = (for_channels(values, image.channels) for values in (mean, std))
    return ImageSpec(image.size, image.channels, means, stds)


def for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A number a channel: as they are, or their mean for other channels than the weights know."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels
