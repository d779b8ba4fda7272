"""SDS, VSD, DMD and SiD: their expected gradients against divergences in closed form and by quadrature.

Notation: student q = law of x, teacher p; q_t, p_t their diffusions; T, ψ the teacher's and the perfect critic's x0;
r = σ/α; D numbers to an example. Tweedie gives ψ − T = (σ²/α)·(∇ln q_t − ∇ln p_t).
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from limbeck import (
    CFG,
    DMD,
    EDM,
    SDS,
    SGD,
    VP,
    VSD,
    Adam,
    Cosine,
    Critic,
    Fake,
    GaussianMixture,
    Image,
    Karras,
    Noised,
    Particles,
    Process,
    Rng,
    ScoreDistillation,
    SiD,
    Times,
    Uniform,
    along,
    distill,
    identity_score,
    like,
)
from tests.oracles.exact import (
    F64,
    PROCESSES,
    Affine,
    AtRatio,
    assert_mean,
    close,
    covariance,
    descended,
    every_process,
    factors,
    gaussian,
    gradient,
    mixture,
    normal_grid,
    normal_nodes,
    seeds,
    tensor,
)

RATIOS = (0.05, 0.6, 4.0)


def pull(objective: ScoreDistillation, x: Tensor, real: Tensor, fake: Tensor, t: Tensor, process: Process) -> Tensor:
    """g of two predictions of x0; whatever x_t they were made at."""
    seen = Noised(x, Rng("x_t").normal(*x.shape, dtype=x.dtype), t, torch.zeros_like(x), None, process)
    return objective.shaped(seen, seen.eps_of(real), seen.eps_of(fake), None)  # type: ignore[arg-type]


# Score distillation sampling


def sds_gradient(x: Tensor, teacher: GaussianMixture, ratio: Tensor | float) -> Tensor:
    """E_ε[g] = r/(1 + r²)·(I − Σ(Σ + r²I)⁻¹)·(x − μ): the noise has mean zero, and T is affine in x_t."""
    sigma, ratio = covariance(teacher), torch.as_tensor(ratio, dtype=F64)[..., None, None]
    eye = torch.eye(len(sigma), dtype=F64)
    pull = ratio / (1 + ratio**2) * (eye - sigma @ torch.linalg.inv(sigma + ratio**2 * eye))
    return (pull @ (x - teacher.means[0])[..., None])[..., 0]


@every_process
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("d", [1, 2])
def test_expected_gradient_of_sds(process: Process, ratio: float, d: int) -> None:
    teacher, x = mixture(0, k=1, d=d, process=process), Rng(0).normal(d, dtype=F64)
    eps, weights = normal_nodes(d)
    t = process.at_ratio(torch.full((len(eps),), ratio, dtype=F64))
    clean = x.expand(eps.shape)
    real = teacher.denoise(process.add_noise(clean, eps, t), t)
    close(weights @ pull(SDS(), clean, real, clean, t, process), sds_gradient(x, teacher, ratio))


@every_process
def test_score_difference_is_a_weighted_difference_of_eps(process: Process) -> None:
    """w·(ε_real − ε_fake) with w = σ²/(α² + σ²), which is σ² where variance is preserved."""
    t = process.at_ratio(torch.logspace(-2, 1.5, 8, dtype=F64))
    x_t, real, fake = (Rng((0, name)).normal(8, 3, dtype=F64) for name in ("x_t", "real", "fake"))
    eps_real, eps_fake = (process.convert(x0, x_t, t, "x0", "eps") for x0 in (real, fake))
    w = process.sigma(t) ** 2 / (process.alpha(t) ** 2 + process.sigma(t) ** 2)
    if isinstance(process, VP):
        close(w, process.sigma(t) ** 2)
    close(pull(SDS(), x_t, real, fake, t, process), like(w, real) * (eps_real - eps_fake), 1e-11)


@seeds
@pytest.mark.parametrize("ratio", [0.4, 1.0, 4.0])  # at a small ratio the noise hides the mean
def test_a_run_descends_the_expected_gradient_of_sds(seed: int, ratio: float) -> None:
    n, teacher = 20_000, mixture(seed, k=1)
    x = Rng(seed).normal(2, dtype=F64)
    moved = descended(SDS(times=AtRatio(ratio)), teacher, Particles(x.expand(n, 2)), batch=n, seed=seed)
    assert_mean(n * moved["x"], sds_gradient(x, teacher, ratio))


@pytest.mark.parametrize("times", [Uniform(), Karras(lo=0.2, hi=0.7)], ids=["uniform", "karras"])
def test_a_run_descends_the_mean_over_levels(times: Times) -> None:
    n, process = 40_000, VP()
    teacher, x = mixture(0, k=1, process=process), tensor(2.0, -1.0)
    u = (torch.arange(4000, dtype=F64) + 0.5) / 4000
    expected = sds_gradient(x, teacher, process.ratio(times.at(u, process))).mean(0)
    moved = descended(SDS(times=times), teacher, Particles(x.expand(n, 2)), batch=n)
    assert_mean(n * moved["x"], expected)


@pytest.mark.parametrize("guidance", [None, CFG(scale=3.0), CFG(scale=0.0)], ids=str)
@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_a_run_descends_guided_sds(guidance: CFG | None, ratio: float) -> None:
    """w·E[ε_u + s·(ε_c − ε_u) − ε] with ε_θ = −σ·∇ln p_t by autodiff, for particles of two classes at one place."""
    n, scale, teacher = 40_000, 1.0 if guidance is None else guidance.scale, mixture(3, k=4, d=1, classes=2)
    x, labels = torch.full((n, 1), 0.4, dtype=F64), torch.arange(n) % 2
    objective = SDS(times=AtRatio(ratio), guidance=guidance)
    moved = n * descended(objective, teacher, Particles(x, cond=labels), batch=n)["x"]
    eps, weights = normal_grid()
    t = torch.full((len(eps),), ratio, dtype=F64)
    for label in (0, 1):
        x_t = (0.4 + ratio * eps)[:, None].requires_grad_()
        towards, away = (
            -ratio * torch.autograd.grad(teacher.log_prob(x_t, t, cond).sum(), x_t)[0][:, 0]
            for cond in (torch.full((len(eps),), label), None)
        )
        expected = ratio**2 / (1 + ratio**2) * (weights @ (away + scale * (towards - away) - eps))
        assert_mean(moved[labels == label], expected[None], share=0.2)


@pytest.mark.parametrize("objective", [SDS(times=AtRatio(0.7)), DMD(critic_steps=1, times=AtRatio(0.7))], ids=repr)
def test_a_run_descends_the_same_in_every_process(objective: SDS | DMD) -> None:
    x = Rng(1).normal(64, 2, dtype=F64)
    moved = [descended(objective, mixture(0, process=p), Particles(x), batch=64)["x"] for p in PROCESSES]
    for other in moved[1:]:
        close(other, moved[0])


def test_an_image_descends_the_mean_over_its_draws() -> None:
    """The batch of an image is its n noises: its step is the mean of n particles' steps at the same place."""
    teacher, x, n = mixture(0, k=1), tensor(1.0, 0.5), 32
    one = descended(SDS(), teacher, Image(x), batch=n)["x"]
    each = descended(SDS(), teacher, Particles(x.expand(n, 2)), batch=n)["x"]
    close(one, each.sum(0))


