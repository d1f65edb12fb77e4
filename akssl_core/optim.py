"""Optimizers: which parameters are trained how, the values of each group over time, and state by parameter name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from glob import escape
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from .backbone.base import Backbone, TokenBackbone
from .config.registry import Registry
from .config.schema import Component, Schema
from .dist.sharding import are_whole, share_as
from .errors import ConfigError, RunDirError, did_you_mean, visible
from .hookspecs import hookimpl
from .method import ParamRule
from .schedule import LearningRate, NonNegativeSchedule, Now, Schedule
from .settings import Clip

Group = dict[str, Any]
Denominator = Literal["norm_of_sum", "sum_of_norms"]


class OptimizerConfig(Schema):
    """The settings that every optimizer has."""

    lr: LearningRate = Field(description="learning rate; a plain number falls to zero by a cosine")
    weight_decay: NonNegativeSchedule = Field(description="weight decay; a plain number stays")
    lr_per: int | None = Field(
        None, gt=0, description="images: lr is multiplied by global batch / lr_per; null: lr is used as it is"
    )
    exempt_1d: bool = Field(True, description="biases and norms: no weight decay, no trust ratio")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor of lr from each layer of the backbone to the one below it"
    )
    patch_embed_rate: float = Field(
        1.0, gt=0, le=1, description="further factor of lr for a transformer's patch projection (DINOv2: 0.2)"
    )

    def scale(self, batch_size: int) -> float:
        """The factor of learning rates at a batch of so many images, over all processes."""
        return 1.0 if self.lr_per is None else batch_size / self.lr_per


class Optimizer(Component, ABC):
    """A recipe for an optimizer of torch: its settings, and how to build it over groups of parameters."""

    kind = "optimizer"
    adaptive: ClassVar[bool] = False
    """Whether each weight's step is measured by its own gradients, as transformers need."""
    from_weights: ClassVar[float] = 1.0
    """The share of a recipe's learning rate that a run takes which begins from weights."""

    @abstractmethod
    def build(self, groups: list[Group]) -> torch.optim.Optimizer:
        """An optimizer over the groups that `parameter_groups` has made."""


# -- groups ---------------------------------------------------------------------------------------
def parameter_groups(module: nn.Module, rules: Sequence[ParamRule], config: OptimizerConfig) -> list[Group]:
    """Trainable parameters grouped by how they are trained; each group holds their names under "names".

    Rules combine: factors multiply, the longest freeze and rise win, and one rule is enough for `fixed_lr` or
    `adapt=False`. A parameter that needs no gradient enters no group.

    Raises:
        ConfigError: a rule matches no parameter.
    """
    matching(module, [rule.match for rule in rules], "ParamRule('{}')")
    groups: dict[tuple[Any, ...], Group] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            treatment = _treatment(name, parameter, rules, exempt_1d=config.exempt_1d)
            lr = config.lr.start * treatment["lr_factor"]
            decay = config.weight_decay.start * treatment["weight_decay_factor"]
            before_start = {"params": [], "names": [], "lr": lr, "weight_decay": decay, **treatment}
            group = groups.setdefault(tuple(treatment.values()), before_start)
            group["params"].append(parameter)
            group["names"].append(name)
    return list(groups.values())


def _treatment(name: str, parameter: Tensor, rules: Sequence[ParamRule], *, exempt_1d: bool) -> Group:
    """How one parameter is trained: what its group holds beside the parameters."""
    matching = [rule for rule in rules if fnmatchcase(name, rule.match)]
    if exempt_1d and parameter.ndim <= 1:
        matching.append(ParamRule("*", weight_decay=0.0, adapt=False))
    return {
        "lr_factor": math.prod(rule.lr for rule in matching),
        "weight_decay_factor": math.prod(rule.weight_decay for rule in matching),
        "fixed_lr": any(rule.fixed_lr for rule in matching),
        "adapt": all(rule.adapt for rule in matching),
        "frozen_epochs": max((rule.frozen_epochs for rule in matching), default=0.0),
        "rise_epochs": max((rule.rise_epochs for rule in matching), default=0.0),
    }


