"""Our losses against lightly's, and against the formulas of the papers: values and gradients on random inputs.

Ours compute in float32, the others in float64 on the same numbers, so that what differs is ours. Run by `make parity`.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import akssl_core
from akssl_core import Now
from akssl_core.nn import Center, Queue, sinkhorn

pytest.importorskip("lightly", reason="the peer library is installed by `pip install -e .[bench]`")

sys.path.append(str(Path(__file__).parent))

from lightly import loss as lightly_loss
from lightly.loss.swav_loss import sinkhorn as lightly_sinkhorn
from parity import TOLERANCE, assert_parity, cosines, rows, unit_rows

NOW = Now(0, 10, 100)

# SimCLR


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_ntxent_is_lightlys(temperature: float) -> None:
    """Factor 1: both are the mean over the 2N anchors."""
    ours = akssl_core.build("loss", "ntxent", temperature=temperature)
    assert_parity(ours, lightly_loss.NTXentLoss(temperature), rows(24, 16, count=2))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_ntxent_is_equation_1(temperature: float) -> None:
    """SimCLR, arXiv 2002.05709, equation 1, term by term."""

    def paper(z1: Tensor, z2: Tensor) -> Tensor:
        z, n = torch.cat([z1, z2]), len(z1)
        e = torch.exp(cosines(z, z) / temperature)
        pairs = [(i, (i + n) % (2 * n)) for i in range(2 * n)]
        terms = [-torch.log(e[i, j] / sum(e[i, k] for k in range(2 * n) if k != i)) for i, j in pairs]
        return torch.stack(terms).mean()

    assert_parity(akssl_core.build("loss", "ntxent", temperature=temperature), paper, rows(6, 5, count=2))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_dcl_is_lightlys(temperature: float) -> None:
    """Factor 1: both are the mean over the 2N anchors; the paper sums over them."""
    ours = akssl_core.build("loss", "dcl", temperature=temperature)
    assert_parity(ours, lightly_loss.DCLLoss(temperature), rows(24, 16, count=2))


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")  # lightly's weights
@pytest.mark.parametrize("sigma", [0.3, 0.5])
def test_dclw_is_lightlys(sigma: float) -> None:
    """Factor 1, with weights that receive no gradient."""
    ours = akssl_core.build("loss", "dclw", temperature=0.2, sigma=sigma)
    assert_parity(ours, lightly_loss.DCLWLoss(0.2, sigma), rows(24, 16, count=2))


# NNCLR


def test_nnclr_is_equation_3_and_not_lightlys() -> None:
    """Lightly's examples take its NT-Xent of neighbours and predictions: 2N - 1 candidates, rows of both kinds.

    NNCLR, arXiv 2104.14548, equation 3: the predictions of the N images are the candidates of each neighbour.
    """
    neighbours, predictions = rows(24, 16, count=2)

    def paper(predictions: Tensor) -> Tensor:
        e = torch.exp(cosines(neighbours.double(), predictions) / 0.2)
        return -torch.log(e.diagonal() / e.sum(1)).mean()

    ours = akssl_core.build("loss", "nnclr", temperature=0.2)
    assert_parity(lambda p: ours(neighbours, p), paper, [predictions])
    theirs = lightly_loss.NTXentLoss(0.2)(neighbours.double(), predictions.double())
    assert theirs.item() - ours(neighbours, predictions).item() == pytest.approx(math.log(47 / 24), abs=0.3)


# MoCo


def lightly_with_bank(queue: Tensor, temperature: float) -> lightly_loss.NTXentLoss:
    """Lightly's loss with a queue (K, D) as its memory bank, in float64."""
    loss = lightly_loss.NTXentLoss(temperature, memory_bank_size=tuple(queue.shape)).double()
    loss.memory_bank.bank.copy_(queue)
    return loss


@pytest.mark.parametrize("temperature", [0.1, 0.2])
def test_infonce_queue_is_lightlys_with_a_memory_bank(temperature: float) -> None:
    """Factor 1, one direction, the bank as it was before the call. Ours stops the gradient of keys, lightly's not."""
    queue = unit_rows(48, 16)
    ours = akssl_core.build("loss", "infonce_queue", temperature=temperature)
    theirs = lightly_with_bank(queue, temperature)
    assert_parity(lambda q, k: ours(q, k, queue), theirs, rows(24, 16, count=2), targets=[1])


