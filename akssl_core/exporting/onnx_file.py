"""A network as an ONNX file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..errors import ConfigError


class _Plain(nn.Module):
    """A backbone as torch's exporter likes it: tensor in, tensor out."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, D)."""
        out: Tensor = self.backbone(images)
        return out


def onnx_file(backbone: Backbone, example: Tensor) -> Callable[[Mapping[str, str]], bytes]:
    """From texts for `metadata_props` to a file that maps `images` (N, C, H, W) to `features` (N, D), for any N.

    Raises:
        ConfigError: torch cannot trace the network.
    """
    import onnx

    network = _Plain(backbone).eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter about its own insides
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes=({0: torch.export.Dim("images", min=1)},),
                verbose=False,
            )
    except Exception as error:  # whatever a network's forward pass meets in the tracer
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"to: torch cannot turn {backbone.name} into ONNX: {told}") from error
    assert program is not None
    model = program.model_proto

    def content(metadata: Mapping[str, str]) -> bytes:
        onnx.helper.set_model_props(model, dict(metadata))
        data: bytes = model.SerializeToString()
        return data

    return content
