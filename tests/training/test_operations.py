"""A step of every method asks for operations and number formats that the GPUs of Macs and of Intel have."""

from __future__ import annotations

import re
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torchgen
from on_trial import on_trial
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from akssl_core.loss import Loss
from akssl_core.metrics.features import features_of
from akssl_core.plugins.first_party import METHODS
from akssl_core.plugins.manager import installed
from akssl_core.running.layers import collect
from akssl_core.running.plan import make_plan
from akssl_core.training import engine as engines
from akssl_core.training.watch import Vitals

BACKBONES = {"resnet_tiny": {"widths": [4, 4, 8, 8]}, "vit_tiny": {"patch_size": 6}}
PRODUCTS = r"\b(mm|bmm|addmm|baddbmm|matmul|einsum|linear)\b"

# Every operation of a step, of the views before it and of a probe's forward pass. One that comes anew belongs here if
# torch's own table, which a test below reads, has it for MPS and XPU.
ALLOWED = """
    __rshift__.Scalar _foreach_add.List _foreach_add_.List _foreach_add_.Scalar _foreach_lerp_.Scalar
    _foreach_mul_.List _foreach_mul_.Scalar _foreach_mul_.Tensor _foreach_norm.Scalar _foreach_sub.List
    _fused_adamw_ _fused_sgd_ _local_scalar_dense _log_softmax _log_softmax_backward_data
    _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention_for_cpu_backward _softmax
    _to_copy _unsafe_view abs_ add.Tensor add_.Tensor alias addcmul.out addmm all all.dim any arange arange.start
    argmax as_strided bincount bitwise_and.Scalar bitwise_and.Tensor bitwise_not bitwise_or_.Tensor bitwise_xor.Scalar
    bitwise_xor.Tensor bmm cat clamp clamp.Tensor clamp_ clamp_min clamp_min_.Tensor clone constant_pad_nd
    convolution convolution_backward copy_ copysign_.Tensor cos cumsum detach diagonal diagonal_backward div.Scalar
    div.Tensor div.out div_.Tensor empty.memory_format eq.Scalar eq.Tensor exp expand eye fill_.Scalar floor gather
    ge.Tensor gelu gelu_backward grid_sampler_2d gt.Scalar gt.Tensor index.Tensor index_copy_ index_fill_.int_Scalar
    index_put index_put_ index_select le.Scalar le.Tensor lerp.Scalar lerp.Tensor lerp_.Scalar lift_fresh
    linalg_vector_norm log logsumexp lt.Scalar lt.Tensor masked_fill.Scalar masked_fill_.Scalar max.dim maximum mean
    mean.dim minimum mm mul.Scalar mul.Tensor
    mul_.Tensor mv native_batch_norm native_batch_norm_backward native_layer_norm native_layer_norm_backward neg
    new_empty_strided new_full new_zeros nll_loss_backward nll_loss_forward nonzero ones ones_like permute
    pow.Tensor_Scalar reciprocal relu relu_ repeat roll round round_ rsqrt rsub.Scalar scalar_tensor scatter.src
    scatter.value scatter_.value scatter_add select.int select_backward sin slice.Tensor slice_backward
    smooth_l1_loss smooth_l1_loss_backward sort sort.stable special_entr split.Tensor split_with_sizes sqrt
    squeeze.dim stack std.correction sub.Tensor sub.out sub_.Tensor sum sum.dim_IntList t threshold_backward
    transpose.int unbind.int unsqueeze upsample_bicubic2d var.correction view view.dtype where.self zeros
    zeros_like
""".split()  # noqa: SIM905 - a list of as many texts would take three times the lines
# What they have in place of the CPU's own attention.
ATTENTION = {
    "MPS": "_scaled_dot_product_attention_math_for_mps",  # with gradients it is made of products and a softmax
    "XPU": "_scaled_dot_product_fused_attention_overrideable",
}


class Recorded(TorchDispatchMode):
    """The operations that are called while it lasts, each with the number formats of its tensors."""

    def __init__(self):
        super().__init__()
        self.found = defaultdict(set)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        if str(func).startswith("aten."):  # the optimizers tell a profiler of their steps
            name = str(func).removeprefix("aten.").removesuffix(".default")
            self.found[name] |= {tensor.dtype for tensor in tensors}
        return out


