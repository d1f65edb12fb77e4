"""A run that has ended, opened again: its backbone, the same one before the first step, and its data.

Nothing here writes, and every network is a copy of its own.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone, WrappedBackbone
from ..backbone.weights import load_weights
from ..config.registry import STAND_IN
from ..config.schema import Schema, user_path, validate
from ..data import DatasetSource, ImageSpec, Prepared, Preprocess
from ..data.opening import data_title, open_source, read_alike
from ..errors import ConfigError
from ..exporting.backbone_file import BACKBONE_FORMAT, FILE, START, format_of, load_backbone
from ..exporting.weights import USUAL, BackboneSource, for_channels
from ..nn import state_digest
from ..plugins.manager import Plugins, installed
from ..rundir.files import digest
from ..rundir.folder import RunDir, read_tensors
from ..settings import RunSpec, sections

PHOTOS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation that published weights for photos expect


@dataclass(frozen=True)
class Trained:
    """A run that has ended: `backbone` (eval mode, on the CPU) and what belongs to it.

    `path` is the run's folder or, where there is none, the file or the name of the weights; only a folder knows its
    data and its beginning.
    """

    path: Path
    backbone: Backbone
    module: nn.Module | None  # the user's own network, where the run trained one
    plugins: Plugins
    about: Mapping[str, str] | None = None  # source, licence and SHA-256 of weights that are no run's

    @property
    def preprocess(self) -> Preprocess:
        """How the backbone is fed."""
        assert self.backbone.preprocess is not None
        return self.backbone.preprocess

    @property
    def is_run(self) -> bool:
        """Whether a folder knows of data and a beginning."""
        return RunDir(self.path).begun

    @cached_property
    def config(self) -> dict[str, Any]:
        """The settings in config.yaml.

        Raises:
            RunDirError: this is no run folder.
        """
        return RunDir.open(self.path).read_config()

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the trained weights, by which results of an earlier state are told apart."""
        return digest((self.path / FILE).read_bytes())

    @cached_property
    def network_hash(self) -> str:
        """A hash of the weights and of how they are fed, by which features of another network are told apart."""
        weights = state_digest(self.backbone.state_dict())
        return digest(f"{weights} {self.preprocess.to_dict()}".encode())

    def source(
        self, data: Any = None, test: str | Path | None = None, labels: str | Path | None = None
    ) -> tuple[DatasetSource, str]:
        """The source that `data` means, the run's own for None, and its name for people.

        `test` holds its test images, `labels` is a table with the labels of both.

        Raises:
            AksslError: there is no such data, or the run was started with a Python object for it.
        """
        if data is None and not self.is_run:
            raise ConfigError(f"data: is missing, and {self.path} knows none. Name it: --data SOURCE, FOLDER or FILE.")
        if own := data is None:
            data = self.config["data"]
            if data["name"] == STAND_IN:
                raise ConfigError(
                    f"data: {self.path} was trained on a Python object ({data['type']}) that has no name. Pass it "
                    f"again in Python, data=..., or name other data: --data SOURCE, FOLDER or FILE."
                )
        beside = {name: given for name, given in (("test_data", test), ("labels", labels)) if given is not None}
        if beside:
            data = sections({"data": data, **beside})["data"]
        title = data_title(data)
        opened = open_source(self.alike(data), self.plugins, self.preprocess.size)
        if isinstance(opened, Prepared) and opened.inexact and not own:
            warnings.warn(f"data: {opened.inexact}", UserWarning, stacklevel=3)
        return opened, title

    def alike(self, data: Any) -> Any:
        """Data as it was given, or where it lies; its files are read by the scale and the decoder of the run's own."""
        black, white = self.preprocess.limits or (None, None)
        own = self.config["data"] if self.is_run else {"black": black, "white": white}
        return read_alike(data, own, self.plugins) if isinstance(data, str | Path | Mapping) else data

    def untrained(self) -> Backbone:
        """The encoder as it was before the first step: built again from the seed of the run."""
        if self.module is not None:
            return _empty(self)
        spec = validate(RunSpec, self.config, registry=self.plugins)
        assert spec.backbone is not None
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(spec.seed)
            backbone: Backbone = spec.backbone.build(self.backbone.image)
            encoder: Backbone = spec.method.made_by(spec.method_class.untrained, backbone)
        encoder.preprocess = self.preprocess
        return encoder.eval()

    def start(self) -> Backbone | None:
        """The weights that the run began from, as its folder keeps them; None: it keeps none."""
        file = self.path / START
        if not file.is_file():
            return None
        return load_backbone(file, module=copy.deepcopy(self.module), plugins=self.plugins)

    def with_weights(self, file: Path) -> tuple[Backbone, list[str]]:
        """The same network with weights from a file, and what was decided for it.

        The file is a state dict that a run could begin from (`load_weights`), or a backbone that a run has left. A
        plain one is fed with images normalised as photos are, where there are three channels.

        Raises:
            RunDirError: the file cannot be read.
            ConfigError: its weights are those of another network.
        """
        tensors, metadata = read_tensors(file)
        if format_of(metadata) == BACKBONE_FORMAT:
            return load_backbone(file, module=copy.deepcopy(self.module), plugins=self.plugins), []
        backbone = _empty(self)
        account = load_weights(tensors, backbone, who="weights")
        notes = [f"{file.name}: {line}" for line in account.lines()]
        if self.preprocess.channels == len(PHOTOS[0]):
            backbone.preprocess = replace(self.preprocess, mean=PHOTOS[0], std=PHOTOS[1])
            notes.append(f"{file.name}: its images are normalised with mean {PHOTOS[0]} and std {PHOTOS[1]}")
        return backbone.eval(), notes


