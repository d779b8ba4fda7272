"""Relatives of SDS against closed forms, and what each of them becomes where its own part is switched off."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from limbeck import (
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
    Adam,
    Added,
    BadSetting,
    BalancedScoreDistillation,
    Cosine,
    Critic,
    DomainScoreDistillation,
    Fake,
    GaussianMixture,
    HiFA,
    Image,
    Incompatible,
    Inverted,
    Mapped,
    Midway,
    Negative,
    Noise,
    Noised,
    Particles,
    PerpNeg,
    Posterior,
    Process,
    Rng,
    ScoreDistillation,
    SDSBridge,
    StableScoreDistillation,
    Stepped,
    Student,
    Teacher,
    Tick,
    Times,
    Trained,
    Uniform,
    VariationalDistributionMapping,
    Weight,
    distill,
    like,
    shortest,
)
from limbeck.problems.networks import ResidualMLP
from tests.oracles.exact import (
    F64,
    AtRatio,
    close,
    covariance,
    descended,
    every_process,
    gaussian,
    mixture,
    seeds,
    tensor,
)

N = 12
RATIO = Weight(sigma=1.0, alpha=-1.0)
dims = pytest.mark.parametrize("d", [1, 8])


@dataclass(frozen=True, kw_only=True)
class Given(Noise):
    """The noise of this name."""

    name: str = "ε"

    def see(self, tick: Tick, times: Times) -> Noised:
        def make(draw: Any, key: Any) -> Noised:
            eps, t = self.eps(draw.x), tick.levels(draw, times, key)
            return Noised(draw.x, tick.process.add_noise(draw.x, eps, t), t, eps, draw.cond, tick.process, key, draw)

        return tick.seen((self, times), make)

    def eps(self, x: Tensor) -> Tensor:
        """For samples x."""
        return Rng(self.name).normal(*x.shape, dtype=x.dtype)


@dataclass
class Scene:
    """A conditional teacher, samples, and predictions of ε by autodiff of ln p_t at one noise level σ/α."""

    process: Process
    d: int = 2
    ratio: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        self.teacher = mixture(self.seed, k=6, d=self.d, process=self.process, classes=3)
        self.x = Rng(("scene", self.seed)).normal(N, self.d, dtype=F64)
        self.cond = torch.arange(N) % 3
        self.t = self.process.at_ratio(torch.full((N,), self.ratio, dtype=F64))
        self.eps = Given().eps(self.x)
        self.x_t = self.process.add_noise(self.x, self.eps, self.t)

    def of(self, cond: Any = "own", *, x_t: Tensor | None = None, t: Tensor | None = None) -> Tensor:
        """ε = −σ·∇ln p_t(x_t | cond)."""
        t = self.t if t is None else t
        at = (self.x_t if x_t is None else x_t).detach().requires_grad_()
        cond = self.cond if isinstance(cond, str) else cond
        (score,) = torch.autograd.grad(self.teacher.log_prob(at, t, cond).sum(), at)
        return -like(self.process.sigma(t), score) * score

    def weight(self, weight: Weight) -> Tensor:
        return like(weight.at(self.t, self.process), self.x)

    def moved(self, objective: ScoreDistillation, teacher: Any = None, student: Student | None = None) -> Tensor:
        """What one tick descends, not divided by the batch, under the given noise and level."""
        student = student or Particles(self.x, cond=self.cond)
        return N * descended(self.here(objective), teacher or self.teacher, student, batch=N)["x"]

    def here(self, objective: ScoreDistillation) -> Any:
        noise = objective.noise if isinstance(objective.noise, Inverted) else Given()
        return replace(objective, times=AtRatio(self.ratio), noise=noise)


# Paths of inversion


def ddim(scene: Scene, x_s: Tensor, s: Tensor, t: Tensor, scale: float = 0.0) -> Tensor:
    """One step by ε_∅ + scale·(ε_c − ε_∅)."""
    null = scene.of(None, x_t=x_s, t=s)
    eps = null + scale * (scene.of(x_t=x_s, t=s) - null)
    return scene.process.add_noise(scene.process.convert(eps, x_s, s, "eps", "x0"), eps, t)


def inverted(scene: Scene, noise: Inverted, scale: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """x_r, r and x_t by the definition: strides up to r = t − gap, then one step."""
    process, x, at = scene.process, scene.x, torch.zeros_like(scene.t)
    assert isinstance(noise.gap, float)
    end = process.fraction(scene.t) - noise.gap
    while bool((at < end).any()):
        later = torch.minimum(at + noise.stride, end)
        x, at = ddim(scene, x, process.at_fraction(at), process.at_fraction(later), scale), later
    r = process.at_fraction(at)
    return x, r, ddim(scene, x, r, scene.t, scale)


@every_process
@dims
@pytest.mark.parametrize("gamma", [1.0, 0.3])
def test_interval_and_trajectory_by_definition(process: Process, d: int, gamma: float) -> None:
    scene, noise = Scene(process, d), Inverted(stride=0.06, gap=0.1)
    x_r, r, x_t = inverted(scene, noise)
    clock = [process.fraction(level) for level in (r, scene.t)]
    mu = process.at_fraction(clock[0] + (clock[1] - clock[0]) * (1 - gamma**2) ** 0.5)
    x_mu = ddim(scene, x_r, r, mu)
    null = scene.of(None, x_t=x_t)
    real, fake = null + 3 * (scene.of(x_t=x_t) - null), scene.of(None, x_t=x_mu, t=mu)
    if gamma == 1:
        close(x_mu, x_r)
    expected = like(process.ratio(scene.t), x_t) * (real - fake)
    objective = TSM(fake=Midway(gamma=gamma), noise=noise, guidance=CFG(scale=3.0))
    close(scene.moved(objective), expected, 1e-9)


def test_ends_of_trajectory_score_matching() -> None:
    """At x_r it is interval score matching to the bit; at x_t guidance is all that is left, s times CSD."""
    scene, noise, guidance = Scene(VP()), Inverted(stride=0.06, gap=0.1), CFG(scale=3.0)
    interval = scene.moved(ISM(noise=noise, guidance=guidance))
    assert torch.equal(scene.moved(TSM(fake=Midway(gamma=1.0), noise=noise, guidance=guidance)), interval)
    csd = scene.moved(CSD(noise=noise, weight=RATIO))
    trajectory = scene.moved(TSM(fake=Midway(gamma=0.0), noise=noise, guidance=guidance))
    close(trajectory, 3 * csd, 1e-10)
    assert (interval - trajectory).abs().max() > 0.01


def test_interval_matching_uses_the_pass_that_inversion_made() -> None:
    """Strides at 0 and 0.2, x_r, and two predictions at x_t: five passes."""
    teacher, asked = Counted(mixture(0, k=6, classes=3, process=VP())), 5
    student = Particles(torch.zeros(4, 2, dtype=F64), cond=torch.zeros(4, dtype=torch.long))
    objective = ISM(guidance=CFG(scale=3.0), times=Uniform(lo=0.4, hi=0.4))
    distill(teacher, student, objective, steps=1, batch=4).finish()
    assert teacher.passes == asked


class Counted(GaussianMixture):
    """A mixture that counts its passes."""

    def __init__(self, other: GaussianMixture):
        means, weights = other.means.detach(), other.logits.exp().detach()
        super().__init__(means=means, std=other.factor.detach(), weights=weights, labels=other.labels)
        self.process, self.passes = other.process, 0

    def denoise(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        self.passes += 1
        return super().denoise(x_t, t, cond)


def test_a_point_on_a_path_needs_a_path() -> None:
    student = Particles(torch.zeros(4, 2, dtype=F64))
    run = distill(mixture(0), student, ScoreDistillation(fake=Midway()), steps=1, batch=4)
    with pytest.raises(Incompatible, match=r"Midway needs samples that a path led to, got none; noise=Inverted\(\)"):
        run.tick()


@every_process
@dims
def test_inversion_gives_the_noise_of_sdi(process: Process, d: int) -> None:
    """x − x0_T(x_t, t) at the x_t of inversion under a negative guidance; with random noise that is SDS."""
    scene, noise = Scene(process, d), Inverted(stride=0.06, gap=0.0, guidance=CFG(scale=-1.5))
    x_t = inverted(scene, noise, -1.5)[2]
    null = scene.of(None, x_t=x_t)
    x0 = process.convert(null + 2 * (scene.of(x_t=x_t) - null), x_t, scene.t, "eps", "x0")
    close(scene.moved(SDI(noise=noise, guidance=CFG(scale=2.0))), scene.x - x0, 1e-9)
    random = scene.moved(SDI(noise=Given(), guidance=CFG(scale=2.0)))
    assert torch.equal(random, scene.moved(SDS(weight=RATIO, guidance=CFG(scale=2.0))))


# One step of the ODE


def affine(teacher: GaussianMixture, z: Tensor, ratio: float) -> Tensor:
    """ε of N(μ, Σ) at z = x_t/α: r·(Σ + r²I)⁻¹·(z − μ)."""
    eye = torch.eye(z.shape[1], dtype=F64)
    return ratio * (z - teacher.means) @ torch.linalg.inv(covariance(teacher) + ratio**2 * eye)


@every_process
@dims
@pytest.mark.parametrize("to", [0.3, 0.05])
def test_consistency_sampling_of_a_gaussian(process: Process, d: int, to: float) -> None:
    teacher, high = mixture(0, k=1, d=d, process=process), 0.9
    x = Rng(0).normal(N, d, dtype=F64)
    low = min(process.ratio(process.at_fraction(tensor(to))).item(), high)
    z = x + high * Given().eps(x)
    eps = affine(teacher, z, high)
    expected = eps - affine(teacher, z + (low - high) * eps, low)
    objective = CDS(fake=Stepped(to=to), times=AtRatio(high), noise=Given())
    close(N * descended(objective, teacher, Particles(x), batch=N)["x"], expected, 1e-11)


@every_process
def test_consistency_sampling_is_zero_where_trajectories_are_straight(process: Process) -> None:
    """A single point is all the data: every trajectory leads straight to it, from any sample."""
    teacher, x = gaussian(tensor(1.0, -2.0), 1e-9 * torch.eye(2, dtype=F64), process), torch.zeros(N, 2, dtype=F64)
    moved = [
        N * descended(kind(times=AtRatio(0.9), noise=Given()), teacher, Particles(x), batch=N)["x"]
        for kind in (CDS, SDS)
    ]
    assert moved[0].abs().max() < 1e-6 < 0.1 < moved[1].abs().max()


def test_a_step_never_leads_to_more_noise() -> None:
    """Where r is noisier than t it is t, and the gradient is zero."""
    scene = Scene(VP())
    assert scene.moved(CDS(fake=Stepped(to=1.0))).abs().max() < 1e-12


# Classifier and variational guidance


def critic_of(scene: Scene) -> None:
    """Another mixture is the teacher's trainable clone, so that the critic is not the teacher."""
    scene.teacher.network = lambda: mixture(scene.seed + 7, k=4, d=scene.d, process=scene.process).clone(trainable=True)


