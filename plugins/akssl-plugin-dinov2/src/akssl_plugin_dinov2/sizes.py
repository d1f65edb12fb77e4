"""What DINOv2 chooses for a data set and a run, what it warns of, and what its curves look like."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from akssl_core import Choice, ConfigError, Curve, Facts, Landmark

OUTPUTS_PER_TARGET = 32  # at most, of a step; published runs have 16 to 21
FEWEST_NEIGHBOURS = 4  # images among which one looks for the nearest


def patch_outputs(config: Any) -> int:
    """Outputs that patches have."""
    outputs: int = config.out_dim if config.shared_head else config.patch_out_dim
    return outputs


def choose(config: Any, facts: Facts) -> Mapping[str, Choice]:
    """Outputs that the images can fill, a warm-up that ends within the run, last layers that are trained."""
    choices = {
        "out_dim": facts.outputs(config.out_dim),
        "patch_out_dim": facts.outputs(config.patch_out_dim),
        "teacher_temperature": facts.within_run(config.teacher_temperature),
        "freeze_last_layer_epochs": facts.part_of_run(config.freeze_last_layer_epochs),
    }
    return {name: choice for name, choice in choices.items() if choice}


def check(config: Any, facts: Facts) -> list[str]:
    """What lets the outputs collapse, or leaves a part of the method out.

    Raises:
        ConfigError: batch norms in a head that patches share.
    """
    if config.shared_head and (config.head_batch_norm or config.projection_batch_norm):
        raise ConfigError(
            "method.shared_head: batch norms (head_batch_norm, projection_batch_norm) are for class tokens alone, and "
            "patches share their head. Set method.shared_head=false, or leave the batch norms out."
        )
    return [*_of_targets(config, facts), *_of_neighbours(config, facts), *_of_masks(config, facts)]


def _of_targets(config: Any, facts: Facts) -> Iterator[str]:
    hottest = max(config.teacher_temperature.corners)
    student = getattr(config.loss.config, "student_temperature", None)  # another loss may have none
    if student is not None and hottest >= student:
        yield (
            f"method.teacher_temperature: it reaches {hottest:g}, and the student's is {student:g} "
            "(method.loss.student_temperature). Targets would be flatter than the predictions, so that all outputs "
            "collapse to uniform. Keep it below the student's; 0.04 to 0.07 is usual."
        )
    if (config.freeze_last_layer_epochs or 0) >= facts.epochs:
        yield (
            f"method.freeze_last_layer_epochs: {config.freeze_last_layer_epochs:g} of {facts.epochs:.3g} epochs, so "
            "that the last layers are never trained. Use a tenth of them, or null if that is meant."
        )
    rows = 2 * facts.batch_size
    if config.targets == "sinkhorn" and rows * OUTPUTS_PER_TARGET < config.out_dim:
        yield (
            f"method.out_dim: {rows} targets of a step are balanced over {config.out_dim} outputs, of which most get "
            f"none. Use {rows * OUTPUTS_PER_TARGET} outputs or fewer, a larger batch, or method.targets=center; "
            "published runs have 16 to 21 outputs for each target."
        )


def _of_neighbours(config: Any, facts: Facts) -> Iterator[str]:
    group = getattr(config.koleo.config, "group", None) or facts.batch_size
    among = min(group, facts.batch_size)
    if config.koleo_weight and among < FEWEST_NEIGHBOURS:
        yield (
            f"method.koleo_weight: the nearest of {among} images is hardly near. Expected {FEWEST_NEIGHBOURS} images "
            "or more (train.batch_size, method.koleo.group); 0 leaves this loss out."
        )


def _of_masks(config: Any, facts: Facts) -> Iterator[str]:
    tokens = math.prod(facts.tokens or (1, 1))
    if config.mask_chance and int(config.mask_ratio[1] * tokens) == 0:
        yield (
            f"method.mask_ratio: up to {config.mask_ratio[1]:g} of {tokens} patches are none, so that nothing is ever "
            "hidden. Use smaller patches (backbone.patch_size) or larger views (train.image_size)."
        )


def landmarks(config: Any) -> Sequence[Landmark]:
    """Targets that are even or certain whatever is seen, of crops or of patches, and class tokens that stay alike."""
    hottest, found = max(config.teacher_temperature.corners), []
    for whose, term, loss, outputs in (
        ("crops", "teacher_entropy", "cls_loss", config.out_dim),
        ("patches", "patch_entropy", "patch_loss", patch_outputs(config)),
    ):
        even = math.log(outputs)
        found += [
            Landmark(
                "collapsed",
                {term: (0.998 * even, math.inf)},
                f"the targets of {whose} are even, log {outputs} = {even:.4g}, whatever the teacher sees",
                f"its outputs are all alike, or its temperature, which reaches {hottest:g}, is not sharp.",
                "lower optimizer.lr, set backbone.drop_path to 0, or lower method.teacher_temperature to 0.04 to 0.07.",
            ),
            Landmark(
                "collapsed",
                {term: (0.0, 0.01 * even), loss: (0.0, 0.02 * even)},
                f"one output wins for all {whose}",
                "nothing holds the outputs back, as centres do that follow their means.",
                "use method.targets=sinkhorn, a slower teacher (method.momentum), or a smaller optimizer.lr.",
            ),
        ]
    return [
        *found,
        Landmark(
            "not learning",
            {"koleo": (5.0, math.inf)},
            "the class tokens of all images are the same but for their last digits",
            "the learning rate is too small, or backbone.layer_scale, under SGD, keeps branches where they begin.",
            "raise optimizer.lr under AdamW, or leave out backbone.layer_scale.",
            after=200,
        ),
    ]


def curves(config: Any) -> Mapping[str, Curve]:
    """The parts of the loss and the entropies of the targets, beside log K."""
    even, of_patches = math.log(config.out_dim), math.log(patch_outputs(config))
    return {
        "loss": Curve("falls, may rise for a while as the targets get sharper, then falls; it does not tell how good"),
        "cls_loss": Curve("falls from even outputs and stays above teacher_entropy", {"even outputs": even}),
        "patch_loss": Curve(
            "falls from about the chance of a mask times even outputs, may rise, then falls",
            {"even outputs": config.mask_chance * of_patches},
        ),
        "koleo": Curve("falls below 0 as the images of a crop are spread out", {"two orthogonal images": -0.3466}),
        "teacher_entropy": Curve("falls below even outputs and stays above 0", {"even outputs": even}),
        "patch_entropy": Curve("falls below even outputs and stays above 0", {"even outputs": of_patches}),
        "patch_agreement": Curve("rises well above chance", {"chance": 1 / patch_outputs(config)}),
        "patch_std": Curve("stays well above 0, where all patches of an image are alike"),
    }


def derived(config: Any, facts: Facts) -> Mapping[str, str]:
    """How many patches are hidden, and how many images and targets of a step there are for each output."""
    tokens, (low, high) = math.prod(facts.tokens or (1, 1)), config.mask_ratio
    return {
        "hidden patches": f"{int(low * tokens)} to {int(high * tokens)} of {tokens}, in {config.mask_chance:.0%} of "
        "the global crops",
        "images per output": f"{facts.images / config.out_dim:.3g} ({config.out_dim} outputs)",
        "targets of a step per output": f"{2 * facts.batch_size / config.out_dim:.3g}",
    }
