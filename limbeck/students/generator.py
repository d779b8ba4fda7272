"""Students that map noise to samples: one-step and few-step generators around any denoiser."""

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.process import Process
from limbeck.diffusion.samplers import few_step, sample, start
from limbeck.engine.student import Draw, Student
from limbeck.errors import BadSetting
from limbeck.rng import Rng
from limbeck.teachers.lora import EVERY, check_adapters, low_rank
from limbeck.tree import Tree

if TYPE_CHECKING:
    from limbeck.engine.recipe import Prior
    from limbeck.problems.problem import Generative


class FewStep(Student):
    """x = D(x_{t_K}, t_K) with x_{t_1} = noise and x_{t_{k+1}} made of D's own output and fresh noise.

    A draw picks one step for the whole batch, rolls out the steps before it without gradient (backward simulation,
    so that training sees the inputs of inference), and ends there.

    Args:
        denoiser: a trainable network; a clone of the teacher is the usual start.
        ratios: noise levels σ/α of the steps, from the noisiest down.
        shape: of one sample.

    Raises:
        BadSetting: ratios that do not decrease.

    Source: DMD2, arXiv 2405.14867, sec. 4.4 and 4.5.

    >>> from limbeck.teachers import GaussianMixture
    >>> teacher = GaussianMixture(means=torch.zeros(1, 2))
    >>> student = FewStep(teacher.clone(trainable=True), ratios=(80.0, 5.0), shape=(2,))
    >>> student.sample(3, None, Rng(0)).shape
    torch.Size([3, 2])
    """

    def __init__(self, denoiser: Denoiser, *, ratios: tuple[float, ...], shape: tuple[int, ...]):
        super().__init__()
        if not ratios or any(a <= b for a, b in zip(ratios, (*ratios[1:], 0.0), strict=True)):
            raise BadSetting(f"ratios must decrease and stay above 0, got {ratios}.")
        self.denoiser, self.ratios, self.shape = denoiser, tuple(map(float, ratios)), tuple(shape)

    @property
    def process(self) -> Process:
        """The denoiser's noise process."""
        return self.denoiser.process

    @property
    def times(self) -> Tensor:
        """Noise levels of the steps and a final 0, float64 [K + 1]."""
        levels = self.process.at_ratio(torch.tensor(self.ratios, dtype=torch.float64))
        return torch.cat([levels, levels.new_zeros(1)])

    def _noise(self, n: int, rng: Rng) -> Tensor:
        dtype = reduce(torch.promote_types, {p.dtype for p in self.denoiser.parameters()})  # adapters may be wider
        return rng.normal(n, *self.shape, dtype=dtype)

    def draw(self, n: int, cond: Tree, rng: Rng) -> Draw:
        noise, times = self._noise(n, rng), self.times
        k = rng.integer(len(self.ratios))
        x = start(noise, times, self.process)
        if k > 0:
            before = sample(few_step(self.denoiser, noise, torch.cat([times[:k], times[-1:]]), cond, rng=rng))
            eps = rng.normal(n, *self.shape, dtype=noise.dtype)
            x = self.process.add_noise(before, eps, times[k].expand(n))
        x0 = self.denoiser.denoise(x, times[k].expand(n), cond)
        return Draw(x0, cond, noise, (float(times[k + 1]), float(times[k])))

    def first(self, noise: Tensor, cond: Tree = None) -> Tensor:
        """x0 predicted from standard normal noise at the first level, with gradients; shape of ``noise``."""
        times = self.times
        return self.denoiser.denoise(start(noise, times, self.process), times[0].expand(len(noise)), cond)

    @torch.no_grad()
    def generate(self, noise: Tensor, cond: Tree, rng: Rng) -> Tensor:
        """Samples by all steps from standard normal noise, shape of ``noise``; ``rng`` draws the noise in between."""
        return sample(few_step(self.denoiser, noise, self.times, cond, rng=rng))

    def sample(self, n: int, cond: Tree, rng: Rng) -> Tensor:
        """n samples by all steps, [n, …]."""
        return self.generate(self._noise(n, rng), cond, rng)


class OneStep(FewStep):
    """x = D(σ·z, σ): a whole sampler in one pass.

    Args:
        denoiser: a trainable network; a clone of the teacher is the usual start.
        shape: of one sample.
        ratio: the noise level σ/α at which it is called.

    >>> from limbeck.teachers import GaussianMixture
    >>> student = OneStep(GaussianMixture(means=torch.zeros(1, 2)).clone(trainable=True), shape=(2,))
    >>> student.draw(3, None, Rng(0)).x.requires_grad
    True
    """

    def __init__(self, denoiser: Denoiser, *, shape: tuple[int, ...], ratio: float = 80.0):
        super().__init__(denoiser, ratios=(ratio,), shape=shape)


@dataclass(frozen=True, kw_only=True)
class FromTeacher:
    """Makes the student of a recipe's stage: a generator that starts as the teacher.

    Args:
        ratios: noise levels σ/α of its steps, from the noisiest down; one of them for a one-step generator. By default
            one, the level that the problem names. A problem may need others near these; see `Generative.levels`.
        kind: of a generator with several steps.
        rank: of low-rank adapters on the teacher's own frozen weights; None for a network of its own.
        targets: the layers that have adapters, as in `low_rank`.

    >>> from limbeck.problems.mixture2d import Mixture2D
    >>> type(FromTeacher()(Mixture2D())).__name__
    'OneStep'
    """

    ratios: tuple[float, ...] | None = None
    kind: type[FewStep] = FewStep
    rank: int | None = None
    targets: tuple[str, ...] = EVERY

    def __post_init__(self) -> None:
        check_adapters(self.rank, self.targets)

    def __call__(self, problem: "Generative", prior: "Prior | None" = None) -> FewStep:
        ratios = problem.levels(self.ratios or (problem.ratio,))
        if len(ratios) == 1:
            return OneStep(self.network(problem), shape=problem.shape, ratio=ratios[0])
        return self.kind(self.network(problem), shape=problem.shape, ratios=ratios)

    def network(self, problem: "Generative") -> Denoiser:
        """The denoiser before training."""
        if self.rank is None:
            return problem.network()
        return low_rank(problem.teacher.requires_grad_(False), self.rank, self.targets)
