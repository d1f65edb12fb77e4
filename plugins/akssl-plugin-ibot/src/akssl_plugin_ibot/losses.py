"""The two terms of iBOT's loss: between crops on class tokens, within a crop on masked patches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from akssl_core import KnownValue, Loss, Schema
from akssl_core.nn import across_views

SURE = 1 + 3 * math.exp(-10)  # the sum of exponents of a student whose one logit of 4 is 1, less that one


class Sharpness(Schema):
    """The student's sharpness; the teacher's changes with time, so it is an argument."""

    student_temperature: float = Field(0.1, gt=0, description="temperature of the student's softmax")


def targets(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """The teacher's outputs (..., K) as probabilities, centred and sharpened, without a gradient."""
    return ((logits - center) / temperature).softmax(-1).detach()


class IBOTLoss(Loss):
    """Cross-entropy of the student's class tokens under the teacher's of other crops: DINO's loss.

    `softmax((t - center) / teacher_temperature)` are the targets. The mean over all pairs of a global crop and another
    crop, and over the batch: log K where all logits are equal (equation 1 in arXiv 2111.07832, with multi-crop).
    """

    name = "ibot"
    Config = Sharpness

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """Constant outputs; a student that meets a certain teacher, and one that is certain of something else."""
        even, one, center = torch.zeros(2, 4), torch.eye(4)[:1].expand(2, -1), torch.zeros(4)
        met = {t: math.log(SURE) + 30 / (math.exp(1 / t) + 3) for t in (0.04, 0.06, 0.07)}
        return [
            KnownValue(([even] * 3, [even] * 2, center, 0.04), math.log(4)),
            *(KnownValue(([one] * 2, [one] * 2, center, t), value, tolerance=1e-7) for t, value in met.items()),
            KnownValue(([one.roll(1, 1)] * 2, [one] * 2, center, 0.04), 10.000136),
        ]

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], center: Tensor, teacher_temperature: float
    ) -> Tensor:
        """The loss of V student logits (N, K) under 2 teacher logits (N, K) of the first 2 of these crops."""
        wanted = [targets(logits, center, teacher_temperature) for logits in teacher]
        return across_views(wanted, [(s / self.config.student_temperature).log_softmax(1) for s in student])


class PatchLoss(Loss):
    """Cross-entropy of the student's masked patches under what the teacher says of them where it sees them.

    The mean over the masked patches of each crop, and over all crops, to which one without a mask adds 0 (equation 2
    and algorithm 1 in arXiv 2111.07832): where all logits are equal, log K times the share of crops with a mask.
    """

    name = "ibot_patch"
    Config = Sharpness

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """Two of four crops masked: constant outputs, certain ones, and certain of something else."""
        even, one, center = torch.zeros(3, 4), torch.eye(4)[:1].expand(3, -1), torch.zeros(4)
        weights = torch.tensor([0.5, 0.5, 1.0])
        met = {t: (math.log(SURE) + 30 / (math.exp(1 / t) + 3)) / 2 for t in (0.04, 0.06, 0.07)}
        return [
            KnownValue((even, even, weights, 4, center, 0.04), math.log(4) / 2),
            *(KnownValue((one, one, weights, 4, center, t), value, tolerance=1e-7) for t, value in met.items()),
            KnownValue((one.roll(1, 1), one, weights, 4, center, 0.07), 10.000130 / 2),
        ]

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weights: Tensor,
        crops: int,
        center: Tensor,
        teacher_temperature: float,
    ) -> Tensor:
        """The loss of logits (n, K) of masked patches under the teacher's (n, K).

        Args:
            student: logits (n, K).
            teacher: logits (n, K) of the same patches.
            weights: (n,), which sum to 1 in each crop that has a mask.
            crops: how many there are, with those without a mask.
            center: (K,), of the teacher's patches.
            teacher_temperature: of the teacher's softmax.
        """
        wanted = targets(teacher, center, teacher_temperature)
        predicted = (student / self.config.student_temperature).log_softmax(1)
        loss: Tensor = -((wanted * predicted).sum(1) * weights).sum() / crops
        return loss
