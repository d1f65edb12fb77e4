"""The export formats: for each its file, the code that loads it, and the packages that takes."""

from __future__ import annotations

import importlib.util
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ..backbone import Backbone, Counterpart
from ..errors import ConfigError
from ..rundir.files import tensor_bytes
from .check import elsewhere

Content = Callable[[Mapping[str, str]], bytes]  # a whole file with these texts in its header


class Format(ABC):
    """A format: `name` is what users call it, `packages` are what loading it needs."""

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    needs_akssl: ClassVar[bool] = False  # to be loaded; its snippet takes pictures, others take normalised images
    takes_arrays: ClassVar[bool] = False  # its snippet takes numpy's arrays, others take tensors
    suffix: ClassVar[str] = ".safetensors"

    def need_packages(self) -> None:
        """See that everything is there.

        Raises:
            ConfigError: a package is missing.
        """
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"to: {self.name} needs {', '.join(missing)}, which this environment lacks. "
                "Install what all formats need: pip install 'akssl-core[export]'"
            )

    @abstractmethod
    def takes(self, backbone: Backbone) -> bool:
        """Whether this backbone has this format."""

    @abstractmethod
    def make(self, backbone: Backbone) -> Content:
        """The file, but for its header."""

    @abstractmethod
    def snippet(self, backbone: Backbone, file: Path) -> str:
        """Python code that loads a file and computes `features`."""

    def features(self, backbone: Backbone, file: Path, pictures: Tensor) -> Tensor:
        """The features (N, D) of pictures (N, C, H, W) uint8 by the snippet, in a fresh process.

        Raises:
            ExportFailed: it cannot load the file.
        """
        assert backbone.preprocess is not None
        images = pictures if self.needs_akssl else backbone.preprocess(pictures)
        return elsewhere(self.snippet(backbone, file), images, as_array=self.takes_arrays)


class Safetensors(Format):
    """The weights under the architecture's own key names, for akssl."""

    name, packages, needs_akssl = "safetensors", ("safetensors",), True

    def takes(self, backbone: Backbone) -> bool:
        """Every backbone has weights."""
        return True

    def make(self, backbone: Backbone) -> Content:
        """The state dict."""
        return lambda metadata: tensor_bytes(backbone.export_state(), metadata)

    def snippet(self, backbone: Backbone, file: Path) -> str:
        """By `load_backbone`, preprocessing included."""
        lines = [
            "import akssl_core",
            f"backbone = akssl_core.load_backbone({_quoted(file)})",
            "features = backbone(backbone.preprocess(images))  # Pillow images, uint8 arrays or tensors -> (N, D)",
        ]
        return "\n".join(lines)


class Library(Format):
    """A state dict that the stock model of a library takes."""

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


class Torchvision(Library):
    """For a model of torchvision."""

    name, packages = "torchvision", ("torchvision", "safetensors")


class Timm(Library):
    """For a model of timm."""

    name, packages = "timm", ("timm", "safetensors")


class Onnx(Format):
    """A network and its weights for ONNX Runtime, for any number of images at once."""

    name, suffix, takes_arrays = "onnx", ".onnx", True
    packages = ("onnx", "onnxscript", "onnxruntime")

    def takes(self, backbone: Backbone) -> bool:
        """Every network that torch can trace."""
        return True

    def make(self, backbone: Backbone) -> Content:
        """The traced network."""
        return _traced(backbone)

    def snippet(self, backbone: Backbone, file: Path) -> str:
        """By ONNX Runtime on the CPU."""
        lines = [
            "import onnxruntime",
            f'session = onnxruntime.InferenceSession({_quoted(file)}, providers=["CPUExecutionProvider"])',
            f'features = session.run(None, {{"images": images}})[0]  # {_expected(backbone, "array")}',
        ]
        return "\n".join(lines)


FORMATS: tuple[Format, ...] = (Safetensors(), Torchvision(), Timm(), Onnx())


def _traced(backbone: Backbone) -> Content:
    """An ONNX file that maps `images` (N, C, H, W) to `features` (N, D) for any N; its texts lie in `metadata_props`.

    Raises:
        ConfigError: torch cannot trace the network.
    """
    import onnx

    size, channels = backbone.image.size, backbone.image.channels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter about its own insides
            program = torch.onnx.export(
                backbone.eval(),
                (torch.zeros(2, channels, size, size),),
                dynamo=True,
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes=({0: torch.export.Dim("images", min=1)},),
                verbose=False,
            )
    except Exception as error:  # whatever a network's forward pass meets in the tracer
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"to: torch cannot turn {backbone.name} into ONNX: {reason}") from error
    assert program is not None
    model = program.model_proto

    def content(metadata: Mapping[str, str]) -> bytes:
        onnx.helper.set_model_props(model, dict(metadata))
        data: bytes = model.SerializeToString()
        return data

    return content


def _counterpart(backbone: Backbone, library: str) -> Counterpart:
    found = backbone.counterpart(library)
    assert found is not None, "asked for after `takes`"
    return found


def _quoted(file: Path) -> str:
    """A path as Python code."""
    return repr(file.as_posix())


def _expected(backbone: Backbone, kind: str) -> str:
    size, channels = backbone.image.size, backbone.image.channels
    return f"images: float32 {kind} (N, {channels}, {size}, {size}), normalised -> (N, {backbone.embed_dim})"
