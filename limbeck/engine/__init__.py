"""How a distillation runs: roles, terms, ticks, and the one loop."""

from limbeck.engine.data import Batch, Dataset, Drawn, Mixed, Mixup, Source
from limbeck.engine.loop import Run, Step, distill
from limbeck.engine.objective import Loss, Objective, Scaled, Sum, Term
from limbeck.engine.optim import EMA, SGD, Adam, Optim, RAdam
from limbeck.engine.recipe import Claim, Make, Paper, Prior, Recipe, Stage, Trial
from limbeck.engine.roles import Cast, Role, Target
from limbeck.engine.run import Session, run_recipe
from limbeck.engine.schedule import Cosine, Linear, Schedule
from limbeck.engine.settings import override, plain, settings
from limbeck.engine.student import Draw, Grows, Rows, Student
from limbeck.engine.taps import Taps, find, tap
from limbeck.engine.tick import Noised, Tick

__all__ = [
    "EMA",
    "SGD",
    "Adam",
    "Batch",
    "Cast",
    "Claim",
    "Cosine",
    "Dataset",
    "Draw",
    "Drawn",
    "Grows",
    "Linear",
    "Loss",
    "Make",
    "Mixed",
    "Mixup",
    "Noised",
    "Objective",
    "Optim",
    "Paper",
    "Prior",
    "RAdam",
    "Recipe",
    "Role",
    "Rows",
    "Run",
    "Scaled",
    "Schedule",
    "Session",
    "Source",
    "Stage",
    "Step",
    "Student",
    "Sum",
    "Taps",
    "Target",
    "Term",
    "Tick",
    "Trial",
    "distill",
    "find",
    "override",
    "plain",
    "run_recipe",
    "settings",
    "tap",
]
