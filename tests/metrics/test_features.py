from __future__ import annotations

import copy
import math
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from akssl_core import Backbone, Features, ImageSet, ImageSpec, Pixels, Preprocess, TensorImages
from akssl_core.errors import DataError
from akssl_core.metrics.diagnosis import verdict
from akssl_core.metrics.features import embed, measure_statistics, pixels_as_features, sample, spread
from akssl_core.metrics.health import Spectrum, spectrum
from akssl_core.metrics.nearest import knn, neighbours
from akssl_core.testing.ranks import on_ranks

SPEC = ImageSpec(8, 3, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
PREPROCESS = Preprocess.of(SPEC)
CPU = torch.device("cpu")
NEIGHBOURS = import_module("akssl_core.metrics.nearest")


class Net(Backbone):
    """A small network with batch norm and dropout, which both tell whether it is in eval mode."""

    name = "net"
    embed_dim = 6

    def __init__(self):
        super().__init__(None, SPEC)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.seen = []

    def features(self, images):
        self.seen.append((tuple(images.shape), images.is_contiguous(memory_format=torch.channels_last)))
        return Features(self.drop(self.norm(self.conv(images)).relu()).mean((2, 3)))


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (21, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return TensorImages(pixels, torch.arange(21) % 3)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def rows(count, dim, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


# -- embed ----------------------------------------------------------------------------------------
def test_embed_gives_the_features_of_every_image_in_order(net, images):
    found = embed(net, images, PREPROCESS, batch_size=8, device=CPU)
    net.eval()
    with torch.no_grad():
        expected = torch.cat([net(PREPROCESS.pixels(images.fetch([i]))) for i in range(21)])
    torch.testing.assert_close(found, expected)
    assert found.dtype == torch.float32
    assert not found.requires_grad


@pytest.mark.parametrize("batch_size", [2, 8, 64])
def test_processes_share_batches_and_the_main_one_has_the_features_to_the_bit(net, images, batch_size):
    alone = embed(net, images, PREPROCESS, batch_size=batch_size, device=CPU)

    def of_rank(rank):
        mine = copy.deepcopy(net)
        mine.seen.clear()
        found = embed(mine, images, PREPROCESS, batch_size=batch_size, device=CPU, shared=True)
        return found, len(mine.seen)

    (first, passes), *others = on_ranks(3, of_rank)
    assert torch.equal(first, alone)
    assert all(len(found) == 0 for found, _ in others)
    assert {passes, *(count for _, count in others)} == {-(-len(net.seen) // 3)}
    pixels = on_ranks(2, lambda rank: pixels_as_features(images, PREPROCESS, batch_size=batch_size, shared=True))
    assert torch.equal(pixels[0], pixels_as_features(images, PREPROCESS, batch_size=batch_size))


def test_embed_takes_batches_in_the_layout_that_convolutions_prefer(net, images):
    embed(net, images, PREPROCESS, batch_size=8, device=CPU)
    assert net.seen == [((8, 3, 8, 8), True), ((8, 3, 8, 8), True), ((5, 3, 8, 8), True)]


def test_embed_leaves_no_trace(net, images):
    net.train()
    net.norm.eval()  # a module that somebody froze on purpose
    before = {name: value.clone() for name, value in net.state_dict().items()}
    grads = [parameter.requires_grad for parameter in net.parameters()]
    random = torch.get_rng_state()
    embed(net, images, PREPROCESS, device=CPU)
    assert [module.training for module in net.modules()] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [parameter.requires_grad for parameter in net.parameters()] == grads
    assert torch.equal(torch.get_rng_state(), random)


def test_embed_restores_the_mode_when_an_image_fails(net, images):
    class Broken(TensorImages):
        def fetch(self, index):
            raise DataError("broken")

    net.train()
    with pytest.raises(DataError, match="broken"):
        embed(net, Broken(images.fetch(range(21)).images), PREPROCESS, device=CPU)
    assert all(module.training for module in net.modules())


def test_features_can_train_a_probe(net, images):
    found = embed(net, images, PREPROCESS, device=CPU)
    probe = nn.Linear(6, 3)
    F.cross_entropy(probe(found), images.labels).backward()  # tensors of inference_mode would refuse this
    assert probe.weight.grad.abs().sum() > 0


def test_embed_takes_images_of_different_sizes(net):
    class Ragged(ImageSet):
        def __len__(self):
            return 3

        def fetch(self, index):
            return Pixels.stack([torch.full((3, 8 + i, 12), 40 * i, dtype=torch.uint8) for i in index])

    assert embed(net, Ragged(), PREPROCESS, device=CPU).shape == (3, 6)


def test_raw_pixels_are_the_normalised_image(images):
    found = pixels_as_features(images, PREPROCESS, batch_size=4)
    torch.testing.assert_close(found, PREPROCESS.pixels(images.fetch(range(21))).flatten(1))


def test_large_raw_pixels_are_averaged_down():
    ramp = torch.arange(64, dtype=torch.uint8).repeat_interleave(1).expand(2, 1, 64, 64)
    wide = Preprocess.of(ImageSpec(64, 1, (0.0,), (1.0,)))
    found = pixels_as_features(TensorImages(ramp), wide)
    expected = (torch.arange(32) * 2 + 0.5).expand(2, 32, 32).flatten(1) / 255
    torch.testing.assert_close(found, expected)


# -- sample ---------------------------------------------------------------------------------------
def test_sample_takes_one_image_of_each_stretch():
    images = TensorImages(torch.zeros(103, 1, 4, 4, dtype=torch.uint8), torch.arange(103))
    chosen = sample(images, 10).labels
    assert len(chosen) == 10
    edges = torch.arange(11) * 103 // 10
    assert ((chosen >= edges[:-1]) & (chosen < edges[1:])).all()
    assert torch.equal(chosen, sample(images, 10).labels)


def test_sample_keeps_all_classes_when_labels_repeat_with_its_step():
    images = TensorImages(torch.zeros(2000, 1, 1, 1, dtype=torch.uint8), torch.arange(2000) % 10)
    counts = torch.bincount(sample(images, 200).labels, minlength=10)
    assert counts.min() >= 15
    assert counts.max() <= 25


@pytest.mark.parametrize(("total", "count"), [(7, 7), (8, 7), (100, 64), (1000, 3)])
def test_spread_positions_ascend_and_never_repeat(total, count):
    found = spread(total, count)
    assert len(found) == count
    assert (found.diff() > 0).all()
    assert found.min() >= 0
    assert found.max() < total


@pytest.mark.parametrize("count", [21, 50])
def test_sample_of_few_images_is_all_of_them(images, count):
    assert sample(images, count) is images


# -- neighbours -----------------------------------------------------------------------------------
def brute_force(bank, bank_labels, queries, query_labels, k, temperature):
    """Weighted k-NN as the papers write it, one query at a time."""
    right = 0
    for query, label in zip(queries, query_labels, strict=True):
        similarity = F.cosine_similarity(query[None].double(), bank.double())
        order = similarity.argsort(descending=True)[:k]
        votes = {}
        for i in order.tolist():
            cls = int(bank_labels[i])
            votes[cls] = votes.get(cls, 0.0) + math.exp(float(similarity[i]) / temperature)
        right += max(votes, key=votes.get) == int(label)
    return 100 * right / len(queries)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (200, 0.1), (7, 5.0)])
def test_knn_equals_brute_force(k, temperature):
    labels, query_labels = torch.arange(300) % 5, torch.arange(90) % 5
    centres = rows(5, 12, seed=9)
    bank, queries = rows(300, 12) + centres[labels], rows(90, 12, seed=1) + centres[query_labels]
    found = knn(bank, labels, queries, query_labels, k=k, temperature=temperature)
    assert found == pytest.approx(brute_force(bank, labels, queries, query_labels, k, temperature))
    assert 40 < found < 100


def test_a_tiny_temperature_overflows_nothing():
    bank, labels = rows(30, 4), torch.arange(30) % 3
    assert knn(bank, labels, bank, labels, k=5, temperature=1e-4) == 100.0


@pytest.mark.parametrize("size", [1, 7, 100])
def test_neighbours_do_not_depend_on_the_block_size(monkeypatch, size):
    bank, queries = rows(50, 16), rows(23, 16, seed=1)
    expected = F.cosine_similarity(queries[:, None], bank[None], dim=2).argsort(dim=1, descending=True)[:, :5]
    monkeypatch.setattr(NEIGHBOURS, "BANK_AT_ONCE", size)
    monkeypatch.setattr(NEIGHBOURS, "QUERIES_AT_ONCE", size)
    assert torch.equal(neighbours(bank, queries, 5), expected)


@pytest.mark.parametrize("size", [3, 100])
def test_of_equal_images_the_earlier_one_is_nearer(monkeypatch, size):
    monkeypatch.setattr(NEIGHBOURS, "BANK_AT_ONCE", size)
    bank = torch.tensor([[0.0, 1.0], [3.0, 1.0], [1.0, 0.0]]).repeat(4, 1)
    found = neighbours(bank, torch.tensor([[1.0, 0.0], [0.0, 2.0]]), 6)
    assert found.tolist() == [[2, 5, 8, 11, 1, 4], [0, 3, 6, 9, 1, 4]]


def test_collapsed_features_give_chance():
    labels = torch.arange(40) % 4
    assert knn(torch.ones(40, 8), labels, torch.ones(40, 8), labels, k=20) == 25.0


def test_more_neighbours_than_images_means_all_of_them():
    assert neighbours(rows(3, 4), rows(2, 4, seed=1), 20).shape == (2, 3)
    labels = torch.tensor([1, 1, 0])
    assert knn(torch.eye(3), labels, torch.ones(1, 3), torch.tensor([1]), k=20) == 100.0


def test_images_without_a_label_do_not_count():
    bank, labels = torch.eye(3), torch.tensor([-1, 0, 1])
    queries, query_labels = torch.tensor([[1.0, 0.2, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([0, -1])
    assert knn(bank, labels, queries, query_labels, k=1) == 100.0


@pytest.mark.parametrize(("bank", "queries"), [([-1, -1], [0]), ([0, 1], [-1])])
def test_without_any_label_there_is_no_accuracy(bank, queries):
    with pytest.raises(DataError, match=r"no image of the .* has a label\. Give data with labels"):
        knn(torch.eye(2), torch.tensor(bank), torch.ones(1, 2), torch.tensor(queries))


def test_features_that_are_not_finite_are_alike_to_nothing():
    bank = torch.tensor([[math.nan, 1.0], [math.inf, 0.0], [0.0, 1.0]])
    assert neighbours(bank, torch.tensor([[0.1, 1.0]]), 3).tolist() == [[2, 0, 1]]


def test_labels_may_be_any_numbers():
    labels = torch.tensor([10**9, 5, 10**9])
    assert knn(torch.eye(3), labels, torch.eye(3), labels, k=1) == 100.0


# -- collapse -------------------------------------------------------------------------------------
def test_features_that_point_everywhere_are_healthy():
    found = spectrum(rows(4000, 32))
    assert found.std_ratio == pytest.approx(1.0, abs=0.01)
    assert found.rankme == pytest.approx(32, rel=0.01)
    assert verdict(found) == "healthy"


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (8, 16)])
def test_orthogonal_features_have_full_rank(shape):
    found = spectrum(torch.eye(16).repeat(3, 1)[: shape[0]])
    assert found.rankme == pytest.approx(min(shape), rel=1e-3)
    assert (found.count, found.dim) == shape


def test_rankme_is_the_formula_of_the_paper():
    singular = torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)
    left, right = torch.linalg.qr(rows(50, 4))[0].double(), torch.linalg.qr(rows(4, 4, seed=1))[0].double()
    p = singular / singular.sum() + 1e-7
    expected = float((-(p * p.log()).sum()).exp())
    assert spectrum((left * singular) @ right.T).rankme == pytest.approx(expected, rel=1e-5)


def test_std_ratio_of_two_opposite_directions():
    """Unit rows +-(1, 0, 0, 0): the channels have std 1, 0, 0, 0, and their mean times sqrt(4) is 1/2."""
    features = torch.tensor([[2.0, 0.0, 0.0, 0.0], [-5.0, 0.0, 0.0, 0.0]])
    found = spectrum(features)
    assert found.std_ratio == pytest.approx(0.5)
    assert found.rankme == pytest.approx(1.0, abs=1e-4)


def test_rank_one_features_are_a_dimensional_collapse():
    found = spectrum(rows(1000, 1) * rows(1, 512, seed=1))
    assert found.rankme == pytest.approx(1.0, abs=0.01)
    assert verdict(found) == "dimensional collapse"


@pytest.mark.parametrize("features", [torch.full((64, 32), 0.37), torch.zeros(64, 32), rows(1, 32).expand(64, 32)])
def test_equal_features_are_collapsed(features):
    found = spectrum(features)
    assert found.std_ratio < 1e-6
    assert found.rankme == pytest.approx(1.0, abs=0.01)
    assert verdict(found) == "collapsed"


def test_nearly_equal_features_are_collapsed():
    assert verdict(spectrum(torch.ones(500, 64) + 1e-3 * rows(500, 64))) == "collapsed"


def test_features_with_a_large_common_part_are_not_collapsed():
    """Untrained networks look like this: cosines of 0.98, and still fit for nearest neighbours."""
    assert verdict(spectrum(torch.ones(500, 64) + 0.15 * rows(500, 64))) == "healthy"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_are_collapsed(bad):
    found = spectrum(torch.tensor([[1.0, bad], [0.0, 1.0]]))
    assert math.isnan(found.std_ratio)
    assert math.isnan(found.rankme)
    assert verdict(found) == "collapsed"


def test_one_dimension_or_one_image_breaks_nothing():
    assert verdict(spectrum(torch.tensor([[1.0], [-2.0], [3.0]]))) == "healthy"
    one = spectrum(rows(1, 16))
    assert one.std_ratio == 0.0
    assert one.rankme == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Spectrum(0.009, 100.0, 1000, 512), "collapsed"),
        (Spectrum(0.5, 5.0, 1000, 512), "dimensional collapse"),
        (Spectrum(0.5, 7.0, 1000, 512), "healthy"),
        (Spectrum(0.5, 5.0, 100, 512), "healthy"),
    ],
)
def test_verdict_thresholds(found, expected):
    assert verdict(found) == expected