def depth_rules(backbone: Backbone, config: OptimizerConfig) -> list[ParamRule]:
    """A method's rules for its backbone by `layer_decay` and `patch_embed_rate`; none where both are 1.

    The learning rate of a parameter is multiplied by decay^depth with the depth of `Backbone.depths`: 1 for the final
    norm and all heads, the decay itself for the last block (BEiT, arXiv 2106.08254).

    Raises:
        ConfigError: a rate for the patch projection of a network that has none.
    """
    if config.patch_embed_rate != 1 and not isinstance(backbone, TokenBackbone):
        raise ConfigError(
            f"optimizer.patch_embed_rate: {backbone.name} has no projection of patches, which transformers have. "
            "Leave it out; optimizer.layer_decay is for all backbones."
        )
    factors = {name: config.layer_decay**depth for name, depth in backbone.depths().items()}
    if isinstance(backbone, TokenBackbone):
        patches = {id(parameter) for parameter in backbone.patch_embed.parameters()}
        for name, parameter in backbone.named_parameters():
            factors[name] *= config.patch_embed_rate if id(parameter) in patches else 1.0
    return [ParamRule(f"backbone.{escape(name)}", lr=factor) for name, factor in factors.items() if factor != 1]


def matching(module: nn.Module, patterns: Sequence[str], called: str) -> set[str]:
    """The parameters that patterns match; `called` is what a message calls a pattern, with "{}" in its place.

    Raises:
        ConfigError: one matches none; the message has the nearest right name.
    """
    names = [name for name, _ in module.named_parameters()]
    pattern = next((one for one in patterns if not any(fnmatchcase(name, one) for name in names)), None)
    if pattern is None:
        return {name for name in names if any(fnmatchcase(name, one) for one in patterns)}
    paths = {".".join(parts[:i]) for parts in (name.split(".") for name in names) for i in range(1, len(parts) + 1)}
    parts = sorted({name.split(".")[0] for name in names})
    hint = did_you_mean(pattern.removesuffix(".*"), sorted(paths))
    said = called.format(visible(pattern))
    raise ConfigError(f"{said} matches no parameter of {type(module).__name__}.{hint} Its parts: {', '.join(parts)}.")


# -- one step, as the engine calls it -------------------------------------------------------------
def set_group_values(optimizer: torch.optim.Optimizer, config: OptimizerConfig, now: Now, batch_size: int) -> None:
    """Set learning rate and weight decay of every group for the step at `now`; `batch_size` is the global one."""
    scale = config.scale(batch_size)
    lr, decay = config.lr(now), config.weight_decay(now)
    for group in optimizer.param_groups:
        group["lr"] = (config.lr.start if group["fixed_lr"] else lr) * scale * group["lr_factor"] * _risen(group, now)
        group["weight_decay"] = decay * group["weight_decay_factor"]


def _risen(group: Group, now: Now) -> float:
    """The share of its learning rate that a group has reached, from 0 where it is frozen no more."""
    rise = group["rise_epochs"]
    return min(max(now.epoch - group["frozen_epochs"], 0.0) / rise, 1.0) if rise else 1.0


def drop_frozen(optimizer: torch.optim.Optimizer, now: Now) -> None:
    """Drop the gradients of groups that are still frozen, so that the step passes them by."""
    for group in optimizer.param_groups:
        if now.epoch < group["frozen_epochs"]:
            for parameter in group["params"]:
                parameter.grad = None


