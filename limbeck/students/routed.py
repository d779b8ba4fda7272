"""Several denoisers of which each knows some of the conditions: one of them answers, by condition."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from limbeck.diffusion.denoiser import Denoiser
from limbeck.errors import BadSetting
from limbeck.tree import Tree, rows


class Routed(Denoiser):
    """x0(x_t, t, c) = D_{k(c)}(x_t, t, c): a router k sends every row to one expert, which sees no other's rows.

    A pass costs what one expert costs, and a `OneStep` around it is as many generators as there are experts.

    Args:
        experts: the D_k, of one noise process.
        route: k, from conditions to integers [B] below the number of experts; by default the label modulo that number.

    Without a condition the first expert answers.

    Raises:
        BadSetting: no experts, or a route to one that does not exist.

    Source: Song et al. 2024, arXiv 2410.23274: the partition of conditions and its router.

    >>> from limbeck.teachers import GaussianMixture
    >>> experts = [GaussianMixture(means=torch.full((1, 1), mean), std=0.01) for mean in (-1.0, 1.0)]
    >>> x_t, t = torch.zeros(3, 1), torch.ones(3, dtype=torch.float64)
    >>> Routed(experts).denoise(x_t, t, torch.tensor([0, 1, 2])).flatten().round().tolist()
    [-1.0, 1.0, -1.0]
    """

    def __init__(self, experts: Sequence[Denoiser], route: Callable[[Tree], Tensor] | None = None):
        super().__init__()
        if not experts:
            raise BadSetting("Routed needs at least one expert, got none.")
        self.experts, self.route = nn.ModuleList(experts), route
        self.process, self.sigma_data = experts[0].process, experts[0].sigma_data

    def denoise(self, x_t: Tensor, t: Tensor, cond: Tree = None) -> Tensor:
        count = len(self.experts)
        if cond is None:
            return self._expert(0).denoise(x_t, t)
        index = self.route(cond) if self.route else cond % count
        order, sizes = index.argsort(stable=True), index.bincount(minlength=count).tolist()
        if len(sizes) > count:
            raise BadSetting(f"a router must name one of {count} experts, got {int(index.max())}, counted from 0.")
        parts = [
            self._expert(k).denoise(x_t[part], t[part], rows(cond, part))
            for k, part in enumerate(order.split(sizes))
            if len(part)
        ]
        return torch.cat(parts)[order.argsort()]

    def _expert(self, k: int) -> Denoiser:
        expert = self.experts[k]
        assert isinstance(expert, Denoiser)
        return expert
