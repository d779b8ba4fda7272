"""Exits and pairs of networks that learn by contrast alone, against the contrast written out."""

import copy

import pytest
import torch
from torch import nn

from limbeck import EMA, Dataset, ExitContrast, MultiMode, Rng, both_ways, distill, info_nce
from limbeck.errors import BadSetting, Incompatible
from limbeck.problems.digits_halves import halves
from tests.oracles.exact import F64, close, seeds


def setup(outputs: int = 6) -> tuple[nn.Module, Dataset]:
    torch.manual_seed(0)
    rng = Rng("exits")
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs)).double()
    return net, Dataset(x=rng.normal(32, 4, dtype=F64), pair=rng.normal(32, 4, dtype=F64))


def first(data: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    batch = data.take(8, Rng((0, 0, "data"), part=slice(0, 8), total=8))
    return batch["x"], batch["pair"]


@seeds
def test_both_ways_is_symmetric_and_the_mean_of_each_way(seed: int) -> None:
    rng = Rng(("both", seed))
    a, b = rng.normal(5, 4, dtype=F64), rng.normal(5, 4, dtype=F64)
    close(both_ways(a, b), (info_nce(a, b) + info_nce(b, a)) / 2)
    close(both_ways(a, b), both_ways(b, a))


def test_exits_are_weighed_and_by_default_the_last_counts_most() -> None:
    for weights, expected in ((None, (0.5, 1.0)), ((2.0, 3.0), (2.0, 3.0))):
        net, data = setup()
        run = distill(None, net, ExitContrast(taps=("1", "2"), weights=weights), data, steps=1, batch=8)
        a, b = first(data)
        with torch.no_grad():
            losses = [both_ways(part(a), part(b)).mean() for part in (net[:2], net)]
            total = sum(w * loss.item() for w, loss in zip(expected, losses, strict=True))
        assert run.tick().losses["exitcontrast"] == pytest.approx(total, rel=1e-12)


def test_an_exit_does_not_train_what_comes_after_it() -> None:
    net, data = setup()
    before = copy.deepcopy(net.state_dict())
    distill(None, net, ExitContrast(taps=("1",)), data, steps=3, batch=8).finish()
    assert torch.equal(net.state_dict()["2.weight"], before["2.weight"])
    assert not torch.equal(net.state_dict()["0.weight"], before["0.weight"])


def test_multi_mode_is_contrast_with_its_own_average_and_the_others() -> None:
    (net, data), (other, _) = setup(), setup()
    with torch.no_grad():
        other[0].weight.mul_(2)
    nets = {"student": net, "peer": other}
    run = distill(None, nets, MultiMode(weight=0.5, ema=EMA(decay=0.5)), data, steps=1, batch=8)
    x, pair = first(data)
    with torch.no_grad():
        views = ((x, pair), (pair, x))
        own, cross = (sum(info_nce(net(a), target(b)).mean() for a, b in views) for target in (net, other))
    assert run.tick().losses["multimode student"] == pytest.approx(((own + 0.5 * cross) / 2).item(), rel=1e-12)


def test_without_a_weight_the_other_does_not_matter() -> None:
    ends = []
    for scale in (1.0, 3.0):
        (net, data), (other, _) = setup(), setup()
        with torch.no_grad():
            other[0].weight.mul_(scale)
        distill(None, {"student": net, "peer": other}, MultiMode(weight=0.0), data, steps=5, batch=8).finish()
        ends.append(net[0].weight.detach().clone())
    assert torch.equal(*ends)


def test_halves_make_the_whole() -> None:
    x = Rng("halves").normal(3, 1, 8, 8)
    left, right = halves(x)
    assert torch.equal(left[..., :4], x[..., :4]) and torch.equal(right[..., 4:], x[..., 4:])
    assert (left[..., 4:] == -1).all() and (right[..., :4] == -1).all()


def test_mistakes_are_named() -> None:
    net, data = setup()
    with pytest.raises(BadSetting, match="ExitContrast needs taps of the student"):
        ExitContrast()
    with pytest.raises(BadSetting, match="a weight for each of 2 taps, got 1"):
        ExitContrast(taps=("0", "1"), weights=(1.0,))
    with pytest.raises(Incompatible, match="ExitContrast needs data with pair, got only x"):
        distill(None, net, ExitContrast(taps=("1",)), Dataset(x=data.rows["x"]), steps=1)
    with pytest.raises(Incompatible, match="MultiMode needs a second student 'peer', got none"):
        distill(None, net, MultiMode(), data, steps=1)
    with pytest.raises(BadSetting, match="a name of its own"):
        MultiMode(peer="student")
    with pytest.raises(Incompatible, match="MultiMode needs networks of 6 outputs, got 5"):
        distill(None, {"student": net, "peer": setup(5)[0]}, MultiMode(), data, steps=1, batch=8).finish()
