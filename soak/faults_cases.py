"""The faults that are tried, and what the command must answer to each."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from faults_lab import PLUGIN, SHAPES, Case, Lab
from PIL import Image

PHOTOS = ("--data", "{}/photos", "--set", "data.cache_gb=0", "--epochs", "6")
STRICT = (*PHOTOS, "--set", "data.max_unreadable=0")
FILE = ("--data", "{}/file.safetensors", "--epochs", "6")
MANY = ("--set", "data.size=320", "--set", "data.test_size=32", "--set", "train.checkpoint_every=10")
BYOL = ("byol", "--set", "train.accumulate=2", "--set", "method.hidden_dim=16", "--set", "method.out_dim=8")
RARE = (*SHAPES, "--set", "train.log_every=4", "--set", "train.checkpoint_every=4", "--epochs", "3")
LARGE = ("--set", "data.size=512", "--set", "data.test_size=32", "--batch-size", "512", "--image-size", "32")
FULL = "No space left on device"
RESUME = "akssl resume"


def can_mount() -> bool:
    """Whether small file systems can be made here."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=False, capture_output=True)
        if done.returncode == 0:
            subprocess.run(["umount", folder], check=True)
        return done.returncode == 0


# -- images ----------------------------------------------------------------------------------------
def photos(lab: Lab) -> None:
    """40 images of two classes."""
    for i in range(40):
        path = lab.path / "photos" / ("a" if i % 2 else "b") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    shutil.copytree(lab.path / "photos", lab.path / "copy")


def each_photo(change: Callable[[Path], object], few: bool = False) -> Callable[[Lab], None]:
    """Change all photos, or one."""

    def act(lab: Lab) -> None:
        files = sorted((lab.path / "photos").rglob("*.png"))
        for path in files[6:7] if few else files:
            change(path)

    return act


def restore_photos(lab: Lab) -> None:
    """The photos as they were."""
    shutil.rmtree(lab.path / "photos", ignore_errors=True)
    shutil.copytree(lab.path / "copy", lab.path / "photos")


def truncate(path: Path) -> None:
    """Half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def garbage(path: Path) -> None:
    """A file that is no image."""
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def another(path: Path) -> None:
    """An image of another size and mode."""
    Image.new("L", (31, 50), 90).save(path)


def names_unreadable(lab: Lab) -> str:
    """The record of what could not be read."""
    return "" if (lab.run / "unreadable.txt").is_file() else "no unreadable.txt"


# -- a prepared file -------------------------------------------------------------------------------
def prepared(lab: Lab) -> None:
    """The photos as one file."""
    photos(lab)
    done = lab.call("data", "prepare", "photos", "--out", "file.safetensors")
    assert done.returncode == 0, done.stderr
    shutil.copy(lab.path / "file.safetensors", lab.path / "copy.safetensors")


def restore_file(lab: Lab) -> None:
    """The file as it was."""
    shutil.copy(lab.path / "copy.safetensors", lab.path / "file.safetensors")


def replace_file(lab: Lab) -> None:
    """Another file in its place, as --overwrite puts it there."""
    each_photo(another)(lab)
    done = lab.call("data", "prepare", "photos", "--out", "file.safetensors", "--overwrite")
    assert done.returncode == 0, done.stderr


def prepare_again(lab: Lab) -> None:
    """A second process writes the same file; it must be refused."""
    done = lab.call("data", "prepare", "photos", "--out", "file.safetensors", "--overwrite")
    (lab.path / "second").write_text(f"{done.returncode}\n{done.stderr}")


def only_whole(lab: Lab) -> str:
    """One file, as one process alone writes it, and nothing beside it."""
    left = sorted(path.name for path in lab.path.iterdir() if path.name.startswith("."))
    same = (lab.path / "file.safetensors").read_bytes() == (lab.path / "copy.safetensors").read_bytes()
    second = (lab.path / "second").read_text() if (lab.path / "second").exists() else "2\nanother process"
    refused = second.startswith("2\n") and "another process" in second
    wrong = ["the file is not whole"] * (not same) + [f"left: {left}"] * bool(left)
    return "; ".join([*wrong, *([] if refused else [f"the second process: {second}"])])


def whole_after_kill(lab: Lab) -> str:
    """Prepare once more."""
    done = lab.call("data", "prepare", "photos", "--out", "file.safetensors", "--overwrite")
    return done.stderr if done.returncode else only_whole(lab)


def nothing_left(lab: Lab) -> str:
    """No part of a file that was not written."""
    left = [path.name for path in lab.disk.iterdir() if "filler" not in path.name]
    return f"left: {left}" if left else ""


# -- processes and streams -------------------------------------------------------------------------
def sends(*numbers: int) -> Callable[[Lab], None]:
    """Signals to the run, one after the other."""

    def act(lab: Lab) -> None:
        assert lab.process is not None
        for number in numbers:
            lab.process.send_signal(number)
            time.sleep(0.3)

    return act


def kill_worker(lab: Lab) -> None:
    """SIGKILL to one process that reads images."""
    assert lab.process is not None
    children = Path(f"/proc/{lab.process.pid}/task/{lab.process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)


def start_again(lab: Lab) -> None:
    """Three more commands for the same folder; each must be refused."""
    tries = (lab.arguments(lab.run), [*lab.arguments(lab.run), "--overwrite"], ["resume", lab.run])
    answers = [lab.call(*words) for words in tries]
    said = [(done.returncode, done.stderr.strip()) for done in answers]
    (lab.path / "others").write_text(json.dumps(said))


def others_were_refused(lab: Lab) -> str:
    """What the other commands answered."""
    said = json.loads((lab.path / "others").read_text())
    patterns = ("already holds a run", "another process (pid", "another process (pid")
    good = all(code == 2 and words in text for (code, text), words in zip(said, patterns, strict=True))
    return "" if good else str(said)


def full_pipe() -> int:
    """The writing end of a pipe that is full, and is read only after ten seconds."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, 1031, 4096)  # F_SETPIPE_SZ
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"x")
    except BlockingIOError:
        os.set_blocking(writing, True)

    def drain() -> None:
        time.sleep(10)
        while os.read(reading, 4096):
            pass

    threading.Thread(target=drain, daemon=True).start()
    return writing