def test_along_has_the_gradient_it_is_given() -> None:
    x, g = Rng(0).normal(3, 2, 4, dtype=F64).requires_grad_(), Rng(1).normal(3, 2, 4, dtype=F64).requires_grad_()
    along(x, g).sum().backward()
    assert torch.equal(x.grad, g) and g.grad is None


# Zero where the student is the teacher


@every_process
@pytest.mark.parametrize("objective", [DMD(critic_steps=1), DMD(critic_steps=1, shape=()), VSD(), SiD()], ids=repr)
def test_gradient_is_zero_when_the_critic_is_the_teacher(process: Process, objective: DMD | VSD | SiD) -> None:
    """A fresh critic is a clone of the teacher: to the bit no gradient, at any sample and level."""
    teacher, student = mixture(0, k=4, process=process, classes=2), Particles(Rng(0).normal(64, 2, dtype=F64))
    run = distill(teacher, student, objective, steps=2, batch=64, optim=SGD(lr=0.1))
    before, first = student.x.clone(), run.tick()
    assert torch.equal(student.x, before) and first.norms["student"] == 0
    assert first.norms["critic"] > 0
    assert run.tick().norms["student"] > 0  # by then the critic has learned


# Distribution matching


def pair(seed: int, d: int, process: Process) -> tuple[GaussianMixture, Affine]:
    """A Gaussian teacher and a Gaussian student that differ in mean and covariance."""
    rng = Rng(("pair", seed))
    return mixture(seed, k=1, d=d, process=process), Affine(rng.normal(d, dtype=F64), factors(1, d, rng)[0])


