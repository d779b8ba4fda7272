"""Restoration from few views: directions, bands, and what teaches them, against sums written out."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from limbeck import BetterViews, Dataset, Restoration, Rng, band, direction, distill, info_nce
from limbeck.errors import BadSetting, Incompatible
from limbeck.problems.digits_views import projections, reconstruction
from tests.oracles.exact import F64, close, seeds


def maps(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    rng = Rng(("restoration", seed))
    return [rng.normal(*shape, dtype=F64) for shape in shapes]


def setup() -> tuple[nn.Module, nn.Module, Dataset]:
    torch.manual_seed(0)
    teacher, student = (
        nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 1, 1)).double() for _ in range(2)
    )
    x, pair, y = maps(0, *[(16, 1, 6, 6)] * 3)
    return teacher, student, Dataset(x=x, pair=pair, y=y)


def first(data: Dataset) -> list[Tensor]:
    batch = data.take(8, Rng((0, 0, "data"), part=slice(0, 8), total=8))
    return [batch[name] for name in ("x", "pair", "y")]


@seeds
def test_direction_is_half_the_square_between_unit_vectors_and_knows_no_length(seed: int) -> None:
    s, t = maps(seed, (5, 3, 4, 4), (5, 3, 4, 4))
    unit = [z.flatten(1) / z.flatten(1).norm(dim=1, keepdim=True) for z in (s, t)]
    close(direction(s, t), (unit[0] - unit[1]).square().sum(1) / 2)
    close(direction(7 * s, 0.1 * t), direction(s, t))
    close(direction(s, 3 * s), torch.zeros(5, dtype=F64))
    close(direction(s, -s), torch.full((5,), 2.0, dtype=F64))


@seeds
def test_bands_are_orthogonal_parts_of_the_whole(seed: int) -> None:
    (x,) = maps(seed, (2, 3, 8, 8))
    edges = (0.0, 0.1, 0.3, 1.0)
    parts = [band(x, low, high) for low, high in pairwise(edges)]
    close(torch.stack(parts).sum(0), x)
    for i in range(3):
        close(band(parts[i], edges[i], edges[i + 1]), parts[i])
        for j in range(i):
            close((parts[i] * parts[j]).sum(), torch.zeros((), dtype=F64), 1e-9)


def test_a_wave_is_in_the_band_of_its_frequency() -> None:
    wave = (2 * math.pi * 0.25 * torch.arange(8, dtype=F64)).cos().expand(1, 1, 8, 8)
    close(band(wave, 0.2, 0.3), wave)
    close(band(wave, 0.26, 1.0), torch.zeros_like(wave))


def test_better_views_teach_direction_and_contrast_the_poor_one() -> None:
    teacher, student, data = setup()
    run = distill(teacher, student, BetterViews(tap="0", weight=0.3, temperature=0.2), data, steps=1, batch=8)
    x, pair, _ = first(data)
    with torch.no_grad():
        s, t, poor = student[0](x), teacher[0](pair), teacher[0](x)
        total = direction(s, t).mean()
        b = [band(z, 0.25, 1.0).flatten(1) for z in (s, t, poor)]
        each = [info_nce(b[0][i : i + 1], b[1][i : i + 1], temperature=0.2,
                         others=torch.cat([b[1][:i], b[1][i + 1 :], b[2][i : i + 1]])) for i in range(8)]  # fmt: skip
        total = total + 0.3 * torch.cat(each).mean()
    assert run.tick().losses["betterviews"] == pytest.approx(total.item(), rel=1e-12)


@pytest.mark.parametrize("field", ["x", "pair"])
def test_restoration_is_the_mean_square_of_what_is_missing(field: str) -> None:
    _, student, data = setup()
    run = distill(None, student, Restoration(field=field), data, steps=1, batch=8)
    x, pair, y = first(data)
    with torch.no_grad():
        expected = (student({"x": x, "pair": pair}[field]) - y).square().mean().item()
    assert run.tick().losses["restoration"] == pytest.approx(expected, rel=1e-12)


def test_views_are_sums_and_more_of_them_show_more() -> None:
    x = Rng("views").normal(64, 1, dtype=F64)[:, 0]
    image = x.view(8, 8)
    close(projections(2)[:8] @ x, image.sum(1))
    across = projections(2)[8:] @ x  # the image turned by a right angle
    assert min((across - image.sum(0)).abs().max(), (across - image.sum(0).flip(0)).abs().max()) < 1e-6
    lost = [(reconstruction(n).double() @ x - x).norm() for n in (2, 4, 8)]
    assert lost[0] > lost[1] > lost[2]
    again = reconstruction(3)
    assert (again @ again - again).abs().max() < 1e-4  # a projection: what it shows, it shows again


def test_mistakes_are_named() -> None:
    teacher, student, data = setup()
    with pytest.raises(BadSetting, match="BetterViews needs a tap of both networks"):
        BetterViews()
    with pytest.raises(BadSetting, match=r"a band with 0 ≤ low < high, got 0.5 and 0.5"):
        BetterViews(tap="0", low=0.5, high=0.5)
    with pytest.raises(Incompatible, match="BetterViews needs data with pair"):
        distill(teacher, student, BetterViews(tap="0"), Dataset(x=data.rows["x"]), steps=1)
    wide = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1)).double()
    with pytest.raises(Incompatible, match=r"maps \[8, 3, 6, 6\] of both networks, got \[8, 5, 6, 6\]"):
        distill(teacher, wide, BetterViews(tap="0"), data, steps=1, batch=8).finish()
    with pytest.raises(Incompatible, match="Restoration needs a student whose outputs are"):
        distill(None, wide, Restoration(), data, steps=1, batch=8).finish()
