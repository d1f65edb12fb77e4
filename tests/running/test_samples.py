"""What a run keeps of images for its report."""

from __future__ import annotations

import torch

from akssl_core import TokenBackbone
from akssl_core.reporting import render
from akssl_core.rundir.folder import read_tensors
from akssl_core.running.launch import run
from akssl_core.running.samples import DARK

SMALL = {"image_size": 8, "precision": "fp32", "batch_size": 16}


def samples_of(result):
    return read_tensors(result.run_dir / "samples.safetensors")[0]


def test_heads_light_the_patches_that_they_attend_to(toys, tmp_path):
    data = {"name": "shapes", "size": 32, "test_size": 16}
    result = run(method="toy", data=data, backbone="vit_tiny", plugins=toys, out=tmp_path / "run", epochs=1, **SMALL)
    assert isinstance(result.backbone, TokenBackbone)
    shown = samples_of(result)["attention"].float()
    image, heads = shown[:, :1], shown[:, 1:]
    assert shown.shape == (6, 1 + 3, 3, 8, 8)
    assert (heads <= image).all()
    assert (heads >= DARK * image - 1).all()
    patches = (heads == image).all(2).unflatten(2, (2, 4)).unflatten(4, (2, 4)).all(3).all(-1)  # of 4 x 4 pixels
    assert patches.flatten(2).any(2).all(), "the patch that a head attends to most is shown in full"
    assert 'id="attention"' in render(result.run_dir)


def test_a_backbone_without_heads_shows_none(toys, tmp_path):
    data = {"name": "shapes", "size": 32, "test_size": 16}
    result = run(method="toy", data=data, plugins=toys, out=tmp_path / "run", epochs=1, **SMALL)
    assert "attention" not in samples_of(result)


def test_a_report_of_a_hundred_thousand_images_is_small(toys, tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (100_000, 3, 8, 8), dtype=torch.uint8, generator=generator)
    result = run(method="toy", data=images, plugins=toys, out=tmp_path / "run", steps=4, **SMALL)
    page = result.run_dir / "report.html"
    assert "500 of 100000 images" in page.read_text()
    assert page.stat().st_size < 2_000_000
