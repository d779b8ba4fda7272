"""Random numbers with a name: a draw depends on its seed and name alone, never on what was drawn before it."""

import hashlib
from contextlib import AbstractContextManager
from functools import cache, cached_property

import torch
from torch import Tensor

from limbeck.errors import BadSetting


def seed_of(*names: object) -> int:
    """A 63-bit seed from any names, the same in every process.

    >>> seed_of(0, "dmd2", 17, "draw") == seed_of(0, "dmd2", 17, "draw") != seed_of(1, "dmd2", 17, "draw")
    True
    """
    text = "\x1f".join(map(str, names))
    if " object at 0x" in text:  # a memory address would be another seed in every process
        raise BadSetting(f"random numbers need a name that says what it is, such as a frozen dataclass, got {text!r}.")
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Rng:
    """Row-aware random numbers: a batch is drawn whole and cut, so how it is cut changes nothing.

    Four micro-batches of 8 rows, or two ranks of 16, see the very numbers that one batch of 32 sees. Scalar draws
    (which step of a rollout) are equal on every rank and micro-batch.

    Args:
        seed: the seed, or a tuple of names that `seed_of` turns into one.
        part: the rows of the whole batch that are drawn here; ``None`` for all of them.
        total: how many rows the whole batch has; needed with ``part``.

    >>> whole = Rng(0).normal(32, 2)
    >>> part = Rng(0, part=slice(8, 16), total=32).normal(8, 2)
    >>> bool((whole[8:16] == part).all())
    True
    """

    def __init__(
        self,
        seed: int | tuple[object, ...],
        *,
        part: slice | None = None,
        total: int | None = None,
        device: torch.device | str = "cpu",
    ):
        self.seed = seed if isinstance(seed, int) else seed_of(*seed)
        self.part, self.total, self.device = part, total, torch.device(device)

    @cached_property
    def generator(self) -> torch.Generator:
        """Where the numbers come from."""
        return torch.Generator(self.device).manual_seed(self.seed)

    def _count(self, n: int) -> int:
        if self.part is None:
            return n
        assert self.total is not None and n == self.part.stop - self.part.start, (n, self.part)
        return self.total

    def _cut(self, x: Tensor) -> Tensor:
        return x if self.part is None else x[self.part]

    def normal(self, n: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers [n, *shape]."""
        size = (self._count(n), *shape)
        return self._cut(torch.randn(size, generator=self.generator, dtype=dtype, device=self.device))

    def uniform(self, n: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Uniform numbers in [0, 1), [n, *shape]."""
        size = (self._count(n), *shape)
        return self._cut(torch.rand(size, generator=self.generator, dtype=dtype, device=self.device))

    def integers(self, n: int, high: int) -> Tensor:
        """Integers in [0, high), [n]."""
        size = (self._count(n),)
        return self._cut(torch.randint(high, size, generator=self.generator, device=self.device))

    def integer(self, high: int) -> int:
        """One integer in [0, high), the same for all rows, ranks and micro-batches."""
        return int(torch.randint(high, (), generator=self.generator, device=self.device))


class seeded(AbstractContextManager[None]):
    """Seeds torch's global generators inside the block (dropout, initialisation) and restores them after it.

    >>> before = torch.get_rng_state()
    >>> with seeded("a"): x = torch.rand(1)
    >>> with seeded("a"): bool(torch.rand(1) == x), bool((torch.get_rng_state() == before).all())
    (True, False)
    >>> bool((torch.get_rng_state() == before).all())
    True
    """

    def __init__(self, *names: object):
        self.seed = seed_of(*names)

    def __enter__(self) -> None:
        self.states = [generator.get_state() for generator in _generators()]
        for generator in _generators():
            generator.manual_seed(self.seed)

    def __exit__(self, *error: object) -> None:
        for generator, state in zip(_generators(), self.states, strict=True):
            generator.set_state(state)


@cache
def _generators() -> tuple[torch.Generator, ...]:
    """torch's global generators; ``torch.manual_seed`` would take a millisecond where there is no CUDA device."""
    if not torch.cuda.device_count():
        return (torch.default_generator,)
    torch.cuda.init()
    return (torch.default_generator, *torch.cuda.default_generators)


__all__ = ["Rng", "seed_of", "seeded"]
