"""Adversarial losses at their optima, penalties against derivatives in closed form, and both inside a GAN's run."""

import pytest
import torch
from torch import Tensor

from limbeck import (
    EDM,
    GAN,
    R1,
    SGD,
    AdversarialLoss,
    ApproximateR1,
    Drawn,
    Hinge,
    LogNormal,
    NonSaturating,
    Particles,
    Penalty,
    Process,
    RectifiedFlow,
    Redenoised,
    Rng,
    Run,
    ScoreDistillation,
    Weight,
    distill,
    like,
)
from tests.oracles.exact import (
    F64,
    Affine,
    AtRatio,
    close,
    descended,
    every_process,
    gradient,
    levels,
    mixture,
    tensor,
)
from tests.oracles.test_adversarial import Eyes

# Losses


@pytest.mark.parametrize(
    ("loss", "best"),
    [(NonSaturating(), lambda p, q: (p / q).log()), (Hinge(), lambda p, q: (p - q).sign())],
    ids=["non-saturating", "hinge"],
)
def test_the_best_logit_in_closed_form(loss: AdversarialLoss, best: object) -> None:
    """At densities p and q the expected loss p·l(real) + q·l(fake) is least at the log-ratio, or at the sign."""
    p, q = 0.05 + Rng(0).uniform(2, 50)
    logits = torch.linspace(-4, 4, 8001, dtype=F64)[:, None]
    zero = torch.zeros(50, dtype=F64)
    alone = loss.discriminator(zero, zero) / 2  # of one side, at logit 0
    fake, real = (loss.discriminator(logits, zero) - alone, loss.discriminator(zero, logits) - alone)
    found = logits[(q * fake + p * real).argmin(0), 0]
    close(found, best(p, q), 1.1e-3)  # type: ignore[operator]


def test_losses_of_the_student() -> None:
    logits = tensor(-3.0, 0.2, 2.0)
    close(NonSaturating().student(logits), (1 + (-logits).exp()).log())
    assert torch.equal(Hinge().student(logits), -logits)


# Penalties


def waves(y: Tensor) -> Tensor:
    """Two logits for each point: sin(a·y) + b·y."""
    a, b = torch.arange(1.0, 3 + y.shape[1], dtype=F64)[: y.shape[1]], torch.ones(y.shape[1], 2, dtype=F64)
    return (y @ a).sin()[:, None] + y @ b


def slope(y: Tensor) -> Tensor:
    """∇_y of either."""
    a = torch.arange(1.0, 3 + y.shape[1], dtype=F64)[: y.shape[1]]
    return (y @ a).cos()[:, None] * a + 1


@pytest.mark.parametrize("d", [1, 8])
def test_r1_is_half_the_squared_slope(d: int) -> None:
    """Of each of two discriminators by itself."""
    y = Rng(0).normal(6, d, dtype=F64)
    close(R1(weight=0.7).value(waves, [y], Rng(0)).detach(), 2 * 0.35 * (slope(y) ** 2).sum(1))


def test_r1_adds_over_several_inputs() -> None:
    y, z = Rng(0).normal(2, 5, 3, dtype=F64)
    both = R1().value(lambda a, b: waves(a) * (1 + b[:, :1]), [y, z], Rng(0)).detach()
    by_y = (slope(y) * (1 + z[:, :1])) ** 2
    close(both, by_y.sum(1) + waves(y)[:, 0] ** 2)


@pytest.mark.parametrize("d", [1, 8])
def test_approximate_r1_is_the_squared_slope_along_its_noise(d: int) -> None:
    """For one linear logit it is γ·s²·(a·n)² with the very noise; its mean is γs²‖a‖²."""
    a, n = torch.arange(1.0, d + 1, dtype=F64), 200_000
    got = ApproximateR1(weight=0.7, std=0.3).value(lambda y: y @ a, [torch.zeros(n, d, dtype=F64)], Rng(4))
    close(got, 0.7 * (0.3 * Rng(4).normal(n, d, dtype=F64) @ a) ** 2)
    expected, error = 0.7 * 0.09 * (a**2).sum(), got.std() / n**0.5
    assert error < 0.01 * expected and (got.mean() - expected).abs() < 6 * error


