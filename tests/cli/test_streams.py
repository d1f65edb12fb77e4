"""Commands whose parent has closed stdout or stderr end as they do with both."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from PIL import Image

from akssl_core import cli, finetune, run
from akssl_core.cli.base import akssl

SMALL = {"image_size": 16, "epochs": 1, "batch_size": 16, "precision": "fp32"}

TINY = (
    "--data shapes --image-size 16 --epochs 1 --set data.size=32 --set data.test_size=16 --batch-size 16 "
    "--precision fp32"
)
COMMANDS = {
    "run": f"run simsiam {TINY} --out NEW --no-report --overwrite",
    "explain": f"explain simsiam {TINY}",
    "doctor": "doctor RUN",
    "adapt": f"adapt RUN {TINY} --out ADAPTED --no-report --overwrite",
    "resume": "resume RUN",
    "eval": "eval RUN --labels 0.5 --seeds 2",
    "embed": "embed RUN --out f.npz --overwrite",
    "search": "search RUN q.png --data shapes --set data.size=32",
    "finetune": "finetune RUN --out m.safetensors --parts head --no-scratch --overwrite",
    "predict": "predict c.safetensors --data shapes --set data.size=32",
    "dedup": "dedup RUN",
    "export": "export RUN --to safetensors --out e.safetensors --overwrite",
    "publish": "publish VIT --to PUBLISHED --overwrite",
    "report": "report RUN",
    "compare": "compare RUN RUN",
    "choose": f"choose --methods simsiam {TINY} --out CHOICE",
    "sweep": f"sweep --methods simsiam {TINY} --out SWEEP --no-report",
    "convert": "convert w.pth --out w.safetensors --overwrite",
    "data": "data prepare shapes --set data.size=32 --set data.test_size=16 --out p.safetensors --overwrite",
    "plugins": "plugins",
    "find": "find method simsiam",
}


def test_every_command_is_tried():
    assert COMMANDS.keys() == akssl.commands.keys()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("streams")
    small = {"data": {"name": "shapes", "size": 32, "test_size": 16}, "report": False, **SMALL}
    run("simsiam", out=path / "RUN", **small)
    run("simsiam", backbone="vit_micro", out=path / "VIT", **small)
    torch.save({"weight": torch.ones(2)}, path / "w.pth")
    Image.new("RGB", (16, 16), "red").save(path / "q.png")
    finetune(path / "RUN", path / "c.safetensors", parts="head", scratch=False)
    return path


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_closed_stream_changes_no_exit_code(folder, monkeypatch, capsys, name, closed):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["akssl", *COMMANDS[name].split()])
    monkeypatch.setattr(sys, closed, None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code in ((0, 1) if name == "doctor" else (0,)), said.err  # 1: it has found something
    assert "Error" not in said.err


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_stream_that_the_shell_has_closed(folder, closed):
    command = f"exec '{sys.executable}' -m akssl_core {COMMANDS['eval']} {closed}"
    done = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, done.stderr if closed == ">&-" else "")
    assert "Error" not in done.stderr
