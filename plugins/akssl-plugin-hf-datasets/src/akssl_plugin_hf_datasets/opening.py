"""From what a user names to the parts of a data set: a local file or folder, or a name on the hub."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from akssl_core import DataError, did_you_mean, nearest_path

from .words import listed, one_line

FILES = {".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow"}  # suffix -> format
SAVED = ("state.json", "dataset_dict.json")  # what save_to_disk leaves in a folder
ON_THE_HUB = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
WAIT = 10.0  # seconds for the hub's first answer
LOCAL = (
    "Local data is a .parquet or .arrow file, a folder of them or of images, or a folder written by save_to_disk: "
    "data.path=./photos.parquet"
)


def open_splits(path: str, config: str | None) -> dict[str, Any]:
    """The parts of a data set by name, each a `datasets.Dataset`. A data set without parts is called "train".

    The hub is asked only for what is not a local path. `datasets` keeps a copy of Parquet files in its cache.

    Raises:
        DataError: nothing is there, it cannot be read, or the hub cannot be reached.
    """
    place = Path(path).expanduser()
    with _quiet():
        loaded = _local(place.absolute(), path, config) if place.exists() else _from_hub(path, config)
    return dict(loaded) if isinstance(loaded, Mapping) else {"train": loaded}


def folder_of(path: str) -> Path | None:
    """The folder that paths inside a local data set start from; None for one of the hub."""
    place = Path(path).expanduser().absolute()
    if not place.exists():
        return None
    return place if place.is_dir() else place.parent


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no log lines of the libraries: what goes wrong is told by an error of ours."""
    import datasets  # type: ignore[import-untyped]
    from huggingface_hub import utils as hub

    level = datasets.logging.get_verbosity()
    quieted = [room for room in (datasets, hub) if not room.are_progress_bars_disabled()]
    for room in quieted:
        room.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        for room in quieted:
            room.enable_progress_bars()


def _local(place: Path, path: str, config: str | None) -> Any:
    """Load a file or folder that exists."""
    import datasets

    saved = any((place / name).is_file() for name in SAVED)
    if config is not None and (saved or place.is_file()):
        raise DataError(f"data.config: '{path}' has no configurations, so '{config}' names nothing. Leave it out.")
    if saved:
        _refuse_no_rows(place)
        return _loaded(path, datasets.load_from_disk, str(place))
    if place.is_dir():
        _refuse_pattern(place)
        return _loaded(path, datasets.load_dataset, str(place), config, **_no_scripts())
    kind = FILES.get(place.suffix.lower())
    if kind is None:
        raise DataError(f"data: '{path}' is a file of another kind; expected one of {', '.join(FILES)}. {LOCAL}.")
    _refuse_broken(place, path, kind)
    return _loaded(path, datasets.load_dataset, kind, data_files={"train": [glob.escape(str(place))]})


def _refuse_no_rows(saved: Path) -> None:
    """Refuse a saved data set with a part that has no rows: the library stumbles over it.

    Raises:
        DataError: naming the part.
    """
    for state in sorted(saved.rglob(SAVED[0])):
        if not any(state.parent.glob("*.arrow")):
            raise DataError(f"data: the saved data set '{state.parent}' is empty. Save it again without what is empty.")


def _refuse_broken(file: Path, path: str, kind: str) -> None:
    """Refuse a file that is not of the format its name says, or that holds no row.

    Raises:
        DataError: with the reason.
    """
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        rows = parquet.read_metadata(file).num_rows if kind == "parquet" else _arrow_rows(file)
    except (pa.ArrowException, OSError) as error:
        name = kind.capitalize()
        raise DataError(
            f"data: '{path}' is no {name} file, or a damaged one: {one_line(error)}. Write it anew, or give another."
        ) from error
    if rows == 0:
        raise DataError(f"data: '{path}' is empty: it has no rows.")


def _arrow_rows(file: Path) -> int:
    """The number of rows of an Arrow file, of either of its two forms; nothing is read but headers."""
    import pyarrow as pa

    with pa.memory_map(str(file)) as source:
        try:
            return sum(batch.num_rows for batch in pa.ipc.open_stream(source))
        except (pa.ArrowInvalid, OSError):
            reader = pa.ipc.open_file(source)
            return sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))


