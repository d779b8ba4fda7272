"""GANs that judge where a sample ends together with where it began: pairs of the ODE, and single steps along it."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from limbeck.diffusion.denoiser import Denoiser, Featured
from limbeck.diffusion.guidance import Guidance
from limbeck.diffusion.process import like
from limbeck.diffusion.samplers import start
from limbeck.diffusion.times import LogNormal, Times
from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.student import Draw
from limbeck.engine.tick import Noised, Tick, same_buffers
from limbeck.errors import Incompatible, in_range
from limbeck.objectives.adversarial import Discriminator, Heads
from limbeck.objectives.adversary import AdversarialLoss, NonSaturating, Penalty, summed
from limbeck.objectives.score.critic import denoising
from limbeck.students.generator import FewStep, OneStep
from limbeck.tree import Tree


class Path(NamedTuple):
    """Where a sample ends, and where it began, both at their noise levels."""

    end: Noised
    start: Noised


@dataclass(frozen=True, kw_only=True)
class ConditionalGAN(Objective):
    """GAN on paths: D = Σ_k head_k(d_k(end, c) ⊕ d_k(start, c)), with features d_k of a denoiser at both places.

    At the optimum of the default loss D is ln p − ln q of the end given the start and the condition.

    Args:
        on: whose features: those of a trainable copy of the teacher, or of the frozen teacher.
        eyes: which teacher, where there are several.
        loss: of student and discriminator by their logits.
        penalty: on the discriminator's slope at real ends.
        relaxed: D sees the end alone, so that only the distribution of ends counts.
        hidden: width of the discriminator's heads.
        apart: every head is a discriminator of its own.
        critic_steps: ticks to one step of the student.
    """

    on: Literal["own", "teacher"] = "own"
    eyes: str = "teacher"
    loss: AdversarialLoss = field(default_factory=NonSaturating)
    penalty: Penalty | None = None
    relaxed: bool = False
    hidden: int = 64
    apart: bool = False
    critic_steps: int = 1

    def __post_init__(self) -> None:
        in_range("critic_steps", self.critic_steps, 1)

    def check(self, cast: Cast) -> None:
        cast.need(self.eyes, Featured, by=self)
        cast.need("student", FewStep, by=self)
        cast.need_fields("x", by=self)

    @abstractmethod
    def real(self, tick: Tick) -> Path:
        """A path of the teacher."""

    @abstractmethod
    def fake(self, tick: Tick) -> Path:
        """A path of the student, with gradients at its end where a loss trains it."""

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        cast.role("discriminator", lambda: self._network(cast), spec=self)

        def student(tick: Tick) -> Loss:
            return Loss(summed(self.loss.student(self.logits(tick, self.fake(tick)))))

        def discriminator(tick: Tick) -> Iterator[Loss]:
            with torch.no_grad():
                fake, real = self.fake(tick), self.real(tick)
            yield Loss(self.on_real(tick, real))
            yield Loss(summed(self.loss.on_fake(self.logits(tick, fake))))

        name = type(self).__name__.lower()
        return (
            Term("discriminator", "discriminator", discriminator, key=("discriminator", self), of=self),
            Term(name, "student", student, every=self.critic_steps, of=self),
        )

    def on_real(self, tick: Tick, real: Path) -> Tensor:
        """What the discriminator loses by a path of the teacher, [B]."""
        value = summed(self.loss.on_real(self.logits(tick, real)))
        if self.penalty is None:
            return value

        def look(x_t: Tensor) -> Mapping[str, Tensor]:
            return self._features(tick, Path(replace(real.end, x_t=x_t), real.start))

        rng = tick.rng((self, "penalty"))
        return value + self.penalty.on(real.end.x_t, look, self._discriminator(tick).heads, rng)

    def logits(self, tick: Tick, path: Path) -> Tensor:
        """D, [B], or [B, K] where the heads are apart."""
        return self._discriminator(tick).heads(self._features(tick, path))

    def _features(self, tick: Tick, path: Path) -> Mapping[str, Tensor]:
        eyes = self._discriminator(tick).eyes
        places = path[:1] if self.relaxed else path
        who = self.eyes if eyes is None else "discriminator"
        seen = [tick.look(who, replace(place, key=None), eyes).features for place in places]
        return {tap: torch.cat([features[tap] for features in seen], 1) for tap in seen[0]}

    @staticmethod
    def _discriminator(tick: Tick) -> Discriminator:
        net = tick.cast.module("discriminator")
        assert isinstance(net, Discriminator)
        return net

    def _network(self, cast: Cast) -> Discriminator:
        teacher = cast.need(self.eyes, Featured, by=self)
        eyes = teacher.clone(trainable=True) if self.on == "own" else teacher
        assert isinstance(eyes, Featured)
        widths = {tap: width * (1 if self.relaxed else 2) for tap, width in eyes.taps.items()}
        heads = Heads(widths, self.hidden, apart=self.apart).to(next(eyes.parameters()))  # dtype and device
        return Discriminator(heads, eyes if self.on == "own" else None)


@dataclass(frozen=True, kw_only=True)
class PairGAN(ConditionalGAN):
    """A one-step generator's (noise, sample) against pairs of the teacher's ODE, with samples at several noise levels.

    Args: those of `ConditionalGAN`.
        times: noise levels at which samples are judged.
        mismatch: pairs under the condition of another row, ``other``, count as fakes, so that D learns what the
            condition says.

    Raises:
        Incompatible: a student of several steps, data without fields noise and x, or without ``other`` if it is needed.

    Source: Diffusion2GAN, Kang et al. 2024, arXiv 2405.05967, with noise levels in the place of scales.

    >>> from limbeck import Dataset, OneStep, Trained, distill
    >>> from limbeck.problems.networks import ResidualMLP
    >>> teacher = Trained(ResidualMLP(shape=(2,), width=16, blocks=1))
    >>> student = OneStep(teacher.clone(trainable=True), shape=(2,))
    >>> pairs = Dataset(noise=torch.randn(9, 2), x=torch.randn(9, 2))
    >>> sorted(next(iter(distill(teacher, student, PairGAN(), pairs, steps=1, batch=8))).losses)
    ['discriminator', 'pairgan']
    """

    times: Times = field(default_factory=LogNormal)
    mismatch: bool = False

    def check(self, cast: Cast) -> None:
        super().check(cast)
        cast.need("student", OneStep, by=self)
        cast.need_fields("noise", *(("other",) if self.mismatch else ()), by=self)

    def real(self, tick: Tick) -> Path:
        batch = tick.batch
        return self._path(tick, batch["x"], batch["noise"], batch.get("cond"), "real")

    def fake(self, tick: Tick) -> Path:
        draw = tick.draw()
        assert draw.noise is not None
        return self._path(tick, draw.x, draw.noise, draw.cond, "fake")

    def on_real(self, tick: Tick, real: Path) -> Tensor:
        value = super().on_real(tick, real)
        if not self.mismatch:
            return value
        wrong = Path(*(replace(place, cond=tick.batch["other"]) for place in real))
        return value + summed(self.loss.on_fake(self.logits(tick, wrong)))

    def _path(self, tick: Tick, x: Tensor, noise: Tensor, cond: Tree, side: str) -> Path:
        student = tick.cast.need("student", FewStep, by=self)
        x_t, t = start(noise, student.times, student.process), student.times[0].expand(len(noise))
        begin = Noised(torch.zeros_like(x_t), x_t, t, noise, cond, student.process)
        return Path(tick.at(Draw(x, cond), self.times, (self, side)), begin)


@dataclass(frozen=True, kw_only=True)
class Steps(Objective):
    """Single steps of a few-step generator from noised data, beside several steps of the teacher over the same way.

    Args:
        between: the teacher's DDIM steps to one of the student's, even on the process's clock.
        guidance: on the teacher.
    """

    between: int = 2
    guidance: Guidance | None = None

    def __post_init__(self) -> None:
        in_range("between", self.between, 1)

    def check(self, cast: Cast) -> None:
        teacher, student = cast.need("teacher", Denoiser, by=self), cast.need("student", FewStep, by=self)
        cast.need_fields("x", by=self)
        if student.process != teacher.process:
            need, got = f"a student of its teacher's process, {teacher.process}", f"one of {student.process}"
            raise Incompatible(type(self).__name__, need=need, got=got)

    def begin(self, tick: Tick) -> tuple[Noised, Tensor]:
        """Data at the level of one of the student's steps, which is pure noise at the first; and the level after it."""
        student, x = tick.cast.need("student", FewStep, by=self), tick.batch["x"]
        times, process, rng = student.times, student.process, tick.rng((self, "begin"))
        k = tick.rng((self, "step"), shared=True).integer(len(times) - 1)
        t, eps = times[k].expand(len(x)), rng.normal(len(x), *x.shape[1:], dtype=x.dtype)
        x_t = start(eps, times, process) if k == 0 else process.add_noise(x, eps, t)
        return Noised(x, x_t, t, eps, tick.batch.get("cond"), process), times[k + 1].expand(len(x))

    @torch.no_grad()
    def teach(self, tick: Tick, here: Noised, s: Tensor) -> Noised:
        """Where the teacher gets by its steps, at levels s."""
        teacher, process = tick.cast.need("teacher", Denoiser, by=self), here.process
        denoiser = tick.guided(self.guidance, teacher)
        first, last = process.fraction(here.t), torch.where(s > 0, process.fraction(s), 0)
        for i in range(1, self.between + 1):
            middle = process.at_fraction(first + (last - first) * i / self.between)
            here = stepped(here, denoiser.denoise(here.x_t, here.t, here.cond), middle if i < self.between else s)
        return here

    def learn(self, tick: Tick, here: Noised, s: Tensor) -> Noised:
        """Where the student gets by one step, at levels s."""
        student = tick.cast.need("student", FewStep, by=self)
        still = () if "student" in tick.trains else tick.cast.roles["student"].buffers  # statistics are the student's
        with tick.seeded((self, "student")), same_buffers(still):
            return stepped(here, student.denoiser.denoise(here.x_t, here.t, here.cond), s)


