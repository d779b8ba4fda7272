"""f-divergences: how much each sample counts in distribution matching, by the density ratio of teacher and student."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from limbeck.diffusion.process import like
from limbeck.engine.objective import Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Noised, Tick
from limbeck.errors import BadSetting, in_range
from limbeck.objectives.adversarial import GAN
from limbeck.objectives.adversary import NonSaturating
from limbeck.objectives.score.matching import DMD
from limbeck.objectives.score.parts import Gradient, Shape


class Divergence(ABC):
    """D_f(p‖q) = E_q[f(r)], r = p/q, with f convex and f(1) = 0; p is the teacher's distribution, q the student's.

    By the student's samples its gradient is −h(r)·∇ln r with h(r) = r²·f''(r). A subclass is a frozen dataclass.
    """

    @abstractmethod
    def f(self, r: Tensor) -> Tensor:
        """f(r), shape of r > 0."""

    @abstractmethod
    def h(self, r: Tensor) -> Tensor:
        """r²·f''(r), shape of r > 0."""

    def curvature(self, r: Tensor) -> Tensor:
        """f''(r), shape of r."""
        return self.h(r) / r**2

    def slopes(self, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h(r), r·h'(r) and r²·h''(r), each of r's shape.

        >>> [slope.item() for slope in JensenShannon().slopes(torch.tensor([1.0]))]
        [0.5, 0.25, -0.25]
        """
        with torch.enable_grad():
            r = r.detach().requires_grad_()
            (once,) = torch.autograd.grad((self.h(r) + 0 * r).sum(), r, create_graph=True)  # h may be a constant
            (twice,) = torch.autograd.grad((once + 0 * r).sum(), r)
        r = r.detach()
        return self.h(r), r * once.detach(), r**2 * twice


@dataclass(frozen=True, kw_only=True)
class ReverseKL(Divergence):
    """KL(q‖p): f = −ln r, h = 1. It seeks modes.

    >>> ReverseKL().h(torch.tensor([0.5, 2.0]))
    tensor([1., 1.])
    """

    def f(self, r: Tensor) -> Tensor:
        return -r.log()

    def h(self, r: Tensor) -> Tensor:
        return torch.ones_like(r)


@dataclass(frozen=True, kw_only=True)
class ForwardKL(Divergence):
    """KL(p‖q): f = r·ln r, h = r. It covers modes."""

    def f(self, r: Tensor) -> Tensor:
        return r * r.log()

    def h(self, r: Tensor) -> Tensor:
        return r


@dataclass(frozen=True, kw_only=True)
class JensenShannon(Divergence):
    """KL(p‖m) + KL(q‖m), m = (p + q)/2: f = r·ln r − (1 + r)·ln((1 + r)/2), h = r/(1 + r)."""

    def f(self, r: Tensor) -> Tensor:
        return r * r.log() - (1 + r) * ((1 + r) / 2).log()

    def h(self, r: Tensor) -> Tensor:
        return r / (1 + r)


@dataclass(frozen=True, kw_only=True)
class SquaredHellinger(Divergence):
    """2·∫(√p − √q)²: f = 2·(√r − 1)², h = √r."""

    def f(self, r: Tensor) -> Tensor:
        return 2 * (r.sqrt() - 1) ** 2

    def h(self, r: Tensor) -> Tensor:
        return r.sqrt()


@dataclass(frozen=True, kw_only=True)
class Softened(Divergence):
    """The softened reverse KL, 2·KL(m‖p), m = (p + q)/2: f = (1 + r)·ln((1 + r)/2r), h = 1/(1 + r)."""

    def f(self, r: Tensor) -> Tensor:
        return (1 + r) * ((1 + r) / (2 * r)).log()

    def h(self, r: Tensor) -> Tensor:
        return 1 / (1 + r)


@dataclass(frozen=True, kw_only=True)
class Jeffreys(Divergence):
    """KL(p‖q) + KL(q‖p): f = (r − 1)·ln r, h = 1 + r."""

    def f(self, r: Tensor) -> Tensor:
        return (r - 1) * r.log()

    def h(self, r: Tensor) -> Tensor:
        return 1 + r


def check_tells_ratio(gan: GAN) -> None:
    """Raises `BadSetting` unless the discriminator's optimum is ln p_t − ln q_t."""
    if gan.apart or not isinstance(gan.loss, NonSaturating):
        got = "heads that are apart" if gan.apart else f"{type(gan.loss).__name__}"
        raise BadSetting(f"a GAN that tells a density ratio needs NonSaturating() and its heads together, got {got}.")