CORNERS = {
    "SDS": ({"seeking": 1.0, "classifier": 0.0, "variational": 0.0}, SDS()),
    "guided SDS": ({"seeking": 1.0, "classifier": 2.5, "variational": 0.0}, SDS(guidance=CFG(scale=3.5))),
    "CSD": ({"seeking": 0.0, "classifier": 1.0, "variational": 0.0}, CSD()),
    "VSD": ({"seeking": 0.0, "classifier": 0.0, "variational": 1.0}, VSD()),
    "guided VSD": ({"seeking": 0.0, "classifier": 2.5, "variational": 1.0}, VSD(guidance=CFG(scale=3.5))),
}


@every_process
@dims
@pytest.mark.parametrize("corner", CORNERS)
def test_corners_of_domain_score_distillation(process: Process, d: int, corner: str) -> None:
    weights, other = CORNERS[corner]
    scene = Scene(process, d)
    critic_of(scene)
    ours = scene.moved(DomainScoreDistillation(**weights))
    close(ours, scene.moved(other), 1e-12)
    assert ours.abs().max() > 0.01


def test_domain_score_distillation_is_the_sum_of_its_corners() -> None:
    scene, weights = Scene(VP()), {"seeking": 0.5, "classifier": 3.0, "variational": 2.0}
    critic_of(scene)
    parts = [k * scene.moved(o) for k, o in zip(weights.values(), (SDS(), CSD(), VSD()), strict=True)]
    close(scene.moved(DomainScoreDistillation(**weights)), torch.stack(parts).sum(0), 1e-12)


