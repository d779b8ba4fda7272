"""Two processes are one: equal structural draws, rows that join up, and the same losses and weights in float64."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from limbeck.engine.checkpoint import flatten, read_state
from limbeck.engine.tick import Place, Tick
from tests.suite.cases import BATCH, Case
from tests.suite.worker import WORLD, draws, join, rank_plans, record, refused, shown, start

pytestmark = pytest.mark.xdist_group("suite-ranks")

TOLERANCE = 1e-10
ROWS = ("normal", "uniform", "integers")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """What each rank recorded."""
    folder = tmp_path_factory.mktemp("ranks")
    started = [start("rank", folder, RANK=str(i), NAME=str(i)) for i in range(WORLD)]
    for worker in started:
        join(worker)
    return [read_state(folder / f"rank{i}") for i in range(WORLD)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What one process records."""
    return {"shown": shown(), **{name: record(make) for name, make in rank_plans().items()}}


@pytest.mark.parametrize("name", ["shared", "integer"])
def test_structural_draws_are_equal(ranks: list[dict[str, Any]], alone: dict[str, Any], name: str) -> None:
    assert all(torch.equal(seen["shown"][name], alone["shown"][name]) for seen in ranks)


@pytest.mark.parametrize("name", ROWS)
def test_row_draws_differ_and_join_up(ranks: list[dict[str, Any]], alone: dict[str, Any], name: str) -> None:
    parts = [seen["shown"][name] for seen in ranks]
    assert not torch.equal(*parts)
    assert torch.equal(torch.cat(parts), alone["shown"][name])


def far(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Paths at which two records differ by more than rounding."""
    (mine, _), (theirs, _) = flatten(a), flatten(b)
    assert mine.keys() == theirs.keys()
    near = {path: torch.allclose(mine[path], theirs[path], rtol=TOLERANCE, atol=TOLERANCE) for path in mine}
    return [path for path in near if not near[path]]


@pytest.mark.parametrize("name", rank_plans())
def test_two_ranks_end_like_one_process(ranks: list[dict[str, Any]], alone: dict[str, Any], name: str) -> None:
    assert len(alone[name]["losses"]) == (50 if name in ("DMD + GAN", "KD") else 10)
    for seen in ranks:
        assert far(seen[name]["losses"], alone[name]["losses"]) == []
        assert far(seen[name]["weights"], alone[name]["weights"]) == []
        assert far(seen[name]["average"], alone[name]["average"]) == []


@pytest.mark.parametrize("name", rank_plans())
def test_both_ranks_hold_the_same_bits(ranks: list[dict[str, Any]], name: str) -> None:
    """Else they would drift apart, for each goes on from its own weights."""
    (mine, _), (theirs, _) = (flatten(seen[name]) for seen in ranks)
    assert all(torch.equal(mine[path], theirs[path]) for path in mine)


def test_coupled_losses_are_refused_on_ranks(ranks: list[dict[str, Any]]) -> None:
    said = "coupled, which couples its batch, needs whole batches, got 1 micro-batches on 2 ranks."
    assert [seen["coupled"] for seen in ranks] == [said, said]
    assert refused() == "fits"


# The same without processes: a tick's draws by its place


def tick(part: slice, i: int = 0) -> Tick:
    run = Case("SDS", "Image", "Trained").run()
    place = Place((3,), i, 0.0, part, BATCH, torch.device("cpu"))
    return Tick(run.cast, place, {}, frozenset())


def test_draws_by_place() -> None:
    whole = draws(tick(slice(0, BATCH)))
    parts = [draws(tick(slice(k, k + 4))) for k in range(0, BATCH, 4)]
    for name in ("shared", "integer"):
        assert all(torch.equal(part[name], whole[name]) for part in parts)
    for name in ROWS:
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])
        assert not torch.equal(parts[0][name], parts[1][name])


def test_draws_differ_by_tick_and_name() -> None:
    one, later = tick(slice(0, BATCH)), tick(slice(0, BATCH), i=1)
    assert not torch.equal(one.rng("a").normal(BATCH), later.rng("a").normal(BATCH))
    assert not torch.equal(one.rng("a").normal(BATCH), one.rng("b").normal(BATCH))
    assert torch.equal(one.rng("a").normal(BATCH), one.rng("a").normal(BATCH))