def open_trained(run_dir: Path | str, *, backbone: nn.Module | None = None, plugins: Plugins | None = None) -> Trained:
    """Open a run folder, or a backbone file. `backbone` is the user's own network, if the run trained one.

    Raises:
        RunDirError: there is no run, or it has not finished.
        ConfigError: the run trained a network of the user's own and none was given, or its weights do not fit.
    """
    path, plugins = user_path(run_dir), plugins or installed()
    if not path.is_file():
        RunDir.open(path)
    found = load_backbone(path, module=copy.deepcopy(backbone), plugins=plugins)
    return Trained(path, found, copy.deepcopy(backbone), plugins)


def open_weights(
    source: str | Path | Mapping[str, Any], *, backbone: nn.Module | None = None, plugins: Plugins | None = None
) -> Trained:
    """Open a run or a backbone file, weights of another library, or those that a backbone is published with, by name.

    `source` may be a table of what a `BackboneSource` has: {"source": "weights.safetensors", "mean": ..., "std": ...}.
    Where the weights do not say otherwise, images are of 224 px and three channels.

    Raises:
        AksslError: there are no such weights, or it is unknown of which network or for which images they are.
    """
    table = dict(source) if isinstance(source, Mapping) else {"source": source}
    path, plugins = user_path(table.get("source", "")), plugins or installed()
    if backbone is not None:
        return open_trained(path, backbone=backbone, plugins=plugins)
    known = validate(_Source, {"source": {**table, "source": str(table["source"])}}, registry=plugins).source
    means, stds = known.mean or PHOTOS[0], known.std or PHOTOS[1]
    shown = ImageSpec(USUAL, len(means), means, for_channels(stds, len(means)))
    loaded = known.load("source", shown, plugins)
    if loaded.backbone.preprocess is None or known.size is not None:
        loaded.backbone.preprocess = Preprocess.of(loaded.image)
    return Trained(path, loaded.backbone, None, plugins, loaded.about)


class _Source(Schema):
    """Weights alone, for their checked settings."""

    source: BackboneSource


def at_least_one(name: str, value: Any) -> None:
    """Refuse what is no whole number from 1 on."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ConfigError(f"{name}: expected a whole number from 1 on, got {value!r}.")


def _empty(trained: Trained) -> Backbone:
    """The network with weights that mean nothing, or those that the user's own module came with."""
    result = copy.deepcopy(trained.backbone)
    if trained.module is not None:
        target = result.module if isinstance(result, WrappedBackbone) else result
        target.load_state_dict(trained.module.state_dict())
    return result.eval()
