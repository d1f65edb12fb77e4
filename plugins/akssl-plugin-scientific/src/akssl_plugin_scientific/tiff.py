"""TIFF with any number of bands and bits, by tifffile: `--set data.decoder=tiff`."""

from __future__ import annotations

import logging
from math import prod
from typing import IO, Any

import numpy as np
import tifffile

from akssl_core import FileDecoder, Registry, Unreadable, hookimpl

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what is wrong with a file is told by akssl
BANDS = "SC"  # tifffile's letters for samples of a pixel and for channels; Y and X are lines and columns


class Tiff(FileDecoder):
    """TIFF files of any number of bands and bits, GeoTIFF and those of microscopes among them."""

    name = "tiff"
    suffixes = frozenset({".tif", ".tiff"})

    def shape(self, file: IO[bytes]) -> tuple[int, int, int, int]:
        """Of the first image: the bands of a pixel, or planes that the file calls channels."""
        with tifffile.TiffFile(file) as tiff:
            series = tiff.series[0]
            sides = dict(zip(series.axes, series.shape, strict=True))
            if {"Y", "X"} - sides.keys():
                raise Unreadable(f"no lines and columns among its axes {series.axes}")
            bands = prod(sides.get(axis, 1) for axis in BANDS)
            pages = prod(sides.values()) // (bands * sides["Y"] * sides["X"])
            return max(pages, len(tiff.series)), bands, sides["Y"], sides["X"]

    def decode(self, file: IO[bytes]) -> np.ndarray[Any, Any]:
        """The first image (bands, height, width)."""
        with tifffile.TiffFile(file) as tiff:
            series = tiff.series[0]
            values: np.ndarray[Any, Any] = series.asarray(maxworkers=1)
            for place, axis in reversed([*enumerate(series.axes)]):
                values = values if axis in "YX" + BANDS else values.take(0, place)
            axes = [axis for axis in series.axes if axis in "YX" + BANDS]
        order = [axes.index(axis) for axis in (*(axis for axis in axes if axis in BANDS), "Y", "X")]
        values = values.transpose(order)
        return values.reshape(-1, *values.shape[-2:])


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add the decoder."""
    registry.add(Tiff)
