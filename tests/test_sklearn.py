"""`akssl_core.sklearn.Featurizer` among scikit-learn's own tools."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

import akssl_core
from akssl_core import AksslError, ConfigError, DataError, RunDirError

pytest.importorskip("sklearn", reason="the extra is not installed: pip install -e '.[dev]'")

from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from akssl_core.sklearn import Featurizer

EXCEPTIONS = {
    "check_methods_subset_invariance": "convolutions of one image and of many add float32 numbers in another order, so "
    "that features differ by about 1e-7, which the check's tolerance for numbers near zero does not allow",
}


@pytest.fixture(scope="module")
def images():
    """Thirty labelled images [30, 12, 12, 3] uint8; the class is the channel that is bright."""
    generator = np.random.default_rng(0)
    labels = np.arange(30) % 3
    pixels = generator.integers(0, 100, (30, 12, 12, 3))
    pixels[np.arange(30), :, :, labels] += 120
    return pixels.astype(np.uint8), labels


def direct(run_dir, images):
    backbone = akssl_core.load_backbone(run_dir)
    with torch.no_grad():
        return backbone(backbone.preprocess(torch.from_numpy(images))).numpy()


def test_scikit_learns_own_checks(small_run):
    """Its checks feed rows of any width and numbers on both sides of zero: gray images one pixel high."""
    subject = Featurizer(small_run, image_shape=(1, -1), value_range=(-3, 3))
    found = check_estimator(subject, expected_failed_checks=EXCEPTIONS, on_fail=None, on_skip=None)
    failed = {one["check_name"]: one["exception"] for one in found if one["status"] == "failed"}
    skipped = {one["check_name"] for one in found if one["status"] == "skipped"}
    assert failed == {}
    assert skipped <= {"check_array_api_input"}, "which an environment variable switches on"
    assert set(EXCEPTIONS) <= {one["check_name"] for one in found}
    assert len(found) > 40


def test_features_are_those_of_the_backbone(small_run, images):
    pixels, _ = images
    expected = direct(small_run, pixels)
    found = Featurizer(small_run).fit_transform(pixels)
    assert (found.shape, found.dtype) == ((30, 8), np.float32)
    np.testing.assert_array_equal(found, expected)
    for batch_size in (1, 7):
        part = Featurizer(small_run, batch_size=batch_size).fit_transform(pixels)
        np.testing.assert_allclose(part, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        (lambda x: x.transpose(0, 3, 1, 2), {}),
        (lambda x: x / 255, {}),
        (lambda x: x.reshape(30, -1), {"image_shape": (12, 12, 3)}),
        (lambda x: x.transpose(0, 3, 1, 2).reshape(30, -1), {"image_shape": (3, 12, 12)}),
        (lambda x: x.reshape(30, -1).astype(float) * 16 / 255, {"image_shape": (12, 12, -1), "value_range": (0, 16)}),
        (lambda x: x.astype(np.int64), {"value_range": (0, 255)}),
    ],
)
def test_layouts_types_and_ranges_mean_the_same_images(small_run, images, change, settings):
    found = Featurizer(small_run, **settings).fit_transform(change(images[0]))
    np.testing.assert_allclose(found, direct(small_run, images[0]), rtol=1e-3, atol=1e-5)


def test_gray_images_need_no_axis_for_channels(small_run, images):
    gray = images[0][..., 0]
    expected = Featurizer(small_run).fit_transform(gray[..., None])
    np.testing.assert_array_equal(Featurizer(small_run).fit_transform(gray), expected)
    rows = Featurizer(small_run, image_shape=(12, 12)).fit_transform(gray.reshape(30, -1))
    np.testing.assert_array_equal(rows, expected)


def test_the_digits_of_scikit_learn_are_taken_as_they_are(small_run):
    rows, _ = load_digits(return_X_y=True)
    featurizer = Featurizer(small_run, image_shape=(8, 8), value_range=(0, 16))
    found = featurizer.fit_transform(rows[:40])
    gray = np.rint(rows[:40] * 255 / 16).astype(np.uint8).reshape(40, 8, 8, 1)
    np.testing.assert_allclose(found, direct(small_run, gray), rtol=1e-3, atol=1e-5)


def test_names_of_the_features(small_run, images):
    featurizer = Featurizer(small_run).fit(images[0])
    assert featurizer.n_features_in_ == 432
    assert featurizer.get_feature_names_out().tolist() == [f"featurizer{i}" for i in range(8)]


def test_pipeline_clone_and_grid_search(small_run, images):
    pixels, labels = images
    pipe = make_pipeline(Featurizer(small_run), LogisticRegression(max_iter=2000))
    search = GridSearchCV(pipe, {"featurizer__batch_size": [5, 30], "logisticregression__C": [1.0, 100.0]}, cv=3)
    search.fit(pixels, labels)
    assert search.best_score_ > 0.8
    again = clone(search.best_estimator_).fit(pixels, labels)
    np.testing.assert_array_equal(again.predict(pixels), search.best_estimator_.predict(pixels))


def test_a_pickle_holds_a_path_and_no_weights(small_run, images):
    featurizer = Featurizer(small_run).fit(images[0])
    expected = featurizer.transform(images[0])
    data = pickle.dumps(featurizer)
    assert len(data) < 2000 < (small_run / "backbone.safetensors").stat().st_size
    np.testing.assert_array_equal(pickle.loads(data).transform(images[0]), expected)


def test_a_changed_file_is_read_again(finished, images):
    from safetensors.torch import save_file

    from akssl_core.rundir.folder import read_tensors

    featurizer = Featurizer(finished).fit(images[0])
    before = featurizer.transform(images[0])
    file = finished / "backbone.safetensors"
    tensors, metadata = read_tensors(file)
    del metadata["sha256"]
    save_file({name: value * 2 for name, value in tensors.items()}, file, metadata)
    assert not np.array_equal(featurizer.transform(images[0]), before)


def test_bad_input_says_how_to_mend_it(small_run, images, tmp_path):
    pixels, _ = images
    rows = pixels.reshape(30, -1)
    with pytest.raises(RunDirError, match="does not exist"):
        Featurizer(tmp_path / "none").fit(pixels)
    with pytest.raises(DataError, match=r"image_shape=\(28, 28\)"):
        Featurizer(small_run).fit(rows)
    with pytest.raises(DataError, match=r"432 numbers are no image of the shape \(10, 10\)"):
        Featurizer(small_run, image_shape=(10, 10)).fit(rows)
    with pytest.raises(DataError, match=r"values up to .*value_range=\(0, 16\)"):
        Featurizer(small_run).fit(pixels.astype(float))
    with pytest.raises(ConfigError, match="black < white"):
        Featurizer(small_run, value_range=(1, 1)).fit(pixels)
    with pytest.raises(ConfigError, match="batch_size"):
        Featurizer(small_run, batch_size=0).fit(pixels).transform(pixels)
    with pytest.raises(DataError, match="fitted on images of 432"):
        Featurizer(small_run).fit(pixels).transform(pixels[:, :6])
    with pytest.raises(AksslError, match="got the shape"):
        Featurizer(small_run).fit(pixels[None])


def test_the_core_works_without_scikit_learn():
    program = (
        "import sys; sys.modules['sklearn'] = None; import akssl_core; assert 'sklearn' in dir(akssl_core)\n"
        "from akssl_core import *\n"
        "try: akssl_core.sklearn\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert "pip install 'akssl-core[sklearn]'" in done.stdout, done.stderr
