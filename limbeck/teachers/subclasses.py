"""Few classes, many kinds of each: a classifier whose classes are split by what else its last features tell apart."""

import torch
from torch import Tensor, nn

from limbeck.engine.taps import find, tap
from limbeck.errors import BadSetting, Incompatible, above_zero, in_range


def class_directions(h: Tensor, y: Tensor, head: Tensor, *, each: int) -> tuple[Tensor, Tensor]:
    """Of every class the mean features, and the directions in which they vary most and the logits do not.

    Features lose what the head sees, h − W⁺W·h; of the rest, centred by class, the principal directions are taken,
    each divided by the standard deviation along it.

    Args:
        h: features, [N, D].
        y: their classes, [N].
        head: W, the weight of the linear layer that makes logits of them, [C, D].
        each: S, directions for a class.

    Returns:
        Means [C, D] and directions [C, D, S].

    Raises:
        BadSetting: more directions than features leave, or than a class has examples.

    Source: LELP, Loo et al. 2024, arXiv 2409.20449, for the null space and the principal components of each class.

    >>> h = torch.tensor([[1.0, 0.0, 3.0], [1.0, 0.0, -3.0], [-1.0, 2.0, 0.0], [-1.0, -2.0, 0.0]])
    >>> means, directions = class_directions(h, torch.tensor([0, 0, 1, 1]), torch.tensor([[1.0, 0, 0]] * 2), each=1)
    >>> (h[:1] @ directions[0]).abs(), (h[2:3] @ directions[1]).abs()
    (tensor([[1.]]), tensor([[1.]]))
    """
    rank = int(torch.linalg.matrix_rank(head))
    blind = torch.eye(h.shape[1], dtype=h.dtype) - torch.linalg.pinv(head) @ head
    means, directions = list[Tensor](), list[Tensor]()
    for k in range(len(head)):
        own = h[y == k]
        if each > (room := max(min(h.shape[1] - rank, len(own) - 1), 0)):
            raise BadSetting(f"class {k} has room for {room} directions, got each={each}.")
        means.append(own.mean(0))
        _, scale, right = torch.linalg.svd((own - means[-1]) @ blind, full_matrices=False)
        directions.append((right[:each] / (scale[:each, None] / len(own) ** 0.5)).mT)
    return torch.stack(means), torch.stack(directions)


def marginal(logits: Tensor, classes: int) -> Tensor:
    """ln of the summed exponentials of each class's subclasses, [B, C], of logits [B, C·S].

    >>> marginal(torch.zeros(1, 4), 2).exp()
    tensor([[2., 2.]])
    """
    return logits.unflatten(1, (classes, -1)).logsumexp(2)


class Subclasses(nn.Module):
    """A classifier that also says which kind of its class an example is: ln p_c + ln softmax_s(u_cs/τ), [B, C·S].

    u_c are `class_directions` applied to the last features, as they are for examples that the classifier puts into
    class c. Over the subclasses of a class the probabilities sum to its own, see `marginal`.

    Args:
        teacher: a classifier whose logits come from a linear layer.
        head: the name of that layer; what goes into it are the features.
        x: inputs that directions are found on, [N, …].
        each: S, subclasses of a class.
        temperature: τ; as it grows, subclasses become equal.

    Raises:
        BadSetting: a temperature that is not above 0, no subclasses, or more than x has room for.
        Incompatible: a head that is no linear layer.

    Source: LELP, Loo et al. 2024, arXiv 2409.20449, for subclasses from linear projections; the softmax of
    standardised projections is ours.

    >>> from limbeck.rng import Rng, seeded
    >>> with seeded("example"):
    ...     net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> x = Rng("example").normal(99, 4, dtype=torch.float32)
    >>> Subclasses(net, "2", x - x.mean(0), each=3)(torch.zeros(5, 4)).shape
    torch.Size([5, 6])
    """

    def __init__(self, teacher: nn.Module, head: str, x: Tensor, *, each: int = 5, temperature: float = 1.0):
        super().__init__()
        above_zero("temperature", temperature)
        in_range("each", each, 1)
        self.teacher, self.head, self.temperature = teacher.eval(), head, temperature
        find(teacher, head)
        layer = teacher.get_submodule(head)
        if not isinstance(layer, nn.Linear):
            raise Incompatible("Subclasses", need="a head that is a Linear", got=f"a {type(layer).__name__}")
        with torch.no_grad():
            z, h = self._look(x)
            means, directions = class_directions(h, z.argmax(1), layer.weight, each=each)
        self.register_buffer("means", means)
        self.register_buffer("directions", directions)
        self.means: Tensor
        self.directions: Tensor

    def _look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen = tap(self.teacher, f"{self.head}:in")  # anew each time, for hooks are no part of copies
        with seen:
            z = self.teacher(x)
            h = seen[f"{self.head}:in"]
        seen.remove()
        return z, h

    def forward(self, x: Tensor) -> Tensor:
        """Logarithms of the probabilities of all subclasses, class by class, [B, C·S]."""
        z, h = self._look(x)
        u = torch.einsum("bcd,cds->bcs", h[:, None] - self.means, self.directions)
        return (z.log_softmax(1)[..., None] + (u / self.temperature).log_softmax(2)).flatten(1)


__all__ = ["Subclasses", "class_directions", "marginal"]