@dataclass(frozen=True, kw_only=True)
class ByRatio(Shape):
    """g·h(r): the gradient of KL(q‖p) becomes that of another f-divergence, r = p_t/q_t by a discriminator.

    A learned r is off by a factor at each level, though E_q[r] = 1: it is divided by its mean in each of ``bins`` parts
    of the process's clock, and h(r) by its mean over all. These are running means over ticks, and a tick is shaped by
    those that stood at its start: means of the tick itself would couple its examples, so that it could not be cut into
    micro-batches. They begin at r = 1.

    Args:
        divergence: f, and with it h.
        gan: whose discriminator gives ln r; its student's loss is not included. It must know the levels of g.
        clip: least and largest r, before its normalisation.
        bins: parts of the clock, from clean to noise; 0 leaves r and h(r) as they are.
        keep: share of the running means that a tick leaves.

    Raises:
        Incompatible: no real samples, or a denoiser that shows no features.
        BadSetting: a GAN whose optimum is not ln r, a clip that holds no ratio.

    Source: f-distill, arXiv 2502.15681, eq. 6 and table 1; clip, bins and means as in the code of FastGen.
    """

    divergence: Divergence = field(default_factory=JensenShannon)
    gan: GAN = field(default_factory=GAN)
    clip: tuple[float, float] = (0.1, 20.0)
    bins: int = 10
    keep: float = 0.9

    def __post_init__(self) -> None:
        in_range("bins", self.bins, 0)
        in_range("keep", self.keep, 0, 1)
        check_tells_ratio(self.gan)
        if not 0 <= self.clip[0] < self.clip[1]:
            raise BadSetting(f"clip must be two ratios (least, largest), got {self.clip}.")

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        self.gan.check(cast)
        if self.bins:
            p = next(cast.student.parameters())
            cast.keep(f"means {self}", lambda: self._start().to(p.device))
            cast.keep(f"sums {self}", lambda: p.new_zeros(2, self.bins + 1, dtype=torch.float64))
            cast.keep(f"at {self}", lambda: torch.zeros((), dtype=torch.int64))
        return self.gan.discriminator(cast)

    def __call__(self, gradient: Gradient, tick: Tick) -> Tensor:
        return gradient.g * like(self.counts(gradient.seen, tick), gradient.g)

    def counts(self, seen: Noised, tick: Tick) -> Tensor:
        """How much each example counts, h(r) normalised, without gradient, float64 [B]."""
        r, mean = self._calibrated(seen, tick)
        return self.divergence.h(r) / mean

    def slopes(self, seen: Noised, tick: Tick) -> tuple[Tensor, Tensor, Tensor]:
        """`counts`, and r·h' and r²·h'' in its units, each float64 [B]."""
        r, mean = self._calibrated(seen, tick)
        h, once, twice = self.divergence.slopes(r)
        return h / mean, once / mean, twice / mean

    def ratio(self, seen: Noised, tick: Tick) -> Tensor:
        """r as the discriminator has it, clipped, without gradient, float64 [B]."""
        with torch.no_grad():
            return self.gan.logits(tick, seen.detached()).double().exp().clamp(*self.clip)

    def _calibrated(self, seen: Noised, tick: Tick) -> tuple[Tensor, Tensor]:
        """r over its mean in its bin, [B], and the mean of h there, []."""
        r = self.ratio(seen, tick)
        if not self.bins:
            return r, torch.ones_like(r[0])
        means, into = self._means(tick), (seen.process.fraction(seen.t) * self.bins).long().clamp(0, self.bins - 1)
        self._note(tick, r, into, even := r / means[into])
        return even, means[-1]

    def _start(self) -> Tensor:
        """The means of r in each bin, and the mean of h, where p = q, [bins + 1]."""
        one = torch.ones(self.bins + 1, dtype=torch.float64)
        return torch.cat([one[:-1], self.divergence.h(one[-1:])])

    def _means(self, tick: Tick) -> Tensor:
        """The running means as of this tick's start, the same for all of its micro-batches."""
        means, sums, at = (self._kept(tick, name) for name in ("means", "sums", "at"))
        if tick.i > at:
            seen = sums[1] > 0
            means[seen] = means[seen].lerp(sums[0, seen] / sums[1, seen], 1 - self.keep)
            sums.zero_()
            at.fill_(tick.i)
        return means

    def _note(self, tick: Tick, r: Tensor, into: Tensor, even: Tensor) -> None:
        """Adds these examples to what the next tick's means are made of; a network that failed adds nothing."""
        new, good = torch.zeros_like(self._kept(tick, "sums")), r.isfinite()
        into, r, h = into[good], r[good], self.divergence.h(even[good])
        new[0].index_add_(0, into, r)
        new[1].index_add_(0, into, torch.ones_like(r))
        new[:, -1] = torch.stack([h.sum(), torch.ones_like(h).sum()])
        if dist.is_initialized():
            dist.all_reduce(new)
        self._kept(tick, "sums").add_(new)

    def _kept(self, tick: Tick, name: str) -> Tensor:
        value = tick.cast.kept[f"{name} {self}"]
        assert isinstance(value, Tensor)
        return value


@dataclass(frozen=True, kw_only=True)
class FDistill(DMD):
    """f-distill: distribution matching under any f-divergence, g = h(r)·(ψ − T)/(n·D), r = p_t/q_t.

    It is DMD for the reverse KL divergence, h = 1. Forward KL, h = r, and Jensen-Shannon, h = r/(1 + r), weigh samples
    down where the teacher has none: there its score is least reliable. Without ``shape``, normalisation and clip, its
    expectation is the gradient of the diffused f-divergence. Its discriminator can be shared with a GAN that is added.

    Args: those of `DMD`.
        ratio: the divergence, and who tells r.

    Source: Xu et al. 2025, arXiv 2502.15681, eq. 6. The released code fails for the reverse KL divergence, whose weight
    is a number there and not one for each example.

    >>> from limbeck import GAN, OneStep, Trained, distill
    >>> from limbeck.problems.networks import ResidualMLP
    >>> teacher = Trained(ResidualMLP(shape=(2,), width=16, blocks=1))
    >>> student = OneStep(teacher.clone(trainable=True), shape=(2,))
    >>> objective = FDistill(ratio=ByRatio(divergence=ForwardKL()), critic_steps=1) + 0.1 * GAN()
    >>> step = next(iter(distill(teacher, student, objective, torch.randn(32, 2), steps=1, batch=8)))
    >>> sorted(step.losses)
    ['critic', 'discriminator', 'fdistill', 'gan']
    """

    ratio: ByRatio = field(default_factory=ByRatio)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return (*self.shape, self.ratio)
