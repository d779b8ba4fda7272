"""How a distillation runs: roles, terms, ticks, and the one loop."""

from limbeck.engine.data import Batch, Dataset, Drawn, Mixed, Mixup, Source
from limbeck.engine.host import from_host, to_host
from limbeck.engine.labels import (
    Augmentation,
    Labels,
    Replayed,
    Said,
    TopK,
    fingerprint,
    reinforce_data,
    top_k,
    write_labels,
)
from limbeck.engine.loop import Run, Step, distill
from limbeck.engine.memory import Memory, checkpointed
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
    "Augmentation",
    "Batch",
    "Cast",
    "Claim",
    "Cosine",
    "Dataset",
    "Draw",
    "Drawn",
    "Grows",
    "Labels",
    "Linear",
    "Loss",
    "Make",
    "Memory",
    "Mixed",
    "Mixup",
    "Noised",
    "Objective",
    "Optim",
    "Paper",
    "Prior",
    "RAdam",
    "Recipe",
    "Replayed",
    "Role",
    "Rows",
    "Run",
    "Said",
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
    "TopK",
    "Trial",
    "checkpointed",
    "distill",
    "find",
    "fingerprint",
    "from_host",
    "override",
    "plain",
    "reinforce_data",
    "run_recipe",
    "settings",
    "tap",
    "to_host",
    "top_k",
    "write_labels",
]
