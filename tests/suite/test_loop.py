"""The loop's own promises: guard against NaN, clipping, rates, precision, several students, passes made once."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.diffusion import CFG, Karras, Uniform
from limbeck.engine import (
    EMA,
    SGD,
    Adam,
    Cast,
    Cosine,
    Linear,
    Loss,
    Objective,
    Run,
    Schedule,
    Term,
    Tick,
    distill,
)
from limbeck.engine.checkpoint import flatten
from limbeck.errors import BadSetting, Diverged, Incompatible
from limbeck.objectives import DMD, GAN, KD, SDS, VSD, Critic, Fake, SiD
from limbeck.rng import Rng
from limbeck.students import FewStep, GrowingParticles, OneStep, Particles
from tests.suite.cases import BATCH, EXACT, Case, build, finished, sample, trained, unequal
from tests.suite.probes import Pull, Watch, gradients, lively, squares

PARTICLES = Case("SDS", "Particles", "Trained")
ONE = Case("DMD", "OneStep", "Trained")
NAN = float("nan")

# The guard


def snapshot(run: Run) -> dict[str, Any]:
    return copy.deepcopy(run.state_dict())


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_loss_that_is_not_finite_skips_its_role_only(accumulate: int) -> None:
    """That role keeps its parameters, moments and average for the tick; the others go on; the skip is counted."""
    run = PARTICLES.run(Pull(broken=frozenset({1, 3})), steps=6, accumulate=accumulate)
    for i in range(6):
        before = snapshot(run)
        step, after = run.tick(), run.state_dict()
        assert step.skipped == (("student",) if i in (1, 3) else ())
        assert (unequal(before["roles"]["student"], after["roles"]["student"]) == []) == (i in (1, 3))
        assert (unequal(before["targets"], after["targets"]) == []) == (i in (1, 3))
        assert unequal(before["roles"]["judge"], after["roles"]["judge"])
        assert (step.losses["pull student"] != step.losses["pull student"]) == (i in (1, 3))
    assert run.skipped == 2
    assert (run.cast.roles["student"].steps, run.cast.roles["judge"].steps) == (4, 6)


def test_the_guard_changes_nothing_else() -> None:
    """After a skipped update a run goes on as if that tick had not trained the role."""
    broken, whole = (PARTICLES.run(Pull(broken=at), steps=4) for at in (frozenset({3}), frozenset()))
    broken.finish(), whole.finish()
    mine, theirs = broken.state_dict()["roles"], whole.state_dict()["roles"]
    assert unequal(mine["judge"], theirs["judge"]) == []
    assert unequal(mine["student"], theirs["student"])


@dataclass(frozen=True, kw_only=True)
class Sharp(Objective):
    """A finite loss without a finite gradient: √|x − x| is 0, and its slope is not a number."""

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        def loss(tick: Tick) -> Loss:
            x = tick.draw().x
            return Loss(squares(x, x.detach()).sqrt())

        return (Term("sharp", "student", loss, of=self),)


def test_a_gradient_that_is_not_finite_skips_too() -> None:
    (step,) = PARTICLES.run(Sharp(), steps=1)
    assert step.losses == {"sharp": 0.0} and step.skipped == ("student",)


def test_a_growing_student_does_not_grow_from_a_skipped_update() -> None:
    run = Case("SDS", "GrowingParticles", "Trained").run(Pull(broken=frozenset({3})), steps=4)
    run.finish()
    assert len(run.cast.students["student"].x) == BATCH


def test_ten_skips_in_a_row_end_the_run() -> None:
    run = PARTICLES.run(Pull(broken=frozenset(range(2, 30))), steps=30)
    with pytest.raises(Diverged, match="10 updates in a row of 'student' were not finite, the last at tick 11"):
        run.finish()
    assert run.i == 11


def test_nine_skips_in_a_row_do_not() -> None:
    broken = frozenset(range(30)) - {9, 19, 29}
    run = PARTICLES.run(Pull(broken=broken), steps=30)
    run.finish()
    assert run.skipped == 27


def test_patience_counts_updates_not_ticks_and_survives_a_checkpoint() -> None:
    def make() -> Run:
        return PARTICLES.run(0.5 * Pull(broken=frozenset(range(100))), steps=60)

    run = make()
    for _ in range(8):
        run.tick()
    resumed = make()
    resumed.load_state_dict(run.state_dict())
    with pytest.raises(Diverged):
        resumed.finish()
    assert resumed.i == 9


# Rates, clipping, scale


def deltas(optim: Any, objective: Objective | None = None) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """What one tick changed in the student, the gradients that it had, and the step."""
    run = lively(ONE.exact().run(objective, steps=1, optim=optim, ema=None))
    before = {k: p.clone() for k, p in run.cast.roles["student"].params.items()}
    with gradients() as seen:
        (step,) = run
    after = run.cast.roles["student"].params
    assert norm(seen[0]["student"]) > 1e-6
    return {k: after[k] - before[k] for k in before}, seen[0]["student"], step


def norm(tensors: dict[str, torch.Tensor]) -> float:
    return float(torch.stack([t.norm() for t in tensors.values()]).norm())


@pytest.mark.parametrize("share", [0.25, 1.5])
def test_clipping_bounds_the_norm_of_a_role(share: float) -> None:
    """A longer gradient is shortened to the bound as a whole, a shorter one is left; norms are told before it."""
    plain, grads, step = deltas(SGD(lr=1.0))
    assert step.norms["student"] == pytest.approx(norm(grads), rel=1e-12)
    clipped, _, again = deltas(SGD(lr=1.0, clip=share * norm(grads)))
    assert again.norms == step.norms
    for name, delta in plain.items():
        torch.testing.assert_close(clipped[name], delta * min(share, 1), rtol=1e-10, atol=1e-16)


def test_rates_are_scaled_by_name() -> None:
    """The first glob that matches counts, and a factor of 0 holds a parameter still."""
    scale = (("*.bias", 0.0), ("*blocks*", 0.5), ("*up.weight", 9.0))
    changed, grads, _ = deltas(SGD(lr=1.0, scale=scale))
    assert {name.endswith(".bias") for name in changed} == {True, False}
    for name, delta in changed.items():
        factor = 0.0 if name.endswith(".bias") else 0.5 if "blocks" in name else 1.0
        torch.testing.assert_close(delta, -factor * grads[name], rtol=1e-10, atol=1e-16)


SCHEDULES = [1.0, Linear(first=1.0, last=0.1), Cosine(warmup=0.25), Cosine(warmup=0.5, last=0.2) * Linear(until=0.9)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_rates_follow_the_tick(schedule: float | Schedule) -> None:
    """The rate is a function of i / steps alone, also where a role steps only every other tick, and when resumed."""

    def make() -> Run:
        return ONE.run(DMD(critic_steps=2), steps=8, optim=Adam(lr=0.1, schedule=schedule))

    def rates(run: Run, role: str) -> set[float]:
        return {group["lr"] for group in run.cast.roles[role].optimizer.param_groups}

    run, resumed = make(), make()
    for i in range(8):
        if i == 4:
            resumed.load_state_dict(run.state_dict())
        step = run.tick()
        wanted = 0.1 * (schedule(i / 8) if isinstance(schedule, Schedule) else schedule)
        assert all(rate == pytest.approx(wanted) for role in step.norms for rate in rates(run, role))
    resumed.finish()
    assert all(rates(resumed, role) == rates(run, role) for role in run.cast.roles)


def test_every_role_has_its_own_optimiser() -> None:
    optim = {"default": SGD(lr=0.3), "critic": Adam(lr=0.1), "discriminator": SGD(lr=0.2, momentum=0.9)}
    run = ONE.run(DMD(critic_steps=1) + GAN(), steps=2, optim=optim)
    run.finish()
    optimisers = {name: role.optimizer for name, role in run.cast.roles.items()}
    kinds = {name: (type(o).__name__, o.param_groups[0]["lr"]) for name, o in optimisers.items()}
    assert kinds == {"student": ("SGD", 0.3), "critic": ("AdamW", 0.1), "discriminator": ("SGD", 0.2)}


# Precision


@pytest.mark.parametrize("case", sample(), ids=str)
def test_bf16_forward_passes_keep_parameters_and_gradients_whole(case: Case) -> None:
    """Parameters, moments and gradients stay float32, and gradients point where those of float32 do."""
    seen = []
    for autocast in (None, torch.bfloat16):
        run = lively(case.run(steps=1, autocast=autocast, ema=None))
        with gradients() as grads:
            (step,) = run
        assert not step.skipped
        seen.append(grads[0])
    full, half = seen
    for role in full:
        assert full[role].keys() == half[role].keys(), "autocast lost a gradient"
        assert {g.dtype for g in half[role].values()} == {torch.float32}
        a, b = (torch.cat([g.flatten() for g in grads[role].values()]) for grads in (full, half))
        assert float(nn.functional.cosine_similarity(a, b, dim=0)) > 0.9


@dataclass(frozen=True, kw_only=True)
class Half(Objective):
    """A loss that comes in half precision, as from a network under autocast."""

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        def loss(tick: Tick) -> Loss:
            x = tick.draw().x[:, 0]
            return Loss((x - x.detach() + torch.arange(1.0, 1.0 + len(x)) / 7).bfloat16())

        return (Term("half", "student", loss, of=self),)


def test_half_precision_losses_are_summed_in_float32() -> None:
    (step,) = PARTICLES.run(Half(), steps=1)
    rows = torch.arange(1.0, 1.0 + BATCH) / 7
    assert step.losses["half"] == pytest.approx(float(rows.bfloat16().float().mean()), rel=1e-6)


# Several students


def two(students: dict[str, nn.Module], objective: Objective, **settings: Any) -> Run:
    teacher = build("TEACHERS", "GaussianMixture", EXACT)
    return distill(teacher, students, objective, **{"steps": 4, "batch": BATCH, "optim": SGD(lr=0.1), **settings})


def spread(x: float) -> torch.Tensor:
    return torch.arange(2.0 * BATCH).reshape(BATCH, 2) + x


def test_students_by_name_learn_their_own() -> None:
    students = {"peer": Particles(spread(0.0)), "student": Particles(spread(5.0))}
    run = two(students, Pull(who="peer", to=-1.0) + Pull(to=1.0), ema=EMA(decay=0.5))
    for step in run:
        assert set(step.losses) == {"learn", "pull peer", "pull student"}
    assert {name: role.steps for name, role in run.cast.roles.items()} == {"peer": 4, "student": 4, "judge": 4}
    assert run.student is run.result("student") is not run.result("peer")
    alone = two({"student": Particles(spread(5.0))}, Pull(to=1.0), ema=EMA(decay=0.5))
    assert torch.equal(alone.finish().x, run.result("student").x)


def test_a_factor_scales_every_student() -> None:
    students = {"peer": Particles(spread(0.0)), "student": Particles(spread(5.0))}
    with gradients() as seen:
        for w in (1.0, 2.0):
            two(copy.deepcopy(students), w * (Pull(who="peer") + Pull()), steps=1).finish()
    once, twice = seen
    factors = {"peer": 2, "student": 2, "judge": 1}
    assert all(torch.equal(twice[n][k], once[n][k] * factors[n]) for n in factors for k in once[n])


def test_each_growing_student_grows_by_its_own_gradient() -> None:
    grows = {"every": 1, "share": 1 / BATCH, "jitter": 0.0}
    students = {"student": GrowingParticles(spread(0.0), **grows), "peer": GrowingParticles(spread(0.0), **grows)}
    run = two(students, Pull(to=0.0) + Pull(who="peer", to=2.0 * BATCH), steps=1)
    with gradients() as seen:
        run.finish()
    for name, student in run.cast.students.items():
        (split,) = seen[0][name]["x"].norm(dim=1).topk(1).indices.tolist()
        assert split == (BATCH - 1 if name == "student" else 0)
        assert torch.equal(student.x[-1], student.x[split])


def test_one_of_the_students_is_the_student() -> None:
    with pytest.raises(Incompatible, match="needs one of its students named 'student', got 'a' and 'b'"):
        two({"a": Particles(spread(0.0)), "b": Particles(spread(1.0))}, SDS())


def test_teachers_by_name_the_first_is_the_teacher() -> None:
    teachers = {name: build("TEACHERS", "GaussianMixture", EXACT) for name in ("big", "small")}
    run = distill(teachers, Particles(spread(0.0)), SDS(), steps=1, batch=BATCH)
    with counted(teachers["big"]) as big, counted(teachers["small"]) as small:
        run.finish()
    assert (len(big), len(small)) == (1, 0)


def test_two_roles_cannot_share_parameters() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Greedy(Objective):
        def terms(self, cast: Cast) -> tuple[Term, ...]:
            cast.role("mirror", lambda: cast.student.requires_grad_(True))
            return SDS().terms(cast)

    with pytest.raises(Incompatible, match="'mirror' needs parameters of its own, got 1 shared with 'student'"):
        PARTICLES.run(Greedy())


@pytest.mark.parametrize("frozen", ["clone", "teacher"])
def test_a_student_with_nothing_to_train_is_refused(frozen: str) -> None:
    teacher = trained(EXACT)
    denoiser = teacher.clone(trainable=False) if frozen == "clone" else teacher
    with pytest.raises(Incompatible, match="the role 'student' needs parameters to train, got an OneStep without any"):
        distill(teacher, OneStep(denoiser, shape=(2,)), SDS(), steps=1)


def test_classes_that_do_not_agree_are_refused() -> None:
    data = Case("KD", "Classifier", "Classifier").run().source
    run = distill(nn.Linear(2, 3), nn.Linear(2, 5), KD(), data, steps=1, batch=8)
    with pytest.raises(Incompatible, match="KD needs a student with 3 classes, got 5"):
        run.finish()
    assert run.i == 0


# Passes made once


@contextmanager
def counted(module: nn.Module) -> Iterator[list[bool]]:
    """Calls of a denoiser's ``denoise``, or of any module: whether each ran with gradients."""
    name = "denoise" if hasattr(module, "denoise") else "forward"
    original: Callable[..., Any] = getattr(module, name)
    calls: list[bool] = []

    def spied(*args: Any, **settings: Any) -> Any:
        calls.append(torch.is_grad_enabled())
        return original(*args, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, spied)
        yield calls


