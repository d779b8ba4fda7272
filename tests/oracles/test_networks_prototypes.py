"""Prototypes of another task's features: attention over fixed vectors, and what a gate lets through."""

import torch
from torch.nn import functional as F

from limbeck import CrossEntropy, FitNets, Rng, Same, distill
from limbeck.objectives.networks.several import rows
from limbeck.problems.digits_other import DigitsOther
from limbeck.problems.networks import ConvNet
from limbeck.recipes.k_feat.proc_kd import Augmented, Prototypes
from limbeck.rng import seeded
from tests.oracles.exact import F64, close, seeds


def made(seed: int) -> Augmented:
    with seeded("prototypes", seed):
        return Augmented(Prototypes(), classes=5)


@seeds
def test_answers_are_means_that_attention_weighs(seed: int) -> None:
    prototypes, z = Prototypes().double().requires_grad_(False), Rng(seed).normal(2, 3, 32, dtype=F64)
    scores = torch.tensor([float(z[1, 2] @ v) / 32**0.5 for v in prototypes.vectors], dtype=F64)
    shares = scores.exp() / scores.exp().sum()
    close(prototypes(z)[1, 2], sum((p * v for p, v in zip(shares, prototypes.vectors, strict=True)), 0 * z[0, 0]))


@seeds
def test_a_shut_gate_leaves_the_plain_network(seed: int) -> None:
    student, x = made(seed).eval(), Rng(seed).normal(4, 1, 8, 8)
    plain = student.head(student.late(student.early(x)).mean((2, 3)))
    assert not torch.allclose(student(x), plain)
    with torch.no_grad():
        student.gate.weight.zero_()
        student.gate.bias.fill_(-1e4)
    torch.testing.assert_close(student(x), plain)


def test_prototypes_stay_while_the_student_learns_to_ask() -> None:
    problem, student = DigitsOther(), made(0)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    with seeded("teacher"):
        teacher = ConvNet(classes=5, widths=(16, 32, 32))
    objective = CrossEntropy() + FitNets(pairs={"prototypes": "blocks.1"}, projector=Same())
    distill(teacher, student, objective, problem.source, steps=2, batch=8).finish()
    moved = {name for name, p in student.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {*before} - {"prototypes.vectors"}


def test_the_answer_is_compared_at_the_teachers_places() -> None:
    """A hint on tokens [B, 16, D] beside a map [B, D, 4, 4] is their mean square, place by place, row by row."""
    student, x = made(1).eval(), Rng(1).normal(4, 1, 8, 8)
    with seeded("teacher"), torch.no_grad():
        maps = ConvNet(classes=5, widths=(16, 32, 32)).eval().blocks[:2](x)
        answer = student.answer(student.early(x))
        projected = Same().build(answer.shape, maps.shape)(answer)
    torch.testing.assert_close(F.mse_loss(projected, maps), F.mse_loss(answer, rows(maps)))


def test_both_tasks_share_no_class() -> None:
    problem = DigitsOther()
    assert problem.known[1].unique().tolist() == [0, 1, 2, 3, 4]
    assert problem.train[1].bincount().tolist() == [2] * 5
    seen = {tuple(x.flatten().tolist()) for x in problem.known[0]}
    assert not seen & {tuple(x.flatten().tolist()) for x in (*problem.train[0], *problem.heldout[0])}
