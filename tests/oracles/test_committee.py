"""Teachers of other tasks: similarities against scipy, weights at both ends, and the mean that has KL's gradient."""

import pytest
import torch
from scipy.stats import rankdata, spearmanr
from torch import nn
from torch.nn import functional as F

from limbeck import soft_kl
from limbeck.errors import BadSetting
from limbeck.rng import Rng
from limbeck.teachers import Committee, task_similarity, task_weights
from limbeck.teachers.committee import ranks
from tests.oracles.exact import F64, close, gradient, seeds


@seeds
def test_ranks_are_scipys(seed: int) -> None:
    x = Rng(("ranks", seed)).integers(50, 12).double()
    close(ranks(x), torch.from_numpy(rankdata(x.numpy())) - 1)


@seeds
def test_similarity_is_spearmans_over_pairs(seed: int) -> None:
    """Of correlations of features and of one-hot labels, as both are defined."""
    rng = Rng(("parc", seed))
    h, y = rng.normal(30, 7, dtype=F64), rng.integers(30, 4)
    features, labels = [], []
    for i in range(30):
        for j in range(i):
            for found, rows in ((features, h), (labels, F.one_hot(y, 4).double())):
                a, b = rows[i] - rows[i].mean(), rows[j] - rows[j].mean()
                found.append(round((a @ b / (a.norm() * b.norm())).item(), 9))
    assert task_similarity(h, y) == pytest.approx(spearmanr(features, labels).statistic, abs=1e-9)


def test_features_that_know_the_labels_are_nearest() -> None:
    rng = Rng(("near",))
    y = rng.integers(200, 5)
    means = 3 * rng.normal(5, 8, dtype=F64)
    noise = [rng.normal(200, 8, dtype=F64) for _ in range(3)]
    similarities = [task_similarity(share * means[y] + noise[0], y) for share in (1.0, 0.3, 0.0)]
    assert similarities[0] > similarities[1] + 0.1 > similarities[2] + 0.2 and abs(similarities[2]) < 0.05


def test_weights_from_all_alike_to_the_nearest() -> None:
    rho = [0.4, 0.1, -0.2]
    assert task_weights(rho, power=1.0) == pytest.approx((0.8, 0.2, 0.0))
    assert task_weights([0.4, 0.1], power=0.0) == pytest.approx((0.5, 0.5))
    assert task_weights(rho, power=60.0) == pytest.approx((1.0, 0.0, 0.0))
    for power in (0.0, 1.0, 4.0):
        assert sum(task_weights(rho, power=power)) == pytest.approx(1) and task_weights(rho, power=power)[2] == 0


@seeds
def test_kl_to_the_committee_has_the_gradient_of_the_weighted_sum(seed: int) -> None:
    torch.manual_seed(seed)
    teachers = [nn.Linear(4, 3).double() for _ in range(3)]
    weights, x, s = (0.5, 0.3, 0.2), torch.randn(6, 4, dtype=F64), torch.randn(6, 3, dtype=F64)
    mean = Committee(teachers, weights)(x)
    close(mean.exp(), sum(w * one(x).softmax(1) for one, w in zip(teachers, weights, strict=True)))  # type: ignore[arg-type]
    (one,) = gradient(lambda z: soft_kl(z, mean).sum(), s)
    (other,) = gradient(
        lambda z: sum(w * soft_kl(z, t(x)).sum() for t, w in zip(teachers, weights, strict=True)),  # type: ignore[arg-type, return-value]
        s,
    )
    close(one, other)


def test_a_teacher_without_weight_is_not_asked() -> None:
    class Silent(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError

    net, x = nn.Linear(4, 3), torch.randn(5, 4)
    close(Committee([net, Silent()], (2.0, 0.0))(x), net(x).log_softmax(1), 1e-6)


def test_mistakes() -> None:
    with pytest.raises(BadSetting, match="a similarity needs three or more examples of two or more classes, got 5"):
        task_similarity(torch.randn(5, 2), torch.zeros(5))
    with pytest.raises(BadSetting, match="weights of teachers need a similarity above 0"):
        task_weights([-0.1, 0.0])
    with pytest.raises(BadSetting, match="power must be at least 0"):
        task_weights([0.1], power=-1.0)
    for weights in ((1.0,), (0.0, 0.0), (1.5, -0.5)):
        with pytest.raises(BadSetting, match="Committee needs a weight for each of 2 teachers, none negative"):
            Committee([nn.Linear(4, 3), nn.Linear(4, 3)], weights)
