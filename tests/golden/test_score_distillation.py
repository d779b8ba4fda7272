"""Score distillation against gradients that its authors' released code computes, `score_distillation.toml`.

Every table is rebuilt by one tick of a run, on a network and a schedule in closed form. Where released code departs
from its formula, the formula is followed, and what is asserted is the departure, exactly.
"""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck import (
    ASD,
    CDS,
    CFG,
    CSD,
    DDS,
    ISM,
    NFSD,
    PDS,
    SDI,
    SDS,
    SGD,
    TSM,
    VP,
    VSD,
    Added,
    Attached,
    BalancedScoreDistillation,
    Critic,
    Denoiser,
    Fake,
    Gated,
    GaussianMixture,
    HiFA,
    Inverted,
    Midway,
    Negative,
    Noise,
    Noised,
    Objective,
    Particles,
    PerpNeg,
    PixelClip,
    Posterior,
    Process,
    Rng,
    RootAnnealed,
    ScoreDistillation,
    SDSBridge,
    Shifted,
    StableScoreDistillation,
    Stepped,
    Teacher,
    Tick,
    Times,
    Weight,
    Zero,
    distill,
    like,
)
from limbeck.diffusion.guidance import perpendicular

GOLDEN: dict[str, dict[str, Any]] = tomllib.loads(
    Path(__file__).with_name("score_distillation.toml").read_text("utf-8")
)
F64 = torch.float64
SHAPE = (2, 4, 2, 2)
I = torch.arange(32, dtype=F64)  # noqa: E741, the i of the formulas
INPUTS = {
    "x": 0.8 * torch.sin(0.9 * I + 0.3),
    "eps": 1.2 * torch.cos(1.7 * I + 0.5),
    "eps2": 1.2 * torch.sin(2.3 * I + 1.1),
    "source": 0.8 * torch.sin(0.9 * I + 0.3) + 0.3 * torch.cos(0.5 * I),
    "0": torch.zeros(32, dtype=F64),
}
LABELS = {name: k for k, name in enumerate(GOLDEN["conditions"])}
ABAR = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=F64) ** 2).cumprod(0)
RATIO = {"weight": Weight(sigma=1.0, alpha=-1.0)}
PLAIN = {"weight": Weight(sigma=0.0)}


def given(table: dict[str, Any], key: str) -> Tensor:
    """An input of a table, its rows."""
    value = INPUTS[table[key].removesuffix("[0]")].reshape(SHAPE)
    every = value[:1].expand(SHAPE) if table[key].endswith("[0]") else value
    return every[table.get("rows", [0, 1])]


def number(table: str, key: str = "g") -> Tensor:
    """What the released code computed, in its shape."""
    flat = torch.tensor(GOLDEN[table][key], dtype=F64)
    return flat.reshape(GOLDEN[table].get("shape", (-1, *SHAPE[1:])))


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    scale = 1 + expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


# The schedule and the networks of the tables


@dataclass(frozen=True)
class Discrete(Process):
    """Stable Diffusion's schedule at whole times 0 … 999; its clock starts at 1, as the released code has it."""

    t_min: float = 1.0
    t_max: float = 999.0

    def whole(self, t: Tensor) -> Tensor:
        """The time that counts: what is between two whole times is the lower one."""
        return (t + 1e-6).floor().long()

    def alpha(self, t: Tensor) -> Tensor:
        return ABAR[self.whole(t)].sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - ABAR[self.whole(t)]).sqrt()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def at_ratio(self, ratio: Tensor) -> Tensor:
        raise NotImplementedError

    def at_fraction(self, u: Tensor) -> Tensor:
        return (1 + 1000 * u).clamp_max(self.t_max)

    def fraction(self, t: Tensor) -> Tensor:
        return (t - 1) / 1000


def levels(*t: int) -> tuple[Tensor, Tensor]:
    """(α, σ) at these times, [n] each."""
    return Discrete().alpha(torch.tensor(t)), Discrete().sigma(torch.tensor(t))


def closed_form(x_t: Tensor, t: Tensor, coefficients: Tensor) -> Tensor:
    """a·z + b·sin(t/100) + k·cos(3z), with (a, b, k) in the rows of [B, 3]."""
    a, b, k = (like(value, x_t) for value in coefficients.mT)
    return a * x_t + b * like(torch.sin(t.double() / 100), x_t) + k * torch.cos(3 * x_t)


