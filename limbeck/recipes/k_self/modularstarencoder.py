"""ModularStarEncoder: all exits of one encoder learn one contrast, so that it can be cut early. arXiv 2503.03008.

The encoder reads the left and the right half of a digit, in the place of text and code, and is to find which belong
together. After two of six blocks it misses less than a linear readout there of an encoder that was trained at its end
alone, and at the end it is about as good. The first exit counts most here, for it is the one that is claimed; where
later ones do, the readout is as good. A short encoder that is trained by itself is not beaten: what is won is one for
all lengths. The paper's loss over whole repositories is left out.
"""

from math import inf

import torch
from torch import Tensor, nn

from limbeck.engine import Adam, Claim, Cosine, Paper, Recipe, Stage, Trial, distill
from limbeck.engine.taps import tap
from limbeck.objectives import ExitContrast, cosines
from limbeck.problems.digits_halves import DigitsHalves, halves
from limbeck.recipes.claims import by, rerun
from limbeck.recipes.parts import learner
from limbeck.rng import seeded

EXITS = ("blocks.1", "blocks.3", "blocks.5")


@torch.no_grad()
def missed(encoder: nn.Module, name: str, x: Tensor, *, among: int = 10) -> float:
    """Share of left halves of images whose right half is not one of the nearest few, by features of this name."""
    found = list[Tensor]()
    for half in halves(x):
        with tap(encoder, name) as seen:
            encoder(half)
        found.append(seen[name])
    near = cosines(*found)
    return ((near > near.diagonal()[:, None]).sum(1) >= among).double().mean().item()


def read_out(encoder: nn.Module, trial: Trial, name: str) -> nn.Module:
    """A linear map of frozen features of this name, trained by the same contrast in as many ticks."""
    last = trial.recipe.stages[-1]
    assert isinstance(last, Stage)
    upto = int(name.removeprefix("blocks.")) + 1
    # blocks are a Sequential, which has slices
    frozen = nn.Sequential(nn.Flatten(), encoder.get_submodule("stem"), encoder.get_submodule("blocks")[:upto])  # type: ignore[index]
    with seeded(trial.seed, "read out"):
        student = nn.Sequential(frozen.requires_grad_(False), nn.Linear(64, 64))
    adam = Adam(lr=5e-3, schedule=Cosine())
    run = distill(
        None,
        student,
        ExitContrast(taps=("1",)),
        trial.problem.source,
        steps=last.steps,
        batch=last.batch,
        optim=adam,
        seed=trial.seed,
    )
    return run.finish()


def early(trial: Trial) -> float:
    """`missed` at the first exit over that of a `read_out` there of the end's own encoder; infinite if the end lost."""
    x, end = trial.problem.heldout[0], rerun(trial, by(ExitContrast(taps=EXITS[-1:])))
    if missed(trial.student, EXITS[-1], x) > 1.15 * missed(end, EXITS[-1], x):
        return inf
    return missed(trial.student, EXITS[0], x) / missed(read_out(end, trial, EXITS[0]), "1", x)


def recipe(problem: DigitsHalves, steps: int = 500) -> Recipe:
    objective = ExitContrast(taps=EXITS, weights=(1.5, 1.0, 1.0))
    return Recipe(
        stages=(learner("exits", objective, steps=steps, lr=3e-3),),
        paper=Paper("2503.03008", "Gurioli et al. 2025"),
        claim=Claim(
            text="mean share of halves missed after 2 of 6 blocks ≤ 0.985 × that of a linear readout there, trained "
            "in as many ticks again, of an encoder that learned at its end alone; at the end ≤ 1.15 ×",
            check=early,
            bound=0.985,
            on="digits-halves",
            seeds=5,
            mean=True,
        ),
    )