def sane_rows(lab: Lab) -> str:
    """No negative rate or time, and no end before the beginning."""
    rows = [json.loads(line) for line in (lab.run / "metrics.jsonl").read_text().splitlines()]
    manifest = json.loads((lab.run / "manifest.json").read_text())
    wrong = [row["step"] for row in rows if row["images_per_s"] <= 0 or row["seconds"] < 0]
    late = manifest["updated"] < manifest["created"] or manifest["final"]["seconds"] < 0
    return f"rows {wrong} or the manifest" if wrong or late else ""


# -- disks -----------------------------------------------------------------------------------------
def fill(lab: Lab) -> None:
    """No byte is left."""
    lab.fill()


def free(lab: Lab) -> None:
    """Room again."""
    (lab.disk / "filler").unlink(missing_ok=True)


def read_only(lab: Lab) -> None:
    """The disk is mounted read-only."""
    subprocess.run(["mount", "-o", "remount,ro", lab.disk], check=True)


def writable(lab: Lab) -> None:
    """And again as it was."""
    subprocess.run(["mount", "-o", "remount,rw", lab.disk], check=True)


def run_read_only(lab: Lab) -> None:
    """The run folder becomes read-only while files in it are open."""
    subprocess.run(["mount", "--bind", lab.run, lab.run], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", lab.run], check=True)


def run_writable(lab: Lab) -> None:
    """And again as it was."""
    subprocess.run(["umount", lab.run], check=True)


def delete_run(lab: Lab) -> None:
    """The run folder is deleted, though a thread of the run may be writing a checkpoint."""
    while lab.run.exists():
        shutil.rmtree(lab.run, ignore_errors=True)


def stays_away(lab: Lab) -> str:
    """Nothing of the folder comes back."""
    return "a part of the folder came back" if lab.run.exists() else ""


def no_folder(lab: Lab) -> str:
    """Nothing is left of a run that could not start."""
    return "a folder was left behind" if lab.run.exists() else ""


def photos_and_full_disk(lab: Lab) -> None:
    """Images, and no room for them."""
    photos(lab)
    fill(lab)


def logs_gone(name: str) -> Callable[[Lab], None]:
    """The folder of a logger is deleted."""
    return lambda lab: shutil.rmtree(lab.run / name)


def file_in_the_way(name: str) -> Callable[[Lab], None]:
    """A file where a logger wants a folder."""

    def act(lab: Lab) -> None:
        lab.run.mkdir()
        (lab.run / name).write_text("")

    return act


def logger(name: str) -> tuple[str, ...]:
    """A run with a logger."""
    return (*SHAPES, "--set", f"callbacks=[{{name: {name}}}]")


PREPARE = ("data", "prepare", "photos", "--overwrite", "--plugin-file", str(PLUGIN), "--out")
DISKS = [
    Case("full disk in a checkpoint", "the disk (tmpfs, 2 MB) is filled in step 5", 1, FULL, inside="gate",
         at_gate=fill, after=free, needs_disk=True),
    Case("full disk in a row", "the disk is filled in step 12; the rows outgrow their page at step 14", 1,
         r"metrics\.jsonl: " + FULL, settings=MANY, inside="gate", environment={"FAULT_STEP": "12"}, at_gate=fill,
         after=free, needs_disk=True),
    Case("full disk in the export", "the disk is filled after the last step", 1, r"backbone\.safetensors: " + FULL,
         inside="export", at_gate=fill, after=free, needs_disk=True),
    Case("full disk at the start", "the disk is full before the run", 2, f"cannot create .*{FULL}",
         before=fill, after=free, needs_disk=True, check=no_folder, then="again"),
    Case("read-only folder", "the disk is mounted read-only before the run", 2, "Read-only file system",
         before=read_only, after=writable, needs_disk=True, check=no_folder, then="again"),
    Case("read-only mid-run", "the run folder is mounted read-only in step 5", 1, "Read-only file system",
         inside="gate", at_gate=run_read_only, after=run_writable, needs_disk=True),
    Case("quota", "fsync raises EDQUOT from step 5 on", 1, "quota", inside="fsync:EDQUOT"),
    Case("disk does not work", "fsync raises EIO from step 5 on", 1, "The disk does not work", inside="fsync:EIO"),
    Case("folder deleted", "the run folder is deleted in step 5", 1, "The folder is gone", inside="gate",
         at_gate=delete_run, check=stays_away, then="", lost="what was deleted"),
]  # fmt: skip
IMAGES = [
    Case("image gone before it is read", "one file is deleted between listing and reading", 0, settings=PHOTOS,
         inside="vanish:photos/a/07.png", before=photos, check=names_unreadable, then="",
         lost="none; another image stands in, unreadable.txt names it"),
    Case("image gone mid-run", "one file is deleted in step 5", 0, settings=PHOTOS, inside="gate", before=photos,
         at_gate=each_photo(Path.unlink, few=True), check=names_unreadable, then="",
         lost="none; another image stands in, unreadable.txt names it"),
    Case("all images gone mid-run", "every file is deleted in step 5", 2, "cannot be read.*No such file",
         settings=STRICT, inside="gate", before=photos, at_gate=each_photo(Path.unlink), after=restore_photos),
    Case("images truncated mid-run", "every file is cut in half in step 5", 2, "cannot be read.*truncated",
         settings=STRICT, inside="gate", before=photos, at_gate=each_photo(truncate), after=restore_photos),
    Case("images replaced by garbage", "every file holds noise from step 5 on", 2, "not an image in a known format",
         settings=STRICT, inside="gate", before=photos, at_gate=each_photo(garbage), after=restore_photos),
    Case("images replaced by others", "every file is an image of another size and mode from step 5 on", 0,
         settings=PHOTOS, inside="gate", before=photos, at_gate=each_photo(another), then="",
         lost="none; the run trains on what is there and does not notice"),
    Case("prepared file truncated", "the mapped file is cut in half in step 5", 2, "was changed while it was read",
         settings=FILE, inside="gate", before=prepared,
         at_gate=lambda lab: truncate(lab.path / "file.safetensors"), after=restore_file),
    Case("prepared file overwritten", "the mapped file is filled with noise in place in step 5", 2,
         "was changed while it was read", settings=FILE, inside="gate", before=prepared,
         at_gate=lambda lab: garbage(lab.path / "file.safetensors"), after=restore_file),
    Case("prepared file replaced", "`akssl data prepare --overwrite` puts another in its place in step 5", 0,
         settings=FILE, inside="gate", before=prepared, at_gate=replace_file, after=restore_file, then="same"),
    Case("two prepare one file", "a second `akssl data prepare` while the first writes", 0, inside="prepare",
         before=prepared, at_gate=prepare_again, check=only_whole, command=(*PREPARE, "file.safetensors"), then=""),
    Case("prepare killed", "SIGKILL while it writes; the next one makes the file", -9, inside="prepare",
         before=prepared, at_gate=sends(signal.SIGKILL), check=whole_after_kill, command=(*PREPARE, "file.safetensors"),
         then=""),
    Case("full disk in prepare", "the disk is full", 2, f"cannot write .*{FULL}", before=photos_and_full_disk,
         check=nothing_left, command=(*PREPARE, "disk/file.safetensors"), needs_disk=True, then=""),
]  # fmt: skip
NUMBERS = [
    Case("NaN loss", "the loss of step 5 is NaN", 1, "the loss of step 5 is not a finite number", inside="loss:nan"),
    Case("infinite loss", "the loss of step 5 is inf", 1, "the loss of step 5 is not", inside="loss:inf"),
    Case("NaN between two rows", "the loss of step 6 is NaN; rows and checkpoints every 4 steps", 1,
         "the loss of step 6 is not", settings=RARE, inside="loss:nan", environment={"FAULT_STEP": "6"}),
    Case("NaN in a micro-batch", "the second of two micro-batches of step 5 (BYOL)", 1, "the loss of step 5 is not",
         method=BYOL, inside="loss:nan", environment={"FAULT_MICRO": "1"}),
    Case("gradients overflow", "a finite loss with infinite gradients in step 6, after which a checkpoint is due", 1,
         "the weights after step 6 are not finite", inside="gradient", environment={"FAULT_STEP": "6"}),
    Case("clock goes backwards", "time.time and datetime go back by a year in step 5", 0, inside="clock",
         check=sane_rows, then="same"),
]  # fmt: skip
PROCESSES = [
    Case("loader worker killed", "SIGKILL to one of two processes that read a torch Dataset", 1,
         f"a process that reads images ended.*{RESUME}", settings=("--data", "own", "--workers", "2"), inside="gate",
         at_gate=kill_worker),
    Case("second run in one folder", "run, run --overwrite and resume while a run trains", 0, inside="gate",
         at_gate=start_again, check=others_were_refused, then="same"),
    Case("out of memory in a step", "a step asks for 1 GiB under RLIMIT_AS", 1,
         "out of memory after step 4 .*it asked for.*up to .* MiB", inside="memory"),
    Case("out of memory, large batch", "512 images a step, 64 MiB more than the process has at its start", 1,
         "out of memory after step 0 .*batch of 512", settings=LARGE, inside="limit:67108864"),
    Case("SIGTERM", "in step 5", 1, f"stopped by SIGTERM at step 5; all is saved.*{RESUME}", inside="gate",
         at_gate=sends(signal.SIGTERM)),
    Case("SIGINT", "in step 5", 1, f"stopped by SIGINT at step 5; all is saved.*{RESUME}", inside="gate",
         at_gate=sends(signal.SIGINT)),
    Case("two SIGINT", "both in step 5: stops at once", 1, f"stopped; .*{RESUME}.*last checkpoint", inside="gate",
         at_gate=sends(signal.SIGINT, signal.SIGINT)),
    Case("killed while a checkpoint is written", "SIGKILL while a thread is in the midst of that of step 6", -9,
         inside="save", environment={"FAULT_STEP": "6"}, at_gate=sends(signal.SIGKILL)),
    Case("SIGTERM before training", "before the first probe", 1, f"stopped; .*{RESUME}", inside="started",
         at_gate=sends(signal.SIGTERM)),
    Case("SIGTERM in the export", "after the last step", 1, f"stopped; .*{RESUME}", inside="export",
         at_gate=sends(signal.SIGTERM)),
]  # fmt: skip
LOGGERS = [
    *(
        Case(f"logger raises in {name}", "a logger of the user's own", 0, "logger 'bad' failed and is dropped",
             settings=logger("bad"), inside=f"logger:{name}", then="same")
        for name in ("init", "on_run", "on_row", "on_finish")
    ),
    Case("run hook raises", "akssl_run_started and akssl_run_finished", 0, "failed in akssl_run_started and is passed",
         inside="hook", then="same"),
    *(
        Case(f"{name}: folder gone", "its folder is deleted in step 5, offline", 0, settings=logger(name),
             inside="gate", at_gate=logs_gone(name), then="same", lost="what the logger wrote")
        for name in ("tensorboard", "wandb")
    ),
    *(
        Case(f"{name}: no folder", "a file is where its folder should be", 0, "failed and is dropped",
             settings=logger(name), before=file_in_the_way(name), then="same")
        for name in ("tensorboard", "wandb")
    ),
]  # fmt: skip
STREAMS = [
    Case("stdout closed", ">&-", 0, shell="exec {} >&-", then="same"),
    Case("stderr closed", "2>&-", 0, shell="exec {} 2>&-", then="same"),
    Case("all streams closed", "<&- >&- 2>&-", 0, shell="exec {} <&- >&- 2>&-", then="same"),
    Case("stdout full", ">/dev/full", 0, "the summary cannot be shown", shell="exec {} >/dev/full", then="same"),
    Case("stderr full", "2>/dev/full", 0, shell="exec {} 2>/dev/full", then="same"),
    Case("reader of stdout gone", "| head -1", 0, shell="{} | head -1; exit ${PIPESTATUS[0]}", then="same"),
    Case("reader of stderr gone", "2>&1 | head -1", 0, shell="{} 2>&1 | head -1; exit ${PIPESTATUS[0]}", then="same"),
    Case("full pipe", "stderr is a full pipe that is read after 10 s: the run waits for it", 0,
         streams={"stderr": full_pipe}, then="same"),
]  # fmt: skip
CASES = [*DISKS, *IMAGES, *NUMBERS, *PROCESSES, *LOGGERS, *STREAMS]
