"""ONNX: what is in the file is what the network does, for batches of any size; else there is no file."""

import sys
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from limbeck import Dataset, tap
from limbeck.cli import main
from limbeck.engine.checkpoint import is_whole
from limbeck.errors import BadFile, BadSetting, Incompatible
from limbeck.export import onnx, to_onnx
from limbeck.loading import load_run
from limbeck.problems.networks import ConvNet, Mixer, ViT
from limbeck.rng import Rng, seeded

QUICK = str(Path(__file__).parent / "faults" / "quick.py")


def run_file(path: Path, **inputs: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [known.name for known in session.get_outputs()] == ["logits"]
    return torch.as_tensor(session.run(None, {name: x.numpy() for name, x in inputs.items()})[0])


def images(n: int) -> Tensor:
    return Rng(("images", n)).normal(n, 1, 8, 8)


@pytest.mark.parametrize("make", [ConvNet, lambda **own: ViT(size=8, **own), lambda **own: Mixer(size=8, **own)])
@torch.no_grad()
def test_file_is_the_network(make: type[nn.Module], tmp_path: Path) -> None:
    """In evaluation mode: running statistics count; the network stays in the mode that it was in."""
    with seeded("net"):
        net = make(classes=10).train()
    net(images(32))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert to_onnx(net, images(9), path := tmp_path / "new" / "net.onnx", batches=(1, 5)) < 1e-5
    assert net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net.eval()
    for n in (1, 3, 100):
        assert torch.allclose(run_file(path, x=images(n)), net(images(n)), atol=1e-5)
    assert [file.name for file in path.parent.iterdir()] == ["net.onnx"]


class Named(nn.Module):
    """Inputs by name, and logits among other outputs, as transformers has them."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor, bias: Tensor) -> object:
        return SimpleNamespace(hidden=bias, logits=self.head(self.words(ids).mean(1)) + bias)


@torch.no_grad()
def test_inputs_by_name(tmp_path: Path) -> None:
    data = Dataset(x={"bias": torch.randn(9, 3), "ids": torch.randint(7, (9, 5))})
    net = Named()
    to_onnx(net, data, tmp_path / "net.onnx")
    x = {"ids": torch.randint(7, (4, 5)), "bias": torch.randn(4, 3)}
    assert torch.allclose(run_file(tmp_path / "net.onnx", **x), net(**x).logits, atol=1e-5)


@torch.no_grad()
def test_compiled_and_tapped(tmp_path: Path) -> None:
    """Neither is any part of the file."""
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with tap(net, "1") as seen:
        net(torch.zeros(2, 4))
        to_onnx(torch.compile(net), torch.randn(9, 4), tmp_path / "net.onnx")
        assert seen["1"].shape == (2, 8)
    x = torch.randn(5, 4)
    assert torch.allclose(run_file(tmp_path / "net.onnx", x=x), net(x), atol=1e-5)


@torch.no_grad()
def test_large_weights_lie_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 0)
    net, x = nn.Linear(400, 3), torch.randn(5, 400)
    to_onnx(net, x, tmp_path / "net.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    assert torch.allclose(run_file(tmp_path / "net.onnx", x=x), net(x), atol=1e-5)


class Random(nn.Module):
    """Never the same twice, which no file can be."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Pairs(nn.Module):
    """Takes two examples and no more."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 4) * 2


class Branches(nn.Module):
    """Goes one way or another."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else 2 * x


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (Random(), r"needs outputs within 0.0001 of the network's in onnxruntime, got [\d.]+ for 1 examples\.$"),
        (Pairs(), "needs a network that runs on 1 examples, in onnxruntime as well, got RuntimeError"),
        (Branches(), "needs a network that can be traced for batches of any size, got "),
        (nn.Linear(4, 3).bfloat16(), "in onnxruntime as well, got "),
        (nn.Module(), "needs a network that can be traced for batches of any size, got NotImplementedError"),
    ],
)
def test_a_failed_check_leaves_nothing(
    net: nn.Module, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One sentence; what was there before stays."""
    dtype = next((p.dtype for p in net.parameters()), torch.float32)
    (tmp_path / "net.onnx").write_text("before")
    with pytest.raises(Incompatible, match=said) as caught:
        to_onnx(net, torch.randn(9, 4).to(dtype), tmp_path / "net.onnx")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 450
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    assert (tmp_path / "net.onnx").read_text() == "before"
    assert capfd.readouterr().out == ""


def test_what_is_asked_for_wrongly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = ViT(size=8, classes=3, blocks=1), images(4)
    for settings in ({"tolerance": 0.0}, {"batches": ()}, {"batches": (0, 1)}):
        with pytest.raises(BadSetting):
            to_onnx(net, x, tmp_path / "net.onnx", **settings)
    with pytest.raises(Incompatible, match="within 1e-12"):
        to_onnx(net, x, tmp_path / "net.onnx", tolerance=1e-12)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadFile, match=r"net\.onnx cannot be written: Not a directory"):
        to_onnx(nn.Linear(4, 3), torch.randn(9, 4), tmp_path / "file" / "net.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnxscript" else sys)
    with pytest.raises(Incompatible, match=r"got no onnxscript; pip install 'limbeck\[onnx\]' would fit"):
        to_onnx(net, x, tmp_path / "net.onnx")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that stands alone, with the moving average and its running statistics."""
    run, out = tmp_path / "run", tmp_path / "deep" / "out"
    assert main(["distill", QUICK, "--on", QUICK, "--steps", "4", "--out", str(run)]) == 0
    capsys.readouterr()
    assert main(["export", str(run), "--out", str(out), "--to", "onnx"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"exported: {out}, within ") and said.endswith(" of the network in onnxruntime\n")
    assert is_whole(out) and (out / "recipe.json").read_bytes() == (run / "recipe.json").read_bytes()
    x = torch.randn(5, 2)
    assert torch.allclose(run_file(out / "model.onnx", x=x), load_run(run).student(x).detach(), atol=1e-5)
    assert main(["export", str(run), "--out", str(tmp_path / "run" / "result.json" / "x"), "--to", "onnx"]) == 2
    assert "result.json/x cannot be written: Not a directory" in capsys.readouterr().err


def test_command_for_a_generator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny, run = str(Path(__file__).parent / "cli" / "tiny.py"), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.commands.comparison.evaluate", lambda student, problem: {})
        assert main(["distill", tiny, "--on", tiny, "--steps", "1", "--out", str(run)]) == 0
    capsys.readouterr()
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--to", "onnx"]) == 2
    said = "ONNX export needs a run that made a classifier, got a OneStep on four; --to safetensors would fit."
    assert capsys.readouterr().err == f"limbeck: {said}\n" and not (tmp_path / "out").exists()
