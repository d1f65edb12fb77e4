"""Samplers of masks: functions of an image's own draws, with the counts and distributions of their sources."""

from __future__ import annotations

import json
import math

import pytest
import torch

from akssl_core import Batch, Views, masks
from akssl_core.draws import Draws

GRIDS = [(8, 8), (14, 14), (6, 9)]
JEPA = {"targets": 4, "area": (0.15, 0.2), "aspect": (0.75, 1.5), "context": (1.0, 1.0)}


def ibot(grid):
    return {"least": (min(grid) // 3) ** 2}


def dinov2(grid):
    return {"least": 4, "most": math.prod(grid) // 2}


def draws(count: int = 2000, seed: int = 0, epoch: int = 0, view: int = 0) -> Draws:
    return Draws.of(seed, epoch, torch.arange(count)).view(view)


def shared(step: int = 0) -> Draws:
    return Draws.of_step(0, step, torch.tensor([-1]))


def ratios(of: Draws) -> torch.Tensor:
    return masks.mask_ratios(of, 1.0, (0.1, 0.5))


SAMPLERS = {
    "shuffle": lambda of, grid: masks.shuffle_masks(of, math.prod(grid), 12),
    "ratios": lambda of, grid: masks.mask_ratios(of, 0.5, (0.1, 0.5)),
    "blocks": lambda of, grid: masks.block_masks(of, grid, ratios(of) * math.prod(grid), **ibot(grid)),
    "targets": lambda of, grid: masks.jepa_blocks(of, shared(), grid, targets=2)[0].transpose(0, 1),
    "context": lambda of, grid: masks.jepa_blocks(of, shared(), grid, targets=2)[1],
}


# -- what they follow from ------------------------------------------------------------------------
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=list(SAMPLERS))
def test_a_mask_is_the_same_in_any_batch(sampler, grid):
    whole, rows = sampler(draws(50), grid), torch.tensor([40, 3, 17])
    assert torch.equal(sampler(Draws.of(0, 0, rows).view(0), grid), whole[rows])
    halves = [sampler(Draws(part), grid) for part in draws(50).keys.chunk(2)]
    assert torch.equal(torch.cat(halves), whole)
    joined = sampler(Draws.join([draws(50), draws(50, view=1)]), grid)
    assert torch.equal(joined, torch.cat([whole, sampler(draws(50, view=1), grid)]))


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}, {"view": 1}], ids=str)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=list(SAMPLERS))
def test_seed_epoch_and_view_change_the_masks(sampler, other):
    one, another = sampler(draws(64), (14, 14)), sampler(draws(64, **other), (14, 14))
    assert (one != another).view(64, -1).any(1).float().mean() > 0.6


def test_a_batch_has_the_draws_of_its_step_on_the_host_and_shares_them_out():
    batch = Batch(Views(), torch.arange(6), seed=3, step=7, host_index=torch.arange(6))
    assert torch.equal(batch.host.draws.uniform("mask", 9), batch.draws.uniform("mask", 9))
    assert torch.equal(batch.part(2, 4).host.draws.keys, batch.draws.keys[2:4])
    assert torch.equal(batch.host.shared_draws.keys, batch.shared_draws.keys)
    without = Batch(Views(), torch.arange(6), seed=3, step=7)
    assert torch.equal(without.host.draws.keys, batch.draws.keys)


# -- random patches (MAE) -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("tokens", "ratio", "count"),
    [(64, 0.75, 16), (144, 0.75, 36), (196, 0.75, 49), (256, 0.75, 64), (64, 0.6, 25), (100, 0.9, 10), (64, 0, 64)],
)
def test_as_many_patches_stay_as_the_source_says(tokens, ratio, count):
    assert masks.kept(tokens, ratio) == count
    keep = masks.shuffle_masks(draws(100), tokens, count)
    assert keep.shape == (100, count)
    assert (keep.diff(dim=1) > 0).all()
    mask = masks.hidden(keep, tokens)
    assert (mask.sum(1) == tokens - count).all()
    assert not mask.gather(1, keep).any()


def test_every_patch_stays_equally_often():
    share = (~masks.hidden(masks.shuffle_masks(draws(4000), 64, 16), 64)).float().mean(0)
    assert (share - 0.25).abs().max() < 4 * (0.25 * 0.75 / 4000) ** 0.5


