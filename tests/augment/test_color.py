from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from akssl_core.augment import ColorJitter, Grayscale, Normalize, Solarize
from akssl_core.augment.color import Chosen, Jitters, primaries, shift_hue
from akssl_core.draws import Draws

TORCHVISION = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
ORDERS = list(permutations(range(4)))
ALL = ColorJitter(1.0, 0.8, 0.8, 0.8, 0.5)


def images(count: int, channels: int = 3, size: int = 16) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(count))


def draws(count: int) -> Draws:
    return Draws.of(0, 0, torch.arange(count))


def everywhere(count: int) -> torch.Tensor:
    return torch.ones(count, dtype=torch.bool)


# -- jitter ---------------------------------------------------------------------------------------
def one_by_one(image: torch.Tensor, factors: list[float], order: list[int]) -> torch.Tensor:
    for i in order:
        image = TORCHVISION[i](image, factors[i])
    return image


def test_jitter_equals_torchvision_in_every_order():
    batch = images(2 * len(ORDERS))
    parameters = Jitters(everywhere(48), ALL.sample(draws(48)).factors, torch.tensor(ORDERS * 2))
    expected = [
        one_by_one(image, factors, order)
        for image, factors, order in zip(batch, parameters.factors.tolist(), ORDERS * 2, strict=True)
    ]
    torch.testing.assert_close(ALL.apply(batch.clone(), parameters), torch.stack(expected), atol=5e-6, rtol=0)


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_one_change_alone_equals_torchvision(which, factor):
    factors = torch.tensor([[1.0, 1.0, 1.0, 0.0]]).repeat(3, 1)
    factors[:, which] = factor
    changed = ALL.apply(images(3), Jitters(everywhere(3), factors, torch.tensor([[3, 2, 1, 0]]).repeat(3, 1)))
    torch.testing.assert_close(changed, TORCHVISION[which](images(3), factor), atol=1e-6, rtol=0)


@pytest.mark.parametrize("turn", [-0.5, -0.4, -0.17, -0.01, 0.0, 0.01, 0.1, 0.34, 0.5])
def test_hue_equals_torchvision_on_every_kind_of_color(turn):
    levels = torch.linspace(0, 1, 11)
    colors = torch.cartesian_prod(levels, levels, levels).T.reshape(
        1, 3, 11, 121
    )  # primaries, grays, ties, black, white
    shifted = colors.clone()
    shift_hue(shifted, primaries(torch.tensor([turn])))
    torch.testing.assert_close(shifted, TF.adjust_hue(colors, turn), atol=2e-6, rtol=0)
    assert shifted.min() >= 0
    assert shifted.max() <= 1


@pytest.mark.parametrize("turn", [-0.5, 0.0, 0.3])
def test_hue_leaves_grays_alone(turn):
    grays = torch.linspace(0, 1, 64).expand(1, 3, 1, 64).clone()
    shift_hue(grays, primaries(torch.tensor([turn])))
    assert torch.equal(grays, torch.linspace(0, 1, 64).expand(1, 3, 1, 64))


def test_hue_is_stable_on_nearly_gray_pixels():
    nearly = 0.5 + 1e-7 * torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    shifted = nearly.clone()
    shift_hue(shifted, primaries(torch.tensor([0.25])))
    torch.testing.assert_close(shifted, nearly, atol=1e-6, rtol=0)


def test_jitter_of_one_channel_equals_torchvision():
    jitter = ColorJitter(1.0, 0.8, 0.8)
    parameters = jitter.sample(draws(24))
    changed = jitter.apply(images(24, channels=1), parameters)
    for image, factors, order, result in zip(images(24, 1), parameters.factors, parameters.order, changed, strict=True):
        first, second = [i for i in order.tolist() if i < 2]
        expected = TORCHVISION[second](TORCHVISION[first](image, float(factors[first])), float(factors[second]))
        torch.testing.assert_close(result, expected, atol=2e-6, rtol=0)