TIMES = Uniform(lo=0.1, hi=0.9)
SHARED = [
    ("one", SDS(times=TIMES), 1, None),
    ("equal times", SDS(times=TIMES) + VSD(times=TIMES) + DMD(times=TIMES, critic_steps=1), 1, 2),
    ("other times", SDS(times=TIMES) + DMD(critic_steps=1), 2, 2),
    ("the critic's own times", VSD(times=TIMES, fake=Fake(critic=Critic(times=TIMES))), 1, 2),
    ("guided and not", SDS(times=TIMES) + VSD(times=TIMES, guidance=CFG(scale=3.0)), 3, 2),
    ("equal guidance", SDS(times=TIMES, guidance=CFG(scale=3.0)) + VSD(times=TIMES, guidance=CFG(scale=3.0)), 2, 2),
]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("objective", "teacher", "critic"), [s[1:] for s in SHARED], ids=[s[0] for s in SHARED])
def test_a_pass_is_made_once(objective: Objective, teacher: int, critic: int | None, accumulate: int) -> None:
    """Losses of equal settings share the teacher's pass, the critic's detached pass, and the student's draw.

    A critic is passed once without gradients for each set of times of students' losses, and then, when their graphs are
    gone, once with them for its own. Guidance by a condition takes two passes of the teacher.
    """
    run = ONE.run(objective, steps=1, accumulate=accumulate)
    critics = run.cast.roles.get("critic")
    with (
        counted(run.cast.teacher) as taught,
        counted(run.cast.students["student"].denoiser) as drawn,
        counted(critics.module if critics else nn.Identity()) as criticised,
    ):
        run.finish()
    assert taught == [False] * teacher * accumulate
    assert drawn == [True] * accumulate
    assert sorted(criticised) == sorted(([False] * (critic - 1) + [True] if critic else []) * accumulate)


