"""DMD2: distribution matching with a two-time-scale critic and a diffusion GAN. arXiv 2405.14867.

For small images and minutes instead of days: one pass starts at σ = 1 (80 in the paper), the critic takes 2 steps to
one of the student (5), and the GAN weighs 0.3 on both sides (3e-3 and 1e-2).
"""

from limbeck.diffusion import Karras, LogNormal
from limbeck.engine import EMA, Adam, Claim, Linear, Paper, Recipe, Stage
from limbeck.objectives import DMD, GAN, Critic
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import as_good_as_teacher
from limbeck.students import FromTeacher


def recipe(problem: Generative, steps: int = 1_200) -> Recipe:
    critic, seen = Critic(times=LogNormal(mean=-0.8, std=1.4)), Karras(lo=0.02, hi=0.98)
    adam = Adam(lr=5e-4, betas=(0.0, 0.99), schedule=Linear())
    gan = GAN(critic=critic, times=seen, critic_steps=2, feature_weight=0.3)
    return Recipe(
        stages=(
            Stage(
                name="dmd2",
                steps=steps,
                student=FromTeacher(ratios=(1.0,)),
                objective=DMD(critic=critic, times=seen, critic_steps=2) + 0.3 * gan,
                optim={"student": adam, "critic": adam, "discriminator": adam},
                ema=EMA(decay=0.99),
            ),
        ),
        paper=Paper("2405.14867", "Yin et al. 2024"),
        claim=Claim(
            text="one step: Fréchet ≤ 1.1 × the teacher's at 35 NFE, recall ≥ 0.9 ×, accuracy ≥ 99 %, ≥ 20 × faster",
            check=as_good_as_teacher,
            bound=1.1,
            on="digits",
        ),
    )
