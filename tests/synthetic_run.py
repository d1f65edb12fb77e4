"""A run folder as a run would leave it, without a run, and a reader that checks the markup of its report."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import torch
import yaml
from safetensors.torch import save_file

EVIL = "<script>alert('x')</script>"
CONFIG = {
    "method": {"name": "toy", "out_dim": 4},
    "backbone": {"name": "small"},
    "data": {"name": "photos"},
    "train": {"epochs": 3, "clip": None},
    "evaluate": {"k": 20},
    "seed": 7,
}
PROVENANCE = {
    "method.name": "user",
    "method.out_dim": "recipe 'default' of toy",
    "backbone.name": "rule: small suits 32 px",
    "data.name": "user",
    "train.epochs": "user",
    "seed": "core default",
}
MANIFEST = {
    "created": "2025-01-02T03:04:05+00:00",
    "status": "finished",
    "method": "toy",
    "seed": 7,
    "notes": ["precision fp32 on cpu: the CPU has no bf16 units"],
    "data": {"images": 60, "channels": 3, "classes": 3, "sample": "abc123"},
    "hardware": {"device": "cpu", "name": "x86_64", "precision": "fp32", "threads": 2},
    "versions": {"python": "3.11.2", "torch": "2.14.1"},
    "plugins": [{"name": "toy", "distribution": "akssl-plugin-toy", "version": "0.1", "status": "installed"}],
    "baselines": {"knn_raw_pixels": 21.5, "knn_random_init": 30.25},
}
FINAL = {
    "loss": -0.9,
    "knn_top1": 61.4,
    "std_ratio": 0.62,
    "rankme": 88.1,
    "knn_raw_pixels": 21.5,
    "knn_random_init": 30.25,
}


def row(step, **more):
    times = {"seconds": 2.0, "time_load": 0.25, "time_forward": 0.75}
    return {"step": step, "epoch": step / 10, "loss": 1.0 / step, "lr": 0.1, "images_per_s": 50.0, **times, **more}


ROWS = [
    row(step, **({"knn_top1": 30.0 + step, "std_ratio": 0.5, "rankme": 70.0} if step % 10 == 0 else {}))
    for step in range(2, 31, 2)
]


def write_run(path, *, config=CONFIG, provenance=PROVENANCE, rows=ROWS, tensors=None, **manifest):
    path.mkdir()
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "manifest.json").write_text(json.dumps({**MANIFEST, "final": FINAL, **manifest}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    if provenance is not None:
        (path / "provenance.json").write_text(json.dumps(provenance))
    if tensors:
        save_file(tensors, path / "samples.safetensors")
    return path


def pictures(channels=3):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    return {
        "originals": draw(2, channels, 16, 16),
        "views.global": draw(2, 2, channels, 16, 16),
        "views.local": draw(2, 3, channels, 8, 8),
        "neighbours": draw(2, 4, channels, 16, 16),
        "neighbour_labels": torch.tensor([[0, 0, 1, -1], [2, 2, 2, 1]]),
    }


class Page(HTMLParser):
    """Reads a document, and fails on an element that is not closed in its place."""

    VOID = ("meta", "img", "br")

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(self.texts)
