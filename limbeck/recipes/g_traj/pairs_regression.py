"""Pairs, then regression: one step learns the noise-to-sample map of the teacher's ODE. arXiv 2101.02388."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from limbeck.engine import EMA, Adam, Claim, Cosine, Dataset, Make, Paper, Prior, Recipe, Source, Stage
from limbeck.objectives import Regression
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import frechet_at_steps
from limbeck.rng import Rng
from limbeck.students import FromTeacher
from limbeck.teachers import read_tensors
from limbeck.tree import rows

PAIRS = 10_000


def make_pairs(problem: Generative, prior: Prior, folder: Path, seed: int) -> None:
    """Noise, condition and the teacher's sample, in rows that belong together."""
    rng = Rng((seed, "pairs"))
    noise, cond = rng.normal(PAIRS, *problem.shape), problem.conditions(PAIRS, rng)
    parts = [slice(i, i + 1000) for i in range(0, PAIRS, 1000)]
    x = torch.cat([problem.teacher_sample(noise[part], rows(cond, part)) for part in parts])
    save_file({"noise": noise, "x": x} | ({} if cond is None else {"cond": cond}), folder / "pairs.safetensors")


def read_pairs(problem: Generative, prior: Prior) -> Source:
    return Dataset(**read_tensors(prior.folder("pairs") / "pairs.safetensors"))


def recipe(problem: Generative, steps: int = 2_000) -> Recipe:
    return Recipe(
        stages=(
            Make(name="pairs", make=make_pairs),
            Stage(
                name="regression",
                steps=steps,
                student=FromTeacher(ratios=(80.0,)),
                objective=Regression(),
                data=read_pairs,
                optim={"default": Adam(lr=1e-3, betas=(0.9, 0.99), schedule=Cosine())},
                ema=EMA(decay=0.995),
            ),
        ),
        paper=Paper("2101.02388", "Luhman & Luhman 2021"),
        claim=Claim(
            text="one step ≤ 0.6 × the Fréchet distance of the teacher in 10 DDIM steps from σ = 10",
            check=frechet_at_steps(10),
            bound=0.6,
            on="digits",
        ),
    )
