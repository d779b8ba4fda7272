"""Rewards, pairs and their student: tilted densities in closed form, likelihoods by torch, and identities."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from limbeck import (
    DMD,
    PSO,
    SGD,
    Adapted,
    Critic,
    Dataset,
    Direction,
    Fake,
    FewStep,
    GaussianMixture,
    Linear,
    Nearness,
    Particles,
    Preference,
    Process,
    RandomEta,
    Region,
    Reward,
    Rng,
    Run,
    ScoreDistillation,
    Teacher,
    Tick,
    Trained,
    distill,
    euler,
    pair_margin,
    renoised,
    sample,
    transition_ratio,
)
from limbeck.errors import Incompatible
from limbeck.problems.networks import ResidualMLP
from limbeck.rng import seeded
from tests.oracles.exact import (
    F64,
    Affine,
    AtRatio,
    assert_mean,
    close,
    covariance,
    descended,
    every_process,
    gradient,
    mixture,
    seeds,
    tensor,
)

# Rewards


def test_rewards_by_hand() -> None:
    x = tensor([[1.0, 2.0], [3.0, -1.0]], [[0.0, 0.5], [9.0, 9.0]])  # two samples of shape [2, 2]
    close(Direction(along=(2.0, -1.0))(x, None), tensor(0.0, -0.5))
    close(Nearness(to=(1.0, 0.0, 3.0), scale=2.0)(x, None), -tensor(4.0, 1 + 0.25 + 36) / 8)
    assert Region(along=(0.0, 1.0), least=2.0)(x, None).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("reward", [Direction(along=(0.3, -2.0)), Nearness(to=(0.5, 1.0, 2.0), scale=0.7)], ids=repr)
@pytest.mark.parametrize("normalise", [False, True])
def test_a_run_climbs_the_reward(reward: Preference, normalise: bool) -> None:
    """Particles step along ∇r, or along its direction alone, each by itself."""
    x = Rng(0).normal(5, 8, dtype=F64)
    moved = descended(Reward(reward=reward, normalise=normalise), None, Particles(x), batch=5)["x"]
    (slope,) = gradient(lambda x: reward(x, None).sum(), x)
    close(-5 * moved, slope / slope.norm(dim=1, keepdim=True) if normalise else slope)


def test_a_reward_without_a_slope_is_refused() -> None:
    run = distill(None, Particles(torch.zeros(4, 2)), Reward(reward=Region()), steps=1, batch=4)
    with pytest.raises(Incompatible, match="needs a loss that depends on student"):
        run.tick()


def test_held_weights_settle_where_reward_and_hold_balance() -> None:
    """max a·x − h/2·‖x − x₀‖² at x₀ + a/h, from any start; the hold is to the weights at the start."""
    x, a, h = Rng(0).normal(6, 2, dtype=F64), tensor(0.6, -0.2), 0.5
    objective = Reward(reward=Direction(along=(0.6, -0.2)), hold=h / 6)  # the loss is a mean over six particles
    run = distill(None, Particles(x), objective, steps=300, batch=6, optim=SGD(lr=1.0))
    close(run.finish().x.detach(), x + a / h, 1e-9)  # type: ignore[union-attr]


def test_the_hold_remembers_the_start_of_a_resumed_run() -> None:
    def made() -> Run:
        objective = Reward(reward=Direction(), hold=0.3)
        return distill(None, Particles(torch.ones(2, 2)), objective, steps=6, batch=2, optim=SGD(lr=0.5))

    whole, half, other = made(), made(), made()
    whole.finish()
    for _ in range(3):
        half.tick()
    other.load_state_dict(half.state_dict())
    assert torch.equal(other.finish().x, whole.student.x)  # type: ignore[union-attr]


# Distribution matching beside a reward


def joint(teacher: GaussianMixture, a: Tensor, b: Tensor, along: Tensor, weight: float, ratio: float) -> list[Tensor]:
    """∇ by a and b of KL(q_t‖p_t) − weight·E_q[along·x], for q = N(a, bbᵀ) and both at σ/α = ratio, by autodiff."""
    eye = ratio**2 * torch.eye(len(a), dtype=F64)

    def value(a: Tensor, b: Tensor) -> Tensor:
        q, p = (MultivariateNormal(m, c + eye) for m, c in ((a, b @ b.mT), (teacher.means[0], covariance(teacher))))
        return kl_divergence(q, p) - weight * (a @ along)

    return [*gradient(value, a, b)]


@pytest.mark.parametrize("ratio", [0.0, 0.3])
@pytest.mark.parametrize("d", [1, 8])
def test_the_joint_optimum_is_the_tilted_density(d: int, ratio: float) -> None:
    """Of KL(q_t‖p_t) − λ·E_q[a·x]: N(μ + λ(Σ + r²)a, Σ), which without noise is p·exp(λ·a·x)."""
    teacher, along, weight = mixture(d, k=1, d=d), Rng(d).normal(d, dtype=F64), 0.7
    noisy = covariance(teacher) + ratio**2 * torch.eye(d, dtype=F64)
    best = teacher.means[0] + weight * noisy @ along, teacher.factor[0]
    for g in joint(teacher, *best, along, weight, ratio):
        close(g, torch.zeros_like(g), 1e-10)
    if ratio == 0:
        p, q = (MultivariateNormal(mean, covariance(teacher)) for mean in (teacher.means[0], best[0]))
        x = Rng(4).normal(9, d, dtype=F64)
        left = q.log_prob(x) - p.log_prob(x) - weight * x @ along
        close(left, left[:1].expand(9), 1e-10)  # ln of the normaliser, everywhere


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("ratio", [0.5, 1.5])
def test_a_run_of_both_descends_their_sum(d: int, ratio: float) -> None:
    """DMD without its normaliser descends r²·KL_t, so beside λr²·Reward it is the tilted density that it looks for."""
    teacher, along, weight = mixture(d, k=1, d=d), torch.linspace(1, -0.5, d, dtype=F64), 0.9
    student = Affine(teacher.means[0] + 0.5, 1.3 * teacher.factor[0])
    knows = {"teacher": teacher, "student's own": student.denoiser(teacher.process)}
    matching = DMD(fake=Teacher(who="student's own"), times=AtRatio(ratio), shape=(), critic_steps=1)
    objective = matching + ratio**2 * weight * Reward(reward=Direction(along=tuple(along.tolist())))
    draws = [descended(objective, knows, student_like(student), batch=4000, seed=seed) for seed in range(20)]
    expected = joint(teacher, student.a, student.b, along, weight, ratio)
    for name, g in zip("ab", expected, strict=True):
        assert_mean([draw[name] for draw in draws], ratio**2 * g, share=0.2)


def student_like(student: Affine) -> Affine:
    return Affine(student.a.detach(), student.b.detach())


# A real score that begins near the fake one


def network(seed: int = 0) -> Trained:
    """A small denoiser that answers differently everywhere."""
    with seeded("network", seed):
        net = ResidualMLP(shape=(2,), width=8, blocks=1)
        torch.nn.init.normal_(net.out.weight, std=0.3)
    return Trained(net.double()).requires_grad_(False).eval()


def scores(strength: float, real: bool = True) -> Tensor:
    """ε at a tick's noised samples, by adapters of a rank that have learned something."""
    critic = Critic(rank=2)
    part = Adapted(critic=critic, strength=strength) if real else Fake(critic=critic)
    found: list[Tensor] = []
    objective = ScoreDistillation(real=part, fake=Fake(critic=critic))
    run = distill(network(), Particles(Rng(0).normal(6, 2, dtype=F64)), objective, steps=1, batch=6)
    for name, p in run.cast.roles["critic"].params.items():
        p.data += 0.3 * Rng(name).normal(len(p), *p.shape[1:], dtype=F64)
    (term,) = (term for term in run.terms if term.name == "scoredistillation")

    def look(tick: Tick) -> object:
        found.append(part.eps(tick, tick.noised(objective.times), None))
        return objective.loss(tick)

    object.__setattr__(term, "loss", look)
    run.tick()
    return found[0]