@pytest.fixture
def steps(photos, monkeypatch):
    """Two steps of a method: what was called on the device, which is the CPU but without its own convolutions."""
    monkeypatch.setattr(engines, "fast_convolutions", lambda method: nullcontext())

    def trained(method, backbone, **more):
        settings = {
            "data": photos, "backbone": {"name": backbone, **BACKBONES[backbone]}, "batch_size": 16, "device": "cpu",
            "train": {"steps": 2, **more.pop("train", {})}, **{"precision": "fp32", **more},
        }  # fmt: skip
        plan, recorded = make_plan(collect(on_trial(method), None, settings, installed()), installed()), Recorded()
        vitals = Vitals()

        class Measured:
            on_start = on_epoch = on_end = staticmethod(lambda engine: None)

            def on_step(self, engine, terms):
                vitals.measure(engine)
                vitals.remember(engine)

        engine = plan.engine([Measured()])
        vitals.remember(engine)
        views, step = engine.views, engine._step
        monkeypatch.setattr(engine, "views", lambda *args: _within(recorded, views, *args))
        monkeypatch.setattr(engine, "_step", lambda micro: _within(recorded, step, micro))
        engine.fit()
        pixels = plan.preprocess.fetch(plan.images, range(4))
        _within(recorded, features_of, engine.encoder(), pixels, plan.preprocess, device=engine.device)
        assert engine.now.step == 2
        return recorded.found

    return trained


def _within(recorded, function, *args, **kwargs):
    with recorded:
        return function(*args, **kwargs)


def takes(method, backbone):
    """Whether the method works with that kind of backbone."""
    return issubclass(installed().get("backbone", backbone), installed().get("method", method).accepts)


LARS = {"name": "lars", "lr": 0.1}
CASES = [
    *((method, backbone, {}) for method in sorted(METHODS) for backbone in BACKBONES if takes(method, backbone)),
    ("simsiam", "resnet_tiny", {"optimizer": LARS, "train": {"accumulate": 2, "clip": {"norm": 1.0}}}),
    ("byol", "vit_tiny", {"optimizer": {"name": "adamw"}, "train": {"clip": {"norm": 1.0, "per": "parameter"}}}),
]


@pytest.mark.parametrize(("method", "backbone", "more"), CASES)
def test_a_step_calls_what_every_gpu_has_and_never_in_float64(steps, method, backbone, more):
    found = steps(method, backbone, **more)
    assert not sorted(found.keys() - set(ALLOWED))
    assert not sorted(name for name, formats in found.items() if torch.float64 in formats)
    assert len(found) > 50


@pytest.mark.parametrize("method", sorted(METHODS))
def test_products_of_a_loss_are_in_fp32_while_the_step_is_in_bf16(steps, monkeypatch, method):
    """Logits divided by a small temperature keep what eight bits of mantissa would lose."""
    inside, call = Recorded(), Loss.__call__
    monkeypatch.setattr(Loss, "__call__", lambda self, *args, **kwargs: _within(inside, call, self, *args, **kwargs))
    found = steps(method, "vit_tiny", precision="bf16")
    assert torch.bfloat16 in found["addmm"]
    assert inside.found
    floating = {dtype for formats in inside.found.values() for dtype in formats if dtype.is_floating_point}
    cast = {dtype for dtype in inside.found.get("_to_copy", ())}
    assert floating - cast <= {torch.float32}
    products = {name: formats for name, formats in inside.found.items() if re.search(PRODUCTS, name)}
    assert all(formats == {torch.float32} for formats in products.values()), products


def _table():
    """The backends of each operation, by the table that torch's own code is made from."""
    file = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    backends, delegates = {}, {}
    for block in file.read_text().split("\n- func: ")[1:]:
        name = block.partition("(")[0]
        backends[name] = set(re.findall(r"\w+", ",".join(re.findall(r"^    ([\w, ]+):", block, re.MULTILINE))))
        delegates[name] = (re.findall(r"structured_delegate: (\S+)", block) or [name])[0]
    return {name: backends[delegates[name]] for name in backends}


@pytest.mark.parametrize("device", ["MPS", "XPU"])
def test_torchs_own_table_has_them_for_the_gpus_of_macs_and_of_intel(device):
    table = _table()
    if not any(device in backends for backends in table.values()):
        pytest.skip(f"the table of torch {torch.__version__} does not list {device}")
    everywhere = {"CompositeExplicitAutograd", "CompositeImplicitAutograd", "CompositeExplicitAutogradNonFunctional"}
    names = {name for name in ALLOWED if not name.startswith("_scaled_dot_product")} | {ATTENTION[device]}
    assert not sorted(name for name in names if table[name] and not table[name] & {device, *everywhere})