def test_losses_share_one_noised_sample() -> None:
    """By equal times they see the same levels and noise; the graph behind is each loss's own."""
    watch = Watch(objective=DMD(critic_steps=1) + GAN(times=DMD().times), note=lambda _, tick: tick.noised(DMD().times))
    ONE.run(watch, steps=1).finish()
    first, *others = watch.notes
    for other in others:
        assert other.t is first.t and other.eps is first.eps and torch.equal(other.x_t, first.x_t)


WATCHED = DMD(times=TIMES, fake=Fake(critic=Critic(times=TIMES)), critic_steps=1) + 0.3 * GAN(
    times=TIMES, critic=Critic(times=TIMES), feature_weight=0.2
)


def test_a_critic_gives_prediction_and_features_in_one_pass() -> None:
    """At equal times: one for its own loss and the discriminator's, one for the student's, and one for the data."""
    run = ONE.run(WATCHED, steps=1)
    inputs: list[bool] = []
    run.cast.roles["critic"].module.net.register_forward_pre_hook(lambda _, args: inputs.append(args[0].requires_grad))
    run.finish()
    assert sorted(inputs) == [False, False, True]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "objective", [WATCHED, WATCHED + SiD(critic=Critic(times=TIMES), times=TIMES)], ids=["dmd", "sid"]
)
def test_shared_passes_change_no_gradient(objective: Objective, accumulate: int, weighted: bool) -> None:
    """Against the same run in which every loss makes its own pass; also where a loss has weights."""
    ends: list[dict[str, Any]] = []
    for shared in (True, False):
        run = ONE.exact().run(objective, steps=3, accumulate=accumulate)
        if weighted:
            run.terms = tuple(replace(term, loss=partial(weigh, term.loss)) for term in run.terms)
        if not shared:
            run.cast.watched.clear()
        ends.append(flatten(finished(run))[0])
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def weigh(loss: Callable[[Tick], Loss | Iterator[Loss]], tick: Tick) -> Loss | Iterator[Loss]:
    """A loss whose later examples count more."""
    made = loss(tick)
    if isinstance(made, Loss):
        return replace(made, weight=torch.arange(1.0, 1 + len(made.value)).to(made.value))
    return (weigh(lambda _, part=part: part, tick) for part in made)


