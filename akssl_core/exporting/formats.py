"""The export formats: for each its file, the code that loads it, the packages that takes, and the proof of both."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbone import Backbone, Counterpart
from ..errors import ConfigError, RunStopped
from ..rundir.files import read_tensors, tensor_bytes, write_atomic
from .classifier import Classifier

TOLERANCE = 1e-4  # of features up to 1; larger ones may differ by that share of the largest
IMAGES = 8
Loader = Callable[[Path, Tensor], Tensor]  # (file, pictures (N, C, H, W) uint8) -> features (N, D)
Content = Callable[[Mapping[str, str]], bytes]  # a whole file with these texts in its header


class Format(ABC):
    """A format: `name` is what users call it, `packages` are what loading it needs."""

    name: str
    packages: tuple[str, ...]
    needs_akssl: ClassVar[bool] = False  # to be loaded; its snippet takes pictures, others take normalised images
    takes_arrays: ClassVar[bool] = False  # its snippet takes numpy's arrays, others take tensors
    suffix: ClassVar[str] = ".safetensors"

    def takes(self, backbone: Backbone) -> bool:
        """Whether this backbone has this format: every one has weights, and is taken to be one that torch can trace."""
        return True

    @abstractmethod
    def make(self, backbone: Backbone) -> Content:
        """The file, but for its header."""

    @abstractmethod
    def snippet(self, backbone: Backbone, file: Path) -> str:
        """Python code that loads a file and computes `features`."""

    def features(self, backbone: Backbone, file: Path, pictures: Tensor) -> Tensor:
        """The features (N, D) of pictures (N, C, H, W) uint8 by the snippet, run `elsewhere`."""
        assert backbone.preprocess is not None
        images = pictures if self.needs_akssl else backbone.preprocess(pictures)
        return elsewhere(self.snippet(backbone, file), images, output_of(backbone), as_array=self.takes_arrays)


class Safetensors(Format):
    """The weights under the architecture's own key names, for akssl."""

    name, packages, needs_akssl = "safetensors", ("safetensors",), True

    def make(self, backbone: Backbone) -> Content:
        """The state dict."""
        return lambda metadata: tensor_bytes(backbone.export_state(), metadata)

    def snippet(self, backbone: Backbone, file: Path) -> str:
        """By `load_backbone`, preprocessing included."""
        return (
            f"import akssl_core\nbackbone = akssl_core.load_backbone({_quoted(file)})\n"
            f"features = backbone(backbone.preprocess(images))  # Pillow images, uint8 arrays or tensors -> (N, D)"
        )


class Library(Format):
    """A state dict that the stock model of a library takes."""

    def __init__(self, name: str) -> None:
        self.name, self.packages = name, (name, "safetensors")

    def takes(self, backbone: Backbone) -> bool:
        """Whether that library has such a network."""
        return backbone.counterpart(self.name) is not None

    def make(self, backbone: Backbone) -> Content:
        """The state dict under the library's key names."""
        state = _counterpart(backbone, self.name).state
        return lambda metadata: tensor_bytes(state, metadata)

    def snippet(self, backbone: Backbone, file: Path) -> str:
        """By the library and safetensors alone."""
        other = _counterpart(backbone, self.name)
        load = f"model.load_state_dict(safetensors.torch.load_file({_quoted(file)})); model.eval()"
        lines = [f"import {', '.join([*other.modules, 'safetensors.torch'])}", *other.lines, load]
        return "\n".join([*lines, f"features = model(images)  # {_expected(backbone, 'tensor')}"])


class Onnx(Format):
    """A network and its weights for ONNX Runtime, for any number of images at once."""

    name, suffix, takes_arrays = "onnx", ".onnx", True
    packages = ("onnx", "onnxscript", "onnxruntime")

    def make(self, backbone: Backbone) -> Content:
        """The traced network: `images` (N, C, H, W) to `features` (N, D), or a classifier's `probabilities`, for any N.

        Its texts are `metadata_props`.

        Raises:
            ConfigError: torch cannot trace the network.
        """
        return with_texts(_traced(backbone).model_proto)

    def snippet(self, backbone: Backbone, file: Path) -> str:
        """By ONNX Runtime on the CPU."""
        lines = [
            "import onnxruntime",
            f'session = onnxruntime.InferenceSession({_quoted(file)}, providers=["CPUExecutionProvider"])',
            f'{output_of(backbone)} = session.run(None, {{"images": images}})[0]  # {_expected(backbone, "array")}',
        ]
        if isinstance(backbone, Classifier):
            named = 'json.loads(session.get_modelmeta().custom_metadata_map["classes"])'
            lines += ["import json", f"classes = {named}  # {len(backbone.classes)} names, in this order"]
        return "\n".join(lines)


