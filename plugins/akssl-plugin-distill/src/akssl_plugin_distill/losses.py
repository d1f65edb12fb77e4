"""What a student is compared with: features of the teacher themselves, or whom they are like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from akssl_core import KnownValue, Loss, Schema

NOWHERE = -1e9  # the logit of a row that does not take part; finite, so that 0 times a difference of two is 0


class FeatureLoss(Loss):
    """1 - cos of predictions (N, D) and the teacher's features (N, D), mean over rows (arXiv 2312.06709, section 3.4).

    Between 0 and 2. The teacher's features never receive a gradient.
    """

    name = "distill_feature"

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """Equal, orthogonal and opposite directions."""
        x, y = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])
        return [KnownValue((x, x / 4), 0.0), KnownValue((x, y), 1.0), KnownValue((x, -x), 2.0)]

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of predictions (N, D) of features (N, D)."""
        return 1 - F.cosine_similarity(student, teacher.detach(), dim=-1).mean()


class FeatureTokensLoss(Loss):
    """0.9 (1 - cos) + 0.1 smooth L1 of patch tokens (B, N, D), means over all (arXiv 2312.06709, section 3.4).

    Smooth L1 turns from squares to absolute values at 1 and matches the lengths of tokens, which cosines do not see.
    """

    name = "distill_feature_tokens"

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """A token twice as long, an orthogonal one and an opposite one."""
        one, e0, e1 = (torch.tensor([[values]]) for values in ([1.0, 1.0], [1.0, 0.0], [0.0, 1.0]))
        return [KnownValue((2 * one, one), 0.05), KnownValue((e0, e1), 0.95), KnownValue((-e0, e0), 1.875)]

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of predictions (B, N, D) of tokens (B, N, D)."""
        apart = 1 - F.cosine_similarity(student, teacher.detach(), dim=-1).mean()
        return 0.9 * apart + 0.1 * F.smooth_l1_loss(student, teacher.detach())


class SimilarityConfig(Schema):
    """The sharpness of likeness."""

    temperature: float = Field(0.07, gt=0, description="divides cosines before the softmax")
    teacher_temperature: float | None = Field(
        None, gt=0, description="the teacher's, where it is another (SEED: 1e-4 beside 0.2); null: the same"
    )


class SimilarityLoss(Loss):
    """KL divergence between whom the teacher finds an image like and whom the student does.

    With unit rows s, t (N, D) and Q (K, D): `P = softmax(t Q^T / T)`, and the loss is the mean over rows of
    `KL(P || softmax(s Q^T / T))`, 0 where they agree (SEED, Fang et al. 2021, arXiv 2101.04731, equation 5, less the
    entropy of P, which the student cannot change). Gradients reach the student alone.
    """

    name = "distill_similarity"
    Config = SimilarityConfig

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """A basis of four rows: the wrong one met, at two temperatures, and none met."""
        axes = torch.eye(5)
        student, teacher, rows = axes[1:2], axes[:1], axes[:4]

        def apart(t: float) -> float:
            return (math.exp(1 / t) - 1) / (t * (math.exp(1 / t) + 3))

        return [
            KnownValue((student, teacher, rows), apart(1.0), {"temperature": 1.0}),
            KnownValue((student, teacher, rows), apart(0.2), {"temperature": 0.2}),
            KnownValue((axes[4:], teacher, rows), 0.1179929, {"temperature": 1.0}),
            KnownValue((teacher, teacher, rows), 0.0),
        ]

    def forward(self, student: Tensor, teacher: Tensor, rows: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of predictions (N, D) of features (N, D) beside `rows` (K, D); where `valid` (K,) is false none."""
        found, wanted = (likeness(x, rows.detach(), valid) for x in (student, teacher.detach()))
        return _divergence(found, wanted, self.config)


class SimilarityTokensLoss(Loss):
    """The same between the patch tokens (B, N, D) of each image, mean over images and tokens; each is like itself."""

    name = "distill_tokens"
    Config = SimilarityConfig

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """Four tokens that are all unlike, beside four that are all alike."""
        unlike, alike = torch.eye(4)[None], torch.ones(1, 4, 4)
        return [
            KnownValue((alike, unlike), 0.1179929, {"temperature": 1.0}),
            KnownValue((alike, unlike), 1.3862657),
            KnownValue((unlike, alike), 0.1073740, {"temperature": 1.0}),
        ]

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of tokens (B, N, D) of both, whose widths may differ."""
        found, wanted = (likeness(x, x) for x in (student, teacher.detach()))
        return _divergence(found, wanted, self.config)


def likeness(x: Tensor, rows: Tensor, valid: Tensor | None = None) -> Tensor:
    """Cosines (..., N, K) of x (..., N, D) with `rows` (..., K, D); rows that are not valid (K,) are out of reach."""
    cosines = F.normalize(x.float(), dim=-1) @ F.normalize(rows.float(), dim=-1).transpose(-1, -2)
    return cosines if valid is None else cosines.masked_fill(~valid, NOWHERE)


def _divergence(student: Tensor, teacher: Tensor, config: Any) -> Tensor:
    """Mean over rows of KL(teacher || student) of cosines (..., N, K)."""
    found = F.log_softmax(student / config.temperature, dim=-1)
    wanted = F.log_softmax(teacher / (config.teacher_temperature or config.temperature), dim=-1)
    loss: Tensor = (wanted.exp() * (wanted - found)).sum(-1).mean()
    return loss
