"""Who is asked, about what, and when: other classes, experts behind a router, targets along a path."""

import pytest
import torch

from limbeck import (
    CFG,
    DMD,
    Backtrack,
    Critic,
    CriticOf,
    Dataset,
    Fake,
    Instead,
    Particles,
    Process,
    Rng,
    Routed,
    SiD,
    Teacher,
    TeacherDenoising,
    Trained,
    distill,
)
from limbeck.errors import BadSetting, Incompatible
from limbeck.problems.networks import ResidualMLP
from tests.oracles.exact import F64, AtRatio, close, descended, every_process, levels, mixture

# Another class in the place of one


@pytest.mark.parametrize("scale", [1.0, 0.0, 2.5])
def test_instead_asks_for_the_other_class_and_leaves_the_rest(scale: float) -> None:
    teacher, x_t = mixture(0, k=6, classes=3), Rng(0).normal(9, 2, dtype=F64)
    t, cond = levels(teacher.process), torch.arange(9) % 3
    got = Instead(label=2, other=0, scale=scale)(teacher).denoise(x_t, t, cond)
    null, *classes = (teacher.denoise(x_t, t, c) for c in (None, *(torch.full((9,), k) for k in (0, 1))))
    asked = torch.where((cond == 1)[:, None], classes[1], classes[0])
    close(got, null + scale * (asked - null))
    assert torch.equal(Instead(label=2, other=0)(teacher).denoise(x_t, t), null)


def test_sid_forgets_where_the_critic_knows_the_safe_class_under_the_forgotten_label() -> None:
    """The student's zero is where ψ(·; f) = T(·; o) and ψ(·; c) = T(·; c): the goal of forgetting."""
    teacher, x = mixture(0, k=6, classes=3), Rng(0).normal(48, 2, dtype=F64)
    labels = torch.arange(48) % 3
    sfd = SiD(guidance=Instead(label=2, other=0), times=AtRatio(0.7))
    moved = descended(sfd, teacher, Particles(x, cond=labels), batch=48)["x"]
    assert not moved[labels != 2].any()  # a fresh critic is the teacher
    assert (moved[labels == 2].norm(dim=1) > 0).all()


# Experts behind a router


def experts(count: int) -> list[Trained]:
    return [Trained(ResidualMLP(shape=(2,), classes=6, width=8, blocks=1).double()) for _ in range(count)]


def lively(nets: list[Trained]) -> list[Trained]:
    for k, net in enumerate(nets):
        torch.nn.init.normal_(net.net.out.weight, std=0.5, generator=torch.Generator().manual_seed(k))
    return nets


