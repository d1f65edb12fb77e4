"""What the documentation shows is run; what it lists is generated."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys

import pytest
import torch
from pages import DOCS, FEW, ROOT, SMALL, blocks, commands, draw_photos, execute, shrink

import akssl_core
from akssl_core import cli, hookspecs
from akssl_core.config.registry import KINDS
from akssl_core.testing.check import CHECKS

README = (ROOT / "README.md").read_text()


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """An empty folder to stand in, with some photos."""
    monkeypatch.chdir(tmp_path)
    draw_photos(tmp_path / "photos")
    return tmp_path


def test_generated_parts_are_up_to_date():
    command = [sys.executable, str(DOCS / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_shell_commands_of_the_readme_work(photos, here):
    lines = [words[1:] for words in commands(README) if words[0] == "akssl"]
    assert {words[0] for words in lines} >= {"run", "eval", "export", "doctor", "compare", "report"}
    for words in lines:
        found = (0, 1) if words[0] == "doctor" else (0,)
        if (words[0] in ("run", "explain") and "--help" not in words) or words[:2] == ["doctor", "simsiam"]:
            words += SMALL
            words += FEW if "--data" not in words else ()
        words += ["--parts", "head", "--no-scratch"] if words[0] == "finetune" else []
        code, _out, err = here(*words)
        assert code in found, (words, err)


def test_the_commands_and_the_python_of_the_page_on_exports_work(tmp_path, monkeypatch, here):
    page = (DOCS / "export.md").read_text()
    few = ("--set", "data.size=32", "--set", "data.test_size=16", "--batch-size", "16")
    lines = commands(page)
    assert {words[1] for words in lines} == {"run", "eval", "export", "publish", "compare", "sweep"}
    for _, *words in lines:
        code, out, err = here(*words, *((*SMALL, *few) if words[0] in ("run", "sweep") else ()))
        assert code == 0, (words, err)
    assert "optimizer.lr" in out
    assert (tmp_path / "sweeps" / "first" / "simclr-optimizer.lr=0.3-seed=1" / "manifest.json").is_file()
    shrink(monkeypatch)
    names = execute(page, "export.md")
    scores = [row.metrics["knn_top1"].mean for row in names["found"].rows]
    assert names["best"].metrics["knn_top1"].mean == max(scores)


@pytest.mark.filterwarnings("ignore:method.teacher_temperature")
def test_the_commands_of_the_page_on_the_doctor_work(photos, here):
    lines = commands((DOCS / "doctor.md").read_text())
    assert len(lines) == 5
    for _, *words in lines:
        hot = "method.teacher_temperature=0.5" in words
        folder = words[-1] == "runs/mine"  # the run before wrote it
        few = (*SMALL, "--batch-size", "64", "--set", "data.size=256", "--set", "data.test_size=32")
        words += () if folder else few
        words += ("--out", "runs/mine") if words[0] == "run" else ()
        code, out, err = here(*words)
        assert code in ((0, 1) if words[0] == "doctor" else (0,)), (words, err)
        assert ("advice: method.teacher_temperature" in out) == hot


def test_every_test_that_the_documentation_names_exists():
    named = set(re.findall(r"`(test_\w+)`", (DOCS / "upstream.md").read_text()))
    sources = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "plugins").glob("*/tests/test_*.py")]
    written = {name for file in sources for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)}
    assert named
    assert named <= written, sorted(named - written)


def test_the_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {m for block in blocks("bash", README) for m in re.findall(r"^make (\w+)", block, re.MULTILINE)}
    assert named == {"demo", "test"}
    assert {"demo", "test", "lint", "types", "wheels", "docs", "bench", "slow", "leaderboard"} <= targets


@pytest.mark.usefixtures("photos")
def test_the_python_of_the_readme_works(monkeypatch, here):
    shrink(monkeypatch)
    (words,) = (words[1:] for words in commands(README) if words[1] == "run" and "runs/photos-resnet18" in words)
    code, _out, err = here(*words, *SMALL)
    assert code == 0, err
    names = execute(README, "README.md")
    assert names["features"].shape[0] == 1
    assert not names["features"].requires_grad
    assert isinstance(names["model"].fc, torch.nn.Identity)
    names["model"].eval()
    backbone = akssl_core.load_backbone("runs/photos-resnet18")
    images = backbone.preprocess(torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8))
    torch.testing.assert_close(names["model"](images), backbone(images), rtol=1e-5, atol=1e-5)


def test_the_page_on_evaluation_works(photos, monkeypatch, here):
    """Its photos are two classes by sub-folder, which the page says that labels are."""
    for name in ("photos", "others"):
        for i, file in enumerate(sorted((photos / "photos").glob("*.png"))):
            (photos / name / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            (photos / name / "ab"[i % 2] / file.name).write_bytes(file.read_bytes())
    for file in (photos / "photos").glob("*.png"):
        file.unlink()
    page = (DOCS / "evaluate.md").read_text()
    monkeypatch.setattr("akssl_core.evaluation.protocols.LEAST", 2)
    lines = commands(page)
    assert {words[1] for words in lines} == {"run", "eval", "embed"}
    for _, *words in lines:
        code, _out, err = here(*words, *(SMALL if words[0] == "run" else ()))
        assert code == 0, (words, err)
    results = json.loads((photos / "runs" / "photos" / "evaluation.json").read_text())["results"]
    assert results.keys() == {"knn", "linear", "finetune", "segment"}
    assert results["knn"].keys() == {str(photos / "photos"), "./others"}
    names = execute(page, "evaluate.md")
    assert len(names["ids"]) == len(names["features"]) == 24


def test_the_page_on_search_works(photos, here):
    draw_photos(photos / "others", 3)
    page = (DOCS / "search.md").read_text()
    lines = commands(page)
    assert {words[1] for words in lines} == {"run", "search", "embed", "dedup"}
    for _, *words in lines:
        code, _out, err = here(*words, *(SMALL if words[0] == "run" else ()))
        assert code == 0, (words, err)
    assert all((photos / name).is_file() for name in ("search.html", "dedup.html", "delete.txt"))
    names = execute(page, "search.md")
    assert names["found"].images[0][0] == "1.png", "the same three photos are drawn"


def test_the_page_on_classifiers_works(photos, monkeypatch, here):
    draw_photos(photos / "others", 3)
    for name in ("cat", "dog"):
        draw_photos(photos / "photos" / name)
    for file in (photos / "photos").glob("*.png"):
        file.unlink()
    page = (DOCS / "classify.md").read_text()
    monkeypatch.setattr("akssl_core.evaluation.protocols.LEAST", 50)
    for _, *words in commands(page):
        code, _out, err = here(*words, *{"run": SMALL, "finetune": ("--no-scratch",)}.get(words[0], ()))
        assert code == 0, (words, err)
    assert len((photos / "predictions.csv").read_text().splitlines()) == 4
    names = execute(page, "classify.md")
    assert names["found"].ids == ["0.png", "1.png", "2.png"]
    assert names["probabilities"].sum().item() == pytest.approx(1, abs=1e-5)


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


HOOKS = (DOCS / "hooks.md").read_text()


def test_every_hook_is_documented_with_its_arguments():
    hooks = {name: f for name, f in vars(hookspecs).items() if name.startswith("akssl_")}
    assert len(hooks) == 4
    for name, hook in hooks.items():
        signature = f"{name}({', '.join(inspect.signature(hook).parameters)})"
        assert f"### `{signature}`" in HOOKS, signature


def test_every_kind_of_component_is_documented_and_has_checks_and_none_is_made_up():
    section = HOOKS.partition("## Kinds of components")[2].partition("## ")[0]
    rows = set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE))
    assert rows == set(KINDS)
    assert {rule.kind for rule in CHECKS} == set(KINDS)


def test_every_status_of_a_plugin_is_explained():
    for status in ("broken", "invalid", "clash", "other API", "other core", "blocked"):
        assert f"| `{status}` |" in HOOKS


def test_every_command_is_documented():
    commands = (DOCS / "commands.md").read_text()
    for name, command in cli.akssl.commands.items():
        assert f"## `akssl {name}`" in commands
        for inner in getattr(command, "commands", {}):
            assert f"## `akssl {name} {inner}`" in commands


def test_every_environment_variable_is_documented():
    core = "".join(file.read_text() for file in (ROOT / "akssl_core").rglob("*.py"))
    pages = HOOKS + README + "".join(page.read_text() for page in DOCS.glob("*.md"))
    for name in set(re.findall(r"AKSSL_[A-Z]+", core)):
        assert name in pages, name


def test_links_of_the_pages_lead_somewhere():
    for page in DOCS.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), (page.name, target)


def test_the_floor_plan_names_a_file_for_every_question():
    page = (DOCS / "architecture.md").read_text()
    for question in ("command-line flag", "setting of the optimizer", "metric in the rows", "health number", "verdict",
                     "data format", "backbone", "augmentation", "checkpoint's field", "export format"):  # fmt: skip
        (line,) = [
            line for line in page.splitlines() if re.match(rf"\| an? {question}(, of commands that train)? \|", line)
        ]
        files = re.findall(r"\]\(\.\./(\S+?)\)", line)
        assert 1 <= len(files) <= 2
        assert all((ROOT / file).is_file() for file in files), line
    assert page.count("## The way of") == 4
