"""Weights in the host's memory: the same bits as on the device, one layer's copy at a time, and none kept for later."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck import DMD, GAN, KD, SGD, Critic, Fake, OneStep, checkpointed, distill, low_rank
from limbeck.cli import main
from limbeck.engine import Dataset, Memory, Run
from limbeck.engine.host import Hosted, from_host, host_of, to_host
from limbeck.errors import Incompatible
from limbeck.evaluate.memory import peak, size_of
from limbeck.evaluate.needs import needs
from limbeck.loading import load_run
from limbeck.problems.digits import Digits
from limbeck.rng import seeded

LENT = Path(__file__).parent / "lent.py"


def stack(layers: int = 6, width: int = 64) -> nn.Sequential:
    """Layers of all kinds that have weights, frozen."""
    with seeded("offload"):
        parts = [nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.SiLU()) for _ in range(layers)]
        head = nn.Sequential(nn.Unflatten(1, (4, -1, 4)), nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4))
        return nn.Sequential(nn.Embedding(9, width), *parts, head).requires_grad_(False)


def adapted(net: nn.Sequential) -> nn.Sequential:
    """With adapters that do something."""
    with seeded("adapters"):
        made = low_rank(net, 2)
        for p in made.parameters():
            if p.requires_grad:
                nn.init.normal_(p, std=0.1)
    return made


def passed(net: nn.Module) -> list[Tensor]:
    """What a network gives, and every gradient."""
    for p in net.parameters():
        p.grad = None
    out = net(torch.arange(8))
    out.square().sum().backward()
    return [out.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


@pytest.mark.parametrize("again", [False, True], ids=["once", "again"])
@pytest.mark.parametrize("half", [False, True], ids=["single", "bf16"])
def test_values_and_gradients_are_the_same_to_the_bit(again: bool, half: bool) -> None:
    net = stack()
    net = adapted(net)
    if again:
        checkpointed(net, "?")
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        before = passed(net)
        to_host(net)
        after = passed(net)
    assert {type(p) for p in net.parameters() if p.dim() > 1 and not p.requires_grad} == {Hosted}
    assert len(before) == len(after) == 15
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)


def test_a_copy_lives_as_long_as_the_operation_that_needs_it() -> None:
    """Without gradients there is one at a time; with them no more, for what is saved is where it came from."""
    net, x = adapted(stack(layers=8, width=256)), torch.arange(8)
    one, every = 4 * 256 * 256, [*net.parameters()]

    def held(still: list[Tensor], *, grad: bool) -> int:
        with torch.set_grad_enabled(grad):
            return peak(lambda: passed(net) if grad else net(x), still) - size_of(still)

    there = [held(every, grad=grad) for grad in (False, True)]
    to_host(net)
    rest = [p for p in net.parameters() if not isinstance(p, Hosted)]
    for before, grad in zip(there, (False, True), strict=True):
        assert 0.5 * one < held(rest, grad=grad) - before <= 1.1 * one


def test_a_copy_in_half_that_autocast_makes_is_not_kept_either() -> None:
    """On the device, each layer's is saved for the backward pass."""
    net = adapted(stack(layers=8, width=256))

    def held() -> int:
        still = [p for p in net.parameters() if not isinstance(p, Hosted)]
        with torch.autocast("cpu", torch.bfloat16):
            return peak(lambda: passed(net), still) - size_of(still)

    before = held()
    to_host(net)
    assert held() < before - 4 * 2 * 256 * 256


