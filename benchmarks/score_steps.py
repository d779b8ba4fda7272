"""DMD and SiD steps against the published algorithms written out plainly, in one run: time, and peak memory.

Plain means every pass where the paper has it, nothing shared: fresh samples for the critic, a pass of its own for the
critic's loss, for the discriminator on samples and on data, for the score and for the generator's adversarial loss.
Both sides have the same networks, batch, optimisers and moving average. The floor is what the passes alone would give,
by the operations of their matrix products; memory is the most bytes that tensors hold at one moment.

    python benchmarks/score_steps.py
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import torch
from _paired import flops, paired
from torch import Tensor
from torch.nn import functional as F

from limbeck import (
    DMD,
    EMA,
    GAN,
    Adam,
    Critic,
    Dataset,
    Denoising,
    Fake,
    Objective,
    OneStep,
    SiD,
    distill,
    low_rank,
)
from limbeck.diffusion.process import like
from limbeck.evaluate.memory import peak
from limbeck.objectives.adversarial import Heads
from limbeck.problems.digits import Digits, split
from limbeck.problems.networks import ResidualMLP
from limbeck.recipes.parts import TIMES
from limbeck.rng import Rng
from limbeck.teachers import Trained, denoising_weight

BATCH, PAIRS, EVERY = 256, 31, 2
TARGETS = {"dmd2": 0.85, "dmd": 0.97, "sid": 0.97}


class Plain:
    """What the plain algorithms have in common."""

    def __init__(self, problem: Digits):
        self.problem, self.teacher = problem, problem.teacher
        self.student, self.critic, self.average = (problem.network() for _ in range(3))
        self.heads = Heads(self.critic.taps, 64)
        self.optim = {
            who: torch.optim.Adam(net.parameters(), lr=5e-4, betas=(0.0, 0.99), fused=True)
            for who, net in (("student", self.student), ("critic", self.critic), ("heads", self.heads))
        }
        self.x, self.y, _, _ = split()
        self.rng = Rng(0)

    def draw(self) -> tuple[Tensor, Tensor]:
        cond = self.y[self.rng.integers(BATCH, len(self.y))]
        t = torch.ones(BATCH, dtype=torch.float64)
        return self.student.denoise(self.rng.normal(BATCH, 1, 8, 8), t, cond), cond

    def noised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        t = TIMES.sample(BATCH, self.teacher.process, self.rng)
        return self.teacher.process.add_noise(x, self.rng.normal(*x.shape), t), t

    def critic_loss(self, x: Tensor, cond: Tensor) -> Tensor:
        x_t, t = self.noised(x)
        weight = denoising_weight(t, self.teacher.process)
        return (weight.to(x) * ((self.critic.denoise(x_t, t, cond) - x) ** 2).flatten(1).mean(1)).mean()

    def logits(self, x: Tensor, cond: Tensor) -> Tensor:
        x_t, t = self.noised(x)
        return self.heads(self.critic.look(x_t, t, cond, taps=tuple(self.critic.taps), x0=False).features)

    def step(self, loss: Tensor, *who: str) -> None:
        loss.backward()
        for name in who:
            self.optim[name].step()
        for optim in self.optim.values():
            optim.zero_grad()

    @torch.no_grad()
    def follow(self) -> None:
        for a, p in zip(self.average.parameters(), self.student.parameters(), strict=True):
            a.lerp_(p, 0.01)

    def learn_critic(self, *, gan: bool) -> None:
        with torch.no_grad():
            x, cond = self.draw()
        loss = self.critic_loss(x, cond)
        if gan:
            real = self.rng.integers(BATCH, len(self.x))
            loss = loss + 0.3 * F.softplus(self.logits(x, cond)).mean()
            loss = loss + 0.3 * F.softplus(-self.logits(self.x[real], self.y[real])).mean()
        self.step(loss, "critic", *(("heads",) if gan else ()))

    def learn_student(self, *, gan: bool) -> None:
        self.critic.requires_grad_(False)
        x, cond = self.draw()
        x_t, t = self.noised(x)
        with torch.no_grad():
            real, fake = (net.denoise(x_t, t, cond) for net in (self.teacher, self.critic))
            g = (fake - real) / (like((x - real).abs().flatten(1).mean(1), x) * 64)
        loss = (g * x).flatten(1).sum(1).mean()
        if gan:
            loss = loss + 0.3 * F.softplus(-self.logits(x, cond)).mean()
        self.step(loss, "student")
        self.critic.requires_grad_(True)
        self.follow()

    def dmd(self, *, gan: bool) -> None:
        """As many ticks as one step of the student takes."""
        for _ in range(EVERY):
            self.learn_critic(gan=gan)
        self.learn_student(gan=gan)

    def sid(self) -> None:
        self.learn_critic(gan=False)
        self.critic.requires_grad_(False)
        x, cond = self.draw()
        x_t, t = self.noised(x)
        real, fake = (net.denoise(x_t, t, cond) for net in (self.teacher, self.critic))
        value = ((real - fake) * ((real - x) - (real - fake))).flatten(1).sum(1)
        self.step((value / (x - real).detach().abs().flatten(1).mean(1)).mean(), "student")
        self.critic.requires_grad_(True)
        self.follow()


def ours(problem: Digits, objective: Objective) -> Iterator[object]:
    """Ticks of a run."""
    x, y, _, _ = split()
    student = OneStep(problem.network(), shape=(1, 8, 8), ratio=1.0)
    settings = {"steps": 10**6, "batch": BATCH, "optim": Adam(lr=5e-4, betas=(0.0, 0.99)), "ema": EMA(decay=0.99)}
    return iter(distill(problem.teacher, student, objective, Dataset(x=x, cond=y), **settings))


def mine(name: str, problem: Digits) -> Callable[[], object]:
    """Our ticks of one step of the student."""
    critic = Critic(times=TIMES)
    dmd = DMD(fake=Fake(critic=critic), times=TIMES, critic_steps=EVERY)
    gan = GAN(critic=critic, times=TIMES, critic_steps=EVERY, feature_weight=0.3)
    objective, ticks = {
        "dmd2": (dmd + 0.3 * gan, EVERY),
        "dmd": (dmd, EVERY),
        "sid": (SiD(critic=critic, times=TIMES), 1),
    }[name]
    steps = ours(problem, objective)
    return lambda: [*islice(steps, ticks)]


def plain(name: str, problem: Digits) -> Callable[[], object]:
    """The same by the plain algorithm."""
    made = Plain(problem)
    return {"dmd2": partial(made.dmd, gan=True), "dmd": partial(made.dmd, gan=False), "sid": made.sid}[name]


def adapters() -> tuple[Callable[[], object], Callable[[], object]]:
    """DMD whose student and critic are adapters on one frozen base, and denoising by one set of adapters on it.

    The base is three times as deep as the digits' network, for what one layer needs for a moment is then small beside
    what all of them keep, as in any network that is worth sharing.
    """
    x, y, _, _ = split()
    settings = {"steps": 10**6, "batch": BATCH, "optim": Adam(lr=5e-4)}
    net = ResidualMLP(shape=(1, 8, 8), classes=10, width=192, blocks=12, expand=2)
    data, teacher = Dataset(x=x, cond=y), Trained(net).requires_grad_(False)
    student = OneStep(low_rank(teacher, 8), shape=(1, 8, 8), ratio=1.0)
    both = distill(teacher, student, DMD(fake=Fake(critic=Critic(rank=8)), critic_steps=1), data, **settings)
    one = distill(None, low_rank(teacher, 8), Denoising(), data, **settings)
    return both.tick, one.tick


def held(make: Callable[[], Callable[[], object]]) -> int:
    """Peak bytes of a second round of work, by itself: nothing of the other side is alive."""
    work = make()
    work()
    return peak(work)


def main() -> None:
    """Prints the comparison."""
    problem = Digits()
    base = sum(p.numel() * p.element_size() for p in problem.teacher.parameters())
    print(f"batch {BATCH}, critic steps {EVERY}, medians of {PAIRS} pairs, one thread, networks of {base / 4e6:.2f} M")
    print(f"{'':6}{'ours':>12}{'plain':>12}{'ratio':>8}{'target':>8}{'floor':>8}{'memory':>8}")
    for name, target in TARGETS.items():
        a, b, ratio = paired(mine(name, problem), plain(name, problem), pairs=PAIRS)
        floor = flops(mine(name, problem)) / flops(plain(name, problem))
        memory = held(lambda n=name: mine(n, problem)) / held(lambda n=name: plain(n, problem))
        print(f"{name:6}{1e3 * a:9.1f} ms{1e3 * b:9.1f} ms{ratio:8.3f}{target:8.2f}{floor:8.3f}{memory:8.3f}")
    ratio = held(lambda: adapters()[0]) / held(lambda: adapters()[1])
    print(f"peak memory of DMD on one shared base over that of adapting it once: {ratio:.3f} (≤ 1.2)")


if __name__ == "__main__":
    main()
