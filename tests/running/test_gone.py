"""Files and plugins that are gone when a run is gone on with or judged, and steps that fail: what is wrong is named."""

from __future__ import annotations

import shutil

import pytest
import torch

import akssl_core
from akssl_core.errors import AksslError, ConfigError, RunStopped
from akssl_core.plugins.manager import Plugins

METHOD = """
    import torch
    from pydantic import Field
    from akssl_core import Backbone, FilePath, Features, Method, Schema, hookimpl

    class Net(Backbone):
        '''One convolution.'''
        name = "condense-net"
        embed_dim = 8

        def __init__(self, config, image):
            super().__init__(config, image)
            self.conv = torch.nn.Conv2d(image.channels, 8, 3)

        def features(self, images):
            return Features(self.conv(images).mean((2, 3)))

    class Distill(Method):
        '''Copies a vector from a file.'''
        name = "condense"
        recipes = {"default": {"optimizer": {"name": "sgd", "lr": 0.1}}}

        class Config(Schema):
            '''The vector.'''
            teacher: FilePath = Field(description="file of the vector")

        def __init__(self, config, backbone):
            super().__init__(config, backbone)
            content = bytearray(config.teacher.read_bytes())
            self.register_buffer("vector", torch.frombuffer(content, dtype=torch.float32))

        def step(self, batch, now):
            z = self.backbone(batch.views["global"][0])
            return {"loss": (z - self.vector[:FAILS if now.step == 3 else 8]).square().mean()}

    @hookimpl
    def akssl_register(registry):
        registry.add(Net)
        registry.add(Distill)
"""
DATA = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8), torch.arange(40) % 2


@pytest.fixture
def trained(site, tmp_path):
    """Trains with an installed method that needs a file; gives the run's folder."""
    (tmp_path / "teacher.bin").write_bytes(torch.arange(8).float().numpy().tobytes())

    def train(fails="8"):
        site("pkg-condense", "condense", METHOD.replace("FAILS", fails))
        settings = {"data": DATA, "backbone": "condense-net", "epochs": 2, "batch_size": 8, "out": tmp_path / "run"}
        method = {"name": "condense", "teacher": tmp_path / "teacher.bin"}
        akssl_core.run(method, **settings, plugins=Plugins())
        return tmp_path / "run"

    return train


def test_a_file_that_is_gone_is_told_by_its_setting(trained, tmp_path):
    run = trained()
    (tmp_path / "teacher.bin").unlink()
    for use in (
        lambda: akssl_core.resume(run, data=DATA, epochs=3, plugins=Plugins()),
        lambda: akssl_core.evaluate(run, data=DATA, plugins=Plugins()),
    ):
        with pytest.raises(ConfigError, match=r"^method\.teacher: '.*teacher\.bin' does not exist\. Put it back"):
            use()


def test_a_plugin_that_is_gone_is_told_by_its_package(trained, tmp_path):
    run = trained()
    shutil.rmtree(tmp_path / "pkg_condense-1.0.dist-info")
    for use in (
        lambda: akssl_core.resume(run, data=DATA, epochs=3, plugins=Plugins()),
        lambda: akssl_core.evaluate(run, data=DATA, plugins=Plugins()),
        lambda: akssl_core.load_backbone(run, plugins=Plugins()),
    ):
        with pytest.raises(AksslError, match="Install it with: pip install pkg-condense"):
            use()


def test_a_step_that_fails_is_told_with_method_step_and_line(trained):
    with pytest.raises(RunStopped) as caught:
        trained(fails="3")
    assert str(caught.value).startswith("the method condense failed in step 3: RuntimeError: The size of tensor")
    assert str(caught.value).endswith("mod_pkg_condense_condense.py:34)")


def test_too_few_classes_are_told_with_method_and_step(akssl_plugins, tmp_path):
    class Supervised(akssl_core.Method):
        """Two classes."""

        name = "two"
        uses_labels = True
        recipes = {"default": {"optimizer": {"name": "sgd", "lr": 0.1}}}

        def __init__(self, config, backbone):
            super().__init__(config, backbone)
            self.head = torch.nn.Linear(backbone.embed_dim, 2)

        def step(self, batch, now):
            logits = self.head(self.backbone(batch.views["global"][0]))
            return {"loss": torch.nn.functional.cross_entropy(logits, batch.label)}

    akssl_plugins.registry.add(Supervised)
    settings = {"epochs": 1, "batch_size": 20, "out": tmp_path / "run", "plugins": akssl_plugins}
    with pytest.raises(RunStopped, match=r"^the method two failed in step 0: IndexError: Target \d is out of bounds"):
        akssl_core.run("two", data=(DATA[0], torch.arange(40) % 5), **settings)
