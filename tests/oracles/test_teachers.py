"""Exact teachers against autodiff of their densities, quadrature over the data, and torch's own distributions."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from limbeck import (
    CFG,
    EDM,
    Denoiser,
    Denoising,
    Drawn,
    ExactDataset,
    GaussianMixture,
    LogNormal,
    Negative,
    Process,
    Rng,
    Trained,
    denoising,
    like,
)
from tests.oracles.exact import (
    F64,
    PROCESSES,
    assert_mean,
    close,
    descended,
    every_process,
    levels,
    mixture,
    seeds,
    tensor,
)

GRID = torch.linspace(-12, 12, 4001, dtype=F64)


def score(teacher: GaussianMixture | ExactDataset, x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
    """∇ ln p_t(x_t) by autodiff."""
    x_t = x_t.clone().requires_grad_()
    return torch.autograd.grad(teacher.log_prob(x_t, t, cond).sum(), x_t)[0]


def points(process: Process, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Samples over the whole range of levels, and where a teacher has little mass too."""
    t, rng = levels(process, 12), Rng(("points", seed))
    x0, eps = 2 * rng.normal(12, d, dtype=F64), rng.normal(12, d, dtype=F64)
    return process.add_noise(x0, eps, t), t


def denoised_by_score(teacher: GaussianMixture | ExactDataset, x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
    """Tweedie: E[x0 | x_t] = (x_t + σ²·∇ ln p_t)/α."""
    alpha, sigma = (like(f(t), x_t) for f in (teacher.process.alpha, teacher.process.sigma))
    return (x_t + sigma**2 * score(teacher, x_t, t, cond)) / alpha


@every_process
@seeds
@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("classes", [None, 2])
def test_mixture_against_autodiff(process: Process, seed: int, d: int, classes: int | None) -> None:
    teacher = mixture(seed, k=4, d=d, process=process, classes=classes)
    x_t, t = points(process, d, seed)
    for cond in (None, Rng(seed).integers(12, classes)) if classes else (None,):
        x0 = teacher.denoise(x_t, t, cond)
        close(x0, denoised_by_score(teacher, x_t, t, cond), 1e-11)
        close(process.convert(x0, x_t, t, "x0", "score"), score(teacher, x_t, t, cond), 1e-11)


@every_process
@seeds
@pytest.mark.parametrize("labelled", [False, True])
def test_dataset_against_autodiff(process: Process, seed: int, labelled: bool) -> None:
    data = Rng(("data", seed)).normal(9, 1, 2, 2, dtype=F64)
    teacher = ExactDataset(data, labels=torch.arange(9) % 2 if labelled else None, process=process)
    flat, t = points(process, 4, seed)
    x_t, cond = flat.reshape(12, 1, 2, 2), Rng(seed).integers(12, 2) if labelled else None
    x0 = teacher.denoise(x_t, t, cond)
    close(x0, denoised_by_score(teacher, x_t, t, cond), 1e-9)  # |x_t − αx_i|² loses digits at small σ


@every_process
@seeds
@pytest.mark.parametrize("labelled", [False, True])
def test_dataset_is_a_mixture_of_points(process: Process, seed: int, labelled: bool) -> None:
    data = Rng(("data", seed)).normal(9, 3, dtype=F64)
    labels = torch.arange(9) % 2 if labelled else None
    dataset = ExactDataset(data, labels=labels, process=process)
    x_t, t = points(process, 3, seed)
    cond = Rng(seed).integers(12, 2) if labelled else None
    for std, tolerance in ((0.0, 1e-9), (1e-7, 1e-6)):
        teacher = GaussianMixture(means=data, std=std, labels=labels, process=process)
        close(dataset.denoise(x_t, t, cond), teacher.denoise(x_t, t, cond), tolerance)
        close(dataset.log_prob(x_t, t, cond), teacher.log_prob(x_t, t, cond), tolerance)


@seeds
@pytest.mark.parametrize("process", PROCESSES[:2], ids=lambda p: type(p).__name__)
def test_log_prob_is_that_of_torch(seed: int, process: Process) -> None:
    teacher, ratio = mixture(seed, k=4, d=3), 0.7
    t = process.at_ratio(tensor(ratio))
    teacher.process = process
    alpha, sigma = process.alpha(t), process.sigma(t)
    cov = alpha**2 * teacher.factor @ teacher.factor.mT + sigma**2 * torch.eye(3, dtype=F64)
    parts = MultivariateNormal(alpha * teacher.means, cov)
    x = Rng(seed).normal(20, 3, dtype=F64)
    close(teacher.log_prob(x, t.expand(20)), MixtureSameFamily(Categorical(logits=teacher.logits), parts).log_prob(x))


@pytest.mark.parametrize("process", PROCESSES[:2], ids=lambda p: type(p).__name__)
@seeds
@pytest.mark.parametrize("ratio", [0.1, 1.0, 5.0])
def test_mixture_by_quadrature(process: Process, seed: int, ratio: float) -> None:
    """∫ x0·p(x0)·N(x_t; αx0, σ²) dx0 needs the data's density only: no formula of diffusion enters."""
    teacher, x0 = mixture(seed, k=3, d=1), GRID
    variance = (teacher.factor**2)[:, 0, 0]
    each = -((x0[:, None] - teacher.means[:, 0]) ** 2) / (2 * variance) - (2 * math.pi * variance).log() / 2
    prior = (each.exp() * teacher.logits.exp()).sum(1)
    t = process.at_ratio(tensor(ratio).expand(5))
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    x_t = alpha * torch.linspace(-3, 3, 5, dtype=F64)[:, None] * (1 + ratio)
    teacher.process = process
    joint = prior * (-((x_t - alpha * x0) ** 2) / (2 * sigma**2)).exp()
    density = joint.sum(1) * (x0[1] - x0[0]) / (sigma[:, 0] * (2 * math.pi) ** 0.5)
    close(teacher.denoise(x_t, t)[:, 0], (joint @ x0) / joint.sum(1), 1e-11)
    close(teacher.log_prob(x_t, t), density.log(), 1e-11)


@seeds
def test_samples_have_the_moments_of_the_mixture(seed: int) -> None:
    teacher = mixture(seed, k=4, classes=2)
    for cond in (None, 1):
        chosen = torch.ones(4, dtype=torch.bool) if cond is None else teacher.labels == cond
        weights = teacher.logits[chosen].softmax(0)
        mean = weights @ teacher.means[chosen]
        second = torch.einsum("k,kij->ij", weights, (teacher.factor @ teacher.factor.mT)[chosen])
        second = second + torch.einsum("k,ki,kj->ij", weights, teacher.means[chosen], teacher.means[chosen])
        n = 20_000
        x = teacher.sample(n, Rng((seed, "sample")), None if cond is None else torch.full((n,), cond))
        assert_mean(x, mean, share=1)
        assert_mean(x[:, :, None] * x[:, None], second, share=1)


# Guidance

GUIDED = (CFG(scale=0.0), CFG(scale=1.0), CFG(scale=3.5), Negative(scale=2.5, label=0), Negative(scale=0.0, label=0))


@every_process
@pytest.mark.parametrize("guidance", GUIDED, ids=str)
def test_guidance_is_the_same_in_every_form(process: Process, guidance: CFG | Negative) -> None:
    teacher = mixture(0, k=4, process=process, classes=2)
    x_t, t = points(process, 2, 0)
    cond = torch.arange(12) % 2
    base = teacher.denoise(x_t, t, torch.zeros(12, dtype=torch.long) if isinstance(guidance, Negative) else None)
    towards, guided = teacher.denoise(x_t, t, cond), guidance(teacher).denoise(x_t, t, cond)
    for form in ("eps", "score", "v", "flow"):
        base_, towards_, guided_ = (process.convert(x0, x_t, t, "x0", form) for x0 in (base, towards, guided))
        close(guided_, base_ + guidance.scale * (towards_ - base_), 1e-11)


def test_guidance_at_zero_and_one_is_no_guidance() -> None:
    teacher = mixture(1, k=4, classes=2)
    x_t, t = points(teacher.process, 2, 0)
    cond, zero = torch.arange(12) % 2, torch.zeros(12, dtype=torch.long)
    assert torch.equal(CFG(scale=1.0)(teacher).denoise(x_t, t, cond), teacher.denoise(x_t, t, cond))
    assert torch.equal(CFG(scale=0.0)(teacher).denoise(x_t, t, cond), teacher.denoise(x_t, t))
    assert torch.equal(Negative(scale=1.0)(teacher).denoise(x_t, t, cond), teacher.denoise(x_t, t, cond))
    assert torch.equal(Negative(scale=0.0, label=0)(teacher).denoise(x_t, t, cond), teacher.denoise(x_t, t, zero))


@seeds
def test_guided_score_is_that_of_the_sharpened_density(seed: int) -> None:
    # ∇[ln p(x) + s·(ln p(x|c) − ln p(x))], arXiv 2207.12598, sec. 3.1.
    teacher, s = mixture(seed, k=4, classes=2), 2.5
    x_t, t = points(teacher.process, 2, seed)
    x_t, cond = x_t.requires_grad_(), torch.arange(12) % 2
    log_p, log_c = teacher.log_prob(x_t, t), teacher.log_prob(x_t, t, cond)
    expected = torch.autograd.grad((log_p + s * (log_c - log_p)).sum(), x_t)[0]
    x0 = CFG(scale=s)(teacher).denoise(x_t, t, cond)
    close(teacher.process.convert(x0, x_t, t, "x0", "score"), expected, 1e-11)


# Preconditioning and the denoising loss


class Spy(torch.nn.Module):
    """A network that gives what it is told and remembers what it was given."""

    taps: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, out: Tensor):
        super().__init__()
        self.reply = out

    def forward(self, x: Tensor, level: Tensor, cond: object, *, taps: tuple[str, ...], out: bool):
        self.seen, self.level = x, level
        return self.reply, {}


