"""Tables of numbers to classify with few labels: an ensemble of perceptrons teaches a smaller one."""

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine import Adam, Cosine, Drawn, distill
from limbeck.engine.data import Batch, Source
from limbeck.objectives import CrossEntropy
from limbeck.problems.digits import ASSETS
from limbeck.problems.networks import MLP
from limbeck.problems.problem import Classification
from limbeck.rng import Rng, seeded
from limbeck.teachers import read_tensors

MEMBERS = 5


class Ensemble(nn.Module):
    """Several classifiers as one: ln of the mean of their probabilities.

    Args:
        members: (inputs) → logits [B, C] each.

    >>> Ensemble(nn.Linear(4, 3), nn.Linear(4, 3))(torch.zeros(2, 4)).logsumexp(-1).abs().max().item() < 1e-6
    True
    """

    def __init__(self, *members: nn.Module):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities [B, C]."""
        every = torch.stack([member(x).log_softmax(-1) for member in self.members])
        return every.logsumexp(0) - math.log(len(every))


def noised(x: Tensor, y: Tensor, std: float = 0.3) -> Source:
    """Labelled rows with fresh noise: fields x [n, F] + std·ε and y [n]."""

    def make(n: int, rng: Rng) -> Batch:
        index = rng.integers(n, len(x))
        return {"x": x[index] + std * rng.normal(n, x.shape[1], dtype=x.dtype), "y": y[index]}

    return Drawn(make, fields=("x", "y"))


class Tabular(Classification):
    """A table of scikit-learn's, halved by class: an ensemble that saw one half teaches a perceptron on a few of it.

    Columns have mean 0 and variance 1 in the teacher's half; the other half is held out. Teacher and student see rows
    with noise. ``rows`` says which of the teacher's half have labels for the student, ``unlabelled`` is all of it.

    Attributes:
        per_class: how many rows of each class the student has.
    """

    threads = 1
    per_class: int

    def __init__(self) -> None:
        x, y = (torch.as_tensor(part) for part in self.load()(return_X_y=True))
        self.classes = int(y.max()) + 1
        order = Rng((self.name, "split")).uniform(len(y)).argsort()
        members = [order[y[order] == k] for k in range(self.classes)]
        one, two = (torch.cat(part) for part in zip(*(m.tensor_split(2) for m in members), strict=True))
        x = ((x - x[one].mean(0)) / x[one].std(0)).float()
        self.full, self.heldout = (x[one], y[one]), (x[two], y[two])
        self.rows = torch.cat([(self.full[1] == k).nonzero()[: self.per_class, 0] for k in range(self.classes)])
        self.unlabelled, self.train = self.full[0], (self.full[0][self.rows], self.full[1][self.rows])

    @staticmethod
    @abstractmethod
    def load() -> Callable[..., Any]:
        """scikit-learn's function that loads the table."""

    @cached_property
    def source(self) -> Source:
        return noised(*self.train)

    @cached_property
    def teacher(self) -> nn.Module:
        teacher = self.blank()
        teacher.load_state_dict(read_tensors(self.asset()))
        return teacher.requires_grad_(False).eval()

    def blank(self) -> Ensemble:
        """The teacher before training."""
        return Ensemble(*(self.perceptron(32) for _ in range(MEMBERS)))

    def network(self) -> nn.Module:
        return self.perceptron(16)

    def perceptron(self, width: int) -> MLP:
        """A perceptron of one hidden layer."""
        return MLP(size=self.unlabelled.shape[1], classes=self.classes, widths=(width,))

    @classmethod
    def asset(cls) -> Path:
        """The file of the teacher's weights."""
        return ASSETS / f"{cls.name.replace('-', '_')}.safetensors"

    def ship(self) -> None:
        """Trains the teacher again and writes it."""
        from safetensors.torch import save_file

        torch.set_num_threads(1)
        with seeded(self.name):
            teacher = self.blank()
        optim = Adam(lr=5e-3, weight_decay=0.05, schedule=Cosine())
        for k, net in enumerate(teacher.members):
            distill(None, net, CrossEntropy(), noised(*self.full), steps=300, batch=64, optim=optim, seed=k).finish()
        save_file(teacher.state_dict(), self.asset())
        print(f"{self.name} trained: {self.accuracy(teacher):.3f}")


__all__ = ["Ensemble", "Tabular", "noised"]
