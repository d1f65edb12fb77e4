from __future__ import annotations

import base64
import io
import json
import math
import re
from html.parser import HTMLParser

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from akssl_core.errors import ConfigError, RunDirError
from akssl_core.report import render
from akssl_core.report.html import Html, join, table, tag
from akssl_core.report.svg import line_chart, pieces, short, thin, ticks

EVIL = "<script>alert('x')</script>"
CONFIG = {
    "method": {"name": "toy", "out_dim": 4},
    "backbone": {"name": "small"},
    "data": {"name": "photos"},
    "train": {"epochs": 3, "clip": None},
    "evaluate": {"k": 20},
    "seed": 7,
}
PROVENANCE = {
    "method.name": "user",
    "method.out_dim": "recipe 'default' of toy",
    "backbone.name": "rule: small suits 32 px",
    "data.name": "user",
    "train.epochs": "user",
    "seed": "core default",
}
MANIFEST = {
    "created": "2025-01-02T03:04:05+00:00",
    "status": "finished",
    "method": "toy",
    "seed": 7,
    "notes": ["precision fp32 on cpu: the CPU has no bf16 units"],
    "data": {"images": 60, "channels": 3, "classes": 3, "sample": "abc123"},
    "hardware": {"device": "cpu", "name": "x86_64", "precision": "fp32", "threads": 2},
    "versions": {"python": "3.11.2", "torch": "2.14.1"},
    "plugins": [{"name": "toy", "distribution": "akssl-plugin-toy", "version": "0.1", "status": "installed"}],
    "baselines": {"knn_raw_pixels": 21.5, "knn_random_init": 30.25},
}
FINAL = {
    "loss": -0.9,
    "knn_top1": 61.4,
    "std_ratio": 0.62,
    "rankme": 88.1,
    "knn_raw_pixels": 21.5,
    "knn_random_init": 30.25,
}


def row(step, **more):
    times = {"seconds": 2.0, "time_load": 0.25, "time_step": 0.75}
    return {"step": step, "epoch": step / 10, "loss": 1.0 / step, "lr": 0.1, "images_per_s": 50.0, **times, **more}


ROWS = [
    row(step, **({"knn_top1": 30.0 + step, "std_ratio": 0.5, "rankme": 70.0} if step % 10 == 0 else {}))
    for step in range(2, 31, 2)
]