def with_texts(model: Any) -> Content:
    """The file of a model of ONNX, or of one that lies in a file, but for its texts."""
    import onnx

    model = onnx.load(model) if isinstance(model, Path) else model

    def content(metadata: Mapping[str, str]) -> bytes:
        onnx.helper.set_model_props(model, dict(metadata))
        data: bytes = model.SerializeToString()
        return data

    return content


FORMATS: tuple[Format, ...] = (Safetensors(), Library("torchvision"), Library("timm"), Onnx())


def _traced(backbone: Backbone) -> torch.onnx.ONNXProgram:
    size, channels = backbone.image.size, backbone.image.channels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter about its own insides
            program = torch.onnx.export(
                backbone.eval(),
                (torch.zeros(2, channels, size, size),),
                dynamo=True,
                input_names=["images"],
                output_names=[output_of(backbone)],
                dynamic_shapes=({0: torch.export.Dim("images", min=1)},),
                verbose=False,
            )
    except Exception as error:  # whatever a network's forward pass meets in the tracer
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"to: torch cannot turn {backbone.name} into ONNX: {reason}") from error
    assert program is not None
    return program


def _counterpart(backbone: Backbone, library: str) -> Counterpart:
    found = backbone.counterpart(library)
    assert found is not None, "asked for after `takes`"
    return found


def output_of(backbone: Backbone) -> str:
    """What its output is called."""
    return "probabilities" if isinstance(backbone, Classifier) else "features"


def _quoted(file: Path) -> str:
    """A path as Python code."""
    return repr(file.as_posix())


def _expected(backbone: Backbone, kind: str) -> str:
    size, channels = backbone.image.size, backbone.image.channels
    return f"images: float32 {kind} (N, {channels}, {size}, {size}), normalised -> (N, {backbone.embed_dim})"


# -- the proof: features of a fresh process beside those of the backbone itself ---------------------
class ExportFailed(RunStopped):
    """The exported file does not do what the backbone does; it was not written."""


def compare(backbone: Backbone, file: Path, load: Loader, pictures: Tensor | None = None) -> tuple[float, float]:
    """How far the features of `IMAGES` pictures by a file are from the backbone's, and the backbone's largest feature.

    Raises:
        ExportFailed: they differ.
    """
    pictures = pictures_for(backbone) if pictures is None else pictures
    own, other = here(backbone, pictures), load(file, pictures)
    if own.shape != other.shape:
        raise ExportFailed(f"export: the file gives features {tuple(other.shape)}, the backbone {tuple(own.shape)}.")
    difference, largest = float((own - other).abs().max()), float(own.abs().max())
    allowed = TOLERANCE * max(1.0, largest)
    if not difference <= allowed:  # NaN is no proof either
        raise ExportFailed(
            f"export: features differ by up to {difference:.3g}, allowed is {allowed:.3g}; nothing was written. "
            "Please report this with the versions of torch and of the library."
        )
    return difference, largest


def pictures_for(backbone: Backbone, sides: tuple[int, int] | None = None) -> Tensor:
    """Drawn pictures (N, C, H, W) uint8: smooth shapes with some noise, not square, larger than the input."""
    size, channels = backbone.image.size, backbone.image.channels
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(IMAGES, channels, 6, 7, generator=generator)
    smooth = F.interpolate(coarse, sides or (size + size // 4, size + size // 3), mode="bicubic")
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
save_file({{"features": {name}.contiguous()}}, {outputs!r})
"""
NUMPY = """\
from safetensors.numpy import load_file, save_file
images = load_file({inputs!r})["images"]
{snippet}
save_file({{"features": {name}}}, {outputs!r})
"""


def elsewhere(snippet: str, images: Tensor, name: str = "features", *, as_array: bool) -> Tensor:
    """The features (N, D) by a fresh process that runs the snippet, in which they are called `name`.

    Raises:
        ExportFailed: it cannot.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, result, program = (Path(folder) / name for name in ("given", "result", "program.py"))
        write_atomic(given, tensor_bytes({"images": images}))
        code = (NUMPY if as_array else TORCH).format(inputs=str(given), outputs=str(result), snippet=snippet, name=name)
        write_atomic(program, code.encode())
        done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            named = [line for line in lines if re.match(r"\S+(Error|Exception)?: ", line)] or lines
            raise ExportFailed(f"export: a fresh process could not use the file, so nothing was written. {named[-1]}")
        return read_tensors(result)[0]["features"]
