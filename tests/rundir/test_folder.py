from __future__ import annotations

import json
import tracemalloc

import pytest
import torch
from safetensors.torch import load

from akssl_core.config.yaml import read_yaml
from akssl_core.errors import ConfigError, RunDirError
from akssl_core.rundir import checkpoints
from akssl_core.rundir.checkpoints import CheckpointState
from akssl_core.rundir.files import digest, json_bytes, tensor_bytes
from akssl_core.rundir.folder import RunDir, read_tensors
from akssl_core.rundir.schemas import Manifest


@pytest.fixture
def run(tmp_path):
    run = RunDir.create(tmp_path / "run")
    run.update_manifest(Manifest(status="running"))
    run.unlock()
    return run


def save(run, step, score=None, keep=2):
    state = CheckpointState(step, score)
    return run.save_checkpoint({"w": torch.full((3,), float(step))}, {"w/momentum": torch.ones(2)}, state, keep=keep)


def test_a_folder_that_holds_a_run_is_refused_with_the_ways_out(run):
    with pytest.raises(RunDirError, match=r"already holds a run.*akssl resume.*--overwrite"):
        RunDir.create(run.path)
    run.log({"step": 1})
    save(run, 1)
    RunDir.create(run.path, overwrite=True)
    assert not (run.path / "metrics.jsonl").exists()
    assert list((run.path / "checkpoints").iterdir()) == []


def test_overwrite_leaves_other_files_alone(run):
    (run.path / "mine.txt").write_text("keep")
    RunDir.create(run.path, overwrite=True)
    assert (run.path / "mine.txt").read_text() == "keep"


def test_what_is_replaced_is_gone_with_the_first_row_and_survives_those_that_never_had_one(run):
    (run.path / "config.yaml").write_text("seed: 1")
    for _ in range(2):  # the first is killed
        new = RunDir.create(run.path, overwrite=True)
        (run.path / "config.yaml").write_text("seed: 2")
        new.unlock()
    new.bring_back()
    assert (run.path / "config.yaml").read_text() == "seed: 1"
    RunDir.create(run.path, overwrite=True).log({"step": 1})
    assert {file.name for file in run.path.iterdir()} == {".lock", "checkpoints", "metrics.jsonl"}


def test_a_file_in_the_way_or_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match="is a file"):
        RunDir.create(tmp_path / "file")
    with pytest.raises(RunDirError, match="cannot create"):
        RunDir.create(tmp_path / "file" / "below")


def test_opening_what_is_no_run_offers_the_neighbour(run):
    with pytest.raises(RunDirError, match=r"holds no run.*Did you mean 'run'"):
        RunDir.open(run.path.parent / "ran")


def test_manifest_keeps_what_it_knows(run):
    run.update_manifest(Manifest(method="x"))
    run.update_manifest(Manifest(status="finished"))
    assert run.manifest.method == "x"
    assert run.manifest.status == "finished"


def test_fields_of_other_versions_are_kept(run):
    """Those that a newer version has added stay, those that an older one lacks may be missing."""
    (run.path / "manifest.json").write_text('{"colour": {"of": ["sky"]}, "status": "failed"}')
    run.update_manifest(Manifest(status="running", resumed_at=3))
    written = json.loads((run.path / "manifest.json").read_text())
    assert {**written, "updated": ""} == {
        "colour": {"of": ["sky"]}, "status": "running", "resumed_at": 3, "updated": ""
    }  # fmt: skip