def test_each_row_is_answered_by_its_expert_alone() -> None:
    nets, cond = lively(experts(3)), torch.tensor([5, 0, 1, 1, 3, 4, 2])
    x_t, t = Rng(0).normal(7, 2, dtype=F64), torch.logspace(-2, 1, 7, dtype=F64)
    for route in (None, lambda c: c // 2):
        routed = Routed(nets, route)
        x0 = routed.denoise(x_t, t, cond)
        for i, k in enumerate((cond % 3 if route is None else cond // 2).tolist()):
            close(x0[i], nets[k].denoise(x_t[i : i + 1], t[i : i + 1], cond[i : i + 1])[0])
        (row,) = (cond == 2).nonzero().flatten().tolist()
        learns = [bool(g.any()) for g in torch.autograd.grad(x0[row].sum(), [net.net.out.weight for net in nets])]
        assert learns == [k == (2 if route is None else 1) for k in range(3)]


def test_one_expert_is_itself_to_the_bit() -> None:
    (net,) = lively(experts(1))
    x_t, t, cond = Rng(0).normal(5, 2, dtype=F64), torch.ones(5, dtype=F64), torch.arange(5)
    assert torch.equal(Routed([net]).denoise(x_t, t, cond), net.denoise(x_t, t, cond))
    assert torch.equal(Routed([net]).denoise(x_t, t), net.denoise(x_t, t))


def test_a_router_needs_experts_that_exist() -> None:
    with pytest.raises(BadSetting, match="at least one expert"):
        Routed([])
    with pytest.raises(BadSetting, match="one of 2 experts, got 3"):
        Routed(experts(2), lambda c: c).denoise(
            torch.zeros(1, 2, dtype=F64), torch.ones(1, dtype=F64), torch.tensor([3])
        )


# The teacher's predictions as a target


@every_process
def test_teacher_denoising_is_zero_at_the_teacher_and_the_mean_of_denoising(process: Process) -> None:
    """Its target is T itself: no gradient to the bit where D = T, and w·(D − T) elsewhere."""
    teacher = mixture(0, k=1, process=process)
    data = Dataset(x=teacher.sample(512, Rng(0)))
    objective = TeacherDenoising(times=AtRatio(0.5))
    same = descended(objective, teacher, teacher.clone(trainable=True), data, batch=64)
    assert not any(g.any() for g in same.values())
    moved = teacher.clone(trainable=True)
    with torch.no_grad():
        moved.means += 1.0
    away = descended(objective, teacher, moved, data, batch=64)["means"]
    sigma = teacher.factor[0] @ teacher.factor[0].mT
    push = 0.25 * torch.linalg.inv(sigma + 0.25 * torch.eye(2, dtype=F64))  # ∂D/∂μ = I − Σ(Σ + r²I)⁻¹
    weight = (0.25 + 0.25) / (0.5 * 0.5) ** 2 / 2  # w(r)/D, at s = ½
    close(away[0], 2 * weight * push.mT @ (push @ torch.ones(2, dtype=F64)))


# Targets along a path


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.99])
def test_the_target_moves_from_the_student_to_the_teacher(progress: float) -> None:
    walk = Backtrack(path=("path2", "path1", "teacher"), until=0.6)
    assert walk.target(progress) == {0.0: "path2", 0.3: "path1", 0.99: "teacher"}[progress]


def test_a_run_follows_the_path_tick_by_tick() -> None:
    """Every tick descends what a run towards that target alone would."""
    who = {"teacher": mixture(0), "path1": mixture(1), "path2": mixture(2), "fixed": mixture(3)}
    x = Rng(0).normal(32, 2, dtype=F64)

    def losses(real: Backtrack | Teacher) -> list[float]:
        dmd = DMD(real=real, fake=Teacher(who="fixed"), shape=(), critic_steps=1, guidance=CFG(scale=1.0))
        run = distill(who, Particles(x), dmd, steps=8, batch=32)
        return [step.losses["dmd"] for step in run]

    walked = losses(Backtrack(path=("path2", "path1", "teacher"), until=0.5))
    assert walked[0] == losses(Teacher(who="path2"))[0]
    assert losses(Backtrack(until=0.5)) == losses(Teacher())
    assert losses(Backtrack(path=("path2", "teacher"), until=0.0)) == losses(Teacher())
    assert losses(Backtrack(path=("path2", "teacher"), until=1.0)) == losses(Teacher(who="path2"))


def test_a_path_of_unknown_teachers_is_refused() -> None:
    with pytest.raises(Incompatible, match="a teacher named 'path1'"):
        descended(DMD(real=Backtrack(path=("path1",))), mixture(0), Particles(torch.zeros(4, 2, dtype=F64)), batch=4)
    with pytest.raises(BadSetting, match="at least one teacher"):
        Backtrack(path=())


def test_a_critic_starts_as_who_it_should() -> None:
    who = {"teacher": mixture(0), "other": mixture(1)}
    for critic, name in ((CriticOf(who="other"), "other"), (Critic(), "teacher")):
        run = distill(who, Particles(torch.zeros(4, 2, dtype=F64)), DMD(fake=Fake(critic=critic)), steps=1, batch=4)
        assert torch.equal(run.cast.module("critic").means, who[name].means)
