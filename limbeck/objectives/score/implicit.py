"""Score divergences whose gradient goes through both denoisers: general distances of scores, expanded f-divergences."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor

from limbeck.diffusion.process import like
from limbeck.diffusion.times import Karras, Times
from limbeck.engine.objective import Loss, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import in_range
from limbeck.objectives.score.critic import Critical
from limbeck.objectives.score.divergence import ByRatio, ForwardKL
from limbeck.objectives.score.matching import distance_to
from limbeck.objectives.score.parts import Weight


class Distance(ABC):
    """A distance d(y) of two scores that differ by y, each example by itself. A subclass is a frozen dataclass."""

    @abstractmethod
    def value(self, y: Tensor) -> Tensor:
        """d(y), [B], of y [B, …]."""

    @abstractmethod
    def slope(self, y: Tensor) -> Tensor:
        """d'(y), shape of y, differentiable by y."""


@dataclass(frozen=True, kw_only=True)
class L2(Distance):
    """d(y) = ‖y‖².

    >>> import torch
    >>> L2().slope(torch.tensor([[3.0, 4.0]]))
    tensor([[6., 8.]])
    """

    def value(self, y: Tensor) -> Tensor:
        return (y**2).flatten(1).sum(1)

    def slope(self, y: Tensor) -> Tensor:
        return 2 * y


@dataclass(frozen=True, kw_only=True)
class PseudoHuber(Distance):
    """d(y) = √(‖y‖² + c²) − c: its slope y/√(‖y‖² + c²) is never longer than 1, wherever scores are far apart.

    Args:
        c: below it the distance is quadratic; in units of a norm over the whole example.

    >>> import torch
    >>> PseudoHuber(c=12.0).slope(torch.tensor([[3.0, 4.0]]))
    tensor([[0.2308, 0.3077]])
    """

    c: float = 1e-3

    def __post_init__(self) -> None:
        in_range("c", self.c, 1e-9)

    def value(self, y: Tensor) -> Tensor:
        return (L2().value(y) + self.c**2).sqrt() - self.c

    def slope(self, y: Tensor) -> Tensor:
        return y / like((L2().value(y) + self.c**2).sqrt(), y)


def implicit_matching(x: Tensor, real: Tensor, fake: Tensor, distance: Distance) -> Tensor:
    """−⟨d'(y), ψ − x⟩ with y = ψ − T and gradients through the inputs of T and ψ, summed over each example, [B].

    Its expected gradient is that of E[d(y)] at frozen sampling: x_t keeps its distribution while ψ follows the student.

    Args:
        x: the student's samples, [B, …].
        real: T, x0 by the teacher at the noised x, with its graph, [B, …].
        fake: ψ, x0 by the critic, with its graph, [B, …].
        distance: d.

    Source: SIM, arXiv 2410.16794, theorem 3.1 and eq. 3.6, where y and the bracket are scores: both are (σ²/α) times as
    long here, differences of x0.

    >>> import torch
    >>> implicit_matching(torch.zeros(1, 2), torch.ones(1, 2), torch.full((1, 2), 2.0), L2())
    tensor([-8.])
    """
    return -(distance.slope(fake - real) * (fake - x)).flatten(1).sum(1)


@dataclass(frozen=True, kw_only=True)
class SIM(Critical):
    """Score implicit matching: w(t)·d(ψ − T) for a distance d at will, by a gradient that needs no ∂ψ/∂θ.

    Args:
        critic: the denoiser ψ of the student's distribution.
        times: noise levels at which scores are compared.
        guidance: on the teacher.
        critic_guidance: on the critic.
        critic_steps: steps of the critic to one of the student.
        distance: d. `PseudoHuber` divides by the distance itself; `L2` is twice SiD with α = 1 and no normaliser.
        weight: w.

    Raises:
        Incompatible: a teacher that is no `Denoiser`, a student that draws no samples.

    Source: Luo et al. 2024, arXiv 2410.16794, eq. 3.6.

    >>> import torch
    >>> from limbeck import GaussianMixture, Particles, distill
    >>> teacher = GaussianMixture(means=torch.ones(1, 2), std=0.5)
    >>> sorted(next(iter(distill(teacher, Particles(torch.zeros(8, 2)), SIM(), steps=1, batch=8))).losses)
    ['critic', 'sim']
    """

    times: Times = field(default_factory=lambda: Karras(lo=0.0, hi=0.8))
    distance: Distance = field(default_factory=PseudoHuber)
    weight: Weight = field(default_factory=lambda: Weight(sigma=0.0))

    def loss(self, tick: Tick) -> Loss:
        seen, real, fake = self.compared(tick)
        w = self.weight.at(seen.t, seen.process).to(seen.x)
        return Loss(w * implicit_matching(seen.x, real, fake, self.distance))