def diffused(a: Tensor, b: Tensor, ratio: float) -> MultivariateNormal:
    """q_t/α: N(a, bbᵀ + r²I)."""
    return MultivariateNormal(a, b @ b.mT + ratio**2 * torch.eye(len(a), dtype=F64))


Compare = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x, T, ψ, t) → [B]."""
Divergence = Callable[[GaussianMixture, float], Callable[[Tensor, Tensor], Tensor]]
"""(teacher, ratio) → (a, b) → a number."""


def diffused_kl(teacher: GaussianMixture, ratio: float) -> Callable[[Tensor, Tensor], Tensor]:
    """(a, b) ↦ KL(q_t ‖ p_t), which the scale α leaves as it is."""
    return lambda a, b: kl_divergence(
        diffused(a, b, ratio), diffused(teacher.means[0], teacher.factor[0].detach(), ratio)
    )


def expectation(
    loss: Compare, teacher: GaussianMixture, student: Affine, ratio: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """(a, b) ↦ E[loss(x, T, ψ, t)] over x = a + bz and ε by quadrature, exact since all is of low degree.

    ψ keeps its parameters while (a, b) move, as a critic does within a tick.
    """
    process, d = teacher.process, len(student.a)
    critic = student.denoiser(process)
    nodes, weights = normal_nodes(2 * d, 3)
    t = process.at_ratio(torch.full((len(nodes),), ratio, dtype=F64))

    def value(a: Tensor, b: Tensor) -> Tensor:
        x = a + nodes[:, :d] @ b.mT
        x_t = process.add_noise(x, nodes[:, d:], t)
        return weights @ loss(x, teacher.denoise(x_t, t), critic.denoise(x_t, t), t)

    return value


def assert_descends(
    loss: Compare, divergence: Divergence, parts: tuple[GaussianMixture, Affine], factor: Callable[[float], float]
) -> None:
    """The expected gradient of a loss is a factor times that of a divergence, at several levels."""
    teacher, student = parts
    for ratio in RATIOS:
        moved = gradient(expectation(loss, teacher, student, ratio), student.a, student.b)
        wanted = gradient(divergence(teacher, ratio), student.a, student.b)
        for actual, expected in zip(moved, wanted, strict=True):
            close(actual, factor(ratio) * expected, 1e-11)


@every_process
@seeds
@pytest.mark.parametrize("d", [1, 2])
def test_dmd_is_the_gradient_of_the_diffused_kl(process: Process, seed: int, d: int) -> None:
    """∇KL(q_t ‖ p_t) = E[α·(∇ln q_t − ∇ln p_t)·∂x] = r⁻²·E[(ψ − T)·∂x], the score itself having mean zero.

    DMD without its normaliser is E[(ψ − T)·∂x], that is r² times the gradient of the KL divergence: over levels it
    descends E_t[r(t)²·KL(q_t ‖ p_t)].
    """

    def loss(x: Tensor, real: Tensor, fake: Tensor, t: Tensor) -> Tensor:
        return along(x, pull(DMD(shape=()), x, real, fake, t, process))

    assert_descends(loss, diffused_kl, pair(seed, d, process), lambda r: r**2)


@every_process
@seeds
def test_vsd_is_the_gradient_of_the_diffused_kl(process: Process, seed: int) -> None:
    """VSD weighs (ψ − T) by r/(1 + r²) and sums over D: r³/(1 + r²) times the gradient of the KL divergence."""

    def loss(x: Tensor, real: Tensor, fake: Tensor, t: Tensor) -> Tensor:
        return along(x, pull(VSD(), x, real, fake, t, process))

    assert_descends(loss, diffused_kl, pair(seed, 2, process), lambda r: r**3 / (1 + r**2))


@pytest.mark.parametrize("shape", [(5,), (1, 4, 4)], ids=str)
def test_normalised_gradient_of_dmd(shape: tuple[int, ...]) -> None:
    """(ψ − T)/(mean|x − T|·D), the normaliser being a constant."""
    x, real, fake = (Rng((1, name)).normal(6, *shape, dtype=F64) for name in ("x", "real", "fake"))
    t, process = torch.logspace(-1, 1, 6, dtype=F64), EDM()
    (g,) = gradient(lambda x: along(x, pull(DMD(), x, real, fake, t, process)).sum(), x)
    for i in range(6):
        close(g[i], (fake[i] - real[i]) / ((x[i] - real[i]).abs().mean() * x[i].numel()))


# Score identity distillation


def fisher(teacher: GaussianMixture, ratio: float, *, frozen: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """(a, b) ↦ E_{q_t}‖T − ψ‖² with ψ the exact critic of (a, b): r⁴·α² times the Fisher divergence of q_t to p_t.

    Both denoisers are affine in x̄ = x_t/α ~ N(m, S), so that it is tr(GSGᵀ) + ‖Gm + h‖². ``frozen`` keeps the
    law of x̄ while ψ follows (a, b).
    """
    eye = torch.eye(teacher.means.shape[1], dtype=F64)

    def gain(cov: Tensor) -> Tensor:
        return cov @ torch.linalg.inv(cov + ratio**2 * eye)

    def value(a: Tensor, b: Tensor) -> Tensor:
        keep, own = gain(covariance(teacher)), gain(b @ b.mT)
        g, h = keep - own, (eye - keep) @ teacher.means[0] - (eye - own) @ a
        m, s = a, b @ b.mT + ratio**2 * eye
        if frozen:
            m, s = m.detach(), s.detach()
        return (g @ s @ g.mT).trace() + ((g @ m + h) ** 2).sum()

    return value


@every_process
@seeds
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize(("alpha", "frozen"), [(0.5, False), (1.0, True)], ids=["fisher", "frozen"])
def test_sid_is_half_the_gradient_of_the_fisher_divergence(
    process: Process, seed: int, d: int, alpha: float, frozen: bool
) -> None:
    """With δ = T − ψ and F = E‖δ‖²: E⟨δ, T − x⟩ = E⟨δ, δ⟩ because E[x | x_t] = ψ, and F is the largest value of

        J(ψ) = E[2⟨T − ψ, T − x⟩ − ‖T − ψ‖²]   over all functions ψ.

    So dF = ∂J at fixed ψ (envelope theorem), and J is twice the loss at a = ½. At a = 1 the loss is ½J − ½E‖δ‖²;
    the second part, at fixed ψ, is the share of dF that comes through sampling, so what stays is half the share that
    comes through ψ.
    """

    def loss(x: Tensor, real: Tensor, fake: Tensor, t: Tensor) -> Tensor:
        return identity_score(x, real, fake, alpha=alpha, normalise=False)

    def divergence(teacher: GaussianMixture, ratio: float) -> Callable[[Tensor, Tensor], Tensor]:
        return fisher(teacher, ratio, frozen=frozen)

    assert_descends(loss, divergence, pair(seed, d, process), lambda _: 0.5)


def test_fisher_by_scores() -> None:
    """F is r⁴α²·E‖∇ln q_t − ∇ln p_t‖²: what the closed form above is made of."""
    ratio, process = 0.8, VP()
    teacher, student = pair(0, 2, process)
    x = diffused(student.a.detach(), student.b.detach(), ratio)
    nodes, weights = normal_nodes(2)
    t = process.at_ratio(torch.full((len(nodes),), ratio, dtype=F64))
    alpha = process.alpha(t)[0]
    x_t = (alpha * (x.mean + nodes @ x.scale_tril.mT)).requires_grad_()
    own = student.denoiser(process)
    gap = torch.autograd.grad((own.log_prob(x_t, t) - teacher.log_prob(x_t, t)).sum(), x_t)[0]
    value = fisher(teacher, ratio, frozen=False)(student.a, student.b)
    close(ratio**4 * alpha**2 * (weights @ (gap**2).sum(1)), value.detach())


def test_normalised_value_of_sid() -> None:
    """Each example is divided by its mean |x − T|, a constant to the gradient."""
    x, real, fake = (Rng((2, name)).normal(6, 3, dtype=F64) for name in ("x", "real", "fake"))
    scale = (x - real).abs().mean(1)
    for alpha in (0.5, 1.2):
        plain = identity_score(x, real, fake, alpha=alpha, normalise=False)
        close(identity_score(x, real, fake, alpha=alpha), plain / scale)
        for normalised, raw in zip(
            gradient(lambda *a, k=alpha: identity_score(*a, alpha=k).sum(), x, real, fake),
            gradient(lambda *a, k=alpha: identity_score(*a, alpha=k, normalise=False).sum(), x, real, fake),
            strict=True,
        ):
            close(normalised, raw / scale[:, None])


# Where nothing is affine: mixtures on the line, all integrals on a grid


class Line:
    """A student mixture Σ_k w_k·N(m_k, s_k²) against a teacher mixture, as functions of (m, s)."""

    def __init__(self, seed: int, ratio: float):
        self.teacher, self.start = mixture(seed, k=3, d=1), mixture(seed + 100, k=2, d=1)
        self.m, self.s = self.start.means[:, 0].detach(), self.start.factor[:, 0, 0].detach()
        self.w, self.ratio = self.start.logits.exp().detach(), ratio

    def critic(self, m: Tensor, s: Tensor) -> GaussianMixture:
        """The exact denoiser, differentiable by (m, s)."""
        critic = self.start.clone(trainable=False)
        for name, value in (("means", m[:, None]), ("factor", s[:, None, None])):
            delattr(critic, name)
            setattr(critic, name, value)
        return critic

    def expectation(self, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        """(m, s) ↦ E[loss(x, T, ψ)] over components, z and ε, with ψ at its place."""
        (z, wz), (eps, we) = normal_grid(), normal_grid()
        frozen = self.critic(self.m, self.s)

        def value(m: Tensor, s: Tensor) -> Tensor:
            x = (m[:, None, None] + s[:, None, None] * z[:, None]).expand(-1, -1, len(eps))
            weights = (self.w[:, None, None] * wz[:, None] * we).reshape(-1)
            x_t, t = (x + self.ratio * eps).reshape(-1, 1), torch.full((x.numel(),), self.ratio, dtype=F64)
            return weights @ loss(x.reshape(-1, 1), self.teacher.denoise(x_t, t), frozen.denoise(x_t, t))

        return value

    def over_density(self, integrand: Callable[[Tensor, Tensor, GaussianMixture], Tensor]):
        """(m, s) ↦ ∫ q_t(x)·integrand(x, t, critic) dx with everything a function of (m, s)."""
        x = torch.linspace(-25, 25, 4001, dtype=F64)[:, None]
        t = torch.full((len(x),), self.ratio, dtype=F64)

        def value(m: Tensor, s: Tensor) -> Tensor:
            critic = self.critic(m, s)
            density = critic.log_prob(x, t).exp()
            return (density * integrand(x, t, critic)).sum() * (x[1, 0] - x[0, 0])

        return value

    def assert_descends(
        self,
        loss: Callable[[Tensor, Tensor, Tensor], Tensor],
        integrand: Callable[[Tensor, Tensor, GaussianMixture], Tensor],
        factor: float,
    ) -> None:
        """The expected gradient of a loss is a factor times that of an integral over q_t."""
        moved = gradient(self.expectation(loss), self.m, self.s)
        wanted = gradient(self.over_density(integrand), self.m, self.s)
        for actual, expected in zip(moved, wanted, strict=True):
            close(actual, factor * expected, 1e-9)


@seeds
@pytest.mark.parametrize("ratio", [0.3, 1.5])
def test_dmd_on_mixtures(seed: int, ratio: float) -> None:
    line = Line(seed, ratio)

    def loss(x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
        t = torch.full((len(x),), ratio, dtype=F64)
        return along(x, pull(DMD(shape=()), x, real, fake, t, line.teacher.process))

    def log_odds(x: Tensor, t: Tensor, critic: GaussianMixture) -> Tensor:
        return critic.log_prob(x, t) - line.teacher.log_prob(x, t)

    line.assert_descends(loss, log_odds, ratio**2)


@seeds
@pytest.mark.parametrize("ratio", [0.3, 1.5])
def test_sid_on_mixtures(seed: int, ratio: float) -> None:
    line = Line(seed, ratio)

    def loss(x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
        return identity_score(x, real, fake, alpha=0.5, normalise=False)

    def gap(x: Tensor, t: Tensor, critic: GaussianMixture) -> Tensor:
        return ((line.teacher.denoise(x, t) - critic.denoise(x, t)) ** 2).sum(1)

    line.assert_descends(loss, gap, 0.5)


# The same through a run


def with_exact_critic(seed: int, d: int, process: Process) -> tuple[GaussianMixture, Affine]:
    """A teacher whose trainable clone is the perfect critic of the student."""
    teacher, student = pair(seed, d, process)
    teacher.network = lambda: student.denoiser(process).clone(trainable=True)
    return teacher, student


def flat(moved: dict[str, Tensor]) -> Tensor:
    return torch.cat([moved["a"], moved["b"].flatten()])


RUNS = {
    "dmd": (
        lambda times: DMD(times=times, shape=(), critic_steps=1),
        lambda teacher, r: lambda a, b: r**2 * diffused_kl(teacher, r)(a, b),
    ),
    "vsd": (
        lambda times: VSD(times=times),
        lambda teacher, r: lambda a, b: r**3 / (1 + r**2) * diffused_kl(teacher, r)(a, b),
    ),
    "sid": (
        lambda times: SiD(times=times, normalise=False, alpha=0.5),
        lambda teacher, r: lambda a, b: fisher(teacher, r, frozen=False)(a, b) / 2,
    ),
    "frozen": (
        lambda times: SiD(times=times, normalise=False, alpha=1.0),
        lambda teacher, r: lambda a, b: fisher(teacher, r, frozen=True)(a, b) / 2,
    ),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(("process", "ratio"), [(VP(), 0.4), (EDM(), 1.5)], ids=["vp", "edm"])
def test_a_run_descends_the_divergence(name: str, process: Process, ratio: float) -> None:
    make, divergence = RUNS[name]
    teacher, student = with_exact_critic(0, 2, process)
    a, b = student.a.detach().clone(), student.b.detach().clone()
    expected = torch.cat([g.flatten() for g in gradient(divergence(teacher, ratio), a, b)])
    draws = []
    for seed in range(16):
        fresh = Affine(a, b)
        draws.append(flat(descended(make(AtRatio(ratio)), teacher, fresh, batch=4096, seed=seed)))
    assert_mean(draws, expected, beyond=7)  # errors are estimated from 16 draws


@pytest.mark.parametrize("process", PROCESSES[:2], ids=lambda p: type(p).__name__)
def test_a_perfect_critic_stays(process: Process) -> None:
    """The critic's loss has no gradient where ψ = E[x | x_t] for the student's own samples."""
    teacher, student = with_exact_critic(1, 2, process)
    objective = DMD(fake=Fake(critic=Critic(times=AtRatio(0.8))), critic_steps=1)
    draws: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    for seed in range(16):
        for whose, samples in (("student", student), ("teacher", _like_teacher(teacher))):
            moved = descended(objective, teacher, _copy(samples), batch=4096, seed=seed, role="critic")
            draws[whose].append(torch.cat([moved["means"].flatten(), moved["factor"].flatten()]))
    error = torch.stack(draws["student"]).std(0) / 4 + 1e-12  # the factor has an unused triangle
    assert (torch.stack(draws["student"]).mean(0).abs() < 7 * error).all()
    assert (torch.stack(draws["teacher"]).mean(0).abs() > 7 * error).any()


def _copy(student: Affine) -> Affine:
    return Affine(student.a.detach(), student.b.detach())


def _like_teacher(teacher: GaussianMixture) -> Affine:
    return Affine(teacher.means[0].detach(), teacher.factor[0].detach())


# Particles: a mode or a distribution


def spread(objective: SDS | VSD | DMD, seed: int, *, steps: int, lr: float) -> Tensor:
    """Standard deviations of 64 trained particles in units of the teacher's, along its own axes, [2]."""
    factor = tensor([1.0, 0.0], [0.6, 0.5])
    teacher = gaussian(tensor(1.0, -1.0), factor, EDM())
    begin = (0.3, 0.6, 1.0)[seed] * Rng((seed, "particles")).normal(64, 2, dtype=F64)
    student, optim = Particles(begin), Adam(lr=lr, schedule=Cosine())
    distill(teacher, student, objective, steps=steps, batch=64, optim=optim, seed=seed).finish()
    white = torch.linalg.solve_triangular(factor, (student.x.detach() - teacher.means).mT, upper=False)
    assert (white.mean(1).abs() < 0.25).all()  # both find the mean
    return white.std(1)


@seeds
def test_sds_collapses_where_distribution_matching_keeps_the_spread(seed: int) -> None:
    collapsed = spread(SDS(), seed, steps=200, lr=0.1)
    kept = spread(DMD(critic_steps=1), seed, steps=300, lr=0.05)
    assert (collapsed < 0.5).all()
    assert ((kept > 0.75) & (kept < 1.25)).all()
    assert (collapsed < 0.5 * kept).all()


def test_vsd_keeps_the_spread() -> None:
    kept = spread(VSD(), 0, steps=300, lr=0.05)
    assert ((kept > 0.75) & (kept < 1.25)).all()
