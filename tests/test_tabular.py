"""Tables of numbers: no row of the held-out half is seen, and the teacher is worth listening to."""

from pathlib import Path

import pytest
import torch

from limbeck import Rng
from limbeck.cli import main
from limbeck.engine.run import run_recipe
from limbeck.loading import load_problem, load_recipe
from limbeck.objectives import CrossEntropy
from limbeck.problems.networks import MLP
from limbeck.problems.tabular import Ensemble, Tabular, noised
from limbeck.recipes.claims import by, error, rerun

NAMES = ("wine", "breast-cancer")


def table(name: str) -> Tabular:
    problem = load_problem(name)
    assert isinstance(problem, Tabular)
    return problem


@pytest.mark.parametrize("name", NAMES)
def test_halves(name: str) -> None:
    """They share no row, hold each class alike, and only the teacher's decides what a standard deviation is."""
    problem = table(name)
    (x, y), (other, labels) = problem.full, problem.heldout
    data = problem.load()(return_X_y=True)
    assert len(x) + len(other) == len(data[1]) and len(torch.cat([x, other]).unique(dim=0)) == len(data[1])
    assert (y.bincount() - labels.bincount()).abs().max() <= 1
    assert x.mean(0).abs().max() < 1e-5 and (x.std(0) - 1).abs().max() < 1e-5
    assert other.mean(0).abs().max() > 0.01
    assert torch.equal(problem.unlabelled[problem.rows], problem.train[0]) and torch.equal(
        y[problem.rows], problem.train[1]
    )
    assert problem.train[1].bincount().tolist() == [problem.per_class] * problem.classes


def test_noise() -> None:
    x, y = torch.tensor([[0.0, 10.0], [100.0, 0.0]]), torch.tensor([0, 1])
    batch = noised(x, y, 0.5).take(4000, Rng(0))
    left = batch["x"] - x[batch["y"]]
    assert left.mean(0).abs().max() < 0.05 and (left.std(0) - 0.5).abs().max() < 0.05
    assert not torch.equal(batch["x"], noised(x, y, 0.5).take(4000, Rng(1))["x"])


def test_ensemble_is_a_mean_of_probabilities() -> None:
    members = [MLP(size=4, classes=3, widths=(5,)) for _ in range(3)]
    x = torch.randn(6, 4)
    mean = sum(member(x).double().softmax(-1) for member in members) / 3
    assert torch.allclose(Ensemble(*members)(x).double().exp(), mean, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_teaching_helps(name: str) -> None:
    """The held-out error is below that by labels alone, and the teacher's below both, on one seed."""
    problem = table(name)
    trial = run_recipe(load_recipe("kd", problem, {"steps": 300}), problem, seed=0)
    alone = error(rerun(trial, by(CrossEntropy())), problem, 0)
    assert error(problem.teacher, problem, 0) <= error(trial.student, problem, 0) < 0.7 * alone


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "kd", "--on", "wine", "--steps", "20", "--out", str(tmp_path / "run")]) == 0
    assert "accuracy" in capsys.readouterr().out
