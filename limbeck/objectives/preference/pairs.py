"""Pairs of samples, one preferred to the other: their likelihoods under a few-step generator move apart."""

from dataclasses import dataclass
from typing import cast as typed

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.diffusion.process import like
from limbeck.diffusion.samplers import start
from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import in_range
from limbeck.objectives.preference.rewards import Preference
from limbeck.rng import Rng
from limbeck.students.generator import FewStep
from limbeck.tree import Tree

Pair = tuple[Tensor, Tensor]
"""A transition: (x_t, x_s), each [B, …]."""


def pair_margin(win: Tensor, lose: Tensor, *, beta: float = 1.0) -> Tensor:
    """−ln σ(β·(win − lose)) of two log-ratios ln p_θ/p_ref, [B]; exactly ln 2 where they are equal.

    Args:
        win: of the preferred sample, [B].
        lose: of the other, [B].
        beta: β; the larger, the sooner a pair counts as settled.

    Source: Rafailov et al. 2023, arXiv 2305.18290, eq. 7.

    >>> pair_margin(torch.zeros(1), torch.zeros(1), beta=9.0)
    tensor([0.6931])
    """
    return F.softplus(-beta * (win - lose))


def transition_ratio(after: Tensor, mean: Tensor, reference: Tensor, std: Tensor) -> Tensor:
    """ln N(y; m, s²)/N(y; m_ref, s²) = (‖y − m_ref‖² − ‖y − m‖²)/2s² of each example, [B].

    Args:
        after: y, [B, …].
        mean: m, [B, …].
        reference: m_ref, [B, …].
        std: s, [B].

    >>> y, one = torch.tensor([[1.0]]), torch.ones(1)
    >>> transition_ratio(y, torch.tensor([[1.0]]), torch.tensor([[3.0]]), one)
    tensor([2.])
    """
    square = ((after - reference) ** 2 - (after - mean) ** 2).flatten(1).sum(1)
    return square / (2 * std.to(square) ** 2)


@dataclass(frozen=True, kw_only=True)
class PSO(Objective):
    """Pairwise sample optimisation: −ln σ(β·(ln p_θ/p_ref (winner) − ln p_θ/p_ref (loser))) of one step's transition.

    A step of a few-step generator is a Gaussian, p_θ(x_s | x_t) = N(α_s·D_θ(x_t), σ_s²); the reference is the generator
    as it began. Offline, without a preference, data win against samples of the reference, both noised to the step's
    two levels. Online, two rollouts from the same noise are ranked, and their transitions are those that happened.

    Args:
        preference: ranks the final samples of two rollouts; None for data against the reference.
        beta: β.
        floor: the least standard deviation of a transition, which the last step, that adds no noise, takes.

    Raises:
        Incompatible: a student that is no `FewStep` generator, or no data where data win.
        BadSetting: β or a floor that is not positive.

    Source: Miao et al. 2024, arXiv 2410.03190, eq. 8 to 11. The released code leaves the last step out online, takes
    the mean over pixels where the likelihood has a sum, and clips the ratio.

    >>> from limbeck import FewStep, GaussianMixture, distill
    >>> denoiser = GaussianMixture(means=torch.ones(2, 2)).clone(trainable=True)
    >>> student = FewStep(denoiser, ratios=(3.0, 0.5), shape=(2,))
    >>> run = distill(None, student, PSO(), torch.randn(9, 2), steps=1, batch=8)
    >>> round(run.tick().losses["pso"], 4)
    0.6931
    """

    preference: Preference | None = None
    beta: float = 1.0
    floor: float = 0.1

    def __post_init__(self) -> None:
        in_range("beta", self.beta, 1e-9)
        in_range("floor", self.floor, 1e-9)

    def check(self, cast: Cast) -> None:
        cast.need("student", FewStep, by=self)
        if self.preference is None:
            cast.need_fields("x", by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        student = cast.need("student", FewStep, by=self)
        reference = typed(FewStep, cast.keep("reference", lambda: student.clone(trainable=False).eval()))

        def loss(tick: Tick) -> Loss:
            k = tick.rng((self, "step"), shared=True).integer(len(student.ratios))
            cond = tick.batch.get("cond")
            make = self._offline if self.preference is None else self._online
            with torch.no_grad(), tick.seeded((self, "pairs")):
                pairs = make(tick, student, reference, k)
            win, lose = (self._ratio(student, reference, k, pair, cond) for pair in pairs)
            return Loss(pair_margin(win, lose, beta=self.beta))

        return (Term("pso", "student", loss, of=self),)

    def _std(self, student: FewStep, k: int) -> Tensor:
        """Of the transition that step k makes, []."""
        return student.process.sigma(student.times[k + 1]).clamp_min(self.floor)

    def _ratio(self, student: FewStep, reference: FewStep, k: int, pair: Pair, cond: Tree) -> Tensor:
        """ln p_θ/p_ref of step k, from x_t to x_s, [B]."""
        x, after = pair
        t, s = (student.times[i].expand(len(x)) for i in (k, k + 1))
        with torch.no_grad():
            known = reference.denoiser.denoise(x, t, cond)
        scale = like(student.process.alpha(s), x)
        mean = scale * student.denoiser.denoise(x, t, cond)
        return transition_ratio(after, mean, scale * known, self._std(student, k).expand(len(x)))

    def _offline(self, tick: Tick, student: FewStep, reference: FewStep, k: int) -> tuple[Pair, Pair]:
        rng, x = tick.rng((self, "noise")), tick.batch["x"]
        other = reference.sample(len(x), tick.batch.get("cond"), rng)
        t, process, n = student.times, student.process, len(x)
        std, scale = self._std(student, k), float(process.alpha(t[k + 1]))
        eps, z = (rng.normal(n, *x.shape[1:], dtype=x.dtype) for _ in range(2))  # one for both, so that it cancels

        def noised(clean: Tensor) -> Pair:
            return process.add_noise(clean, eps, t[k].expand(n)), scale * clean + float(std) * z

        return noised(x), noised(other)

    def _online(self, tick: Tick, student: FewStep, reference: FewStep, k: int) -> tuple[Pair, Pair]:
        assert self.preference is not None
        rng, cond, n = tick.rng((self, "noise")), tick.batch.get("cond"), tick.size
        noise = rng.normal(n, *student.shape, dtype=next(student.parameters()).dtype)
        one, two = (self._rollout(student, noise, cond, rng, k) for _ in range(2))
        first = self.preference(one[1], cond) >= self.preference(two[1], cond)

        return mixed(first, one[0], two[0]), mixed(~first, one[0], two[0])

    def _rollout(self, student: FewStep, noise: Tensor, cond: Tree, rng: Rng, k: int) -> tuple[Pair, Tensor]:
        """Step k's transition of one rollout by the generator as it is, and where the rollout ended."""
        times, process, n = student.times, student.process, len(noise)
        x, kept = start(noise, times, process), None
        for i in range(len(student.ratios)):
            x0 = student.denoiser.denoise(x, times[i].expand(n), cond)
            z = rng.normal(n, *student.shape, dtype=noise.dtype)
            after = float(process.alpha(times[i + 1])) * x0 + float(self._std(student, i)) * z
            kept = (x, after) if i == k else kept
            x = after
        assert kept is not None
        return kept, x


def mixed(first: Tensor, one: Pair, two: Pair) -> Pair:
    """Rows of one pair where ``first`` [B], of the other elsewhere."""
    (a, b), (c, d) = one, two
    rows = like(first, a) > 0
    return torch.where(rows, a, c), torch.where(rows, b, d)
