"""A student that is seen from several sides: one parameter, a stack of cameras."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Size, Tensor, nn

from limbeck.engine.student import Draw, Student
from limbeck.errors import BadSetting
from limbeck.rng import Rng
from limbeck.tree import Tree

if TYPE_CHECKING:
    from limbeck.engine.recipe import Prior
    from limbeck.problems.views2d import Views2D


class Views(Student):
    """Linear renderings x_v = M_v·θ of one object θ; the condition of a sample is the number v of its view.

    A draw of a multiple of V has every view equally often, any other picks at random. Noise on the object is rendered
    by rows of M_v that are normalised, so it is N(0, 1) in every view, and views that share points share their noise.

    Args:
        theta: θ where it starts, [p].
        cameras: M, [V, d, p].

    Raises:
        BadSetting: shapes that do not fit, or a pixel that sees nothing.

    Source: of the noise, the area-weighted mean of Yan et al. 2025, arXiv 2501.05445, sec. 4.2.

    >>> student = Views(torch.ones(3), torch.eye(3).reshape(3, 1, 3))
    >>> student.draw(6, None, Rng(0)).cond
    tensor([0, 1, 2, 0, 1, 2])
    """

    def __init__(self, theta: Tensor, cameras: Tensor):
        super().__init__()
        if cameras.dim() != 3 or theta.shape != cameras.shape[2:]:
            got = f"{list(theta.shape)} and {list(cameras.shape)}"
            raise BadSetting(f"theta and cameras must be [p] and [views, d, p], got {got}.")
        if not bool(cameras.any(2).all()):
            raise BadSetting("cameras must have no row of zeros, for a pixel must see something.")
        self.theta = nn.Parameter(theta.detach().clone())
        self.register_buffer("cameras", cameras.clone())
        self.cameras: Tensor

    @property
    def size(self) -> int:
        return len(self.cameras)

    @property
    def surface(self) -> Size:
        return self.theta.shape

    def draw(self, n: int, cond: Tree, rng: Rng) -> Draw:
        view = self._pick(n, rng)
        return Draw(self.cameras[view] @ self.theta, view, carry=lambda noise: self.rows[view] @ noise)

    @property
    def rows(self) -> Tensor:
        """The cameras with rows of length 1, [V, d, p]."""
        return self.cameras / self.cameras.norm(dim=2, keepdim=True)

    def _pick(self, n: int, rng: Rng) -> Tensor:
        total = rng.total or n
        if total % len(self.cameras):
            return rng.integers(n, len(self.cameras))
        every = torch.arange(total, device=self.theta.device) % len(self.cameras)
        return every if rng.part is None else every[rng.part]


@dataclass(frozen=True, kw_only=True)
class FromCameras:
    """Makes the student of a recipe's stage: an object that starts as noise, under the problem's cameras.

    Args:
        scale: standard deviation of the start, in data units.

    >>> from limbeck.problems.views2d import Views2D
    >>> FromCameras()(Views2D()).size
    8
    """

    scale: float = 0.5

    def __call__(self, problem: "Views2D", prior: "Prior | None" = None) -> Views:
        cameras = problem.cameras
        return Views(self.scale * torch.randn(cameras.shape[2]), cameras)
