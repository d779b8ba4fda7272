"""Two teachers' features, side by side, tell one small student which places of two images correspond. arXiv 2412.03512.

Pairs are two views of one digit, moved by affine maps. A vision transformer knows more of where a place is, the judge's
convolutions more of what is there; neither was trained for matches. For every place of the one view, the student's
softmax over all places of the other follows that of the mean of the teachers' cosines, on pairs without known matches.

On held-out digits the best match is more than a pixel off at 56 and 51 % of inked places by the teachers alone, at 42 %
by both together, at 39 % by the student of both and at 51 % by that of either. Five pairs whose matches are known leave
47 %, if training stops early, for they are soon learned by heart; twenty do as well as the teachers, and were all
matches known, as these maps could tell, it would be 16 %.

The paper's teachers are DINOv2 and a diffusion model; none of our diffusion teachers has features at places, both are
classifiers here. There the student is a pretrained network with adapters, and pairs rendered from 3D data train it on.
"""

import torch
from torch import nn

from limbeck.engine import Claim, Paper, Prior, Recipe, Source
from limbeck.objectives import Correspondence, Matches, similarity
from limbeck.problems.digits import load_judge
from limbeck.problems.digits_matches import DigitsMatches
from limbeck.recipes.claims import beats, by
from limbeck.recipes.parts import learner

TAPS = {"teacher": "blocks.0", "second": "convs.1"}


def teachers(problem: DigitsMatches, prior: Prior) -> dict[str, nn.Module]:
    """The transformer, and the convolutions."""
    return {"teacher": problem.teacher, "second": load_judge()}


def images(problem: DigitsMatches, prior: Prior) -> Source:
    """Pairs of all images, without matches."""
    return problem.unlabelled


def known(problem: DigitsMatches, prior: Prior) -> Source:
    """The few pairs with matches."""
    return problem.source


@torch.no_grad()
def missed(student: nn.Module, problem: DigitsMatches, seed: int) -> float:
    """Share of held-out places whose most similar place is more than a pixel off."""
    one, other = (student(problem.heldout[view]) for view in ("x", "pair"))
    return problem.missed(similarity(one, other).argmax(-1))


def recipe(problem: DigitsMatches, steps: int = 300) -> Recipe:
    alone = (by(Correspondence(teachers={who: tap}, tap="convs")) for who, tap in TAPS.items())
    labels = by(Matches(tap="convs"), data=known)
    objective = Correspondence(teachers=TAPS, tap="convs")
    return Recipe(
        stages=(learner("student", objective, steps=steps, teacher=teachers, data=images, batch=32),),
        paper=Paper("2412.03512", "Fundel et al. 2024"),
        claim=Claim(
            text="mean share of held-out places whose match is more than a pixel off ≤ 0.9 × the least of those by "
            "either teacher alone, and by the five pairs whose matches are known, stopped early or not",
            check=beats(*alone, labels, by(Matches(tap="convs"), data=known, steps=steps // 6), figure=missed),
            bound=0.9,
            on="digits-matches",
            seeds=5,
            mean=True,
        ),
    )
