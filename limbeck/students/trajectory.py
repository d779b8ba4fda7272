"""A few-step generator that samples without fresh noise, and experts that share its noise levels out."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.samplers import State, euler, sample, start
from limbeck.engine.student import Draw
from limbeck.errors import BadSetting, in_range
from limbeck.rng import Rng
from limbeck.students.generator import FewStep
from limbeck.tree import Tree, rows


class Trajectory(FewStep):
    """x_{t_{k+1}} = α·x0 + σ·ε with x0 = D(x_{t_k}, t_k) and the noise ε that it implies: DDIM by its own denoiser.

    A draw picks one step for the whole batch, walks to it without gradient, and gives x0, ε = (x_t − α·x0)/σ and the
    segment (t_{k+1}, t_k): what `Onward` needs to stand where the step ends.

    Args:
        denoiser: a trainable network; a clone of the teacher is the usual start.
        ratios: noise levels σ/α of the steps, from the noisiest down.
        shape: of one sample.
        only: the steps that are drawn in training, counted from 0; all by default.

    Raises:
        BadSetting: ratios that do not decrease, a step that does not exist.

    Source: the deterministic student of TDM, arXiv 2503.06674, sec. 4.1.

    >>> from limbeck.teachers import GaussianMixture
    >>> denoiser = GaussianMixture(means=torch.zeros(1, 2)).clone(trainable=True)
    >>> draw = Trajectory(denoiser, ratios=(3.0, 1.0), shape=(2,), only=(0,)).draw(3, None, Rng(0))
    >>> draw.segment, draw.noise.requires_grad
    ((1.0, 3.0), False)
    """

    def __init__(
        self, denoiser: Denoiser, *, ratios: tuple[float, ...], shape: tuple[int, ...], only: tuple[int, ...] = ()
    ):
        super().__init__(denoiser, ratios=ratios, shape=shape)
        self.only = only or tuple(range(len(self.ratios)))
        in_range("only", min(self.only), 0)
        in_range("only", max(self.only), 0, len(self.ratios) - 1)

    def draw(self, n: int, cond: Tree, rng: Rng) -> Draw:
        noise, times = self._noise(n, rng), self.times
        k = self.only[rng.integer(len(self.only))]
        x, t = start(noise, times, self.process), times[k].expand(n)
        if k > 0:
            x = sample(euler(self.denoiser, noise, times[: k + 1], cond))
        x0 = self.denoiser.denoise(x, t, cond)
        eps = self.process.convert(x0.detach(), x, t, "x0", "eps")
        return Draw(x0, cond, eps, (float(times[k + 1]), float(times[k])))

    def states(self, noise: Tensor, cond: Tree = None) -> Iterator[State]:
        """Where it stands after each step, from standard normal noise."""
        return euler(self.denoiser, noise, self.times, cond)

    @torch.no_grad()
    def generate(self, noise: Tensor, cond: Tree, rng: Rng) -> Tensor:
        return sample(self.states(noise, cond))


class Phased(Denoiser):
    """x0(x_t, t, c) = D_k(x_t, t, c): expert k answers from its noise level down to that of the next one.

    Args:
        experts: the D_k, of one noise process, for the noisiest levels first.
        ratios: the noise level σ/α at which each begins; the first answers above its own, too.

    Raises:
        BadSetting: another number of levels than of experts, or levels that do not decrease.

    Source: the experts of Phased DMD, arXiv 2510.27684.

    >>> from limbeck.teachers import GaussianMixture
    >>> experts = [GaussianMixture(means=torch.full((1, 1), mean), std=0.01) for mean in (-1.0, 1.0)]
    >>> t = torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)
    >>> Phased(experts, ratios=(3.0, 1.0)).denoise(torch.zeros(3, 1), t).flatten().round().tolist()
    [-1.0, 1.0, 1.0]
    """

    def __init__(self, experts: Sequence[Denoiser], *, ratios: tuple[float, ...]):
        super().__init__()
        if not experts or len(experts) != len(ratios) or list(ratios) != sorted(set(ratios), reverse=True):
            raise BadSetting(f"Phased needs one decreasing ratio to each of {len(experts)} experts, got {ratios}.")
        self.experts, self.ratios = nn.ModuleList(experts), tuple(map(float, ratios))
        self.process, self.sigma_data = experts[0].process, experts[0].sigma_data

    def denoise(self, x_t: Tensor, t: Tensor, cond: Tree = None) -> Tensor:
        begins = torch.tensor(self.ratios[1:], dtype=torch.float64, device=t.device)
        index = (self.process.ratio(t)[:, None] <= begins * (1 + 1e-9)).sum(1)  # a level that was converted rounds
        parts = [(self.experts[k], (index == k).nonzero()[:, 0]) for k in index.unique().tolist()]
        # a list of modules does not tell that they are denoisers
        x0 = [expert.denoise(x_t[part], t[part], rows(cond, part)) for expert, part in parts]  # type: ignore[operator]
        return torch.cat(x0)[torch.cat([part for _, part in parts]).argsort()]
