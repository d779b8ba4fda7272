"""GANs on paths: what their discriminators converge to, what they see, and the steps that they compare."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck import (
    EDM,
    SGD,
    VP,
    Adam,
    Cosine,
    Drawn,
    FewStep,
    GaussianMixture,
    Incompatible,
    Noised,
    OneStep,
    PairGAN,
    Process,
    Rng,
    Run,
    StepGAN,
    StepRegression,
    Tick,
    Trajectory,
    distill,
    euler,
    sample,
)
from limbeck.engine.tick import Place
from limbeck.objectives.conditional import Path, landing, stepped
from tests.oracles.exact import (
    F64,
    AtRatio,
    FlowMap,
    close,
    descended,
    every_process,
    gradient,
    levels,
    mixture,
    tensor,
)
from tests.oracles.test_adversarial import Eyes


def tick_of(run: Run) -> Tick:
    """The first tick of a run, as its losses see it."""
    place = Place(run.seed, 0, 0.0, slice(0, run.batch), run.batch, run.device)
    tick = Tick(run.cast, place, {}, frozenset({"student"}))
    tick.batch = run.source.take(run.batch, tick.rng("data"))
    return tick


def points(teacher: GaussianMixture) -> Drawn:
    """Exact samples, with noise of their own and conditions."""

    def make(n: int, rng: Rng) -> dict[str, Tensor]:
        x = teacher.sample(n, rng)
        return {
            "x": x,
            "noise": rng.normal(*x.shape, dtype=F64),
            "cond": rng.integers(n, 3),
            "other": torch.full((n,), 7),
        }

    return Drawn(make, fields=("x", "noise", "cond", "other"))


# Steps


@every_process
def test_a_landing_is_where_a_step_leads(process: Process) -> None:
    """The prediction by which one step lands at x_s is the one that it was made by, at any two levels and at 0."""
    t = levels(process)
    x0, x, eps = Rng(0).normal(3, len(t), 2, dtype=F64)
    here = Noised(x, process.add_noise(x, eps, t), t, eps, None, process)
    for share in (0.9, 0.3, 0.0):
        s = share * t
        close(landing(here, stepped(here, x0, s).x_t, s), x0, 1e-9)


@every_process
def test_a_step_to_no_noise_is_the_prediction(process: Process) -> None:
    """And it is looked at as the cleanest sample there is."""
    t = levels(process)
    x0, x, eps = Rng(1).normal(3, len(t), 2, dtype=F64)
    end = stepped(Noised(x, process.add_noise(x, eps, t), t, eps, None, process), x0, torch.zeros_like(t))
    close(end.x_t, x0)
    assert torch.equal(end.t, torch.full_like(t, process.t_min))


def run_of(objective: object, process: Process, *, ratios: tuple[float, ...], batch: int = 12, seed: int = 0) -> Run:
    """A student that is its teacher, an exact mixture in the plane."""
    teacher = mixture(0, process=process)
    student = FewStep(teacher.clone(trainable=True), ratios=ratios, shape=(2,))
    return distill(teacher, student, objective, points(teacher), steps=1, batch=batch, optim=SGD(lr=0.0), seed=seed)


@every_process
@pytest.mark.parametrize("between", [1, 2, 5])
def test_the_teacher_walks_evenly_along_the_process_clock(process: Process, between: int) -> None:
    """A one-step student's teacher makes the steps of `euler`, at even fractions of the way to clean data."""
    run = run_of(steps := StepRegression(between=between), process, ratios=(3.0,))
    here, s = steps.begin(tick := tick_of(run))
    assert not s.any()
    first, u = process.fraction(here.t[:1]), torch.linspace(1, 0, between + 1, dtype=F64)
    times = torch.cat([process.at_fraction(first * u[:-1]), torch.zeros(1, dtype=F64)])
    close(steps.teach(tick, here, s).x_t, sample(euler(run.cast.teacher, here.eps, times, here.cond)), 1e-10)


@every_process
def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_single_steps(process: Process) -> None:
    """One step of each is the same; over two steps of the teacher there is something to learn."""
    for between in (1, 2):
        run = run_of(StepRegression(between=between), process, ratios=(3.0, 1.0, 0.3))
        loss = run.tick().losses["stepregression"]
        assert loss == pytest.approx(0, abs=1e-20) if between == 1 else loss > 1e-4


def test_the_loss_is_zero_just_where_one_step_lands_where_two_do() -> None:
    """By hand, for a step that ends at a level above 0: w·‖x0 − x0*‖²/D with EDM's weight, x0* from two steps."""
    steps, process = StepRegression(), VP()
    runs = (run_of(steps, process, ratios=(3.0, 1.0), seed=seed) for seed in range(9))
    run = next(run for run in runs if steps.begin(tick_of(run))[1].all())
    here, s = steps.begin(tick := tick_of(run))
    x_s, x0 = steps.teach(tick, here, s).x_t, run.cast.teacher.denoise(here.x_t, here.t, here.cond)
    left = (process.sigma(s) / process.sigma(here.t))[:, None]
    goal = (x_s - left * here.x_t) / (process.alpha(s)[:, None] - process.alpha(here.t)[:, None] * left)
    r = process.ratio(here.t)
    hand = (r**2 + 0.25) / (0.5 * r) ** 2 * ((x0 - goal) ** 2).mean(1)
    assert run.tick().losses["stepregression"] == pytest.approx(hand.mean().item(), rel=1e-9)
    close(stepped(here, goal, s).x_t, x_s, 1e-10)


