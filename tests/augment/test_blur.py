from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from akssl_core.augment import GaussianBlur
from akssl_core.augment.color import Blurs, by_products, by_shifts, gaussian, kernel_size
from akssl_core.draws import Draws


def images(count: int, channels: int, size: int) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(size))


@pytest.mark.parametrize(
    ("size", "widest", "kernel"),
    [
        (14, 0.1, 3),
        (32, 0.5, 5),
        (48, 0.5, 5),
        (64, 0.1, 7),
        (8, 2.0, 13),
        (32, 2.0, 13),
        (224, 2.0, 23),
        (512, 2.0, 51),
    ],
)
def test_kernel_is_a_tenth_of_the_side_or_holds_the_widest_blur(size, widest, kernel):
    assert kernel_size(size, widest) == kernel


@pytest.mark.parametrize("widest", [0.1, 2.0, 40.0])
def test_kernel_is_odd_and_fits_every_size(widest):
    for size in range(8, 513):
        assert kernel_size(size, widest) in range(3, 2 * size, 2)  # reflection needs half of it below the side


@pytest.mark.parametrize("size", [32, 64, 96, 224])
def test_the_blur_is_as_wide_as_its_sigma(size):
    taps = gaussian(torch.tensor([2.0]), kernel_size(size))[0]
    distance = torch.arange(len(taps)) - len(taps) // 2
    assert float((taps * distance**2).sum().sqrt()) == pytest.approx(2.0, rel=0.03)


@pytest.mark.parametrize(("size", "channels"), [(8, 3), (14, 1), (32, 3), (32, 13), (96, 3), (224, 3)])
def test_equals_torchvision_for_each_images_sigma(size, channels):
    kernel = kernel_size(size)
    sigma = torch.tensor([0.1, 0.5, 1.3, 2.0])
    batch = images(4, channels, size)
    blurred = GaussianBlur(1.0, kernel, (0.1, 2.0)).apply(batch.clone(), Blurs(torch.ones(4, dtype=torch.bool), sigma))
    expected = [TF.gaussian_blur(image, [kernel] * 2, [s] * 2) for image, s in zip(batch, sigma.tolist(), strict=True)]
    torch.testing.assert_close(blurred, torch.stack(expected), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("size", "kernel"), [(8, 15), (14, 13), (32, 13), (224, 23)])
def test_products_with_bands_blur_as_shifts_do(size, kernel):
    batch, taps = images(5, 3, size), gaussian(torch.tensor([0.1, 0.5, 1.0, 2.0, 9.0]), kernel)
    torch.testing.assert_close(by_products(batch, taps), by_shifts(batch, taps), atol=1e-6, rtol=0)


def test_rows_and_columns_are_both_blurred():
    point = torch.zeros(1, 1, 9, 9)
    point[0, 0, 4, 4] = 1
    blurred = GaussianBlur(1.0, 3, (1.0, 1.0)).apply(point, Blurs(torch.tensor([True]), torch.tensor([1.0])))
    assert torch.equal(blurred[0, 0], blurred[0, 0].T)
    assert torch.equal(blurred[0, 0] > 0, torch.nn.functional.pad(torch.ones(3, 3), (3, 3, 3, 3)) > 0)


def test_other_images_keep_every_bit():
    batch = images(8, 3, 16)
    on = torch.arange(8) % 2 == 0
    blurred = GaussianBlur(0.5, 3, (0.1, 2.0)).apply(batch.clone(), Blurs(on, torch.full((8,), 1.0)))
    assert torch.equal(blurred[~on], batch[~on])
    assert (blurred[on] != batch[on]).flatten(1).any(1).all()


def test_nobody_chosen_changes_nothing():
    batch = images(3, 3, 16)
    nobody = Blurs(torch.zeros(3, dtype=torch.bool), torch.ones(3))
    assert torch.equal(GaussianBlur(0.0, 3, (1.0, 1.0)).apply(batch.clone(), nobody), batch)


def test_draws_chance_and_width():
    parameters = GaussianBlur(0.3, 3, (0.5, 1.5)).sample(Draws.of(0, 0, torch.arange(20_000)))
    assert float(parameters.on.float().mean()) == pytest.approx(0.3, abs=0.015)
    assert float(parameters.sigma.min()) == pytest.approx(0.5, abs=1e-3)
    assert float(parameters.sigma.max()) == pytest.approx(1.5, abs=1e-3)
    assert float(parameters.sigma[parameters.on].mean()) == pytest.approx(1.0, abs=0.02)
