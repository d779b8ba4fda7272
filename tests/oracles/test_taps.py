"""Taps: the very tensors that pass by, with their gradients, whatever is wrapped around the module."""

import copy
import gc

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limbeck import KD, Dataset, FitNets, distill, find, tap
from limbeck.errors import Incompatible


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).relu()


class Net(nn.Module):
    """Three blocks and a head; ``reentrant`` says how the blocks are checkpointed, if they are."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.blocks, self.head = nn.ModuleList(Block() for _ in range(3)), nn.Linear(8, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


X = torch.linspace(-1, 1, 32).view(4, 8)


def by_hand(net: Net) -> list[Tensor]:
    """What each block puts out."""
    x, found = X, []
    for block in net.blocks:
        found.append(x := block(x))
    return found


def gradient(net: Net, feature: Tensor, out: Tensor) -> Tensor:
    net.zero_grad()
    (feature.square().sum() + out.sum()).backward()
    assert net.blocks[0].fc.weight.grad is not None
    return net.blocks[0].fc.weight.grad.clone()


def test_features_are_the_tensors_that_pass_by() -> None:
    net = Net()
    with tap(net, "blocks.*", "head:in") as seen:
        out = net(X)
    assert list(seen) == ["blocks.0", "blocks.1", "blocks.2", "head:in"]
    assert all(torch.equal(seen[f"blocks.{k}"], value) for k, value in enumerate(by_hand(net)))
    assert seen["head:in"] is seen["blocks.2"]
    expected = gradient(net, by_hand(net)[1], net(X))
    torch.testing.assert_close(gradient(net, seen["blocks.1"], out), expected)


@pytest.mark.parametrize("early", [True, False], ids=["tapped first", "compiled first"])
def test_compiled(early: bool) -> None:
    net = Net()
    if early:
        seen = tap(net, "blocks.1")
        ask = torch.compile(net, backend="eager")
    else:
        ask = torch.compile(net, backend="eager")
        seen = tap(ask, "blocks.1")  # the wrapper's own names are not in the way
    for _ in range(3):  # the first call compiles; later ones run what it made
        with seen:
            out = ask(X)
        assert torch.equal(seen["blocks.1"], by_hand(net)[1])
    expected = gradient(net, by_hand(net)[1], net(X))
    torch.testing.assert_close(gradient(net, seen["blocks.1"], out), expected)


def test_tapped_after_the_first_call_of_a_compiled_module() -> None:
    net = Net()
    ask = torch.compile(net, backend="eager")
    ask(X)
    with tap(net, "blocks.1") as seen:
        ask(X)
    with pytest.raises(Incompatible, match="compiled and called before it was tapped"):
        seen["blocks.1"]


def test_checkpointed() -> None:
    """Inside a checkpointed block too; what is computed again in the backward pass does not count as seen."""
    net, plain = Net(reentrant=False), Net()
    with tap(net, "blocks.1.fc") as seen:
        out = net(X)
    first = seen["blocks.1.fc"]
    got = gradient(net, first, out)
    with tap(plain, "blocks.1.fc") as known:
        out = plain(X)
    torch.testing.assert_close(got, gradient(plain, known["blocks.1.fc"], out))
    assert seen["blocks.1.fc"] is first


def test_a_run_refuses_features_without_gradient() -> None:
    """Reentrant checkpointing computes them without a graph: a loss there would train nothing, and say nothing."""
    objective = KD(alpha=1.0) + FitNets(pairs={"blocks.1.fc": "blocks.1.fc"})
    run = distill(Net(), Net(reentrant=True), objective, Dataset(x=X), steps=1, batch=4)
    with pytest.raises(Incompatible, match=r"tap 'blocks\.1\.fc' of the student needs features with gradient"):
        run.finish()


def test_a_copy_does_not_write_into_the_originals_taps() -> None:
    net = Net()
    seen = tap(net, "blocks.0")
    other = copy.deepcopy(net)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    with seen:
        net(X)
        other(X)
    assert torch.equal(seen["blocks.0"], by_hand(net)[0])


def test_hooks_go_with_the_taps() -> None:
    net = Net()
    seen = tap(net, "blocks.*", "head:in")
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()) == 4
    del seen
    gc.collect()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_closed_taps_keep_what_they_saw() -> None:
    net = Net()
    with tap(net, "blocks.0") as seen:
        net(X)
    known = seen["blocks.0"]
    net(X + 1)
    assert seen["blocks.0"] is known
    with seen:
        pass
    with pytest.raises(Incompatible, match=r"tap 'blocks\.0' needs a pass of its module"):
        seen["blocks.0"]


def test_choices() -> None:
    net = Net()
    assert find(net, "blocks.*.fc") == ("blocks.0.fc", "blocks.1.fc", "blocks.2.fc")
    assert find(net, "**.fc") == find(net, lambda name, part: name.startswith("blocks") and isinstance(part, nn.Linear))
    assert find(net, "*") == ("blocks", "head") and find(net, "blocks.?") == ("blocks.0", "blocks.1", "blocks.2")
    assert find(net, "head", "blocks.0", "head") == ("head", "blocks.0")
    with pytest.raises(Incompatible, match=r"a submodule 'blok\.1', got a Net without it; 'blocks\.1' or"):
        find(net, "blok.1")
    with pytest.raises(Incompatible, match="a choice that fits some submodule"):
        find(net, lambda name, part: False)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[dict[str, Tensor], int]:
        return {"hidden": 2 * x, "other": x}, 3


def test_the_first_tensor_of_what_a_block_puts_out() -> None:
    net = nn.Sequential(Pair())
    with tap(net, "0") as seen:
        net(X)
    assert torch.equal(seen["0"], 2 * X)
