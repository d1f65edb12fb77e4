"""What cannot be opened: each refusal says what was expected and how to mend it, and nobody waits for the hub."""

from __future__ import annotations

import os

import datasets
import huggingface_hub
import pyarrow as pa


def write_arrow(table, path):
    with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.data.schema) as writer:
        writer.write_table(table.data.table)


# -- what is refused ------------------------------------------------------------------------------
def test_paths_that_lead_nowhere(refused, table):
    table(3).to_parquet("photos.parquet")
    os.makedirs("empty")
    os.makedirs("odd[1]")
    for path in ("./fotos.parquet", "fotos.parquet", "~/a/b/c", "a/b/c", "two words"):
        assert f"data: '{path}' does not exist." in refused(path)
    assert "Did you mean 'photos.parquet'? Local data is a .parquet" in refused("./fotos.parquet")
    assert "'empty' cannot be loaded: The directory at" in refused("empty")
    assert "one of the characters * ? [ in its path" in refused("odd[1]")
    assert "no split 'tain'. Did you mean 'train'? Splits: train." in refused("photos.parquet", split="tain")
    assert "has no configurations, so 'x' names nothing" in refused("photos.parquet", config="x")


def test_files_that_are_something_else(refused, table):
    for name in ("text.parquet", "text.arrow", "text.csv"):
        with open(name, "w") as file:
            file.write("a,b\n1,2\n" * 9)
    open("nothing.parquet", "w").close()
    table(3).select([]).to_parquet("rows.parquet")
    write_arrow(table(3).select([]).flatten_indices(), "rows.arrow")
    assert "is no Parquet file, or a damaged one" in refused("text.parquet")
    assert "is no Parquet file, or a damaged one" in refused("nothing.parquet")
    assert "is no Arrow file, or a damaged one" in refused("text.arrow")
    assert "a file of another kind; expected one of .parquet, .pq, .arrow" in refused("text.csv")
    assert "'rows.parquet' is empty" in refused("rows.parquet")
    assert "'rows.arrow' is empty" in refused("rows.arrow")
    datasets.DatasetDict(train=table(3), test=table(3)).save_to_disk("saved")
    os.remove("saved/test/data-00000-of-00001.arrow")  # what saving no rows leaves
    assert "saved/test' is empty. Save it again without" in refused("saved")


def test_a_script_beside_the_data_never_runs(refused, table):
    os.makedirs("tricky")
    table(3).to_parquet("tricky/train.parquet")
    with open("tricky/tricky.py", "w") as file:
        file.write("open('ran', 'w').close()")
    assert "script" in refused("tricky")
    assert not os.path.exists("ran")


# -- the hub, which no test asks ------------------------------------------------------------------
class Missing(huggingface_hub.errors.RepositoryNotFoundError):
    """The hub's answer, without the response that belongs to it."""

    def __init__(self):
        Exception.__init__(self, "404 Client Error")


def answer(monkeypatch, asked):
    """Switch the hub on and let it answer: an exception is raised, anything else returned."""

    def dataset_info(self, name, timeout):
        if isinstance(asked, Exception):
            raise asked

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    loaded = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: loaded.append((args, kwargs)) or asked)
    return loaded


def test_the_hub_switched_off_is_told_at_once(refused):
    for name in ("beans", "owner/name"):
        text = refused(name)
        assert f"data: '{name}' is no local path, and the Hugging Face hub is switched off (HF_HUB_OFFLINE" in text
        assert "data.path=./photos.parquet" in text


def test_the_hub_out_of_reach_and_wrong_names(refused, monkeypatch):
    loaded = answer(monkeypatch, OSError("Name or service not known"))
    text = refused("owner/name")
    assert "cannot be reached (Name or service not known)" in text
    assert "HF_HUB_OFFLINE=1" in text
    loaded += answer(monkeypatch, Missing())
    text = refused("owner/name")
    assert "no data set of this name that you may read. Check the spelling" in text
    assert "data.path=./photos.parquet" in text
    assert loaded == [], "the library would try for half a minute"
    assert "'imagefolder' is a format of files, not a data set" in refused("imagefolder")


def test_a_name_on_the_hub(source, refused, table, monkeypatch):
    loaded = answer(monkeypatch, datasets.DatasetDict(train=table(10), validation=table(4)))
    found = source("owner/name", config="small")
    assert [args for args, _ in loaded] == [("owner/name", "small")]
    assert (len(found.train()), len(found.probe()[1])) == (10, 4)
    answer(monkeypatch, datasets.DatasetDict(train=table(10), extra=table(3).select([])))
    assert "the split 'extra' of 'owner/name' is empty. Splits: train, extra." in refused("owner/name", split="extra")