def test_without_variational_guidance_no_critic_learns() -> None:
    run = distill(
        mixture(0), Particles(torch.zeros(4, 2, dtype=F64)), DomainScoreDistillation(variational=0.0), steps=1
    )
    assert [term.name for term in run.terms] == ["domainscoredistillation"] and set(run.cast.roles) == {"student"}
    with pytest.raises(BadSetting, match="needs a weight above 0"):
        DomainScoreDistillation(classifier=0.0, variational=0.0)


# Two objectives in balance


@seeds
@dims
def test_the_shortest_between_two(seed: int, d: int) -> None:
    """Against a fine grid of combinations; and a step against it lowers both, by at least its square."""
    first, second = (Rng((seed, name)).normal(200, d, dtype=F64) for name in ("first", "second"))
    ours = shortest(first, second)
    a = torch.linspace(0, 1, 2001, dtype=F64)[:, None, None]
    every = (a * first + (1 - a) * second).square().sum(2)
    assert (ours.square().sum(1) <= every.amin(0) + 1e-12).all()
    assert (every.amin(0) - ours.square().sum(1) < 1e-5 * (first - second).square().sum(1)).all()
    for one in (first, second):
        assert ((ours * one).sum(1) >= ours.square().sum(1) - 1e-12).all()
    assert torch.equal(shortest(first, first), first)


