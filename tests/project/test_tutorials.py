"""Every command and every block of Python in the tutorials runs, and what they promise to be seen is seen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import DOCS, FEW, blocks, commands, draw_photos, execute, shrink

import akssl_core
from akssl_core.plugins.manager import installed
from akssl_core.reporting import charts

TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
NETWORK = ("--backbone", "resnet_tiny", "--set", "backbone.widths=[4,4,8,8]")
TRAIN = ("run", "explain", "doctor", "sweep")  # commands that take a run's options

pytestmark = pytest.mark.filterwarnings(  # which is what those lines show
    "ignore:resumed with other settings", "ignore:train.accumulate. batch norms see one micro-batch"
)


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small are slower on several threads, and much slower where other work shares the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def text_of(name):
    return (DOCS / "tutorials" / f"{name}.md").read_text()


@pytest.fixture
def photos(tmp_path):
    """Photos of two classes in the folder to stand in."""
    for name in ("cat", "dog"):
        draw_photos(tmp_path / "photos" / name, 20)
    return tmp_path


@pytest.fixture
def follow(here, photos):
    """Type a tutorial's lines one after the other; what they printed."""

    def typed(page):
        said = []
        for program, *words in commands(page):
            if program == "torchrun":
                said.append(launched(words, photos) if "--standalone" in words else shown(here, after_module(words)))
            else:
                assert program == "akssl", program
                said.append(shown(here, words))
        return "".join(said)

    return typed


def shown(here, words):
    """What a command prints; it must succeed, though the doctor may find something."""
    code, out, err = here(*words, *small(words))
    assert code in ((0, 1) if words[0] == "doctor" else (0,)), (words, out, err)
    return out


def small(words):
    """Options that make a command take a second; a folder that the doctor looks at has no settings."""
    if words[0] == "adapt":  # the network is that of the weights
        return ("--precision", "fp32", "--batch-size", "8")
    if words[0] == "choose":
        return ("--budget", "2s", "--precision", "fp32", *NETWORK, "--batch-size", "8")
    if words[0] not in TRAIN or words[1].startswith("runs/"):
        return ()
    drawn = () if "--data" in words else ("--image-size", "16", *FEW)
    network = () if "--backbone" in words else NETWORK
    batch = () if "--batch-size" in words else ("--batch-size", "8")
    return ("--epochs", "1", "--precision", "fp32", *drawn, *network, *batch)


def after_module(words):
    """What stands behind `torchrun ... -m akssl_core`."""
    return words[words.index("akssl_core") + 1 :]