# Few steps


@pytest.mark.parametrize("seed", range(12))
def test_a_draw_stops_at_its_step_and_learns_through_it_only(seed: int) -> None:
    """Step k takes k passes without gradient and one with, from an input without gradient, and nothing after it."""
    student = FewStep(trained(EXACT), ratios=(80.0, 10.0, 2.0, 0.5), shape=(2,))
    inputs: list[bool] = []
    student.denoiser.net.register_forward_pre_hook(lambda _, args: inputs.append(args[0].requires_grad))
    with counted(student.denoiser) as calls:
        draw = student.draw(8, None, Rng(seed))
    k = student.times.tolist().index(draw.segment[1])
    assert draw.segment[0] == float(student.times[k + 1])
    assert calls == [False] * k + [True] and not any(inputs)
    assert draw.x.requires_grad and not draw.noise.requires_grad


def test_all_steps_are_drawn_and_sampling_takes_them_all() -> None:
    student = FewStep(trained(EXACT), ratios=(80.0, 10.0, 2.0, 0.5), shape=(2,))
    assert {student.draw(2, None, Rng(seed)).segment[1] for seed in range(40)} == set(student.times[:-1].tolist())
    with counted(student.denoiser) as calls:
        student.sample(8, None, Rng(0))
    assert calls == [False] * 4


