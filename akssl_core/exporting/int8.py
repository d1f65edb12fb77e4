"""A smaller ONNX file: weights and activations in 8 bits, and how much accuracy that costs on images of the run."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone import Backbone, WrappedBackbone
from ..config.registry import STAND_IN
from ..data import DatasetSource, ImageSet
from ..data.opening import open_source
from ..errors import AksslError, ConfigError
from ..metrics.features import embed, labelled, sample
from ..metrics.interval import Interval, interval
from ..metrics.nearest import knn_right, percent
from ..plugins.manager import Plugins
from ..rundir.folder import RunDir
from .formats import ExportFailed

BANK, QUERIES = 2000, 1000  # images that the two files are compared on
CALIBRATED, AT_ONCE = 256, 16  # images by which the ranges of activations are found, and how many at a time
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Quantised:
    """What 8 bits in place of 32 save and cost, measured on images of the run."""

    way: str
    """"static": activations have fixed ranges, found on images of the run; "dynamic": those of each batch."""
    bytes_before: int
    """The size of the float file."""
    bytes_after: int
    """The size of the file that was written."""
    images: int
    """How many images were tested."""
    cosine: float
    """The mean cosine between the features of an image by both files."""
    knn: tuple[float, float] | None
    """k-NN accuracy in percent by the float file and by this one; None: the images have no labels."""
    gain: Interval | None
    """The points that this one is above the other, paired by image: below 0 is what was lost."""

    @property
    def text(self) -> str:
        """Size and accuracy before and after, in one line."""
        before, after = self.bytes_before / 1e6, self.bytes_after / 1e6
        said = f"int8 ({self.way}): {after:.1f} MB, {before:.1f} MB as float; mean cosine of features {self.cosine:.4f}"
        if self.knn is None or self.gain is None:
            return f"{said} ({self.images} images without labels, so no accuracy)"
        by = self.gain
        return (
            f"{said}; k-NN accuracy {self.knn[1]:.1f} %, {self.knn[0]:.1f} % as float ({by.mean:+.1f} points "
            f"[{by.low:+.1f}, {by.high:+.1f}], {self.images} images)"
        )

    def record(self) -> dict[str, Any]:
        """As plain values, fit for JSON."""
        return asdict(self)


def source_of(folder: Path, size: int, plugins: Plugins) -> DatasetSource:
    """The images that a run was trained on, for views of `size` px.

    Raises:
        AksslError: this is no run, or its images are not there.
    """
    if not RunDir(folder).begun:
        raise ConfigError(f"int8: needs images to measure by, and {folder} is no run folder, which knows some.")
    data = RunDir.open(folder).read_config()["data"]
    if data["name"] == STAND_IN:
        raise ConfigError(
            f"int8: needs the images of the run, and {folder} was trained on a Python object ({data['type']}) that has "
            f"no name. Export without int8, or train on files."
        )
    try:
        return open_source(data, plugins, size)
    except AksslError as error:
        raise ConfigError(f"int8: needs the images of the run, which are not to be had: {error}") from error


def quantise(backbone: Backbone, file: Path, out: Path, source: DatasetSource) -> Quantised:
    """Write the ONNX file of a backbone again in 8 bits, and measure what that costs.

    Raises:
        ExportFailed: onnxruntime cannot do it, or its features are no numbers.
    """
    preprocess = backbone.preprocess
    assert preprocess is not None
    pair = source.probe()
    bank, queries = pair or (source.train(), source.train())
    bank, queries = sample(bank, BANK), sample(queries, QUERIES)
    static = _is_convolutional(backbone)
    try:
        with _silent():
            _write(backbone, file, out, sample(source.train(), CALIBRATED) if static else None)
        (of_bank, of_queries), (bank8, queries8) = (
            [embed(session(one, backbone), images, preprocess, device=CPU) for images in (bank, queries)]
            for one in (file, out)
        )
    except AksslError:
        raise
    except Exception as error:  # whatever onnxruntime meets in a network
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportFailed(f"int8: onnxruntime cannot quantise {backbone.name}: {reason:.200}") from error
    if not bool(queries8.isfinite().all()):
        raise ExportFailed(f"int8: features of {backbone.name} are no numbers in 8 bits; nothing was written.")
    cosine = F.cosine_similarity(of_queries, queries8).mean().item()
    accuracies, gain = None, None
    if pair is not None and bank.labels is not None and queries.labels is not None:
        right = [
            knn_right(*labelled(b, bank.labels, "int8", "bank"), *labelled(q, queries.labels, "int8", "queries"))
            for b, q in ((of_bank, of_queries), (bank8, queries8))
        ]
        accuracies = (percent(right[0]), percent(right[1]))
        gain = interval(100 * (right[1].double() - right[0].double())[None], least=-100, most=100)
    way = "static" if static else "dynamic"
    return Quantised(way, os.path.getsize(file), os.path.getsize(out), len(queries), cosine, accuracies, gain)


def _is_convolutional(backbone: Backbone) -> bool:
    """Whether most of its weights are those of convolutions."""
    own = sum(part.weight.numel() for part in backbone.modules() if isinstance(part, nn.Conv2d))
    return 2 * own > sum(tensor.numel() for tensor in backbone.parameters())


def _write(backbone: Backbone, file: Path, out: Path, images: ImageSet | None) -> None:
    """The file in 8 bits; `images` are those by which fixed ranges are found."""
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
    ways = {"per_channel": True, "weight_type": q.QuantType.QInt8}
    if images is None:
        q.quantize_dynamic(str(prepared), str(out), **ways)
        return
    reader = _Reader(backbone, images)
    q.quantize_static(
        str(prepared),
        str(out),
        reader,
        quant_format=q.QuantFormat.QDQ,
        activation_type=q.QuantType.QUInt8,
        calibrate_method=q.CalibrationMethod.Percentile,
        extra_options={"CalibStridedMinMax": 1},  # a batch at a time: its activations are kept until it is counted
        **ways,
    )


class _Reader:
    """Batches of images as onnxruntime asks for them; it makes no difference between its own readers and this."""

    def __init__(self, backbone: Backbone, images: ImageSet) -> None:
        self.backbone, self.images = backbone, images
        self.waiting: Iterator[int] = iter(())

    def __len__(self) -> int:
        return -(-len(self.images) // AT_ONCE)

    def set_range(self, start_index: int, end_index: int) -> None:
        """The batches to give next."""
        self.waiting = iter(range(start_index, end_index))

    def get_next(self) -> dict[str, Any] | None:
        """The next batch by the name of the network's input; None: there is none left."""
        number = next(self.waiting, None)
        if number is None:
            return None
        chosen = range(number * AT_ONCE, min((number + 1) * AT_ONCE, len(self.images)))
        assert self.backbone.preprocess is not None
        batch = self.backbone.preprocess.pixels(self.backbone.preprocess.fetch(self.images, chosen))
        return {"images": batch.numpy()}


class _Session(nn.Module):
    """An ONNX file as a module on the CPU."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {"images": images.contiguous().numpy()})[0])


def session(file: Path, backbone: Backbone) -> Backbone:
    """The ONNX file of a backbone as one, which computes by onnxruntime on the CPU."""
    result = WrappedBackbone(_Session(file), backbone.image)
    result.preprocess = backbone.preprocess
    return result


@contextmanager
def _silent() -> Iterator[None]:
    """Without what onnxruntime prints and logs of its progress."""
    with redirect_stdout(io.StringIO()):
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