@every_process
@pytest.mark.parametrize("noise", [None, Added()], ids=["all", "less its noise"])
def test_balanced_by_definition(process: Process, noise: Added | None) -> None:
    """g = w·(a·λδ + (1 − a)·(ε_∅ − B)), one a for each example; at this level all three cases of a are met."""
    scene, ratio = Scene(process, ratio=1.2), 2.0
    first = ratio * (scene.of() - scene.of(None))
    second = scene.of(None) - (scene.eps if noise else 0)
    gap = second - first
    raw = (gap * second).sum(1) / gap.square().sum(1)
    assert ((raw > 0) & (raw < 1)).any() and ((raw <= 0) | (raw >= 1)).any()
    a = raw.clamp(0, 1)[:, None]
    objective = BalancedScoreDistillation(ratio=ratio, **({"fake": noise} if noise else {}))
    expected = scene.weight(objective.weight) * (a * first + (1 - a) * second)
    close(scene.moved(objective), expected, 1e-11)


def test_where_a_fixed_guidance_undoes_one_balance_does_not() -> None:
    scenes = [Scene(VP(), seed=s) for s in range(40)]
    pairs = [(scene.of() - scene.of(None), scene.of(None) - scene.eps) for scene in scenes]
    one, other = (torch.cat(part) for part in zip(*pairs, strict=True))
    fight = (one * other).sum(1) < 0
    assert fight.sum() > 50
    for scale in (2.0, 15.0):
        fixed, balanced = scale * one + other, shortest(scale * one, other)
        undone = ((fixed * one).sum(1) < -1e-12) | ((fixed * other).sum(1) < -1e-12)
        assert undone[fight].double().mean() > 0.1
        assert ((balanced * one).sum(1) >= -1e-12).all() and ((balanced * other).sum(1) >= -1e-12).all()


# Terms in their places


@every_process
def test_terms_of_guided_sds(process: Process) -> None:
    """s·h + ε_∅ − ε is guided SDS; h alone is CSD."""
    scene, scale = Scene(process), 4.0
    h, w = scene.of() - scene.of(None), scene.weight(Weight())
    close(w * (scale * h + scene.of(None) - scene.eps), scene.moved(SDS(guidance=CFG(scale=scale))), 1e-11)
    assert torch.equal(scene.moved(StableScoreDistillation(at=0.0)), scene.moved(CSD()))


@every_process
@pytest.mark.parametrize("d", [2, 8])
def test_stable_below_its_level(process: Process, d: int) -> None:
    """As long as h, at right angles to the noise, and along the least of all ε_c − k·ε."""
    scene = Scene(process, d)
    moved = scene.moved(StableScoreDistillation(at=1.0)) / scene.weight(Weight())
    h, real, eps = scene.of() - scene.of(None), scene.of(), scene.eps
    close(moved.norm(dim=1), h.norm(dim=1), 1e-11)
    close((moved * eps).sum(1), torch.zeros(N, dtype=F64), 1e-11)
    kappa = (real * eps).sum(1, keepdim=True) / eps.square().sum(1, keepdim=True)
    e = real - kappa * eps
    close(moved / moved.norm(dim=1, keepdim=True), e / e.norm(dim=1, keepdim=True), 1e-10)
    for k in (0.0, 0.5, 1.0, 1.5):
        assert (e.norm(dim=1) <= (real - k * eps).norm(dim=1) + 1e-12).all()


