"""Rules about the images, their labels and their views, before a run starts."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from .base import Evidence, PlannedRun, before_run

FEWEST_IMAGES = 1000
COPIES, BLANKS = 0.02, 0.02  # shares of the sample
FEWEST_OF_A_CLASS = 5
MOST_OF_A_CLASS = 0.6  # share
UNLIKE = 20.0  # largest class over the smallest
FLAT = 2.0  # standard deviation of uint8 values
SMALLEST_CROP = 6.0  # px of the source, that a view is enlarged from


def _classes(run: PlannedRun) -> Tensor | None:
    """How many images each class that occurs has; None where nothing is labelled."""
    pair = run.plan.source.probe()
    labels = pair[0].labels if pair else run.plan.images.labels
    if labels is None or not bool((labels >= 0).any()):
        return None
    counts = labels[labels >= 0].bincount()
    return counts[counts > 0]


@before_run(
    cause="a method that tells images apart learns little from few of them.",
    cure="use more images, or start from a backbone that was trained on more.",
)
def few_images(run: PlannedRun) -> Evidence:
    """Fewer than 1000 training images."""
    count = len(run.plan.images)
    return f"{count} training images." if count < FEWEST_IMAGES else None


@before_run(
    cause="each batch holds most of the images, so that steps hardly differ and negatives repeat.",
    cure="use a smaller batch, or more images.",
)
def batch_of_most_images(run: PlannedRun) -> Evidence:
    """An epoch of fewer than four steps."""
    size, count = run.plan.spec.train.batch_size or 1, len(run.plan.images)
    return f"a batch of {size} from {count} images." if count < 4 * size else None


@before_run(
    cause="copies are each other's negatives, and a probe may meet its answers in the bank.", cure="remove the copies."
)
def duplicate_images(run: PlannedRun) -> Evidence:
    """Images that occur several times, in a sample of 1000."""
    pixels = run.pixels
    seen = {hashlib.blake2b(image.numpy().tobytes() + bytes(str(image.shape), "ascii")).digest() for image in pixels}
    copies = len(pixels) - len(seen)
    return f"{copies} of {len(pixels)} images are copies of others." if copies > COPIES * len(pixels) else None


@before_run(cause="an image of one colour shows nothing.", cure="remove them, or look at how they were made.")
def blank_images(run: PlannedRun) -> Evidence:
    """Images of one colour, in a sample of 1000."""
    pixels = run.pixels
    blank = sum(float(image.float().flatten(1).std(1, correction=0).max()) < FLAT for image in pixels)
    return f"{blank} of {len(pixels)} images are of one colour." if blank > BLANKS * len(pixels) else None


@before_run(
    cause="saturation and hue change nothing in gray images, so that views differ less than they seem to.",
    cure="use one channel, or raise brightness, contrast and the range of the crops.",
)
def gray_images_in_color(run: PlannedRun) -> Evidence:
    """Gray images that are stored with three channels."""
    if run.plan.image.channels != 3:
        return None
    pixels = run.pixels
    gray = all(bool((image[:1] == image).all()) for image in pixels)
    return f"all of {len(pixels)} images are gray, in 3 channels." if gray else None


@before_run(
    cause="colour operations need 3 channels; without them views differ less than the method expects.",
    cure="set them to 0 to say that you know, and make crops smaller or blur and brightness stronger.",
)
def color_left_out(run: PlannedRun) -> Evidence:
    """Colour operations that were asked for and cannot act on these images."""
    return next((f"{note}." for note in run.plan.augmentation.notes if note.startswith("left out")), None)


@before_run(
    cause="far larger than the images, a view is blur; far smaller, it has lost what the images show.",
    cure="use an --image-size near the images' own.",
)
def size_far_from_the_images(run: PlannedRun) -> Evidence:
    """Views more than twice as large as the images, or less than a quarter."""
    own, size = run.plan.source.natural_size, run.plan.image.size
    return f"views of {size} px from images of about {own} px." if size > 2 * own or size < own / 4 else None


@before_run(
    cause="such a view is a fraction of one patch, the rest is padding.",
    cure="use a smaller backbone.patch_size, or larger views.",
)
def view_smaller_than_a_patch(run: PlannedRun) -> Evidence:
    """Views that do not hold four patches of the backbone."""
    patch = getattr(run.plan.backbone, "patch_size", None)
    small = [group for group in run.plan.augmentation.groups() if isinstance(patch, int) and group.size < 2 * patch]
    return f"'{small[0].name}' views of {small[0].size} px, patches of {patch} px." if small else None


@before_run(
    cause="a crop of so few pixels, enlarged, shows a colour and no object.",
    cure="raise the smaller number of the views' scale.",
)
def tiny_crops(run: PlannedRun) -> Evidence:
    """Crops of fewer than 6 x 6 px of the image."""
    own = min(run.plan.source.natural_size, run.plan.image.size)
    transforms = [one for group in run.plan.augmentation.groups() for one in group.transforms]
    policies = [policy for one in transforms if (policy := getattr(one, "policy", None)) is not None]
    least = min((policy.scale[0] for policy in policies), default=1.0)
    side = own * math.sqrt(least)
    return f"a scale of {least:g} leaves {side:.1f} of {own} px." if side < SMALLEST_CROP else None


@before_run(
    cause="views that are all the same cannot teach what to ignore.",
    cure="use the recipe's augmentation, or lower the smaller number of scale.",
)
def views_all_alike(run: PlannedRun) -> Evidence:
    """Two views of an image that never differ."""
    groups = {group.name: group for group in run.plan.augmentation.groups()}
    if "global" not in groups or len(groups["global"].transforms) < 2:
        return None
    from ..draws import Draws

    index = torch.arange(min(8, len(run.plan.images)))
    views = run.plan.augmentation(run.plan.images.fetch(index.tolist()), Draws.of(run.plan.spec.seed, 0, index))
    first, second = views["global"][:2]
    return f"the two global views of {len(index)} images are equal." if torch.equal(first, second) else None


@before_run(cause="k-NN can only be right, whatever the features.", cure="give data with two or more classes.")
def one_class(run: PlannedRun) -> Evidence:
    """Labels that are all the same."""
    counts = _classes(run)
    return f"all {int(counts.sum())} labels are the same." if counts is not None and len(counts) == 1 else None


@before_run(
    cause="accuracy then tells of the largest class alone.",
    cure="compare scores with the share of the largest class, or balance the labelled images.",
)
def unbalanced_classes(run: PlannedRun) -> Evidence:
    """A class with most of the labels, or twenty times as many as another."""
    counts = _classes(run)
    if counts is None or len(counts) < 2:
        return None
    share, ratio = float(counts.max() / counts.sum()), float(counts.max() / counts.min())
    if share <= MOST_OF_A_CLASS and ratio <= UNLIKE:
        return None
    return f"the largest class has {100 * share:.0f} % of the labels, {ratio:.0f} times the smallest."


@before_run(
    cause="the k nearest cannot all be of a class that has fewer images, so that scores look worse than features are.",
    cure="label more images, or lower evaluate.k.",
)
def few_labels_of_a_class(run: PlannedRun) -> Evidence:
    """A class with fewer labelled images than half of the probe's neighbours."""
    counts, k = _classes(run), run.plan.spec.evaluate.k
    if counts is None or len(counts) < 2 or int(counts.min()) >= max(FEWEST_OF_A_CLASS, k / 2):
        return None
    return f"a class has {int(counts.min())} labelled images, and evaluate.k is {k}."


@before_run(cause="the files are damaged, or of a kind that is not read.", cure="remove or convert them.")
def unreadable_images(run: PlannedRun) -> Evidence:
    """Files that could not be read as images."""
    bad = run.plan.images.unreadable
    return f"{len(bad)} files, {next(iter(bad))} for one." if bad else None