def test_statistics_are_measured_as_plain_averages_over_batches(images):
    net = Net().train()
    net.norm.running_mean.fill_(9.0)
    before, drawn = {name: p.clone() for name, p in net.named_parameters()}, torch.get_rng_state()
    assert measure_statistics(net, images, PREPROCESS, batch_size=10, device=CPU) == 1
    with torch.no_grad():
        maps = net.conv(PREPROCESS.pixels(PREPROCESS.fetch(images, range(20))))  # the last image alone is left out
    means = torch.stack([maps[:10].mean((0, 2, 3)), maps[10:].mean((0, 2, 3))]).mean(0)
    variances = torch.stack([maps[:10].transpose(0, 1).flatten(1).var(1), maps[10:].transpose(0, 1).flatten(1).var(1)])
    torch.testing.assert_close(net.norm.running_mean, means)
    torch.testing.assert_close(net.norm.running_var, variances.mean(0))
    assert net.norm.momentum == 0.1
    assert all(part.training for part in net.modules())
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_statistics_are_of_as_many_batches_as_asked_for(images):
    net = Net()
    measure_statistics(net, images, PREPROCESS, batches=3, batch_size=2, device=CPU)
    assert len(net.seen) == net.norm.num_batches_tracked == 3
    assert measure_statistics(nn.Identity(), images, PREPROCESS, device=CPU) == 0
