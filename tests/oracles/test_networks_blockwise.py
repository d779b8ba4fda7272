"""StableKD: pieces that learn apart, joined again, and a pass whose parts hand on something else."""

import pytest
import torch
from torch import Tensor, nn

from limbeck import EMA, KD, Dataset, Rng, StableKD, distill
from limbeck.errors import BadSetting, Incompatible
from limbeck.objectives.networks.blockwise import cuts
from limbeck.objectives.networks.steering import steered
from tests.oracles.exact import F64, close

PAIRS = {"1": "1", "3": "3"}


def nets() -> tuple[nn.Sequential, nn.Sequential]:
    """A teacher and a student of three blocks, of other widths."""
    torch.manual_seed(0)
    made = (
        nn.Sequential(nn.Linear(4, n), nn.Tanh(), nn.Linear(n, n), nn.Tanh(), nn.Linear(n, 3)).double() for n in (6, 5)
    )
    teacher, student = made
    return teacher, student


def data() -> Dataset:
    return Dataset(x=Rng("x").normal(32, 4, dtype=F64), y=torch.arange(32) % 3)


def test_pieces_are_joined_two_by_two() -> None:
    assert [cuts(7, k / 6, 0.5) for k in range(6)] == [tuple(range(7)), (1, 3, 5), (3,), (), (), ()]
    assert cuts(1, 0.0, 0.1) == (0,) and cuts(1, 0.1, 0.1) == cuts(5, 0.0, 0.0) == ()


def test_a_steered_pass_hands_on_what_it_is_told_and_leaves_no_trace() -> None:
    _, student = nets()
    x, told = Rng("x").normal(5, 4, dtype=F64), Rng("told").normal(5, 5, dtype=F64)
    with steered(student, {"1": lambda _: told}) as made:
        out = student(x)
    close(out, student[2:](told))
    close(made["1"], student[:2](x))
    twice = student[2:](2 * student[:2](x))
    with steered(student, {"1": lambda made: 2 * made}):
        close(student(x), twice)
    assert not any(part._forward_hooks for part in student.modules())


def pieces(run: object, x: Tensor) -> list[Tensor]:
    """Losses of the three pieces, written out."""
    student, teacher = run.cast.students["student"], run.cast.teacher  # type: ignore[attr-defined]
    adaptors = run.cast.roles["stablekd adaptors 1 → 1, 3 → 3"].module  # type: ignore[attr-defined]
    one, two = adaptors[0](teacher[:2](x)), adaptors[1](teacher[:4](x))
    first = ((student[:2](x) - one) ** 2).mean()
    second = ((student[2:4](one) - two) ** 2).mean()
    out = student[4:](two)
    p, q = (teacher(x) / 4).softmax(1), (out / 4).log_softmax(1)
    return [first, second, 16 * (p * (p.log() - q)).sum(1).mean()]


def test_in_pieces_the_loss_is_that_of_each_block_after_the_teachers_own_features() -> None:
    teacher, student = nets()
    run = distill(teacher, student, StableKD(pairs=PAIRS, alpha=1.0, hints=2.0), data(), steps=10, batch=8)
    first, second, last = pieces(run, data().take(8, Rng((0, 0, "data"), part=slice(0, 8), total=8))["x"])
    assert run.tick().losses["stablekd"] == pytest.approx((2 * first + 2 * second + last).item(), rel=1e-9)


def test_no_block_moves_by_the_loss_of_another() -> None:
    teacher, student = nets()
    run = distill(teacher, student, StableKD(pairs=PAIRS, alpha=1.0), data(), steps=10, batch=8)
    for loss, block in zip(pieces(run, Rng("x").normal(5, 4, dtype=F64)), (0, 2, 4), strict=True):
        for other in {0, 2, 4} - {block}:
            grads = torch.autograd.grad(loss, student[other].weight, retain_graph=True, allow_unused=True)
            assert grads == (None,)
    heads = {name: p.detach().clone() for name, p in student.named_parameters()}
    run = distill(teacher, student, StableKD(pairs=PAIRS, hints=0.0, alpha=1.0, until=1.0), data(), steps=10, batch=8)
    run.tick()  # by the logits alone, and they come behind the last cut
    moved = {name for name, p in student.named_parameters() if not torch.equal(p, heads[name])}
    assert moved == {"4.weight", "4.bias"}


def test_a_whole_student_learns_as_by_kd() -> None:
    runs = list[dict[str, Tensor]]()
    for objective in (KD(), StableKD(pairs=PAIRS, until=0.0)):
        teacher, student = nets()
        runs.append(distill(teacher, student, objective, data(), steps=20, batch=8, ema=EMA()).finish().state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(BadSetting, match="StableKD needs pairs of taps"):
        StableKD()
    with pytest.raises(BadSetting, match="until must be between 0 and 1, got 2"):
        StableKD(pairs=PAIRS, until=2)
    with pytest.raises(BadSetting, match="temperature must be above 0"):
        StableKD(pairs=PAIRS, temperature=0)
    teacher, student = nets()
    with pytest.raises(Incompatible, match="needs a submodule '9'"):
        distill(teacher, student, StableKD(pairs={"1": "9"}), data(), steps=1, batch=8)
    with pytest.raises(Incompatible, match=r"StableKD needs what submodules put out, got '3:in'; '3' would fit"):
        distill(teacher, student, StableKD(pairs={"1": "1", "3:in": "3"}), data(), steps=1, batch=8)
    with pytest.raises(Incompatible, match="StableKD needs data with y"):
        distill(teacher, student, StableKD(pairs=PAIRS), Dataset(x=torch.zeros(4, 4)), steps=1, batch=4)
    student[4] = nn.Linear(5, 2).double()
    with pytest.raises(Incompatible, match="StableKD needs a student with 3 classes, got 2"):
        distill(teacher, student, StableKD(pairs=PAIRS), data(), steps=1, batch=8).tick()