def test_approximate_r1_nears_the_exact_one() -> None:
    """Where logits are curved, its mean over noise over s² is twice R1 as s → 0."""
    y, n = Rng(0).normal(1, 2, dtype=F64), 400_000
    one = [y.expand(n, 2)]
    got = ApproximateR1(std=1e-3).value(lambda y: waves(y)[:, 0], one, Rng(1)) / 1e-6
    exact = 2 * R1().value(lambda y: waves(y)[:, 0], [y], Rng(0)).item()
    assert (got.mean() - exact).abs() < 6 * got.std() / n**0.5 + 1e-2 * exact


# In a run


def run_of(objective: GAN, *, batch: int = 64) -> Run:
    """Gaussians on the line, learning nothing: one tick's losses can be made again by hand."""
    teacher = Eyes(means=tensor([0.7]), std=0.6, process=EDM())
    data = Drawn(lambda n, rng: {"x": teacher.sample(n, rng)}, fields=("x",))
    optim = {"default": SGD(lr=1.0), "student": SGD(lr=0.0)}
    return distill(teacher, Affine(tensor(-0.5), tensor([1.1])), objective, data, steps=1, batch=batch, optim=optim)


@pytest.mark.parametrize(
    "penalty", [R1(weight=3.0), R1(weight=3.0, at="features"), ApproximateR1(weight=3.0, std=0.1)], ids=repr
)
def test_the_discriminator_descends_its_loss_and_the_price(penalty: Penalty) -> None:
    """By hand: the same data and noise, D's slope by autodiff of the sum, and the gradient of it all by the heads."""
    objective = GAN(on="teacher", times=AtRatio(0.8), hidden=4, loss=Hinge(), penalty=penalty)
    run = run_of(objective)
    heads, eyes, seen = run.cast.roles["discriminator"].module.heads, run.cast.teacher, []
    before = {name: p.detach().clone() for name, p in heads.named_parameters()}
    assert isinstance(eyes, Eyes)
    (discriminator,) = (i for i, term in enumerate(run.terms) if term.name == "discriminator")
    loss = run.terms[discriminator].loss
    object.__setattr__(run.terms[discriminator], "loss", lambda tick: (seen.append(tick), loss(tick))[1])
    got = run.tick().losses["discriminator"]
    tick = seen[0]
    fake, real = tick.noised(objective.times).detached(), tick.noised(objective.times, of="data")

    def priced(*weights: Tensor) -> Tensor:
        def logit(x_t: Tensor) -> Tensor:
            return on(eyes.look(x_t, real.t, taps=("waves",), x0=False).features["waves"])

        def on(f: Tensor) -> Tensor:
            return torch.func.functional_call(heads, dict(zip(before, weights, strict=True)), ({"waves": f},))

        base = (1 + logit(fake.x_t)).relu() + (1 - logit(real.x_t)).relu()
        f = eyes.look(real.x_t, real.t, taps=("waves",), x0=False).features["waves"]
        of, at = (on, f) if penalty.at == "features" else (logit, real.x_t)
        if isinstance(penalty, R1):
            at = at.detach().requires_grad_()
            (s,) = torch.autograd.grad(of(at).sum(), at, create_graph=True)
            return (base + 1.5 * (s**2).sum(1)).mean()
        n = tick.rng(("penalty", real.key)).normal(*at.shape, dtype=at.dtype)
        return (base + 3 * (of(at) - of(at + 0.1 * n)) ** 2).mean()

    assert got == pytest.approx(priced(*before.values()).item(), abs=1e-12)
    slopes = gradient(priced, *before.values())
    for (name, p), g in zip(heads.named_parameters(), slopes, strict=True):
        close(before[name] - p.detach(), g, 1e-10)
    assert max(g.norm() for g in slopes) > 0.1


class Twice(Eyes):
    """Features of two levels: slow waves and all of them."""

    taps = {"slow": 4, "waves": 16}  # noqa: RUF012

    def look(self, x_t: Tensor, t: Tensor, cond: object = None, *, taps: tuple[str, ...], x0: bool = True) -> object:
        seen = super().look(x_t, t, cond, taps=("waves",), x0=x0)
        waves = seen.features["waves"]
        return type(seen)(None, {"slow": waves[:, [0, 1, 8, 9]], "waves": waves})


