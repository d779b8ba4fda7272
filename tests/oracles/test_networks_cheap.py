"""What saves time and memory gives what the plain formula gives."""

import pytest
import torch
from torch import nn

from limbeck.objectives.networks.features import mean_square
from limbeck.objectives.networks.projectors import Projection, resized


@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 5), (3, 4, 2, 2)], ids=str)
def test_mean_square(shape: tuple[int, ...]) -> None:
    """Value and gradients by both sides; second derivatives as well."""
    s, t = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.allclose(mean_square(s, t), ((s - t) ** 2).flatten(1).mean(1))
    assert torch.autograd.gradcheck(mean_square, (s, t)) and torch.autograd.gradgradcheck(mean_square, (s, t))
    before = s.detach().clone()
    mean_square(s, t).sum().backward()
    assert torch.equal(s, before)


def test_projection_of_maps() -> None:
    """A linear map of the channels at each place."""
    made = Projection().build(torch.Size([2, 3, 4, 4]), torch.Size([2, 5, 4, 4]))
    (linear,) = (part for part in made.modules() if isinstance(part, nn.Linear))
    x = torch.randn(2, 3, 4, 4)
    assert torch.allclose(made(x), linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), atol=1e-6)


def test_what_is_at_the_same_places_is_not_copied() -> None:
    for shape in ((2, 3, 4, 4), (2, 16, 3), (2, 3)):
        x = torch.randn(shape)
        assert resized(x, torch.Size([2, 7, *shape[2:]] if len(shape) == 4 else [2, *shape[1:-1], 7])) is x
