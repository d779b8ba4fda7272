"""What an objective becomes where one of its parts is switched off: the same step, from the same random numbers."""

import pytest
import torch
from torch import Tensor

from limbeck import (
    ASD,
    CFG,
    CSD,
    DMD,
    EDM,
    NFSD,
    SDS,
    VSD,
    Added,
    BalancedScoreDistillation,
    Fake,
    Gated,
    Negative,
    Particles,
    PerSample,
    PixelClip,
    Process,
    Redenoised,
    Rng,
    ScoreDistillation,
    Shifted,
    Teacher,
    Weight,
    Zero,
)
from tests.oracles.exact import F64, AtRatio, close, descended, every_process, mixture

TIMES = AtRatio(0.7)
ONE, NULL = Teacher(guidance=CFG(scale=1.0)), Teacher(guidance=CFG(scale=0.0))
FAKE = Fake(guidance=CFG(scale=0.0))
"""A fresh critic is the teacher; without its condition it differs."""


def step(objective: ScoreDistillation, process: Process, *, d: int = 2, scale: float = 1.0) -> Tensor:
    """Where 32 particles of two classes are moved by one tick, times a factor."""
    teacher = mixture(0, k=4, d=d, process=process, classes=2)
    x, cond = Rng("particles").normal(32, d, dtype=F64), torch.arange(32) % 2
    return scale * descended(objective, teacher, Particles(x, cond=cond), batch=32)["x"]


S = 3.0
CASES: dict[str, tuple[ScoreDistillation, ScoreDistillation, float]] = {
    "VSD is SDS where the critic knows the noise": (VSD(times=TIMES, fake=Added()), SDS(times=TIMES), 1),
    "DMD is VSD in steps of x0": (
        DMD(times=TIMES, shape=(), critic_steps=1, fake=FAKE),
        VSD(times=TIMES, fake=FAKE, weight=Weight(sigma=1.0, alpha=-1.0)),
        1,
    ),
    "SDS without noise is CSD": (SDS(times=TIMES, real=ONE, fake=NULL), CSD(times=TIMES), 1),
    "ASD without a shift is CSD": (
        ASD(times=TIMES, guidance=CFG(scale=S), fake=Shifted(share=0.0)),
        CSD(times=TIMES),
        S - 1,
    ),
    "NFSD without its domain is CSD": (
        NFSD(times=TIMES, guidance=CFG(scale=S), fake=NULL),
        CSD(times=TIMES),
        S,
    ),
    "NFSD against no condition is CSD": (
        NFSD(times=TIMES, guidance=CFG(scale=S), fake=Gated(above=NULL, below=Zero(), at=0.0)),
        CSD(times=TIMES),
        S,
    ),
    "the pull to what the teacher makes is SDS": (
        Redenoised(times=TIMES),
        SDS(times=TIMES, weight=Weight(sigma=1.0)),
        1,
    ),
    "clipping far above does nothing": (SDS(times=TIMES, shape=(PixelClip(limit=1e9),)), SDS(times=TIMES), 1),
    "a negative that is the condition's own prediction cancels guidance": (
        SDS(times=TIMES, guidance=Negative(scale=1.0, label=1)),
        SDS(times=TIMES),
        1,
    ),
}


@every_process
@pytest.mark.parametrize("d", [1, 8])
@pytest.mark.parametrize("name", CASES)
def test_special_case(name: str, d: int, process: Process) -> None:
    general, special, factor = CASES[name]
    mine, theirs = step(general, process, d=d), step(special, process, d=d, scale=factor)
    close(mine, theirs, 1e-11)
    assert mine.abs().max() > 1e-5


@every_process
def test_guided_sds_nears_csd(process: Process) -> None:
    """SDS/s − CSD is what SDS is without the condition, over s: it goes to zero as s grows."""
    csd = step(CSD(times=TIMES), process)
    gaps = [
        (step(SDS(times=TIMES, guidance=CFG(scale=s)), process, scale=1 / s) - csd).norm().item() for s in (1e2, 1e4)
    ]
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=1e-6) and gaps[1] < 1e-2 * csd.norm()


@every_process
def test_balance_follows_the_classifier_alone_where_it_is_the_shortest(process: Process) -> None:
    """With no ratio g₁ = 0 is the shortest of all; where g₁ is short and the two agree, it is λ times CSD."""
    nothing = step(BalancedScoreDistillation(times=TIMES, ratio=0.0), process)
    assert nothing.abs().max() < 1e-12
    tiny, csd = 1e-9, step(CSD(times=TIMES, weight=Weight(sigma=0.0, alpha=1.0)), process)
    balanced = step(BalancedScoreDistillation(times=TIMES, ratio=tiny), process, scale=1 / tiny)
    aligned = (csd * step(ScoreDistillation(times=TIMES, real=NULL, fake=Zero()), process)).sum(1) > 0
    assert aligned.any() and not aligned.all()
    close(balanced[aligned], csd[aligned], 1e-6)


@pytest.mark.parametrize("shape", [(), (PerSample(),)], ids=["plain", "normalised"])
def test_vsd_on_particles_and_dmd_differ_by_weight_alone(shape: tuple[PerSample, ...]) -> None:
    """One critic, one noise: any two members of the normal form differ by w and shape alone."""
    dmd = DMD(times=TIMES, fake=FAKE, shape=shape, critic_steps=1)
    written = ScoreDistillation(fake=FAKE, weight=dmd.weight, times=TIMES, shape=shape)
    assert torch.equal(step(dmd, EDM()), step(written, EDM()))
    assert step(dmd, EDM()).abs().max() > 1e-5
