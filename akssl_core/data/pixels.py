"""The raw images of one batch, of one size or of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .convert import Cut


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on another device; to a GPU it goes from pinned memory, so that the host does not wait."""
    pinned = tensor.pin_memory() if device.type == "cuda" and tensor.is_cpu else tensor
    return pinned.to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class Pixels:
    """Raw images of one batch: side by side where all have one size, else one after the other in a strip.

    In a strip an image takes the room of its own pixels, however large others of its batch are.
    """

    images: Tensor
    """(B, C, H, W) uint8; float32 in 0..255 where images have more than 8 bits, and once they are squares. A strip is
    (C, P): the lines of the first image, those of the second, ..., and at the end as many unused pixels as the widest
    image has columns."""
    sizes: Tensor | None = None
    """(B, 2) int64 on the host, height and width of each image of a strip; None: all have those of `images`."""
    unreadable: tuple[tuple[int, str], ...] = ()
    """(position in the set, reason) of each image that cannot be read; another image stands in for it."""
    starts: Tensor | None = None
    """(B,) int64 on the host, the first pixel of each image of a strip."""

    def __len__(self) -> int:
        return len(self.images if self.sizes is None else self.sizes)

    @property
    def channels(self) -> int:
        """Of every image."""
        return self.images.shape[1 if self.sizes is None else 0]

    @property
    def sides(self) -> tuple[int, int]:
        """The height and the width into which any of the images fits."""
        height, width = self.images.shape[2:] if self.sizes is None else self.sizes.amax(0).tolist()
        return height, width

    def to(self, device: torch.device) -> Pixels:
        """The same pixels on another device."""
        return replace(self, images=sent(self.images, device))

    def part(self, rows: slice | Tensor) -> Pixels:
        """Some of the images; the pixels of a strip are not copied."""
        if self.sizes is None or self.starts is None:
            return replace(self, images=self.images[rows])
        return replace(self, sizes=self.sizes[rows], starts=self.starts[rows])

    def repeat(self, times: int) -> Pixels:
        """The same images several times over, one batch after the other; the pixels of a strip are not copied."""
        if self.sizes is None or self.starts is None:
            return replace(self, images=self.images.repeat(times, 1, 1, 1))
        return replace(self, sizes=self.sizes.repeat(times, 1), starts=self.starts.repeat(times))

    def image(self, i: int) -> Tensor:
        """Image i alone, (C, h, w) uint8."""
        if self.sizes is None or self.starts is None:
            return self.images[i]
        height, width = self.sizes[i].tolist()
        start = int(self.starts[i])
        return self.images[:, start : start + height * width].view(-1, height, width)

    def each(self) -> list[Tensor]:
        """Every image alone, (C, h, w) uint8; nothing is copied."""
        return [self.image(i) for i in range(len(self))]

    def canvas(self, height: int, width: int) -> Tensor:
        """(B, C, height, width) uint8: each image in the top left corner, cut off or with zeros around it."""
        if self.sizes is None:
            return self.images[:, :, :height, :width]
        canvas = self.images.new_zeros(len(self), self.channels, height, width)
        for place, image in zip(canvas, self.each(), strict=True):
            cut = image[:, :height, :width]
            place[:, : cut.shape[1], : cut.shape[2]] = cut
        return canvas

    def squares(self, square: Cut) -> Pixels:
        """The same images as a backbone sees them, (B, channels, size, size) float32 in 0..255."""
        images = [self.images] if self.sizes is None else [image[None] for image in self.each()]
        return Pixels(torch.cat([square(image) for image in images]), None, self.unreadable)

    @classmethod
    def stack(cls, images: Sequence[Tensor], unreadable: tuple[tuple[int, str], ...] = ()) -> Pixels:
        """Images (C, h, w) uint8 as one batch: a strip only where their sizes differ."""
        if len({image.shape for image in images}) == 1:
            return cls(torch.stack(list(images)), None, unreadable)
        sizes = torch.tensor([image.shape[1:] for image in images])
        beyond = images[0].new_zeros(len(images[0]), int(sizes[:, 1].max()))
        lengths = sizes.prod(1)
        strip = torch.cat([*(image.flatten(1) for image in images), beyond], 1)
        return cls(strip, sizes, unreadable, lengths.cumsum(0) - lengths)