def launched(words, folder):
    """A line of torchrun as it is, in processes of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", *words, *small(after_module(words))]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def test_every_tutorial_is_tested_here_and_short():
    tested = set(re.findall(r'text_of\("(\w+)"\)', Path(__file__).read_text()))
    assert {page.stem for page in TUTORIALS} == tested
    for page in TUTORIALS:
        assert len(page.read_text().splitlines()) <= 130, page.name


def test_every_shell_block_is_of_commands_that_are_run():
    for page in TUTORIALS:
        assert commands(page.read_text()), page.name
        for language in re.findall(r"```(\w*)\n.*?```", page.read_text(), re.DOTALL):
            assert language in ("bash", "python", "text"), (page.name, language)


def test_first_run(follow, here, photos, monkeypatch):
    page = text_of("first_run")
    out = follow(page)
    for line in re.findall(r"^(k-NN .*?|std of .*?|effective .*?|Verdict on collapse):?  +", page, re.MULTILINE):
        assert line in out
    (listing,) = (block for block in blocks("text", page) if block.startswith("runs/first/"))
    named = {line.split()[0].rstrip("/") for line in listing.splitlines()[1:]}
    assert named == {file.name for file in (photos / "runs" / "first").iterdir() if not file.name.startswith(".")}
    (mistake,) = (block for block in blocks("text", page) if block.startswith("$ akssl"))
    command, answer = mistake.split("\n", 1)
    code, _out, err = here(*command.split()[2:])
    assert (code, " ".join(err.split())) == (2, " ".join(answer.split()))
    shrink(monkeypatch)
    names = execute(page, "first_run.md")
    assert names["features"].shape[0] == 8
    assert names["result"].verdict in ("healthy", "not learning", "dimensional collapse", "collapsed")


def test_own_images(follow, photos, monkeypatch):
    page = text_of("own_images")
    out = follow(page)
    assert "2 classes: cat, dog" in out
    assert "few-images" in out
    assert len((photos / "photos.csv").read_text().splitlines()) == 41
    same = [(photos / "runs" / name / "metrics.jsonl").read_text() for name in ("photos", "prepared")]
    losses = [re.findall(r'"loss": [^,]+', rows) for rows in same]
    assert losses[0] == losses[1] != []
    shrink(monkeypatch)
    names = execute(page, "own_images.md")
    assert names["result"].history[-1]["epoch"] == 2


def test_adapting(follow, photos):
    page = text_of("adapting")
    out = follow(page)
    table = next(block for block in blocks("text", page) if block.startswith("weights"))
    columns = table.partition("uniformity")[0]  # which takes 32 images
    assert " ".join(columns.split()) in " ".join(out.split())
    assert "is kept: k-NN" in out
    assert "given weights" in out
    names = execute(page, "adapting.md")
    assert list(names["shares"]) == [0, 0.25, 0.5, 0.75, 1]
    assert len(names["features"]) == 40


def test_choosing_a_method(follow, photos, monkeypatch):
    page = text_of("choosing_a_method")
    out = follow(page)
    assert (photos / "compare.html").is_file()
    assert "memory" in out
    shrink(monkeypatch)
    assert {row.method for row in execute(page, "choosing_a_method.md")["found"].rows} == {"simsiam", "mocov2"}


def test_the_table_of_methods_says_of_each_whether_it_accumulates():
    rows = re.findall(r"^\| (`.*?`) \| .* \| (yes|refused) \|$", text_of("choosing_a_method"), re.MULTILINE)
    told = {name: answer == "yes" for names, answer in rows for name in re.findall(r"`(\w+)`", names)}
    known = {one.name for one in akssl_core.methods()}
    assert told == {name: installed().get("method", name).accumulates for name in known}


def test_unusual_images(follow, photos, monkeypatch):
    page = text_of("unusual_images")
    out = follow(page)
    (note,) = blocks("text", page)
    assert note.strip() in out
    shrink(monkeypatch)
    names = execute(page, "unusual_images.md")
    assert names["features"].shape[0] == 4
    assert any("the images have 13" in note for note in names["notes"])


def test_tables_and_archives(follow, photos):
    page = text_of("tables_and_archives")
    np.save(photos / "images.npy", np.random.default_rng(0).integers(0, 4096, (40, 16, 16), dtype=np.uint16))
    assert "use 12 bits" in follow(page)
    assert re.search(r"40 image files in .*photos\.zip", execute(page, "tables_and_archives.md")["text"])


@pytest.mark.usefixtures("photos")
def test_many_machines(follow, monkeypatch):
    page = text_of("many_machines")
    assert follow(page).count("\nVerdict: ") == 4  # of two processes from `akssl run` the screen alone knows
    shrink(monkeypatch)
    assert execute(page, "many_machines.md", {"__name__": "__main__"})["result"].metrics


def test_commands_that_need_two_machines_say_why_they_are_not_run_whole():
    for page in TUTORIALS:
        for before, block in re.findall(r"(.*)\n```bash\n(.*?)```", page.read_text()):
            needs_two = "--nnodes" in block
            assert needs_two == before.startswith("<!-- two nodes: "), (page.name, block)


def test_reading_the_report(follow, photos):
    page = text_of("reading_the_report")
    follow(page)
    files = [file for file in Path(charts.__file__).parent.glob("*.py") if file.stem != "comparison"]
    sources = "".join(file.read_text() for file in files)
    sections = re.findall(r'section\("(.*?)"', sources)
    shown = re.findall(r"<h2>(.*?)</h2>", (photos / "runs" / "photos" / "report.html").read_text())
    assert set(shown) <= set(sections) != set()
    for section in sections:
        assert re.search(rf"^## .*{section}|\*\*{section}\*\*", page, re.MULTILINE), section
    for name in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", page, re.MULTILINE):
        assert set(re.findall(r"\w+", name)) <= {*charts.MEANINGS, "z_std_ratio"}, name
