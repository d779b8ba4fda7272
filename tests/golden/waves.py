"""Inputs of `networks.toml` made again, and runs of one tick on logits that are parameters."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import limbeck.objectives.networks as networks
from limbeck import SGD, Drawn, Objective, distill

F64 = torch.float64
GOLDEN: Mapping[str, Any] = tomllib.loads(Path(__file__).with_name("networks.toml").read_text(encoding="utf-8"))
INPUTS = GOLDEN["inputs"]
B, C = INPUTS["batch"], INPUTS["classes"]
Y = torch.tensor(INPUTS["labels"])


def exporting(*names: str) -> ModuleType:
    """The objectives between networks, which must export these."""
    assert set(names) <= set(networks.__all__), f"no {', '.join(set(names) - set(networks.__all__))} is exported"
    return networks


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=F64)


def wave(name: str, *shape: int) -> Tensor:
    """A wave of the file's formula, [batch, classes] unless a shape is given."""
    shape = shape or (B, C)
    w, k = INPUTS["waves"][name], torch.arange(math.prod(shape), dtype=F64)
    return (w["amplitude"] * torch.sin(w["frequency"] * k + w["phase"])).reshape(shape)


def same(actual: Any, expected: Any, tolerance: float = 1e-10) -> None:
    """Equal numbers in the same order, up to rounding; shapes do not count."""
    one, other = (torch.as_tensor(x, dtype=F64).detach().flatten() for x in (actual, expected))
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def gradient(value: Tensor, by: Tensor) -> Tensor:
    return torch.autograd.grad(value, by, retain_graph=True)[0]


class Rows(nn.Module):
    """What a network says of each example is a parameter: x counts the examples."""

    def __init__(self, rows: Tensor):
        super().__init__()
        self.rows = nn.Parameter(rows.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.rows[x.long()]


class Staged(nn.Module):
    """A network whose stages, too, are parameters."""

    def __init__(self, rows: Tensor, *stages: Tensor):
        super().__init__()
        self.stages, self.head = nn.ModuleList(Rows(stage) for stage in stages), Rows(rows)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            stage(x)
        return self.head(x)


@dataclass(frozen=True)
class Ticked:
    """One tick: losses by name, and the gradients that the student's parameters descended."""

    losses: Mapping[str, float]
    by: Sequence[Tensor]


def ticked(objective: Objective, student: nn.Module | Tensor, teacher: nn.Module | Tensor) -> Ticked:
    """A run of one tick on the examples of the file, each once and in order."""
    nets = [net if isinstance(net, nn.Module) else Rows(net) for net in (teacher, student)]
    data = Drawn(lambda n, rng: {"x": torch.arange(n, dtype=F64), "y": Y[:n]}, fields=("x", "y"))
    run = distill(*nets, objective, data, steps=1, batch=B, optim=SGD(lr=1.0))
    before = [p.detach().clone() for p in nets[1].parameters()]
    step = run.tick()
    assert not step.skipped
    return Ticked(step.losses, [was - p.detach() for was, p in zip(before, nets[1].parameters(), strict=True)])
