"""The idea of EMP-SSL: one pass over the images, of each of which many small crops are drawn together.

Tong, Chen, Ma and LeCun 2023 (arXiv 2304.03977): crops of a fixed part of the image, their projections close to the
mean of their image and, over the images of a batch, of as large a coding rate as there can be (section 3, equations 1
to 3, with their `eps` of 0.2 and weight of 200). Fewer crops than the paper's 20 to 200, for a CPU.
"""

from __future__ import annotations

import torch
from lightly.transforms import SimCLRTransform
from lightly.transforms.multi_view_transform import MultiViewTransform
from peers import Example, settings
from torch import Tensor, nn
from torch.nn import functional as F

from akssl_core import Backbone, ImageSpec

CROPS, PART = 8, 0.25
WEIGHT, EPSILON = 200.0, 0.2


def emp(backbone: Backbone, image: ImageSpec, epochs: float) -> Example:
    """A projector of two layers and SimCLR's changes of colour on every crop."""
    projector = nn.Sequential(
        nn.Linear(backbone.embed_dim, 1024, bias=False), nn.BatchNorm1d(1024), nn.ReLU(), nn.Linear(1024, 256)
    )

    def loss(views: list[Tensor], epoch: int) -> Tensor:
        z = F.normalize(projector(backbone(torch.cat(views))), dim=1).unflatten(0, (len(views), -1))  # (V, B, D)
        close = F.cosine_similarity(z, z.mean(0, keepdim=True), dim=2).mean()
        return -torch.stack([coding_rate(rows) for rows in z]).mean() - WEIGHT * close

    modules = nn.ModuleList([backbone, projector])
    one = SimCLRTransform(**settings(image), min_scale=PART).transforms[0]
    optimizer = torch.optim.SGD(modules.parameters(), lr=0.03, momentum=0.9, nesterov=True, weight_decay=1e-4)
    return Example(128, MultiViewTransform([one] * CROPS), modules, optimizer, loss, encoder=backbone)


def coding_rate(rows: Tensor) -> Tensor:
    """Half the logarithm of the determinant of 1 + D / (B eps^2) Z^T Z, of rows (B, D) of length 1."""
    count, dim = rows.shape
    gram = rows.T @ rows * (dim / (count * EPSILON**2))
    rate: Tensor = torch.linalg.slogdet(torch.eye(dim) + gram.float()).logabsdet / 2
    return rate


METHODS = {"emp": emp}
