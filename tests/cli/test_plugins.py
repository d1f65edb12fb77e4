"""The commands about plugins: a table of checks, a new plugin, and where a component is written."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from pathlib import Path

import pytest

from akssl_core.plugins.manager import installed

ONE_FILE = """
    import torch
    from pydantic import Field
    from akssl_core import KnownValue, Loss, Schema, hookimpl

    class Cubed(Loss):
        '''The mean of cubed differences.'''
        name = "cubed"

        class Config(Schema):
            '''Its weight.'''
            weight: float = Field(1.0, gt=0, description="factor on the loss")

        def forward(self, p, z):
            return SIGN * self.config.weight * (p - z).abs().pow(3).mean()

        @classmethod
        def known_values(cls):
            return [KnownValue((torch.zeros(2, 2), torch.full((2, 2), 2.0)), 8.0)]

    @hookimpl
    def akssl_register(registry):
        registry.add(Cubed)
"""


@pytest.fixture
def here(here):
    """The command, with a plugin manager of its own."""
    installed.cache_clear()
    yield here
    installed.cache_clear()
    sys.modules.pop("cubed_file", None)


def cubed(folder: Path, sign: str) -> Path:
    file = folder / "cubed_file.py"
    file.write_text(textwrap.dedent(ONE_FILE).replace("SIGN", sign))
    return file


def test_checking_a_right_component_says_what_each_check_means(here, tmp_path):
    code, out, err = here("plugins", "check", "cubed", "--kind", "loss", "--plugin-file", cubed(tmp_path, "1"))
    assert (code, err) == (0, "")
    assert "known_values_are_met" in out
    assert "The loss has the values that follow from its formula by hand." in out
    assert "cubed: 7 passed, 0 failed, 0 not applicable (akssl-core 0.1.0)" in out


def test_checking_a_broken_component_says_what_was_found_and_how_to_mend_it(here, tmp_path):
    code, out, _ = here("plugins", "check", "cubed", "--kind", "loss", "--plugin-file", cubed(tmp_path, "-1"))
    assert code == 1
    assert "found: known value 0: -8 instead of 8" in out
    assert "mend:  compare sign, factors, means and masks" in out
    installed.cache_clear()
    file = cubed(tmp_path, "-1")
    code, out, _ = here("plugins", "check", "cubed", "--kind", "loss", "--plugin-file", file, "--json")
    failed = [row for row in json.loads(out) if row["status"] == "failed"]
    assert [row["name"] for row in failed] == ["known_values_are_met"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plugins", "check", "simsaim"), "Did you mean 'simsiam'"),
        (("plugins", "check", "simsiam", "--kind", "methods"), "Did you mean 'method'"),
        (("plugins", "check", "nothing", "--kind", "logger"), "no callback named 'nothing'"),
        (("find", "los", "ntxent"), "Did you mean 'loss'"),
        (("find", "loss", "ntxnet"), "Did you mean 'ntxent'"),
        (("plugins", "new", "simsiam"), "simsiam"),
        (("plugins", "new", "mine", "--kind", "metod"), "Did you mean 'method'"),
    ],
)
def test_wrong_names_are_refused_with_the_nearest_right_one(here, arguments, message):
    code, out, err = here(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


CRASHES = """
    from akssl_core import Method, hookimpl

    class Crashes(Method):
        '''It does not get far.'''
        name = "crashes"
        paper = "none"

        def step(self, batch, now):
            return {"loss": self.no_such_part(batch)}

    @hookimpl
    def akssl_register(registry):
        registry.add(Crashes)
"""


def test_a_method_is_checked_with_its_losses(here):
    code, out, _ = here("plugins", "check", "mocov2", "--json")
    assert code == 0
    losses = {"loss infonce_queue", "loss infonce_mocov3"}
    assert {row["component"] for row in json.loads(out)} == {"method mocov2", *losses}


def test_an_error_that_many_checks_meet_is_told_once_with_its_place(here, tmp_path):
    file = tmp_path / "cubed_file.py"
    file.write_text(textwrap.dedent(CRASHES))
    code, out, _ = here("plugins", "check", "crashes", "--plugin-file", file)
    assert code == 1
    assert f"{file}:10" in out
    failed = sum("  failed  " in line for line in out.splitlines())
    assert failed > 5
    assert out.count("found: ") < failed / 2


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (("loss", "ntxent"), "akssl_plugin_simclr/__init__.py"),
        (("dataset", "shapes"), "akssl_core/data/shapes.py"),
        (("method", "MoCo-v2"), "akssl_plugin_moco/v2.py"),
        (("backbone", "timm/test_resnet"), "akssl_plugin_timm"),
        (("logger", "tensorboard"), "akssl_plugin_tensorboard/__init__.py"),
    ],
)
def test_find_prints_where_a_component_is_written(here, arguments, file):
    code, out, err = here("find", *arguments)
    assert (code, err) == (0, "")
    facts = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert file in facts["file"]
    assert int(facts["line"]) > 1
    assert facts["plugin"].startswith("akssl-")
    assert facts["version"] == "0.1.0"


def test_a_new_plugin_is_written_and_the_next_steps_are_told(here, tmp_path):
    code, out, err = here("plugins", "new", "My Logger", "--kind", "logger")
    assert (code, err) == (0, "")
    assert (tmp_path / "akssl-plugin-my-logger" / "pyproject.toml").is_file()
    assert "cd akssl-plugin-my-logger" in out
    code, _, err = here("plugins", "new", "My Logger", "--kind", "logger")
    assert code == 2
    assert "exists" in err


def test_a_plugin_file_is_listed_with_what_it_provides(here, tmp_path):
    code, out, _ = here("plugins", "--json", "--plugin-file", cubed(tmp_path, "1"))
    assert code == 0
    (row,) = [row for row in json.loads(out) if row["name"] == "cubed_file"]
    assert (row["status"], row["provides"]) == ("ok", "loss cubed")
    assert row["file"].endswith("cubed_file.py")


NEEDS = """
    from pathlib import Path
    from pydantic import Field
    from akssl_core import FilePath, Logger, Schema, hookimpl

    class Diary(Logger):
        '''Writes rows into a file that must be there.'''
        name = "diary"

        class Config(Schema):
            '''Its file.'''
            path: FilePath = Field(description="file for the rows")

        def __init__(self, config):
            super().__init__(config)
            self.text = config.path.read_text()

        def on_row(self, row):
            self.text += str(row)

    @hookimpl
    def akssl_register(registry):
        registry.add(Diary)
"""


def test_a_component_with_a_required_setting_is_checked_by_name(here, tmp_path):
    file = tmp_path / "cubed_file.py"
    file.write_text(textwrap.dedent(NEEDS))
    (tmp_path / "rows.txt").write_text("")

    def check(*settings):
        installed.cache_clear()
        return here("plugins", "check", "diary", "--plugin-file", file, *settings)

    assert re.search("path: .*(required|missing)", check()[1])
    code, out, _ = check("--set", "callback.path=rows.txt")
    assert (code, "0 failed" in out) == (0, True)
    for wrong in ("calback.path=rows.txt", "path=rows.txt"):
        code, _, err = check("--set", wrong)
        assert code == 2
        assert "expected callback.NAME=VALUE" in err
