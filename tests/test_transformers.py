"""Models of Hugging Face transformers are networks like any others: they teach, learn, are tapped and exported."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from limbeck import KD, Adam, CrossEntropy, Dataset, FitNets, distill, tap
from limbeck.errors import Incompatible
from limbeck.export import to_onnx
from limbeck.problems.digits import split
from limbeck.problems.networks import ConvNet
from limbeck.rng import seeded

transformers = pytest.importorskip("transformers")

TOKENS = (8 // 2) ** 2 + 1


def vit(layers: int = 2) -> nn.Module:
    """A small one from its configuration, with random weights: nothing is fetched."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    image = {"image_size": 8, "patch_size": 2, "num_channels": 1}
    config = transformers.ViTConfig(**sizes, **image, num_hidden_layers=layers, num_labels=10)
    with seeded("vit", layers):
        return transformers.ViTForImageClassification(config)


def images(n: int = 256) -> tuple[Tensor, Tensor]:
    x, y, *_ = split()
    return x[:n], y[:n]


def test_taps() -> None:
    """By names of the model's own parts; a layer gives tokens, the classifier's input the class token."""
    net, (x, _) = vit(), images(3)
    with tap(net, "vit.layers.*", "classifier:in") as seen:
        logits = net(x).logits
    assert {name: tuple(value.shape) for name, value in seen.items()} == {
        "vit.layers.0": (3, TOKENS, 16),
        "vit.layers.1": (3, TOKENS, 16),
        "classifier:in": (3, 16),
    }
    assert torch.allclose(net.classifier(seen["classifier:in"]), logits)
    hidden = net(x, output_hidden_states=True).hidden_states
    assert torch.equal(seen["vit.layers.0"], hidden[1])


def test_teacher_of_a_convolutional_network() -> None:
    """What it learned from labels reaches a student that sees none; each is asked once a tick."""
    x, y = images()
    teacher, optim = vit(), Adam(lr=3e-3)
    distill(None, teacher, CrossEntropy(), Dataset(x=x, y=y), steps=250, batch=64, optim=optim).finish()
    before, calls = copy.deepcopy(teacher.state_dict()), list[int]()
    teacher.register_forward_hook(lambda module, args, out: calls.append(1))
    objective = KD(alpha=1.0) + FitNets(pairs={"head:in": "classifier:in"})
    run = distill(teacher, ConvNet(classes=10), objective, Dataset(x=x), steps=150, batch=64, optim=optim)
    calls.clear()
    student = run.finish().eval()
    assert len(calls) == 150
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    with torch.no_grad():
        agree = (student(x).argmax(1) == teacher(x).logits.argmax(1)).double().mean().item()
    assert agree > 0.6  # 0.1 is chance


@pytest.mark.parametrize(
    "objective", [KD(), KD() + FitNets(pairs={"vit.layers.0": "vit.layers.1"})], ids=["kd", "hint"]
)
def test_inputs_by_name(objective: object) -> None:
    """A batch that is a mapping gives keyword arguments, to the same bits; a model may be the student as well."""
    x, y = images()
    results = []
    for inputs in (x, {"pixel_values": x}):
        run = distill(vit(), vit(layers=1), objective, Dataset(x=inputs, y=y), steps=3, batch=16)  # type: ignore[arg-type]
        results.append(run.finish().state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())
    fresh = vit(layers=1).state_dict()
    for name in (
        "classifier.weight",
        "vit.layers.0.mlp.fc1.weight",
        "vit.embeddings.patch_embeddings.projection.weight",
    ):
        assert not torch.equal(results[0][name], fresh[name])


def test_names_that_it_does_not_have() -> None:
    x, y = images()
    with pytest.raises(Incompatible, match=r"needs a submodule 'vit.layer.0'.*'vit\.layers\.0'"):
        distill(vit(), ConvNet(classes=10), FitNets(pairs={"head": "vit.layer.0"}), Dataset(x=x, y=y), steps=1)


@torch.no_grad()
def test_onnx(tmp_path: Path) -> None:
    for data in (images()[0], Dataset(x={"pixel_values": images()[0]})):
        assert to_onnx(vit(), data, tmp_path / "vit.onnx", batches=(1, 5)) < 1e-5