def test_each_example_is_on_its_side_of_the_level() -> None:
    scene = Scene(VP())
    times = Uniform(lo=0.2, hi=0.4)
    student = Particles(scene.x, cond=scene.cond)
    moved = [
        N * descended(o, scene.teacher, Particles(student.x, cond=scene.cond), batch=N)["x"]
        for o in (StableScoreDistillation(at=k, times=times) for k in (0.3, 0.0, 1.0))
    ]
    high = (moved[0] == moved[1]).all(1)
    assert 0 < high.sum() < N and torch.equal(moved[0][~high], moved[2][~high])


# A light map instead of a critic


@every_process
@dims
def test_a_perfect_map_is_a_perfect_critic(process: Process, d: int) -> None:
    """x̂0 of a Gaussian teacher is affine in x_t, and so E[x | x̂0] of a Gaussian student is a matrix and a shift."""
    teacher, scene = mixture(0, k=1, d=d, process=process), Scene(process, d)
    law = mixture(1, k=1, d=d, process=process)
    teacher.network = lambda: law.clone(trainable=True)
    eye = torch.eye(d, dtype=F64)

    def affine_of(one: GaussianMixture) -> tuple[Tensor, Tensor]:
        """E[x | z] = K·z + b."""
        gain = covariance(one) @ torch.linalg.inv(covariance(one) + scene.ratio**2 * eye)
        return gain, (eye - gain) @ one.means[0]

    (k, b), (own, shift) = affine_of(teacher), affine_of(law)
    matrix = own @ torch.linalg.inv(k)

    class Perfect(nn.Module):
        def forward(self, x0: Tensor, x_t: Tensor, t: Tensor, process: Process) -> Tensor:
            return (x0 - b) @ matrix.mT + shift

    objective = VariationalDistributionMapping(fake=Mapped(shape=(d,)), times=AtRatio(scene.ratio), noise=Given())
    student = Particles(scene.x)
    run = distill(teacher, student, objective, steps=1, batch=N, optim=SGD(lr=1.0))
    run.cast.roles["mapping"].module = Perfect()
    run.terms = tuple(term for term in run.terms if term.name != "mapping")
    run.tick()
    close(N * (scene.x - student.x.detach()), scene.moved(VSD(), teacher, Particles(scene.x)), 1e-9)


def network(shape: tuple[int, ...]) -> Trained:
    """A small network as the teacher."""
    net = ResidualMLP(shape=shape, width=128, blocks=3)
    nn.init.normal_(net.out.weight, std=0.1)
    return Trained(net)


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)], ids=str)
def test_a_light_map_costs_half_a_critic_and_leaves_the_teacher_alone(shape: tuple[int, ...]) -> None:
    """Operations of a tick beyond those of SDS, whose levels the critics share."""
    times, costs = Uniform(), {}
    for name, objective in {
        "sds": SDS(times=times),
        "vsd": VSD(times=times, fake=Fake(critic=Critic(times=times))),
        "vdm": VariationalDistributionMapping(times=times, fake=Mapped(shape=shape, width=8, times=times)),
    }.items():
        teacher = network(shape)
        run = distill(teacher, Particles(torch.randn(16, *shape)), objective, steps=1, batch=16)
        with FlopCounterMode(display=False) as counter:
            run.tick()
        costs[name] = counter.get_total_flops()
        assert all(p.grad is None for p in teacher.parameters())
    assert costs["vsd"] - costs["sds"] >= 2 * (costs["vdm"] - costs["sds"]) > 0