class Network(Denoiser):
    """The tables' network. A condition is a label, those of a table's ``embeddings`` after the others.

    Args:
        table: with the coefficients of the critic and further conditions, where there are some.
    """

    process = Discrete()

    def __init__(self, table: dict[str, Any]):
        super().__init__()
        known = torch.tensor(list(GOLDEN["conditions"].values()), dtype=F64)
        more = torch.tensor(table.get("embeddings", []), dtype=F64).reshape(-1, 3)
        self.table, self.known = table, torch.cat([known, more])
        self.asked = list[tuple[list[int], Tensor]]()
        """Times of the rows, and where, of every call."""

    def eps(self, x_t: Tensor, t: Tensor, label: int | Tensor) -> Tensor:
        """Its prediction of ε under a label of all or each of the rows."""
        labels = torch.as_tensor(label).expand(len(x_t))
        return closed_form(x_t, self.process.whole(t), self.known[labels])

    def denoise(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        self.asked.append((self.process.whole(t).tolist(), x_t))
        eps = self.eps(x_t, t, LABELS["uncond"] if cond is None else cond)
        return self.process.convert(eps, x_t, t, "eps", "x0")

    def clone(self, *, trainable: bool) -> Denoiser:
        return Judge(self.table)


class Judge(Denoiser):
    """The tables' critic, which sees the camera of each row instead of the condition."""

    process = Discrete()

    def __init__(self, table: dict[str, Any]):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros((), dtype=F64))
        self.form = "v" if table.get("form") == "v" else "eps"
        self.own = torch.tensor([GOLDEN["conditions"][table["critic"]]], dtype=F64)
        self.camera = table["camera_gain"] * torch.tensor(table["camera_sums"], dtype=F64)

    def denoise(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        value = closed_form(x_t, self.process.whole(t), self.own.expand(len(x_t), 3)) + self.offset
        if cond is not None:
            value = value + like(self.camera, x_t)
        return self.process.convert(value, x_t, t, self.form, "x0")


# A tick of a run on a table


@dataclass(frozen=True, kw_only=True)
class At(Times):
    """These times, one for each row."""

    times: tuple[float, ...]

    def at(self, u: Tensor, process: Process, progress: float = 0.0) -> Tensor:
        return torch.tensor(self.times, dtype=F64).expand(len(u))


@dataclass(frozen=True, kw_only=True)
class Given(Noise):
    """The noise of a table."""

    table: str

    def see(self, tick: Tick, times: Times) -> Noised:
        def make(draw: Any, key: Any) -> Noised:
            eps, t = given(GOLDEN[self.table], "eps"), tick.levels(draw, times, key)
            return Noised(draw.x, tick.process.add_noise(draw.x, eps, t), t, eps, draw.cond, tick.process, key, draw)

        return tick.seen((self, times), make)


def at(t: int | list[int]) -> At:
    return At(times=tuple(t) if isinstance(t, list) else (t,))


def usual(name: str) -> dict[str, Any]:
    """What most objectives take from a table: times, noise, guidance."""
    table = GOLDEN[name]
    found: dict[str, Any] = {"times": at(table["t"]), "noise": Given(table=name)}
    return found | ({"guidance": CFG(scale=table["scale"])} if "scale" in table else {})


def descended(
    objective: Objective,
    name: str,
    *,
    x: Tensor | None = None,
    teacher: nn.Module | None = None,
    before: Callable[[Any], object] = lambda run: None,
    **others: nn.Module,
) -> Tensor:
    """The gradient by x that one tick descends, not divided by the batch."""
    table = GOLDEN[name]
    x = given(table, "x") if x is None else x
    student = Particles(x, torch.full((len(x),), LABELS.get(table.get("cond"), len(LABELS))))
    if "source_x" in table:
        rows = given(table, "source_x")
        others["source"] = Particles(rows, torch.full((len(rows),), LABELS[table["source_cond"]]))
    cast = {"teacher": teacher or Network(table), **others}
    run = distill(cast, student, objective, steps=1, batch=len(x), optim=SGD(lr=1.0))
    before(run)
    assert not run.tick().skipped
    return len(x) * (x - student.x.detach())


def sticking(noise: Tensor, **settings: Any) -> dict[str, Any]:
    """Attached noise, and what puts this noise into a run."""
    attached = Attached(**settings)
    return {"noise": attached, "put": lambda run: run.cast.kept[f"noise {attached}"].copy_(noise)}


def only(name: str, key: str) -> Teacher:
    """The teacher under the condition that a table has under this key."""
    return Teacher(guidance=Negative(scale=0.0, label=LABELS[GOLDEN[name][key]]))


def test_schedule() -> None:
    close(ABAR[GOLDEN["schedule"]["times"]], torch.tensor(GOLDEN["schedule"]["abar"], dtype=F64))


def test_every_table_is_compared() -> None:
    text = Path(__file__).read_text("utf-8")
    assert [name for name in GOLDEN if f'"{name}"' not in text] == []


# Where nothing is to be explained


def vsd(name: str, scale: float = 1.0) -> VSD:
    return VSD(**usual(name), fake=Fake(critic=Critic(times=at(GOLDEN[name]["t"])), guidance=CFG(scale=scale)))


def nfsd(name: str) -> NFSD:
    table = GOLDEN[name]
    return NFSD(**usual(name), fake=Gated(above=only(name, "negative"), below=Zero(), at=table["split"] / 1000))


def four_scales(name: str) -> Objective:
    """a·ε(c) + b·ε(n) + d·ε(∅) + e·ε as a sum of objectives; a weight below 0 changes A and B."""
    parts = (Teacher(guidance=CFG(scale=1.0)), only(name, "negative"), Teacher(guidance=CFG(scale=0.0)), Added())
    terms = [
        abs(weight) * ScoreDistillation(**usual(name), **dict(zip(("real", "fake"), pair, strict=True)))
        for weight, part in zip(GOLDEN[name]["scales"], parts, strict=True)
        if (pair := (part, Zero()) if weight > 0 else (Zero(), part))
    ]
    return terms[0] + terms[1] + terms[2] + terms[3]


def balanced(name: str) -> BalancedScoreDistillation:
    return BalancedScoreDistillation(**usual(name), ratio=GOLDEN[name]["lam"])


def perp_neg(name: str) -> SDS:
    table, first = GOLDEN[name], len(LABELS)  # after the known conditions: positive, empty, and the two negatives
    guidance = PerpNeg(scale=table["scale"], labels=(first + 2, first + 3), weights=tuple(table["weights"]))
    return SDS(**usual(name) | {"guidance": guidance})


OBJECTIVES: dict[str, Callable[[str], Objective]] = {
    "sds": lambda name: SDS(**usual(name)),
    "sds_uniform": lambda name: SDS(**usual(name), **PLAIN),
    "sds_fantasia3d": lambda name: SDS(**usual(name), weight=Weight(sigma=2.0, alpha=1.0)),
    "sjc": lambda name: SDS(**usual(name), **PLAIN),
    "pds_sds": lambda name: SDS(**usual(name)),
    "perp_neg_front": perp_neg,
    "perp_neg_back": perp_neg,
    "vsd": vsd,
    "vsd_v_prediction": vsd,
    "vsd_prolificdreamer": vsd,
    "vsd_prolificdreamer_v": vsd,
    "esd": lambda name: vsd(name, GOLDEN[name]["scale_lora"]),
    "esd_unconditional": lambda name: vsd(name, GOLDEN[name]["scale_lora"]),
    "csd": lambda name: CSD(**usual(name)),
    "csd_negative": lambda name: 0.5 * CSD(**usual(name)) + 0.5 * SDSBridge(**usual(name), fake=only(name, "negative")),
    "csd_general": four_scales,
    "nfsd_high": nfsd,
    "nfsd_low": nfsd,
    "sds_bridge": lambda name: GOLDEN[name]["k"] * SDSBridge(**usual(name), fake=only(name, "source_cond")),
    "bsd_placiddreamer": balanced,
    "bsd_placiddreamer_zero": balanced,
    "bsd_placiddreamer_one": balanced,
    "dds": lambda name: DDS(**usual(name)),
    "dds_pds": lambda name: DDS(**usual(name)),
    "pds_stride1": lambda name: PDS(**usual(name), weight=Posterior(stride=0.001)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_tick_descends_what_the_released_code_descends(name: str) -> None:
    close(descended(OBJECTIVES[name](name), name), number(name))


def test_balance_has_its_three_cases() -> None:
    """a is kept in [0, 1]: the tables have one inside and one beyond each end."""
    inside, below, above = (GOLDEN[f"bsd_placiddreamer{end}"]["raw_a"] for end in ("", "_zero", "_one"))
    assert all(0 < a < 1 for a in inside) and all(a < 0 for a in below) and all(a > 1 for a in above)


@pytest.mark.parametrize("name", ["cds", "cds_sds_weight"])
def test_cds(name: str) -> None:
    """Row by row, since one tick has one r."""
    table = GOLDEN[name]
    for row, (t, r) in enumerate(zip(table["t"], table["r"], strict=True)):
        weight = Weight() if table["weight"] == "sigma^2" else Weight(sigma=0.0)
        noise, network = sticking(given(table, "eps")[:1]), Network(table)
        objective = CDS(
            times=at(t),
            noise=noise["noise"],
            guidance=CFG(scale=table["scale"]),
            fake=Stepped(to=(r - 1) / 1000),
            weight=weight,
        )
        x = given(table, "x")[row : row + 1]
        close(descended(objective, name, x=x, teacher=network, before=noise["put"]), number(name)[row : row + 1])
        if "x_r" in table:
            (_, x_t), (at_r, x_r) = network.asked[0], network.asked[-1]
            assert at_r == [r]
            close(x_t, number(name, "x_t")[row : row + 1])
            close(x_r, number(name, "x_r")[row : row + 1])


@pytest.mark.parametrize("name", ["asd", "asd_fixed", "asd_zero", "asd_clamped"])
def test_asd(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The released code cuts t + Δ to a whole time; ours is where it falls, and the schedule here cuts it."""
    table = GOLDEN[name]
    u = torch.tensor(table["u"], dtype=F64)
    monkeypatch.setattr(Rng, "uniform", lambda self, n, *shape, dtype=F64: u)
    network, later = Network(table), Shifted(share=table["ratio"], start=(table["t_min"] - 1) / 1000)
    g = descended(ASD(**usual(name), fake=later), name, teacher=network)
    assert network.asked[-1][0] == table["t_plus"]
    if "x_t_plus" in table:
        close(network.asked[-1][1], number(name, "x_t_plus"))
    close(g, number(name))


# Noise that sticks


def test_cfd() -> None:
    """x_t under given noise, w = σ/α. The released loss has no ½, which its table has undone."""
    table, noise = GOLDEN["cfd"], sticking(given(GOLDEN["cfd"], "eps"))
    objective = SDS(**usual("cfd") | {"noise": noise["noise"]}, **RATIO)
    close(descended(objective, "cfd", before=noise["put"]), number("cfd"))
    assert table["scale"] == table["code_scale"] + 1


def clean_flow(name: str, noises: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The clean sample that ticks of size (λ − λ')/λ lead to from zero, and what the network saw at each."""
    table, x, seen = GOLDEN[name], torch.zeros(1, *SHAPE[1:], dtype=F64), []
    for t, s, eps in zip(table["t_hat"], [*table["t"][1:], 0], noises, strict=True):
        network, noise = Network(table), sticking(eps)
        alpha, sigma = levels(t, s)
        here, there = sigma / alpha
        objective = SDS(times=at(t), noise=noise["noise"], guidance=CFG(scale=table["scale"]), **RATIO)
        x = x - (here - there) / here * descended(objective, name, x=x, teacher=network, before=noise["put"])
        seen.append(network.asked[0][1])
    return x, seen


def test_clean_flow_is_the_flow() -> None:
    """With one noise for all levels, steps along g end where DDIM does: x + λ(0)·ε is its last sample."""
    noise = INPUTS["eps"].reshape(SHAPE)[:1]
    clean, seen = clean_flow("cfd_ode", [noise] * 5)
    alpha, sigma = levels(0)
    close(torch.cat(seen), number("cfd_ode", "x_t"))
    close(clean, number("cfd_ode", "clean"))
    close(clean + sigma / alpha * noise, number("cfd_ode", "usual"))


def test_clean_flow_with_fresh_noise() -> None:
    """Noise refreshed by γ = 1 − (λ/λ̂)² is the churn of a stochastic sampler that rises from λ to λ̂."""
    table, noise, noises = GOLDEN["cfd_sde"], INPUTS["eps"].reshape(SHAPE)[:1], list[Tensor]()
    for j, (t, t_hat) in enumerate(zip(table["t"], table["t_hat"], strict=True)):
        alpha, sigma = levels(t, t_hat)
        keep = (sigma / alpha)[0] / (sigma / alpha)[1]
        fresh = 1.2 * torch.sin((1.9 + 0.1 * j) * I[:16] + 0.2 * j).reshape(noise.shape)
        noise = keep * noise + (1 - keep**2).sqrt() * fresh
        noises.append(noise)
    clean, seen = clean_flow("cfd_sde", noises)
    alpha, sigma = levels(0)
    close(torch.cat(seen), number("cfd_sde", "x_t"))
    close(noise, number("cfd_sde", "noise"))
    close(clean, number("cfd_sde", "clean"))
    close(clean + sigma / alpha * noise, number("cfd_sde", "usual"))


def test_refreshed_noise() -> None:
    """√(1 − γ)·ε + √γ·ξ: with the released code's ξ in the place of ours, its noise to the last digit."""
    table, (x, eps, theirs) = GOLDEN["cfd_noise"], (INPUTS[key].reshape(SHAPE)[:1] for key in ("x", "eps", "eps2"))
    noise = sticking(eps, refresh=table["gamma"])
    run = distill(Network(table), Particles(x), SDS(times=at(400), noise=noise["noise"]), steps=2, batch=1, seed=7)
    noise["put"](run)
    run.finish()
    fresh = Rng((7, 1, noise["noise"])).normal(1, *SHAPE[1:], dtype=F64)
    ours = run.cast.kept[f"noise {noise['noise']}"]
    close(ours + table["gamma"] ** 0.5 * (theirs - fresh), number("cfd_noise", "refreshed"))


# Inversion: the released code first noises x to its first time, 1; ours takes x for x_1, as DDIM inversion does


def inverted(name: str, **settings: Any) -> dict[str, Any]:
    table = GOLDEN[name]
    noise = Inverted(stride=table["stride"] / 1000, gap=table["d"] / 1000)
    return {"times": at(table["t"]), "noise": noise, "guidance": CFG(scale=table["scale"]), **settings}


@pytest.mark.parametrize("name", ["ism", "ism_warm", "ism_short", "ism_fixed", "tsm", "tsm_wide"])
def test_interval_and_trajectory(name: str) -> None:
    """From the released code's x_1 on, the network is asked at the same times and points."""
    table, network, x = GOLDEN[name], Network(GOLDEN[name]), number(name, "x_start")
    make = TSM if "mu" in table else ISM
    parts = {"fake": Midway(gamma=table["gamma"])} if "mu" in table else {}
    g = descended(make(**inverted(name, **parts)), name, x=x, teacher=network)
    points = {t[0]: at for t, at in network.asked}
    assert set(points) == set(table["unet_times"])
    for time, key in (("r", "x_r"), ("mu", "x_mu"), ("t", "x_t")):
        if time in table:
            close(points[table[time]], number(name, key))
    close(g, number(name))
    start = Discrete().add_noise(given(table, "x"), given(table, "eps"), torch.ones(len(x)))
    close(x, start)


def test_trajectory_with_a_short_stride() -> None:
    """A fault of the released code: it steps by the stride of 50 towards μ, which is 143 away, but asks there at μ."""
    name = "tsm_short_stride"
    table, network = GOLDEN[name], Network(GOLDEN[name])
    r, mu, t = (torch.full((2,), float(table[key]), dtype=F64) for key in ("r", "mu", "t"))
    null, x_r = LABELS["uncond"], number(name, "x_r")
    start = Noised(x_r, x_r, r, x_r, None, Discrete())
    stopped = start.moved(network.denoise(x_r, r), r + table["stride"], "stopped").x_t
    close(stopped, number(name, "x_mu"))
    close(network.eps(stopped, mu, null), number(name, "eps_mu"))
    alpha, sigma = levels(table["t"])
    guided = CFG(scale=table["scale"])(network).denoise(number(name, "x_t"), t, torch.full((2,), LABELS["cond"]))
    real = Discrete().convert(guided, number(name, "x_t"), t, "x0", "eps")
    close(sigma / alpha * (real - network.eps(stopped, mu, null)), number(name))
    arrived = start.moved(network.denoise(x_r, r), mu, "arrived").x_t
    assert (arrived - stopped).abs().max() > 0.02


def test_sdi() -> None:
    """x0_T is the same from the released code's x_1 on, which its first step makes of x by a call at time −99.

    Without Perp-Neg its two scales mean ε(c) + s·δ, so that −7.5 and 7.5 are our −6.5 and 8.5.
    """
    table, network, x = GOLDEN["sdi"], Network(GOLDEN["sdi"]), number("sdi", "x_start")
    noise = Inverted(stride=0.1, gap=0.0, guidance=CFG(scale=table["inversion_scale"]))
    g = descended(
        SDI(times=at(table["t"]), noise=noise, guidance=CFG(scale=table["scale"])), "sdi", x=x, teacher=network
    )
    close(network.asked[-1][1], number("sdi", "x_t"))
    assert list(dict.fromkeys(t[0] for t, _ in network.asked)) == table["unet_times"][1:]
    close(x - g, number("sdi", "x0"))
    close(number("sdi"), given(table, "x") - number("sdi", "x0"))


@pytest.mark.parametrize("name", ["sdi_eta", "sdi_delta"])
def test_sdi_departs(name: str) -> None:
    """Inversion with noise (η = 0.3) is the authors' choice, exact inversion ours; asking at t for t + δ is a fault."""
    table = GOLDEN[name]
    x_t, x, t = number(name, "x_t"), given(table, "x"), torch.tensor([float(table["t"])])
    reached = t + table["delta"]
    guided, cond = CFG(scale=table["scale"])(Network(table)), torch.tensor([LABELS["cond"]])
    close(guided.denoise(x_t, t, cond), number(name, "x0"))
    close(x - guided.denoise(x_t, t, cond), number(name))
    close(Discrete().convert(x, x_t, reached, "x0", "eps"), number(name, "noise"))
    assert (x_t - number("sdi", "x_t")).abs().max() > 0.02
    if table["delta"]:
        remapped = Discrete().add_noise(x, number(name, "noise"), t)
        assert (guided.denoise(remapped, t, cond) - number(name, "x0")).abs().max() > 0.02


# Where the released code departs from its formula


def test_pixel_clip() -> None:
    """The released code takes the largest of a pixel's channels, L∞, where the paper's norm is L2."""
    table = GOLDEN["pgc"]
    g = (0.4 * torch.sin(1.3 * I + 0.7) * torch.exp(0.05 * I - 1)).reshape(SHAPE)[:, :3]
    released, by_the_paper = number("pgc").movedim(-1, 1), PixelClip(limit=table["kappa"]).clip(g)
    close(PixelClip(limit=table["kappa"], norm=float("inf")).clip(g), released)
    clipped = g.abs().amax(1) > table["kappa"]
    assert clipped.any() and not clipped.all()
    deeper = (g.norm(dim=1) / g.abs().amax(1))[clipped]
    close((released / by_the_paper).amax(1)[clipped], deeper)


def test_perp_neg_in_a_batch() -> None:
    """A fault of the released code: row 0's second negative and row 1's first see each other's latent."""
    table, batch = GOLDEN["perp_neg_batch"], number("perp_neg_batch", "eps_guided")
    alone = [number(f"perp_neg_{view}", "eps_guided") for view in ("front", "back")]
    network, times = Network(table), torch.tensor(table["t"], dtype=F64)
    x_t = Discrete().add_noise(given(table, "x"), given(table, "eps"), times)
    first = len(LABELS)  # two positives, two empty ones, then negatives: 0 and 1 of row 0, 0 and 1 of row 1

    def eps(row: int, label: int) -> Tensor:
        return network.eps(x_t[row : row + 1], times[row : row + 1], label)

    for row, negative in ((0, 1), (1, 0)):
        label, weight = first + 4 + 2 * row + negative, table["weights"][2 * row + negative]
        towards = eps(row, first + row) - eps(row, first + 2)
        swapped = perpendicular(eps(1 - row, label) - eps(row, label), towards)
        assert swapped.abs().max() > 0.1
        close(batch[row : row + 1], alone[row] + table["scale"] * weight * swapped)


def test_balance_with_noise() -> None:
    """The automatic variant balances δ and 1.25·(ε(∅) − ε), and weighs by a norm over the whole batch."""
    name = "bsd_placiddreamer_auto"
    table, times = GOLDEN[name], torch.tensor(GOLDEN[name]["t"], dtype=F64)
    x_t = Discrete().add_noise(given(table, "x"), given(table, "eps"), times)
    away = (Network(table).eps(x_t, times, LABELS["uncond"]) - given(table, "eps")).norm()
    objective = BalancedScoreDistillation(**usual(name), fake=Added(), ratio=1 / 1.25, **PLAIN)
    sigma = like(Discrete().sigma(times), x_t)
    close(1.25 * away / 50 * sigma * descended(objective, name), number(name))


def stable(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Our gradient, the conditional prediction, σ²·h and the noise of a table."""
    table = GOLDEN[name]
    ours = descended(StableScoreDistillation(**usual(name), at=table["M"] / 1000), name)
    times, eps, network = torch.tensor(table["t"], dtype=F64), given(table, "eps"), Network(table)
    x_t = Discrete().add_noise(given(table, "x"), eps, times)
    real, null = (network.eps(x_t, times, LABELS[table[key]]) for key in ("cond", "uncond"))
    return ours, real, like(Discrete().sigma(times) ** 2, x_t) * (real - null), eps


def test_stable_score_distillation() -> None:
    """Third parties divide ⟨c, ε⟩ by ‖ε‖ in the place of ‖ε‖²."""
    ours, real, h, eps = stable("ssd_pgc3d")
    cleaned = perpendicular(real, eps)
    close(ours, h.norm() / cleaned.norm() * cleaned)
    theirs = real - eps.norm() * (real - cleaned)
    close(number("ssd_pgc3d"), h.norm() / theirs.norm() * theirs)
    assert (number("ssd_pgc3d") - ours).abs().max() > 0.02


def test_stable_score_distillation_in_a_batch() -> None:
    """Theirs takes the product over all rows, and broadcasts what is one number for a row along the image's width."""
    ours, real, h, eps = stable("ssd_pgc3d_batch")
    close(ours[:1], number("ssd_pgc3d_batch")[:1])  # above M it is CSD
    theirs = real - (real * eps).sum() / eps.flatten(1).norm(dim=1) * eps
    theirs = h.flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1) * theirs
    close(number("ssd_pgc3d_batch")[1:], theirs[1:])
    assert (number("ssd_pgc3d_batch") - ours)[1:].abs().max() > 0.02


def test_posterior_distillation_of_two_steps() -> None:
    """A fault of the released code: β of one step for a stride of two, which leaves a pull towards the source."""
    name = "pds"
    table = GOLDEN[name]
    (abar_t, abar_r), before = ABAR[[table["t"], table["t_prev"]]], ABAR[table["t"] - 1]
    alpha, sigma = levels(table["t"])
    beta, away = 1 - abar_t / before, given(table, "x") - given(table, "source_x")
    spread = ((1 - abar_r) / (1 - abar_t) * beta).sqrt()
    of_x0 = abar_r.sqrt() * beta / (1 - abar_t)
    of_x_t = (1 - beta).sqrt() * (1 - abar_r) / (1 - abar_t)
    pull = (abar_r.sqrt() - of_x0 - of_x_t * alpha) / spread
    assert pull.abs() > 0.005
    delta = descended(DDS(**usual(name)), name)
    close(of_x0 / spread * sigma / alpha * delta + pull * away, number(name))


# HiFA: latents and pixels


class Decoder(nn.Module):
    """What the tables decode with."""

    def __init__(self, bend: float, shift: float):
        super().__init__()
        self.bend, self.shift = bend, shift

    def forward(self, z: Tensor) -> Tensor:
        return z / 2 + self.bend * torch.sin(z) + self.shift


@pytest.mark.parametrize(("name", "weight"), [("hifa", RATIO["weight"]), ("hifa_sdslike", Weight())])
def test_hifa(name: str, weight: Weight) -> None:
    """The authors weigh ‖x − x0_T‖² by w' = 0.05 or 0.05·ασ: that is w = w'·σ/α. Their encoder doubles gradients."""
    table = GOLDEN[name]
    image = (0.5 + 0.4 * torch.sin(0.7 * I[:24] + 0.2)).reshape(2, 3, 2, 2)
    noise = sticking(INPUTS["eps"].reshape(SHAPE)[:, :3])
    objective = 0.05 * HiFA(
        times=at(table["t"]),
        noise=noise["noise"],
        guidance=CFG(scale=table["scale"]),
        weight=weight,
        pixels=table["lambda_rgb"],
        decoder="decoder",
    )
    x = 2 * image - 1
    close(2 * descended(objective, name, x=x, before=noise["put"], decoder=Decoder(0, 0.5)), number(name))
    clock = RootAnnealed().at(torch.zeros(1, dtype=F64), VP(), table["step"] / table["steps"])
    assert int(1000 * clock + 1e-6) == table["t"]


def test_hifa_elsewhere() -> None:
    """Third parties compare D(x0_T) with the rendered image, ours with D(x): what is added here."""
    name = "hifa_threestudio"
    table, decoder = GOLDEN[name], Decoder(0.1, 0.0)
    x = given(table, "x")
    alpha, sigma = (like(level, x) for level in levels(*table["t"]))
    rendered = 0.5 * x + 0.3
    of_image = torch.tensor(table["g_img"], dtype=F64).reshape(SHAPE) + sigma * alpha * (decoder(x) - rendered)
    slope = 0.5 + 0.1 * torch.cos(x)
    ours = descended(HiFA(**usual(name), pixels=0.1, decoder="decoder"), name, decoder=decoder)
    close(ours, descended(SDS(**usual(name)), name) + 0.1 * slope * of_image)


# Entropic score distillation between two Gaussians, by its authors' example


@dataclass(frozen=True)
class Pairs(Discrete):
    """(α, σ) of the example, by the row of the batch; not variance preserving."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.tensor(GOLDEN["esd_gaussian"]["alphas_noise"], dtype=F64)[t.long()]

    def sigma(self, t: Tensor) -> Tensor:
        return torch.tensor(GOLDEN["esd_gaussian"]["sigmas_noise"], dtype=F64)[t.long()]


class TwoGaussians(Denoiser):
    """The teacher, p; its clone knows q, and with a condition the very sample."""

    process = Pairs()

    def __init__(self, which: str):
        super().__init__()
        table, self.which = GOLDEN["esd_gaussian"], which
        mean, factor = (torch.tensor(table[f"{which}_{key}"], dtype=F64) for key in ("mu", "sigma"))
        factor = torch.linalg.cholesky(factor.reshape(2, 2) @ factor.reshape(2, 2).mT)
        self.law = GaussianMixture(means=mean[None], std=factor[None], process=self.process)
        self.offset = nn.Parameter(torch.zeros((), dtype=F64))

    def denoise(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        if self.which == "q" and cond is not None:
            return torch.tensor(GOLDEN["esd_gaussian"]["x"], dtype=F64).reshape(4, 2) + self.offset
        return self.law.denoise(x_t, t) + self.offset

    def clone(self, *, trainable: bool) -> Denoiser:
        return TwoGaussians("q")


def test_esd_between_gaussians() -> None:
    """The example weighs a difference of scores by (1 − a)·s; as a difference of noise that is 1 − a."""
    table, rows = GOLDEN["esd_gaussian"], at([0, 1, 2, 3])
    x, eps, g = (torch.tensor(table[key], dtype=F64).reshape(4, 2) for key in ("x", "eps", "g"))
    noise, fake = sticking(eps), Fake(critic=Critic(times=rows), guidance=CFG(scale=1 - table["lam"]))
    objective = VSD(times=rows, noise=noise["noise"], guidance=CFG(scale=1.0), fake=fake, **PLAIN)
    ours = descended(objective, "esd_gaussian", x=x, teacher=TwoGaussians("p"), before=noise["put"])
    close((1 - Pairs().alpha(torch.arange(4)))[:, None] * ours, g)