def test_contrast_of_many_channels_pulls_to_the_mean_of_the_image():
    batch = images(1, channels=13)
    parameters = Jitters(everywhere(1), torch.tensor([[1.0, 0.5, 1.0, 0.0]]), torch.tensor([[0, 1, 2, 3]]))
    expected = 0.5 * batch + 0.5 * batch.mean()
    torch.testing.assert_close(ColorJitter(1.0, 0.5, 0.5).apply(batch.clone(), parameters), expected, atol=1e-6, rtol=0)


def test_jitter_draws_in_torchvisions_ranges():
    parameters = ColorJitter(0.8, 0.4, 1.5, 0.2, 0.1).sample(draws(20_000))
    low, high = parameters.factors.amin(0), parameters.factors.amax(0)
    torch.testing.assert_close(low, torch.tensor([0.6, 0.0, 0.8, -0.1]), atol=1e-3, rtol=0)
    torch.testing.assert_close(high, torch.tensor([1.4, 2.5, 1.2, 0.1]), atol=1e-3, rtol=0)
    assert float(parameters.on.float().mean()) == pytest.approx(0.8, abs=0.015)
    _, counts = parameters.order.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert counts.min() > 20_000 / 24 * 0.8


# -- only the chosen images change ----------------------------------------------------------------
@pytest.mark.parametrize("operation", [ALL, Grayscale(0.5), Solarize(0.5)], ids=lambda o: type(o).__name__)
def test_other_images_keep_every_bit(operation):
    batch = images(32)
    on = torch.arange(32) % 3 == 0
    changed = operation.apply(batch.clone(), replace(operation.sample(draws(32)), on=on))
    assert torch.equal(changed[~on], batch[~on])
    assert (changed[on] != batch[on]).flatten(1).any(1).all()


@pytest.mark.parametrize("operation", [ALL, Grayscale(0.0), Solarize(0.0)], ids=lambda o: type(o).__name__)
def test_nobody_chosen_changes_nothing(operation):
    nobody = replace(operation.sample(draws(8)), on=~everywhere(8))
    assert torch.equal(operation.apply(images(8), nobody), images(8))


def test_a_neutral_jitter_keeps_every_bit():
    neutral = Jitters(everywhere(24), torch.tensor([[1.0, 1.0, 1.0, 0.0]]).repeat(24, 1), torch.tensor(ORDERS))
    assert torch.equal(ALL.apply(images(24), neutral), images(24))


# -- gray, solarize, normalise --------------------------------------------------------------------
def test_grayscale_equals_torchvision():
    gray = Grayscale(1.0).apply(images(4), Chosen(everywhere(4)))
    torch.testing.assert_close(gray, TF.rgb_to_grayscale(images(4), 3), atol=1e-7, rtol=0)


@pytest.mark.parametrize("channels", [1, 3, 13])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9])
def test_solarize_equals_torchvision_exactly(channels, threshold):
    batch = images(4, channels)
    batch[0, 0, 0, :3] = torch.tensor([0.5, 0.0, 1.0])
    changed = Solarize(1.0, threshold).apply(batch.clone(), Chosen(everywhere(4)))
    assert torch.equal(changed, TF.solarize(batch, threshold))


@pytest.mark.parametrize("operation", [Grayscale(0.2), Solarize(0.2)], ids=lambda o: type(o).__name__)
def test_chance_is_the_probability(operation):
    assert float(operation.sample(draws(20_000)).on.float().mean()) == pytest.approx(0.2, abs=0.015)


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_certain_chances_are_certain(probability, share):
    for operation in (Grayscale(probability), Solarize(probability), ColorJitter(probability, 0.4, 0.4)):
        assert float(operation.sample(draws(5000)).on.float().mean()) == share


def test_normalize_equals_torchvision():
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    out = torch.empty(4, 3, 16, 16)
    assert Normalize(mean, std).apply(images(4), out=out) is out
    torch.testing.assert_close(out, TF.normalize(images(4), list(mean), list(std)), atol=1e-6, rtol=0)


def test_operations_say_which_channels_they_are_for():
    assert Grayscale.channels == {3}
    assert ColorJitter(1.0, 0.4, 0.4, 0.4, 0.1).channels == {3}
    assert ColorJitter(1.0, 0.4, 0.4, 0.0, 0.1).channels == {3}
    assert ColorJitter(1.0, 0.4, 0.4).channels is None
    assert Solarize.channels is None
