"""`akssl eval --protocol segment`: masks of sources and folders, counts of pixels, and intervals over images."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import akssl_core
from akssl_core import ConfigError, DataError
from akssl_core.data.convert import Square
from akssl_core.data.masks import Masked
from akssl_core.data.shapes import TEST, Shapes, ShapesConfig, draw, draw_masks
from akssl_core.evaluation.protocols import System
from akssl_core.evaluation.segment import miou, segment
from akssl_core.evaluation.split import Split, Twice

FEED = akssl_core.Preprocess(8, 3, (0.5,) * 3, (0.25,) * 3, 8)
CPU = torch.device("cpu")


# -- masks ----------------------------------------------------------------------------------------
def test_a_drawn_mask_is_where_the_object_is():
    index = torch.arange(30)
    images, masks = draw(index, 64).float(), draw_masks(index, 64)
    assert masks.shape == (30, 64, 64)
    for number in range(30):
        assert set(masks[number].unique().tolist()) == {0, 1 + number % 10}
        assert 0.1 < float((masks[number] > 0).float().mean()) < 0.6
    # an object's pixels are more alike than those across its outline
    across = (masks[:, :, 1:] > 0) != (masks[:, :, :-1] > 0)
    steps = (images[..., 1:] - images[..., :-1]).abs().sum(1)
    assert steps[across].mean() > 5 * steps[~across].mean()


def test_masks_of_the_source_belong_to_their_images():
    source = Shapes(ShapesConfig(size=20, test_size=10), 16)
    square = Square.of(16, 3)
    bank, queries = source.probe()
    assert torch.equal(bank.subset(torch.tensor([7, 3])).masks([1, 0], square), draw_masks(torch.tensor([3, 7]), 16))
    assert torch.equal(queries.masks([4], square), draw_masks(torch.tensor([4]), 16, split=TEST))
    assert queries.masks([4], Square.of(8, 3)).shape == (1, 8, 8)
    assert akssl_core.TensorImages(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).masks([0], square) is None


@pytest.mark.parametrize(("height", "width"), [(48, 96), (97, 31), (16, 16), (200, 150)])
@pytest.mark.parametrize("size", [16, 112])
def test_masks_are_cut_as_images_are(height, width, size):
    image = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    image[..., height // 3 :, : width // 2] = 255
    square = Square.of(size, 3)
    seen = square(image)[0, 0]
    mask = square.nearest(image[:, 0])[0]
    sure = (seen < 1) | (seen > 254)
    assert sure.float().mean() > 0.8
    assert torch.equal(mask[sure], (seen[sure] > 127).to(torch.uint8) * 255)


@pytest.fixture
def annotated(tmp_path):
    """Twenty photos without classes and, but for the last, masks: left and right half, a margin that counts nowhere."""
    for i in range(20):
        generator = np.random.default_rng(i)
        left = np.arange(16) < 8 + i % 3
        pixels = np.where(left[None, :, None], 40, 200) + generator.integers(-30, 30, (24, 16, 3))
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / f"{i:02}.png")
        mask = np.tile(np.where(left, 3, 7), (24, 1)).astype(np.uint8)
        mask[:, :2] = 255
        (tmp_path / "masks").mkdir(exist_ok=True)
        if i < 19:
            Image.fromarray(mask).save(tmp_path / "masks" / f"{i:02}.png")
    return tmp_path


def test_a_folder_of_masks(finished, annotated, capsys):
    found = akssl_core.evaluate(finished, "segment", data=annotated / "photos", masks=annotated / "masks")
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("segment: ")]
    assert told == [f"segment: {name} is judged" for name in ("trained", "random init", "raw pixels")]
    assert (found.split["train_images"], found.split["test_images"], found.split["classes"]) == (16, 3, 2)
    assert found.split["how"] == "one image in five tests; runs on these data may have trained on it"
    assert found.scores[2].accuracy > 70
    assert [score.system for score in found.scores] == ["trained", "random init", "raw pixels"]
    for score in found.scores:
        assert 0 <= score.low <= score.accuracy <= score.high <= 100
    assert set(found.metrics) == {"segment_miou", "segment_random_init", "segment_raw_pixels"}
    assert "mean IoU" in found.text
    assert found.answer.startswith("Did it help?")
    assert akssl_core.evaluate(finished, "segment", data=annotated / "photos", masks=annotated / "masks") == found


def spoil(annotated, what):
    file = annotated / "masks" / "04.png"
    if what == "colours":
        Image.new("RGB", (16, 24)).save(file)
    elif what == "size":
        Image.new("L", (24, 16)).save(file)
    elif what == "broken":
        file.write_bytes(b"no image")
    elif what == "one class":
        for one in (annotated / "masks").iterdir():
            Image.new("L", (16, 24)).save(one)
    elif what == "left out":
        for one in (annotated / "masks").iterdir():
            Image.new("L", (16, 24), 255).save(one)
    elif what == "one test image":
        for number in range(3, 20):
            (annotated / "photos" / f"{number:02}.png").unlink()
    elif what == "none":
        for one in (annotated / "masks").iterdir():
            one.unlink()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("colours", r"04.png has pixels of mode RGB, up to 0. Expected a class of 0 to 255"),
        ("size", r"04.png has 24 x 16 px, its image 16 x 24 px. Expected the same"),
        ("broken", r"04.png cannot be read: not an image in a known format"),
        ("one class", "hold less than two classes"),
        ("left out", "hold less than two classes"),
        ("one test image", r"one test image has one\. .* at least two"),
        ("none", r"none of the 16 images has one in .*masks; expected .*01.png for the first"),
    ],
)
def test_masks_that_are_none(finished, annotated, what, message):
    spoil(annotated, what)
    with pytest.raises(DataError, match=message):
        akssl_core.evaluate(finished, "segment", data=annotated / "photos", masks=annotated / "masks")


def test_one_mask_is_not_of_a_training_image_and_of_a_test_image(finished, annotated):
    for part in ("photos", "masks"):
        for file in sorted((annotated / part).glob("*.png")):
            kind = "a" if int(file.stem) % 2 else "b"
            (annotated / part / kind).mkdir(exist_ok=True)
            file.rename(annotated / part / kind / file.name)
    shutil.copytree(annotated / "photos", annotated / "others")
    with pytest.raises(DataError, match=r"masks: several images are named 'a/01' \(19 such names"):
        akssl_core.evaluate(
            finished, "segment", data=annotated / "photos", test_data=annotated / "others", masks=annotated / "masks"
        )


def test_masks_lie_in_a_folder(finished, annotated):
    for place, words in (("nowhere", "does not exist"), ("photos/00.png", "is a file")):
        with pytest.raises(DataError, match=f"masks: '.*{place}' {words}"):
            akssl_core.evaluate(finished, "segment", data=annotated / "photos", masks=annotated / place)


def test_what_does_not_belong_to_the_protocol(finished, annotated):
    with pytest.raises(DataError, match=r"has no masks. Give a folder of them: --masks DIR"):
        akssl_core.evaluate(finished, "segment", data=annotated / "photos")
    with pytest.raises(ConfigError, match="labels: the segmentation learns from all masks"):
        akssl_core.evaluate(finished, "segment", labels=0.1)
    with pytest.raises(ConfigError, match="masks: a setting of the protocol 'segment'; this is 'knn'"):
        akssl_core.evaluate(finished, masks=annotated)


# -- the number -----------------------------------------------------------------------------------
def test_mean_intersection_over_union_of_known_counts():
    assert float(miou(torch.tensor([[3, 1], [2, 4]]))) == pytest.approx(0.535714, abs=1e-6)
    absent = torch.tensor([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    assert float(miou(absent)) == pytest.approx(0.535714, abs=1e-6), "a class that never occurs is left out"
    guessed = torch.tensor([[3, 0, 1], [0, 4, 0], [0, 0, 0]])
    assert float(miou(guessed)) == pytest.approx((3 / 4 + 1 + 0) / 3)
    assert miou(torch.stack([absent, guessed])).shape == (2,)


class Marks(akssl_core.Backbone):
    """Features of a grid that tell the class at its centre, or nothing."""

    name, embed_dim, grid = "marks", 3, 4

    def __init__(self, telling, grid=4):
        super().__init__(None, None)
        self.telling, self.grid = telling, grid

    def features(self, images):
        seen = torch.nn.functional.interpolate(images, (self.grid, self.grid), mode="nearest-exact")
        patches = (seen if self.telling else torch.zeros_like(seen)).flatten(2).transpose(1, 2)
        return akssl_core.Features(patches.mean(1), patches, (self.grid, self.grid))


class Coded(akssl_core.TensorImages):
    """Squares of 2 x 2 px whose colour is their class; class 9 in the masks is known of no training image."""

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        classes = torch.randint(0, 3, (count, 4, 4), generator=generator)
        self.pixels = classes.repeat_interleave(2, 1).repeat_interleave(2, 2)
        colours = torch.tensor([[200, 0, 0], [0, 200, 0], [0, 0, 200]], dtype=torch.uint8)
        super().__init__(colours[self.pixels].permute(0, 3, 1, 2).contiguous())

    def masks(self, index, square):
        return self.pixels[list(index)].to(torch.uint8)


def judged(test, *backbones):
    train = Coded(40, 0)
    systems = [System(name, net, FEED) for name, net in zip(("trained", "random init"), backbones, strict=True)]
    none = torch.zeros(0, dtype=torch.int64)
    return segment(
        [*systems, System("raw pixels", None, FEED)], Split(train, test, none, none, "", Twice((), (), 0), {}), 16, CPU
    )


def test_telling_features_beat_those_that_say_nothing():
    found = judged(Coded(30, 1), Marks(True), Marks(False))
    trained, random, pixels = found.scores
    ceiling = next(float(note.split()[-2]) for note in found.notes if "true class" in note)
    assert trained.accuracy == pytest.approx(ceiling, abs=0.5), "patches that are told, brought to pixels"
    assert pixels.accuracy == pytest.approx(ceiling, abs=2)
    assert random.accuracy < 20
    against = {one.against: one for one in found.comparisons}
    assert against["random init"].low > 50
    assert against["raw pixels"].low <= 0 <= against["raw pixels"].high
    assert found.answer.startswith("Did it help? Partly")


def test_pixels_and_patches_without_a_class_count_nowhere():
    test = Coded(30, 1)
    plain = judged(test, Marks(True), Marks(True)).scores[0].accuracy
    test.pixels[:, :4] = 255
    half = judged(test, Marks(True), Marks(True))
    assert half.scores[0].accuracy == pytest.approx(plain, abs=6)
    assert half.split["classes"] == 3


def test_another_grid_than_pixels_divide_into():
    found = judged(Coded(30, 1), Marks(True, grid=3), Marks(False, grid=3))
    assert found.scores[0].accuracy > found.scores[1].accuracy


def test_intervals_are_over_images_and_the_same_each_time():
    first, again = (judged(Coded(30, 1), Marks(True), Marks(False)) for _ in range(2))
    assert first == again
    few = judged(Coded(4, 1), Marks(True), Marks(False))
    width = [score.high - score.low for score in (few.scores[1], first.scores[1])]
    assert width[0] > width[1] > 0


def test_a_backbone_without_places_is_told(finished):
    class Whole(Marks):
        def features(self, images):
            return akssl_core.Features(images.mean((2, 3)))

    with pytest.raises(ConfigError, match="patches: marks gives features of whole images alone"):
        judged(Coded(5, 1), Whole(True), Marks(True))


def test_masks_beside_nothing_are_left_out(annotated):
    images = akssl_core.build("data", "folder", path=str(annotated / "photos")).all()
    masked = Masked(images, annotated / "masks")
    assert len(masked) == 19
    assert masked.id_of(18) == "18.png"
    assert masked.masks([2, 0], Square.of(16, 3)).shape == (2, 16, 16)