def test_a_new_map_says_what_the_teacher_says_and_no_map_is_sds() -> None:
    scene = Scene(VP())
    assert not scene.moved(VariationalDistributionMapping(fake=Mapped(shape=(2,)))).abs().max() > 1e-12
    off = VariationalDistributionMapping(fake=Mapped(shape=(2,), clean=0.0, noisy=0.0))
    assert torch.equal(scene.moved(off), scene.moved(SDS()))
    half = VariationalDistributionMapping(fake=Mapped(shape=(2,), clean=1.0, noisy=0.0))
    share = scene.process.fraction(scene.t)[:, None]
    close(scene.moved(half), share * scene.moved(SDS()), 1e-11)


def test_a_map_learns_what_the_student_is() -> None:
    """Particles of N(1, 0.3²) under a teacher N(0, 1): after training, ε_M is the noise as their law has it."""
    law, teacher = (gaussian(tensor(mean), tensor([std]), VP()) for mean, std in ((1.0, 0.3), (0.0, 1.0)))
    x, part = law.sample(512, Rng(0)), Mapped(shape=(1,), times=AtRatio(0.5))
    objective = VariationalDistributionMapping(fake=part, times=AtRatio(0.5))
    optim = {"student": SGD(lr=0.0), "default": Adam(lr=0.01, schedule=Cosine())}
    run = distill(teacher, Particles(x), objective, steps=300, batch=512, optim=optim)
    run.finish()
    t = torch.full((200,), VP().at_ratio(tensor(0.5)).item(), dtype=F64)
    x = law.sample(200, Rng(1))
    x_t = law.process.add_noise(x, Rng(2).normal(200, 1, dtype=F64), t)
    mapped = run.cast.roles["mapping"].module(teacher.denoise(x_t, t), x_t, t, law.process)
    exact, start = law.denoise(x_t, t), teacher.denoise(x_t, t)
    assert (mapped - exact).square().mean() < 0.02 * (start - exact).square().mean()


# From a source


def test_an_edit_is_what_sds_does_less_what_it_does_to_the_source() -> None:
    scene = Scene(VP())
    source, labels = scene.x + 0.3, (scene.cond + 1) % 3
    cast = {"teacher": scene.teacher, "source": Particles(source, cond=labels)}
    guidance, weight = CFG(scale=3.0), Weight(sigma=0.0)
    sds = SDS(guidance=guidance, weight=weight)
    ours = scene.moved(DDS(guidance=guidance), cast)
    theirs = scene.moved(sds, student=Particles(source, cond=labels))
    close(ours, scene.moved(sds) - theirs, 1e-11)
    assert ours.abs().max() > 0.01


@pytest.mark.parametrize("student", [Particles, Image])
def test_a_source_is_left_alone_where_nothing_is_asked(student: type) -> None:
    """Also where rows are picked at random, and over micro-batches: those of student and source belong together."""
    x = Rng(0).normal(*((20, 2) if student is Particles else (2,)), dtype=F64)
    labels = torch.arange(20) % 3 if student is Particles else torch.ones(1, dtype=torch.long)
    teacher = mixture(0, k=6, classes=3, process=VP())
    for kind, cond, still in ((DDS, labels, True), (PDS, labels, True), (DDS, (labels + 1) % 3, False)):
        cast = {"teacher": teacher, "source": student(x, cond=labels)}
        run = distill(cast, student(x, cond=cond), kind(), steps=1, batch=8, accumulate=2)
        assert (run.tick().norms["student"] == 0) == still


def test_an_edit_needs_a_source() -> None:
    with pytest.raises(Incompatible, match=r"Sourced needs a teacher named 'source', got 'teacher'"):
        distill(mixture(0), Particles(torch.zeros(4, 2, dtype=F64)), DDS(), steps=1)


@every_process
@dims
@pytest.mark.parametrize("stride", [0.01, 0.2])
def test_posterior_distillation_by_two_noises(process: Process, d: int, stride: float) -> None:
    """z = (x_r − μ)/s with the posterior q(x_r | x_t, x0_T) of any stride and a second noise, which cancels."""
    scene = Scene(process, d)
    source, labels = scene.x + 0.3, (scene.cond + 1) % 3
    t, r = scene.t, process.at_fraction(process.fraction(scene.t) - stride)
    (a_t, s_t), (a_r, s_r) = ((like(process.alpha(k), source), like(process.sigma(k), source)) for k in (t, r))
    step = s_t**2 - (a_t / a_r * s_r) ** 2
    again = Rng("again").normal(N, d, dtype=F64)

    def latent(x: Tensor, cond: Tensor) -> Tensor:
        x_t, x_r = process.add_noise(x, scene.eps, t), process.add_noise(x, again, r)
        x0 = process.convert(scene.of(cond, x_t=x_t), x_t, t, "eps", "x0")
        mean = a_t / a_r * s_r**2 / s_t**2 * x_t + a_r * step / s_t**2 * x0
        return (x_r - mean) / (step.sqrt() * s_r / s_t)

    cast = {"teacher": scene.teacher, "source": Particles(source, cond=labels)}
    ours = scene.moved(PDS(weight=Posterior(stride=stride)), cast)
    close(ours, latent(scene.x, scene.cond) - latent(source, labels), 1e-9)


