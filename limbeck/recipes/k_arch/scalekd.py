"""ScaleKD: a vision transformer teaches convolutions by its last features and by its own last block. arXiv 2411.06786.

Attention with learnable queries brings the student's last map to the teacher's tokens, where `DualView` compares both;
another brings its map before that to what goes into the teacher's last block, and what comes out is compared as well.
Queries are learned in both; in the paper those of the last are what came out of the teacher's block.

The student comes to show more of the teacher's features, and that is what is claimed. It does not classify better here:
18.1 % error against KD's 17.0 in 200 ticks, 12.3 against 12.6 in 300 of twice the batch, at two to four times the cost.
"""

from limbeck.engine import Claim, Paper, Recipe
from limbeck.objectives import KD, CrossEntropy, DualView, ThroughTeacher
from limbeck.problems.problem import Classification
from limbeck.recipes.claims import beats, by, fitted
from limbeck.recipes.parts import learner


def recipe(problem: Classification, steps: int = 200) -> Recipe:
    last, through = DualView(pairs={"blocks.2": "blocks.2"}), ThroughTeacher(pairs={"blocks.1": "blocks.2:in"})
    return Recipe(
        stages=(learner("scalekd", KD() + 2 * last + 2 * through, steps=steps, batch=64),),
        paper=Paper("2411.06786", "Fan et al. 2024"),
        claim=Claim(
            text="new projectors on the frozen student: mean held-out error of both comparisons ≤ 0.97 × the lesser of "
            "those on students that learned from labels alone and by KD",
            check=beats(by(CrossEntropy()), by(KD()), figure=fitted(last + through)),
            bound=0.97,
            on="digits-vit",
            seeds=5,
            mean=True,
        ),
    )
