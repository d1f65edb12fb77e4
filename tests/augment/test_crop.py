from __future__ import annotations

import math

import pytest
import torch
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms.v2 import functional as TF

from akssl_core.augment import RandomResizedCrop, crop
from akssl_core.augment.crop import (
    TRIES,
    Crops,
    boxes_of_strip,
    cpu_kernel_of,
    crop_each,
    crop_enlarged,
    crop_often,
    crop_together,
)
from akssl_core.data.base import Pixels
from akssl_core.draws import Draws

KERNELS = [crop_each, crop_together, crop_often, crop_enlarged]
PAPER = ((0.08, 1.0), (3 / 4, 4 / 3))


def images(count: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def boxes(*rows: tuple[int, int, int, int], flip: bool = False) -> Crops:
    return Crops(torch.tensor(rows), torch.full((len(rows),), flip))


def torchvision_crop(image: torch.Tensor, box: list[int], size: int, mode: str = "bilinear") -> torch.Tensor:
    interpolation = TF.InterpolationMode(mode)
    return TF.resized_crop(image.float(), *box, [size, size], interpolation, antialias=True).clamp(0, 255) / 255


def sizes(count: int, height: int, width: int) -> torch.Tensor:
    return torch.tensor([height, width]).expand(count, 2)


# -- boxes ----------------------------------------------------------------------------------------
def boxes_one_by_one(numbers: list[float], height: int, width: int, scale, ratio) -> tuple[int, int, int, int]:
    """The rule of torchvision's get_params, told with given uniform numbers."""
    for area_number, aspect_number in zip(numbers[:TRIES], numbers[TRIES : 2 * TRIES], strict=True):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area_number)
        aspect = math.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * aspect_number)
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            top, left = numbers[2 * TRIES : 2 * TRIES + 2]
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (32, 32, *PAPER),
        (375, 500, *PAPER),
        (20, 90, (0.9, 1.0), PAPER[1]),  # most tries fail: the image is long
        (90, 20, (1.0, 1.0), PAPER[1]),  # all fail
        (8, 8, (0.05, 0.14), PAPER[1]),
        (40, 50, (0.2, 1.0), (1.0, 1.0)),
    ],
)
def test_boxes_follow_torchvisions_rule(height, width, scale, ratio):
    draws = Draws.of(0, 0, torch.arange(500))
    found = RandomResizedCrop(32, scale, ratio, 0.5).sample(draws, sizes(500, height, width)).boxes.tolist()
    numbers = draws.uniform("crop", 2 * TRIES + 3).tolist()
    expected = [list(boxes_one_by_one(row, height, width, scale, ratio)) for row in numbers]
    same = sum(a == b for a, b in zip(found, expected, strict=True))
    assert same >= 498  # float32 may round a side of x.5 px the other way


@pytest.mark.parametrize(("height", "width"), [(96, 96), (60, 160)])
def test_boxes_are_distributed_as_torchvisions(height, width):
    torch.manual_seed(0)
    blank = torch.empty(1, height, width)
    theirs = torch.tensor([TorchvisionCrop.get_params(blank, *map(list, PAPER)) for _ in range(4000)]).float()
    ours = RandomResizedCrop(32, *PAPER, 0.5).sample(Draws.of(0, 0, torch.arange(20_000)), sizes(20_000, height, width))
    for statistic in (
        lambda b: b[:, 2] * b[:, 3] / (height * width),
        lambda b: (b[:, 3] / b[:, 2]).log(),
        lambda b: b[:, 0],
        lambda b: b[:, 1],
    ):
        a, b = statistic(ours.boxes.float()), statistic(theirs)
        error = float(b.std()) / 4000**0.5
        assert float(a.mean()) == pytest.approx(float(b.mean()), abs=5 * error)
        assert float(a.std()) == pytest.approx(float(b.std()), rel=0.05)


def test_boxes_lie_inside_every_image_of_a_ragged_batch():
    generator = torch.Generator().manual_seed(0)
    limits = torch.randint(1, 600, (2000, 2), generator=generator)
    crops = RandomResizedCrop(32, (0.05, 1.0), (0.5, 2.0), 0.3).sample(Draws.of(0, 0, torch.arange(2000)), limits)
    corner, box = crops.boxes[:, :2], crops.boxes[:, 2:]
    assert (corner >= 0).all()
    assert (box >= 1).all()
    assert (corner + box <= limits).all()
    assert float(crops.flip.float().mean()) == pytest.approx(0.3, abs=0.05)