def clip(optimizer: torch.optim.Optimizer, spec: Clip | None) -> None:
    """Scale gradients down to the norm that `spec` allows; None: leave them.

    A network is what stands before the first dot in a parameter's name.
    """
    if spec is None:
        return
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in _named(optimizer).items():
        if parameter.grad is not None:
            parts.setdefault(name.split(".")[0] if spec.per == "network" else "", []).append(parameter.grad)
    for grads in parts.values():
        norms = torch.stack(torch._foreach_norm(grads))
        factors = (spec.norm / ((norms if spec.per == "parameter" else norms.norm()) + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(grads, list(factors.unbind()) if spec.per == "parameter" else factors)


# -- state by name --------------------------------------------------------------------------------
def _named(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters by name, in the order in which torch numbers them."""
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }


def state_by_name(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors, "parameter/key": it survives another order of the groups."""
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, parameter in _named(optimizer).items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_state_by_name(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Put back what `state_by_name` has returned; the values are copied.

    Raises:
        RunDirError: the state is of a parameter that this optimizer does not train.
    """
    named = _named(optimizer)
    numbers = {name: i for i, name in enumerate(named)}
    by_number: dict[int, dict[str, Tensor]] = {}
    for path, value in state.items():
        name, _, key = path.rpartition("/")
        if name not in named:
            raise RunDirError(
                f"the checkpoint's optimizer trains '{name}', which this run does not.{did_you_mean(name, named)}"
            )
        by_number.setdefault(numbers[name], {})[key] = _laid_out_as(named[name], value)
    optimizer.load_state_dict({"state": by_number, "param_groups": optimizer.state_dict()["param_groups"]})


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy in the parameter's memory layout, which fused kernels take for granted without a check."""
    if value.shape != parameter.shape:
        return value.clone()
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(share_as(parameter, value))


# -- the optimizers -------------------------------------------------------------------------------
class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    name = "sgd"

    class Config(OptimizerConfig):
        """Settings of SGD."""

        lr: LearningRate = Field(LearningRate(start=0.05), description="learning rate")
        weight_decay: NonNegativeSchedule = Field(Schedule(start=1e-4), description="L2 penalty, added to the gradient")
        momentum: float = Field(0.9, ge=0, lt=1, description="share of the last update that is kept")
        nesterov: bool = Field(False, description="look ahead along the momentum")
        exempt_1d: bool = Field(False, description="biases and norms: no weight decay")

    def build(self, groups: list[Group]) -> torch.optim.Optimizer:
        """Torch's SGD in one fused kernel: 2.6 times as fast as `foreach` on a CPU. Shares of parameters have none."""
        config = self.config
        momentum, nesterov = config.momentum, config.nesterov
        fused = True if are_whole(groups) else None  # None: `foreach` on a GPU, which False would turn off too
        optimizer = torch.optim.SGD(groups, lr=config.lr.start, momentum=momentum, nesterov=nesterov, fused=fused)
        if momentum and fused:
            optimizer.register_step_pre_hook(_start_momenta)
        return optimizer


def _start_momenta(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Momenta of zero for parameters without one, which leave the first step as it is.

    The fused kernel fails where only some of a group have one, as after freezing.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                _momentum(optimizer, parameter)


def _momentum(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Tensor:
    """The parameter's momentum, which begins at zero."""
    state = optimizer.state[parameter]
    if state.get("momentum_buffer") is None:
        state["momentum_buffer"] = torch.zeros_like(parameter)
    buffer: Tensor = state["momentum_buffer"]
    return buffer


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

    name = "adamw"
    adaptive = True
    from_weights = 0.3

    class Config(OptimizerConfig):
        """Settings of AdamW."""

        lr: LearningRate = Field(LearningRate(start=5e-4), description="learning rate")
        weight_decay: NonNegativeSchedule = Field(
            Schedule(start=0.05), description="share of each weight lost per step and lr"
        )
        betas: tuple[float, float] = Field((0.9, 0.999), description="decay of the first and the second moment")

    def build(self, groups: list[Group]) -> torch.optim.Optimizer:
        """Torch's AdamW in one fused kernel: 3 times as fast as `foreach` on a CPU, 6 times as the plain loop."""
        config = self.config
        return torch.optim.AdamW(groups, lr=config.lr.start, betas=config.betas, fused=True)


class LARS(Optimizer):
    """SGD whose step per parameter is relative to its norm (You, Gitman and Ginsburg 2017, arXiv 1708.03888).

    As it is: MoCo v3, Barlow Twins, VICReg and BYOL. With `lr_inside_momentum`: SimCLR. With the sum of norms and
    without `exempt_1d`: NVIDIA's LARC as SwAV uses it; `clip_ratio` is the clipping of LARC.
    """

    name = "lars"
    from_weights = 0.3

    class Config(OptimizerConfig):
        """Settings of LARS."""

        lr: LearningRate = Field(LearningRate(start=0.3), description="learning rate")
        weight_decay: NonNegativeSchedule = Field(
            Schedule(start=1e-6), description="L2 penalty, inside the trust ratio"
        )
        momentum: float = Field(0.9, ge=0, lt=1, description="share of the last update that is kept")
        eta: float = Field(1e-3, gt=0, description="trust coefficient: step over weight norm at lr 1")
        lr_inside_momentum: bool = Field(
            False, description="momentum keeps past updates at the learning rate of their own step (SimCLR)"
        )
        denominator: Denominator = Field(
            "norm_of_sum",
            description="what the trust ratio divides by: norm of gradient plus decay, or the sum of both norms (SwAV)",
        )
        clip_ratio: bool = Field(
            False, description="the rate is the smaller of lr and the trust ratio, not their product (LARC)"
        )

    def build(self, groups: list[Group]) -> torch.optim.Optimizer:
        """`LayerwiseSGD` with these settings."""
        own = self.config.model_dump(exclude=set(OptimizerConfig.model_fields))
        return LayerwiseSGD(groups, self.config.lr.start, **own)


class LayerwiseSGD(torch.optim.Optimizer):
    """LARS in its variants, over groups that have "weight_decay" and "adapt".

    For a weight w with gradient g: d = g + weight_decay w, q = eta |w| / |d|, mu = momentum mu + q d,
    w = w - lr mu. The ratio q is 1 where either norm is 0 and in groups without `adapt`. The variants:

    - `lr_inside_momentum`: mu = momentum mu + lr q d, w = w - mu; the same only while the learning rate is;
    - `denominator="sum_of_norms"`: q = eta |w| / (|g| + weight_decay |w| + 1e-8), and 1 where |w| or |g| is 0;
    - `clip_ratio`: min(q / lr, 1) takes the place of q, so that the step's rate is the smaller of lr and q.
    """

    def __init__(
        self,
        groups: list[Group],
        lr: float,
        *,
        momentum: float = 0.9,
        eta: float = 1e-3,
        lr_inside_momentum: bool = False,
        denominator: Denominator = "norm_of_sum",
        clip_ratio: bool = False,
    ) -> None:
        variant = {"lr_inside_momentum": lr_inside_momentum, "denominator": denominator, "clip_ratio": clip_ratio}
        defaults = {"lr": lr, "weight_decay": 0.0, "adapt": True, "momentum": momentum, "eta": eta, **variant}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step_group(group, parameters)

    def _step_group(self, group: Group, parameters: list[Tensor]) -> None:
        grads = [p.grad for p in parameters if p.grad is not None]
        update = list(torch._foreach_add(grads, parameters, alpha=group["weight_decay"]))
        if group["adapt"]:
            torch._foreach_mul_(update, _trust_ratios(group, parameters, grads, update))
        momenta = [_momentum(self, p) for p in parameters]
        inside, outside = (group["lr"], 1.0) if group["lr_inside_momentum"] else (1.0, group["lr"])
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, update, alpha=inside)
        torch._foreach_add_(parameters, momenta, alpha=-outside)


def _trust_ratios(group: Group, weights: list[Tensor], grads: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
    """The trust ratio q of each weight, by the group's variant."""
    weight_norms = torch.stack(torch._foreach_norm(weights))
    if group["denominator"] == "norm_of_sum":
        norms = denominators = torch.stack(torch._foreach_norm(updates))
    else:
        norms = torch.stack(torch._foreach_norm(grads))
        denominators = norms + group["weight_decay"] * weight_norms + 1e-8
    ratios = group["eta"] * weight_norms / denominators
    if group["clip_ratio"]:
        ratios = (ratios / group["lr"]).clamp(max=1.0)
    both = (weight_norms > 0) & (norms > 0)
    return list(ratios.where(both, torch.ones_like(ratios)).unbind())


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Register the core's optimizers."""
    for component in (SGD, AdamW, LARS):
        registry.add(component)
