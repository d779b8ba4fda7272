"""One frozen base for teacher, student and critic: nothing of it is copied, saved, or switched."""

import copy
import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck import (
    DMD,
    EMA,
    GAN,
    SGD,
    Adam,
    Critic,
    Dataset,
    Fake,
    Incompatible,
    OneStep,
    Optim,
    Run,
    Trained,
    checkpointed,
    distill,
    low_rank,
    tap,
)
from limbeck.cli import main
from limbeck.diffusion import Seen
from limbeck.engine.checkpoint import read_state, write_folder
from limbeck.engine.loop import BASE
from limbeck.engine.tick import Cut
from limbeck.problems.networks import ResidualMLP
from limbeck.rng import Rng, seeded

PARTS = ("student", "critic")
LENT = str(Path(__file__).parent / "lent.py")


def network(width: int = 16) -> Trained:
    """A teacher whose output is not zero."""
    with seeded("adapters"):
        net = ResidualMLP(shape=(2,), width=width, blocks=3)
        nn.init.normal_(net.out.weight, std=0.3)
    return Trained(net.double()).requires_grad_(False)


def dmd2(
    teacher: Trained,
    student: Trained,
    *,
    rank: int | None = 2,
    ema: bool = True,
    optim: Optim | None = None,
    every: int = 2,
) -> Run:
    """DMD2 of a one-step student, whose discriminator reads the critic's features and trains it."""
    critic = Critic(rank=rank)
    gan = GAN(critic=critic, critic_steps=every, feature_weight=0.3, hidden=8)
    return distill(
        teacher,
        OneStep(student, shape=(2,)),
        DMD(fake=Fake(critic=critic), critic_steps=every) + 0.3 * gan,
        Dataset(x=Rng("data").normal(64, 2).double()),
        steps=6,
        batch=8,
        optim=optim or Adam(lr=1e-2),
        ema=EMA(decay=0.9) if ema else None,
    )


def shared(rank: int = 2, **settings: Any) -> Run:
    """The same with adapters on one base."""
    with seeded("student"):
        teacher = network()
        return dmd2(teacher, low_rank(teacher, rank), rank=rank, **settings)


def tensors(run: Run) -> Iterator[Tensor]:
    """Everything that a run holds: networks, averages, and optimisers."""
    yield from run.cast.tensors()
    for role in run.cast.roles.values():
        yield from (x for state in role.optimizer.state.values() for x in state.values())


def held(values: Iterator[Tensor]) -> int:
    """Bytes of different storages."""
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in values}.values())


# one base


def test_a_run_holds_one_base() -> None:
    """Teacher, student, critic, average and optimisers: one base, and four times what is trained, by count of bytes."""
    run = shared()
    run.finish()
    base = held(run.cast.teacher.parameters())
    trained = {name: held(iter(role.params.values())) for name, role in run.cast.roles.items()}
    buffers = [b for one in (*run.cast.roles.values(), *run.cast.targets.values()) for b in one.buffers]
    steps = 4 * sum(len(role.params) for role in run.cast.roles.values())
    own = held(iter((*buffers, *run.cast.teacher.buffers())))
    # parameters and two moments of each role, the student's average, and Adam's counts
    assert held(tensors(run)) == base + 3 * sum(trained.values()) + trained["student"] + own + steps
    assert max(trained[name] for name in PARTS) < base / 2
    full = dmd2(network(), network().requires_grad_(True), rank=None)
    full.finish()
    assert held(tensors(full)) > 8 * base


def test_learning_moves_adapters_alone() -> None:
    run = shared()
    before = {name: p.clone() for name, p in run.cast.teacher.named_parameters()}
    start = {name: {n: p.clone() for n, p in run.cast.roles[name].params.items()} for name in PARTS}
    run.finish()
    assert all(torch.equal(p, before[name]) for name, p in run.cast.teacher.named_parameters())
    for name in PARTS:
        role = run.cast.roles[name]
        assert all(n.endswith((".down", ".up")) for n in role.params)
        assert any(not torch.equal(p, start[name][n]) for n, p in role.params.items())
    assert run.student is not run.cast.student  # the average follows, and holds the base too
    ups = [(name, p) for name, p in run.student.named_parameters() if name.endswith(".up")]
    assert ups and all(p.abs().sum() > 0 and not p.requires_grad for _, p in ups)


# states


def test_a_state_holds_what_is_trained_and_goes_back_exactly(tmp_path: Path) -> None:
    run = shared()
    whole = run.state_dict()
    names = {name for name, _ in run.cast.teacher.named_parameters()}
    for part in (*whole["roles"].values(), *whole["targets"].values()):
        said = {name.removeprefix("denoiser.").replace(".base.", ".") for name in part["module"]}
        assert not said & names
    assert set(whole["targets"]["student~EMA(decay=0.9, ramp=True)"]["module"]) == set(
        whole["roles"]["student"]["module"]
    )
    for step in run:
        if step.i == 3:
            write_folder(tmp_path / "cut", state=run.state_dict())
    again = shared()
    again.load_state_dict(read_state(tmp_path / "cut"))
    again.finish()
    for (name, p), (other, q) in zip(run.student.named_parameters(), again.student.named_parameters(), strict=True):
        assert name == other and torch.equal(p, q)
    for name in run.cast.roles:
        for one, other in zip(
            run.cast.roles[name].params.values(), again.cast.roles[name].params.values(), strict=True
        ):
            assert torch.equal(one, other)


