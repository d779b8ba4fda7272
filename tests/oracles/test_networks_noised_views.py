"""Contrast of noised views, and a denoiser's network that is told what it has seen itself."""

import copy

import pytest
import torch
from torch import Tensor, nn

from limbeck import EMA, SGD, Dataset, NoisedViews, Rng, Run, Trained, distill
from limbeck.diffusion import Featured, LogNormal
from limbeck.engine.data import Batch
from limbeck.errors import BadSetting, Incompatible
from limbeck.problems.networks import ResidualMLP
from limbeck.problems.self_conditioned import SelfConditioned
from tests.oracles.exact import F64, close, seeds


def normal(*names: object, shape: tuple[int, ...]) -> Tensor:
    return Rng(("noised views", *names)).normal(*shape, dtype=F64)


SHAPE = {"shape": (3,), "classes": 2, "width": 8, "blocks": 4}


def told(at: str = "block1") -> SelfConditioned:
    """A network whose output is not zero."""
    net = SelfConditioned(at=at, **SHAPE).to(F64)
    nn.init.normal_(net.out.weight, std=0.3)
    return net


def data(n: int = 12) -> Dataset:
    return Dataset(x=normal("x", shape=(n, 3)), pair=normal("pair", shape=(n, 3)))


@seeds
def test_told_nothing_it_is_the_plain_network_to_the_bit(seed: int) -> None:
    net, plain = told(), ResidualMLP(**SHAPE).to(F64)
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if k != "feed.weight"})
    x, level, cond = normal(seed, shape=(5, 3)), normal(seed, "t", shape=(5,)), torch.arange(5) % 2
    for label in (None, cond):
        ours, seen = net(x, level, label, taps=tuple(net.taps))
        theirs, known = plain(x, level, label, taps=tuple(plain.taps))
        assert torch.equal(ours, theirs)
        assert all(torch.equal(seen[name], known[name]) for name in plain.taps)


@pytest.mark.parametrize("at", ["block0", "block1", "block2"])
def test_what_it_is_told_changes_later_blocks_only(at: str) -> None:
    net, x, level = told(at), normal("x", shape=(5, 3)), normal("t", shape=(5,))
    _, before = net(x, level, taps=tuple(net.taps))
    nn.init.normal_(net.feed.weight)
    _, after = net(x, level, taps=tuple(net.taps))
    same = [torch.equal(before[name], after[name]) for name in net.taps]
    assert same == [name <= at for name in net.taps]


def test_the_condition_is_the_normed_feature_by_a_matrix() -> None:
    net, x, level = told(), normal("x", shape=(5, 3)), normal("t", shape=(5,))
    nn.init.normal_(net.feed.weight)
    _, seen = net(x, level, taps=("block1", "block2"))
    h, angles = seen["block1"], level[:, None] * net.freqs.to(F64)
    emb = net.level(torch.cat([angles.cos(), angles.sin()], 1)) + net.label.weight[-1]
    normed = (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    close(net.blocks[2](h, emb * emb.sigmoid() + normed @ net.feed.weight.T), seen["block2"])


def feature_of(field: str, net: Featured, head: nn.Module, batch: Batch, objective: NoisedViews, key: object) -> Tensor:
    """What a head makes of one view at the first tick of seed 4, of length one."""
    rng, x = Rng((4, 0, ("noised", key))), batch[field]
    t = objective.times.sample(len(x), net.process, rng)
    seen = net.look(x + t[:, None] * rng.normal(*x.shape, dtype=F64), t, taps=(objective.tap,), x0=False)
    z = head(seen.features[objective.tap])
    return z / z.norm(dim=1, keepdim=True)


def in_float64(run: Run) -> None:
    """The head and the averages, too."""
    for module in (*run.cast.roles.values(), *run.cast.targets.values()):
        module.module.to(F64)


def test_the_loss_is_the_contrast_of_two_noised_views() -> None:
    net, objective = Trained(told()), NoisedViews(tap="block1", temperature=0.3, outputs=5, times=LogNormal(std=0.5))
    run = distill(None, net, objective, data(), steps=1, batch=8, seed=4)
    in_float64(run)
    mine = [run.cast.roles[name].module for name in run.cast.roles]
    means = [next(t.module for t in run.cast.targets.values() if t.role.module is module) for module in mine]
    with torch.no_grad():
        for p in (p for module in means for p in module.parameters()):  # averages are not what they are of
            p.mul_(1.5)
    batch = run.source.take(8, Rng((4, 0, "data")))
    one = feature_of("x", *mine, batch, objective, ("data", objective.times))
    two = feature_of("pair", *means, batch, objective, (objective, "pair"))
    expected = -(one @ two.T / 0.3).softmax(1).diagonal().log().mean()
    assert run.tick().losses["noisedviews"] == pytest.approx(expected.item(), rel=1e-12)


def test_averages_follow_and_blocks_behind_the_feature_stay() -> None:
    net = Trained(told())
    before = copy.deepcopy(net.state_dict())
    objective = NoisedViews(tap="block1", ema=EMA(decay=0.5, ramp=False))
    run = distill(None, net, objective, data(), steps=1, batch=8, optim=SGD(lr=0.1))
    in_float64(run)
    run.tick()
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert {"net.inp.weight", "net.blocks.0.up.weight", "net.blocks.1.down.bias"} <= moved
    assert not any(name.startswith(("net.blocks.2", "net.blocks.3", "net.out", "net.feed")) for name in moved)
    averages = {target.role.name: target.module for target in run.cast.targets.values()}
    assert set(averages) == set(run.cast.roles) and len(averages) == 2
    for name, value in averages["student"].state_dict().items():
        close(value, (before[name] + net.state_dict()[name]) / 2)


def test_mistakes_are_sentences() -> None:
    net, singles = Trained(told()), Dataset(x=torch.ones(9, 3), pair=torch.ones(9, 3))
    with pytest.raises(Incompatible, match="NoisedViews needs a student with a feature 'block9', got none"):
        distill(None, net, NoisedViews(tap="block9"), data(), steps=1)
    with pytest.raises(Incompatible, match="NoisedViews needs a student that is a Featured"):
        distill(None, nn.Linear(3, 3), NoisedViews(tap="block1"), data(), steps=1)
    with pytest.raises(Incompatible, match="data with pair"):
        distill(None, net, NoisedViews(tap="block1"), Dataset(x=normal("x", shape=(9, 3))), steps=1)
    with pytest.raises(Incompatible, match="a batch of two or more"):
        distill(None, net.float(), NoisedViews(tap="block1"), singles, steps=1, batch=1).finish()
    with pytest.raises(BadSetting):
        NoisedViews(tap="block1", temperature=0.0)
    with pytest.raises(BadSetting):
        NoisedViews(tap="block1", outputs=0)
    with pytest.raises(BadSetting, match="one of block0, block1, block2, got 'block3'"):
        told("block3")
