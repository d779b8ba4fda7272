"""Functional maps: modes of a Laplacian, maps between equal shapes, and what describes a map."""

import torch
from torch import Tensor

from limbeck import Particles, Rng
from limbeck.problems.functional_maps import MODES, POINTS, FunctionalMaps, Pairs, pairs
from limbeck.recipes.s_obj.diffumatch import Described, matched
from tests.oracles.exact import descended

F32 = 1e-4


def test_modes_are_orthonormal_sorted_and_positive_at_the_first_point() -> None:
    made = pairs(5, Rng(0))
    eye = torch.eye(MODES).expand(2, 5, MODES, MODES)
    torch.testing.assert_close(made.basis.mT @ made.basis, eye, rtol=0, atol=F32)
    assert (made.basis[:, :, 0] > 0).all() and (made.levels.diff(dim=-1) > 0).all()
    assert made.levels[..., 0].abs().max() < F32  # the constant
    torch.testing.assert_close(made.basis[..., 0], torch.full_like(made.basis[..., 0], POINTS**-0.5))


def test_a_map_carries_coefficients() -> None:
    """A function of the first K modes of one shape, projected onto those of the other."""
    made, a = pairs(5, Rng(1)), Rng(2).normal(5, MODES, 1)
    f = made.basis[0] @ a
    torch.testing.assert_close(made.maps @ a, made.basis[1].mT @ f, rtol=0, atol=F32)


def test_between_equal_shapes_the_map_is_the_identity_without_error() -> None:
    made = pairs(5, Rng(3))
    same = Pairs(made.basis[:1].expand(2, -1, -1, -1), made.levels[:1].expand(2, -1, -1))
    torch.testing.assert_close(same.maps, torch.eye(MODES).expand(5, -1, -1), rtol=0, atol=F32)
    assert not same.errors(same.maps).any()
    reflected = same.maps * torch.tensor([1.0, -1.0]).repeat(MODES // 2)  # φ_j(n − i) = (−1)^j·φ_j(i) on an even chain
    assert (same.errors(reflected) > 0.3).all()
    assert (made.errors(made.maps) < made.errors(torch.eye(MODES).expand(5, -1, -1))).all()


def loss(x: Tensor, cond: dict[str, Tensor], mu: float) -> Tensor:
    """Σ over pairs of ‖C·A − B‖² + μ·‖C·Λ − Λ'·C‖²/λ_max², C entry by entry."""
    total = x.new_zeros(())
    for k in range(len(x)):
        c = x[k].reshape(MODES, MODES)
        total = total + (c @ cond["a"][k] - cond["b"][k]).square().sum() + mu * (c.square() * cond["gaps"][k]).sum()
    return total


def test_what_describes_a_map() -> None:
    """The gaps are those of commutativity, and a run descends data and prior."""
    problem = FunctionalMaps()
    problem.particles = 6
    student = matched(problem, None)  # type: ignore[arg-type]
    cond, x = student.cond.tree(), student.x.detach()
    torch.testing.assert_close(x.unflatten(1, (MODES, MODES)) @ cond["a"], cond["b"], rtol=0, atol=1e-3)
    one, two = (level.diag_embed() for level in problem.held_out.levels)
    c = Rng(4).normal(6, MODES, MODES)
    commutator = (c @ one - two @ c).square().sum((1, 2)) / problem.held_out.levels[0].amax(1) ** 2
    torch.testing.assert_close((c.square() * cond["gaps"]).sum((1, 2)), commutator, rtol=1e-3, atol=1e-5)
    moved = descended(Described(commuting=0.5), None, Particles(x, cond), batch=6)["x"]
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, cond, 0.5) / 6, leaf)
    torch.testing.assert_close(moved, expected, rtol=0, atol=F32)


def test_the_teacher_is_the_gaussian_of_the_maps_it_knows() -> None:
    problem = FunctionalMaps()
    x = problem.teacher.sample(20_000, Rng(5))
    torch.testing.assert_close(x.mean(0), problem.seen.mean(0), rtol=0, atol=0.02)
    torch.testing.assert_close(x.mT.cov(), problem.seen.mT.cov(), rtol=0, atol=0.02)
    assert problem.agrees(problem.reference(), None).double().mean() > 0.99