def test_infonce_queue_with_our_queue_follows_lightlys_bank_over_steps() -> None:
    """Keys are enqueued after the loss that they belong to, on both sides; the bank holds three batches."""
    batch, dim = 8, 16
    queue = Queue(3 * batch, dim)
    ours, theirs = akssl_core.build("loss", "infonce_queue", temperature=0.2), lightly_with_bank(queue.rows, 0.2)
    for step in range(5):
        query, key = rows(batch, dim, count=2, seed=10 + step)
        value = ours(query, key, queue.rows)
        expected = theirs(query.double().requires_grad_(), key.double())  # the bank moves only where a gradient may
        assert value.item() == pytest.approx(expected.item(), rel=TOLERANCE)
        queue.push(F.normalize(key, dim=1))
        queue.after_step(NOW)


def test_infonce_queue_is_equation_1() -> None:
    """MoCo, arXiv 1911.05722, equation 1, for each query."""
    temperature, queue = 0.2, unit_rows(12, 5)

    def paper(query: Tensor, key: Tensor) -> Tensor:
        positive = torch.exp(cosines(query, key).diagonal() / temperature)
        negative = torch.exp(cosines(query, queue.double()) / temperature).sum(1)
        return -torch.log(positive / (positive + negative)).mean()

    ours = akssl_core.build("loss", "infonce_queue", temperature=temperature)
    assert_parity(lambda q, k: ours(q, k, queue), paper, rows(6, 5, count=2), targets=[1])


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_infonce_mocov3_is_algorithm_1(temperature: float) -> None:
    """MoCo v3, arXiv 2104.02057, algorithm 1, with its factor 2 * temperature. Lightly has no MoCo v3."""

    def contrast(query: Tensor, key: Tensor) -> Tensor:
        e = torch.exp(cosines(query, key) / temperature)
        return 2 * temperature * -torch.log(e.diagonal() / e.sum(1)).mean()

    def paper(q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor) -> Tensor:
        return contrast(q1, k2) + contrast(q2, k1)

    ours = akssl_core.build("loss", "infonce_mocov3", temperature=temperature)
    assert_parity(ours, paper, rows(24, 16, count=4), targets=[2, 3])


# SimSiam and BYOL


def test_negative_cosine_is_lightlys() -> None:
    """Factor 1. Ours stops the gradient of the target, lightly leaves that to the caller."""
    ours = akssl_core.build("loss", "negative_cosine")
    assert_parity(ours, lightly_loss.NegativeCosineSimilarity(), rows(24, 16, count=2), targets=[1])


def test_negative_cosine_is_equation_1() -> None:
    """SimSiam, arXiv 2011.10566, equation 1, averaged over the batch."""

    def paper(p: Tensor, z: Tensor) -> Tensor:
        return -cosines(p, z).diagonal().mean()

    assert_parity(akssl_core.build("loss", "negative_cosine"), paper, rows(24, 16, count=2), targets=[1])


