"""Votes of a network's own past."""

import pytest
import torch
from torch import Tensor, nn

from limbeck import SGD, CrossEntropy, Dataset, Rng, distill
from limbeck.errors import BadSetting, Incompatible
from limbeck.recipes.k_self._past import PastVotes
from tests.oracles.exact import F64, close


def student() -> nn.Linear:
    net = nn.Linear(4, 3, dtype=F64)
    with torch.no_grad():
        net.weight.copy_(Rng(("past", "w")).normal(3, 4, dtype=F64))
        net.bias.zero_()
    return net


DATA = Dataset(x=Rng(("past", "x")).normal(8, 4, dtype=F64), y=torch.arange(8) % 3)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_votes_are_the_mean_of_the_last_snapshots(temperature: float) -> None:
    """Two voters, one snapshot in two ticks: a history kept by hand says who they are."""
    votes = PastVotes(voters=2, every=2, temperature=temperature)
    run = distill(None, student(), CrossEntropy() + votes, DATA, steps=9, batch=8, optim=SGD(lr=0.5), seed=1)
    history: list[nn.Module] = []
    for i in range(9):
        if i and i % 2 == 0:
            snapshot = student()
            snapshot.load_state_dict(run.student.state_dict())
            history = [*history, snapshot][-2:]
        x = run.source.take(8, Rng((1, i, "data")))["x"]
        s = (run.student(x) / temperature).log_softmax(1)
        expected: Tensor = torch.zeros((), dtype=F64)
        if history:
            p = torch.stack([(net(x) / temperature).softmax(1) for net in history]).mean(0)
            expected = temperature**2 * (p * (p.log() - s)).sum(1).mean()
        close(torch.tensor(run.tick().losses["pastvotes"], dtype=F64), expected.detach())


def test_before_a_snapshot_votes_change_nothing() -> None:
    moved = []
    for objective in (CrossEntropy(), CrossEntropy() + PastVotes(every=5)):
        run = distill(None, student(), objective, DATA, steps=5, batch=8, optim=SGD(lr=0.5))
        moved.append(run.finish().state_dict()["weight"])
    assert torch.equal(*moved)


def test_what_votes_refuse() -> None:
    with pytest.raises(BadSetting, match="voters must be at least 1, got 0"):
        PastVotes(voters=0)
    with pytest.raises(BadSetting, match="every must be at least 1, got 0"):
        PastVotes(every=0)
    with pytest.raises(Incompatible, match="data with x"):
        distill(None, student(), PastVotes(), None, steps=1, batch=8)