class Counted:
    """How many bytes have been brought."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.bytes, brought = 0, Hosted.brought

        def count(x: Hosted) -> Tensor:
            made = brought(x)
            self.bytes += made.numel() * made.element_size()
            return made

        monkeypatch.setattr(Hosted, "brought", count)


@pytest.mark.parametrize("again", [False, True], ids=["once", "again"])
def test_weights_are_brought_for_each_pass_and_its_backward(monkeypatch: pytest.MonkeyPatch, again: bool) -> None:
    """Also where a block is computed again; on the way back the table and what comes next to it are not needed."""
    net = adapted(stack())
    if again:
        checkpointed(net, "?")
    to_host(net)
    counted, table, first = Counted(monkeypatch), 4 * 9 * 64, 4 * 64 * 64
    passed(net)
    every = size_of([host_of(p) for p in net.parameters()]) - size_of(net.parameters())
    assert counted.bytes == every + (every - table - first) + again * (every - table)


def dmd2(memory: Memory | dict[str, Memory] | None, **settings: Any) -> Run:
    """DMD2 with its GAN, student and critic as adapters on the teacher."""
    problem = Digits()
    teacher, critic = problem.teacher.clone(trainable=False), Critic(rank=4)
    with seeded("dmd2"):
        student = OneStep(low_rank(teacher, 4), shape=problem.shape, ratio=1.0)
    objective = DMD(fake=Fake(critic=critic), critic_steps=1) + GAN(critic=critic, critic_steps=1)
    settings = {"steps": 3, "batch": 16, "optim": SGD(lr=1e-2), "memory": memory, **settings}
    return distill(teacher, student, objective, problem.source, **settings)


@pytest.mark.parametrize("frozen", [None, "bf16"])
def test_a_distillation_on_one_base_has_the_same_bits(frozen: Any) -> None:
    one, other = (dmd2(Memory(frozen=frozen, offload=offload)) for offload in (False, True))
    for a, b in zip(one, other, strict=True):
        assert a.measured == b.measured
    for name, role in one.cast.roles.items():
        theirs = other.cast.roles[name]
        assert role.base == theirs.base and role.lent == theirs.lent
        for key, p in role.params.items():
            assert torch.equal(p, theirs.params[key])
    base = [p for p in other.cast.teacher.parameters() if p.dim() > 1]
    assert {type(p) for p in base} == {Hosted} and all(host_of(p).dtype == base[0].dtype for p in base)


def test_a_plan_counts_both_memories() -> None:
    there, here = needs(dmd2(Memory())), needs(run := dmd2(Memory(offload=True)))
    base = [p for p in run.cast.teacher.parameters() if isinstance(p, Hosted)]
    assert here.host == sum(p.numel() * 4 for p in base) and there.host == 0
    assert there.parameters["teacher"] - here.parameters["teacher"] == here.host
    largest = max(p.numel() * 4 for p in base)
    assert there.total - here.host < here.total <= there.total - here.host + 1.1 * largest
    run.tick()
    used = peak(run.tick, run.cast.tensors())
    moments = here.moments + here.data
    assert here.total - moments == pytest.approx(used, rel=0.05)


def test_what_is_kept_on_the_host_can_be_saved_and_copied() -> None:
    net = stack(2)
    before = {name: x.clone() for name, x in net.state_dict().items()}
    to_host(net)
    other = stack(2)
    other.load_state_dict(net.state_dict())
    for name, x in other.state_dict().items():
        assert torch.equal(x, before[name])
    net.load_state_dict({name: 2 * x for name, x in before.items()})
    assert torch.equal(net[0].weight + 0, 2 * before["0.weight"])
    with pytest.raises(RuntimeError, match="would change a weight"):
        net[0].weight.data.mul_(2)


def test_what_cannot_lie_there_is_refused() -> None:
    with pytest.raises(Incompatible, match="parameters that modules alone hold, got 'weight_ih_l0'"):
        to_host(nn.GRU(2, 2).requires_grad_(False))


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run with offload has the bits of one without, goes on, is sampled; and shards are refused."""
    monkeypatch.chdir(tmp_path)
    line = f"distill dmd2 --on {LENT} --rank 2 --steps 2 --batch 8 --judge 0 --track none"
    for out, more in (("with", "--memory.default.offload true"), ("without", "")):
        assert main(shlex.split(f"{line} --out {out} {more}")) == 0
    one, other = ((tmp_path / out / "metrics.jsonl").read_text() for out in ("with", "without"))
    assert one == other
    assert main(shlex.split("sample with --out samples.png")) == 0
    assert not any(isinstance(p, Hosted) for p in load_run(tmp_path / "with").student.parameters())
    capsys.readouterr()
    assert main(shlex.split(f"plan dmd2 --on {LENT} --rank 2 --memory.default.offload true")) == 0
    assert "in the host's memory" in capsys.readouterr().out
    both = "--memory.default.offload true --shard true --gpus 2"
    assert main(shlex.split(f"plan dmd2 --on {LENT} --rank 2 --batch 8 {both}")) == 2
    assert "shard=True needs weights on the devices" in capsys.readouterr().err


def test_what_the_host_holds_is_not_written_by_the_way() -> None:
    weight = Hosted(torch.ones(4, 3), torch.device("cpu"))
    half = weight.to(torch.bfloat16)
    for write in (
        lambda: weight.zero_(),
        lambda: torch._foreach_zero_([weight]),
        lambda: torch.add(torch.ones(4, 3), 1, out=weight),
        lambda: half.copy_(torch.zeros(4, 3)),
    ):
        with pytest.raises(RuntimeError, match="would change a weight"):
            write()
    assert torch.equal(weight.host, torch.ones(4, 3))
    weight.copy_(torch.zeros(4, 3))
    assert not weight.host.any()


def test_what_an_earlier_run_left_with_the_host_is_not_trained_there() -> None:
    net, other = nn.Linear(4, 3).requires_grad_(False), nn.Linear(4, 3)
    kept = net.weight.clone()
    to_host(net)
    data = Dataset(x=torch.ones(8, 4), y=torch.zeros(8, dtype=torch.long))
    with pytest.raises(Incompatible, match="from_host"):
        distill(other, net.requires_grad_(True), KD(), data, steps=1, batch=8)
    from_host(net)
    assert type(net.weight) is nn.Parameter and torch.equal(net.weight, kept)
    distill(other, net, KD(), data, steps=1, batch=8, optim=SGD(lr=1.0)).finish()
    assert not torch.equal(net.weight, kept)


def test_states_are_plain_tensors() -> None:
    net = nn.Sequential(nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 3))
    data = Dataset(x=torch.ones(8, 4), y=torch.zeros(8, dtype=torch.long))
    run = distill(nn.Linear(4, 3), net, KD(), data, steps=1, batch=8, memory=Memory(offload=True))
    assert type(net[0].weight) is Hosted
    assert {type(x) for x in run.result_state(net).values()} == {Tensor}
