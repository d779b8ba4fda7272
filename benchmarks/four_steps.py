"""Four steps beside one: the same system on digits, with the same ticks, batch and optimisers, and another student.

Fréchet distances are those of the system's claim: over the teacher's at 35 passes, mean of two draws of noise. One step
at a time is `FewStep`, which trains a step that is drawn; the whole path is `WholePath`. Ticks are the same on all
sides and their price is not: a path's gradients go through four passes, which the seconds tell. They are this process's
own, for training alone.

DMD2, seeds 101 to 103: .68, .73 and .67 in one step, .56, .64 and .58 in four, in 1.7 × the seconds. One step with as
many seconds, 2 000 ticks of seed 0, comes to .65, and four to .65 there: the steps pay by the tick, not by the second.

    python benchmarks/four_steps.py [--system dmd2] [--seeds 101 102 103] [--sides one path]
"""

import argparse
import time
from dataclasses import replace

import torch

from limbeck.engine import Recipe, Stage
from limbeck.engine.run import run_recipe
from limbeck.evaluate.comparison import evaluate
from limbeck.loading import load_recipe
from limbeck.problems.digits import Digits
from limbeck.students import FromTeacher, WholePath

RATIOS = (1.0, 0.5, 0.25, 0.1)
SIDES = {
    "one": FromTeacher(),
    "few": FromTeacher(ratios=RATIOS),
    "path": FromTeacher(ratios=RATIOS, kind=WholePath),
}


def taught(recipe: Recipe, student: FromTeacher) -> Recipe:
    """The recipe with this student in its one stage."""
    (stage,) = recipe.stages
    assert isinstance(stage, Stage)
    return replace(recipe, stages=(replace(stage, student=student),))


def measured(recipe: Recipe, problem: Digits, seed: int) -> tuple[float, float, float, float]:
    """Fréchet distance and recall over the teacher's, accuracy, and seconds of training."""
    began = time.process_time()
    student = run_recipe(recipe, problem, seed=seed).student
    seconds = time.process_time() - began
    judged = [evaluate(student, problem, seed=2 * seed + k) for k in (0, 1)]
    total = {name: sum(got[name] for got in judged) for name in judged[0]}
    frechet, recall = (total[name] / total[f"{name}_teacher"] for name in ("frechet", "recall"))
    return frechet, recall, total["accuracy"] / len(judged), seconds


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", default="dmd2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["one", "path"])
    args = parser.parse_args()
    problem = Digits()
    torch.set_num_threads(problem.threads)
    recipe, found = load_recipe(args.system, problem), dict[str, list[float]]()
    print(f"{args.system}, four steps from σ/α = {', '.join(map(str, RATIOS))}")
    print(f"{'':6}{'seed':>6}{'Fréchet':>10}{'recall':>9}{'accuracy':>11}{'seconds':>9}")
    for seed in args.seeds:
        for side in args.sides:
            frechet, recall, accuracy, seconds = measured(taught(recipe, SIDES[side]), problem, seed)
            found.setdefault(side, []).append(frechet)
            print(f"{side:6}{seed:6}{frechet:10.3f}{recall:9.3f}{accuracy:11.4f}{seconds:9.0f}", flush=True)
    means = {side: sum(values) / len(values) for side, values in found.items()}
    print(*(f"mean {side} {mean:.3f}" for side, mean in means.items()), sep=", ")
    if means.keys() >= {"one", "path"}:
        pairs = ", ".join(f"{four / one:.3f}" for one, four in zip(found["one"], found["path"], strict=True))
        print(f"four steps over one, seed by seed: {pairs}; of the means: {means['path'] / means['one']:.3f} (≤ 1)")


if __name__ == "__main__":
    main()
