"""ONNX files of networks, compared with the network before they are there."""

import copy
import logging
import os
import shutil
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor, nn

from limbeck.engine.checkpoint import writing
from limbeck.engine.data import Source, as_source
from limbeck.engine.roles import output_of
from limbeck.errors import BadFile, BadSetting, Incompatible, above_zero
from limbeck.rng import Rng
from limbeck.tree import Tree, tree_leaves, tree_map

NEEDS = ("onnx", "onnxscript", "onnxruntime")


def to_onnx(
    module: nn.Module,
    data: Source | Tensor,
    path: str | Path,
    *,
    batches: tuple[int, ...] = (1, 2, 7, 64),
    tolerance: float = 1e-4,
) -> float:
    """Writes a network in evaluation mode as an ONNX file that takes batches of any size, and compares the two.

    The file's input is ``x``, or has the names that the network's inputs have; its output is ``logits``. It is moved
    to its place after onnxruntime gave the same for fresh inputs; weights above 2 GB lie beside it in ``NAME.data``.

    Args:
        module: maps inputs [B, …] to outputs [B, …], or to something with ``logits``; it stays as it is.
        data: examples of its inputs, samples [N, …] or a source of x; floating-point numbers are compared at twice
            their variance, so that the network is seen beside its data as well.
        path: of the file; an old one is replaced.
        batches: sizes at which both are compared.
        tolerance: the largest difference, in units of the largest output or of 1 if that is more.

    Returns:
        The largest difference that was seen, in those units.

    Raises:
        Incompatible: without the extra ``onnx``, or for a network that cannot be traced, that onnxruntime does not run
            or that is tied to one size of a batch, or whose outputs differ. Then nothing is written.
        BadSetting: a tolerance that is not above 0, or no batches.
        BadFile: a place that cannot be written.

    >>> import tempfile
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_onnx(net, torch.randn(9, 4), Path(folder, "net.onnx")) < 1e-5
    True
    """
    above_zero("tolerance", tolerance)
    if not batches or min(batches) < 1:
        raise BadSetting(f"batches must be sizes of at least 1, got {batches}.")
    if missing := [name for name in NEEDS if find_spec(name) is None]:
        fit = "pip install 'limbeck[onnx]'"
        raise Incompatible("ONNX export", need=" and ".join(NEEDS), got=f"no {missing[0]}", fit=fit)
    net, source, path = _Net(module), as_source(data), Path(path)
    program = _traced(net, source.take(2, Rng(("onnx", "example")))["x"])
    with _beside(path) as partial:
        with writing(path, BadFile):
            program.save(partial)
        return _compared(net, source, partial, batches, tolerance)


class _Net(nn.Module):
    """A copy of a network for tracing: on the CPU, in evaluation mode, without gradients, and with one output."""

    def __init__(self, module: nn.Module):
        super().__init__()
        inner = getattr(module, "_orig_mod", module)  # of what torch.compile made
        self.inner = copy.deepcopy(inner).cpu().requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, x: Tree) -> Tensor:
        return output_of(self.inner, x)


def _traced(net: nn.Module, x: Tree) -> torch.onnx.ONNXProgram:
    size = torch.export.Dim("batch")
    names = [str(name) for name in x] if isinstance(x, dict) else ["x"]
    try:
        with _quiet():
            program = torch.onnx.export(
                net,
                kwargs={"x": tree_map(Tensor.cpu, x)},  # a mapping that is the last argument would be taken apart
                dynamo=True,
                # a tree of sizes, where `tree_map` promises tensors
                dynamic_shapes={"x": tree_map(lambda leaf: {0: size}, x)},  # type: ignore[arg-type, return-value]
                input_names=names,
                output_names=["logits"],
                verbose=False,
            )
    except Exception as error:  # whatever tracing says about a network
        need = "a network that can be traced for batches of any size"
        raise Incompatible("ONNX export", need=need, got=_said(error.__cause__ or error)) from error
    assert program is not None
    return program


def _compared(net: nn.Module, source: Source, path: Path, batches: tuple[int, ...], tolerance: float) -> float:
    """The largest difference between the network and its file."""
    worst = 0.0
    for n in batches:
        x = tree_map(Tensor.cpu, _fresh(source, n))
        try:
            gap = _gap(net(x), _run(path, x))
        except Exception as error:  # onnxruntime raises its own untyped errors
            need, got = f"a network that runs on {n} examples, in onnxruntime as well", _said(error)
            raise Incompatible("ONNX export", need=need, got=got) from error
        if not gap <= tolerance:
            need, got = f"outputs within {tolerance:g} of the network's in onnxruntime", f"{gap:.3g} for {n} examples"
            raise Incompatible("ONNX export", need=need, got=got)
        worst = max(worst, gap)
    return worst


def _run(path: Path, x: Tree) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [known.name for known in session.get_inputs()]
    fed = {name: leaf.numpy() for name, leaf in zip(names, tree_leaves(x), strict=True)}
    return torch.as_tensor(session.run(None, fed)[0])


def _said(error: BaseException) -> str:
    """An error in one line that is not long."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300].rstrip('.')}"


def _gap(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return ((ours - theirs).abs().max() / ours.abs().max().clamp_min(1)).item()


def _fresh(source: Source, n: int) -> Tree:
    """Inputs that no one has seen: examples, and noise of their own size where they are floating-point numbers."""
    rng = Rng(("onnx", "fresh", n))
    x, wide = source.take(n, rng)["x"], [*tree_leaves(source.take(64, rng)["x"])]
    stds = iter([leaf.double().std().item() for leaf in wide])

    def noised(leaf: Tensor) -> Tensor:
        std, noise = next(stds), rng.normal(*leaf.shape).to(leaf.device)
        return leaf + (std * noise).to(leaf) if leaf.is_floating_point() else leaf

    return tree_map(noised, x)


@contextmanager
def _beside(path: Path) -> Generator[Path]:
    """A path of the same name in a folder of its own; after the block all that is there moves to its place."""
    folder = path.with_name(f".{path.name}.partial")
    try:
        with writing(path, BadFile):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        yield folder / path.name
        with writing(path, BadFile):
            for file in sorted(folder.iterdir(), reverse=True):  # large weights before what names them
                os.replace(file, path.with_name(file.name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _quiet() -> Generator[None]:
    """Without what the exporter tells its own developers."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


__all__ = ["to_onnx"]
