"""Knowledge distillation: the gradient T·(p_s − p_t), and divergences that are divergences."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F

from limbeck import KD, CrossEntropy, Dataset, Rng, soft_kl
from tests.oracles.exact import F64, close, descended, gradient, seeds

temperatures = pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])


def logits(seed: int, n: int = 6, classes: int = 5, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    rng = Rng(("logits", seed))
    return scale * rng.normal(n, classes, dtype=F64), scale * rng.normal(n, classes, dtype=F64)


@seeds
@temperatures
def test_gradient_by_the_students_logits(seed: int, temperature: float) -> None:
    s, t = logits(seed)
    (g,) = gradient(lambda s: soft_kl(s, t, temperature=temperature).sum(), s)
    close(g, temperature * ((s / temperature).softmax(1) - (t / temperature).softmax(1)))


@seeds
@temperatures
def test_value_is_the_divergence_of_torch(seed: int, temperature: float) -> None:
    s, t = logits(seed)
    kl = kl_divergence(Categorical(logits=t / temperature), Categorical(logits=s / temperature))
    close(soft_kl(s, t, temperature=temperature), temperature**2 * kl)


def test_no_gradient_reaches_the_teacher() -> None:
    s, t = (x.requires_grad_() for x in logits(0))
    soft_kl(s, t, temperature=2.0).sum().backward()
    assert t.grad is None and s.grad is not None


def test_it_sums_over_classes_and_not_over_examples() -> None:
    s, t = logits(0)
    value = soft_kl(s, t)
    assert value.shape == (6,)
    # Every class twice with half the probability: the sum stays, a mean over classes would halve.
    twice = [torch.cat([x, x], 1) for x in (s, t)]
    close(soft_kl(*twice), value)
    for i in range(6):
        close(soft_kl(s[i : i + 1], t[i : i + 1]), value[i : i + 1])


def test_adding_a_constant_to_all_logits_changes_nothing() -> None:
    s, t = logits(1)
    close(soft_kl(s + 7, t - 3, temperature=2.0), soft_kl(s, t, temperature=2.0))


@seeds
def test_hot_limit_is_half_the_squared_distance_of_centred_logits(seed: int) -> None:
    """T → ∞: T²·KL → ‖s̃ − t̃‖²/2C with s̃, t̃ of mean zero (arXiv 1503.02531, eq. 4)."""
    s, t = logits(seed)
    d = (s - s.mean(1, keepdim=True)) - (t - t.mean(1, keepdim=True))
    close(soft_kl(s, t, temperature=1e4), (d**2).sum(1) / (2 * 5), 1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("distance", [0.0, 1e-4, 1e-3, 0.02])
@seeds
def test_rounding_never_makes_it_negative(seed: int, distance: float, dtype: torch.dtype) -> None:
    """Close logits have divergences far below the rounding of half precision, and of float32 too."""
    rng = Rng(("half", seed))
    t = (3 * rng.normal(4096, 100)).to(dtype)
    s = (t.float() + distance * rng.normal(4096, 100)).to(dtype)
    value, exact = soft_kl(s, t, temperature=2.0), soft_kl(s.double(), t.double(), temperature=2.0)
    assert value.dtype == torch.float32 and value.min() >= 0
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)


def test_the_gradient_stays_where_rounding_hides_the_value() -> None:
    rng = Rng("hidden")
    t = 3 * rng.normal(4096, 100)
    s = (t + 1e-4 * rng.normal(4096, 100)).requires_grad_()
    value = soft_kl(s, t)
    value.sum().backward()
    assert (value == 0).any() and (s.grad[value == 0].norm(dim=1) > 0).all()


@temperatures
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_a_run_descends_the_mixture_of_both_losses(temperature: float, alpha: float) -> None:
    """(1 − α)·(p_s(1) − y) + α·T·(p_s(T) − p_t(T)), through a linear student to its weights and mean over rows."""
    n, x, y = 16, Rng("x").normal(1, 3, dtype=F64), torch.tensor([2])
    teacher, student = (_linear(seed) for seed in (0, 1))
    s, t = student(x).detach()[0], teacher(x).detach()[0]
    soft = temperature * ((s / temperature).softmax(0) - (t / temperature).softmax(0))
    hard = s.softmax(0) - F.one_hot(y[0], 4).double()
    expected = (1 - alpha) * hard + alpha * soft
    objective = KD(temperature=temperature, alpha=alpha)
    moved = descended(objective, teacher, student, Dataset(x=x, y=y), batch=n)
    close(moved["bias"], expected)
    close(moved["weight"], expected[:, None] * x)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_run_descends_the_cross_entropy(smoothing: float) -> None:
    x, y, student = Rng("x").normal(1, 3, dtype=F64), torch.tensor([2]), _linear(1)
    goal = (1 - smoothing) * F.one_hot(y[0], 4).double() + smoothing / 4
    expected = student(x).detach()[0].softmax(0) - goal
    close(descended(CrossEntropy(smoothing=smoothing), None, student, Dataset(x=x, y=y), batch=8)["bias"], expected)


def _linear(seed: int) -> nn.Linear:
    net = nn.Linear(3, 4, dtype=F64)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(Rng((seed, name)).normal(*p.shape, dtype=F64))
    return net
