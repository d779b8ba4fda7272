"""Causal students of a teacher that sees all frames: what they can know, and where distribution matching leads them.

Teacher N(0, C); student x = B·z with a triangular B, so q = N(0, BBᵀ). With r = σ/α and K_Σ = Σ·(Σ + r²I)⁻¹ the
perfect critic's x0 less the teacher's is (K_BBᵀ − K_C)·x_t/α, and E[x_t·zᵀ] = α·B.
"""

import pytest
import torch
from torch import Tensor

from limbeck import DMD, EDM, Denoiser, Draw, Process, Rng, Teacher
from limbeck.problems.sequences import Sequences
from limbeck.recipes.g_dist.causvid import causal
from limbeck.rng import seeded
from limbeck.students import FewStep
from tests.oracles.exact import F64, Affine, AtRatio, assert_mean, close, descended, every_process, gaussian

RATIO = 0.8
PROBLEM = Sequences()
TARGET = PROBLEM.rho ** (torch.arange(6)[:, None] - torch.arange(6)).abs().double()


class Causal(Affine):
    """x = B·z with B's lower triangle."""

    def draw(self, n: int, cond: object, rng: Rng) -> Draw:
        z = rng.normal(n, len(self.a), dtype=F64)
        return Draw(self.a + z @ self.b.tril().mT, cond, z)


def shaken(denoiser: Denoiser) -> Denoiser:
    """With random weights everywhere, in float64."""
    with seeded("shaken"), torch.no_grad():
        for p in denoiser.double().parameters():
            p.normal_(std=0.5)
    return denoiser


def jacobian(f: object, z: Tensor) -> Tensor:
    """∂x_j/∂z_k at a point z, [frames, frames]."""
    return torch.autograd.functional.jacobian(lambda at: f(at[None])[0], z)  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("seed", range(2))
def test_a_frame_knows_nothing_of_later_noise(seed: int) -> None:
    """To the bit; of its own and all earlier noise it does, and teacher and critic see every frame."""
    z, r = Rng(seed).normal(6, dtype=F64), torch.ones(1, dtype=F64)
    one = causal(PROBLEM, None)  # type: ignore[arg-type]
    shaken(one.denoiser)
    two = FewStep(one.denoiser, ratios=(3.0, 1.0), shape=(6,))

    def second(noise: Tensor) -> Tensor:
        return two.denoiser.denoise(two.first(noise) + Rng("later").normal(1, 6, dtype=F64), r)

    for map_ in (one.first, second):
        found = jacobian(map_, z)
        assert (
            torch.equal(found.triu(1), torch.zeros(6, 6, dtype=F64))
            and (found.tril()[*torch.tril_indices(6, 6)] != 0).all()
        )
    for whole in (PROBLEM.teacher.clone(trainable=True), gaussian(torch.zeros(6, dtype=F64), TARGET, EDM())):
        assert (jacobian(lambda x, d=shaken(whole): d.denoise(x, r), z).triu(1) != 0).any(0)[1:].all()


def pulled(b: Tensor, process: Process, n: int, seed: int = 0) -> Tensor:
    """What one tick of DMD with the exact critic of the whole sequence descends, by B."""
    zero = torch.zeros(6, dtype=F64)
    student, teacher = Causal(zero, b), gaussian(zero, torch.linalg.cholesky(TARGET), process)
    critic = gaussian(zero, b, process)
    dmd = DMD(fake=Teacher(who="critic"), times=AtRatio(RATIO), shape=(), critic_steps=1)
    return descended(dmd, {"teacher": teacher, "critic": critic}, student, batch=n, seed=seed)["b"]  # type: ignore[arg-type]


def best_by_pairs() -> Tensor:
    """E[x | noise so far] where the teacher's ODE gives x = C^½·z: the lower triangle of the root."""
    values, vectors = torch.linalg.eigh(TARGET)
    return (vectors * values.sqrt() @ vectors.mT).tril()


@every_process
def test_matching_rests_at_the_causal_generator(process: Process) -> None:
    """At Cholesky's factor, whatever its signs, for every sample; not where regression on pairs ends."""
    factor = torch.linalg.cholesky(TARGET)
    for b in (factor, factor * torch.tensor([1, -1, 1, 1, -1, 1], dtype=F64)):
        close(pulled(b, process, 64), torch.zeros(6, 6, dtype=F64))
    b, eye = best_by_pairs(), torch.eye(6, dtype=F64)
    k = [cov @ torch.linalg.inv(cov + RATIO**2 * eye) for cov in (b @ b.mT, TARGET)]
    assert_mean([pulled(b, process, 2000, seed) for seed in range(20)], ((k[0] - k[1]) @ b).tril())


def test_regression_on_pairs_cannot_be_right() -> None:
    """The best causal map of the teacher's pairs makes frames of which the first have too little variance."""
    b = best_by_pairs()
    made = b @ b.mT
    assert (made - TARGET).norm() > 0.5 * TARGET.norm()
    assert made[0, 0] < 0.6 and (made.diagonal().diff() > 0).all()


def test_the_problem_is_what_it_says() -> None:
    """The teacher's samples have C, and its ODE is the symmetric root of C."""
    close(PROBLEM.teacher.factor[0].double() @ PROBLEM.teacher.factor[0].double().mT, TARGET, 1e-6)
    values, vectors = torch.linalg.eigh(TARGET)
    z = Rng(0).normal(8, 6, dtype=F64)
    exact = Sequences()
    exact.steps = 100
    exact.teacher.double()
    close(exact.teacher_sample(z, None), z @ (vectors * values.sqrt() @ vectors.mT), 3e-3)