def test_other_names_are_refused() -> None:
    run, state = shared(), shared().state_dict()
    base = "denoiser.net.inp.base.weight"
    module = state["roles"]["student"]["module"]
    assert base in dict(run.cast.student.named_parameters()) and base not in module
    for other in (
        {**module, base: torch.zeros(16, 2)},
        {**module, "more": torch.zeros(1)},
        dict([*module.items()][1:]),
    ):
        with pytest.raises((KeyError, RuntimeError)):
            run.load_state_dict(
                {**state, "roles": {**state["roles"], "student": {**state["roles"]["student"], "module": other}}}
            )


def test_frozen_parts_that_no_teacher_lent_are_kept() -> None:
    """What is frozen in a student but its own may be random, so that it has to be in the state."""
    student = network().requires_grad_(True)
    student.net.level.requires_grad_(False)
    run = dmd2(network(8), student, rank=None)
    name = "denoiser.net.level.weight"
    assert name in run.state_dict()["roles"]["student"]["module"] and name in run.result_state(run.student)
    assert dict(run.student.named_parameters())[name] is dict(run.cast.student.named_parameters())[name]


# computed again


class Dropping(nn.Module):
    """A block in front of which some numbers are dropped: chance that has to be the same again."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.drop, self.block, self.passes = nn.Dropout(0.2), block, [0]

    def forward(self, h: Tensor, *, emb: Tensor) -> Tensor:
        self.passes[0] += 1
        return self.block(self.drop(h), emb)


class Blocks(ResidualMLP):
    """A network of such blocks."""

    def __init__(self) -> None:
        super().__init__(shape=(2,), width=16, blocks=3)
        nn.init.normal_(self.out.weight, std=0.3)
        self.blocks = nn.ModuleList(Passing(block) for block in self.blocks)


class Passing(nn.Module):
    """Gives the block its input by name, as networks of diffusers do."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.inner = Dropping(block)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        return self.inner(h, emb=emb)


def ticked(again: tuple[str, ...]) -> tuple[dict[str, Tensor], int]:
    """Gradients of all roles in one tick of DMD2 with its GAN, and how often the blocks of student and critic ran."""
    with seeded("ticked"):
        teacher = Trained(Blocks().double()).requires_grad_(False)
        if again:
            checkpointed(teacher, *again)
        run = dmd2(teacher, low_rank(teacher, 2), ema=False, optim=SGD(lr=1.0), every=1)
        params = [p for role in run.cast.roles.values() for p in role.params.values()]
        for p in params:
            nn.init.normal_(p, std=0.2)
    before = {f"{role}.{n}": p.clone() for role in run.cast.roles for n, p in run.cast.roles[role].params.items()}
    run.tick()
    grads = {f"{role}.{n}": p for role in run.cast.roles for n, p in run.cast.roles[role].params.items()}
    blocks = [part for name in PARTS for part in run.cast.module(name).modules() if isinstance(part, Dropping)]
    return {name: before[name] - grads[name] for name in grads}, sum(part.passes[0] for part in blocks)


@pytest.mark.parametrize("again", [("net.blocks.*",), ("**.inner",), ("net.blocks.1", "**.block.up")])
def test_what_is_computed_again_gives_the_same_gradients(again: tuple[str, ...]) -> None:
    """Student, critic and discriminator of one tick, dropout and shared passes included."""
    (plain, once), (same, twice) = ticked(()), ticked(again)
    assert plain.keys() == same.keys() and all(grad.abs().sum() > 0 for grad in plain.values())
    assert twice > once or "**.block.up" in again
    for name, grad in plain.items():
        torch.testing.assert_close(same[name], grad, rtol=1e-10, atol=1e-12)


class Switched(nn.Module):
    """Two adapters on one layer, of which one is active: what other libraries do, and we do not."""

    def __init__(self, base: nn.Linear, adapters: list[nn.Parameter]):
        super().__init__()
        self.base, self.adapters, self.active = base, nn.ParameterList(adapters), 0

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.adapters[self.active].mT


