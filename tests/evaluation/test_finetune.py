"""Fine-tuning as a judge: on a copy, with rates by depth, on crops and mirror images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import akssl_core
from akssl_core.evaluation.protocols import FineTune, System, _groups, train_whole
from akssl_core.evaluation.split import Split, Twice


def test_fine_tuning_trains_a_copy():
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4), nn.BatchNorm1d(4))
    backbone.embed_dim = 4
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 8, 8), generator=generator).to(torch.uint8)
    labels = torch.arange(12) % 2 + 5
    images[labels == 5] //= 8  # dark and bright
    data, feed = akssl_core.TensorImages(images, labels), akssl_core.Preprocess(8, 3, (0.5,) * 3, (0.2,) * 3, 8)
    learner = FineTune(100, 5, torch.device("cpu")).learner(
        System("trained", backbone, feed), Split(data, data, labels, labels, "", Twice((), (), 0), {})
    )
    guesses = learner(torch.arange(len(labels)), 0)[None]
    assert torch.equal(guesses, labels), "it must have learned, else nothing was tuned"
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_lower_layers_of_a_transformer_are_tuned_less():
    image = akssl_core.ImageSpec(8, 3, (0.5,) * 3, (0.2,) * 3)
    vit = akssl_core.build("backbone", "vit_micro", image, depth=2)
    model = nn.Sequential(vit, nn.Linear(vit.embed_dim, 2))
    found = {id(p): (group["factor"], group["weight_decay"]) for group in _groups(model) for p in group["params"]}
    assert len(found) == len(list(model.parameters()))
    assert found[id(model[1].weight)] == (1, 0.05)
    assert found[id(vit.norm.weight)] == (1, 0)
    assert found[id(vit.blocks[1].attn.qkv.weight)] == (0.75, 0.05)
    assert found[id(vit.blocks[0].mlp.fc1.bias)] == (0.75**2, 0)
    assert {found[id(p)][0] for p in (vit.cls_token, vit.pos_embed, vit.patch_embed.proj.weight)} == {0.75**3}
    wide = akssl_core.build("backbone", "vit_micro", image, depth=1, width=768)
    assert {group["factor"] for group in _groups(nn.Sequential(wide, nn.Linear(768, 2)))} == {1, 0.65, 0.65**2}
    convnet = akssl_core.build("backbone", "resnet_tiny", image)
    assert {group["factor"] for group in _groups(nn.Sequential(convnet, nn.Linear(8, 2)))} == {1}


@pytest.mark.parametrize(
    ("images", "epochs", "steps"),
    [(10, None, 500), (10, 3, 3), (200, 3, 9), (3840, None, 600)],
    ids=["few labels have 500 steps", "as asked", "as asked, of 64 images", "ten epochs where these are more"],
)
def test_how_long_it_is_fine_tuned(images, epochs, steps):
    class Counts(nn.Flatten):
        steps = 0

        def forward(self, images):
            self.steps += 1
            return super().forward(images)

    model = nn.Sequential(Counts(), nn.Linear(3 * 4 * 4, 2))
    data = akssl_core.TensorImages(torch.zeros(images, 3, 4, 4, dtype=torch.uint8))
    feed = akssl_core.Preprocess(4, 3, (0.5,) * 3, (0.2,) * 3, 4)
    targets = torch.arange(images) % 2
    train_whole(model, feed, data, targets, epochs=epochs, seed=0, device=torch.device("cpu"))
    assert model[0].steps == steps
    told = FineTune(epochs, 5, torch.device("cpu")).meaning
    assert ("at least 500 steps" in told) == (epochs is None)


def test_fine_tuning_sees_crops_and_mirror_images():
    seen = []

    class Looks(nn.Flatten):
        embed_dim = 3 * 8 * 8

        def forward(self, images):
            if self.training:
                seen.append(images.clone())
            return super().forward(images)

    pixels = torch.randint(0, 256, (1, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    data, labels = akssl_core.TensorImages(pixels), torch.tensor([0])
    feed = akssl_core.Preprocess(8, 3, (0.5,) * 3, (0.2,) * 3, 8)
    learner = FineTune(8, 5, torch.device("cpu")).learner(
        System("trained", Looks(), feed), Split(data, data, labels, labels, "", Twice((), (), 0), {})
    )
    learner(torch.tensor([0]), 0)
    first, seen[:] = torch.cat(seen), []
    assert len(first.unique(dim=0)) > 5, "other views at each step; some crops of 8 px are the same"
    learner(torch.tensor([0]), 0)
    assert torch.equal(torch.cat(seen), first), "the same seed has the same views"