def test_steps_begin_at_noise_or_at_noised_data() -> None:
    """At the first level there is no trace of the data; at the others x_t = α·x + σ·ε."""
    seen = set()
    for seed in range(8):
        teacher = mixture(0, process=VP())
        student = FewStep(teacher.clone(trainable=True), ratios=(3.0, 1.0), shape=(2,))
        steps = StepRegression()
        run = distill(teacher, student, steps, points(teacher), steps=1, batch=6, seed=seed)
        here, s = steps.begin(tick_of(run))
        noised = here.process.add_noise(here.x, here.eps, here.t)
        first = bool((here.t == student.times[0]).all())
        seen.add(first)
        close(here.x_t, noised - here.process.alpha(here.t)[:, None] * here.x if first else noised)
        assert torch.equal(s, student.times[1 if first else 2].expand(6))
    assert seen == {True, False}


def test_another_process_is_refused() -> None:
    teacher, other = mixture(0, process=VP()), mixture(0, process=EDM())
    student = FewStep(other.clone(trainable=True), ratios=(3.0,), shape=(2,))
    with pytest.raises(Incompatible, match="of its teacher's process"):
        distill(teacher, student, StepRegression(), points(teacher), steps=1, batch=4)


# What the discriminator sees


REAL, FAKE, START, RATIO = (0.4, 0.5), (-0.3, 0.9), 3.0, 0.8


class Noting(Eyes):
    """Eyes that note under which conditions they were asked."""

    def __init__(self, **settings: object):
        super().__init__(**settings)
        self.asked: list[Tensor] = []

    def look(self, x_t: Tensor, t: Tensor, cond: object = None, *, taps: tuple[str, ...], x0: bool = True) -> object:
        assert isinstance(cond, Tensor)
        self.asked.append(cond)
        return super().look(x_t, t, None, taps=taps, x0=x0)


def line(
    objective: object, *, process: Process | None = None, steps: int = 1, batch: int = 8, fixed: bool = False
) -> Run:
    """On the line: the ODE of one Gaussian gives the pairs, and that of another is the student, which stays."""
    process = process or EDM()
    teacher = (Eyes if fixed else Noting)(means=tensor([REAL[0]]), std=REAL[1], process=process)
    real, student = (FlowMap(tensor(m), tensor(s), process) for m, s in (REAL, FAKE))
    sigma = process.at_ratio(tensor(START))

    def make(n: int, rng: Rng) -> dict[str, Tensor]:
        z = rng.normal(n, 1, dtype=F64)
        x = real.denoise(process.sigma(sigma) * z, sigma.expand(n)).detach()
        return {"x": x, "noise": z, "cond": rng.integers(n, 3), "other": torch.full((n,), 7)}

    optim = {"student": SGD(lr=0.0), "discriminator": Adam(lr=0.01, schedule=Cosine())}
    data = Drawn(make, fields=("x", "noise", "cond", "other"))
    return distill(
        teacher, OneStep(student, shape=(1,), ratio=START), objective, data, steps=steps, batch=batch, optim=optim
    )


def constant(run: Run, value: float) -> None:
    """Makes the discriminator say the same of everything."""
    heads = run.cast.roles["discriminator"].module.heads
    with torch.no_grad():
        for p in heads.parameters():
            p.zero_()
        heads.heads["waves"][-1].bias.fill_(value)


@pytest.mark.parametrize("mismatch", [False, True])
def test_pairs_under_other_conditions_count_as_fakes(mismatch: bool) -> None:
    """Losses by hand of a discriminator that always says 0.7; and it was asked under those conditions."""
    run = line(PairGAN(on="teacher", mismatch=mismatch))
    constant(run, 0.7)
    losses, d = run.tick().losses, tensor(0.7)
    wrong = mismatch * F.softplus(d)
    assert losses["pairgan"] == pytest.approx(F.softplus(-d).item(), abs=1e-12)
    assert losses["discriminator"] == pytest.approx((F.softplus(d) + F.softplus(-d) + wrong).item(), abs=1e-12)
    asked = [bool((cond == 7).all()) for cond in run.cast.teacher.asked]
    assert sum(asked) == 2 * mismatch and len(asked) == 6 + 2 * mismatch  # ends and starts


