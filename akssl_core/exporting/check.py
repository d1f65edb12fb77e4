"""The proof of an exported file: features of a fresh process beside those of the backbone itself."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbone import Backbone
from ..errors import RunStopped
from ..rundir.files import tensor_bytes, write_atomic
from ..rundir.folder import read_tensors

TOLERANCE = 1e-4  # of features up to 1; larger ones may differ by that share of the largest
IMAGES = 8
Loader = Callable[[Path, Tensor], Tensor]  # (file, pictures (N, C, H, W) uint8) -> features (N, D)


class ExportFailed(RunStopped):
    """The exported file does not do what the backbone does; it was not written."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far the features of a file are from the backbone's: the largest difference, beside the largest feature."""

    difference: float
    largest: float
    images: int


def compare(backbone: Backbone, file: Path, load: Loader) -> Difference:
    """The features of a few pictures by the file beside those of the backbone.

    Raises:
        ExportFailed: they differ.
    """
    pictures = pictures_for(backbone)
    own, other = here(backbone, pictures), load(file, pictures)
    if own.shape != other.shape:
        raise ExportFailed(f"export: the file gives features {tuple(other.shape)}, the backbone {tuple(own.shape)}.")
    found = Difference(float((own - other).abs().max()), float(own.abs().max()), len(own))
    allowed = TOLERANCE * max(1.0, found.largest)
    if not found.difference <= allowed:  # NaN is no proof either
        raise ExportFailed(
            f"export: features differ by up to {found.difference:.3g}, allowed is {allowed:.3g}; nothing was written. "
            "Please report this with the versions of torch and of the library."
        )
    return found


def pictures_for(backbone: Backbone) -> Tensor:
    """Drawn pictures (N, C, H, W) uint8: smooth shapes with some noise, not square, larger than the input."""
    size, channels = backbone.image.size, backbone.image.channels
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(IMAGES, channels, 6, 7, generator=generator)
    smooth = F.interpolate(coarse, (size + size // 4, size + size // 3), mode="bicubic")
    noise = 0.05 * torch.randn(smooth.shape, generator=generator)
    return ((smooth + noise).clamp(0, 1) * 255).to(torch.uint8)


def here(backbone: Backbone, pictures: Tensor) -> Tensor:
    """The features (N, D) by the backbone in this process."""
    assert backbone.preprocess is not None
    with torch.no_grad():
        features: Tensor = backbone(backbone.preprocess(pictures))
    return features


TORCH = """\
import torch
from safetensors.torch import load_file, save_file
torch.set_grad_enabled(False)
images = load_file({inputs!r})["images"]
{snippet}
save_file({{"features": features.contiguous()}}, {outputs!r})
"""
NUMPY = """\
from safetensors.numpy import load_file, save_file
images = load_file({inputs!r})["images"]
{snippet}
save_file({{"features": features}}, {outputs!r})
"""


def elsewhere(snippet: str, images: Tensor, *, as_array: bool) -> Tensor:
    """The features (N, D) by a fresh process that runs the snippet.

    Raises:
        ExportFailed: it cannot.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, result, program = (Path(folder) / name for name in ("given", "result", "program.py"))
        write_atomic(given, tensor_bytes({"images": images}))
        code = (NUMPY if as_array else TORCH).format(inputs=str(given), outputs=str(result), snippet=snippet)
        write_atomic(program, code.encode())
        done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            named = [line for line in lines if re.match(r"\S+(Error|Exception)?: ", line)] or lines
            raise ExportFailed(f"export: a fresh process could not use the file, so nothing was written. {named[-1]}")
        return read_tensors(result)[0]["features"]