def test_adapters_at_no_strength_are_the_teacher_and_at_all_the_critic() -> None:
    teacher, critic = scores(0.0), scores(1.0, real=False)
    near, half, whole = scores(1e-9), scores(0.5), scores(1.0)
    close(near, teacher, 1e-6)
    assert torch.equal(whole, critic)
    assert (half - teacher).norm() > 1e-3 < (half - critic).norm()
    assert (half - (teacher + critic) / 2).norm() > 1e-4  # weights are mixed, not what they say


def test_a_real_score_that_is_the_fake_one_pulls_nowhere() -> None:
    critic = Critic(rank=2)
    objective = DMD(real=Adapted(critic=critic, strength=1.0), fake=Fake(critic=critic), critic_steps=1)
    run = distill(network(), Particles(torch.randn(4, 2, dtype=F64)), objective, steps=3, batch=4)
    assert [step.norms["student"] for step in run] == [0, 0, 0]


def test_the_strength_follows_its_schedule() -> None:
    """From the middle of the run on the real score is the teacher's: that of a run without adapters on it."""
    critic, x = Critic(rank=2), Rng(5).normal(4, 2, dtype=F64)
    gone = DMD(real=Adapted(critic=critic, strength=Linear(until=0.5)), fake=Fake(critic=critic), critic_steps=1)
    plain = replace(gone, real=Teacher())
    runs = [distill(network(), Particles(x), o, steps=8, batch=4, optim=SGD(lr=0.0)) for o in (gone, plain)]
    steps = [[step.norms["student"] for step in run] for run in runs]
    for run in runs:
        assert run.cast.roles["critic"].module is not None
    assert steps[0][4:] == steps[1][4:] and steps[0][0] == 0