@every_process
@pytest.mark.parametrize("s", [0.5, 1.3])
def test_preconditioning_has_unit_scale(process: Process, s: float) -> None:
    """On data N(0, s²): F's input and its target have variance 1, and the loss is F's plain squared error."""
    t = levels(process, 7)
    z, eps, f = torch.eye(7, dtype=F64), torch.eye(7, dtype=F64), Rng(0).normal(7, 7, dtype=F64)
    net = Spy(f)
    teacher = Trained(net, sigma_data=s, process=process)

    def seen(x0: Tensor, eps: Tensor) -> Tensor:
        teacher.denoise(process.add_noise(x0, eps, t), t)
        return net.seen

    # Everything is linear in (z, ε): the squares of both coefficients add up to the variance.
    zero = torch.zeros(7, 7, dtype=F64)
    by_z, by_eps = seen(s * z, zero), seen(zero, eps)
    close(by_z**2 + by_eps**2, torch.eye(7, dtype=F64))
    close(net.level, process.ratio(t).log() / 4)
    x0, x_t = s * z, process.add_noise(s * z, 2 * eps, t)
    net.reply = zero
    skip = teacher.denoise(x_t, t)
    net.reply = torch.ones(7, 7, dtype=F64)
    scale = teacher.denoise(x_t, t) - skip
    net.reply = f
    loss = denoising(teacher.denoise(x_t, t), x0, t, process, s)
    close(loss, ((f - (x0 - skip) / scale) ** 2).mean(1), 1e-11)
    # The target (x0 − skip)/scale is linear too; at one level its variance is that of z plus that of ε.
    net.reply = zero
    target = [(x - teacher.denoise(process.add_noise(x, e, t), t)) / scale for x, e in ((s * z, zero), (zero, eps))]
    close(target[0] ** 2 + target[1] ** 2, torch.eye(7, dtype=F64), 1e-11)


