"""A short form of soak/fuzz.py: a few hundred inputs for every reader, and that the fuzzer finds what is wrong."""

from __future__ import annotations

import pytest
from fuzz_engine import Target, attempt, fuzz
from fuzz_targets import TARGETS

from akssl_core.config.yaml import parse_yaml
from akssl_core.data.scan import printable
from akssl_core.errors import ConfigError, visible

EXECUTIONS = {"command": 40, "report": 60, "assignments": 60, "metadata": 60, "config": 80, "folder": 80,
              "checkpoint": 80}  # fmt: skip
OTHERS = 250


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_gets_past_the_errors_that_a_user_can_mend(name):
    outcome = fuzz(TARGETS[name], seconds=3600, most=EXECUTIONS.get(name, OTHERS), seed=7)
    assert outcome.executions == EXECUTIONS.get(name, OTHERS)
    assert outcome.lines > 20
    assert {key: crash.text for key, crash in outcome.crashes.items()} == {}


def target(run, **more):
    return Target("a", run, lambda: [b'{"a": 1}', b"text"], **more)


def test_an_error_that_no_user_can_mend_is_a_crash(tmp_path):
    def run(data, folder):
        parse_yaml(data.decode())
        raise (ConfigError if data == b"text" else KeyError)("x")

    assert attempt(target(run), b"text", tmp_path) is None
    assert attempt(target(run), b"{a: 1}", tmp_path).key == "KeyError in ?"
    assert attempt(target(run, allowed=(KeyError,)), b"{a: 1}", tmp_path) is None
    assert attempt(target(run), b"[", tmp_path).key == "ValueError in config/yaml.py:parse_yaml"


def test_memory_and_time_have_limits(tmp_path):
    assert attempt(target(lambda *_: bytearray(2**33)), b"", tmp_path).key == "MemoryError in ?"

    def endless(data, folder):
        while True:
            printable("x")

    assert attempt(target(endless, seconds=0.3), b"", tmp_path).key.startswith("TooSlow in ")


def test_what_reaches_something_new_is_kept_and_built_upon():
    def run(data, folder):
        if data.startswith(b"{"):
            printable("x")
            if data.count(b"1") > 3:
                visible("y")
                raise KeyError("found")

    outcome = fuzz(target(run), seconds=20, most=300)
    assert list(outcome.crashes) == ["KeyError in ?"]
    assert outcome.kept >= 2


def test_the_same_seed_makes_the_same_inputs():
    def tried(seed):
        seen = []
        fuzz(target(lambda data, folder: seen.append(data)), seconds=20, most=50, seed=seed)
        return seen

    assert tried(1) == tried(1)
    assert tried(1) != tried(2)
