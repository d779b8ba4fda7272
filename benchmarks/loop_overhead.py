"""distill()'s DMD against a bare loop written by hand: the same draws, passes and updates, to the same bits.

Both report losses and gradient norms; the second row's bare loop leaves the norms out, which need a pass over all
gradients and are what the guard against NaN looks at.
"""

from collections.abc import Iterator
from itertools import islice

import torch
from _paired import paired, row
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from limbeck import DMD, EMA, Adam, Critic, Dataset, Fake, Karras, LogNormal, OneStep, Run, distill
from limbeck.problems.digits import Digits, split
from limbeck.rng import seed_of

STEPS, BATCH, CRITIC_STEPS, LR, DECAY = 100_000, 256, 2, 2e-4, 0.99
HIGH, LOW = Karras(lo=0.02, hi=0.98), LogNormal()
TICKS, PAIRS, TARGET = 2, 101, 1.03


def limbecks(problem: Digits) -> Run:
    """The library's run."""
    return distill(
        problem.teacher,
        OneStep(problem.network(), shape=(1, 8, 8)),
        DMD(fake=Fake(critic=Critic(times=LOW)), times=HIGH, critic_steps=CRITIC_STEPS),
        Dataset(cond=split()[1]),
        steps=STEPS,
        batch=BATCH,
        optim=Adam(lr=LR, betas=(0.0, 0.99)),
        ema=EMA(decay=DECAY, ramp=False),
    )


class Bare:
    """What a careful person would write for this one case."""

    def __init__(self, problem: Digits, *, norms: bool):
        self.norms = norms
        self.labels, self.teacher = split()[1], problem.teacher
        self.student, self.critic = problem.network(), problem.network().train()
        self.average = problem.network().requires_grad_(False).eval()
        self.optims = [optimizer(net) for net in (self.student, self.critic)]
        self.pairs = [*zip(self.average.parameters(), self.student.parameters(), strict=True)]

    def __iter__(self) -> Iterator[list[float]]:
        return (self.tick(i, due=(i + 1) % CRITIC_STEPS == 0) for i in range(STEPS))

    def tick(self, i: int, due: bool) -> list[float]:
        cond = self.labels[torch.randint(len(self.labels), (BATCH,), generator=generator(i, "data"))]
        z = torch.randn(BATCH, 1, 8, 8, generator=generator(i, ("draw", "student")))
        with torch.set_grad_enabled(due):
            x = self.student.denoise(80.0 * z, torch.full((BATCH,), 80.0, dtype=torch.float64), cond)
        losses = [self.learn(x.detach(), cond, generator(i, ("noised", ("student", LOW))))]
        if due:
            losses.append(self.match(x, cond, generator(i, ("noised", ("student", HIGH)))))
        nets = [self.student, self.critic] if due else [self.critic]
        norms = [get_total_norm([p.grad for p in net.parameters()]) for net in nets] if self.norms else []  # type: ignore[misc]
        values = torch.stack([*losses, *norms]).tolist()
        for optim in self.optims if due else self.optims[1:]:
            optim.step()
            optim.zero_grad()
        if due:
            self.follow()
        return values

    def learn(self, x: Tensor, cond: Tensor, draws: torch.Generator) -> Tensor:
        """The critic's loss, and its gradient."""
        u = torch.rand(BATCH, generator=draws, dtype=torch.float64)
        t = (LOW.mean + LOW.std * torch.special.ndtri(u)).exp().clamp(0.002, 80.0)
        x0 = self.critic.denoise(noised(x, t, draws), t, cond)
        weight = ((t**2 + 0.25) / (t * 0.5) ** 2).float()
        loss = (weight * ((x0 - x) ** 2).flatten(1).mean(1)).sum() / BATCH
        loss.backward()
        return loss.detach()

    def match(self, x: Tensor, cond: Tensor, draws: torch.Generator) -> Tensor:
        """The student's loss, and its gradient."""
        u = torch.rand(BATCH, generator=draws, dtype=torch.float64)
        a, b = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
        t = (a + (HIGH.lo + (HIGH.hi - HIGH.lo) * u) * (b - a)) ** 7
        with torch.no_grad():
            x_t = noised(x, t, draws)
            real, fake = self.teacher.denoise(x_t, t, cond), self.critic.denoise(x_t, t, cond)
            scale = (x - real).abs().flatten(1).mean(1).clamp_min(1e-5)
            goal = x - (fake - real) / scale[:, None, None, None]
        loss = (((x - goal) ** 2).flatten(1).mean(1) / 2).sum() / BATCH
        loss.backward()
        return loss.detach()

    @torch.no_grad()
    def follow(self) -> None:
        """One step of the average."""
        for average, p in self.pairs:
            average.lerp_(p, 1 - DECAY)


def generator(*names: object) -> torch.Generator:
    """The random numbers that the library gives this name in a run with seed 0."""
    return torch.Generator().manual_seed(seed_of(0, *names))


def optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=LR, betas=(0.0, 0.99), weight_decay=0.0, fused=True)


def noised(x: Tensor, t: Tensor, draws: torch.Generator) -> Tensor:
    """x + t·ε."""
    return x + t.float()[:, None, None, None] * torch.randn(x.shape, generator=draws)


def main() -> None:
    """Prints the comparison, after a check that both do the same."""
    problem = Digits()
    for norms, target in ((True, TARGET), (False, TARGET)):
        run, bare = limbecks(problem), Bare(problem, norms=norms)
        ours, theirs = iter(run), iter(bare)
        result = paired(lambda: [*islice(ours, TICKS)], lambda: [*islice(theirs, TICKS)], pairs=PAIRS)  # noqa: B023
        same = zip(run.student.parameters(), bare.average.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in same), "the loops do different things"
        print(row(f"{TICKS} ticks of DMD, bare{'' if norms else ' without norms'}", *result, target))


if __name__ == "__main__":
    main()