def test_a_box_can_touch_every_border():
    crops = RandomResizedCrop(8, (0.2, 0.4), PAPER[1], 0).sample(
        Draws.of(0, 0, torch.arange(3000)), sizes(3000, 16, 16)
    )
    top, left, height, width = crops.boxes.unbind(1)
    assert top.min() == 0
    assert left.min() == 0
    assert (top + height).max() == 16
    assert (left + width).max() == 16
    assert not crops.flip.any()


# -- pixels ---------------------------------------------------------------------------------------
CASES = [
    (32, 32, 32, (0, 0, 32, 32)),  # nothing changes
    (32, 32, 32, (3, 5, 20, 27)),  # enlarged
    (32, 32, 8, (0, 0, 32, 32)),  # shrunk
    (32, 32, 48, (31, 0, 1, 32)),  # one row
    (50, 37, 24, (10, 0, 40, 30)),  # rows shrunk, columns shrunk
    (50, 37, 33, (1, 1, 49, 20)),  # rows shrunk, columns enlarged
    (96, 96, 96, (40, 11, 33, 50)),
    (64, 200, 14, (7, 150, 20, 50)),
]


def can_cut(kernel, size: int, box: tuple[int, int, int, int]) -> bool:
    """Whether this kernel is for this box."""
    return kernel is not crop_enlarged or max(box[2:]) <= size