def test_byol_is_four_times_lightlys_plus_four() -> None:
    """Factor 4, offset 4: lightly's examples take half the sum of two negative cosines, the paper |p - t|^2 twice."""
    negative_cosine = lightly_loss.NegativeCosineSimilarity()

    def theirs(p1: Tensor, p2: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
        half: Tensor = 0.5 * (negative_cosine(p1, t2) + negative_cosine(p2, t1))
        return half

    ours = akssl_core.build("loss", "byol")
    assert_parity(ours, theirs, rows(24, 16, count=4), factor=4.0, offset=4.0, targets=[2, 3])


def test_byol_is_equation_2() -> None:
    """BYOL, arXiv 2006.07733, equation 2 and its mirror image, averaged over the batch."""

    def distance(p: Tensor, t: Tensor) -> Tensor:
        return (p / p.norm(dim=1, keepdim=True) - t / t.norm(dim=1, keepdim=True)).square().sum(1).mean()

    def paper(p1: Tensor, p2: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
        return distance(p1, t2) + distance(p2, t1)

    assert_parity(akssl_core.build("loss", "byol"), paper, rows(24, 16, count=4), targets=[2, 3])


# Barlow Twins


@pytest.mark.parametrize("weight", [5e-3, 0.0051])
def test_barlowtwins_is_lightlys(weight: float) -> None:
    """Factor 1 for equal lambda; the defaults differ (ours 0.0051 as the authors' code, lightly's 0.005)."""
    ours = akssl_core.build("loss", "barlowtwins", lambda_=weight)
    assert_parity(ours, lightly_loss.BarlowTwinsLoss(lambda_param=weight), rows(32, 16, count=2))


def test_barlowtwins_is_equations_1_and_2() -> None:
    """Barlow Twins, arXiv 2103.03230. The inputs are large, since the paper adds no 1e-5 to the variance."""
    weight = 0.0051

    def paper(z1: Tensor, z2: Tensor) -> Tensor:
        a, b = z1 - z1.mean(0), z2 - z2.mean(0)
        c = (a.T @ b) / (a.norm(dim=0)[:, None] * b.norm(dim=0)[None, :])
        d = len(c)
        invariance = sum((1 - c[i, i]) ** 2 for i in range(d))
        redundancy = sum(c[i, j] ** 2 for i in range(d) for j in range(d) if i != j)
        total: Tensor = invariance + weight * redundancy
        return total

    ours = akssl_core.build("loss", "barlowtwins", lambda_=weight)
    assert_parity(ours, paper, rows(16, 6, count=2, scale=10.0))


# VICReg


@pytest.mark.parametrize(("invariance", "variance", "covariance"), [(25.0, 25.0, 1.0), (10.0, 50.0, 3.0)])
@pytest.mark.parametrize("dim", [16, 48])
def test_vicreg_is_lightlys(invariance: float, variance: float, covariance: float, dim: int) -> None:
    """Factor 1, with half of the variance terms' sum, for fewer and more features than rows."""
    weights = {"invariance_weight": invariance, "variance_weight": variance, "covariance_weight": covariance}
    ours = akssl_core.build("loss", "vicreg", **weights)
    assert_parity(ours, lightly_loss.VICRegLoss(invariance, variance, covariance), rows(32, dim, count=2, scale=0.7))


# LeJEPA


@pytest.mark.parametrize("global_views", [1, 2])
def test_lejepa_is_lightlys(global_views: int) -> None:
    """Factor 1 along the same directions: shares of both terms, the statistic per view, 17 points up to 3."""
    directions = unit_rows(40, 8, seed=7).T
    ours, peer = akssl_core.build("loss", "lejepa", lambda_=0.3), lightly_loss.LeJEPALoss(0.3).double()
    peer.sigreg._generate_unit_vectors = lambda *shape: directions.double()

    def theirs(*views: Tensor) -> Tensor:
        large, small = torch.stack(views[:global_views]), torch.stack(views[global_views:])
        value: Tensor = peer(local_proj=small, global_proj=large)
        return value

    views = rows(24, 8, count=4, scale=0.7)
    assert_parity(lambda *z: ours(list(z), directions, global_views), theirs, views)


# SwAV


@pytest.mark.parametrize("epsilon", [0.05, 0.5])
@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_sinkhorn_is_lightlys(epsilon: float, iterations: int) -> None:
    """Factor 1, on cosines."""
    scores = unit_rows(24, 8) @ unit_rows(12, 8, seed=2).T
    expected = lightly_sinkhorn(scores.double(), iterations=iterations, epsilon=epsilon)
    torch.testing.assert_close(sinkhorn(scores, epsilon, iterations).double(), expected, rtol=TOLERANCE, atol=1e-7)


def test_sinkhorn_converges_to_the_equipartition() -> None:
    """SwAV, arXiv 2006.09882, equations 3 to 5: `diag(u) exp(scores / eps) diag(v)` with equal masses, by scaling."""
    scores = (unit_rows(24, 8) @ unit_rows(12, 8, seed=2).T).double()
    kernel = torch.exp(scores / 0.5)
    u, v = torch.ones(24).double(), torch.ones(12).double()
    for _ in range(200):
        v = (24 / 12) / (kernel.T @ u)
        u = 1 / (kernel @ v)
    expected = u[:, None] * kernel * v[None, :]
    torch.testing.assert_close(expected.sum(0), torch.full((12,), 2.0).double())
    torch.testing.assert_close(sinkhorn(scores, 0.5, 200).double(), expected, rtol=TOLERANCE, atol=1e-7)


@pytest.mark.parametrize("local_views", [0, 6])
@pytest.mark.parametrize("queued", [0, 48])
def test_swav_is_lightlys(local_views: int, queued: int) -> None:
    """Factor 1: codes of the two global views, swapped; with older scores that take part in the assignment alone."""
    scores = [0.3 * s for s in rows(24, 12, count=2 + local_views)]
    older = [0.3 * s for s in rows(queued, 12, count=2, seed=3)]
    loss, peer = akssl_core.build("loss", "swav", temperature=0.1), lightly_loss.SwaVLoss()

    def ours(*views: Tensor) -> Tensor:
        codes = [sinkhorn(torch.cat([o, v]), 0.05)[-24:] for o, v in zip(older, views[:2], strict=True)]
        value: Tensor = loss(list(views), codes)
        return value

    def theirs(*views: Tensor) -> Tensor:
        value: Tensor = peer(list(views[:2]), list(views[2:]), [o.double() for o in older] if queued else None)
        return value

    assert_parity(ours, theirs, scores)


def test_swav_is_equation_2_over_all_crops() -> None:
    """SwAV, arXiv 2006.09882, equation 2 and section 3.2: each of two codes predicted from the V - 1 other crops."""
    codes = [c.softmax(1) for c in rows(6, 5, count=2, seed=4)]

    def paper(*views: Tensor) -> Tensor:
        terms = []
        for s, q in enumerate(codes):
            for v, scores in enumerate(views):
                if v != s:
                    e = torch.exp(scores / 0.1)
                    p = e / e.sum(1, keepdim=True)
                    terms.append(-(q.double() * torch.log(p)).sum(1).mean())
        return sum(terms, torch.zeros(())) / (2 * (len(views) - 1))

    ours = akssl_core.build("loss", "swav", temperature=0.1)
    assert_parity(lambda *views: ours(list(views), codes), paper, rows(6, 5, count=4))


# DINO


@pytest.mark.parametrize("views", [2, 8])
@pytest.mark.parametrize("teacher_temperature", [0.04, 0.07])
def test_dino_is_lightlys(views: int, teacher_temperature: float) -> None:
    """Factor 1, with a centre that is not zero."""
    student, teacher = rows(24, 32, count=views), rows(24, 32, count=2, scale=0.3, seed=5)
    center = rows(32, count=1, scale=0.3, seed=6)[0]
    loss = akssl_core.build("loss", "dino", student_temperature=0.1)

    def theirs(*logits: Tensor) -> Tensor:
        peer = lightly_loss.DINOLoss(output_dim=32)  # new for each call, since it moves its centre
        peer.center.copy_(center)
        value: Tensor = peer([t.double() for t in teacher], list(logits), teacher_temp=teacher_temperature)
        return value

    assert_parity(lambda *logits: loss(list(logits), teacher, center, teacher_temperature), theirs, student)


def test_dino_with_our_center_follows_lightlys_over_steps() -> None:
    """The centre moves after the loss that used it, on both sides, from zero."""
    center, ours = Center(32, momentum=0.9), akssl_core.build("loss", "dino", student_temperature=0.1)
    theirs = lightly_loss.DINOLoss(output_dim=32, center_momentum=0.9)
    for step in range(5):
        student = rows(24, 32, count=4, seed=20 + step)
        teacher = [t + 1 for t in rows(24, 32, count=2, scale=0.3, seed=30 + step)]
        value = ours(student, teacher, center.value, 0.04)
        expected = theirs([t.double() for t in teacher], [s.double() for s in student], teacher_temp=0.04)
        assert value.item() == pytest.approx(expected.item(), rel=TOLERANCE)
        center.push(torch.cat(teacher))
        center.after_step(NOW)
        torch.testing.assert_close(center.value.double(), theirs.center.flatten().double(), rtol=TOLERANCE, atol=1e-7)


def test_dino_is_algorithm_1() -> None:
    """DINO, arXiv 2104.14294, algorithm 1 and equation 3: every teacher view with every other student view."""
    center, teacher = rows(9, count=1, scale=0.3, seed=6)[0], rows(6, 9, count=2, scale=0.3, seed=5)

    def paper(*student: Tensor) -> Tensor:
        terms = []
        for u, t in enumerate(teacher):
            e = torch.exp((t.double() - center.double()) / 0.04)
            p = e / e.sum(1, keepdim=True)
            for v, s in enumerate(student):
                if u != v:
                    q = torch.exp(s / 0.1)
                    terms.append(-(p * torch.log(q / q.sum(1, keepdim=True))).sum(1).mean())
        return sum(terms, torch.zeros(())) / len(terms)

    ours = akssl_core.build("loss", "dino", student_temperature=0.1)
    assert_parity(lambda *student: ours(list(student), teacher, center, 0.04), paper, rows(6, 9, count=4))