def expanded(
    x: Tensor, real: Tensor, fake: Tensor, ratio: Tensor, slopes: tuple[Tensor, Tensor, Tensor], *, alpha: float = 0.5
) -> Tensor:
    """Half of what an f-divergence gains at one noise level, as a loss whose gradient is exact, [B].

    Under equal diffusions d D_f(p_t‖q_t)/dt = −½g²·E_q[h(r)·‖u‖²], u = ∇ln q_t − ∇ln p_t = −∇ln r, so that

        D_f(p₀‖q₀) = D_f(p_T‖q_T) + ∫ ½g²·J_t dt,   J = E_q[h(r)·‖u‖²].

    A change δq changes J in two ways. Through samples and ratio, as δr = −r·δq/q: ∫ δq·(h − r·h')·‖u‖², a potential
    whose weight has the gradient r²·h''·u. Through the student's score: 2·E_q[h·u·δ∇ln q], and since a fixed field v
    has E[v(x_t)·(∇ln q_t(x_t) − ∇ln q_t(x_t|x))] = 0 for every student, that is −2·δE[h·u·e], e = ∇ln q_t(x_t) −
    ∇ln q_t(x_t|x), with h·u moving along with x_t, and ∇h = −r·h'·u. With all weights held fixed ([·]), ∇J is that of

        E[ [h − r·h']·‖u‖² − 2·[h]·⟨u, e⟩ + ⟨[(r²·h''·‖u‖² + 2·r·h'·⟨u, e⟩)·u], x_t⟩ ],

    where the first two parts are of the kind of SIM, and the last is Diff-Instruct's ⟨[u], x_t⟩ under a weight. Only
    values of r are needed, and no gradient of a discriminator. Here u = (ψ − T)/ρ² and e = (ψ − x)/ρ² at ρ = σ/α, and
    all is times ρ⁴, so that ½g²·J dt = ρ⁻²·(twice this) d ln ρ.

    Args:
        x: the student's samples, [B, …].
        real: T, x0 by the teacher at the noised x, with its graph, [B, …].
        fake: ψ, x0 by the critic, with its graph, [B, …].
        ratio: ρ, float64 [B].
        slopes: h, r·h' and r²·h'' at r = p_t/q_t, each [B].
        alpha: ½ for the whole gradient; 1 for that at a frozen distribution of x_t, where the potential is left out.

    Source: the expansion is Uni-Instruct, arXiv 2505.20755, theorem 3.1; the gradient is derived here. Against it the
    released code has no 2·r·h'·⟨u, e⟩, without which scales are wrong, and leaves the potential out by default.

    >>> import torch
    >>> one, zero = torch.ones(1), torch.zeros(1)
    >>> expanded(torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1, 2), one.double(), (one, zero, zero))
    tensor([1.])
    """
    h, once, twice = (slope.to(x) for slope in slopes)
    gap, own = real - fake, fake - x
    square, cross = (gap**2).flatten(1).sum(1), (gap * own).flatten(1).sum(1)
    pull = ((1 - alpha) * twice * square - once * cross).detach() / (ratio**2).to(x)
    moved = (gap.detach() * (x.detach() - x)).flatten(1).sum(1)  # ⟨[ψ − T], x⟩ from where x is
    return (1 - alpha) * (h - once) * square + h * cross + pull * moved


@dataclass(frozen=True, kw_only=True)
class UniInstruct(Critical):
    """Uni-Instruct: the student descends an f-divergence at t = 0, expanded into what it gains at every noise level.

    Its loss is `expanded`. With levels even in ln(σ/α), ``weight=Weight(sigma=-2, alpha=2)``, no normaliser and α = ½
    it descends D_f(p₀‖q₀) itself. For the reverse KL divergence it is SiD with the same α, and so at α = 1 half SIM
    with the L2 distance; and as the KL divergence at one level is what is gained beyond it, Diff-Instruct's gradient
    is the integral of this one under the integral of its weights.

    Args:
        critic: the denoiser ψ of the student's distribution.
        times: noise levels at which scores are compared.
        guidance: on the teacher.
        critic_guidance: on the critic.
        critic_steps: steps of the critic to one of the student.
        ratio: the divergence, and who tells r = p_t/q_t. The forward KL divergence alone has no potential, which a poor
            critic makes misleading.
        weight: w(t), on each example's loss.
        alpha: ½ for the whole gradient; 1 for that at a frozen distribution of x_t, without the potential.
        normalise: divide each example's loss by its mean |x − T|, as SiD does.

    Raises:
        Incompatible: a teacher that is no `Denoiser`, a student that draws no samples; no real samples.

    Source: Wang et al. 2025, arXiv 2505.20755, theorems 3.1 and 3.2; see `expanded`.

    >>> import torch
    >>> from limbeck import OneStep, Trained, distill
    >>> from limbeck.problems.networks import ResidualMLP
    >>> teacher = Trained(ResidualMLP(shape=(2,), width=16, blocks=1))
    >>> student = OneStep(teacher.clone(trainable=True), shape=(2,))
    >>> step = next(iter(distill(teacher, student, UniInstruct(), torch.randn(32, 2), steps=1, batch=8)))
    >>> sorted(step.losses)
    ['critic', 'discriminator', 'uniinstruct']
    """

    times: Times = field(default_factory=lambda: Karras(lo=0.0, hi=0.8))
    ratio: ByRatio = field(default_factory=lambda: ByRatio(divergence=ForwardKL()))
    weight: Weight = field(default_factory=lambda: Weight(sigma=0.0))
    alpha: float = 0.5
    normalise: bool = True

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        return *self.ratio.terms(cast), *super().terms(cast)

    def loss(self, tick: Tick) -> Loss:
        seen, real, fake = self.compared(tick)
        slopes, ratio = self.ratio.slopes(seen, tick), seen.process.ratio(seen.t)
        w = self.weight.at(seen.t, seen.process).to(seen.x)
        if self.normalise:
            w = w / distance_to(seen.x, real)
        return Loss(w * expanded(seen.x, real, fake, ratio, slopes, alpha=self.alpha))
