"""Checks of a method's state: where it lives, when it moves, and that a stopped run goes on bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load, save

from ..backbone import Backbone
from ..method import Method
from ..nn import EMA
from ..running.artefacts import of_method
from ..schedule import Now
from .check import NotApplicable, expect, few, rule
from .subject import MethodSubject, changed, copied, disturb_global_randomness

STEPS, CUT = 10, 6  # of a run that is stopped inside its second epoch
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of batch norms, which follow forward passes


@rule("method", cure="move slow state in after_step: use EMA, Queue, Center, Prototypes or a StepState of your own")
def forward_moves_no_state(subject: MethodSubject) -> None:
    """A forward pass, with its backward pass, moves no state but the statistics of batch norms."""
    at = subject.ready()
    optimizer = at.sgd(0.01)
    for seed in range(2):
        optimizer.step()  # from the second time on, weights and their slow copies differ
        before = copied(at.method.state_dict())
        at.backward(at.batch(seed))
        other = [n for n in changed(before, at.method.state_dict()) if not n.endswith(STATISTICS)]
        expect(not other, f"moved by the forward pass: {few(other)}")
        at.move()


@rule("method", cure="clear in skip_step() what forward passes leave for after_step")
def skipped_steps_leave_nothing(subject: MethodSubject) -> None:
    """After a step that fp16 skips, slow state goes on as if that step had not been."""
    at = subject.ready()
    start, later = copied(at.method.state_dict()), []
    for skipped in (False, True):
        if skipped:
            at.method.load_state_dict(start)
            at.terms(at.batch(1))
            at.forget_pushed()
            at.method.load_state_dict(start)  # statistics of batch norms have followed the pass
        at.terms(at.batch(2))
        at.move()
        later.append(copied(at.method.state_dict()))
    expect(not (other := changed(*later)), f"moved by what a skipped step left: {few(other)}")


@rule(
    "method",
    cure="build the copy with EMA(config.momentum, backbone=..., projector=...) and move nothing of it by hand",
)
def slow_copies_follow_their_momentum(subject: MethodSubject) -> None:
    """Slow copies start as they should and follow by their momentum, exactly."""
    at = subject.ready()
    at.now = Now(0, 4, 16)
    copies = [module for module in at.method.modules() if isinstance(module, EMA)]
    if not copies:
        raise NotApplicable("the method has no slow copy (EMA)")
    at.backward()
    at.sgd(0.1).step()
    before = [copied(dict(slow.named_parameters())) for slow in copies]
    at.move()
    for slow, old in zip(copies, before, strict=True):
        momentum = slow.momentum(at.now)
        for name, p in slow.named_parameters():
            part, _, rest = name.partition(".")
            fast = slow._tracked[part].get_parameter(rest)
            expected = momentum * old[name] + (1 - momentum) * fast
            gap = (p - expected).abs().max().item()
            expect(gap < 1e-6, f"{name} is {gap:.2g} from momentum {momentum:g} x old + rest x new")


@rule("method", cure="make slow copies with EMA(momentum, backbone=..., head=...), after all layers are initialised")
def slow_copies_begin_as_exact_ones(subject: MethodSubject) -> None:
    """Slow copies begin as exact copies, heads and buffers too, so those of a run from weights have these weights."""
    method = subject.plan().method
    copies = [module for module in method.modules() if isinstance(module, EMA)]
    if not copies:
        raise NotApplicable("the method has no slow copy (EMA)")
    for slow in copies:
        for part, fast in slow._tracked.items():
            other = changed(copied(fast.state_dict()), slow.get_submodule(part).state_dict())
            expect(not other, f"not as what they copy: {few([f'{part}.{name}' for name in other])}")


@rule("method", cure="look at self.training before remembering anything, and leave requires_grad alone")
def evaluation_changes_nothing(subject: MethodSubject) -> None:
    """Features and losses in evaluation mode leave weights, statistics, queues and flags as they are."""
    at = subject.ready()
    method, batch = at.method, at.batch()
    at.backward(batch)
    at.move()
    before, flags = copied(method.state_dict()), [p.requires_grad for p in method.parameters()]
    method.eval()
    with torch.no_grad():
        method.encoder(batch.views.all()[0])
        at.terms(batch)
    at.now = at.now.next()
    at.move()
    followers = tuple(f"{name}." for name, module in method.named_modules() if isinstance(module, EMA))
    other = [n for n in changed(before, method.state_dict()) if not n.startswith(followers or ("\0",))]
    expect(not other, f"changed by an evaluation: {few(other)}")
    expect(flags == [p.requires_grad for p in method.parameters()], "an evaluation changed requires_grad")


@rule("method", cure="initialise your own layers alone, not every module you can reach")
def construction_leaves_the_backbone_alone(subject: MethodSubject) -> None:
    """Building the method leaves the weights of the backbone it is given as they are."""
    plan = subject.plan()
    backbone = plan.backbone
    before, identity = copied(backbone.state_dict()), [id(p) for p in backbone.parameters()]
    method = subject.component(plan.spec.method.config, backbone)
    other = changed(before, backbone.state_dict())
    expect(not other, f"changed by the constructor: {few(other)}")
    expect(identity == [id(p) for p in backbone.parameters()], "the constructor replaced parameters of the backbone")
    expect(isinstance(method.encoder, Backbone), f"encoder is a {type(method.encoder).__name__}, not a Backbone")


@rule(
    "method",
    cure="register a module under one attribute, buffers with register_buffer, and share no storage between them",
)
def state_goes_through_safetensors(subject: MethodSubject) -> None:
    """All state goes through safetensors and back, each tensor once."""
    plan, fresh = subject.plan(), subject.plan(seed=1)
    state = plan.method.state_dict()
    places: dict[int, str] = {}
    for name, tensor in state.items():
        twin = places.setdefault(tensor.data_ptr(), name) if tensor.numel() else name
        expect(twin == name, f"{name} and {twin} share their memory")
    fresh.method.load_state_dict(load(save(copied(state))))
    other = changed(copied(state), fresh.method.state_dict())
    expect(not other, f"not the same after a round trip: {few(other)}")


@rule(
    "method", cure="keep all state in buffers or parameters, take time from `now`, and random numbers from batch.draws"
)
def resume_is_exact(subject: MethodSubject) -> None:
    """A run stopped inside an epoch and continued from its checkpoint ends bit for bit like an unbroken one."""
    length: dict[str, Any] = {"train": {"steps": STEPS}}
    whole = subject.train(subject.plan(**length))
    half = subject.train(subject.plan(**length), stop_at=CUT)
    disturb_global_randomness(1)
    rest = subject.train(subject.plan(**length), resumed=half)
    after = [n for n, (a, b) in enumerate(zip(whole.losses[CUT:], rest.losses, strict=True), CUT + 1) if a != b]
    expect(not after, f"stopped after step {CUT} and continued, the loss of step {after[0] if after else 0} is another")
    other = changed(whole.state, rest.state)
    expect(not other, f"other bits after the end: {few(other)}")


@rule(
    "method",
    cure="draw from batch.draws or batch.shared_draws inside the step, never with random or numpy",
)
def a_seed_decides_everything(subject: MethodSubject) -> None:
    """The same seed gives the same numbers, whatever other generators stand at; another seed gives others."""
    length: dict[str, Any] = {"train": {"steps": 4}}
    runs = []
    for noise in (0, 1):
        disturb_global_randomness(noise)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(noise)
            runs.append(subject.train(subject.plan(**length)))
    expect(runs[0].same(runs[1]), f"two runs of one seed: losses {runs[0].losses} and {runs[1].losses}")
    other = subject.train(subject.plan(seed=1, **length))
    expect(other.losses != runs[0].losses, "another seed gives the same losses")


@rule("method", cure="let encoder return the backbone, or the slow copy's backbone")
def encoder_can_be_exported(subject: MethodSubject) -> None:
    """The network that is exported maps images to features of the width it tells, and loads into a fresh one."""
    at, fresh = subject.ready(), subject.plan(seed=1)
    subject.train(at.plan, stop_at=2)
    encoder, images = at.method.encoder.eval(), at.batch().views.all()[0]
    encoder.to(memory_format=torch.contiguous_format)  # as the fresh one is laid out
    with torch.no_grad():
        features = encoder(images)
        expect(
            tuple(features.shape) == (len(images), encoder.embed_dim),
            f"features are {tuple(features.shape)} where embed_dim is {encoder.embed_dim}",
        )
        other = fresh.method.encoder.eval()
        other.load_state_dict(load(save({n: t.contiguous() for n, t in encoder.export_state().items()})))
        gap = float((other(images) - features).abs().max())
    expect(gap == 0, f"a fresh network with the exported weights gives features that differ by {gap:.2g}")


@rule(
    "method",
    cure="return Artefacts(pictures={'name': (B, C, H, W) in [0, 1]}, numbers={'name': a finite number}) from "
    "artefacts, drawn from batch.draws, and move no state there",
)
def artefacts_can_be_kept(subject: MethodSubject) -> None:
    """What a method shows at its end can be kept, is the same each time, and costs its state nothing."""
    if subject.component.artefacts is Method.artefacts:
        raise NotApplicable("the method shows nothing of its own at its end")
    at = subject.ready()
    before, found = copied(at.method.state_dict()), []
    for seed in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found.append(of_method(at.method, at.batch(), at.now))
    expect(not found[0].problems, f"cannot be kept: {'; '.join(found[0].problems)}")
    other = [*changed(found[0].pictures, found[1].pictures), *changed(found[0].tensors, found[1].tensors)]
    expect(not other and found[0].numbers == found[1].numbers, f"another each time: {few(other) or 'numbers'}")
    moved = changed(before, at.method.state_dict())
    expect(not moved, f"changed by artefacts: {few(moved)}")
