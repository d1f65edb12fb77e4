from __future__ import annotations

import json
import math
import re

import pytest
from synthetic_run import CONFIG, EVIL, FINAL, PROVENANCE, ROWS, Page, pictures, row, write_run

from akssl_core.errors import ConfigError, RunDirError
from akssl_core.reporting import render


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


def test_a_curve_is_shown_with_what_its_method_expects(tmp_path):
    curves = {"loss": {"shape": f"falls from chance {EVIL}", "lines": {"chance": 1.5}}, "rankme": {"shape": "rises"}}
    html = render(write_run(tmp_path / "run", curves=curves))
    assert "Expected: falls from chance &lt;script&gt;" in html
    assert re.search(r'class="mark"></line>.*<text[^>]*>chance</text>', html)
    assert html.count("<figcaption>") == 2
    assert "<figcaption>" not in render(write_run(tmp_path / "plain"))


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(49.0, 51.0, "as expected"), (51.0, 60.0, "less than expected"), (40.0, 49.0, "more than expected")],
)
def test_a_run_is_held_against_others_of_its_recipe(tmp_path, low, high, words):
    """After the last epoch that both have."""
    after = [(31.0, 30.0, 32.0), (50.5, low, high), (70.0, 60.0, 80.0)]
    epochs = [dict(zip(("mean", "low", "high"), of, strict=True)) for of in after]
    expected = {"data": f"shapes {EVIL}", "runs": 3, "epochs": epochs}
    rows = [row for row in ROWS if row["epoch"] < 3]
    html = render(write_run(tmp_path / "run", rows=rows, curves={"knn_top1": {"expected": expected}}))
    assert "3 runs of this recipe on the same data (shapes &lt;script&gt;" in html
    told = f"50.5 % after 2 of 3 epochs, and {low} to {high} % is as expected of another seed. This one has 50.0 %: "
    assert f"{told}{words}." in html


def judged(run, **scores):
    """An `evaluation.json` with one protocol at two shares of the labels."""
    score = {"system": "trained", "k": 20, "accuracy": 61.4, "low": 60.25, "high": 62.5, "labels": 1.0}
    found = {"k": 20, "answer": f"Did it help? Yes {EVIL}.", "interval": "made up", "notes": ["small set"]}
    found["scores"] = [{**score, "system": "random init", "accuracy": 30}, {**score, "k": 5, "accuracy": 9}, score]
    results = {"knn": {"photos": {"0.1": {**found, "scores": found["scores"][:2]}, "1": found}}}
    (run / "evaluation.json").write_text(json.dumps({"results": results, **scores}))


def test_evaluations_are_shown_with_their_intervals(run):
    judged(run)
    html = render(run)
    part = Page(html.partition('id="evaluation"')[2].partition("</section>")[0].partition(">")[2])
    assert "knn, k = 20 on photos: accuracy in percent with its interval" in part.text
    assert "10 %" in part.text
    assert "61.4 [60.2, 62.5]" in part.text
    assert "30.0 [60.2, 62.5]" in part.text
    assert "9.0" not in part.text, "the other number of neighbours"
    assert part.text.count("Did it help?") == 2
    assert part.text.count("small set") == 1
    assert "Interval: made up." in part.text
    assert "<script" not in html


def test_a_segmentation_is_shown_as_what_it_is_with_its_own_interval(run):
    judged(run)
    found = json.loads((run / "evaluation.json").read_text())
    shares = found["results"]["knn"]["photos"]
    found["results"]["segment"] = {"photos": {"1": {**shares["1"], "k": None, "interval": "resampled"}}}
    (run / "evaluation.json").write_text(json.dumps(found))
    html = render(run)
    assert "segment on photos: mean IoU in percent with its interval" in html
    assert html.count("Interval: made up.") == html.count("Interval: resampled.") == 1


def test_evaluations_of_earlier_weights_are_left_out(run):
    judged(run, backbone="of others")
    assert 'id="evaluation"' not in render(run)


@pytest.mark.parametrize("text", ["{", "[]", '{"results": {"knn": {"x": {"1": {"scores": [3]}}}}}'])
def test_an_evaluation_of_another_form_is_passed_over(run, text):
    (run / "evaluation.json").write_text(text)
    assert 'id="evaluation"' not in render(run)


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
        ({}, "good", "Healthy, learned: k-NN accuracy 61.4 %; raw pixels 21.5 % (+39.9 points [+36.0, +43.8]), "),
        ({"knn_top1": 31.0}, "open", "Healthy, but barely better than the untrained backbone: k-NN accuracy 31.0 %"),
        ({"knn_top1": 20.0, "knn_random_init": 10.0}, "bad", "Healthy, but did not beat raw pixels: k-NN"),
        ({"knn_top1": 20.0}, "bad", "Healthy, but did not beat raw pixels and the untrained backbone: k-NN"),
        (
            {"knn_top1": 20.0, "std_ratio": 0.003},
            "bad",
            "Collapsed, did not beat raw pixels and the untrained backbone: the final features say that different",
        ),
        ({"knn_top1": 20.0, "std_ratio": math.nan}, "bad", "Collapsed"),
        ({"std_ratio": 0.003}, "good", "Healthy, learned"),
    ],
)
def test_the_first_sentence_says_what_came_out(tmp_path, final, tone, sentence):
    found = verdict_of(write_run(tmp_path / "run", final={**FINAL, **final}))
    assert found[0] == tone
    assert found[1].startswith(sentence)


def test_a_projector_may_collapse_before_its_backbone(tmp_path):
    final = {"loss": -1.0, "std_ratio": 0.46, "rankme": 300.0}
    tone, sentence = verdict_of(
        write_run(tmp_path / "run", rows=[row(step, z_std_ratio=0.02) for step in (10, 20)], final=final)
    )
    assert tone == "bad"
    assert sentence.startswith("Collapsed: the projections of different images are all but the same: z_std_ratio 0.02")


def test_spread_is_read_against_the_bound_of_a_collapse(tmp_path):
    html = render(write_run(tmp_path / "run", rows=[row(2, z_std_ratio=0.9, z_norm=3.0)]))
    charts = re.findall(r"<svg.*?</svg>", html)
    marked = [chart for chart in charts if "collapsed below" in chart]
    assert [re.search(r'aria-label="(\w+)', chart).group(1) for chart in marked] == ["z_std_ratio"]


def test_without_labels_nothing_is_claimed(tmp_path):
    folder = write_run(tmp_path / "run", final={"loss": 0.1, "std_ratio": 0.5, "rankme": 40.0})
    tone, sentence = verdict_of(folder)
    assert tone == "open"
    assert sentence.startswith("Healthy: std_ratio 0.5, rankme 40; without labels")
    assert "k-NN" not in Page(render(folder)).text.partition("Curves")[0].replace(sentence, "")


@pytest.mark.parametrize(
    ("status", "tone", "sentence"),
    [
        ("running", "open", "Still running at step 30, epoch 3, loss 0.03333."),
        ("stopped", "open", "Stopped at step 30, epoch 3, loss 0.03333. Go on with: akssl resume"),
        ("failed", "bad", "Failed at step 30, epoch 3, loss 0.03333: out of &lt;memory&gt;"),
        ("collapsed", "bad", "Collapsed: the final features say that different images are all but the same."),
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
    assert re.search(r"forward</th><td>75\.0 %</td>", time)
    assert re.search(r"load</th><td>25\.0 %</td>", time)


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
