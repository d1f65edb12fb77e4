"""The settings of one view, and the transform that makes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from ..config import Schema
from ..data.base import ImageSpec, Pixels
from .base import Operation
from .blur import GaussianBlur, kernel_size
from .color import ColorJitter, Grayscale, Normalize, Solarize
from .crop import RandomResizedCrop
from .random import Draws