@pytest.mark.parametrize(
    ("kernel", "height", "width", "size", "box"),
    [(kernel, *case) for kernel in KERNELS for case in CASES if can_cut(kernel, *case[2:])],
)
@pytest.mark.parametrize("flip", [False, True])
def test_equals_torchvisions_resized_crop(kernel, height, width, size, box, flip):
    batch = images(2, height, width)
    views = kernel(batch, boxes(box, box, flip=flip), size)
    expected = torch.stack([torchvision_crop(image, box, size) for image in batch])
    torch.testing.assert_close(views, TF.horizontal_flip(expected) if flip else expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kernel", [crop_each, crop_together, crop_often])
@pytest.mark.parametrize(("height", "width", "size", "box"), CASES)
def test_bicubic_equals_torchvisions(kernel, height, width, size, box):
    batch = images(2, height, width)
    views = kernel(batch, boxes(box, box), size, "bicubic")
    expected = torch.stack([torchvision_crop(image, box, size, "bicubic") for image in batch])
    torch.testing.assert_close(views, expected, atol=5e-5, rtol=0)
    assert views.min() >= 0
    assert views.max() <= 1


def test_a_policy_chooses_the_interpolation():
    batch, numbers = images(8, 40, 40), Draws.of(0, 0, torch.arange(8))
    linear, cubic = (RandomResizedCrop(32, *PAPER, 0.5, mode) for mode in ("bilinear", "bicubic"))
    crops = cubic.sample(numbers, sizes(8, 40, 40))
    assert torch.equal(crops.boxes, linear.sample(numbers, sizes(8, 40, 40)).boxes)
    views = cubic.apply(Pixels(batch), crops)
    for view, image, box, flip in zip(views, batch, crops.boxes.tolist(), crops.flip, strict=True):
        expected = torchvision_crop(image, box, 32, "bicubic")
        torch.testing.assert_close(view, expected.flip(2) if flip else expected, atol=5e-5, rtol=0)
    assert (views - linear.apply(Pixels(batch), crops)).abs().max() > 0.01


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("channels", [1, 3, 13])
def test_each_image_has_its_own_box_and_flip(kernel, channels):
    batch, size = images(16, 40, 48, channels), 48 if kernel is crop_enlarged else 32
    crops = RandomResizedCrop(32, *PAPER, 0.5).sample(Draws.of(0, 0, torch.arange(16)), sizes(16, 40, 48))
    assert crops.flip.any()
    assert not crops.flip.all()
    views = kernel(batch, crops, size)
    assert views.shape == (16, channels, size, size)
    assert views.dtype == torch.float32
    for view, image, box, flip in zip(views, batch, crops.boxes.tolist(), crops.flip, strict=True):
        expected = torchvision_crop(image, box, size)
        torch.testing.assert_close(view, expected.flip(2) if flip else expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_many_views_of_each_image_are_cut_at_once(interpolation):
    batch = images(5, 40, 48)
    crops = RandomResizedCrop(32, *PAPER, 0.5).sample(Draws.of(0, 0, torch.arange(15)), sizes(15, 40, 48))
    views = crop_often(batch, crops, 24, interpolation)
    each = [crop_each(batch, crops.rows(slice(v, v + 5)), 24, interpolation) for v in (0, 5, 10)]
    torch.testing.assert_close(views, torch.cat(each), atol=2e-5, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_ragged_images_never_see_the_canvas(kernel):
    singles = [images(1, height, width)[0] for height, width in [(20, 30), (30, 12), (9, 9), (30, 30)]]
    pixels = Pixels.stack(singles)
    canvas = pixels.canvas(*pixels.sides)
    outside = torch.ones_like(canvas, dtype=torch.bool)
    for place, image in zip(outside, singles, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = False
    crops = RandomResizedCrop(16, (0.5, 1.0), PAPER[1], 0.5).sample(Draws.of(1, 0, torch.arange(4)), pixels.sizes)
    spoilt = canvas.masked_fill(outside, 255)
    size = 30 if kernel is crop_enlarged else 16
    assert torch.equal(kernel(canvas, crops, size), kernel(spoilt, crops, size))
    for i, view in enumerate(kernel(spoilt, crops, size)):
        expected = torchvision_crop(pixels.image(i), crops.boxes[i].tolist(), size)
        torch.testing.assert_close(view, expected.flip(2) if crops.flip[i] else expected, atol=2e-5, rtol=0)


PHOTOS = [(60, 80), (80, 60), (20, 20), (60, 240), (240, 60), (50, 75), (33, 47)]  # two of them panoramas


@pytest.mark.parametrize("size", [8, 32, 64])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_strip_is_cropped_as_a_canvas_is_to_the_bit(size, interpolation):
    pixels = Pixels.stack([images(1, *shape)[0] for shape in PHOTOS])
    cut = RandomResizedCrop(size, *PAPER, 0.5, interpolation)
    crops = cut.sample(Draws.of(0, 0, torch.arange(len(PHOTOS))), pixels.sizes)
    wide = Pixels(pixels.canvas(*pixels.sides))
    assert torch.equal(cut.apply(pixels, crops), cut.apply(wide, crops))


def test_boxes_are_cut_out_of_a_strip_on_a_device():
    """What a GPU does: of each image the lines of its box alone, however long the image is."""
    pixels = Pixels.stack([images(1, *shape)[0] for shape in PHOTOS])
    corners = boxes(*((h - h // 2, w - w // 3, h // 2, w // 3) for h, w in PHOTOS))  # to the last pixel of each
    cut = RandomResizedCrop(32, *PAPER, 0.5)
    drawn = cut.sample(Draws.of(0, 0, torch.arange(len(PHOTOS))), pixels.sizes)
    for crops in (corners, drawn):
        canvas, alone = boxes_of_strip(pixels, crops)
        assert canvas.shape == (len(PHOTOS), 3, *crops.boxes[:, 2:].amax(0))
        assert not alone.boxes[:, :2].any()
        for one, image, (top, left, tall, wide) in zip(canvas, pixels.each(), crops.boxes.tolist(), strict=True):
            assert torch.equal(one[:, :tall, :wide], image[:, top : top + tall, left : left + wide])
    views = crop_together(canvas, alone, 32)
    torch.testing.assert_close(views, cut.apply(pixels, crops), atol=2e-5, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_takes_images_in_any_memory_layout(kernel):
    batch = images(3, 20, 20)
    crops = boxes((1, 2, 15, 10), (0, 0, 20, 20), (5, 5, 5, 5))
    spread = batch.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(kernel(spread, crops, 20), kernel(batch, crops, 20), atol=1e-6, rtol=0)


def test_the_kernel_that_shrinks_is_chosen_by_size():
    assert cpu_kernel_of(32, 32, 32) is crop_together
    assert cpu_kernel_of(64, 64, 64) is crop_together
    assert cpu_kernel_of(96, 96, 96) is crop_each
    assert cpu_kernel_of(375, 500, 224) is crop_each


@pytest.mark.parametrize(
    ("side", "size", "kernels"),
    [
        (32, 32, {"enlarged"}),
        (40, 32, {"enlarged", "together"}),
        (128, 100, {"enlarged", "each"}),
        (64, 8, {"together"}),
    ],
)
def test_apply_gives_each_box_the_kernel_it_needs(monkeypatch, side, size, kernels):
    """Its own box alone decides, so that an image's pixels do not depend on the batch it is in."""
    used = set()

    def noting(name, kernel):
        def noted(*given):
            used.add(name)
            return kernel(*given)

        return noted

    for name in ("enlarged", "together", "each"):
        monkeypatch.setattr(crop, f"crop_{name}", noting(name, getattr(crop, f"crop_{name}")))
    cut = RandomResizedCrop(size, (0.3, 1.0), PAPER[1], 0.5)
    batch = images(24, side, side)
    crops = cut.sample(Draws.of(0, 0, torch.arange(24)), sizes(24, side, side))
    views = cut.apply(Pixels(batch), crops)
    assert used == kernels
    for i in range(24):
        assert torch.equal(views[i : i + 1], cut.apply(Pixels(batch[i : i + 1]), crops.rows(slice(i, i + 1))))
