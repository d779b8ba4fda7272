"""Losses in float16 are scaled, so that what they send back does not underflow."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.engine.shards import part_of
from limbeck.errors import Incompatible

FIRST, LEAST, EVERY = 2.0**16, 1.0, 2000
"""The scale of the first tick, the smallest one, and after how many good ticks it doubles."""


class Scaling:
    """One scale for all losses of a run: gradients of several of them add up where they share a pass.

    What float16 holds ends at 6e-8 and at 65504, and gradients of a mean over a batch are often smaller. So every loss
    is multiplied by the scale before its gradients go back, and the gradients are divided by it before anyone sees
    them. Both are exact, since it is a power of two. A role whose gradient overflows skips its update, and the scale
    halves; after many ticks without that it doubles.

    Attributes:
        scale: of the losses.
        good: ticks since it changed, or since an overflow.
        every: so many good ticks double it.

    Source: Micikevicius et al. 2018, arXiv 1710.03740, sec. 3.2; numbers of ``torch.amp.GradScaler``.

    >>> scaling = Scaling()
    >>> scaling.update(overflow=True)
    >>> scaling.scale
    32768.0
    """

    def __init__(self) -> None:
        self.scale, self.good, self.every = FIRST, 0, EVERY

    @torch.no_grad()
    def undo(self, grads: Iterable[Tensor]) -> None:
        """Divides gradients by the scale, in place."""
        for grad in grads:
            part_of(grad).mul_(1 / self.scale)

    @property
    def least(self) -> bool:
        """Whether the scale can fall no further: what is not finite then is no overflow of it."""
        return self.scale <= LEAST

    def update(self, *, overflow: bool) -> None:
        """After a tick: half as large where a gradient overflowed, twice as large after so many where none did."""
        self.good = 0 if overflow else self.good + 1
        if overflow:
            self.scale = max(LEAST, self.scale / 2)
        elif self.good == self.every:
            self.scale, self.good = 2 * self.scale, 0

    def state_dict(self) -> dict[str, Any]:
        """The scale, and how long it has been so."""
        return {"scale": self.scale, "good": self.good}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self.scale, self.good = float(state["scale"]), int(state["good"])


def scaling_for(autocast: torch.dtype | None, frozen: Iterable[Tensor], trained: Iterable[Tensor]) -> Scaling | None:
    """How losses are scaled: not at all, unless something computes in float16.

    Args:
        autocast: of the forward passes.
        frozen: parameters and buffers of everyone.
        trained: parameters that are trained.

    Raises:
        Incompatible: parameters to train in float16, in which their gradients would underflow all the same.

    >>> scaling_for(torch.bfloat16, [torch.zeros(1)], []) is None
    True
    """
    if any(p.dtype == torch.float16 for p in trained):
        raise Incompatible(
            "a run", need="trained parameters in single precision", got="some in float16", fit=".float()"
        )
    return Scaling() if autocast == torch.float16 or any(x.dtype == torch.float16 for x in frozen) else None


__all__ = ["Scaling", "scaling_for"]
