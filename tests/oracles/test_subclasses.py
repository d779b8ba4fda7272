"""Classes split by a teacher's features: what sums to what, what the split cannot see, and principal directions."""

import copy

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn

from limbeck import KD, Adam, Dataset, distill
from limbeck.errors import BadSetting, Incompatible
from limbeck.rng import Rng
from limbeck.teachers import Subclasses, class_directions, marginal
from tests.oracles.exact import F64, close, seeds


def network(seed: int, classes: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, classes)).double()


def points(seed: int, n: int = 200) -> Tensor:
    return Rng(("subclasses", seed)).normal(n, 4, dtype=F64)


@seeds
@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_subclasses_sum_to_the_teachers_own_probabilities(seed: int, temperature: float) -> None:
    net, x = network(seed), points(seed)
    out = Subclasses(net, "2", x, each=4, temperature=temperature)(x)
    close(marginal(out, 3), net(x).log_softmax(1))
    close(out.exp().sum(1), torch.ones(len(x), dtype=F64))


def test_as_the_temperature_grows_subclasses_become_equal() -> None:
    net, x = network(0), points(0)
    out = Subclasses(net, "2", x, each=4, temperature=1e9)(x).unflatten(1, (3, 4))
    close(out, (net(x).log_softmax(1)[..., None] - np.log(4)).expand_as(out), 1e-8)


@seeds
def test_directions_are_principal_components_that_the_logits_cannot_see(seed: int) -> None:
    net, x = network(seed), points(seed, 400)
    h, y, head = net[:2](x), net(x).argmax(1), net[2].weight.detach()
    means, directions = class_directions(h.detach(), y, head, each=3)
    basis = torch.linalg.svd(head).Vh[3:]  # of the null space
    for k in range(3):
        own = h[y == k].detach()
        close(means[k], own.mean(0))
        close(head @ directions[k], torch.zeros(3, 3, dtype=F64), 1e-9)
        u = (own - means[k]) @ directions[k]
        close(u.mean(0), torch.zeros(3, dtype=F64), 1e-9)
        close(u.mT @ u / len(own), torch.eye(3, dtype=F64), 1e-9)
        found = PCA(3).fit((own @ basis.mT).numpy())
        theirs = torch.from_numpy(found.components_) @ basis
        mine = directions[k].mT / directions[k].norm(dim=0)[:, None]
        close((mine @ theirs.mT).abs(), torch.eye(3, dtype=F64), 1e-7)


def test_hidden_kinds_are_told_apart() -> None:
    """Two classes of two clouds each, which logits do not tell apart: the first direction is where they lie."""
    rng = Rng(("clouds",))
    kind = torch.arange(400) % 4
    h = 0.1 * rng.normal(400, 6, dtype=F64)
    h[:, 0] += (kind >= 2) * 8.0 - 4.0
    h[:, 1] += (kind % 2) * 2.0
    head = torch.zeros(2, 6, dtype=F64)
    head[0, 0], head[1, 0] = -1.0, 1.0
    _, directions = class_directions(h, (kind >= 2).long(), head, each=2)
    assert (directions[:, 1, 0].abs() / directions[:, :, 0].norm(dim=1) > 0.999).all()


def test_a_student_of_subclasses_learns_the_classes() -> None:
    net, x = network(0), points(0)
    torch.manual_seed(1)
    student = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 12)).double()
    teacher = Subclasses(net, "2", x, each=4)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    distill(
        teacher, student, KD(temperature=1.0, alpha=1.0), Dataset(x=x), steps=300, batch=64, optim=Adam(lr=0.02)
    ).finish()
    assert (marginal(student(x), 3).argmax(1) == net(x).argmax(1)).double().mean() > 0.85
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_copy_has_taps_of_its_own() -> None:
    net, x = network(0), points(0)
    teacher = Subclasses(net, "2", x, each=4)
    assert torch.equal(copy.deepcopy(teacher)(x), teacher(x)) and not net[2]._forward_pre_hooks


def test_mistakes() -> None:
    net, x = network(0), points(0)
    with pytest.raises(BadSetting, match="temperature must be above 0"):
        Subclasses(net, "2", x, temperature=0)
    with pytest.raises(BadSetting, match="each must be at least 1"):
        Subclasses(net, "2", x, each=0)
    with pytest.raises(BadSetting, match=r"class \d has room for \d+ directions, got each=14\."):
        Subclasses(net, "2", x, each=14)
    with pytest.raises(Incompatible, match="Subclasses needs a head that is a Linear, got a Tanh"):
        Subclasses(net, "1", x)
    with pytest.raises(Incompatible, match="tap needs a submodule 'head', got a Sequential without it"):
        Subclasses(net, "head", x)
