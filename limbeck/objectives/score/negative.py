"""Score distillation against a condition that says what is wrong: noise-free score distillation, and the bridge."""

from dataclasses import dataclass, field

from limbeck.diffusion.guidance import CFG, Negative
from limbeck.objectives.score.distillation import ScoreDistillation
from limbeck.objectives.score.parts import Gated, Part, Teacher, Zero


@dataclass(frozen=True, kw_only=True)
class NFSD(ScoreDistillation):
    """Noise-free score distillation, g = w(t)·(s·δ + δ_D): a condition's pull and one into the domain, without noise.

    δ = ε_T(c) − ε_T(∅), s the guidance; δ_D is ε_T(∅) near the data, where that holds little noise, and
    ε_T(∅) − ε_T(n) above, n being what a bad sample looks like. With B = n above and 0 below that is A − B under CFG.

    Args: those of `ScoreDistillation`; the label of n is in ``fake``.

    Source: Katzir et al. 2023, arXiv 2310.17590, at t = 200 of 1 000 and with s = 7.5.

    >>> NFSD().fake.above
    Teacher(guidance=Negative(scale=0.0, label=0), who='teacher')
    """

    fake: Part = field(default_factory=lambda: Gated(above=Teacher(guidance=Negative(scale=0.0)), below=Zero(), at=0.2))
    guidance: CFG | Negative | None = field(default_factory=CFG)


@dataclass(frozen=True, kw_only=True)
class SDSBridge(ScoreDistillation):
    """The second stage of the bridge, g = w(t)·(ε_T(x_t; c) − ε_T(x_t; n)): from where samples are to where to be.

    n describes what samples look like after SDS, the first stage. With n = ∅ it is CSD.

    Args: those of `ScoreDistillation`; the label of n is in ``fake``, ``guidance`` has nothing to guide here. The
    authors multiply it by 30.

    Source: McAllister et al. 2024, arXiv 2406.09417.

    >>> SDSBridge().fake
    Teacher(guidance=Negative(scale=0.0, label=0), who='teacher')
    """

    real: Part = field(default_factory=lambda: Teacher(guidance=CFG(scale=1.0)))
    fake: Part = field(default_factory=lambda: Teacher(guidance=Negative(scale=0.0)))