def test_the_step_is_one_for_the_whole_batch() -> None:
    """Micro-batches of one tick learn the same step, and later ticks learn others."""
    watch = Watch(objective=SDS(), note=lambda _, tick: (tick.i, tick.draw().segment))
    Case("SDS", "FewStep", "Trained").run(watch, steps=8, accumulate=4).finish()
    by_tick = {i: {segment for j, segment in watch.notes if j == i} for i in range(8)}
    assert all(len(segments) == 1 for segments in by_tick.values())
    assert len(set.union(*by_tick.values())) > 1


# Terms and steps


def test_terms_run_in_the_order_of_their_names() -> None:
    run = ONE.run(Pull() + GAN(critic_steps=2) + DMD() + SDS(times=TIMES) + SDS() + SDS(times=Karras()))
    names = [term.name for term in run.terms]
    assert names == ["dmd", "gan", "pull student", "sds", "sds#2", "sds#3", "critic", "discriminator", "learn"]


@pytest.mark.parametrize("every", [0, -1])
def test_a_period_below_one_is_refused(every: int) -> None:
    with pytest.raises(BadSetting, match="every must be at least 1"):
        Term("x", "student", lambda tick: Loss(torch.zeros(1)), every=every)


@pytest.mark.parametrize("setting", ["steps", "batch", "accumulate"])
def test_numbers_out_of_range_are_refused(setting: str) -> None:
    with pytest.raises(BadSetting, match=f"{setting} must be at least 1, got 0"):
        PARTICLES.run(**{setting: 0})


def test_a_loss_without_gradient_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Still(Objective):
        def terms(self, cast: Cast) -> tuple[Term, ...]:
            return (Term("still", "student", lambda tick: Loss(torch.zeros(tick.size)), of=self),)

    with pytest.raises(Incompatible, match="still needs a loss that depends on student"):
        PARTICLES.run(Still()).finish()


def test_a_run_counts_and_can_be_left_and_taken_up() -> None:
    run, whole = PARTICLES.run(steps=6), PARTICLES.run(steps=6)
    first = next(iter(run))
    assert [first.i, *(step.i for step in run)] == [step.i for step in whole] == [1, 2, 3, 4, 5, 6]
    assert unequal(run.state_dict(), whole.state_dict()) == [] and list(run) == []
