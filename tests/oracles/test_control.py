"""Controls that a teacher does not know."""

import pytest
import torch

from limbeck import (
    CFG,
    Measured,
    Particles,
    Reward,
    Rng,
    ScoreDistillation,
    Teacher,
    Trained,
    Weight,
)
from limbeck.problems.measured2d import ControlledMLP, Measured2D
from limbeck.recipes.g_dist.jdm import bures
from tests.oracles.exact import F64, AtRatio, close, descended, gaussian, mixture, tensor

# A control that the teacher does not know


def test_the_posterior_is_bayes_on_a_grid() -> None:
    """Moments of p(x)·p(c|x) by the trapezoidal rule."""
    problem, cond = Measured2D(), tensor([-1.3], [0.2], [2.0])
    problem.teacher.double()
    axis = torch.linspace(-5, 5, 201, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    log_p = problem.teacher.log_prob(grid, torch.zeros(len(grid), dtype=F64))
    likelihood = Measured(matrix=(problem.along,), std=problem.std)
    for i, c in enumerate(cond):
        weight = (log_p + likelihood(grid, c.expand(len(grid), 1))).softmax(0)
        mean = weight @ grid
        cov = (grid - mean).mT @ (weight[:, None] * (grid - mean))
        got = problem.posterior(cond)
        close(got[0][i], mean, 1e-8)
        close(got[1][i], cov, 1e-8)


def test_data_are_measured_as_the_posterior_believes() -> None:
    """E[x·c] and E[x | c] agree: the mean of posterior means under the data's c is the data's mean, and so with x·c."""
    problem = Measured2D()
    batch = problem.source.take(40_000, Rng(0))
    mean, _ = problem.posterior(batch["cond"])
    for power in (0, 1):
        draws = (batch["x"] - mean) * batch["cond"] ** power
        assert (draws.mean(0).abs() < 6 * draws.std(0) / len(draws) ** 0.5).all()


@pytest.mark.parametrize("dims", [1, 8])
def test_the_two_halves_balance_at_the_posterior(dims: int) -> None:
    """Samples under one c with the posterior's own critic: g of the joint is zero in the limit of little noise."""
    rng = Rng(("jdm", dims))
    root = torch.eye(dims, dtype=F64) + 0.2 * rng.normal(dims, dims, dtype=F64)
    a, c, mu, s = rng.normal(1, dims, dtype=F64), rng.normal(1, 1, dtype=F64), rng.normal(dims, dtype=F64), 0.7
    cov = root @ root.mT
    precision = torch.linalg.inv(cov) + a.mT @ a / s**2
    posterior = torch.linalg.inv(precision)
    centre = posterior @ (torch.linalg.solve(cov, mu) + (a.mT @ c)[:, 0] / s**2)
    who = {
        "teacher": gaussian(mu, root, mixture(0).process),
        "critic": gaussian(centre, torch.linalg.cholesky(posterior), mixture(0).process),
    }
    x = centre + rng.normal(64, dims, dtype=F64) @ torch.linalg.cholesky(posterior).mT
    fidelity = ScoreDistillation(
        real=Teacher(guidance=CFG(scale=0.0)),
        fake=Teacher(who="critic"),
        weight=Weight(sigma=-1.0, alpha=1.0),
        times=AtRatio(1e-4),
    )
    condition = Reward(reward=Measured(matrix=tuple(map(tuple, a.tolist())), std=s))
    students = [Particles(x, cond=c.repeat(64, 1)) for _ in range(2)]
    both = descended(fidelity + condition, who, students[0], batch=64)["x"]
    alone = descended(condition, who, students[1], batch=64)["x"]
    assert both.norm() < 1e-2 * alone.norm()


def test_the_teacher_is_never_told_the_control() -> None:
    """A teacher that heard c would fail on it: labels are not real numbers."""
    teacher = mixture(0, k=4, classes=2)
    fidelity = ScoreDistillation(real=Teacher(guidance=CFG(scale=0.0)), times=AtRatio(0.5))
    with_c = descended(fidelity, teacher, Particles(torch.zeros(8, 2, dtype=F64), cond=torch.ones(8, 1)), batch=8)
    without = descended(fidelity, teacher, Particles(torch.zeros(8, 2, dtype=F64)), batch=8)
    close(with_c["x"], without["x"])


def test_a_controlled_network_tells_a_control_of_zero_from_none() -> None:
    net = Trained(ControlledMLP(size=2, controls=1, width=8, blocks=1).double())
    torch.nn.init.normal_(net.net.inner.out.weight, generator=torch.Generator().manual_seed(0))
    x, t = Rng(0).normal(4, 2, dtype=F64), torch.ones(4, dtype=F64)
    outs = [net.denoise(x, t, c) for c in (None, torch.zeros(4, 1), torch.ones(4, 1))]
    assert not torch.equal(outs[0], outs[1]) and not torch.equal(outs[1], outs[2])


def test_bures_is_exact_for_commuting_covariances() -> None:
    c1, c2 = torch.diag(tensor(4.0, 1.0))[None], torch.diag(tensor(1.0, 9.0))[None]
    close(bures(tensor([1.0, 0.0]), c1, tensor([0.0, 0.0]), c2), tensor(1.0 + 1.0 + 4.0))