# Generators that are more or less random


@every_process
def test_renoising_between_ddim_and_fresh_noise(process: Process) -> None:
    t, s = (process.at_ratio(torch.full((5,), ratio, dtype=F64)) for ratio in (2.0, 0.5))
    x0, x_t, z = Rng(0).normal(3, 5, 2, dtype=F64)
    ones = torch.ones(5, dtype=F64)
    by = [renoised(process, x0, x_t, t, s, eta * ones, z) for eta in (0.0, 0.6, 1.0)]
    eps = process.convert(x0, x_t, t, "x0", "eps")
    close(by[0], process.add_noise(x0, eps, s))
    close(by[2], process.add_noise(x0, z, s))
    close(by[1], process.add_noise(x0, 0.8 * eps + 0.6 * z, s))


def test_inference_is_few_step_or_ddim_at_the_ends_of_eta() -> None:
    net, noise, ratios = network(), Rng(1).normal(6, 2, dtype=F64), (5.0, 1.0, 0.3)
    whole = FewStep(net, ratios=ratios, shape=(2,))
    ends = [RandomEta(net, ratios=ratios, shape=(2,), eta=eta).generate(noise, None, Rng(2)) for eta in (0.0, 1.0)]
    close(ends[0], sample(euler(net, noise, whole.times)), 1e-10)
    close(ends[1], whole.generate(noise, None, Rng(2)), 1e-12)