@pytest.mark.parametrize("text", ["{", "[]", '{"final": 5}', '{"notes": [1]}', "[" * 9999, "\ud800"])
def test_a_damaged_manifest_is_one_line(run, text):
    (run.path / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    for call in (lambda: run.manifest, lambda: run.update_manifest(Manifest(status="running"))):
        with pytest.raises(RunDirError, match=r"manifest\.json is damaged: [^\n]*$"):
            call()


def test_a_checkpoint_of_another_version_is_read(run):
    """One with a field more and without those that are not needed."""
    file = save(run, 3) / "state.json"
    known = json.loads(file.read_text())
    table = {"step": 3, "colour": "blue", "checksums": known["checksums"]}
    file.write_bytes(json_bytes({**table, "digest": digest(json_bytes(table))}))
    assert run.latest()[0].state == CheckpointState(3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step", "x"),
        ("step", -1),
        ("settings", []),
        ("callbacks", 3),
        ("callbacks", [3]),
        ("scaler", 3),
        ("score", "x"),
    ],
)
def test_a_checkpoint_of_another_form_is_damaged(run, field, value):
    save(run, 2)
    file = save(run, 3) / "state.json"
    table = {**json.loads(file.read_text()), field: value}
    del table["digest"]
    file.write_bytes(json_bytes({**table, "digest": digest(json_bytes(table))}))
    checkpoint, problems = run.latest()
    assert checkpoint.state.step == 2
    assert "00000003 is damaged" in problems[0]


