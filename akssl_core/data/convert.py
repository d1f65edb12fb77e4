"""Images of any kind as uint8 tensors: axis order, number of channels, value range, Pillow modes, size."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torch.nn import functional as F

from ..errors import DataError

Layout = Literal["CHW", "HWC"]

WHITE = 65535  # of 16 bits that are all used
Limits: TypeAlias = tuple[float, float]  # the values that are shown as black and as white
MAX_ASPECT = 4  # a longer image keeps its middle: its ends would take memory, and few crops would show them
NO_MARGIN = 96  # below this side images are not enlarged before the centre crop: there is nothing to spare
_CHUNK = 1024  # images converted at a time, so that a large float array is never doubled
_LUMA = (19595, 38470, 7471)  # ITU-R BT.601 in 2^16, as Pillow's "L" has it to the bit
_AT_ONCE = 2**24  # values of an image that are resized together; a photo's channels take turns
_UPRIGHT = {  # by EXIF's orientation: whether lines become columns, and then the steps along height and width
    2: (False, 1, -1),
    3: (False, -1, -1),
    4: (False, -1, 1),
    5: (True, 1, 1),
    6: (True, 1, -1),
    7: (True, -1, -1),
    8: (True, -1, 1),
}
_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def as_tensor(array: Any) -> Tensor:
    """An array or tensor as a tensor on the CPU that shares its memory where it can (memory maps included)."""
    if isinstance(array, Tensor):
        return array.detach().cpu()
    if array.dtype == object:
        raise DataError(
            "images: the array holds Python objects, so the images differ in size. "
            "Wrap them in a torch.utils.data.Dataset, whose images may differ."
        )
    if array.dtype.kind not in "buif":
        raise DataError(f"images: expected an array of uint8, got {array.dtype}. Convert it to uint8 in 0..255.")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))  # torch knows the machine's byte order alone
    if any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array)  # torch knows no negative strides
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # we only read
        return torch.from_numpy(array)


def find_layout(shape: Sequence[int]) -> Layout | None:
    """Where the channels of a (.., a, b, c) image lie, or None when the shape does not tell.

    The channel axis is the first or the last of the three when it is the smallest, else when the other two
    are equal (13 bands of 8x8 pixels).
    """
    first, middle, last = shape[-3:]
    if first < min(middle, last):
        return "CHW"
    if last < min(first, middle):
        return "HWC"
    if (middle == last) != (first == middle):
        return "CHW" if middle == last else "HWC"
    return None


def channels_first(images: Tensor, layout: Layout | None = None) -> Tensor:
    """(.., H, W, C) or (.., C, H, W) as a view (.., C, H, W).

    Raises:
        DataError: no layout was given and the shape fits both.
    """
    layout = layout or find_layout(images.shape)
    if layout is None:
        raise DataError(
            f"images: the shape {tuple(images.shape)} does not tell which axis holds the channels. "
            f"Say it: data=akssl_core.Arrays(images, layout='CHW') or layout='HWC'."
        )
    return images if layout == "CHW" else images.movedim(-1, -3)


def planes(image: Tensor | np.ndarray[Any, Any], what: str) -> Tensor:
    """One image as (C, H, W) of its own type.

    Raises:
        DataError: another number of axes, or a shape that does not tell the channels.
    """
    tensor = as_tensor(image)
    if tensor.ndim == 2:
        return tensor[None]
    layout = find_layout(tensor.shape) if tensor.ndim == 3 else None
    if layout is None:
        shape = tuple(tensor.shape)
        raise DataError(f"{what}: cannot tell channels, height and width from the shape {shape}; expected (C, H, W).")
    return channels_first(tensor, layout)


def to_uint8(images: Tensor, what: str = "images") -> Tensor:
    """uint8 images as they are, float images in [0, 1] as uint8.

    Raises:
        DataError: another type or other values; the text says how to convert them.
    """
    if images.dtype == torch.uint8:
        return images
    found = f"{what}: expected uint8 or float values in [0, 1], got {str(images.dtype).removeprefix('torch.')}"
    if not images.is_floating_point():
        deep = "Images of more bits keep them as files: numpy.save('images.npy', images), data='images.npy'. Or scale"
        raise DataError(f"{found}. {deep} the values to 0..255 and convert them to uint8.")
    low, high = (float(value) for value in torch.aminmax(images))
    if low >= 0 and 1 < high <= 255:
        raise DataError(f"{found} with values up to {high:g}. If they mean 0..255, convert them to uint8.")
    if not (low >= 0 and high <= 1):  # also true for NaN
        raise DataError(
            f"{found} with values from {low:g} to {high:g}. They look normalised or broken: "
            f"pass raw images, akssl makes and normalises the views."
        )
    parts = [images[i : i + _CHUNK] for i in range(0, len(images), _CHUNK)]
    return torch.cat([part.mul(255).round_().to(torch.uint8) for part in parts])


def to_channels(images: Tensor, channels: int) -> Tensor:
    """(.., c, H, W) in 0..255 with another number of channels: gray repeated, RGB to luma, alpha over white.

    Raises:
        DataError: there is no usual way from the one number to the other.
    """
    have = images.shape[-3]
    if have == channels:
        return images
    if have == 1 and channels == 3:
        return images.expand(*images.shape[:-3], channels, *images.shape[-2:])
    if have in (2, 4) and channels in (1, 3):
        return to_channels(_over_white(images), channels)
    if have == 3 and channels == 1:
        weights = torch.tensor(_LUMA, dtype=torch.int32, device=images.device)[:, None, None]
        luma = (images * weights).sum(-3, keepdim=True)
        return luma / 2**16 if images.is_floating_point() else ((luma + 2**15) >> 16).to(torch.uint8)
    raise DataError(f"images: cannot turn {have} channels into {channels}. Pass images with {channels} channels.")


def _over_white(images: Tensor) -> Tensor:
    """Colour on white where the last channel, alpha, lets it through."""
    colour, alpha = images[..., :-1, :, :].float(), images[..., -1:, :, :].float() / 255
    shown = colour * alpha + 255 * (1 - alpha)
    return shown if images.is_floating_point() else shown.round_().to(torch.uint8)


def shrink(image: Tensor, side: int) -> Tensor:
    """A (C, H, W) image in 0..255 whose shorter side is at most `side`, antialiased; never enlarged."""
    height, width = image.shape[-2:]
    top, left, height, width = middle(height, width)
    image = image[:, top : top + height, left : left + width]
    if min(height, width) <= side:
        return image
    return F.interpolate(image[None], scaled(height, width, side), mode="bilinear", antialias=True)[0]


def middle(height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the part that stays when the long side is cut to 4 times the short."""
    new_height, new_width = min(height, MAX_ASPECT * width), min(width, MAX_ASPECT * height)
    return (height - new_height) // 2, (width - new_width) // 2, new_height, new_width


