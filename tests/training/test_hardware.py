"""Where a run computes: by what there is, by what was asked for, and what is told where that cannot be had."""

from __future__ import annotations

import os

import pytest
import torch

from akssl_core import dist
from akssl_core.errors import ConfigError
from akssl_core.settings import TrainSpec
from akssl_core.training import hardware
from akssl_core.training.hardware import KINDS, choose_hardware, kept_random_state

V100, T4, P100, A100 = (7, 0), (7, 5), (6, 0), (8, 0)
PRECISION = {(7, 0): False, (7, 5): False, (6, 0): False, (8, 0): True}


@pytest.fixture
def machine(on_the_cpu, monkeypatch):
    """A machine with so many devices of each kind, and GPUs of this compute capability."""
    monkeypatch.setattr(hardware, "automatic", on_the_cpu)

    def having(capability=A100, **counts):
        for kind in KINDS:
            module = getattr(torch, kind)
            monkeypatch.setattr(module, "device_count", lambda kind=kind: counts.get(kind, 0))
        for kind in ("cuda", "xpu"):
            monkeypatch.setattr(getattr(torch, kind), "is_bf16_supported", lambda **_: PRECISION[capability])
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return having


@pytest.mark.parametrize(
    ("there", "asked", "device"),
    [
        ({}, "auto", "cpu"),
        ({"mps": 1}, "auto", "mps:0"),
        ({"xpu": 2}, "auto", "xpu:0"),
        ({"cuda": 1, "xpu": 1}, "auto", "cuda:0"),
        ({"cuda": 1, "xpu": 1}, "xpu", "xpu:0"),
        ({"cuda": 1}, "cpu", "cpu"),
    ],
)
def test_auto_takes_what_is_there_and_a_name_what_it_names(machine, there, asked, device):
    machine(**there)
    assert str(choose_hardware(TrainSpec(device=asked)).device) == device


@pytest.mark.parametrize(
    ("there", "capability", "strategy", "precision", "reason"),
    [
        ({"cuda": 1}, A100, "ddp", "bf16", "the GPU has bf16"),
        ({"cuda": 1}, V100, "ddp", "fp16", "the GPU has fp16 units and no bf16"),
        ({"cuda": 1}, T4, "ddp", "fp16", "the GPU has fp16 units and no bf16"),
        ({"cuda": 1}, T4, "fsdp", "fp32", "the GPU has no bf16"),  # fsdp does not go with fp16
        ({"cuda": 1}, P100, "ddp", "fp32", "the GPU has no bf16"),
        ({"xpu": 1}, A100, "ddp", "bf16", "the GPU has bf16"),
        ({"xpu": 1}, V100, "ddp", "fp32", "the GPU has no bf16"),
        ({"mps": 1}, A100, "ddp", "fp32", "every operation of MPS has it"),
    ],
)
def test_auto_takes_the_number_format_that_a_device_is_good_at(machine, there, capability, strategy, precision, reason):
    machine(capability, **there)
    found = choose_hardware(TrainSpec(strategy=strategy))
    assert (found.precision, found.reason) == (precision, reason)


@pytest.mark.parametrize(
    ("there", "asked", "words"),
    [
        ({}, "xpu", "'xpu' was asked for, but torch sees no XPU device. Use cpu or auto."),
        ({"mps": 1}, "cuda", "'cuda' was asked for, but torch sees no CUDA device. Use mps, cpu or auto."),
        ({"cuda": 4}, "mps", "'mps' was asked for, but torch sees no MPS device. Use cuda, cpu or auto."),
    ],
)
def test_a_device_that_is_not_there_is_told_with_those_that_are(machine, there, asked, words):
    machine(**there)
    with pytest.raises(ConfigError) as caught:
        choose_hardware(TrainSpec(device=asked))
    assert str(caught.value) == f"train.device: {words}"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"precision": "fp16"}, "train.precision: fp16 needs a scaled loss, which has no place on MPS"),
        ({"deterministic": True}, "train.deterministic: torch does not know which operations give the same bits"),
    ],
)
def test_what_a_mac_cannot_do_is_told(machine, settings, words):
    machine(mps=1)
    with pytest.raises(ConfigError, match=words) as caught:
        choose_hardware(TrainSpec(**settings))
    assert "use --device cpu" in str(caught.value)
    assert choose_hardware(TrainSpec(device="cpu", **settings)).device.type == "cpu"


def test_several_macs_are_told_that_nothing_would_join_them(machine, monkeypatch):
    machine(mps=1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(ConfigError, match="train.devices: several processes need collectives"):
        choose_hardware(TrainSpec())


@pytest.mark.parametrize(("kind", "name"), KINDS.items())
def test_more_processes_than_devices_are_refused_before_any_of_them_begins(machine, monkeypatch, kind, name):
    machine(**{kind: 1})
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    words = f"train.devices: 2 processes on this machine, where torch sees 1 {name} .*at most --devices 1, or --device"
    with pytest.raises(ConfigError, match=words):
        choose_hardware(TrainSpec())
    assert choose_hardware(TrainSpec(device="cpu")).device.type == "cpu"


def test_as_many_processes_as_devices_take_one_each(machine, monkeypatch):
    machine(cuda=2)
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert str(choose_hardware(TrainSpec()).device) == "cuda:1"


def test_a_plan_of_several_processes_is_looked_at_in_one(machine):
    machine(cuda=2)
    with dist.acting_in(dist.Imagined(3)), pytest.raises(ConfigError, match=r"3 processes .* sees 2 CUDA"):
        choose_hardware(TrainSpec())


def test_cublas_is_told_to_repeat_its_bits_before_it_begins(machine, monkeypatch):
    machine(cuda=1)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "x")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    choose_hardware(TrainSpec())
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    choose_hardware(TrainSpec(deterministic=True))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    choose_hardware(TrainSpec(deterministic=True))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8", "what the user has set stays"


def test_the_weights_of_a_mac_lie_plainly(machine):
    """Channels last makes the gradients of its batch norms wrong."""
    machine(mps=1)
    assert choose_hardware(TrainSpec()).layout == torch.contiguous_format
    assert choose_hardware(TrainSpec(device="cpu")).layout == torch.channels_last


@pytest.mark.parametrize("kind", KINDS)
def test_the_random_numbers_of_a_gpu_go_on_as_if_nothing_had_been_drawn(monkeypatch, kind):
    states = {kind: torch.tensor([3])}

    def put(state, device):
        states[torch.device(device).type] = state

    monkeypatch.setattr(getattr(torch, kind), "get_rng_state", lambda device: states[torch.device(device).type])
    monkeypatch.setattr(getattr(torch, kind), "set_rng_state", put)
    with kept_random_state(torch.device(kind, 0)):
        states[kind] = torch.tensor([8])
    assert states[kind].item() == 3
