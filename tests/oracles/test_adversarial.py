"""The GAN: what its discriminator converges to, and where its student then goes."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck import (
    EDM,
    GAN,
    SGD,
    Adam,
    Cosine,
    Drawn,
    Featured,
    GaussianMixture,
    Optim,
    Process,
    RectifiedFlow,
    Rng,
    Run,
    Seen,
    distill,
)
from tests.oracles.exact import F64, Affine, AtRatio, gaussian, tensor


class Eyes(GaussianMixture, Featured):
    """A Gaussian teacher that shows waves of x_t/√(α²+σ²), from which a head can make any smooth function."""

    taps = {"waves": 16}  # noqa: RUF012

    def look(self, x_t: Tensor, t: Tensor, cond: object = None, *, taps: tuple[str, ...], x0: bool = True) -> Seen:
        assert taps == ("waves",) and not x0
        scale = (self.process.alpha(t) ** 2 + self.process.sigma(t) ** 2).sqrt()[:, None]
        angles = x_t / scale * torch.linspace(0.25, 2, 8, dtype=F64)
        return Seen(None, {"waves": torch.cat([angles.cos(), angles.sin()], 1)})


REAL, FAKE = (0.7, 0.6), (-0.5, 1.1)
RATIO = 0.8
FIXED = SGD(lr=0.0)


def run_of(process: Process, seed: int, *, steps: int, fake: tuple[float, float] = FAKE, student: Optim = FIXED) -> Run:
    """Student and data are Gaussians on the line, and the student stays where it is unless it is told otherwise."""
    teacher = Eyes(means=tensor([REAL[0]]), std=REAL[1], process=process)
    data = Drawn(lambda n, rng: {"x": teacher.sample(n, rng)}, fields=("x",))
    optim = {"student": student, "discriminator": Adam(lr=0.01, schedule=Cosine())}
    objective = GAN(on="teacher", times=AtRatio(RATIO), hidden=32)
    start = Affine(tensor(fake[0]), tensor([fake[1]]))
    return distill(teacher, start, objective, data, steps=steps, batch=512, optim=optim, seed=seed)


def logit(run: Run, x_t: Tensor, t: Tensor) -> Tensor:
    eyes, heads = run.cast.teacher, run.cast.roles["discriminator"].module.heads
    assert isinstance(eyes, Eyes)
    return heads(eyes.look(x_t, t, taps=("waves",), x0=False).features)


@pytest.mark.parametrize(("seed", "process"), [(0, EDM()), (1, RectifiedFlow())], ids=["edm", "flow"])
def test_the_discriminator_finds_the_log_ratio(process: Process, seed: int) -> None:
    """softplus(D) on fakes and softplus(−D) on data are least at D = ln p_t − ln q_t."""
    run = run_of(process, seed, steps=180)
    run.finish()
    t = process.at_ratio(torch.full((200,), RATIO, dtype=F64))
    mix = torch.cat([run.cast.teacher.sample(100, Rng(1)), FAKE[0] + FAKE[1] * Rng(2).normal(100, 1, dtype=F64)])
    x_t = process.add_noise(mix, Rng(3).normal(200, 1, dtype=F64), t)
    p, q = (gaussian(tensor(mean), tensor([std]), process) for mean, std in (REAL, FAKE))
    exact = p.log_prob(x_t, t) - q.log_prob(x_t, t)
    learned = logit(run, x_t, t).detach()
    assert torch.corrcoef(torch.stack([learned, exact]))[0, 1] > 0.97
    slope = ((learned - learned.mean()) * exact).sum() / ((exact - exact.mean()) * exact).sum()
    assert slope == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_the_student_moves_towards_the_data(side: float) -> None:
    """Both learn; whichever side the student starts on, its mean nears that of the data."""
    run = run_of(EDM(), 0, steps=100, fake=(REAL[0] + 1.5 * side, REAL[1]), student=SGD(lr=0.05))
    run.finish()
    assert (run.cast.student.a.detach() - REAL[0]).abs() < 0.75  # half the way; it began 1.5 off


def test_losses_are_the_non_saturating_ones() -> None:
    """An untrained discriminator with known heads: both losses by hand on the samples of a twin run."""
    run = run_of(EDM(), 0, steps=1)
    heads = run.cast.roles["discriminator"].module.heads
    with torch.no_grad():  # a constant logit of 0.7
        for p in heads.parameters():
            p.zero_()
        heads.heads["waves"][-1].bias.fill_(0.7)
    losses = run.tick().losses
    d = tensor(0.7)
    assert losses["gan"] == pytest.approx(F.softplus(-d).item(), abs=1e-12)
    assert losses["discriminator"] == pytest.approx((F.softplus(d) + F.softplus(-d)).item(), abs=1e-12)
