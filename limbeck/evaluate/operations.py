"""Operations of a piece of work: multiplications and additions of its matrix products, convolutions and attention."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from limbeck.evaluate.memory import elsewhere


def operations(work: Callable[[], object]) -> int:
    """Operations of the work.

    >>> operations(lambda: torch.zeros(2, 3) @ torch.zeros(3, 4))  # 2·2·3·4
    48
    >>> q = torch.zeros(1, 2, 8, 16)
    >>> operations(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))  # two products, 2·2·8·8·16 each
    8192
    """
    with (counted := Operations()):
        work()
    return counted.total


class Operations(TorchDispatchMode):
    """Counts operations of what runs inside it, by torch's formulas.

    Unlike torch's own counter it hooks into no module, which would change what is alive when a backward pass computes a
    forward pass again, and it knows the processor's attention.

    Attributes:
        total: operations so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if elsewhere(types):
            return NotImplemented
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = FORMULAS.get(func._overloadpacket)
        self.total += formula(*args, **kwargs, out_val=out) if formula else 0
        return out


def _forward(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


__all__ = ["Operations", "operations"]