# -- blocks (BEiT, iBOT, DINOv2) ------------------------------------------------------------------
def test_half_of_the_views_have_a_mask_of_a_tenth_to_a_half():
    found = masks.mask_ratios(draws(), 0.5, (0.1, 0.5))
    assert float((found > 0).float().mean()) == pytest.approx(0.5, abs=3 * 0.5 / 2000**0.5)
    assert found[found > 0].min() >= 0.1
    assert found.max() <= 0.5
    assert float(found[found > 0].mean()) == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("bounds", [ibot, dinov2], ids=["ibot", "dinov2"])
@pytest.mark.parametrize("grid", GRIDS)
def test_a_mask_has_never_more_than_is_wanted(grid, bounds):
    of, tokens = draws(), math.prod(grid)
    wanted = ratios(of) * tokens
    mask = masks.block_masks(of, grid, wanted, **bounds(grid))
    assert (mask.sum(1) <= wanted).all()
    assert (mask.sum(1) > 0).all()
    used = mask.any(0).view(grid)
    assert used.any(0).all()
    assert used.any(1).all()


@pytest.mark.parametrize(
    ("bounds", "grid", "short", "corner", "centre"),
    [(ibot, (14, 14), 0.007, 0.03, 0.55), (dinov2, (14, 14), 0.001, 0.04, 0.52), (dinov2, (8, 8), 0.001, 0.08, 0.48)],
)
def test_masks_are_about_as_large_as_wanted_and_lie_in_the_middle(bounds, grid, short, corner, centre):
    of, tokens = draws(), math.prod(grid)
    wanted = (ratios(of) * tokens).floor() if bounds is dinov2 else ratios(of) * tokens
    mask = masks.block_masks(of, grid, wanted, **bounds(grid)).float()
    assert float(wanted.mean() / tokens - mask.mean()) == pytest.approx(short, abs=0.005)
    share = mask.mean(0).view(grid)
    assert float(share[0, 0]) == pytest.approx(corner, abs=0.025)
    assert float(share[grid[0] // 2, grid[1] // 2]) == pytest.approx(centre, abs=0.05)


def one_by_one(drawn, grid, wanted, least, most=None):
    """The published loop for one image: a rectangle after the other, until there are enough or ten fail in a row."""
    rows, columns = grid
    mask, failures = torch.zeros(grid, dtype=torch.bool), 0
    for area, shape, y, x in drawn.view(-1, 4).tolist():
        count = int(mask.sum())
        if count >= wanted or failures == 10:
            break
        rest = min(wanted - count, most or rows * columns)
        area, aspect = least + area * (rest - least), 0.3 ** (1 - 2 * shape)
        height, width = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        failures += 1
        if height < rows and width < columns:
            top, left = int(y * (rows - height + 1)), int(x * (columns - width + 1))
            new = height * width - int(mask[top : top + height, left : left + width].sum())
            if 0 < new <= rest:
                mask[top : top + height, left : left + width] = True
                failures = 0
    return mask.flatten()


@pytest.mark.parametrize("bounds", [ibot, dinov2], ids=["ibot", "dinov2"])
@pytest.mark.parametrize("grid", GRIDS)
def test_all_images_at_once_get_the_masks_of_the_published_loop(grid, bounds):
    of = draws(60)
    wanted = ratios(of) * math.prod(grid)
    found, drawn = masks.block_masks(of, grid, wanted, **bounds(grid)), of.uniform("mask.block", 256)
    for i, want in enumerate(wanted.tolist()):
        assert torch.equal(found[i], one_by_one(drawn[i], grid, want, **bounds(grid))), i


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (2, 2), (3, 12), (40, 2)])
def test_odd_grids_and_nothing_wanted_end(grid):
    wanted = torch.full((20,), 0.5 * math.prod(grid))
    assert (masks.block_masks(draws(20), grid, wanted, least=1).sum(1) <= wanted).all()
    assert not masks.block_masks(draws(20), grid, wanted * 0, least=1).any()


