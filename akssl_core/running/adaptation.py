"""Which weights a run that went on from others leaves: the start, what it trained, or a mixture of both.

Wortsman et al. 2022 (WiSE-FT, arXiv 2109.01903, section 3): theta = (1 - alpha) start + alpha trained. Mixtures are
compared on images that training has not seen, and one takes the place of the start only if it is surely better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import dist
from ..backbone import Backbone
from ..console import Progress
from ..metrics.features import measure_statistics
from ..metrics.health import of_views
from ..metrics.interval import Interval, interval
from ..rundir.files import jsonable
from ..rundir.schemas import Adaptation, Mixture
from ..training.watch import Probe, Scored
from .plan import Plan
from .samples import view_features

ADAPTATION_FORMAT = "akssl-adaptation-1"
ADAPTED = "adapted.safetensors"
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the trained weights
STATISTICS = ("running_mean", "running_var")  # of batch norms
BATCHES = 16  # of training images, for these
MIDDLE = 0.5  # what is kept where nothing can be compared
BY_ACCURACY = (
    "{k}-NN of held-out images among training images, 95 % intervals; a mixture takes the place of the start only if "
    "the interval of its gain, paired by image, is above 0, and of those the most accurate does. As the best of "
    "several, its accuracy here is a little too high"
)
BY_RANK = (
    "no labels, so no accuracy; the middle is kept unless its features have collapsed, or have less than half of the "
    "start's effective rank"
)


@dataclass(frozen=True)
class Mixtures:
    """A network that takes on one mixture after the other, and what compares them."""

    start: Mapping[str, Tensor]
    trained: Mapping[str, Tensor]
    encoder: Backbone
    """On `device`; its weights are those of the last mixture."""
    plan: Plan
    probe: Probe
    device: torch.device

    @classmethod
    def between(
        cls, start: Mapping[str, Tensor], trained: Backbone, plan: Plan, probe: Probe, device: torch.device
    ) -> Mixtures:
        """Of the start and a trained encoder, which is to take them on itself."""
        state = {name: tensor.clone() for name, tensor in trained.export_state().items()}
        return cls({name: start[name].to(device) for name in state}, state, trained, plan, probe, device)

    @torch.no_grad()
    def take(self, share: float) -> None:
        """Take on a mixture. The start is as it was, to the bit; batch norms of others get statistics of their own."""
        state = mixed(self.start, self.trained, share) if share else self.start
        for name, tensor in self.encoder.export_state().items():
            tensor.copy_(state[name])
        if share:
            plan = self.plan
            measure_statistics(self.encoder, plan.images, plan.preprocess, batches=BATCHES, device=self.device)

    def judged(self) -> Scored:
        """The numbers of the mixture that was taken on, in the main process; the others share the work."""
        found = self.probe.encoder_scores(self.encoder, self.device)
        if not dist.is_main():
            return found
        self.encoder.eval()
        images, plan = self.probe.queries, self.plan
        views = of_views(
            view_features(self.encoder, images, plan.augmentation, seed=plan.spec.seed, device=self.device)
        )
        return found._replace(numbers={**found.numbers, **views.numbers})


def choose(mixtures: Mixtures) -> Adaptation | None:
    """Compare all mixtures and take on the one to keep; all processes take part, and the main one knows why."""
    tried = {}
    with Progress(len(SHARES), "mixture") as progress:
        for share in SHARES:
            mixtures.take(share)
            tried[share] = mixtures.judged()
            progress.update()
    found = chosen(tried, k=mixtures.probe.spec.k) if dist.is_main() else None
    mixtures.take(float(dist.from_main("" if found is None else str(found.kept))))
    return found


def mixed(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 - share) start + share trained; counters and statistics of batch norms are those of the trained weights."""
    return {
        name: torch.lerp(start[name], tensor, share)
        if tensor.is_floating_point() and not name.endswith(STATISTICS)
        else tensor
        for name, tensor in trained.items()
    }


# -- the choice -----------------------------------------------------------------------------------
def chosen(tried: Mapping[float, Scored], *, k: int) -> Adaptation:
    """Which of the mixtures, by their shares from the start on, is kept, and the evidence."""
    right = {share: 100 * one.right.double() for share, one in tried.items() if one.right is not None}
    gains = {share: interval((of - right[0.0])[None], least=-100, most=100) for share, of in right.items() if share}
    rows = {share: {"share": share, **one.numbers} for share, one in tried.items()}
    for share, of in right.items():
        known = interval(of[None], least=0, most=100)
        rows[share] |= {"knn_low": known.low, "knn_high": known.high}
    for share, gain in gains.items():
        rows[share] |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
    kept, answer = by_accuracy(right, gains) if right else by_rank(tried)
    return Adaptation(
        format=ADAPTATION_FORMAT,
        kept=kept,
        answer=answer,
        how=BY_ACCURACY.format(k=k) if right else BY_RANK,
        mixtures=[Mixture.model_validate(jsonable(row)) for row in rows.values()],
    )


def by_accuracy(right: Mapping[float, Tensor], gains: Mapping[float, Interval]) -> tuple[float, str]:
    """The share that is kept and why, by answers (Q,) of 0 and 100 and by gains over the start."""
    better = [share for share, gain in gains.items() if gain.low > 0]
    kept = max(better, key=lambda share: float(right[share].mean()), default=0.0)
    accuracy, of = float(right[kept].mean()), f"on {len(right[kept])} images held out of training"
    best = kept or max(gains, key=lambda share: gains[share].mean)
    gain = gains[best]
    points = f"{gain.mean:+.1f} points [{gain.low:+.1f}, {gain.high:+.1f}]"
    if kept:
        what = "What was trained" if kept == 1 else f"A mixture, {kept:.0%} of what was trained and the rest the start,"
        return kept, f"{what} is kept: k-NN {accuracy:.1f} % {of}, {points} against the start."
    return kept, (
        f"The start is kept: k-NN {accuracy:.1f} % {of}, and nothing is surely above it; the best is {best:.0%} of "
        f"what was trained, {points}."
    )


def by_rank(tried: Mapping[float, Scored]) -> tuple[float, str]:
    """The share that is kept where there are no labels, and why: the middle, if its features are sound."""
    ranks = tried[MIDDLE].numbers["rankme"], tried[0.0].numbers["rankme"]
    told = f"effective rank {ranks[0]:.3g}, of the start {ranks[1]:.3g}"
    if tried[MIDDLE].verdict == "healthy" and ranks[0] >= ranks[1] / 2:
        return MIDDLE, (
            f"The middle between the start and what was trained is kept: its features are sound ({told}). Without "
            "labels nothing tells whether it is better than the start."
        )
    return 0.0, f"The start is kept: training has taken directions from the features ({told})."
