"""How networks lie in memory: weights in half and blocks computed again, which change little, or nothing."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck import DMD, GAN, KD, SGD, Critic, Fake, OneStep, SiD, distill, low_rank
from limbeck.diffusion import Denoiser
from limbeck.engine import Dataset, Draw, Memory, Objective, Run
from limbeck.errors import BadSetting, Incompatible
from limbeck.evaluate.memory import peak, size_of
from limbeck.problems.digits import Digits
from limbeck.problems.networks import MLP
from limbeck.rng import Rng, seeded
from limbeck.tree import Tree

PROBLEM = Digits()
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def dmd2(memory: Memory | dict[str, Memory] | None, *, rank: int | None = None) -> Run:
    """DMD with its GAN on digits; student and critic as adapters on the teacher if there is a rank."""
    teacher = PROBLEM.teacher.clone(trainable=False)
    student = teacher.clone(trainable=True) if rank is None else low_rank(teacher, rank)
    critic = Critic(rank=rank)
    objective = DMD(fake=Fake(critic=critic), critic_steps=1) + GAN(critic=critic, critic_steps=1)
    settings = {"steps": 2, "batch": 16, "optim": SGD(lr=1e-3), "memory": memory}
    return distill(teacher, OneStep(student, shape=PROBLEM.shape, ratio=1.0), objective, PROBLEM.source, **settings)


def gradients(run: Run) -> dict[str, Tensor]:
    """Where a tick leads each role, flat."""
    before = {name: {k: p.detach().clone() for k, p in role.params.items()} for name, role in run.cast.roles.items()}
    run.tick()
    return {
        name: torch.cat([(p.detach() - before[name][k]).float().flatten() for k, p in role.params.items()])
        for name, role in run.cast.roles.items()
    }


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_frozen_weights_in_half_lead_nearly_the_same_way(kind: str, rank: int | None) -> None:
    whole, half = dmd2(None, rank=rank), dmd2(Memory(frozen=kind), rank=rank)  # type: ignore[arg-type]
    assert {p.dtype for p in half.cast.teacher.parameters()} == {HALF[kind]}
    for role in half.cast.roles.values():
        assert {p.dtype for p in role.params.values()} == {torch.float32}
    ours, theirs = gradients(half)["critic"], gradients(whole)["critic"]
    assert torch.cosine_similarity(ours, theirs, 0) > 0.98 and not torch.equal(ours, theirs)


def test_one_network_alone() -> None:
    run = dmd2({"teacher": Memory(frozen="bf16")})
    assert {p.dtype for p in run.cast.teacher.parameters()} == {torch.bfloat16}
    assert {p.dtype for role in run.cast.roles.values() for p in role.params.values()} == {torch.float32}
    assert run.tick().losses


def test_the_base_of_adapters_is_one_in_half_too() -> None:
    run = dmd2(Memory(frozen="bf16"), rank=4)
    base = {id(p) for p in run.cast.teacher.parameters()}
    for role in ("student", "critic"):
        frozen = [p for name, p in run.cast.module(role).named_parameters() if name not in run.cast.roles[role].params]
        assert frozen and {id(p) for p in frozen} == base


def test_blocks_computed_again_change_nothing() -> None:
    """Each row of a batch by itself, in double precision, so that sums are of the same numbers."""
    data = Dataset(x=Rng(1).normal(8, 4, dtype=torch.float64), y=Rng(2).integers(8, 3))
    ways = []
    for memory in (None, {"student": Memory(again=("blocks.*",))}):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            teacher, student = (MLP(size=4, classes=3, widths=(8, 8)).double() for _ in range(2))
        ways.append(gradients(distill(teacher, student, KD(), data, steps=1, batch=8, optim=SGD(), memory=memory)))
    assert torch.equal(ways[0]["student"], ways[1]["student"]) and ways[0]["student"].abs().sum() > 0


class Trembling(OneStep):
    """Drops numbers at random, and grows by what it has counted."""

    def __init__(self, denoiser: Denoiser):
        super().__init__(denoiser, shape=PROBLEM.shape, ratio=1.0)
        self.register_buffer("count", torch.zeros(()))
        self.draws = 0

    def draw(self, n: int, cond: Tree, rng: Rng) -> Draw:
        self.draws += torch.is_grad_enabled()
        self.count += 1
        made = super().draw(n, cond, rng)
        return replace(made, x=nn.functional.dropout(made.x * float(self.count), 0.1))


def again(objective: Objective, memory: Memory | None, **settings: Any) -> Run:
    """A few ticks of adapters on one base."""
    teacher = PROBLEM.teacher.clone(trainable=False)
    with seeded("again"):
        student = Trembling(low_rank(teacher, 4))
    settings = {"steps": 3, "batch": 16, "optim": SGD(lr=1e-2), "memory": memory, **settings}
    run = distill(teacher, student, objective, PROBLEM.source, **settings)
    run.finish()
    return run


ADAPTED = Critic(rank=4)
GUIDED = DMD(fake=Fake(critic=ADAPTED), critic_steps=1)
AGAINST = GAN(critic=ADAPTED, critic_steps=1)


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"autocast": torch.bfloat16}], ids=str)
@pytest.mark.parametrize("objective", [GUIDED + AGAINST, SiD(critic=ADAPTED)], ids=lambda one: type(one).__name__)
def test_samples_made_again_are_the_same_to_the_bit(objective: Objective, settings: dict[str, Any]) -> None:
    once, twice = (again(objective, memory, **settings) for memory in (Memory(again=()), None))
    mine, theirs = (run.cast.student for run in (once, twice))
    assert isinstance(mine, Trembling) and isinstance(theirs, Trembling) and theirs.draws == 2 * mine.draws
    for run in (once, twice):
        assert run.skipped == 0
    for a, b in zip(once.cast.tensors(), twice.cast.tensors(), strict=True):
        assert torch.equal(a, b)


def test_samples_whose_gradient_comes_at_once_are_made_once() -> None:
    """DMD asks teacher and critic without a graph."""
    student = again(GUIDED, None).cast.student
    assert isinstance(student, Trembling) and student.draws == 3


def test_samples_made_again_hold_one_network_at_a_time() -> None:
    def held(objective: Objective, memory: Memory | None) -> int:
        run = again(objective, memory, steps=1, batch=256)
        run.i = 0
        still = size_of(run.cast.tensors())
        return peak(run.tick, run.cast.tensors()) - still

    alone, once = (held(objective, Memory(again=())) for objective in (GUIDED, GUIDED + AGAINST))
    assert held(GUIDED + AGAINST, None) < 1.1 * alone and once > 1.3 * alone


def test_mistakes_are_named() -> None:
    data = Dataset(x=torch.zeros(8, 4), y=torch.zeros(8, dtype=torch.long))
    networks: list[nn.Module] = [MLP(size=4, classes=3, widths=(8, 8)) for _ in range(2)]
    assert KD() and distill(*networks, KD(), data, steps=1, batch=8, memory=Memory(frozen="bf16"))
    for memory, error, said in (
        ({"critic": Memory(frozen="bf16")}, BadSetting, "memory names the role 'critic'"),
        (Memory(again=("layers.*",)), Incompatible, "layers"),
        (Memory(again=("auto",)), Incompatible, "chooses|diffusers"),
        ({"teacher": Memory(again=("whole",))}, Incompatible, "student that draws samples, got the teacher"),
    ):
        with pytest.raises(error, match=said):
            distill(*networks, KD(), data, steps=1, batch=8, memory=memory)
