"""Operations of a piece of work: multiplications and additions of its matrix products, convolutions and attention."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten


def counter() -> FlopCounterMode:
    """Counts operations of what runs inside it; torch's own counter leaves out the processor's attention."""
    attention = aten._scaled_dot_product_flash_attention_for_cpu
    back = aten._scaled_dot_product_flash_attention_for_cpu_backward
    formulas: dict[Any, Any] = {attention: _forward, back: _backward}
    return FlopCounterMode(display=False, custom_mapping=formulas)


def operations(work: Callable[[], object]) -> int:
    """Operations of the work.

    >>> operations(lambda: torch.zeros(2, 3) @ torch.zeros(3, 4))  # 2·2·3·4
    48
    >>> q = torch.zeros(1, 2, 8, 16)
    >>> operations(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))  # two products, 2·2·8·8·16 each
    8192
    """
    with (counted := counter()):
        work()
    return counted.get_total_flops()


def _forward(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


__all__ = ["counter", "operations"]