def _refuse_pattern(folder: Path) -> None:
    """Refuse a folder whose files the library would not find: it takes these characters for patterns.

    Raises:
        DataError: naming the folder.
    """
    if any(sign in str(folder) for sign in "*?["):
        raise DataError(
            f"data: '{folder}' has one of the characters * ? [ in its path. Rename it, or make a link to it."
        )


def _from_hub(path: str, config: str | None) -> Any:
    """Load what the hub has under this name, or the copy in the cache where the hub is switched off.

    Raises:
        DataError: it can be no name on the hub, the hub does not have it, or cannot be reached.
    """
    import datasets

    _refuse_no_name(path)
    if _hub_has(path):
        return _loaded(path, datasets.load_dataset, path, config, **_no_scripts())
    try:
        return datasets.load_dataset(path, config, **_no_scripts())
    except (OSError, ValueError) as error:
        raise _absent(
            path,
            "the Hugging Face hub is switched off (HF_HUB_OFFLINE or HF_DATASETS_OFFLINE), and the cache holds no copy "
            f"({one_line(error)}). Switch the hub on, or give a local path.",
        ) from error


def _hub_has(path: str) -> bool:
    """Ask the hub once, so that nobody waits for the library's retries; False: the hub is switched off.

    Raises:
        DataError: the hub does not have it, or cannot be reached.
    """
    import datasets
    from huggingface_hub import HfApi, errors

    if datasets.config.HF_DATASETS_OFFLINE:
        return False
    try:
        HfApi().dataset_info(path, timeout=WAIT)
    except errors.OfflineModeIsEnabled:
        return False
    except errors.RepositoryNotFoundError as error:
        raise _absent(
            path,
            "the Hugging Face hub has no data set of this name that you may read. Check the spelling (OWNER/NAME); a "
            "private one needs your token: hf auth login.",
        ) from error
    except Exception as error:  # no network, a proxy that refuses, an answer that is no answer
        raise _absent(
            path,
            f"the Hugging Face hub cannot be reached ({one_line(error)}). A data set that was loaded before is read "
            f"from the cache with HF_HUB_OFFLINE=1.",
        ) from error
    return True


def _absent(path: str, why: str) -> DataError:
    """The error for what is neither here nor on the hub."""
    return DataError(f"data: '{path}' is no local path, and {why} {LOCAL}.{_near(path)}")


def _refuse_no_name(path: str) -> None:
    """Refuse a text that is meant as a path, or that `datasets` would take for one of its formats.

    Raises:
        DataError: with what was perhaps meant.
    """
    if ON_THE_HUB.fullmatch(path) is None or Path(path).suffix.lower() in FILES:
        raise DataError(f"data: '{path}' does not exist.{_near(path)} {LOCAL}.")
    if path.isidentifier() and find_spec(f"datasets.packaged_modules.{path}") is not None:
        raise DataError(f"data: '{path}' is a format of files, not a data set. {LOCAL}.")


def _near(path: str) -> str:
    """` Did you mean 'x'?` for the path nearest to one that does not exist, or nothing."""
    near = nearest_path(Path(path))
    return f" Did you mean '{near}'?" if near else ""


def _no_scripts() -> dict[str, bool]:
    """Data is data: releases before 4 would run a Python script that lies beside it."""
    import datasets

    return {"trust_remote_code": False} if int(datasets.__version__.partition(".")[0]) < 4 else {}


def _loaded(path: str, load: Any, *args: Any, **kwargs: Any) -> Any:
    """What the library loads; all that it raises becomes one line.

    Raises:
        DataError: with the first cause.
    """
    try:
        return load(*args, **kwargs)
    except Exception as error:  # the library lets through whatever its readers, caches and the network raise
        reason = one_line(error)
        cure = "Name one with data.config." if "config" in reason.lower() else f"{LOCAL}."
        raise DataError(f"data: '{path}' cannot be loaded: {reason}. {cure}") from error


def pick(splits: Mapping[str, Any], name: str, path: str, setting: str) -> Any:
    """One part of a data set.

    Raises:
        DataError: there is none of this name, or it is empty.
    """
    if name not in splits:
        hint = did_you_mean(name, splits)
        raise DataError(f"data.{setting}: '{path}' has no split '{name}'.{hint} Splits: {listed(splits)}.")
    if len(splits[name]) == 0:
        raise DataError(f"data.{setting}: the split '{name}' of '{path}' is empty. Splits: {listed(splits)}.")
    return splits[name]
