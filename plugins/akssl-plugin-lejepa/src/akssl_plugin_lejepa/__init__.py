"""LeJEPA: predict the mean of the large views from every view, while embeddings stay Gaussian."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from akssl_core import (
    Backbone,
    Batch,
    ConfigError,
    Curve,
    Facts,
    KnownValue,
    Landmark,
    Loss,
    LossRef,
    Method,
    Now,
    Registry,
    Schema,
    dist,
    hookimpl,
)
from akssl_core.nn import mlp, std_ratio

from .courses import COURSES
from .published import PUBLISHED
from .recipes import RECIPES

# The test compares characteristic functions at 17 points from 0 to 3, as the authors' code does (the paper: -5 to 5).
# At 0 all of them are 1, so that point says nothing.
POINTS, LAST = 16, 3.0
FLOOR = 1.0525  # expectation of the statistic for independent rows of a standard normal distribution, any number
ZERO = 0.4020476  # of the statistic, times the rows, where all projections are 0
USUAL_WEIGHT = {2: 0.01, 4: 0.02, 8: 0.05}  # best balance by number of views (table 7 of the paper)


class LeJEPALoss(Loss):
    """Distance of all views from the mean of the global ones, and how far each view is from Gaussian (SIGReg).

    `(1 - lambda_) * mean (mu - z)^2 + lambda_ * SIGReg` (arXiv 2511.08544, version 3, algorithm 2). mu is the mean of
    the global views' projections, with its gradient; the mean is over views, rows and features. SIGReg is the mean
    over views and directions of the statistic of Epps and Pulley: for projections y of the rows onto a direction,
    `N * integral of |mean exp(i t y) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt`, by the trapezoid rule over N rows of all
    processes.
    """

    name = "lejepa"

    class Config(Schema):
        """The balance of the two terms."""

        lambda_: float = Field(0.05, ge=0, le=1, description="share of SIGReg (8 views: 0.05, 4: 0.02, 2: 0.01)")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.parts: dict[str, Tensor] = {}
        """The two terms of the last call without their weights, for the log."""

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """Two rows and one feature: both views global, the first alone; all rows 0."""
        wide, one = torch.tensor([[1.0], [-1.0]]), torch.ones(1, 1)
        zero = torch.zeros(4, 2)
        return [
            KnownValue(([zero, zero], torch.eye(2), 2), 0.05 * 4 * ZERO),
            KnownValue(([wide, 0.5 * wide], one, 1), 0.1304119),
            KnownValue(([wide, 0.5 * wide], one, 2), 0.0710369),
        ]

    def forward(self, views: list[Tensor], directions: Tensor, global_views: int) -> Tensor:
        """The loss of projections (N, K) of V views, the global ones first, tested along directions (K, S).

        Directions count by where they point, not by their length.
        """
        z = torch.stack(views)
        prediction = (z[:global_views].mean(0) - z).square().mean()
        gaussian = not_gaussian(z, F.normalize(directions, dim=0)).mean()
        self.parts = {"prediction": prediction.detach(), "sigreg": gaussian.detach()}
        return torch.lerp(prediction, gaussian, self.config.lambda_)


def not_gaussian(z: Tensor, directions: Tensor) -> Tensor:
    """The statistic of Epps and Pulley, (V, S), of the rows of each view of z (V, N, K) along directions (K, S).

    The integrand is even, so the part from 0 on is doubled. Sums go across processes, and so do their gradients.
    """
    step = LAST / POINTS
    points = step * torch.arange(1, POINTS + 1, device=z.device)
    normal = (-points.square() / 2).exp()
    weights = normal * step * torch.where(points < LAST, 2.0, 1.0)
    angles = (z @ directions)[..., None] * points  # (V, N, S, points)
    real, imaginary = dist.mean(torch.stack([angles.cos().mean(1), angles.sin().mean(1)]))
    apart = (real - normal).square() + imaginary.square()
    statistic: Tensor = z.shape[1] * dist.world() * (apart @ weights)
    return statistic


class LeJEPA(Method):
    """All views of an image predict the mean of its large ones; a test along random directions keeps rows Gaussian.

    There is no teacher, no stop-gradient, no predictor, no queue and no negatives. Views of one size share a forward
    pass of the backbone, all views one of the projector.
    """

    name = "lejepa"
    views: ClassVar[Mapping[str, int | range]] = {"global": range(1, 17), "local": range(17)}
    paper = "Balestriero and LeCun, LeJEPA, 2025, https://arxiv.org/abs/2511.08544"
    recipes = RECIPES
    published = PUBLISHED
    courses = COURSES["lejepa"]

    class Config(Schema):
        """The projector, the directions and the loss."""

        hidden_dim: int = Field(2048, gt=0, description="width inside the projector")
        out_dim: int = Field(
            64, gt=0, description="width of the projections (16 to 64; the paper finds more no better)"
        )
        projector_layers: int = Field(3, ge=1, le=256, description="linear layers of the projector (the paper: 3)")
        directions: int = Field(1024, gt=0, le=65536, description="random directions of a step to test rows along")
        loss: LossRef = LossRef.field(
            "lejepa", description="compares projections (N, K) of all views along directions (K, S)"
        )

    def __init__(self, config: Any, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        hidden = [config.hidden_dim] * (config.projector_layers - 1)
        self.projector = mlp(backbone.embed_dim, *hidden, config.out_dim, bias=False)
        self.loss = config.loss.build()

    def step(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        """Algorithm 2 of the paper; beside the loss, its two terms and the spread of the projections' directions.

        The directions follow from seed and step, so that all processes, and a resumed run, have the same.
        """
        large, small = batch.views["global"], batch.views.get("local", [])
        features = torch.cat([self.backbone(torch.cat(views)) for views in (large, small) if views])
        z = self.projector(features).chunk(len(large) + len(small))
        shape = self.config.out_dim, self.config.directions
        directions = batch.shared_draws.normal("directions", math.prod(shape)).view(shape)
        loss = self.loss(list(z), directions, len(large))
        return {"loss": loss, **getattr(self.loss, "parts", {}), "z_std_ratio": std_ratio(z[0])}

    @classmethod
    def check(cls, config: Any, facts: Facts) -> Sequence[str]:
        """One view has nothing to predict; a weight far from the best for the number of views is told."""
        views = sum(facts.views.values())
        if views < 2:
            raise ConfigError(
                "augmentation: lejepa compares views, and there is 1. Use 2 or more, 4 is usual: augmentation.count of "
                "'pair', augmentation.groups.global.count of 'views'."
            )
        usual = USUAL_WEIGHT[max(n for n in USUAL_WEIGHT if n <= views)]
        weight = getattr(config.loss.config, "lambda_", usual)
        if usual / 5 <= weight <= usual * 5:
            return ()
        return [
            f"method.loss.lambda_: {weight:g} with {views} views; the paper's best is {usual:g}. More leaves views "
            "unlike, less lets projections collapse."
        ]

    @classmethod
    def landmarks(cls, config: Any, facts: Facts) -> Sequence[Landmark]:
        """Projections that are all 0, or that a quarter of their way to a Gaussian is left after many steps."""
        if config.loss.name != LeJEPALoss.name:
            return ()
        zero = _zero(facts)
        return [
            Landmark(
                "collapsed",
                {"sigreg": (0.9 * zero, math.inf), "prediction": (0.0, 1e-3)},
                f"all projections are 0, where SIGReg is {ZERO:.3g} times the images",
                "SIGReg weighs too little, so that views agree by saying nothing.",
                "raise method.loss.lambda_ to 0.01 to 0.05.",
                after=50,
            ),
            Landmark(
                "not learning",
                {"sigreg": (max(0.25 * zero, 5 * FLOOR), math.inf)},
                f"projections are far from Gaussian (SIGReg of a Gaussian: about {FLOOR:.3g})",
                "the learning rate is too small, or SIGReg weighs too little.",
                "raise optimizer.lr, or method.loss.lambda_ to 0.01 to 0.05.",
                after=1000,
            ),
        ]

    @classmethod
    def curves(cls, config: Any, facts: Facts) -> Mapping[str, Curve]:
        """The loss and its two terms."""
        if config.loss.name != LeJEPALoss.name:
            return {}
        zero = _zero(facts)
        return {
            "loss": Curve("falls steeply with SIGReg, then slowly with the prediction"),
            "prediction": Curve("rises while projections spread, then falls slowly; it carries what is learned"),
            "sigreg": Curve(
                "falls within a few hundred steps to between 0.5 and 5 and stays; batch norms in the projector keep "
                "it below the expectation",
                {"expectation of a Gaussian": FLOOR, "all projections 0": zero},
            ),
        }

    @classmethod
    def derived(cls, config: Any, facts: Facts) -> Mapping[str, str]:
        """Over how many rows and along how many directions a view is tested."""
        rows = facts.forward_size * dist.world()
        return {"tested for being Gaussian": f"{rows} rows of each view along {config.directions} directions"}


def _zero(facts: Facts) -> float:
    """SIGReg where all projections are 0."""
    return ZERO * facts.forward_size * dist.world()


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add the method and its loss."""
    registry.add(LeJEPALoss)
    registry.add(LeJEPA)