@pytest.mark.parametrize("kind", [PairGAN, StepGAN])
@pytest.mark.parametrize("relaxed", [False, True])
def test_a_relaxed_discriminator_sees_ends_alone(kind: type, relaxed: bool) -> None:
    """With another start and the same end it says the same; otherwise not. Alone, D is the heads on the end."""
    objective = kind(on="teacher", relaxed=relaxed, hidden=4)
    run = line(objective, fixed=True)
    path = objective.real(tick := tick_of(run))
    other = Path(path.end, objective.real(tick).start.at(path.start.t / 2, "lower"))
    said = objective.logits(tick, path)
    assert torch.equal(said, objective.logits(tick, other)) == relaxed
    if relaxed:
        heads, end = run.cast.roles["discriminator"].module.heads, path.end
        features = run.cast.teacher.look(end.x_t, end.t, taps=("waves",), x0=False).features
        assert torch.equal(said, heads(features))


def test_both_sides_of_a_step_begin_at_one_point() -> None:
    run = line(objective := StepGAN(on="teacher"), fixed=True)
    real, fake = objective.real(tick := tick_of(run)), objective.fake(tick)
    assert torch.equal(real.start.x_t, fake.start.x_t) and torch.equal(real.end.t, fake.end.t)
    assert fake.end.x_t.requires_grad and not real.end.x_t.requires_grad


def test_a_pair_begins_at_the_noise_that_made_it() -> None:
    """Of the student's own draw: one step from the start leads to the sample."""
    run = line(objective := PairGAN(on="teacher"), fixed=True)
    tick = tick_of(run)
    for path, net in ((objective.fake(tick), FAKE), (objective.real(tick), REAL)):
        made = FlowMap(tensor(net[0]), tensor(net[1]), EDM()).denoise(path.start.x_t, path.start.t)
        close(path.end.x.detach(), made.detach())


def test_students_that_keep_no_noise_are_refused() -> None:
    teacher = Eyes(means=tensor([0.0]), std=1.0)
    student = Trajectory(teacher.clone(trainable=True), ratios=(3.0,), shape=(1,))
    with pytest.raises(Incompatible, match="OneStep"):
        distill(teacher, student, PairGAN(on="teacher"), points(teacher), steps=1, batch=4)


# What the discriminator converges to


@pytest.mark.parametrize("relaxed", [False, True])
def test_the_discriminator_finds_the_log_ratio_of_ends_given_the_start(relaxed: bool) -> None:
    """Given z both ends are N(x(z), r²) at the level r; without it they are Gaussians of the marginals."""
    objective = PairGAN(on="teacher", times=AtRatio(RATIO), hidden=32, relaxed=relaxed)
    run = line(objective, steps=250, batch=512, fixed=True)
    run.finish()
    tick = tick_of(run)
    paths = objective.real(tick), objective.fake(tick)
    learned = torch.cat([objective.logits(tick, path) for path in paths]).detach()
    x_t, start, t = (
        torch.cat(parts) for parts in zip(*((p.end.x_t, p.start.x_t, p.start.t) for p in paths), strict=True)
    )
    ends = []
    for mean, std in (REAL, FAKE):
        x = FlowMap(tensor(mean), tensor(std), EDM()).denoise(start, t).detach()
        at, spread = (tensor([mean]), (std**2 + RATIO**2) ** 0.5) if relaxed else (x, RATIO)
        ends.append(torch.distributions.Normal(at, spread).log_prob(x_t.detach())[:, 0])
    exact = ends[0] - ends[1]
    assert torch.corrcoef(torch.stack([learned, exact]))[0, 1] > 0.97
    slope = ((learned - learned.mean()) * exact).sum() / ((exact - exact.mean()) * exact).sum()
    assert slope == pytest.approx(1, abs=0.2)


def test_the_student_descends_its_loss_through_the_end_alone() -> None:
    """The gradient by the student's numbers of softplus(−D), D by hand, on the very noise of the run."""
    objective = PairGAN(on="teacher", times=AtRatio(RATIO), hidden=4)
    run = line(objective, fixed=True)
    path = objective.fake(tick_of(run))
    heads, teacher = run.cast.roles["discriminator"].module.heads, run.cast.teacher
    assert isinstance(teacher, Eyes)

    def lost(mean: Tensor, std: Tensor) -> Tensor:
        x_t, t = path.start.x_t, path.start.t
        x = mean + std * (x_t - mean) / (std**2 + t[:, None] ** 2).sqrt()
        places = ((x + RATIO * path.end.eps, path.end.t), (x_t, t))
        waves = [teacher.look(at, level, taps=("waves",), x0=False).features["waves"] for at, level in places]
        return F.softplus(-heads({"waves": torch.cat(waves, 1)})).mean()

    slopes = gradient(lost, *map(tensor, FAKE))
    moved = descended(objective, teacher, run.cast.student, run.source, batch=8)
    close(moved["denoiser.mean"], slopes[0], 1e-10)
    close(moved["denoiser.std"], slopes[1], 1e-10)
    assert min(slope.abs() for slope in slopes) > 1e-4
