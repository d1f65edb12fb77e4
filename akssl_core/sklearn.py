"""A trained backbone as a scikit-learn transformer: `pip install 'akssl-core[sklearn]'`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .backbone import Backbone
from .data import Pixels
from .data.convert import as_tensor, to_uint8
from .errors import ConfigError, DataError
from .exporting.backbone_file import file_of, load_backbone

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_array, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "akssl_core.sklearn needs scikit-learn 1.6 or newer: pip install 'akssl-core[sklearn]'"
    ) from error

Array = np.ndarray[Any, Any]


class Featurizer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc] # has no types
    """Images to the features of a trained backbone.

    It takes uint8 or float arrays [N, H, W, C] or [N, C, H, W], gray ones [N, H, W], and flattened rows
    [N, H * W * C] where `image_shape` says what they are. It learns nothing and keeps no image. It pickles without
    weights: the path is all that is stored, and the weights are read from there.

    Args:
        run_dir: the folder of a run that has ended, or a `.safetensors` file of its backbone.
        image_shape: of each flattened row: (H, W), (H, W, C) or (C, H, W); one may be -1, as in numpy's reshape.
        value_range: the values that mean black and white, (0, 16) say; values beyond are cut off. Default: 0 and 255
            for uint8, 0 and 1 for floats, and others are an error.
        batch_size: images a forward pass.
        device: "cpu", "cuda", "mps" or "xpu".

    Attributes:
        n_features_in_: numbers in one image.
        feature_names_in_: names of the columns, where flattened rows came as a table.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        image_shape: Sequence[int] | None = None,
        value_range: tuple[float, float] | None = None,
        batch_size: int = 256,
        device: str = "cpu",
    ) -> None:
        self.run_dir = run_dir
        self.image_shape = image_shape
        self.value_range = value_range
        self.batch_size = batch_size
        self.device = device

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def fit(self, X: Any, y: Any = None) -> Featurizer:
        """Look whether images and backbone fit; nothing is learned."""
        images = self._images(X, reset=True)
        self._n_features_out = self._features(images[:1]).shape[1]  # shown here what it cannot take
        return self

    def transform(self, X: Any) -> Array:
        """Features (N, D) float32 of the images."""
        check_is_fitted(self)
        images = self._images(X, reset=False)
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise ConfigError(f"batch_size: expected a whole number from 1 on, got {self.batch_size!r}.")
        result = np.empty((len(images), self._n_features_out), np.float32)
        for start in range(0, len(images), self.batch_size):
            end = start + self.batch_size
            result[start:end] = self._features(images[start:end])
        return result

    def _features(self, images: Array) -> Array:
        """Features (B, D) of one batch."""
        backbone = _backbone(self.run_dir, self.device)
        assert backbone.preprocess is not None
        pixels = self._pixels(images)
        gray = pixels.ndim == 3
        batch = backbone.preprocess.pixels(Pixels(pixels[:, None])) if gray else backbone.preprocess(pixels)
        with torch.no_grad():
            features: Tensor = backbone(batch.to(self.device))
        found: Array = features.float().cpu().numpy()
        return found

    def _images(self, X: Any, *, reset: bool) -> Array:
        """The images (N, ...) with the axes of each apart, as numbers."""
        if np.asarray(X).ndim <= 2:
            rows: Array = validate_data(self, X, dtype="numeric", reset=reset)
            return self._unflattened(rows)
        images: Array = check_array(X, dtype="numeric", ensure_2d=False, allow_nd=True)
        if images.ndim > 4:
            raise DataError(f"X: expected [N, H, W, C], [N, C, H, W] or [N, H, W], got the shape {images.shape}.")
        size = int(np.prod(images.shape[1:]))
        if reset:
            self.n_features_in_ = size
        elif size != self.n_features_in_:
            raise DataError(f"X: the images hold {size} numbers each; fitted on images of {self.n_features_in_}.")
        return images

    def _unflattened(self, rows: Array) -> Array:
        if self.image_shape is None:
            raise DataError(
                f"X: rows of {rows.shape[1]} numbers do not tell height and width. Say them: image_shape=(28, 28), or "
                f"pass arrays [N, H, W, C]."
            )
        try:
            return rows.reshape(len(rows), *self.image_shape)
        except (ValueError, TypeError) as error:
            shape = tuple(np.atleast_1d(self.image_shape).tolist())
            raise DataError(f"image_shape: {rows.shape[1]} numbers are no image of the shape {shape}.") from error

    def _pixels(self, images: Array) -> Tensor:
        """uint8 (B, ...)."""
        if self.value_range is not None:
            low, high = self.value_range
            if not low < high:
                raise ConfigError(f"value_range: expected (black, white) with black < white, got {self.value_range}.")
            scaled = (images.astype(np.float64) - low) / (high - low)
            images = np.rint(255 * scaled.clip(0, 1)).astype(np.uint8)
        try:
            return to_uint8(as_tensor(images), "X")
        except DataError as error:
            raise DataError(f"{error} Or say what means black and white: value_range=(0, 16).") from error


def _backbone(run_dir: str | Path, device: str) -> Backbone:
    """The backbone of a run, read again only where the file has changed."""
    file = file_of(run_dir)
    if not file.is_file():
        return load_backbone(run_dir)  # which says what is wrong
    return _loaded(str(file.resolve()), file.stat().st_mtime_ns, device)


@lru_cache(maxsize=2)
def _loaded(path: str, stamp: int, device: str) -> Backbone:
    return load_backbone(path).to(device)
