"""Students that are their own samples: particles, growing particles, and an image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Size, Tensor, nn

from limbeck.engine.student import Draw, Grows, Rows, Student
from limbeck.engine.tick import Tick
from limbeck.errors import in_range
from limbeck.rng import Rng
from limbeck.tree import Tree, rows, tree_leaves, tree_map

if TYPE_CHECKING:
    from limbeck.engine.recipe import Prior
    from limbeck.problems.problem import Generative


class Particles(Student):
    """N free samples; a draw of n = N gives them all in order, any other n picks at random.

    Args:
        x: where they start, [N, …].
        cond: the condition of each particle, rows [N]; None to take the batch's.

    >>> Particles(torch.zeros(4, 2)).draw(4, None, Rng(0)).x.shape
    torch.Size([4, 2])
    """

    def __init__(self, x: Tensor, cond: Tree = None):
        super().__init__()
        self.x = nn.Parameter(x.detach().clone())
        self.cond = _Held(cond)

    def draw(self, n: int, cond: Tree, rng: Rng) -> Draw:
        index = self._pick(n, rng)
        own = self.cond.tree()
        return Draw(self.x[index], cond if own is None else rows(own, index), carry=lambda noise: noise[index])

    @property
    def size(self) -> int:
        return len(self.x)

    @property
    def surface(self) -> Size | None:
        return self.x.shape

    def _pick(self, n: int, rng: Rng) -> Tensor:
        if len(self.x) == (rng.total or n):
            every = torch.arange(len(self.x), device=self.x.device)
            return every if rng.part is None else every[rng.part]
        return rng.integers(n, len(self.x))


class GrowingParticles(Particles, Grows):
    """Particles that split: every ``every`` ticks the ``share`` with the largest gradients gets a copy nearby.

    Args:
        x: where they start, [N, …].
        every: ticks between two splits.
        share: of the particles that split.
        limit: growth stops before more than so many particles.
        jitter: standard deviation of a copy's distance, in data units.

    The rule is that of 3D Gaussian splatting's adaptive density control (arXiv 2308.04079, sec. 5.2), without pruning.

    >>> GrowingParticles(torch.zeros(4, 2), every=10).limit
    1024
    """

    def __init__(self, x: Tensor, *, every: int = 100, share: float = 0.25, limit: int = 1024, jitter: float = 0.05):
        super().__init__(x)
        in_range("every", every, 1)
        in_range("share", share, 0, 1)
        self.every, self.share, self.limit, self.jitter = every, share, limit, jitter

    @property
    def surface(self) -> None:
        """Its points come and go."""
        return None

    def regrow(self, tick: Tick) -> Mapping[str, Rows] | None:
        n = len(self.x)
        more = min(int(n * self.share), self.limit - n)
        if (tick.i + 1) % self.every or more <= 0:
            return None
        split = tick.grads["x"].flatten(1).norm(dim=1).topk(more).indices
        source = torch.cat([torch.arange(n, device=split.device), split])
        fresh = torch.arange(n + more, device=split.device) >= n
        value = self.x.detach()[source]
        value[fresh] += self.jitter * tick.rng("regrow", shared=True).normal(more, *value.shape[1:], dtype=value.dtype)
        return {"x": Rows(source, fresh, value)}

    def resize(self, shapes: Mapping[str, Size]) -> None:
        self.x = nn.Parameter(self.x.new_zeros(shapes["x"]), requires_grad=self.x.requires_grad)


class Image(Student):
    """One image, seen n times under fresh noise; the classic student of score distillation.

    Args:
        x: where it starts, […], one example without a batch axis.
        cond: its condition, rows [1]; None to take the batch's.

    >>> Image(torch.zeros(1, 8, 8)).draw(3, None, Rng(0)).x.shape
    torch.Size([3, 1, 8, 8])
    """

    def __init__(self, x: Tensor, cond: Tree = None):
        super().__init__()
        self.x = nn.Parameter(x.detach().clone())
        self.cond = _Held(cond)

    def draw(self, n: int, cond: Tree, rng: Rng) -> Draw:
        own = tree_map(lambda c: c.expand(n, *c.shape[1:]), self.cond.tree())
        return Draw(
            self.x.expand(n, *self.x.shape),
            cond if own is None else own,
            carry=lambda noise: noise.expand(n, *noise.shape),
        )

    @property
    def surface(self) -> Size:
        return self.x.shape


class _Held(nn.Module):
    """A tree of tensors as buffers, so that it moves, saves and clones with its owner."""

    def __init__(self, tree: Tree):
        super().__init__()
        for i, leaf in enumerate(tree_leaves(tree)):
            self.register_buffer(f"leaf{i}", leaf)
        self._shape = tree

    def tree(self) -> Tree:
        leaves = iter(self.buffers())
        return tree_map(lambda _: next(leaves), self._shape)


@dataclass(frozen=True, kw_only=True)
class FromNoise:
    """Makes the student of a recipe's stage: particles that start as noise, one for each of the problem's conditions.

    Args:
        n: number of particles; the problem's by default.
        scale: standard deviation of the start, in data units.

    >>> from limbeck.problems.mixture2d import Mixture2D
    >>> FromNoise(n=8)(Mixture2D()).x.shape
    torch.Size([8, 2])
    """

    n: int | None = None
    scale: float = 0.5

    def __call__(self, problem: "Generative", prior: "Prior | None" = None) -> Particles:
        n = self.n or problem.particles
        return Particles(self.scale * torch.randn(n, *problem.shape), problem.spread(n))
