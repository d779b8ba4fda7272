"""What is kept of a module, and how it comes back: all but what a teacher lends it, and what tells the lender."""

import hashlib
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from limbeck.engine.host import Hosted
from limbeck.engine.shards import as_lies
from limbeck.engine.student import Grows


def lent_by(teachers: Iterable[nn.Module], module: nn.Module) -> frozenset[str]:
    """The names of a module's parameters that are teachers' own, as in `low_rank`.

    >>> net = nn.Linear(2, 2)
    >>> sorted(lent_by([net], nn.Sequential(net, nn.Linear(2, 2))))
    ['0.bias', '0.weight']
    """
    base = {id(p) for teacher in teachers for p in teacher.parameters()}
    return frozenset(name for name, p in module.named_parameters(remove_duplicate=False) if id(p) in base)


def fingerprint_of(module: nn.Module, lent: Collection[str]) -> str | None:
    """What tells the weights that a module was lent from others, by sums of their bits; None where there are none."""
    if not lent:
        return None
    values = [x.detach() for name, x in module.state_dict().items() if name in lent]
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = ["" if x.is_meta else str(x.contiguous().view(kinds[x.element_size()]).sum().item()) for x in values]
    return hashlib.sha256(" ".join(sums).encode()).hexdigest()[:16]


def own_state(module: nn.Module, lent: Collection[str]) -> dict[str, Tensor]:
    """A module's state without what it was lent.

    >>> list(own_state(nn.Linear(2, 2), {"weight"}))
    ['bias']
    """
    own = ((name, value) for name, value in module.state_dict().items() if name not in lent)
    return {name: value.brought() if isinstance(value, Hosted) else value for name, value in own}


def load_module(module: nn.Module, state: Mapping[str, Tensor], lent: Collection[str] = ()) -> None:
    """Loads a state whose every name matches, without what was lent; a growing student takes the saved shapes first.

    Args:
        module: built anew.
        state: its own part, by name.
        lent: names of what a teacher has lent it, which is there already.

    Raises:
        KeyError, RuntimeError: other names or shapes.
    """
    if isinstance(module, Grows):
        module.resize({name: state[name].shape for name, _ in module.named_parameters()})
    if more := set(lent) & set(state):
        raise KeyError(f"{min(more)} is lent by a teacher")
    own = module.state_dict()
    state = {name: as_lies(x, own[name]) if name in own else x for name, x in state.items()}
    module.load_state_dict({**state, **{name: own[name] for name in lent}})


__all__ = ["fingerprint_of", "lent_by", "load_module", "own_state"]
