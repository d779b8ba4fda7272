"""The example in CONTRIBUTING.md is real: it runs, learns, and passes its own doctest."""

import doctest
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from limbeck import Adam, Dataset, Incompatible, Particles, distill

PAGE = Path(__file__).parent.parent / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def example() -> dict[str, object]:
    space: dict[str, object] = {"__name__": "example"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), space)
    return space


def test_it_learns(example):
    torch.manual_seed(0)
    teacher, student, data = nn.Linear(4, 3), nn.Linear(4, 3), Dataset(x=torch.randn(64, 4))
    steps = [*distill(teacher, student, example["LogitRegression"](), data, steps=200, batch=16, optim=Adam(lr=0.02))]
    assert steps[-1].losses["logitregression"] < 0.1 * steps[0].losses["logitregression"]


def test_it_refuses_what_does_not_fit(example):
    with pytest.raises(Incompatible, match="LogitRegression needs a student that maps inputs to outputs"):
        distill(nn.Linear(4, 3), Particles(torch.zeros(4, 3)), example["LogitRegression"](), steps=1)


def test_its_doctest_passes(example):
    test = doctest.DocTestFinder().find(example["logit_regression"], "logit_regression", globs=example)
    results = [doctest.DocTestRunner().run(one) for one in test]
    assert sum(r.attempted for r in results) == 1 and sum(r.failed for r in results) == 0
