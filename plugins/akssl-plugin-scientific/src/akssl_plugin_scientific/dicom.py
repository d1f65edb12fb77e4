"""DICOM with its window, by pydicom: `--set data.decoder=dicom`."""

from __future__ import annotations

from typing import IO, Annotated, Any, Literal

import numpy as np
import pydicom
from pydantic import Field
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_rescale
from pydicom.pixels.utils import pixel_array

from akssl_core import FileDecoder, Registry, Schema, Unreadable, hookimpl


class DicomConfig(Schema):
    """Settings of the decoder `dicom`."""

    window: Literal["file", "none"] | tuple[float, Annotated[float, Field(gt=1)]] = Field(
        "file",
        description="file: each image through the first window that it names, whole where it names none; [center, "
        "width]: all of them through this one, as [40, 400] for soft tissue in CT; none: the values themselves "
        "(Hounsfield units in CT) by data.black and data.white",
    )


class Dicom(FileDecoder):
    """DICOM files: CT, MR, X-ray, ultrasound; the first frame where there are several."""

    name = "dicom"
    suffixes = frozenset({".dcm", ".dicom", ".ima", ""})
    Config = DicomConfig

    def shape(self, file: IO[bytes]) -> tuple[int, int, int, int]:
        """By the elements that describe the pixels."""
        head = pydicom.dcmread(file, stop_before_pixels=True, force=False)
        if "Rows" not in head or "Columns" not in head:
            raise Unreadable("DICOM without pixels")
        return int(head.get("NumberOfFrames") or 1), head.get("SamplesPerPixel", 1), head.Rows, head.Columns

    def decode(self, file: IO[bytes]) -> np.ndarray[Any, Any]:
        """The first frame: colour as uint8, gray in [0, 1] through its window, or the values themselves."""
        data = pydicom.dcmread(file)
        if "PixelData" not in data:
            raise Unreadable("DICOM without pixels of whole numbers")
        stored = pixel_array(data, index=0)
        if stored.ndim == 3:
            return stored.transpose(2, 0, 1)
        values = apply_rescale(stored, data).astype(np.float64)
        if self.config.window == "none":
            return values[None]
        shown = _through(values, *self._window(data))
        return (1 - shown if data.PhotometricInterpretation == "MONOCHROME1" else shown)[None]

    def _window(self, data: pydicom.Dataset) -> tuple[float, float, str]:
        """(center, width, function): the user's, that of the file, or the range that the stored bits can hold."""
        if self.config.window != "file":
            return *self.config.window, "LINEAR"
        center, width = (_first(data.get(name)) for name in ("WindowCenter", "WindowWidth"))
        if center is not None and width is not None:
            return float(center), float(width), str(data.get("VOILUTFunction", "LINEAR"))
        low = -(2 ** (data.BitsStored - 1)) if data.PixelRepresentation else 0
        ends = apply_rescale(np.array([low, low + 2**data.BitsStored - 1]), data).astype(np.float64)
        return float(ends.mean()), float(np.ptp(ends)), "LINEAR_EXACT"


def _first(value: Any) -> Any:
    """The first of several windows."""
    return value[0] if isinstance(value, MultiValue) else value


def _through(values: np.ndarray[Any, Any], center: float, width: float, function: str) -> np.ndarray[Any, Any]:
    """Values through a window, in [0, 1] (DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3)."""
    if function == "SIGMOID":
        shown: np.ndarray[Any, Any] = 1 / (1 + np.exp(-4 * (values - center) / width))
        return shown
    if function == "LINEAR":
        center, width = center - 0.5, max(width - 1, 1e-6)
    return ((values - center) / width + 0.5).clip(0, 1)


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add the decoder."""
    registry.add(Dicom)