@pytest.mark.parametrize("row", ["{}", '{"step": "a"}', '{"step": null}', "[]", "null"])
def test_rows_without_a_step_end_the_rows(run, row):
    (run.path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{row}\n{{"step": 3}}\n')
    again = RunDir.open(run.path)
    again.rewind(5)
    assert again.history == [{"step": 1}]


def test_damage_is_told_in_plain_words(run):
    for text, words in (
        ('{"data": 3}', "data should be a table (name: value)"),
        ('{"notes": "x"}', "notes should be a list"),
        ('{"curves": {"loss": 3}}', "curves.loss should be a table (name: value)"),
        ('{"verdict": 3}', "verdict should be a text"),
    ):
        (run.path / "manifest.json").write_text(text)
        with pytest.raises(RunDirError) as caught:
            run.update_manifest(Manifest(status="running"))
        assert str(caught.value).endswith(f"manifest.json is damaged: {words}.")


def test_metrics_come_back_in_order_and_a_cut_line_is_left_out(run):
    for step in (1, 2, 3):
        run.log({"step": step, "loss": 0.5})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    again = RunDir.open(run.path)
    assert [row["step"] for row in again.history] == [1, 2, 3]
    again.rewind(2)
    assert [json.loads(line)["step"] for line in (run.path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_what_is_no_number_is_null_in_json(run):
    run.log({"step": 1, "rankme": float("nan")})
    run.update_manifest(Manifest(final={"rankme": float("inf"), "loss": 0.5}))
    assert RunDir.open(run.path).history == [{"step": 1, "rankme": None}]
    assert run.manifest.final == {"rankme": None, "loss": 0.5}


def test_what_is_no_number_is_null_inside_of_lists_too(run):
    folder = run.save_checkpoint({}, {}, CheckpointState(1, callbacks=[("Own", {"sum": float("nan")})]), keep=1)
    assert json.loads((folder / "state.json").read_text())["callbacks"] == [["Own", {"sum": None}]]
    assert run.latest()[0].state.callbacks == [("Own", {"sum": None})]


def test_none_takes_a_field_out_of_the_manifest(run):
    run.update_manifest(Manifest(error="disk"))
    run.update_manifest(Manifest(error=None, final=None))
    assert run.manifest.table().keys() == {"created", "status", "updated"}


def test_checkpoint_round_trip_is_exact(run):
    save(run, 7)
    checkpoint, problems = run.latest()
    assert problems == []
    assert checkpoint.state.step == 7
    assert torch.equal(checkpoint.model["w"], torch.full((3,), 7.0))
    assert torch.equal(checkpoint.optimizer["w/momentum"], torch.ones(2))


def test_one_file_of_a_checkpoint_is_in_memory_at_a_time(run, monkeypatch):
    events = []
    for name in ("tensor_bytes", "write_flushed"):
        original = getattr(checkpoints, name)
        monkeypatch.setattr(checkpoints, name, lambda *args, n=name, o=original: events.append(n) or o(*args))
    save(run, 7)
    assert events == ["tensor_bytes", "write_flushed", "tensor_bytes", "write_flushed", "write_flushed"]
    assert run.latest()[1] == []


def test_equal_tensors_and_texts_are_equal_files():
    texts = {name: f"{name} ä" for name in "sphinxofblackquartz"}
    files = [tensor_bytes({"w": torch.ones(3)}, dict(sorted(texts.items(), reverse=i % 2))) for i in range(6)]
    assert len(set(files)) == 1
    assert load(files[0])["w"].tolist() == [1, 1, 1]


def test_the_last_ones_and_the_best_are_kept(run):
    for step, score in ((1, 10.0), (2, 50.0), (3, 20.0), (4, None), (5, 30.0)):
        save(run, step, score)
    assert [int(path.name) for path in run.checkpoints()] == [2, 4, 5]


@pytest.mark.parametrize("damage", ["truncate", "flip", "json", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(run, damage):
    save(run, 1)
    newest = save(run, 2)
    file = newest / "model.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "json":
        (newest / "state.json").write_text("{")
    else:
        file.unlink()
    checkpoint, problems = run.latest()
    assert checkpoint.state.step == 1
    assert "00000002 is damaged" in problems[0]


def test_what_is_saved_after_damage_is_kept_however_young_the_damaged_are(run):
    """A run that goes on from 1 saves 2 while 8 and 9 are still there, and younger by name."""
    for step in (1, 8, 9):
        save(run, step)
    for step in (8, 9):
        (run.path / "checkpoints" / f"{step:08d}" / "model.safetensors").write_bytes(b"")
    run.rewind(1)
    assert [int(path.name) for path in run.checkpoints()] == [8, 9]
    save(run, 1)
    save(run, 2)
    assert [int(path.name) for path in run.checkpoints()] == [1, 2]
    assert run.latest()[1] == []


def test_a_kill_within_a_deletion_leaves_no_part_of_a_checkpoint(run, monkeypatch):
    def dies(path, *args, **kwargs):
        if path.exists():
            sorted(path.iterdir())[0].unlink()
            raise KeyboardInterrupt

    save(run, 1, keep=1)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", dies)
        with pytest.raises(KeyboardInterrupt):
            save(run, 2, keep=1)
    names = {path.name for path in (run.path / "checkpoints").iterdir() if not path.name.startswith(".")}
    assert names == {"00000002"}
    assert run.latest()[0].state.step == 2
    run.rewind(2)
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["00000002"]


def test_an_interrupted_write_leaves_no_checkpoint(run, monkeypatch):
    def fail(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr("akssl_core.rundir.checkpoints.write_flushed", fail)
    with pytest.raises(OSError, match="No space left"):
        save(run, 1)
    assert run.checkpoints() == []
    assert run.latest() == (None, [])


def test_nothing_half_written_under_a_final_name(run, monkeypatch):
    run.write_text("report.html", "whole")
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        run.write_text("report.html", "half")
    assert (run.path / "report.html").read_text() == "whole"


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1, 2", "not valid YAML"), ("- 1\n- 2\n", "must hold settings"), ("a: \x00", "not valid YAML")],
)
def test_bad_yaml_says_where(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_yaml(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match="cannot read"):
        read_yaml(tmp_path / "none.yaml")


def test_yaml_builds_no_objects(tmp_path):
    (tmp_path / "c.yaml").write_text("a: !!python/object/apply:os.system ['true']")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(tmp_path / "c.yaml")


def test_damaged_tensors_are_an_error_of_the_user(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(RunDirError, match="cannot be read as safetensors"):
        read_tensors(tmp_path / "x.safetensors")


def test_reading_a_manifest_takes_no_memory_to_speak_of(tmp_path):
    (tmp_path / "manifest.json").write_text('{"status": "running"}')
    tracemalloc.start()
    assert RunDir(tmp_path).manifest.status == "running"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20  # a run that is out of memory reads it to say so