# Negatives, and pixels


@every_process
def test_noise_free_and_bridge_by_definition(process: Process) -> None:
    scene, bad = Scene(process), torch.full((N,), 2)
    negative = Teacher(guidance=Negative(scale=0.0, label=2))
    delta, w = scene.of() - scene.of(None), scene.weight(Weight())
    for at, domain in ((0.0, scene.of(None) - scene.of(bad)), (1.0, scene.of(None))):
        objective = NFSD(fake=replace(NFSD().fake, above=negative, at=at), guidance=CFG(scale=5.0))
        close(scene.moved(objective), w * (5 * delta + domain), 1e-11)
    close(scene.moved(SDSBridge(fake=negative)), w * (scene.of() - scene.of(bad)), 1e-11)
    assert torch.equal(scene.moved(SDSBridge(fake=CSD().fake)), scene.moved(CSD()))


@every_process
@dims
def test_perpendicular_negatives(process: Process, d: int) -> None:
    """In ε as in x0; along δ nothing changes, and a negative that is along δ does nothing."""
    scene = Scene(process, d)
    null = scene.of(None)
    delta = scene.of() - null
    pull = delta
    for label, weight in ((0, -0.7), (2, -1.5)):
        n = scene.of(torch.full((N,), label)) - null
        pull = pull + weight * (n - (n * delta).sum(1, keepdim=True) / delta.square().sum(1, keepdim=True) * delta)
    guided = PerpNeg(scale=3.0, labels=(0, 2), weights=(-0.7, -1.5))
    x0 = guided(scene.teacher).denoise(scene.x_t, scene.t, scene.cond)
    eps = process.convert(x0, scene.x_t, scene.t, "x0", "eps")
    close(eps, null + 3 * pull, 1e-10)
    close(((eps - null) * delta).sum(1), 3 * delta.square().sum(1), 1e-10)
    plain = PerpNeg(scale=3.0)(scene.teacher).denoise(scene.x_t, scene.t, scene.cond)
    close(plain, CFG(scale=3.0)(scene.teacher).denoise(scene.x_t, scene.t, scene.cond))
    if d == 1:
        close(x0, plain, 1e-10)
    with pytest.raises(BadSetting, match="a weight for each label"):
        PerpNeg(labels=(1,))


def test_pixels_by_autodiff() -> None:
    scene, decoder = Scene(VP()), nn.Sequential(nn.Linear(2, 5), nn.Tanh()).double()
    sds = scene.moved(SDS(guidance=CFG(scale=3.0)))
    identity = scene.moved(HiFA(guidance=CFG(scale=3.0), pixels=0.4))
    close(identity, 1.4 * sds, 1e-11)
    cast = {"teacher": scene.teacher, "decoder": decoder}
    ours = scene.moved(HiFA(guidance=CFG(scale=3.0), pixels=0.4, decoder="decoder"), cast)
    null, x = scene.of(None), scene.x.clone().requires_grad_()
    x0 = scene.process.convert(null + 3 * (scene.of() - null), scene.x_t, scene.t, "eps", "x0")
    away = 0.5 * (decoder(x) - decoder(x0).detach()).square().sum(1, keepdim=True)
    (more,) = torch.autograd.grad((scene.weight(Weight()) / scene.ratio * away).sum(), x)
    close(ours, sds + 0.4 * more, 1e-11)
    with pytest.raises(Incompatible, match="a teacher named 'decoder'"):
        distill(scene.teacher, Particles(scene.x), HiFA(decoder="decoder"), steps=1)