def stepped(here: Noised, x0: Tensor, s: Tensor) -> Noised:
    """One DDIM step by a prediction x0 to levels s [B]; where those are 0, x0 itself, to be seen at the cleanest."""
    return replace(here.moved(x0, s, None), t=s.clamp_min(here.process.t_min))


def landing(here: Noised, x_s: Tensor, s: Tensor) -> Tensor:
    """The prediction x0 by which one DDIM step from here lands at x_s, at levels s [B]."""
    process, x_t = here.process, here.x_t
    left = process.sigma(s) / process.sigma(here.t)
    return (x_s - like(left, x_t) * x_t) / like(process.alpha(s) - process.alpha(here.t) * left, x_t)


@dataclass(frozen=True, kw_only=True)
class StepRegression(Steps):
    """w(t)·‖x0 − x0*‖²/D: one step of the student by x0 is to land at x_s^T, where several of the teacher's do.

    x0* = (x_s^T − (σ_s/σ_t)·x_t)/(α_s − α_t·σ_s/σ_t) is the prediction that lands there, w that of `denoising`.

    Args: those of `Steps`.

    Raises:
        Incompatible: no data, a student that is no few-step generator, or one of another process than the teacher's.

    Source: Salimans & Ho 2022, arXiv 2202.00512, algorithm 2, with EDM's weight; the first stage of SDXL-Lightning,
    arXiv 2402.13929, has none, on x_s.

    >>> from limbeck import FewStep, GaussianMixture, distill
    >>> teacher = GaussianMixture(means=torch.ones(2, 2))
    >>> student = FewStep(teacher.clone(trainable=True), ratios=(3.0, 1.0), shape=(2,))
    >>> sorted(next(iter(distill(teacher, student, StepRegression(), torch.randn(9, 2), steps=1, batch=8))).losses)
    ['stepregression']
    """

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        sigma_data = cast.need("teacher", Denoiser, by=self).sigma_data

        def loss(tick: Tick) -> Loss:
            here, s = self.begin(tick)
            goal = landing(here, self.teach(tick, here, s).x_t, s)
            return Loss(denoising(self.learn(tick, here, s).x, goal, here.t, here.process, sigma_data))

        return (Term("stepregression", "student", loss, of=self),)


