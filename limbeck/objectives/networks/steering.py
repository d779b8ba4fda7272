"""A pass of a network in which some of its parts hand on something else than what they made."""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from limbeck.engine.taps import INPUT, first_tensor, submodules
from limbeck.errors import Incompatible


@contextmanager
def steered(module: nn.Module, instead: Mapping[str, Callable[[Tensor], Tensor]]) -> Generator[dict[str, Tensor]]:
    """Inside, what these submodules hand on is a function of what they made; the latter is in what is given.

    Where the function does not look at what was made, no gradient goes back through that part.

    Args:
        module: any network.
        instead: by the name of a submodule that puts out one tensor, output → what is handed on, of the same shape.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> with steered(net, {"1": torch.zeros_like}) as made:
    ...     out = net(torch.ones(1, 4))
    >>> bool((out == net[2].bias).all()), made["1"].shape
    (True, torch.Size([1, 8]))
    """
    made, known = dict[str, Tensor](), submodules(module)

    def hook(name: str) -> Callable[..., Tensor]:
        def hand_on(part: nn.Module, args: Any, out: Any) -> Tensor:
            made[name] = first_tensor(out)
            return instead[name](made[name])

        return hand_on

    handles = [known[name].register_forward_hook(hook(name)) for name in instead]
    try:
        yield made
    finally:
        for handle in handles:
            handle.remove()


def outputs(names: Iterable[str], by: object) -> None:
    """Raises `Incompatible` unless each name is of what a submodule puts out, which alone can be put in its place."""
    if wrong := [name for name in names if name.endswith(INPUT)]:
        need, fit = "what submodules put out", repr(wrong[0].removesuffix(INPUT))
        raise Incompatible(type(by).__name__, need=need, got=repr(wrong[0]), fit=fit)


__all__ = ["outputs", "steered"]
