"""Toys for tests of plugins: a small backbone, batches for it, and settings and optimizers as a run would have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone, Features
from ..config.schema import Schema, validate
from ..data import Batch, ImageSpec, Views
from ..method import Method
from ..optim import parameter_groups
from ..plugins.manager import Plugins, installed
from ..running.layers import check, collect, layer
from ..running.plan import make_plan
from ..training.callback import Callback


class ToyBackbone(Backbone):
    """A convolution and, unless told otherwise, a batch norm: 12 features of images of any size."""

    name = "toy"
    embed_dim = 12

    def __init__(self, image: ImageSpec | None = None, *, batch_norm: bool = True) -> None:
        image = image or ImageSpec(8, 3, (0.5,) * 3, (0.25,) * 3)
        super().__init__(Schema(), image)
        self.conv = nn.Conv2d(image.channels, self.embed_dim, 3, bias=not batch_norm)
        self.bn = nn.BatchNorm2d(self.embed_dim) if batch_norm else nn.Identity()
        self.seen: list[tuple[int, int]] = []
        """Images and pixels of their side in each forward pass."""

    def features(self, images: Tensor) -> Features:
        """The average of the map."""
        self.seen.append((len(images), images.shape[-1]))
        return Features(self.bn(self.conv(images)).relu().mean((2, 3)))


def toy_batch(images: int = 6, *, local: int = 0, local_size: int = 4, size: int = 8, seed: int = 1) -> Batch:
    """Noise as two global views of some images and as many local ones as are asked for."""
    generator = torch.Generator().manual_seed(seed)
    groups = {"global": (2, size), "local": (local, local_size)}
    views = {
        name: [torch.randn(images, 3, side, side, generator=generator) for _ in range(count)]
        for name, (count, side) in groups.items()
        if count
    }
    return Batch(Views(views), torch.arange(images))


def config_of(component: Any, **settings: Any) -> Any:
    """Settings of a component, checked as those of a run are.

    Raises:
        ConfigError: one is unknown or out of range.
    """
    return validate(component.Config, settings, registry=installed())


def spec_of(method: str, *, plugins: Plugins | None = None, **settings: Any) -> Any:
    """The settings of a run (`spec.train.epochs`, `spec.method.config`), with recipe and defaults; no data is read.

    `settings` are keywords of `run`. What rules decide by the data is found in `akssl_core.explain(...).spec`.

    Raises:
        AksslError: one is unknown or out of range.
    """
    plugins = plugins or installed()
    return check(layer(collect(method, None, settings, plugins), plugins), plugins)


def optimizer_of(method: Method, name: str = "sgd", **settings: Any) -> torch.optim.Optimizer:
    """The optimizer of this name over the parameters of a method, in the groups that its rules make."""
    optimizer: Any = installed().get("optimizer", name)
    config = config_of(optimizer, **settings)
    built: torch.optim.Optimizer = optimizer(config).build(parameter_groups(method, method.param_rules(), config))
    return built


def train(
    method: str, callbacks: Sequence[Callback] = (), *, plugins: Plugins | None = None, **settings: Any
) -> Method:
    """Train as `run` does, without scores and a run folder; gives the method."""
    plugins = plugins or installed()
    plan = make_plan(collect(method, None, settings, plugins), plugins)
    with torch.random.fork_rng(devices=[]):
        plan.engine(list(callbacks)).fit()
    return plan.method
