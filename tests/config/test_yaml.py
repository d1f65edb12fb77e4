"""Numbers are what Python, JSON and YAML 1.2 call numbers, and what is written is read back."""

from __future__ import annotations

import json

import pytest
from PIL import Image

import akssl_core
from akssl_core.cli.base import parsed
from akssl_core.config.yaml import dump_yaml, parse_yaml, read_yaml

NUMBERS = [
    "1e-3",
    "1E-3",
    "-1e-06",
    "+1e5",
    "1e2",
    "1.5e3",
    ".5e1",
    "1.e2",
    "0o17",
    "0x1f",
    "12",
    "1.0e+3",
    "1_000",
    "-.5",
]


@pytest.mark.parametrize("text", NUMBERS)
def test_what_python_calls_a_number_is_one(text, tmp_path):
    number = eval(text)
    (tmp_path / "settings.yaml").write_text(f"a: {text}\nb: [{text}, '{text}']\n")
    assert read_yaml(tmp_path / "settings.yaml") == {"a": number, "b": [number, text]}
    assert parsed(f"optimizer.lr={text}") == ("optimizer.lr", number)


@pytest.mark.parametrize(
    "text", ["1e", "e5", "1e-", "1e5x", "v1e3", "1e3-2", "--1e3", "1 e3", "0o8", "010", "1:30", "1:30.5"]
)
def test_what_only_looks_like_a_number_is_a_text(text):
    assert parse_yaml(text) == text


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3", "x: {a: 1, a: 2}"])
def test_a_name_that_stands_twice_is_refused(text):
    with pytest.raises(ValueError, match="'a' is there twice"):
        parse_yaml(text)


def test_a_table_that_is_merged_into_another_may_be_changed_there():
    text = "a: &a {x: 1, y: 2}\ntop: {deep: &b {<<: *a, x: 3}}\nc: {<<: *b, y: 4}"
    assert parse_yaml(text)["top"] == {"deep": {"x": 3, "y": 2}}


def test_what_is_written_is_read_back():
    values = [1e-06, 1e22, 5e-324, -0.5, 100, *NUMBERS, "no", "1:30"]
    assert parse_yaml(dump_yaml(values)) == values
    assert parse_yaml(json.dumps(values)) == values


def test_what_stands_in_two_places_is_written_out_in_both():
    scale = [0.08, 1.0]
    assert "*" not in (text := dump_yaml({"first": {"scale": scale}, "second": {"scale": scale}}))
    assert parse_yaml(text)["second"]["scale"] == scale


def test_numbers_of_a_run_may_be_written_so_and_what_explain_prints_is_pasted_back(photos, tmp_path):
    (tmp_path / "settings.yaml").write_text("optimizer: {lr: 1e-4}\ntrain: {log_every: 1e2}\n")
    plan = akssl_core.explain("simsiam", data=photos, config=tmp_path / "settings.yaml")
    assert plan.settings["train.log_every"] == 100
    assert plan.spec.optimizer.config.lr.start == 1e-4
    for path, value in plan.settings.items():
        assert parsed(f"{path}={json.dumps(value)}") == (path, value)


def test_explain_shows_paths_as_they_are_written(tmp_path):
    folder = tmp_path / "фото 🐱\nx"
    folder.mkdir()
    for i in range(8):
        Image.new("RGB", (12, 12), (i, i, i)).save(folder / f"{i}.png")
    told = akssl_core.explain("simsiam", data=str(folder)).text
    assert "фото 🐱\\nx" in told
