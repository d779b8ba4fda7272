"""A step of DMD against its network passes alone: what the objective, the optimisers and the loop add to them."""

from itertools import islice

import torch
from _paired import paired, row
from torch import Tensor

from limbeck import DMD, EMA, Adam, Dataset, Denoiser, OneStep, distill
from limbeck.problems.digits import Digits, split

BATCH, PAIRS, TARGET = 256, 101, 1.10


def passes(problem: Digits, student: Denoiser, critic: Denoiser) -> None:
    """Student and critic forward and backward, teacher and critic forward: five, and nothing between them."""
    x, t, cond = torch.randn(BATCH, 1, 8, 8), torch.full((BATCH,), 2.0, dtype=torch.float64), torch.arange(BATCH) % 10
    made = student.denoise(x, t, cond)
    seen = made.detach()
    backward(critic.denoise(seen, t, cond))
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
    steps = iter(distill(problem.teacher, made, DMD(critic_steps=1), data, **settings))
    result = paired(lambda: [*islice(steps, 1)], lambda: passes(problem, student, critic), pairs=PAIRS)
    print(row("a step of DMD, its network passes", *result, TARGET))


if __name__ == "__main__":
    main()