def test_nothing_is_switched_so_nothing_is_computed_again_wrongly() -> None:
    """Two adapters on one base, both forward, then both backward: one that is switched learns from the other's."""
    with seeded("switched"):
        base = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double().requires_grad_(False)
        ours = [checkpointed(low_rank(base, 2), "*") for _ in range(2)]
        for net in ours:
            for layer in (net[0], net[2]):
                nn.init.normal_(layer.up)
    x = Rng("switched").normal(5, 4).double()

    def switched(again: bool) -> list[Tensor]:
        deltas = [[nn.Parameter(net[k].delta().detach()) for net in ours] for k in (0, 2)]
        net = nn.Sequential(Switched(base[0], deltas[0]), nn.Tanh(), Switched(base[2], deltas[1]))
        net = checkpointed(nn.Sequential(net), "0") if again else nn.Sequential(net)
        losses = []
        for active in (0, 1):
            net[0][0].active = net[0][2].active = active
            losses.append(net(x).square().sum())
        sum(losses).backward()  # type: ignore[union-attr]
        return [p.grad if p.grad is not None else torch.zeros_like(p) for pair in deltas for p in pair]

    right, wrong = switched(again=False), switched(again=True)
    assert not all(torch.allclose(a, b) for a, b in zip(right, wrong, strict=True))  # the trap is there
    sum(net(x).square().sum() for net in ours).backward()  # type: ignore[union-attr]
    for (k, i), full in zip(((0, 0), (0, 1), (2, 0), (2, 1)), right, strict=True):
        layer = ours[i][k]
        torch.testing.assert_close(layer.up.grad, full @ layer.down.mT, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(layer.down.grad, layer.up.mT @ full, rtol=1e-10, atol=1e-12)


def test_features_inside_what_is_computed_again() -> None:
    """A tap of a block, and one inside it, read once and with the same gradients."""
    with seeded("features"):
        plain = Blocks().double().eval()
    x, level = Rng("features").normal(5, 2).double(), torch.zeros(5).double()
    grads = []
    for net in (plain, checkpointed(copy.deepcopy(plain), "blocks.*")):
        with tap(net, "blocks.0", "blocks.1.inner.block.up") as seen:
            net(x, level)
            features = seen.take()
        sum(f.square().sum() for f in features.values()).backward()  # type: ignore[union-attr]
        grads.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and "blocks.1.inner.block.up.weight" in grads[0]
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-10, atol=1e-12)


def test_a_pass_that_is_over_holds_no_graph() -> None:
    """Not even the part that leads to what no loss asked for."""
    x, gone = torch.ones(3, requires_grad=True), []
    hidden = x.exp()  # kept for the backward pass
    weakref.finalize(hidden.untyped_storage(), gone.append, True)
    cut = Cut.of(Seen(hidden.square().sum(), {"feature": 2 * x}), ("critic",), grad=True)
    del hidden
    cut.seen.features["feature"].sum().backward()
    cut.back(keep=True)
    assert not gone and x.grad is not None
    cut.back(keep=False)
    assert gone


def test_what_cannot_be_computed_again_is_refused() -> None:
    with pytest.raises(Incompatible, match="running statistics"):
        checkpointed(nn.Sequential(nn.Sequential(nn.BatchNorm1d(2))), "0")
    with pytest.raises(Incompatible, match=r"'blocks\.0'"):
        checkpointed(Blocks(), "block.*")
    with pytest.raises(Incompatible, match="names of blocks"):
        checkpointed(Blocks())


# the command line


def test_rank_and_targets_are_for_student_and_critic(tmp_path: Path) -> None:
    """One setting for both, recorded; the folder holds adapters, and the result has them."""
    run = tmp_path / "run"
    small = ("--steps", "4", "--batch", "8", "--checkpoint-every", "2")
    adapters = ("--rank", "3", "--targets", "up,blocks.*.down")
    assert main(["distill", "dmd2", "--on", LENT, "--out", str(run), *small, *adapters]) == 0
    settings = json.loads((run / "recipe.json").read_text())["settings"]
    assert settings["student.rank"] == 3 and settings["student.targets"] == ["up", "blocks.*.down"]
    assert (
        "rank=3" in settings["objective.dmd.fake"]
        and "targets=('up', 'blocks.*.down')" in settings["objective.gan.critic"]
    )
    (cut,) = (run / "checkpoint").iterdir()
    state, result = read_state(cut), read_state(run / "stages" / "dmd2")
    held = (
        *(state["roles"][name]["module"] for name in PARTS),
        *(x["module"] for x in state["targets"].values()),
        result,
    )
    assert len(held) == 4 and all(name.endswith((".down", ".up")) for names in held for name in names if name != BASE)
    assert result[BASE] == state["roles"]["student"]["base"]
    assert main(["sample", str(run), "--n", "4", "--out", str(tmp_path / "x.safetensors")]) == 0
    shutil.rmtree(run / "stages")  # as if it had been killed after the checkpoint
    assert main(["distill", "dmd2", "--on", LENT, "--out", str(run), "--resume"]) == 0
    again = read_state(run / "stages" / "dmd2")
    assert again.pop(BASE) == result.pop(BASE)
    assert again.keys() == result.keys() and all(torch.equal(again[name], result[name]) for name in result)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--rank", "0"), "rank must be at least 1"),
        (("--targets", "up"), "need a rank"),
        (("--rank", "2", "--targets", "upp"), "a layer 'upp'"),
    ],
)
def test_adapters_that_do_not_fit_are_said_in_a_sentence(
    given: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["distill", "dmd2", "--on", LENT, "--out", str(run), *given]) == 2
    assert said in capsys.readouterr().err and not run.exists()
