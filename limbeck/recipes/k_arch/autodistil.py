"""AutoDistil: transformers of many sizes learn a large one's relations with shared weights; the best is taken out.

arXiv 2201.12507. Two spaces of sizes, each one `ElasticViT`: a pass is a size drawn at random, whose last block learns
how the teacher's queries, keys and values relate, without labels. The search asks every size of each space for its loss
on images kept aside, and takes the least within a budget of parameters. What it takes out is fine-tuned on few labels.

Sharing is worth its ticks, and that is what is claimed: a size within its space beats the same alone for its share. It
is not yet as good as one that has all ticks to itself, 0.29 against 0.24 at width 16, where the paper sees little lost.
There are three spaces in the paper; attention has no masks here, and texts are images.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from limbeck.engine import Claim, Drawn, Make, Paper, Prior, Recipe, Source, Stage, Trial
from limbeck.engine.taps import tap
from limbeck.objectives import CrossEntropy, Relations, relation, relation_kl
from limbeck.problems.digits import jitter
from limbeck.problems.digits_classify import DigitsClassify
from limbeck.problems.elastic import PARTS, ElasticViT, Size
from limbeck.recipes.parts import learner

SPACES: dict[str, tuple[Size, ...]] = {"tiny": ((16, 1), (16, 2)), "small": ((24, 1), (24, 2), (32, 1))}
BUDGET, HEADS, ASIDE = 12_000, 4, 200
PAIRS = {f"last.{part}": f"blocks.2.self_attn.{part}" for part in PARTS}


def unlabelled(problem: DigitsClassify, prior: Prior) -> Source:
    """Fresh views of all images but those that the search is judged on, without labels."""
    x = problem.unlabelled[ASIDE:]
    return Drawn(lambda n, rng: {"x": jitter(x[rng.integers(n, len(x))], rng)}, fields=("x",))


def holding(*sizes: Size) -> Callable[[DigitsClassify, Prior], ElasticViT]:
    """A network that holds these sizes."""
    return lambda problem, prior: ElasticViT(side=8, classes=problem.classes, sizes=sizes)


def space(name: str, *sizes: Size, steps: int) -> Stage:
    """A stage that trains all of these sizes at once."""
    relations = Relations(pairs=PAIRS, heads=HEADS)
    return learner(name, relations, steps=steps, lr=4e-3, batch=64, student=holding(*sizes), data=unlabelled)


@torch.no_grad()
def relation_loss(net: nn.Module, size: Size, problem: DigitsClassify, x: Tensor) -> float:
    """Mean `relation_kl` of the queries, keys and values that a size has at images x."""
    assert isinstance(net, ElasticViT)
    net.eval().size = size
    with tap(net, *PAIRS) as seen, tap(problem.teacher, *PAIRS.values()) as known:
        net(x)
        problem.teacher(x)
    pairs = ((relation(z, z, heads=HEADS) for z in (seen[a], known[b])) for a, b in PAIRS.items())
    return sum(relation_kl(*pair).mean().item() for pair in pairs) / len(PAIRS)


def least(problem: DigitsClassify, prior: Prior) -> tuple[str, Size]:
    """The space and size of the least loss on the images kept aside, of those within the budget."""
    losses = {
        (name, size): relation_loss(prior.student(name), size, problem, problem.unlabelled[:ASIDE])
        for name, sizes in SPACES.items()
        for size in sizes
        if sum(p.numel() for p in holding(size)(problem, prior).parameters()) <= BUDGET
    }
    return min(losses, key=lambda found: losses[found])


def search(problem: DigitsClassify, prior: Prior, folder: Path, seed: int) -> None:
    """Writes down what has the `least` loss."""
    (folder / "found.json").write_text(json.dumps(least(problem, prior)))


def best(problem: DigitsClassify, prior: Prior) -> nn.Module:
    """What the search found, taken out."""
    name, (width, blocks) = json.loads((prior.folder("search") / "found.json").read_text())
    net = prior.student(name)
    assert isinstance(net, ElasticViT)
    return net.extract((width, blocks))


def shared(trial: Trial) -> float:
    """The held-out loss of the chosen size within its space, over that of one trained alone in its share of ticks."""
    name, size = least(trial.problem, trial.prior)
    stage = next(stage for stage in trial.recipe.stages if stage.name == name)
    assert isinstance(stage, Stage)
    alone = space(f"{name} alone", size, steps=stage.steps // len(SPACES[name]))
    other = alone.start(trial.problem, trial.prior, trial.seed).finish()
    ours, theirs = (
        relation_loss(net, size, trial.problem, trial.problem.heldout[0]) for net in (trial.prior.student(name), other)
    )
    return ours / theirs


def recipe(problem: DigitsClassify, steps: int = 300, tuned: int = 100) -> Recipe:
    return Recipe(
        stages=(
            *(space(name, *sizes, steps=steps) for name, sizes in SPACES.items()),
            Make(name="search", make=search),
            learner("tuned", CrossEntropy(), steps=tuned, lr=4e-3, batch=64, student=best),
        ),
        paper=Paper("2201.12507", "Xu et al. 2022"),
        claim=Claim(
            text="the size that was found, as taken out: mean held-out loss of relations ≤ 0.98 × that of the same "
            "size trained alone for its share of the ticks",
            check=shared,
            bound=0.98,
            on="digits-vit",
            seeds=5,
            mean=True,
        ),
    )
