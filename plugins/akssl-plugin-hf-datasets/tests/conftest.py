"""No network, no cache but a folder of the test, and small tables of noise to read."""

from __future__ import annotations

import io
import os

import datasets
import huggingface_hub
import numpy as np
import pytest
from akssl_plugin_hf_datasets import HfConfig, HfDatasets
from PIL import Image

from akssl_core import DataError


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """The hub switched off, for this process and those it starts, and the caches in the test's own folder."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
        monkeypatch.setattr(datasets.config, name, True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()  # those of what the tests write
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def source():
    """The source for a path; views of 64 px, so that small images stay as they are."""

    def make(path, image_size=64, **settings):
        return HfDatasets(HfConfig(path=path, **settings), image_size)

    return make


@pytest.fixture
def noise():
    """(height, width, 3) uint8 of a seed."""

    def make(seed=0, size=(10, 14)):
        return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)

    return make


@pytest.fixture
def encoded():
    """The bytes of a file that holds this array or image."""

    def make(image, kind="PNG", **options):
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    return make


@pytest.fixture
def table(noise, encoded):
    """A data set of PNG images in an Image column, with a ClassLabel of three classes."""

    def make(count=20, first=0, names=("ant", "bee", "cat")):
        cells = [{"bytes": encoded(noise(i)), "path": f"{i}.png"} for i in range(first, first + count)]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
        return datasets.Dataset.from_dict({"image": cells, "label": [i % 3 for i in range(count)]}, features=features)

    return make


@pytest.fixture
def refused(source):
    """The text of the error for these settings, with paths as they were given."""

    def make(path, **settings):
        with pytest.raises(DataError) as caught:
            source(path, **settings)
        text = str(caught.value)
        assert "\n" not in text
        assert text.startswith("data")
        return text.replace(f"{os.getcwd()}{os.sep}", "")

    return make