@pytest.mark.parametrize("loss", [Hinge(), NonSaturating()], ids=repr)
def test_heads_apart_are_discriminators_of_their_own(loss: AdversarialLoss) -> None:
    """Their losses add, each on its own logit; together, there is one loss on the sum of logits."""
    values = {}
    for apart in (True, False):
        teacher = Twice(means=tensor([0.7]), std=0.6)
        data = Drawn(lambda n, rng: {"x": teacher.sample(n, rng)}, fields=("x",))  # noqa: B023, drawn at once
        objective = GAN(on="teacher", times=AtRatio(0.8), loss=loss, apart=apart, hidden=4)
        run = distill(teacher, Affine(tensor(0.5), tensor([1.1])), objective, data, steps=1, batch=8)
        heads, constant = run.cast.roles["discriminator"].module.heads, {"slow": 0.3, "waves": -0.8}
        with torch.no_grad():
            for p in heads.parameters():
                p.zero_()
            for tap, value in constant.items():
                heads.heads[tap][-1].bias.fill_(value)
        values[apart] = run.tick().losses
    each = tensor(0.3, -0.8)
    whole = each.sum()
    for name, of in (("gan", loss.student), ("discriminator", lambda d: loss.discriminator(d, d))):
        assert values[True][name] == pytest.approx(of(each).sum().item(), abs=1e-12)
        assert values[False][name] == pytest.approx(of(whole).item(), abs=1e-12)
    if isinstance(loss, NonSaturating):
        assert values[True]["gan"] != pytest.approx(values[False]["gan"], abs=1e-3)


# The distillation term of ADD


@every_process
@pytest.mark.parametrize("d", [1, 8])
@pytest.mark.parametrize("weight", [Weight(sigma=1.0), Weight(), Weight(sigma=1.0, alpha=-1.0)], ids=repr)
def test_pulled_to_what_the_teacher_makes_is_score_distillation(process: Process, d: int, weight: Weight) -> None:
    """By autodiff, the gradient of c·‖x − sg T(x_t)‖² is w·(ε_T − ε) for c = α·w/(2σ), at any level."""
    teacher, t = mixture(0, d=d, process=process), levels(process)
    x, eps = Rng(0).normal(2, len(t), d, dtype=F64)
    x_t, w = process.add_noise(x, eps, t), weight.at(t, process)
    real, c = teacher.denoise(x_t, t), process.alpha(t) * w / (2 * process.sigma(t))
    (pulled,) = gradient(lambda x: (like(c, x) * (x - real) ** 2).sum(), x)
    close(pulled, like(w, x) * (process.convert(real, x_t, t, "x0", "eps") - eps), 1e-10)


@every_process
def test_a_run_descends_half_the_pull_with_exponential_weight(process: Process) -> None:
    """½·c·‖x − sg T(x_t)‖² with c = α/√(α² + σ²), on the very noise of the run; and that is SDS with w = σ."""
    teacher, x, seen = mixture(1, process=process), Rng(1).normal(16, 2, dtype=F64), []
    objective = Redenoised(times=AtRatio(0.7))
    moved = descended(objective, teacher, Particles(x), batch=16)["x"]
    run = distill(teacher, Particles(x), objective, steps=1, batch=16)
    (term,) = run.terms
    object.__setattr__(term, "loss", lambda tick: (seen.append(tick.noised(objective.times)), objective.loss(tick))[1])
    run.tick()
    x_t, t = seen[0].x_t.detach(), seen[0].t
    real, c = teacher.denoise(x_t, t), 1 / (1 + process.ratio(t) ** 2).sqrt()
    (pulled,) = gradient(lambda x: (like(c, x) / 2 * (x - real) ** 2).sum(1).mean(), x)
    close(moved, pulled)
    same = ScoreDistillation(times=objective.times, weight=Weight(sigma=1.0))
    assert torch.equal(moved, descended(same, teacher, Particles(x), batch=16)["x"])


# The noise levels of LADD


def test_log_normal_ratios_are_logit_normal_times() -> None:
    """On straight lines ln(σ/α) = logit(t): LADD's logit-normal t̂ is `LogNormal`."""
    u = torch.linspace(0.01, 0.99, 99, dtype=F64)
    t = LogNormal(mean=1.0, std=1.0).at(u, RectifiedFlow())
    close(t, torch.sigmoid(1 + torch.special.ndtri(u)))
