"""DisBack: the teacher is degraded to the first generator, and the student follows that path back. arXiv 2408.15991.

Stage 1 records: the teacher learns to denoise samples of the generator as it starts, a checkpoint at a time. Stage 2
is Diff-Instruct's gradient from those checkpoints, the last first, to the teacher; the critic starts as the last one.

The generator is an untrained network whose last layer is 0, so that its samples lie near 0, where the data have
nothing, and the rate is 5e-4. At this size most of what is won comes from where the critic starts. At four times that
rate, from a random last layer, or from a copy of the teacher, a path does not help reliably.
"""

from dataclasses import replace

from torch import nn

from limbeck.diffusion import Denoiser
from limbeck.engine import Batch, Claim, Drawn, Paper, Prior, Recipe, Source, Stage, Trial
from limbeck.objectives import DMD, Backtrack, Critic, CriticOf, Denoising, Fake
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import transport
from limbeck.recipes.parts import TIMES, conditions, generator, need_network
from limbeck.rng import Rng, seeded
from limbeck.students import OneStep

PATH = ("path1", "path2", "path3", "path4")
LOOKS, STARTS = 5, 3


def untrained(problem: Generative, prior: Prior) -> OneStep:
    """The generator before it has learned anything."""
    network = problem.network()
    layers = [layer for layer in network.modules() if hasattr(layer, "reset_parameters")]
    for layer in layers:
        # `layers` has those that can
        layer.reset_parameters()  # type: ignore[operator]
    for parameter in layers[-1].parameters():
        nn.init.zeros_(parameter)
    return OneStep(network, shape=problem.shape, ratio=problem.ratio)


def first_samples(problem: Generative, prior: Prior) -> Source:
    """What every untrained generator draws."""
    with seeded("first samples"):
        student = untrained(problem, prior).requires_grad_(False)

    def make(n: int, rng: Rng) -> Batch:
        draw = student.draw(n, problem.conditions(n, rng), rng)
        return {"x": draw.x} if draw.cond is None else {"x": draw.x, "cond": draw.cond}

    return Drawn(make, fields=("x",) if problem.spread(1) is None else ("x", "cond"))


def degraded(name: str, before: str | None, steps: int) -> Stage:
    """A checkpoint of the path, from the one before it or the teacher."""

    def start(problem: Generative, prior: Prior) -> Denoiser:
        if before is None:
            return problem.network()
        checkpoint = prior.student(before)
        assert isinstance(checkpoint, Denoiser)
        return checkpoint.clone(trainable=True)

    recording = Denoising(times=TIMES)
    return generator(name, recording, steps=steps, lr=1e-3, student=start, data=first_samples, ema=None)


def teachers(problem: Generative, prior: Prior) -> dict[str, nn.Module]:
    """The teacher, and the path."""
    return {"teacher": problem.teacher} | {name: prior.student(name) for name in PATH}


def direct(stage: Stage) -> Stage:
    """The same without a path: its target is the teacher, and so is where its critic starts."""
    plain = DMD(fake=Fake(critic=Critic(times=TIMES)), times=TIMES, critic_steps=1, shape=())
    return replace(stage, objective=plain)


def on_the_way(stage: Stage, trial: Trial) -> float:
    """Mean sliced Wasserstein distance of generators of a few starts, at a few looks while they learn."""
    every, found = max(stage.steps // LOOKS, 1), list[float]()
    for k in range(STARTS):
        run = stage.start(trial.problem, trial.prior, STARTS * trial.seed + k)
        found += [transport(run.student, trial.problem, trial.seed) for step in run if step.i % every == 0]
    return sum(found) / len(found)


def sooner(trial: Trial) -> float:
    """`on_the_way` along the path, over that of as many ticks straight to the teacher."""
    last = trial.recipe.stages[-1]
    assert isinstance(last, Stage)
    return on_the_way(last, trial) / on_the_way(direct(last), trial)


def recipe(problem: Generative, steps: int = 120, recorded: int = 8) -> Recipe:
    need_network(problem, "disback")
    path = [degraded(name, before, recorded) for name, before in zip(PATH, (None, *PATH), strict=False)]
    walk = Backtrack(path=(*reversed(PATH[:-1]), "teacher"), until=0.3)
    fake = Fake(critic=CriticOf(times=TIMES, who=PATH[-1]))
    dmd = DMD(real=walk, fake=fake, times=TIMES, critic_steps=1, shape=())
    settings = {"student": untrained, "teacher": teachers, "data": conditions, "ema": None}
    return Recipe(
        stages=(*path, generator("disback", dmd, steps=steps, **settings)),
        paper=Paper("2408.15991", "Zhang et al. 2024"),
        claim=Claim(
            text="from an untrained network: mean sliced Wasserstein distance of three starts at five looks on the "
            "way ≤ 0.7 × that of as many ticks without a path, 4 × 8 ticks of recording not counted",
            check=sooner,
            bound=0.7,
            on="mixture2d-network",
        ),
    )
