"""The losses of DINOv2: images and hidden patches under a teacher's targets, spread features, likeness of patches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from akssl_core import KnownValue, Loss, Schema, dist
from akssl_core.nn import across_views

LEAST = 1e-8  # added to differences and distances, whose logarithm is taken


class Student(Schema):
    """The student's sharpness; the teacher's is in its targets."""

    student_temperature: float = Field(0.1, gt=0, description="temperature of the student's softmax")


def _sure(*log_probabilities: float) -> Tensor:
    """Logits (n, 2) whose softmax at a temperature of 0.1 has these logarithms in its first column."""
    first = torch.tensor(log_probabilities, dtype=torch.float64)
    return (0.1 * torch.stack([first, torch.log1p(-first.exp())], 1)).float()


class ImageLoss(Loss):
    """Cross-entropy of the student's softmax under targets of other views: log K where all is even.

    A mean over all pairs of unlike views, also where there are no local ones; the authors' code then divides by 3 in
    place of 2 (arXiv 2304.07193, section 4).
    """

    name = "dinov2"
    Config = Student

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """Even outputs, and targets that only the other view meets."""
        even, one = torch.zeros(2, 4), torch.eye(4)[:1].expand(2, -1)
        met = math.log(1 + 3 * math.exp(-10))
        return [
            KnownValue(([even, even], [even.softmax(1)] * 2), math.log(4)),
            KnownValue(([one, one], [one, one]), met, tolerance=1e-7),
            KnownValue(([one, even, even], [one, one]), (3 * math.log(4) + met) / 4),
        ]

    def forward(self, student: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """The loss of V logits (N, K) under probabilities (N, K) of the first 2 of these views."""
        predictions = [(logits / self.config.student_temperature).log_softmax(1) for logits in student]
        return across_views([target.detach() for target in targets], predictions)


class PatchLoss(Loss):
    """Cross-entropy of hidden patches under the teacher's targets for them: iBOT's loss on patches.

    The mean in each crop, then over all crops, to which one without hidden patches adds 0 (arXiv 2111.07832).
    """

    name = "dinov2_patches"
    Config = Student

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """Costs 1 and 3 in one crop, 5 in another, none in two; even outputs in two of four crops."""
        first, two, four = torch.tensor([[1.0, 0.0]]), torch.zeros(2, 4), torch.tensor([0.25]).expand(2, 4)
        return [
            KnownValue((_sure(-1, -3, -5), first.expand(3, -1), torch.tensor([0.5, 0.5, 1.0]), 4), 1.75),
            KnownValue((two, four, torch.ones(2), 4), math.log(4) / 2),
        ]

    def forward(self, student: Tensor, targets: Tensor, weights: Tensor, crops: int) -> Tensor:
        """The loss of logits (n, K) under probabilities (n, K), rows weighted by (n,), divided by a number of crops."""
        costs = -(targets.detach() * (student / self.config.student_temperature).log_softmax(1)).sum(1)
        loss: Tensor = (costs * weights.detach()).sum() / crops
        return loss


class KoLeoLoss(Loss):
    """Minus the mean logarithm of the distance from each unit row to the nearest other: it spreads rows out.

    The differential entropy by Kozachenko and Leonenko (Sablayrolles et al. 2019, arXiv 1806.03198), as in section 4 of
    arXiv 2304.07193: rows get unit length, the choice of a neighbour has no gradient, both of a pair get one. A row is
    never its own neighbour; in the authors' code it is where the nearest lies on the opposite side.
    """

    name = "koleo"

    class Config(Schema):
        """Among how many images a neighbour is looked for."""

        group: int | None = Field(
            None, ge=2, description="so many images in a row, of one process; null: all of a step, of all processes"
        )

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """Two orthogonal rows, opposite ones, the same; three at 120 degrees; twelve pairs of 10 degrees."""
        orthogonal, opposite, same = torch.eye(2), torch.tensor([[1.0], [-1.0]]), torch.ones(2, 4)
        twelve = torch.arange(12) * 30.0
        return [
            KnownValue((orthogonal,), -0.5 * math.log(2)),
            KnownValue((opposite,), -math.log(2)),
            KnownValue((same,), -math.log(LEAST * (1 + math.sqrt(4)))),
            KnownValue((_at(torch.tensor([0.0, 120.0, 240.0])),), -0.5 * math.log(3)),
            KnownValue((_at(torch.cat([twelve, twelve + 10])),), -math.log(2 * math.sin(math.radians(5)))),
        ]

    def forward(self, rows: Tensor) -> Tensor:
        """The loss of rows (N, D) of this process, one an image."""
        rows = F.normalize(rows, dim=1)
        groups = [dist.gather(rows)] if self.config.group is None else torch.split(rows, self.config.group)
        apart = torch.cat([x - x[_nearest(x)] for x in groups if len(x) > 1] or [rows[:0]])
        loss: Tensor = -((apart + LEAST).norm(dim=1) + LEAST).log().sum() / max(len(apart), 1)
        return loss


def _at(degrees: Tensor) -> Tensor:
    """Unit rows (n, 2) at angles (n,)."""
    angles = degrees.deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


@torch.no_grad()
def _nearest(rows: Tensor) -> Tensor:
    """The position (N,) of the nearest other of unit rows (N, D)."""
    return (rows @ rows.T).fill_diagonal_(-math.inf).argmax(1)


class GramLoss(Loss):
    """Mean squared difference of the cosines between all patches of an image, the student's and an earlier teacher's.

    Features may turn and grow, but what is alike must stay alike (DINOv3, arXiv 2508.10104, section 4).
    """

    name = "gram"

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """The same up to lengths; orthogonal patches against equal ones; opposite ones against equal ones."""
        two, four = torch.eye(2)[None], torch.eye(4)[None]
        return [
            KnownValue((two * 3, two), 0.0),
            KnownValue((two, torch.ones(1, 2, 2)), 0.5),
            KnownValue((four, torch.ones(1, 4, 4)), 0.75),
            KnownValue((torch.tensor([[[1.0, 2.0], [-1.0, -2.0]]]), torch.ones(1, 2, 2)), 2.0),
        ]

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of patches (B, N, D) beside patches (B, N, D'), which get no gradient."""
        x, y = F.normalize(student, dim=2), F.normalize(teacher.detach(), dim=2)
        return F.mse_loss(x @ x.transpose(1, 2), y @ y.transpose(1, 2))
