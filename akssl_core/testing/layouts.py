"""Checks of layouts: two processes, or two micro-batches, train like one batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from .. import dist
from ..data import Batch
from ..loss import Loss
from ..method import Method
from ..nn import StepState
from ..schedule import Now
from .check import NotApplicable, expect, few, rule
from .ranks import ThreadRank, on_ranks
from .subject import MethodSubject, Ready, backward, moved

Steps = list[dict[str, Tensor]]  # of each step what there is to compare, by name
KINDS = ("loss", "gradient", "state")
CLOSE = 1e-3  # relative difference that float32 sums in another order may grow to in three steps
NOISE = 1e-2  # of the step's largest gradient: a gradient far smaller (a bias before a batch norm) is sums' rounding
LONGEST = 4096  # rows that are compared with each other
DRAW = "draw from batch.draws (a row an image) or batch.shared_draws (one for all): uniform('name', n), normal(...)"
ORDER = "push view by view, queue.push(k1) and queue.push(k2): the order of cat(views) depends on the layout"
KEPT = "average what is remembered over all ranks before it is kept: dist.mean for statistics, dist.gather for rows"
ROWS = "compare rows of all ranks: akssl_core.dist.gather for rows, dist.mean for statistics, inside the loss"
CARRIED = "let gradients pass between ranks: dist.gather carries them, a detached copy does not"


@rule("method", cure=ROWS)
def two_processes_are_one(subject: MethodSubject) -> None:
    """Two processes with half of the batch each give the loss, gradients and state of one with all of it."""
    at = subject.ready()
    if not at.method.shared_batch_norm:
        _still_norms(at.method)
    batches = _batches(at)
    copies = [copy.deepcopy(at.method) for _ in range(2)]
    whole = _several_steps(at.method, batches, at.now)

    def of_rank(rank: ThreadRank) -> Steps:
        with dist.shared_statistics(copies[rank.rank]):
            parts = [_halves(batch)[rank.rank] for batch in batches]
            return _several_steps(copies[rank.rank], parts, at.now)

    mean = [one | {"loss": (one["loss"] + other["loss"]) / 2} for one, other in zip(*on_ranks(2, of_rank), strict=True)]
    cures = dict(zip(KINDS, (ROWS, CARRIED, KEPT), strict=True))
    _expect_close(mean, whole, "between one process and two", cures)


@rule("method", cure="say accumulates = False, the default, where rows of a batch are compared with each other")
def micro_batches_are_one_batch(subject: MethodSubject) -> None:
    """A method that says `accumulates` has the loss, gradients and state of the whole batch in two micro-batches."""
    if not subject.component.accumulates:
        raise NotApplicable("the method does not say accumulates = True, so train.accumulate is refused")
    at = subject.ready()
    _still_norms(at.method)
    batches = _batches(at)
    parts = copy.deepcopy(at.method)
    whole = _several_steps(at.method, batches, at.now)
    halves = _several_steps(parts, batches, at.now, micro=2)
    _expect_close(halves, whole, "between one batch and two micro-batches", {})


def _batches(at: Ready) -> list[Batch]:
    """Batches for a comparison of layouts; what a step draws must follow from them. Dropout is switched off."""
    for module in at.method.modules():
        if not any(module.children()) and not isinstance(module, StepState | Loss | _BatchNorm):
            module.eval()
    batches = [at.batch(seed) for seed in range(3)]
    start = copy.deepcopy(at.method.state_dict())
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        at.method(batches[0], at.now)
        drawn = not torch.equal(before, torch.get_rng_state())
    expect(not drawn, "the step draws from torch's global generator, which is another in each process", DRAW)
    at.method.load_state_dict(start)
    at.forget_pushed()
    return batches


def _halves(batch: Batch) -> tuple[Batch, Batch]:
    return batch.part(0, len(batch) // 2), batch.part(len(batch) // 2, len(batch))


def _several_steps(method: Method, batches: Sequence[Batch], now: Now, *, micro: int = 1) -> Steps:
    """Loss, gradients (averaged as DDP does) and state of each of some steps in one or two micro-batches."""
    steps = []
    trained = {name for name, p in method.named_parameters() if p.requires_grad}  # and follow from their gradients
    for batch in batches:
        method.zero_grad()
        losses = []
        for part in [batch] if micro == 1 else _halves(batch):
            losses.append(method(part, now)["loss"] / micro)
            backward(losses[-1])
        found = {"loss": torch.stack(losses).sum().detach()}
        with torch.no_grad():
            for name, p in method.named_parameters():
                if p.grad is not None:
                    p.grad = dist.mean(p.grad)
                    found[f"gradient of {name}"] = p.grad.clone()
                    p.sub_(p.grad / p.grad.norm().clamp(min=1), alpha=0.05)
        moved(method, now)
        state = {name: t for name, t in method.state_dict().items() if t.is_floating_point() and name not in trained}
        steps.append(found | {f"state {name}": t.detach().clone() for name, t in state.items()})
    return steps


def _expect_close(found: Steps, wanted: Steps, where: str, cures: Mapping[str, str]) -> None:
    """Fail with all that differs in the first step in which anything does, each kind with its cure.

    `cures` are those of a loss, a gradient and a state; a kind follows from the one before.
    """
    for step, (ours, expected) in enumerate(zip(found, wanted, strict=True)):
        gaps = _gaps(ours, expected)
        turned = [name for name in gaps if _in_other_order(ours[name], expected[name])]
        kinds = [[name for name in gaps if name.startswith(kind) and name not in turned] for kind in KINDS]
        told = [few([f"{name} by {gaps[name]:.2g}" for name in names]) for names in kinds if names]
        told += [f"{', '.join(turned)} (the same rows in another order)"] if turned else []
        helps = [cures[kind] for kind, names in zip(KINDS, kinds, strict=True) if names and cures][:1]
        cure = "; ".join([*helps, *([ORDER] if turned else [])])
        expect(not told, f"in step {step} these differ {where}, in parts of their size: {'; '.join(told)}", cure)


def _gaps(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, float]:
    """What differs by more than rounding, and by how much of its size."""
    largest = max((float(t.abs().max()) for name, t in wanted.items() if name.startswith("gradient")), default=0.0)
    gaps = {}
    for name, expected in wanted.items():
        least = NOISE * largest if name.startswith("gradient") else 1e-3
        gap = float((found[name] - expected).abs().max() / expected.abs().max().clamp(min=max(least, 1e-12)))
        if not gap < CLOSE:
            gaps[name] = gap
    return gaps


def _in_other_order(found: Tensor, wanted: Tensor) -> bool:
    """Whether the rows that are not in their place, or most of them, are in another."""
    if wanted.ndim != 2 or not 1 < len(wanted) <= LONGEST:
        return False
    near = CLOSE * float(wanted.norm(dim=1).max())
    elsewhere = torch.cdist(found, wanted).amin(1)[(found - wanted).norm(dim=1) > near]
    return len(elsewhere) > 0 and float((elsewhere < near).float().mean()) > 0.5


def _still_norms(method: Method) -> None:
    """Let batch norms use fixed statistics: those of a half batch are others, and no fault."""
    for module in method.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
