"""The pages of the documentation as tests run them: their blocks, in runs of a second, on some photos."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import torch
from PIL import Image

import akssl_core

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SMALL = ("--image-size", "16", "--epochs", "1", "--precision", "fp32")
FEW = ("--set", "data.size=64", "--set", "data.test_size=32")  # of the drawn shapes


def blocks(language, page):
    """The blocks of a page in their order; one that needs what is not installed is left out."""
    found = re.findall(rf"(?:<!-- needs: (\w+) -->\n)?```{language}\n(.*?)```", page, re.DOTALL)
    return [block for needed, block in found if not needed or importlib.util.find_spec(needed)]


def commands(page):
    """The words of every line of a page's shell blocks."""
    return [shlex.split(line, comments=True) for block in blocks("bash", page) for line in block.splitlines()]


def execute(page, name, names=None):
    """Run the Python blocks of a page one after the other; the names that they leave."""
    names = {} if names is None else names
    for block in blocks("python", page):
        exec(compile(block, name, "exec"), names)
    return names


def draw_photos(folder, count=24):
    """A folder with some photos."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for i in range(count):
        pixels = torch.randint(0, 256, (20, 24, 3), generator=generator).to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")


def shrink(monkeypatch):
    """`akssl_core.run`, `sweep` and `choose` take a second, whatever a page asks for."""
    run = akssl_core.run

    def small(settings):
        data = settings.get("data")
        drawn = data is None or (isinstance(data, str) and data == "shapes")
        few = {"data": {"name": "shapes", "size": 32, "test_size": 16}, "batch_size": 16} if drawn else {}
        network = {"backbone": {"name": "resnet_tiny", "widths": [4, 4, 8, 8]}}
        return {**network, **settings, **few, "image_size": 16, "precision": "fp32", "epochs": 1}

    monkeypatch.setattr(akssl_core, "run", lambda **settings: run(**small(settings)))
    for name in ("sweep", "choose"):
        many = getattr(akssl_core, name)
        monkeypatch.setattr(akssl_core, name, lambda methods, many=many, **settings: many(methods, **small(settings)))
