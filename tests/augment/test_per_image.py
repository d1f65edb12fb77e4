from __future__ import annotations

import pytest
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from akssl_core.augment import PerImage, PerImageAugmentation
from akssl_core.data.base import ImageSpec, Pixels
from akssl_core.draws import Draws
from akssl_core.errors import ConfigError


def spec(channels: int = 3) -> ImageSpec:
    return ImageSpec(16, channels, (0.4,) * channels, (0.25,) * channels)


def pixels(count: int = 6, size: int = 16, channels: int = 3) -> Pixels:
    generator = torch.Generator().manual_seed(0)
    return Pixels(torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8))


def draws(count: int = 6, seed: int = 0, epoch: int = 0) -> Draws:
    return Draws.of(seed, epoch, torch.arange(count))


def normalized(images: torch.Tensor) -> torch.Tensor:
    return TF.normalize(images.float() / 255, [0.4] * images.shape[1], [0.25] * images.shape[1])


RANDOM = v1.Compose([v1.RandomResizedCrop(16), v1.RandomHorizontalFlip(), v1.ColorJitter(0.4, 0.4, 0.4, 0.1)])


# -- what goes in and what comes out --------------------------------------------------------------
@pytest.mark.parametrize(
    ("channels", "kind"), [(1, Image.Image), (3, Image.Image), (4, torch.Tensor), (13, torch.Tensor)]
)
def test_the_callable_sees_a_pil_image_or_a_tensor(channels, kind):
    seen = []

    def remember(image):
        seen.append(image)
        return image

    views = PerImage(remember, spec(channels))(pixels(channels=channels), draws())
    assert len(seen) == 6
    assert all(isinstance(image, kind) for image in seen)
    torch.testing.assert_close(views, normalized(pixels(channels=channels).images))


def test_uint8_tensors_are_normalized():
    views = PerImage(v1.PILToTensor(), spec())(pixels(), draws())
    torch.testing.assert_close(views, normalized(pixels().images))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_float_tensors_are_taken_as_they_are(dtype):
    constant = torch.full((3, 16, 16), 7.5, dtype=dtype)
    views = PerImage(lambda image: constant, spec())(pixels(), draws())
    assert views.dtype == torch.float32
    assert torch.equal(views, torch.full((6, 3, 16, 16), 7.5))


@pytest.mark.parametrize(
    "transform",
    [
        RANDOM,
        v1.Compose([RANDOM, v1.ToTensor()]),
        v2.Compose([v2.ToImage(), v2.RandomResizedCrop(16), v2.ToDtype(torch.float32, scale=True)]),
        torch.nn.Sequential(v2.PILToTensor(), v2.RandomCrop(16)),
    ],
    ids=["v1", "v1 to tensor", "v2", "module"],
)
def test_torchvision_transforms_work(transform):
    views = PerImage(transform, spec())(pixels(size=24), draws())
    assert views.shape == (6, 3, 16, 16)
    assert views.dtype == torch.float32


def test_ragged_images_come_without_their_canvas():
    sizes = []
    stack = Pixels.stack([torch.zeros(3, 20, 30, dtype=torch.uint8), torch.zeros(3, 40, 18, dtype=torch.uint8)])

    def crop(image):
        sizes.append(image.size)
        return image.resize((16, 16))

    PerImage(crop, spec())(stack, draws(2))
    assert sizes == [(30, 20), (18, 40)]


# -- randomness -----------------------------------------------------------------------------------
def test_views_depend_on_seed_epoch_index_and_view_alone():
    augmentation, batch = PerImageAugmentation(RANDOM, spec()), pixels()
    torch.manual_seed(1)
    whole = augmentation(batch, draws())["global"]
    torch.manual_seed(2)
    index = torch.tensor([4, 1])
    some = augmentation(Pixels(batch.images[index]), Draws.of(0, 0, index))["global"]
    for a, b in zip(whole, some, strict=True):
        assert torch.equal(a[index], b)
    for other in (draws(seed=1), draws(epoch=1)):
        assert (augmentation(batch, other)["global"][0] != whole[0]).flatten(1).any(1).all()


def test_twins_and_views_differ():
    twins = Pixels(pixels(1).images.repeat(6, 1, 1, 1))
    first, second = PerImageAugmentation(RANDOM, spec())(twins, draws())["global"]
    assert len(first.flatten(1).unique(dim=0)) == 6
    assert (first != second).flatten(1).any(1).all()


def test_the_callers_generator_is_left_as_it_was():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    PerImage(RANDOM, spec())(pixels(), draws())
    assert torch.equal(torch.rand(4), expected)


def test_the_callers_generator_is_left_as_it_was_after_an_error():
    def fail(image):
        raise RuntimeError("mine")

    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with pytest.raises(RuntimeError, match="mine"):
        PerImage(fail, spec())(pixels(), draws())
    assert torch.equal(torch.rand(4), expected)


# -- the augmentation -----------------------------------------------------------------------------
def test_one_callable_makes_two_views():
    augmentation = PerImageAugmentation(RANDOM, spec())
    (group,) = augmentation.groups()
    assert (group.name, group.size, len(group.transforms)) == ("global", 16, 2)
    assert augmentation.notes == []


def test_a_sequence_makes_one_view_each():
    flip, same = v1.RandomHorizontalFlip(1.0), v1.RandomHorizontalFlip(0.0)
    views = PerImageAugmentation([flip, same, same], spec())(pixels(), draws())["global"]
    expected = normalized(pixels().images)
    assert torch.equal(views[0], views[1].flip(3))
    assert torch.equal(views[1], views[2])
    torch.testing.assert_close(views[1], expected)


# -- refusals -------------------------------------------------------------------------------------
EXPECTED = "expected a PIL image or a tensor (3, 16, 16), uint8 or float"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            v1.Resize((16, 24)),
            f"the per-image transform returned an image (3, 16, 24); {EXPECTED}. "
            "End it with a resize or a crop to 16 px, or set image_size to the side it makes.",
        ),
        (v1.Grayscale(), f"the per-image transform returned an image (1, 16, 16); {EXPECTED}."),
        (lambda image: [image], f"the per-image transform returned a list; {EXPECTED}."),
        (lambda image: None, f"the per-image transform returned a NoneType; {EXPECTED}."),
        (
            lambda image: torch.zeros(3, 16, 16, dtype=torch.int64),
            f"the per-image transform returned a tensor of torch.int64; {EXPECTED}.",
        ),
    ],
    ids=["size", "channels", "list", "none", "dtype"],
)
def test_a_wrong_result_is_refused_with_what_is_expected(function, message):
    with pytest.raises(ConfigError) as error:
        PerImage(function, spec())(pixels(), draws())
    assert str(error.value).startswith(message)