@dataclass(frozen=True, kw_only=True)
class StepGAN(Steps, ConditionalGAN):
    """One step of the student against several of the teacher's from the same x_t: D sees x_s and x_t, or x_s alone.

    With x_t the discriminator asks for the teacher's own flow, sharp where a mean would blur; ``relaxed``, without x_t,
    for its distribution at s alone.

    Args: those of `Steps` and `ConditionalGAN`.

    Raises:
        Incompatible: no data, a student that is no few-step generator, or a teacher that shows no features.

    Source: Lin et al. 2024, arXiv 2402.13929.

    >>> from limbeck import FewStep, Trained, distill
    >>> from limbeck.problems.networks import ResidualMLP
    >>> teacher = Trained(ResidualMLP(shape=(2,), width=16, blocks=1))
    >>> student = FewStep(teacher.clone(trainable=True), ratios=(3.0, 1.0), shape=(2,))
    >>> sorted(next(iter(distill(teacher, student, StepGAN(), torch.randn(9, 2), steps=1, batch=8))).losses)
    ['discriminator', 'stepgan']
    """

    def __post_init__(self) -> None:
        Steps.__post_init__(self)
        ConditionalGAN.__post_init__(self)

    def check(self, cast: Cast) -> None:
        Steps.check(self, cast)
        ConditionalGAN.check(self, cast)

    def real(self, tick: Tick) -> Path:
        here, s = self.begin(tick)
        return Path(self.teach(tick, here, s), here)

    def fake(self, tick: Tick) -> Path:
        here, s = self.begin(tick)
        return Path(self.learn(tick, here, s), here)
