"""The `akssl` command as a user meets it: exit codes, texts, help, and no torch where none is needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image

from akssl_core.errors import ConfigError


def akssl(*arguments, cwd=None, **environment):
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "akssl_core", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=300)


SMALL = (
    "--image-size", "16", "--epochs", "1", "--set", "data.size=64", "--set", "data.test_size=32", "--batch-size", "16",
    "--precision", "fp32",
)  # fmt: skip


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("plugins",), ("plugins", "--json"), ("run",)])
def test_help_and_listings_import_no_torch(arguments):
    env = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    command = [sys.executable, "-X", "importtime", "-m", "akssl_core", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "akssl_core.cli" in imported
    assert not imported & {"torch", "torchvision", "numpy", "akssl_plugin_simsiam"}


def test_version_and_help(here):
    code, out, _ = here("--version")
    assert (code, out.startswith("akssl, version 0.")) == (0, True)
    code, out, _ = here("--help")
    assert code == 0
    assert {"run", "resume", "explain", "plugins"} <= set(out.split())


def test_plugins_lists_what_is_installed(here):
    code, out, _ = here("plugins", "--json")
    records = {record["name"]: record for record in json.loads(out)}
    assert code == 0
    assert records["simsiam"]["distribution"] == "akssl-plugin-simsiam"
    assert records["simsiam"]["status"] == "installed"
    code, out, _ = here("plugins")
    assert "simsiam" in out
    code, out, _ = here("plugins", "--check")
    assert "ok" in out
    assert "method simsiam" in out


def test_show_and_run_help_list_the_methods_own_fields(here):
    for arguments in (("plugins", "show", "SimSiam"), ("run", "simsiam", "--help")):
        code, out, _ = here(*arguments)
        assert code == 0
        assert "predictor_dim" in out
        assert "width of the predictor's bottleneck" in out
        assert "2011.10566" in out


def test_run_end_to_end(here, tmp_path):
    code, out, err = here("run", "simsiam", *SMALL, "--out", "RUN", "--set", "method.out_dim=16")
    assert code == 0, err
    assert "k-NN top-1, raw pixels" in out
    assert "load_backbone('RUN')" in out
    assert "akssl eval RUN\n" in out
    assert "step 4/4" in err, "plain lines where stderr is no terminal"
    config = (tmp_path / "RUN" / "config.yaml").read_text()
    assert "out_dim: 16" in config
    code, out, err = here("run", "simsiam", *SMALL, "--out", "RUN")
    assert code == 2
    assert "already holds a run" in err
    code, out, err = here("resume", "RUN")
    assert code == 0
    code, out, err = here("report", "RUN")
    assert (code, out.strip()) == (0, os.path.join("RUN", "report.html"))


def test_no_report(here, tmp_path):
    code, *_ = here("run", "simsiam", *SMALL, "--out", "RUN", "--no-report")
    assert code == 0
    assert not (tmp_path / "RUN" / "report.html").exists()


def test_explain_names_the_origin_of_each_value(here, tmp_path):
    code, out, err = here("explain", "simsiam", *SMALL, "--set", "optimizer.lr=0.2")
    assert code == 0, err
    origins = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert origins["optimizer.lr"].endswith("command line")
    assert origins["optimizer.weight_decay"].endswith("recipe 'default' of simsiam")
    assert "rule: " in origins["backbone.name"]
    assert "peak learning rate" in out
    assert not list(tmp_path.iterdir())


def test_explain_looks_at_several_processes_without_starting_them(here):
    def follows(*more):
        code, out, err = here("explain", "simclr", *SMALL, "--batch-size", 32, *more)
        assert code == 0, err
        table = out.partition("what follows")[2].partition("\n\n")[0]
        return dict(re.split(r"  +", line, maxsplit=1) for line in table.splitlines() if "  " in line)

    alone, shared = follows(), follows("--devices", 2)
    assert alone["negatives per anchor"] == shared["negatives per anchor"], "losses gather over the processes"
    activations = [int(re.search(r"(\d+) MiB of activations", of["memory for training"])[1]) for of in (alone, shared)]
    assert activations[1] < activations[0]
    code, _, err = here("explain", "simclr", *SMALL, "--devices", 2, "--measure")
    assert (code, err.count("\n")) == (2, 1)


BAD = [
    (("run", "simsaim"), "Did you mean 'simsiam'"),
    (("run", "simclr", "--batch-size", "1", "--set", "data.size=100"), "Use --batch-size 2 or more"),
    (("run", "mocov2", "--batch-size", "16", "--set", "method.queue_size=1000"), "992 and 1008 are"),
    (("run", "swav", "--batch-size", "16", "--set", "method.queue_size=100"), "96 and 112 are"),
    (("run", "mocov3", "--set", "method.freeze_patch_projection=true"), "freeze_patch_projection"),
    (("run", "simclr", "--set", "method.temperature=0.2"), "Did you mean 'loss.temperature'"),
    (("run", "simsiam", "--backbone", "resnet81"), "Did you mean 'resnet"),
    (("run", "simsiam", "--epochs", "-1"), "train.epochs: should be greater than or equal to 1, got -1"),
    (("run", "simsiam", "--epochs", "many"), "'many' is not a valid integer"),
    (("run", "simsiam", "--epoch", "1"), "--epochs"),
    (("run", "simsiam", "--set", "optimiser.lr=0.1"), "Did you mean 'optimizer'"),
    (("run", "simsiam", "--set", "optimizer.lr"), "expected SECTION.KEY=VALUE"),
    (("run", "simsiam", "--set", "method.predictor_din=3"), "Did you mean 'predictor_dim'"),
    (("run", "simsiam", "--data", "./nowhere"), "'./nowhere' is neither a data source nor an existing folder"),
    (("run", "simsiam", "--data", "empty"), "empty"),
    (("run", "simsiam", "--batch-size", "10000", "--set", "data.size=100"), "10000"),
    (("run", "simsiam", "--config", "bad.yaml"), "bad.yaml line 3"),
    (("run", "simsiam", "--config", "none.yaml"), "cannot read none.yaml: No such file or directory."),
    (("run", "simsiam", "--config", "own.yaml"), "config: out is no setting of a run but of the call: --out"),
    (("explain", "simsiam", "--data", "shown", "--labels", "labes.csv"), "data.labels: "),
    (("explain", "simsiam", "--data", "shown", "--labels", "labes.csv"), "labels.csv'?"),
    (("explain", "simsiam", "--data", "shown", "--test-data", "show"), "data.test: the folder "),
    (("explain", "mae", "--backbone", "resnet_tiny"), "ResNetTiny is not one. Take a vision transformer"),
    (
        ("explain", "simsiam", "--data", "shapes", "--test-data", "shown"),
        "data.test: it goes with images in files, and",
    ),
    (("compare", "empty", "--out", "page.csv"), "expected a name that ends in .html"),
    (("run", "simsiam", "--precision", "int8"), "'int8' is not one of"),
    (("run", "simsiam", "--precision", "fb32"), "Did you mean 'fp32'"),
    (("eval", "runs/none", "--protocol", "segmnt"), "Did you mean 'segment'"),
    (("run",), "missing METHOD. Installed: barlowtwins, byol, dino, dinov2, distill, ibot, ijepa, lejepa"),
    (("embed", "runs/first"), "Missing option '--out'. Its meaning: akssl embed --help"),
    (("eval", "empty"), "Give the folder that 'akssl run' has named"),
    (("rum", "simsiam"), "Did you mean 'run'"),
    (("resume", "nowhere"), "holds no run"),
    (("run", "simsiam", "--set", "data.size=1000000000000"), "data.size: should be less than or equal to 100000000"),
    (("run", "simsiam", "--start", "a\nb"), r"start: 'a\nb' is neither a run folder nor a .safetensors file"),
    (("run", "simsiam", "--start", "/a\x1b[2J"), r"start: there is no '/a\x1b[2J'"),
    (("run", "simsiam", "--devices", "99999"), "train.devices: 99999 processes on "),
    (("run", "simsiam", "--start", "/dev"), "start: '/dev' is a folder without a run in it (no backbone.safetensors)."),
    (("run", "simsiam", "--start", "/dev/null"), "start: '/dev/null' holds no weights. Give a run folder or"),
    (("run", "simsiam", "--start", "/" + 300 * "a"), "start: there is no '/aaa"),
    (("report", "nowhere"), "holds no run"),
    (("plugins", "show", "simsaim"), "Did you mean 'simsiam'"),
    (("run", "simsiam", "--plugin-file", "none.py"), "does not exist"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda x: " ".join(x) if isinstance(x, tuple) else "")
def test_bad_input_is_exit_code_2_in_two_lines_without_traceback_or_folder(here, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.yaml").write_text("train:\n  epochs: [1, 2\n")
    (tmp_path / "own.yaml").write_text("method: simsiam\nout: runs/x\n")
    (tmp_path / "labels.csv").touch()
    (tmp_path / "shown").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "shown" / "a.png")
    before = sorted(tmp_path.iterdir())
    code, out, err = here(*arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) <= 2
    assert "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before, "no run folder is left behind"


def test_a_plugin_that_raises_on_import_is_named(tmp_path):
    info = tmp_path / "akssl_plugin_broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: akssl-plugin-broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[akssl.v1]\nbroken = akssl_plugin_broken\n")
    (tmp_path / "akssl_plugin_broken.py").write_text("raise RuntimeError('half installed')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = akssl("run", "broken", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 2
    assert "akssl-plugin-broken 1.0 is installed but did not load: RuntimeError: half installed (" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    assert not (tmp_path / "runs").exists()


def test_a_method_from_one_file(here, tmp_path):
    (tmp_path / "tiny_method.py").write_text(
        textwrap.dedent(
            """
            from akssl_core import Method, Schema, hookimpl
            from akssl_core.nn import mlp

            class Pull(Method):
                '''Pull two views together.'''

                name = "pull"

                def __init__(self, config, backbone):
                    super().__init__(config, backbone)
                    self.head = mlp(backbone.embed_dim, 8, 4)

                def step(self, batch, now):
                    a, b = (self.head(self.backbone(x)) for x in batch.views["global"])
                    return {"loss": (a - b).square().mean() + 1 / (1 + a.var(0).mean())}

            @hookimpl
            def akssl_register(registry):
                registry.add(Pull)
            """
        )
    )
    code, _out, err = here("run", "pull", "--plugin-file", "tiny_method.py", *SMALL, "--out", "RUN")
    assert code == 0, err
    assert (tmp_path / "RUN" / "backbone.safetensors").exists()


def test_other_failures_are_exit_code_1_and_debug_shows_the_traceback(here, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("boom")

    monkeypatch.setattr("akssl_core.running.launch.run", broken)
    code, _, err = here("run", "simsiam")
    assert (code, err) == (1, "akssl: RuntimeError: boom (--debug shows the traceback)\n")
    code, _, err = here("run", "simsiam", "--debug")
    assert code == 1
    assert "Traceback" in err


def test_stopping_by_hand_says_how_to_go_on(here, monkeypatch):
    monkeypatch.setattr("akssl_core.running.launch.run", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt()))
    code, _, err = here("run", "simsiam")
    assert (code, "akssl resume" in err) == (1, True)


def test_a_settings_error_is_one_line(here, monkeypatch):
    monkeypatch.setattr("akssl_core.running.launch.run", lambda *a, **k: (_ for _ in ()).throw(ConfigError("a: b")))
    assert here("run", "simsiam") == (2, "", "akssl: a: b\n")


def test_a_group_alone_prints_its_help(here):
    assert here("data") == here("data", "--help")
    assert here("data")[0] == 0


@pytest.mark.filterwarnings("always")
def test_a_finished_run_says_that_nothing_was_trained(here, small_run):
    code, out, err = here("resume", small_run)
    assert (code, err) == (0, f"akssl: {small_run} had ended: nothing was trained. More --epochs take it further.\n")
    assert "Verdict: " in out
    _, _, err = here("resume", small_run, "--data", "nosuch")
    assert f"akssl: warning: {small_run} has ended and is read: data has no effect\n" in err


PLACES = [("convert", "x.pth", "--out", "{}/x.safetensors"), ("data", "prepare", "shapes", "--out", "{}/x.safetensors"),
          ("run", "simsiam", "--slurm", "--out", "{}/x")]  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="Linux has a folder in which nobody makes a file")
@pytest.mark.parametrize("command", PLACES, ids=lambda words: words[0])
def test_a_place_that_cannot_be_written_is_told_alike_before_the_work(here, tmp_path, command):
    (tmp_path / "x.pth").write_bytes(b"")
    code, out, err = here(*(word.format("/proc") for word in command))
    assert (code, out) == (2, "")
    assert re.fullmatch(r"akssl: --out: cannot write /proc/x\.\w+: .+\. Choose another place\.\n", err), err
