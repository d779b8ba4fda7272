"""Controls that a teacher does not know."""

from dataclasses import replace

import pytest
import torch

from limbeck import (
    CFG,
    VSD,
    BadSetting,
    Critic,
    Fake,
    Measured,
    NegativeAttention,
    Particles,
    RandomCFG,
    Reward,
    Rng,
    ScoreDistillation,
    Teacher,
    Trained,
    Weight,
    distill,
)
from limbeck.problems.attention import CrossAttentionMLP
from limbeck.problems.measured2d import ControlledMLP, Measured2D
from limbeck.recipes.g_dist.jdm import bures
from tests.oracles.exact import F64, AtRatio, close, descended, gaussian, mixture, tensor

# A control that the teacher does not know


def test_the_posterior_is_bayes_on_a_grid() -> None:
    """Moments of p(x)·p(c|x) by the trapezoidal rule."""
    problem, cond = Measured2D(), tensor([-1.3], [0.2], [2.0])
    problem.teacher.double()
    axis = torch.linspace(-5, 5, 201, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    log_p = problem.teacher.log_prob(grid, torch.zeros(len(grid), dtype=F64))
    likelihood = Measured(matrix=(problem.along,), std=problem.std)
    for i, c in enumerate(cond):
        weight = (log_p + likelihood(grid, c.expand(len(grid), 1))).softmax(0)
        mean = weight @ grid
        cov = (grid - mean).mT @ (weight[:, None] * (grid - mean))
        got = problem.posterior(cond)
        close(got[0][i], mean, 1e-8)
        close(got[1][i], cov, 1e-8)


def test_data_are_measured_as_the_posterior_believes() -> None:
    """E[x·c] and E[x | c] agree: the mean of posterior means under the data's c is the data's mean, and so with x·c."""
    problem = Measured2D()
    batch = problem.source.take(40_000, Rng(0))
    mean, _ = problem.posterior(batch["cond"])
    for power in (0, 1):
        draws = (batch["x"] - mean) * batch["cond"] ** power
        assert (draws.mean(0).abs() < 6 * draws.std(0) / len(draws) ** 0.5).all()


@pytest.mark.parametrize("dims", [1, 8])
def test_the_two_halves_balance_at_the_posterior(dims: int) -> None:
    """Samples under one c with the posterior's own critic: g of the joint is zero in the limit of little noise."""
    rng = Rng(("jdm", dims))
    root = torch.eye(dims, dtype=F64) + 0.2 * rng.normal(dims, dims, dtype=F64)
    a, c, mu, s = rng.normal(1, dims, dtype=F64), rng.normal(1, 1, dtype=F64), rng.normal(dims, dtype=F64), 0.7
    cov = root @ root.mT
    precision = torch.linalg.inv(cov) + a.mT @ a / s**2
    posterior = torch.linalg.inv(precision)
    centre = posterior @ (torch.linalg.solve(cov, mu) + (a.mT @ c)[:, 0] / s**2)
    who = {
        "teacher": gaussian(mu, root, mixture(0).process),
        "critic": gaussian(centre, torch.linalg.cholesky(posterior), mixture(0).process),
    }
    x = centre + rng.normal(64, dims, dtype=F64) @ torch.linalg.cholesky(posterior).mT
    fidelity = ScoreDistillation(
        real=Teacher(guidance=CFG(scale=0.0)),
        fake=Teacher(who="critic"),
        weight=Weight(sigma=-1.0, alpha=1.0),
        times=AtRatio(1e-4),
    )
    condition = Reward(reward=Measured(matrix=tuple(map(tuple, a.tolist())), std=s))
    students = [Particles(x, cond=c.repeat(64, 1)) for _ in range(2)]
    both = descended(fidelity + condition, who, students[0], batch=64)["x"]
    alone = descended(condition, who, students[1], batch=64)["x"]
    assert both.norm() < 1e-2 * alone.norm()


def test_the_teacher_is_never_told_the_control() -> None:
    """A teacher that heard c would fail on it: labels are not real numbers."""
    teacher = mixture(0, k=4, classes=2)
    fidelity = ScoreDistillation(real=Teacher(guidance=CFG(scale=0.0)), times=AtRatio(0.5))
    with_c = descended(fidelity, teacher, Particles(torch.zeros(8, 2, dtype=F64), cond=torch.ones(8, 1)), batch=8)
    without = descended(fidelity, teacher, Particles(torch.zeros(8, 2, dtype=F64)), batch=8)
    close(with_c["x"], without["x"])


def test_a_controlled_network_tells_a_control_of_zero_from_none() -> None:
    net = Trained(ControlledMLP(size=2, controls=1, width=8, blocks=1).double())
    torch.nn.init.normal_(net.net.inner.out.weight, generator=torch.Generator().manual_seed(0))
    x, t = Rng(0).normal(4, 2, dtype=F64), torch.ones(4, dtype=F64)
    outs = [net.denoise(x, t, c) for c in (None, torch.zeros(4, 1), torch.ones(4, 1))]
    assert not torch.equal(outs[0], outs[1]) and not torch.equal(outs[1], outs[2])


def test_bures_is_exact_for_commuting_covariances() -> None:
    c1, c2 = torch.diag(tensor(4.0, 1.0))[None], torch.diag(tensor(1.0, 9.0))[None]
    close(bures(tensor([1.0, 0.0]), c1, tensor([0.0, 0.0]), c2), tensor(1.0 + 1.0 + 4.0))


# Guidance that changes by the tick


def losses(guidance: CFG | RandomCFG, *, fake: CFG | RandomCFG | None, seed: int = 0) -> list[float]:
    who = {"teacher": mixture(0, k=4, classes=2), "critic": mixture(1, k=4, classes=2)}
    x, cond = Rng(0).normal(16, 2, dtype=F64), torch.arange(16) % 2
    vsd = ScoreDistillation(real=Teacher(guidance=guidance), fake=Teacher(who="critic", guidance=fake))
    run = distill(who, Particles(x, cond=cond), vsd, steps=4, batch=16, seed=seed)
    return [step.losses["scoredistillation"] for step in run]


def test_teacher_and_critic_share_a_scale_that_changes_by_the_tick() -> None:
    """A critic equal to the teacher leaves nothing, to the bit, in every tick; a scale of its own would."""
    teacher, cond = mixture(0, k=4, classes=2), torch.arange(16) % 2
    x, guidance = Rng(0).normal(16, 2, dtype=F64), RandomCFG(lo=1.0, hi=5.0)
    same = VSD(guidance=guidance, fake=Fake(critic=Critic(times=AtRatio(1.0)), guidance=guidance))
    assert not descended(same, teacher, Particles(x, cond=cond), batch=16)["x"].any()
    other = replace(same, fake=replace(same.fake, guidance=CFG(scale=3.0)))
    assert descended(other, teacher, Particles(x, cond=cond), batch=16)["x"].any()
    scales = {guidance.at(Rng(i)).scale for i in range(200)}
    assert len(scales) == 200 and 1.0 <= min(scales) < 1.1 and 4.9 < max(scales) <= 5.0


def test_a_range_of_one_scale_is_that_scale() -> None:
    fixed, random = CFG(scale=2.5), RandomCFG(lo=2.5, hi=2.5)
    assert losses(random, fake=random) == losses(fixed, fake=fixed)
    assert losses(RandomCFG(lo=1.0, hi=4.0), fake=fixed) != losses(fixed, fake=fixed)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_share_the_scale(accumulate: int) -> None:
    teacher, cond = mixture(0, k=4, classes=2), torch.arange(16) % 2
    x, objective = Rng(0).normal(16, 2, dtype=F64), VSD(guidance=RandomCFG(lo=1.0, hi=9.0), times=AtRatio(1.0))
    ends = [
        distill(teacher, Particles(x, cond=cond), objective, steps=3, batch=16, accumulate=k).finish().x
        for k in (1, accumulate)
    ]
    close(*ends)


def test_outside_a_run_random_guidance_is_its_mean() -> None:
    teacher, cond = mixture(0, k=4, classes=2), torch.arange(8) % 2
    x, t = Rng(0).normal(8, 2, dtype=F64), torch.ones(8, dtype=F64)
    guidance = RandomCFG(lo=1.0, hi=4.0)
    drawn = [guidance.at(Rng(i))(teacher).denoise(x, t, cond) for i in range(2000)]
    error = torch.stack(drawn).std(0) / 2000**0.5
    assert ((torch.stack(drawn).mean(0) - guidance(teacher).denoise(x, t, cond)).abs() <= 6 * error + 1e-12).all()
    with pytest.raises(BadSetting, match="hi must be at least 2"):
        RandomCFG(lo=2.0, hi=1.0)


# Attention away from a prompt


def reader() -> Trained:
    net = Trained(CrossAttentionMLP(size=2, classes=4, width=16, blocks=2).double())
    for k, weight in enumerate((net.net.out.weight, net.net.prompt.weight)):
        torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(k))
    return net