def scaled(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) when the shorter side becomes `side`; the longer is rounded down, as torchvision does."""
    shorter = min(height, width)
    return side * height // shorter, side * width // shorter


Cut: TypeAlias = Callable[[Tensor], Tensor]  # what a `Square` does to (N, c, H, W); it can be hashed


@dataclass(frozen=True, slots=True)
class Square:
    """The one rule by which an original image becomes what a backbone sees, whatever way it comes in."""

    size: int
    """The side in pixels. An image of exactly this size stays as it is."""
    channels: int
    """Of the result; they are converted first."""
    resize: int
    """The shorter side before the centre is cut out."""

    @classmethod
    def of(cls, size: int, channels: int) -> Square:
        """The usual rule of evaluation: 256 then 224, no margin below 96 px."""
        return cls(size, channels, size if size < NO_MARGIN else with_margin(size))

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 images (N, c, H, W) as (N, channels, size, size) float32 in 0..255; what is a square stays as it is."""
        images = to_channels(images, self.channels)
        height, width = images.shape[-2:]
        if (height, width) == (self.size, self.size):
            return images.float()
        size = scaled(height, width, self.resize)
        parts = images.unsqueeze(2).unbind(1) if images[0].numel() > _AT_ONCE else (images,)
        small = [F.interpolate(part.float(), size, mode="bilinear", antialias=True) for part in parts]
        return self._middle(torch.cat(small, 1))

    def nearest(self, masks: Tensor) -> Tensor:
        """Numbers of classes (N, H, W) as (N, size, size), each that of the pixel of the original nearest to it."""
        height, width = masks.shape[-2:]
        if (height, width) == (self.size, self.size):
            return masks
        rows, columns = (
            ((torch.arange(new) + 0.5) * old / new).long()
            for old, new in zip((height, width), scaled(height, width, self.resize), strict=True)
        )
        return self._middle(masks[:, rows][:, :, columns])

    def _middle(self, images: Tensor) -> Tensor:
        top, left = (round((side - self.size) / 2) for side in images.shape[-2:])
        return images[..., top : top + self.size, left : left + self.size]


def with_margin(view: int) -> int:
    """The shorter side from which the centre of this side is cut to judge a backbone: 8/7 of it (256 for 224)."""
    return round(view * 8 / 7)


def stored_side(view: int) -> int:
    """The shorter side at which images are kept to train on views of this side: 12/7 of it (384 for 224).

    Published recipes crop the originals, and the photos of ImageNet have about 375 px. With 8/7, 72 % of their
    crops at a scale from 0.08 would be enlarged; with 12/7 it is 28 %, as in the originals.
    """
    return round(view * 12 / 7)


def largest_view(side: int) -> int:
    """The largest side of view that can be judged at this shorter side or less; the reverse of `with_margin`."""
    return (14 * side + 6) // 16  # the largest v with 8 v / 7 < side + 1/2