# -- I-JEPA ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("context", [(1.0, 1.0), (0.85, 1.0)])
@pytest.mark.parametrize(("grid", "targets"), [((8, 8), 2), ((14, 14), 4), ((12, 16), 3)])
def test_the_context_has_nothing_of_the_targets(grid, targets, context):
    settings = {**JEPA, "targets": targets, "context": context}
    lengths = set()
    for step in range(40):
        blocks, seen = masks.jepa_blocks(draws(30), shared(step), grid, **settings)
        assert blocks.shape[:2] == (targets, 30)
        lengths.add(seen.shape[1])
        taken = torch.zeros(30, math.prod(grid), dtype=torch.bool)
        taken.scatter_(1, blocks.transpose(0, 1).flatten(1), True)
        assert not taken.gather(1, seen).any()
        assert (seen.diff(dim=1) > 0).all()
        y, x = blocks // grid[1], blocks % grid[1]
        sides = [(places.amax(2) - places.amin(2) + 1).unique().item() for places in (y, x)]
        assert math.prod(sides) == blocks.shape[2]
    assert min(lengths) >= masks.least_context(grid, **settings) > 0
    assert len(lengths) > 1


@pytest.mark.parametrize(("grid", "least"), [((7, 7), 1), ((8, 8), 16), ((12, 12), 24), ((14, 14), 28), ((16, 16), 32)])
def test_the_shortest_context_is_known_before_the_run(grid, least):
    assert masks.least_context(grid, **JEPA) == least
    sizes = [masks.block_size(grid, 0.15 + 0.05 * u / 40, 0.75 + 0.75 * v / 40) for u in range(41) for v in range(41)]
    assert math.prod(grid) - 4 * max(map(math.prod, sizes)) == least


def test_block_sizes_of_the_published_vectors():
    assert masks.block_size((14, 14), 0.15, 0.75) == (5, 6)
    assert masks.block_size((14, 14), 0.2, 1.5) == (8, 5)
    assert masks.block_size((8, 8), 1.0, 1.0) == (8, 8)


def test_every_place_is_context_and_target():
    blocks, seen = masks.jepa_blocks(draws(500), shared(), (8, 8), **JEPA)
    for places in (blocks, seen):
        assert len(places.unique()) == 64
    often = torch.bincount(seen.flatten(), minlength=64).view(8, 8).float()
    assert float(often[:4].sum() / often.sum()) == pytest.approx(0.5, abs=0.03)  # no half is left out


# -- rows of hidden patches -----------------------------------------------------------------------
def test_rows_of_hidden_patches_weigh_alike_by_image():
    """Two patches that cost 1 and 3, one that costs 5, two images without a mask: ((1 + 3) / 2 + 5) / 4."""
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[0, [1, 4]] = mask[2, 3] = True
    rows, weights = masks.hidden_rows(mask)
    assert rows.tolist() == [1, 4, 15]
    assert weights.tolist() == [0.5, 0.5, 1.0]
    assert float((weights * torch.tensor([1.0, 3.0, 5.0])).sum() / 4) == 1.75
    assert [len(part) for part in masks.hidden_rows(mask[1:2])] == [0, 0]


# -- on a GPU -------------------------------------------------------------------------------------
CODE = """
import json, torch
from akssl_core import Batch, Views, masks
from null_device.counting import counts, waits

index = torch.arange(16)
batch = Batch(Views(), index.cuda(), host_index=index)

def step():
    of = batch.draws
    keep = masks.shuffle_masks(of, 64, 16)
    masks.hidden(keep, 64)
    masks.block_masks(of, (8, 8), masks.mask_ratios(of, 0.5, (0.1, 0.5)) * 64, least=4)
    sent = [batch.sent(one) for one in masks.jepa_blocks(batch.host.draws, batch.host.shared_draws, (8, 8))]
    assert all(one.is_cuda for one in (keep, *sent))

step()
before = counts()
with waits() as places:
    step()
after = counts()
print(json.dumps({"waits": after["waits"] - before["waits"], "pageable": after["pageable"] - before["pageable"],
                  "places": places}))
"""


def test_no_mask_waits_for_a_gpu():
    null_device = pytest.importorskip("null_device", reason="the device that computes nothing is not in this checkout")
    if reason := null_device.missing():
        pytest.skip(str(reason))
    assert json.loads(null_device.run("-c", CODE)) == {"waits": 0, "pageable": 0, "places": {}}