def test_no_negative_attention_is_the_plain_network_to_the_bit() -> None:
    net, x, t = reader(), Rng(0).normal(6, 2, dtype=F64), torch.ones(6, dtype=F64)
    for cond in (None, torch.arange(6) % 5):
        assert torch.equal(NegativeAttention(scale=0.0, label=2)(net).denoise(x, t, cond), net.denoise(x, t, cond))
    assert torch.equal(net.denoise(x, t, torch.full((6,), 4)), net.denoise(x, t))


def test_a_prompt_less_itself_attends_to_nothing() -> None:
    """Z = Attn(Q, K, V) − Attn(Q, K, V) = 0: all that is left of the prompt is gone, whichever it was."""
    net, x, t = reader(), Rng(0).normal(6, 2, dtype=F64), torch.ones(6, dtype=F64)
    gone = [NegativeAttention(scale=1.0, label=k)(net).denoise(x, t, torch.full((6,), k)) for k in range(4)]
    for other in gone[1:]:
        close(other, gone[0])
    assert not torch.equal(net.denoise(x, t, torch.full((6,), 0)), net.denoise(x, t, torch.full((6,), 1)))


@pytest.mark.parametrize("scale", [0.3, 1.5])
def test_attention_is_the_formula(scale: float) -> None:
    """One block by hand, head by head: Σ_j softmax(q·k_j/√d)·v_j of the prompt less a times that of the other."""
    net = reader().net
    block, h = net.blocks[0], Rng(0).normal(3, 16, dtype=F64)
    plus, minus = (net.prompt(torch.full((3,), k)).reshape(3, -1, 16) for k in (1, 3))
    q = block.q(torch.nn.functional.layer_norm(h, (16,)))

    def attended(prompt: torch.Tensor) -> torch.Tensor:
        k, v = block.kv(prompt).chunk(2, -1)
        heads = []
        for part in (slice(4 * i, 4 * i + 4) for i in range(4)):
            share = torch.einsum("bd,btd->bt", q[:, part], k[..., part]).div(2).softmax(1)
            heads.append(torch.einsum("bt,btd->bd", share, v[..., part]))
        return torch.cat(heads, 1)

    z = attended(plus) - scale * attended(minus)
    after = h + block.o(z)
    after = after + block.down(torch.nn.functional.silu(block.up(torch.nn.functional.layer_norm(after, (16,)))))
    close(block(h, plus, (minus, torch.full((3,), scale, dtype=F64))), after)
