"""MaTVLM: layers of a transformer become linear recurrences that start from its own attention. arXiv 2503.13440.

Two of a vision transformer's three layers are replaced; queries, keys and values become what is read from the state,
written to it, and put in. Only the recurrences learn: by labels and the teacher's logits, and by the distance of each
replaced layer's output to what the teacher's had. The paper replaces a quarter of a vision-language model's layers; the
problem here has images alone, and tokens go through the recurrence in both directions.

What helps here are the layers' outputs. Where recurrences start did not show: from fresh weights (``copied=False``) the
error is 0.6 to 1.9 × that from the attention's, after 100 to 150 ticks, for without a softmax both start far off.
"""

import copy
from collections.abc import Callable

from torch import nn

from limbeck.engine import Claim, Paper, Prior, Recipe
from limbeck.errors import Incompatible
from limbeck.objectives import KD, CrossEntropy, FitNets, Same
from limbeck.problems.networks import ViT
from limbeck.problems.problem import Classification
from limbeck.recipes.claims import beats, by
from limbeck.recipes.parts import learner
from limbeck.students import Recurrent

LAYERS = (0, 2)


def hybrid(*, copied: bool = True) -> Callable[[Classification, Prior], nn.Module]:
    """The teacher with recurrences in some layers, of which only what replaces attention learns."""

    def make(problem: Classification, prior: Prior) -> ViT:
        if not isinstance(problem.teacher, ViT):
            got = f"{problem.name}, a {type(problem.teacher).__name__}"
            raise Incompatible("matvlm", need="a problem whose teacher is a ViT", got=got, fit="digits-vit")
        net = copy.deepcopy(problem.teacher)
        for k in LAYERS:
            old = net.blocks[k]
            assert isinstance(old, nn.TransformerEncoderLayer)
            net.blocks[k] = made = Recurrent(old, copied=copied)
            for part in (made.norm, made.inputs, made.gates, made.out):
                part.requires_grad_(True)
        return net

    return make


def recipe(problem: Classification, steps: int = 150) -> Recipe:
    pairs = {f"blocks.{k}": f"blocks.{k}" for k in LAYERS}
    objective = KD() + FitNets(pairs=pairs, projector=Same())
    return Recipe(
        stages=(learner("matvlm", objective, steps=steps, student=hybrid(), batch=64, lr=2e-3),),
        paper=Paper("2503.13440", "Li et al. 2025"),
        claim=Claim(
            text="mean held-out error ≤ 0.4 × the lesser of those of the same hybrid by labels alone, and by plain KD",
            check=beats(by(CrossEntropy()), by(KD())),
            bound=0.4,
            on="digits-vit",
            seeds=5,
            mean=True,
        ),
    )