@seeds
def test_the_true_denoiser_is_stationary_under_denoising(seed: int) -> None:
    """E[x0 | x_t] minimises the loss, so the gradient at the truth is zero on average, and away from it is not."""
    truth, wrong = mixture(seed, k=2, d=1), mixture(seed, k=2, d=1)
    wrong.means += 0.3
    draws = {
        name: [_gradient_of_denoising(net, truth, s) for s in range(12)]
        for name, net in {"truth": truth, "wrong": wrong}.items()
    }
    error = torch.stack(draws["truth"]).std(0) / 12**0.5
    assert (torch.stack(draws["truth"]).mean(0).abs() < 6 * error).all()
    assert (torch.stack(draws["wrong"]).mean(0).abs() > 6 * error).any()


def _gradient_of_denoising(net: Denoiser, truth: GaussianMixture, seed: int) -> Tensor:
    data = Drawn(lambda n, rng: {"x": truth.sample(n, rng)}, fields=("x",))
    student = net.clone(trainable=True)
    moved = descended(Denoising(times=LogNormal(mean=0)), None, student, data, batch=4096, seed=seed)
    return torch.cat([moved["means"].flatten(), moved["factor"].flatten()])


def test_denoising_at_one_level_is_its_expectation() -> None:
    """Gaussian data and a Gaussian denoiser of other moments: the expected loss is a quadratic in closed form."""
    mean, std, ratio, s = tensor(0.7), tensor(0.4), 0.9, 0.5
    truth = GaussianMixture(means=mean[None], std=std)
    net = GaussianMixture(means=tensor([0.2]), std=0.8)
    keep = 0.8**2 / (0.8**2 + ratio**2)  # x0 = .2 + keep·(x_t − .2)
    bias = (1 - keep) * (0.2 - mean)
    error = bias**2 + (1 - keep) ** 2 * std**2 + keep**2 * ratio**2
    expected = (ratio**2 + s**2) / (ratio * s) ** 2 * error
    x = truth.sample(40_000, Rng(0))
    x_t = x + ratio * Rng(1).normal(40_000, 1, dtype=F64)
    t = torch.full((40_000,), ratio, dtype=F64)
    assert_mean(denoising(net.denoise(x_t, t), x, t, EDM(), s)[:, None], expected)