def test_training_draws_eta_for_every_sample() -> None:
    """Inputs of the second step spread along a line between DDIM's and those of fresh noise: its slope is √(1 − η²)."""
    seen: list[Tensor] = []

    class Watched(GaussianMixture):
        def denoise(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
            seen.append(x_t)
            return super().denoise(x_t, t, cond)

    n = 4000
    student = RandomEta(Watched(means=torch.zeros(1, 1, dtype=F64), std=1e-9), ratios=(4.0, 2.0), shape=(1,))
    seed = next(seed for seed in range(20) if student.draw(n, None, Rng(seed)).segment == (0.0, 2.0))
    seen.clear()
    noise = student.draw(n, None, Rng(seed)).noise
    assert noise is not None
    kept = (seen[1] / 2 * noise).mean()  # x0 = 0, so x_s = σ_s·(√(1 − η²)·ε + η·z)
    assert kept.item() == pytest.approx(math.pi / 4, abs=0.06)  # E√(1 − η²), η uniform
    assert (seen[1] / 2).var().item() == pytest.approx(1, abs=0.1)


# Pairs


@pytest.mark.parametrize("d", [1, 8])
def test_a_transition_ratio_is_a_difference_of_log_densities(d: int) -> None:
    y, m, ref = Rng(0).normal(3, 7, d, dtype=F64)
    std = 0.2 + Rng(1).uniform(7)
    logs = [Normal(mean, std[:, None]).log_prob(y).sum(1) for mean in (m, ref)]
    close(transition_ratio(y, m, ref, std), logs[0] - logs[1])


def test_the_margin_is_logistic() -> None:
    win, lose = Rng(0).normal(2, 9, dtype=F64)
    close(pair_margin(win, lose, beta=3.0), -torch.sigmoid(3 * (win - lose)).log())


def generator(**more: Any) -> FewStep:
    return FewStep(mixture(0, k=3, classes=3).clone(trainable=True), ratios=(4.0, 1.5, 0.4), shape=(2,), **more)


def tuned(objective: PSO, batch: int = 6, steps: int = 1, **more: Any) -> Run:
    data = Dataset(x=Rng(7).normal(50, 2, dtype=F64), cond=torch.arange(50) % 3)
    return distill(None, generator(), objective, data, steps=steps, batch=batch, optim=SGD(lr=1.0), **more)


@pytest.mark.parametrize("preference", [None, Direction()], ids=["offline", "online"])
@seeds
def test_the_loss_is_ln_2_where_the_generator_is_its_reference(preference: Preference | None, seed: int) -> None:
    assert tuned(PSO(preference=preference, beta=7.0), seed=seed).tick().losses["pso"] == math.log(2)


def caught(run: Run) -> tuple[Tick, Any]:
    """The run's only tick, and the pairs that its objective made of it."""
    objective: Any = run.objective
    made: list[Any] = []

    def catching(make: Any) -> Any:
        def caught(tick: Tick, *args: Any) -> Any:
            made.extend((tick, make(tick, *args), args[-1]))
            return made[1]

        return caught

    for name in ("_offline", "_online"):
        object.__setattr__(objective, name, catching(getattr(objective, name)))
    run.tick()
    return made[0], made[1:]


@pytest.mark.parametrize("preference", [None, Direction()], ids=["offline", "online"])
@seeds
def test_a_run_descends_the_margin_of_likelihoods(preference: Preference | None, seed: int) -> None:
    """By torch's normal densities, from the pairs that the run made, with a reference that is somewhere else."""
    beta, floor = 0.3, 0.25
    run = tuned(PSO(preference=preference, beta=beta, floor=floor), seed=seed)
    student, reference = run.cast.student, run.cast.kept["reference"]
    assert isinstance(student, FewStep) and isinstance(reference, FewStep)
    for p in student.parameters():
        p.data += 0.1 * Rng(p.shape).normal(len(p), *p.shape[1:], dtype=F64)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    tick, (pairs, k) = caught(run)
    moved = {name: before[name] - p.detach() for name, p in student.named_parameters()}
    student.load_state_dict({**student.state_dict(), **before})
    times, cond = student.times, tick.batch["cond"]
    std = torch.maximum(times[k + 1], tensor(floor))  # EDM: α = 1, σ = t

    def log_ratio(x: Tensor, after: Tensor) -> Tensor:
        t = times[k].expand(len(x))
        mine, known = (Normal(g.denoiser.denoise(x, t, cond), std) for g in (student, reference))
        return (mine.log_prob(after) - known.log_prob(after).detach()).sum(1)

    win, lose = (log_ratio(*pair) for pair in pairs)
    loss = -torch.sigmoid(beta * (win - lose)).log().mean()
    grads = torch.autograd.grad(loss, [*student.parameters()], allow_unused=True)
    for (name, _), g in zip(student.named_parameters(), grads, strict=True):
        close(moved[name], torch.zeros_like(moved[name]) if g is None else g, 1e-10)
    assert max(m.norm() for m in moved.values()) > 1e-3


def test_offline_pairs_are_data_and_samples_of_the_reference_under_one_noise() -> None:
    tick, (pairs, k) = caught(tuned(PSO(), batch=2000))
    (x, after), (other, beyond) = pairs
    student = generator()
    t, std = student.times[k], max(float(student.times[k + 1]), 0.1)
    close(x - other, after - beyond)  # of clean samples, for the noise is one and α = 1
    clean = after - (after - tick.batch["x"])
    assert torch.equal(clean, tick.batch["x"]) or (clean - tick.batch["x"]).abs().max() < 1e-12
    assert ((x - tick.batch["x"]) / t).std().item() == pytest.approx(1, abs=0.05)
    assert ((after - tick.batch["x"]) / std).std().item() == pytest.approx(1, abs=0.05)
    lost = other - (x - tick.batch["x"])
    drawn = student.sample(20_000, torch.arange(20_000) % 3, Rng(0))
    assert (lost.mean(0) - drawn.mean(0)).norm() < 0.1 and (lost.std(0) - drawn.std(0)).norm() < 0.15


def test_online_winners_are_those_that_are_preferred() -> None:
    """At the last step a transition ends where the rollout does."""
    for seed in range(20):
        up = caught(tuned(PSO(preference=Direction()), batch=64, seed=seed))[1]
        if up[1] == 2:
            break
    (win, lose), k = up
    assert k == 2 and bool((win[1][:, 0] >= lose[1][:, 0]).all()) and bool((win[1][:, 0] > lose[1][:, 0]).any())


def test_swapped_pairs_flip_the_first_step() -> None:
    """Where generator and reference agree, the margin's slope is ∓½ whoever wins: the gradient only turns."""
    moved = []
    for along in ((1.0,), (-1.0,)):
        student = generator()
        objective = Turned(preference=Direction(along=along))
        moved.append(descended(objective, None, student, batch=16))
    assert max(m.norm() for m in moved[0].values()) > 1e-4
    for name, m in moved[0].items():
        close(m, -moved[1][name], 1e-10)


class Turned(PSO):
    """PSO whose random numbers do not depend on the preference."""

    def __repr__(self) -> str:
        return "Turned"
