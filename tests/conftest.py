"""A toy method and backbone, and a plugin manager that knows them: what the core's tests train."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap

os.environ.setdefault("OMP_NUM_THREADS", "2")  # else each run measures, and bits would follow from what else is running

import pytest
import torch
from on_the_cpu import on_the_cpu
from pydantic import Field
from torch import nn
from torch.nn import functional as F

import akssl_core
from akssl_core import Backbone, Features, Method, ParamRule, Schedule, Schema, cli, hookimpl
from akssl_core.nn import EMA, Center, Queue, mlp
from akssl_core.plugins.manager import Plugins
from akssl_core.running.launch import run
from akssl_core.running.result import prepare

__all__ = ["on_the_cpu"]


class ToyBackbone(Backbone):
    """A small network with a batch norm."""

    name = "toy"
    embed_dim = 8

    def __init__(self, config, image):
        super().__init__(config, image)
        self.conv = nn.Conv2d(image.channels, 8, 3, padding=1, stride=2)
        self.bn = nn.BatchNorm2d(8)

    def features(self, images):
        return Features(self.bn(self.conv(images)).relu().mean((2, 3)))


class ToyMethod(Method):
    """A method with every kind of slow state: a teacher, a queue, a centre, and noise in its step."""

    name = "toy"
    accumulates = True
    recipes = {
        "default": {
            "backbone": {"name": "toy"},
            "optimizer": {"name": "sgd", "lr": {"start": 0.05, "warmup": 1}},
            "train": {"batch_size": 16},
        },
        "cifar": {"optimizer": {"name": "lars", "lr": 0.3, "eta": 0.002}},
    }

    class Config(Schema):
        """Settings of the toy."""

        out_dim: int = Field(4, gt=1, description="width of the projections")
        momentum: Schedule = Field(Schedule(start=0.9, end=1.0), description="of the teacher")
        noise: float = Field(0.0, ge=0, description="added to the projections")

    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.projector = mlp(backbone.embed_dim, 8, config.out_dim, batch_norm=False)
        self.teacher = EMA(config.momentum, backbone=self.backbone, projector=self.projector)
        self.queue = Queue(32, config.out_dim)
        self.center = Center(config.out_dim, momentum=0.9)
        self.steps = 0

    def step(self, batch, now):
        x1, x2 = batch.views["global"]
        z = self.projector(self.backbone(x1))
        z = z + self.config.noise * torch.randn_like(z)
        with torch.no_grad():
            target = self.teacher.projector(self.teacher.backbone(x2)) - self.center.value
        self.center.push(target)
        self.queue.push(F.normalize(target, dim=1))
        loss = 1 - F.cosine_similarity(z, target).mean() + 0.01 * (F.normalize(z, dim=1) @ self.queue.rows.T).mean()
        return {"loss": loss, "z_norm": z.norm(dim=1).mean()}

    def param_rules(self):
        return [ParamRule("projector.*", lr=2.0)]

    def after_step(self, now):
        self.steps += 1


class ToyPlugin:
    """What a plugin module looks like to the manager."""

    @hookimpl
    def akssl_register(self, registry):
        registry.add(ToyBackbone)
        registry.add(ToyMethod)


@pytest.fixture
def toys():
    """A plugin manager with the toys, and without what happens to be installed."""
    manager = Plugins()
    manager.entries = []
    manager.register(ToyPlugin(), "toys")
    return manager


@pytest.fixture
def at_step(toys, monkeypatch):
    """Do something at the end of a step, once."""
    method = toys.get("method", "toy")

    def arrange(step, act):
        original, done = method.after_step, []

        def after_step(self, now):
            if now.step + 1 == step and not done:
                done.append(step)
                act()
            original(self, now)

        monkeypatch.setattr(method, "after_step", after_step)

    return arrange


@pytest.fixture
def spoil(toys, monkeypatch):
    """Change the terms of one forward pass of one step."""
    method = toys.get("method", "toy")

    def arrange(step, change, micro=0):
        original, seen = method.step, []

        def spoilt(self, batch, now):
            out = original(self, batch, now)
            seen.append(now.step + 1)
            return change(out, self) if now.step + 1 == step and seen.count(step) == micro + 1 else out

        monkeypatch.setattr(method, "step", spoilt)

    return arrange


@pytest.fixture
def plugins():
    """A plugin manager without what happens to be installed."""
    manager = Plugins()
    manager.entries = []
    return manager


@pytest.fixture
def prepared(tmp_path, plugins):
    """Prepares a file from a source, and tells what was written."""

    def written(
        data, name="photos.safetensors", *, side=None, overwrite=False, shard_size=None, workers=None, **settings
    ):
        table, how = {"name": str(data), **settings}, {"shard_size": shard_size, "workers": workers}
        return prepare(table, tmp_path / name, size=side, overwrite=overwrite, plugins=plugins, **how)

    return written


@pytest.fixture
def photos():
    """64 labelled uint8 images of 12 x 12 px; the label is the channel that is bright."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 3
    images = torch.randint(0, 120, (64, 3, 12, 12), generator=generator)
    images[torch.arange(64), labels] += 100
    return images.to(torch.uint8), labels


@pytest.fixture
def start(toys, photos, tmp_path):
    """Begins a run of the toy in a folder of a given name."""

    def begin(name="run", **settings):
        settings = {"data": photos, "epochs": 2, "precision": "fp32", **settings}
        return run("toy", plugins=toys, out=tmp_path / name, **settings)

    begin.folder = tmp_path
    return begin


@pytest.fixture
def here(monkeypatch, capsys, tmp_path):
    """The command in this process and an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["akssl", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return call


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """A short run on a few drawn images, made once: 60 to train on, 40 to be judged by, 12 px."""
    result = akssl_core.run(
        method="simsiam",
        data={"name": "shapes", "size": 60, "test_size": 40},
        backbone={"name": "resnet_tiny", "widths": (4, 4, 8, 8)},
        image_size=12,
        epochs=2,
        batch_size=20,
        precision="fp32",
        seed=3,
        options={"out_dim": 16},
        out=tmp_path_factory.mktemp("runs") / "small",
    )
    return result.run_dir


@pytest.fixture
def finished(small_run, tmp_path):
    """A copy of that run's folder."""
    return shutil.copytree(small_run, tmp_path / "finished")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on the path into which distributions are installed as metadata and a module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("AKSSL_PLUGINS", raising=False)
    before = set(sys.modules)

    def install(dist, name, code, *, group="akssl.v1", version="1.0", module=None, requires=""):
        module = module or f"mod_{dist}_{name}".replace("-", "_")
        info = tmp_path / f"{dist.replace('-', '_')}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        needs = f"Requires-Dist: {requires}\n" if requires else ""
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n{needs}")
        points = info / "entry_points.txt"
        old = points.read_text() if points.exists() else ""
        points.write_text(f"{old}[{group}]\n{name} = {module}\n" if group not in old else f"{old}{name} = {module}\n")
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(code))
        return module

    yield install
    for module in set(sys.modules) - before:
        if module.startswith("mod_") or module == "one_file":
            del sys.modules[module]