def trained_view(side: int) -> int:
    """The side of view for which images are kept at this shorter side; the reverse of `stored_side`."""
    return round(side * 7 / 12)


def is_whole(image: Tensor, side: int) -> bool:
    """Whether an image (C, h, w) that may have been reduced to this shorter side certainly was not."""
    shorter, longer = sorted(image.shape[-2:])
    return shorter < side and longer < MAX_ASPECT * shorter


def pil_channels(image: Image.Image) -> int:
    """The channels that a Pillow image is worth: 1 for gray of any depth, else 3."""
    return 1 if image.mode in ("1", "L", "LA", "F", *_SIXTEEN_BIT) else 3


def pil_to_tensor(image: Image.Image, channels: int, side: int | None = None, limits: Limits | None = None) -> Tensor:
    """A Pillow image of any mode, turned upright by its EXIF tag, as (channels, H, W) uint8.

    With `side`, the shorter side is at most that and the longer at most 4 times the shorter. Gray of more than 8 bits
    is float32 in 0..255, with fractions; `limits` are its values that become 0 and 255.

    Raises:
        ValueError: a float image outside [0, 1], or a mode that Pillow cannot convert.
        DataError: `channels` is neither 1 nor 3.
    """
    image.load()  # before the tag is read: TIFF images turn themselves while loading, PNG has it at the end
    if (values := deep_values(image)) is None:
        lines = np.array(_to_mode(image, "L" if pil_channels(image) == 1 else "RGB"))
    else:
        lines = scaled_values(values, limits or _usual_limits(values))
    found = torch.from_numpy(np.atleast_3d(lines)).permute(2, 0, 1)
    found = found if side is None else shrink(found, side)
    turned, down, across = _UPRIGHT.get(_orientation(image), (False, 1, 1))
    pixels = found.numpy()  # it knows negative steps, and copies without the threads that torch would start
    pixels = (pixels.swapaxes(1, 2) if turned else pixels)[:, ::down, ::across]  # last, on the small image
    return to_channels(torch.from_numpy(np.ascontiguousarray(pixels)), channels)


def _orientation(image: Image.Image) -> int:
    """How the image lies, by its EXIF tag; 1 is upright."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged tags raise nearly anything, and must not cost a good image
        return 1


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Any Pillow mode of 8 bits as "L" or "RGB": transparency over white."""
    if image.mode == mode and not image.has_transparency_data:
        return image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


# -- more than 8 bits -----------------------------------------------------------------------------
def deep_values(image: Image.Image) -> np.ndarray[Any, Any] | None:
    """The values (H, W) of gray with more than 8 bits; None for any other image.

    Raises:
        ValueError: some are no numbers.
    """
    if image.mode not in ("F", *_SIXTEEN_BIT):
        return None
    values = np.asarray(image)
    if image.mode == "F" and not np.isfinite(values).all():
        raise ValueError("values that are no numbers (NaN or infinite)")
    return values


def scaled_values(values: np.ndarray[Any, Any], limits: Limits) -> np.ndarray[Any, Any]:
    """Numbers of any type by one fixed scale, so that images stay comparable: float32 in 0..255, nothing rounded."""
    black, white = limits
    scaled = (values.astype(np.float64) - black) * (255 / (white - black))
    return scaled.clip(0, 255).astype(np.float32)


def _usual_limits(values: np.ndarray[Any, Any]) -> Limits:
    """Where nothing is known of the others: those of 16 bits, and 0 and 1 for fractions."""
    if values.dtype.kind != "f":
        return 0, WHITE
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError("a float image with values outside [0, 1]")
    return 0, 1


class Span(NamedTuple):
    """The values of an image with more than 8 bits."""

    low: float
    high: float
    whole: bool

    @classmethod
    def of(cls, values: np.ndarray[Any, Any]) -> Span:
        """The smallest and the largest, and whether they are whole numbers by their type."""
        return cls(float(values.min()), float(values.max()), values.dtype.kind != "f")


def measured_limits(spans: Sequence[Span]) -> tuple[Limits, str]:
    """What is black and what is white in a sample of images, and how that was found.

    Whole numbers from 0 on have the bits that are in use; fractions within [0, 1] mean black and white; for anything
    else it is the smallest and the largest value.
    """
    low, high = min(span.low for span in spans), max(span.high for span in spans)
    whole = all(span.whole for span in spans)
    if whole and low >= 0 and high <= WHITE:
        bits = next(bits for bits in (8, 10, 12, 14, 16) if high < 2**bits)
        unused = f"16-bit images that use {bits} bits (up to {high:g} in a sample): {2**bits - 1} is shown as white"
        return (0, 2**bits - 1), "" if bits == 16 else unused
    if low >= 0 and high <= 1:
        return (0, 1), ""
    high = high if high > low else low + 1
    return (low, high), f"values in a sample run from {low:g} to {high:g}, which are shown as black and white"
