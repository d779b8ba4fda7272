"""DMD against its network passes alone: what draws, losses, norms, optimisers, average and loop add to them.

Two ticks, as in the recipe on digits: the critic learns in both, the student in the second.
"""

from itertools import islice

import torch
from _paired import paired, row
from torch import Tensor

from limbeck import DMD, EMA, Adam, Dataset, Denoiser, OneStep, distill
from limbeck.problems.digits import Digits, split

BATCH, PAIRS, TARGET = 256, 101, 1.10


def passes(problem: Digits, student: Denoiser, critic: Denoiser) -> None:
    """Two of the student and four of the critic and teacher forward, three backward, and nothing between them."""
    x, t, cond = torch.randn(BATCH, 1, 8, 8), torch.full((BATCH,), 2.0, dtype=torch.float64), torch.arange(BATCH) % 10
    for due in (False, True):
        with torch.set_grad_enabled(due):
            made = student.denoise(x, t, cond)
        seen = made.detach()
        backward(critic.denoise(seen, t, cond))
        if due:
            with torch.no_grad():
                problem.teacher.denoise(seen, t, cond)
                critic.denoise(seen, t, cond)
            backward(made)
        for net in (student, critic):
            net.zero_grad()


def backward(out: Tensor) -> None:
    """A pass back from a gradient of ones."""
    out.backward(torch.ones_like(out))


def main() -> None:
    """Prints the comparison."""
    problem = Digits()
    student, critic = problem.network(), problem.network()
    made = OneStep(problem.network(), shape=(1, 8, 8))
    settings = {"steps": 100_000, "batch": BATCH, "optim": Adam(lr=2e-4), "ema": EMA(decay=0.99)}
    data = Dataset(cond=split()[1])
    steps = iter(distill(problem.teacher, made, DMD(critic_steps=2), data, **settings))
    result = paired(lambda: [*islice(steps, 2)], lambda: passes(problem, student, critic), pairs=PAIRS)
    print(row("2 ticks of DMD, network passes", *result, TARGET))


if __name__ == "__main__":
    main()
