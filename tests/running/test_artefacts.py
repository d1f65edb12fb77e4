"""What a method shows at the end of a run: pictures, numbers and tensors; nothing it does wrong loses the run."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import nn
from whole_runs import same, state

from akssl_core import Artefacts, Batch, Now, Views, dist
from akssl_core.reporting import render
from akssl_core.rundir.folder import RunDir, read_tensors
from akssl_core.running.artefacts import of_method
from akssl_core.running.launch import resume

NOW = Now(0, 4, 8)


@pytest.fixture
def shows(toys, monkeypatch):
    """The toy, showing what a function of it and the batch gives."""

    def put(artefacts):
        monkeypatch.setattr(toys.get("method", "toy"), "artefacts", artefacts)

    return put


def useful(self, batch, now):
    x = batch.views["global"][0]
    mask = batch.draws.uniform("mask", 1)[:, :, None, None] < 0.5
    shown = self.backbone.image.pictures(x)
    head = {name: weight for name, weight in self.projector.state_dict().items()}
    return Artefacts(
        {"masked <b>": shown * mask, "image": shown, "light": shown.mean(1, keepdim=True) * 3},
        {"mask_share": mask.float().mean(), "at": now.step},
        head,
    )


def test_they_stand_in_the_folder_the_scores_and_the_report(start, shows):
    shows(useful)
    result = start()
    assert result.metrics["at"] == result.history[-1]["step"]
    assert 0 <= result.metrics["mask_share"] <= 1
    assert RunDir.open(result.run_dir).manifest.final["at"] == result.metrics["at"]
    assert re.search(r"^at +12$", result.text, re.MULTILINE)
    pictures = read_tensors(result.run_dir / "samples.safetensors")[0]
    assert pictures["method.000.masked <b>"].shape == (6, 1, 3, 12, 12)
    assert pictures["method.002.light"].shape == (6, 1, 1, 12, 12)
    assert torch.equal(pictures["method.001.image"][:, 0], pictures["views.global"][:, 0])
    head, said = read_tensors(result.run_dir / "method.safetensors")
    assert said == {"method": "toy"}
    assert torch.equal(head["0.weight"], state(result.run_dir)["projector.0.weight"])
    page = render(result.run_dir)
    part = page[page.index('id="pictures-of-the-method"') :]
    assert part.index("masked &lt;b&gt;") < part.index("image</th>") < part.index("light</th>")
    assert part[: part.index("</section>")].count("<img") == 18
    assert "mask_share" in page[page.index('id="scores"') : page.index('id="pictures-of-the-method"')]


def test_training_is_the_same_with_them_and_a_resumed_run_ends_with_the_same(start, shows, killed, toys, photos):
    plain = start("plain")
    shows(useful)
    showing = start("showing")
    assert same(plain.run_dir, showing.run_dir)
    assert not (plain.run_dir / "method.safetensors").exists()
    folder = killed(train={"checkpoint_every": 1})
    assert not (folder / "method.safetensors").exists()
    again = resume(folder, data=photos, plugins=toys)
    assert {name: again.metrics[name] for name in ("mask_share", "at")} == {
        name: showing.metrics[name] for name in ("mask_share", "at")
    }
    for name in ("samples.safetensors", "method.safetensors"):
        one, other = (read_tensors(run.run_dir / name)[0] for run in (showing, again))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one if key.startswith("method.") or name[0] == "m")


def _raises(self, batch, now):
    raise RuntimeError("no decoder")


WRONG = {
    "raises": (_raises, r"all, for artefacts\(\) failed: RuntimeError: no decoder"),
    "nothing": (lambda *_: None, r"artefacts\(\) returned None instead of Artefacts"),
    "a list": (lambda *_: Artefacts(["picture"]), r"all, for artefacts\(\) failed: AttributeError"),
    "nan": (lambda *_: Artefacts({"x": torch.full((6, 3, 4, 4), torch.nan)}), "picture 'x' has values that are not"),
    "shape": (lambda *_: Artefacts({"x": torch.ones(6, 4, 4)}), r"picture 'x' is \(6, 4, 4\); expected \(6, C, H, W\)"),
    "rows": (lambda *_: Artefacts({"x": torch.ones(5, 3, 4, 4)}), r"picture 'x' is \(5, 3, 4, 4\); expected"),
    "huge": (lambda *_: Artefacts({"x": torch.ones(1).expand(6, 3, 1, 10**6)}), "picture 'x' is .*; expected"),
    "empty": (lambda *_: Artefacts({"x": torch.ones(6, 3, 0, 4)}), "picture 'x' is .*; expected"),
    "no tensor": (lambda *_: Artefacts({"x": 3}), "picture 'x' is 3, no tensor"),
    "complex": (lambda *_: Artefacts(tensors={"x": torch.ones(3) * 1j}), "tensor 'x' is .*no tensor of real numbers"),
    "infinite": (lambda *_: Artefacts(numbers={"x": float("inf")}), "number 'x' is inf; expected a finite one"),
    "taken": (lambda *_: Artefacts(numbers={"loss": 1.0}), "number 'loss', which the run has already"),
    "no name": (lambda *_: Artefacts({3: torch.ones(6, 3, 4, 4)}), "picture 3, which is no name"),
    "header": (
        lambda *_: Artefacts(tensors={"__metadata__": torch.ones(1)}),
        "tensor .__metadata__., which is no",
    ),
    "half a letter": (lambda *_: Artefacts(numbers={"\ud800": 1.0}), "number .*, which is no name"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_kept_is_told_and_the_rest_stays(toys, wrong):
    artefacts, words = WRONG[wrong]
    method = toys.get("method", "toy")
    shower = type("Shower", (method,), {"artefacts": artefacts, "__init__": lambda self: nn.Module.__init__(self)})()
    kept = of_method(shower, Batch(Views(), torch.arange(6)), NOW, ["loss"])
    (problem,) = kept.problems
    assert re.search(words, problem), problem
    assert not kept.pictures
    assert not kept.numbers
    assert not kept.tensors


def test_a_run_whose_method_shows_nonsense_ends_with_one_warning(start, shows):
    def nonsense(self, batch, now):
        good = torch.full((6, 3, 4, 4), 0.5)
        return Artefacts({"good": good, "bad": good * torch.nan}, {"fine": 2, "bad": torch.tensor(torch.nan)})

    shows(nonsense)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = start()
    (said,) = [str(one.message) for one in caught if "artefacts" in str(one.message)]
    assert said.startswith("method toy: left out of its artefacts: picture 'bad'")
    assert "; number 'bad' is nan" in said
    assert RunDir.open(result.run_dir).manifest.status == "finished"
    assert result.metrics["fine"] == 2
    assert "bad" not in result.metrics
    assert [name for name in read_tensors(result.run_dir / "samples.safetensors")[0] if "good" in name or "bad" in name]


def test_collectives_see_one_process_and_modes_come_back(toys):
    method = toys.get("method", "toy")
    seen = []

    def artefacts(self, batch, now):
        seen.append((dist.world(), self.training, torch.is_grad_enabled(), len(dist.gather(torch.ones(2, 3)))))
        return Artefacts()

    shower = type("Shower", (method,), {"artefacts": artefacts, "__init__": lambda self: nn.Module.__init__(self)})()
    with dist.acting_in(dist.Imagined(2)):
        assert of_method(shower, Batch(Views(), torch.arange(6)), NOW).problems == []
        assert dist.world() == 2
    assert dist.world() == 1
    assert seen == [(1, False, False, 2)]
    assert shower.training