def write_run(path, *, config=CONFIG, provenance=PROVENANCE, rows=ROWS, tensors=None, **manifest):
    path.mkdir()
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "manifest.json").write_text(json.dumps({**MANIFEST, "final": FINAL, **manifest}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    if provenance is not None:
        (path / "provenance.json").write_text(json.dumps(provenance))
    if tensors:
        save_file(tensors, path / "samples.safetensors")
    return path


def pictures(channels=3):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    return {
        "originals": draw(2, channels, 16, 16),
        "views.global": draw(2, 2, channels, 16, 16),
        "views.local": draw(2, 3, channels, 8, 8),
        "neighbours": draw(2, 4, channels, 16, 16),
        "neighbour_labels": torch.tensor([[0, 0, 1, -1], [2, 2, 2, 1]]),
    }


class Page(HTMLParser):
    """Reads a document, and fails on an element that is not closed in its place."""

    VOID = ("meta", "img", "br")

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(self.texts)


@pytest.fixture
def run(tmp_path):
    folder = write_run(tmp_path / "a-run", tensors=pictures())
    (folder / "unreadable.txt").write_text("a/b.jpg\ttruncated\n")
    (folder / "backbone.safetensors").write_bytes(b"")
    return folder


def verdict_of(folder):
    html = render(folder)
    return re.search(r'<p class="verdict (\w+)"[^>]*>(.*?)</p>', html).groups()


# -- the page -------------------------------------------------------------------------------------
def test_every_section_is_there(run):
    page = Page(render(run))
    ids = [attrs["id"] for attrs in page.all("section")]
    assert ids == [
        "scores", "curves", "nearest-neighbours", "sample-views", "time", "use-the-backbone", "notes", "settings",
        "unreadable-files", "environment",
    ]  # fmt: skip
    assert "toy — a-run" in page.text
    assert "a/b.jpg: truncated" in page.text
    assert "the CPU has no bf16 units" in page.text
    assert "akssl-plugin-toy" in page.text


def test_a_minimal_run_has_a_page(tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "manifest.json").write_text('{"status": "running"}')
    (folder / "metrics.jsonl").write_text("")
    page = Page(render(folder))
    assert [attrs["id"] for attrs in page.all("section")] == ["settings"]
    assert "Still running before its first row of metrics." in page.text


def test_the_page_loads_nothing_and_runs_nothing(run):
    html = render(run)
    page = Page(html)
    assert "http://" not in html
    assert "https://" not in html
    assert not page.all("script")
    assert not page.all("link")
    sources = [attrs[key] for _, attrs in page.elements for key in ("src", "href") if key in attrs]
    assert sources
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_no_text_of_a_run_becomes_markup(tmp_path):
    folder = write_run(
        tmp_path / "<b>run",
        config={**CONFIG, "data": {"name": "folder", "path": EVIL}},
        provenance={**PROVENANCE, "data.path": EVIL},
        rows=[{**row(1), EVIL: 1.0}, {**row(2), EVIL: 2.0}],
        tensors=pictures(),
        method=EVIL,
        notes=[EVIL],
        data={"classes": 3, "class_names": [EVIL, '"><img src=x onerror=y>', "c"]},
        plugins=[{EVIL: EVIL}],
        versions={EVIL: EVIL},
    )
    (folder / "unreadable.txt").write_text(f"{EVIL}.jpg\t{EVIL}\n")
    (folder / "backbone.safetensors").write_bytes(b"")
    page = Page(render(folder))
    assert not page.all("script")
    assert not page.all("b")
    assert all(attrs["src"].startswith("data:image/png") for attrs in page.all("img"))
    assert page.text.count(EVIL) >= 8


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunDirError, match="holds no run"):
        render(tmp_path)


def test_a_run_without_its_configuration_is_refused(run):
    (run / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="cannot read"):
        render(run)


def test_a_last_row_that_was_cut_is_left_out(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 31, "epo')
    assert "toy" in render(run)


# -- the verdict ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("final", "tone", "sentence"),
    [
        ({}, "good", "Learned: k-NN accuracy 61.4 %, the untrained backbone 30.2 % (+31.1 points)."),
        ({"knn_top1": 31.0}, "open", "Barely better than the untrained backbone: k-NN accuracy 31.0 %"),
        ({"knn_top1": 20.0, "knn_random_init": 10.0}, "bad", "Did not beat raw pixels: k-NN accuracy 20.0 %"),
        (
            {"knn_top1": 20.0, "std_ratio": 0.003},
            "bad",
            "Collapsed: different images give nearly the same features or projections (std_ratio 0.003;",
        ),
        ({"knn_top1": 20.0, "std_ratio": math.nan}, "bad", "Collapsed"),
        ({"std_ratio": 0.003}, "good", "Learned"),
    ],
)
def test_the_first_sentence_says_what_came_out(tmp_path, final, tone, sentence):
    found = verdict_of(write_run(tmp_path / "run", final={**FINAL, **final}))
    assert found[0] == tone
    assert found[1].startswith(sentence)


def test_a_projector_may_collapse_before_its_backbone(tmp_path):
    final = {"loss": -1.0, "std_ratio": 0.46, "rankme": 300.0}
    tone, sentence = verdict_of(write_run(tmp_path / "run", rows=[row(2, z_std_ratio=0.02)], final=final))
    assert tone == "bad"
    assert "projections (z_std_ratio 0.02; healthy is near 1" in sentence


def test_spread_is_read_against_the_bound_of_a_collapse(tmp_path):
    html = render(write_run(tmp_path / "run", rows=[row(2, z_std_ratio=0.9, z_norm=3.0)]))
    charts = re.findall(r"<svg.*?</svg>", html)
    marked = [chart for chart in charts if "collapsed below" in chart]
    assert [re.search(r'aria-label="(\w+)', chart).group(1) for chart in marked] == ["z_std_ratio"]


def test_without_labels_nothing_is_claimed(tmp_path):
    folder = write_run(tmp_path / "run", final={"loss": 0.1, "std_ratio": 0.5, "rankme": 40.0})
    tone, sentence = verdict_of(folder)
    assert tone == "open"
    assert sentence.startswith("Finished: the features are spread (std_ratio 0.5, rankme 40). Without labels")
    assert "k-NN" not in Page(render(folder)).text.partition("Curves")[0].replace(sentence, "")


@pytest.mark.parametrize(
    ("status", "tone", "sentence"),
    [
        ("running", "open", "Still running at step 30, epoch 3, loss 0.03333."),
        ("stopped", "open", "Stopped at step 30, epoch 3, loss 0.03333. Go on with: akssl resume"),
        ("failed", "bad", "Failed at step 30, epoch 3, loss 0.03333: out of &lt;memory&gt;"),
        ("collapsed", "bad", "Collapsed: different images give nearly the same features or projections."),
    ],
)
def test_a_run_without_final_scores_says_how_far_it_came(tmp_path, status, tone, sentence):
    found = verdict_of(write_run(tmp_path / "run", status=status, error="out of <memory>", final={}))
    assert found[0] == tone
    assert found[1].startswith(sentence)


# -- scores, curves, time -------------------------------------------------------------------------
def test_scores_stand_side_by_side(run):
    html = render(run)
    scores = html.partition('id="scores"')[2].partition("</section>")[0]
    for label, value in (
        ("trained backbone", "61.4"),
        ("untrained", "30.2"),
        ("raw pixels", "21.5"),
        ("3 classes", "33.3"),
    ):
        assert re.search(rf"{label}\)?</th><td>{value}</td>", scores), label
    assert "width: 61.4%" in scores


def test_there_is_a_curve_for_every_number_of_the_rows(tmp_path):
    rows = [{**entry, "teacher_entropy": 2.0} for entry in ROWS]
    page = Page(render(write_run(tmp_path / "run", rows=rows)))
    titles = [attrs["aria-label"].partition(" over ")[0] for attrs in page.all("svg")]
    assert titles == [
        "Loss", "k-NN accuracy, %", "Std ratio (1 healthy, 0 collapsed)", "RankMe, effective dimensions",
        "Learning rate", "Images per second", "teacher_entropy",
    ]  # fmt: skip


def test_the_k_nn_curve_is_read_against_the_baselines(run):
    html = render(run)
    chart = re.search(r'<svg[^>]*aria-label="k-NN.*?</svg>', html).group()
    assert "raw pixels" in chart
    assert chart.count('class="mark"') == 2


def test_a_loss_that_is_not_a_number_leaves_a_gap(tmp_path):
    losses = [3.0, 2.0, math.nan, 1.0, None, 0.5]
    rows = [{"step": i, "epoch": float(i), "loss": loss} for i, loss in enumerate(losses)]
    html = render(write_run(tmp_path / "run", rows=rows))
    chart = re.search(r"<svg.*?</svg>", html).group()
    paths = re.findall(r'<path d="M([^"]*)"', chart)
    assert [path.count("L") + 1 for path in paths] == [2]
    assert chart.count("<circle") == 4
    assert "nan" not in chart


def test_numbers_that_never_were_finite_have_no_curve(tmp_path):
    html = render(write_run(tmp_path / "run", rows=[{"step": 1, "epoch": 1.0, "loss": math.nan}]))
    assert "<svg" not in html


def test_time_is_shared_out(run):
    time = render(run).partition('id="time"')[2].partition("</section>")[0]
    assert re.search(r"step</th><td>75\.0 %</td>", time)
    assert re.search(r"load</th><td>25\.0 %</td>", time)


# -- pictures -------------------------------------------------------------------------------------
def decoded(attrs):
    return Image.open(io.BytesIO(base64.b64decode(attrs["src"].partition(",")[2])))


def test_pictures_are_the_tensors_of_the_run(run):
    page = Page(render(run))
    images = page.all("img")
    assert len(images) == 2 * 4 + 2 * 6
    assert all(attrs["alt"] for attrs in images)
    original = next(attrs for attrs in images if attrs["alt"] == "image 2")
    expected = pictures()["originals"][1].permute(1, 2, 0)
    assert decoded(original).tobytes() == expected.contiguous().numpy().tobytes()


def test_neighbours_with_the_label_of_their_query_are_marked(run):
    page = Page(render(run))
    assert "3 of 5 neighbours have the label of their query" in page.text
    kinds = [attrs.get("class") for attrs in page.all("div") if attrs.get("class") in ("same", "other")]
    assert kinds == ["same", "other", "same", "same", "other"]
    alts = [attrs["alt"] for attrs in page.all("img")]
    assert "neighbour 1 of query 1: class 0, same label" in alts
    assert "neighbour 3 of query 1" in alts


def test_classes_have_their_names_where_they_are_known(tmp_path):
    folder = write_run(tmp_path / "run", tensors=pictures(), data={"classes": 3, "class_names": ["cat", "dog", "owl"]})
    assert "✓ cat" in Page(render(folder)).text


def test_neighbours_without_labels_are_shown_unmarked(tmp_path):
    tensors = pictures()
    del tensors["neighbour_labels"]
    html = render(write_run(tmp_path / "run", tensors=tensors))
    assert "nearest 3" in html
    assert "label" not in html.partition('id="nearest-neighbours"')[2].partition("</section>")[0]


@pytest.mark.parametrize(
    ("channels", "mode", "said"),
    [
        (1, "L", None),
        (2, "L", "The images have 2 channels; the first is shown as grey."),
        (13, "RGB", "The images have 13 channels; the first three are shown as red, green and blue."),
    ],
)
def test_images_of_any_channels_are_shown(tmp_path, channels, mode, said):
    page = Page(render(write_run(tmp_path / "run", tensors=pictures(channels))))
    assert {decoded(attrs).mode for attrs in page.all("img")} == {mode}
    assert (said or "channels;") in page.text if said else "channels;" not in page.text


def test_large_pictures_are_made_smaller(tmp_path):
    tensors = {"views.global": torch.full((1, 2, 3, 200, 300), 77, dtype=torch.uint8)}
    page = Page(render(write_run(tmp_path / "run", tensors=tensors)))
    assert {decoded(attrs).size for attrs in page.all("img")} == {(128, 85)}
    assert {decoded(attrs).getpixel((5, 5)) for attrs in page.all("img")} == {(77, 77, 77)}


# -- records --------------------------------------------------------------------------------------
def test_settings_tell_who_decided_them(run):
    settings = render(run).partition('id="settings"')[2].partition("</section>")[0]
    decided, _, defaults = settings.partition("<details>")
    assert re.search(r"train\.epochs</th><td><span[^>]*>3</span></td><td>user</td>", decided)
    assert "rule: small suits 32 px" in decided
    assert "train.clip" not in decided
    assert re.search(r"train\.clip</th><td><span[^>]*>null</span>", defaults)
    assert "2 settings at their default" in defaults


def test_without_provenance_no_origin_is_claimed(tmp_path):
    html = render(write_run(tmp_path / "run", provenance=None))
    assert "not recorded" in html
    assert "at their default" not in html


def test_the_snippet_loads_this_run(run):
    html = render(run)
    assert "akssl_core.load_backbone(" in html
    assert str(run) in html
    (run / "backbone.safetensors").unlink()
    assert "load_backbone" not in render(run)


def test_long_lists_of_unreadable_files_are_cut_and_counted(run):
    (run / "unreadable.txt").write_text("".join(f"{i}.jpg\tempty\n" for i in range(350)))
    text = Page(render(run)).text
    assert "350 files could not be read" in text
    assert "… and 150 more in unreadable.txt" in text


# -- the pieces -----------------------------------------------------------------------------------
def test_markup_is_escaped_once():
    assert tag("td", "a < b", Html("<i>c</i>"), title='"q"') == '<td title="&quot;q&quot;">a &lt; b<i>c</i></td>'
    assert join(["<", tag("br")]) == "&lt;<br>"
    assert '<th scope="row">&amp;</th>' in table(["A"], [["&"]])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.5, 1]), (0, 100, [0, 50, 100]), (-1, -0.5, [-1, -0.8, -0.6, -0.4]), (3, 3, None), (0, 0, None)],
)
def test_ticks_are_round_and_enclose_the_values(low, high, expected):
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 3 <= len(found) <= 7
    if expected:
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("values", [[1e-9, 2e-9], [1e9, 1e9 + 1], [-3e5, 8e5], [0.1 + 0.2, 0.3]])
def test_any_scale_can_be_drawn(values):
    chart = line_chart(list(enumerate(values)), title="t", x_label="epoch")
    numbers = [float(n) for n in re.findall(r"[ML]?(-?[\d.]+) (-?[\d.]+)", chart)[0]]
    assert all(0 <= n <= 360 for n in numbers)


def test_one_point_can_be_drawn():
    chart = line_chart([(1.0, 5.0)], title="t", x_label="epoch")
    assert "<path" not in chart
    assert "<circle" in chart


def test_thinning_keeps_highs_lows_and_gaps():
    points = [(float(i), math.sin(i / 50)) for i in range(20_000)]
    points[7777] = (7777.0, 9.0)
    points[12_345] = (12_345.0, math.nan)
    shown = thin(points, 600)
    assert len(shown) <= 605
    assert max(y for _, y in shown if math.isfinite(y)) == 9.0
    assert min(y for _, y in shown if math.isfinite(y)) == min(y for _, y in points if math.isfinite(y))
    assert len(pieces(shown)) == 2
    assert [x for x, _ in shown] == sorted(x for x, _ in shown)
    assert thin(points[:600], 600) == points[:600]


@pytest.mark.parametrize(("value", "expected"), [(0.012349, "0.01235"), (4500, "4500"), (-1e-17, "0"), (12.0, "12")])
def test_numbers_are_short(value, expected):
    assert short(value) == expected
