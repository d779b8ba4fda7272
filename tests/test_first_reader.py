"""What a first reader tripped over, once each."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import limbeck
from limbeck import (
    CFG,
    DMD,
    EMA,
    KD,
    SDS,
    Adam,
    BadSetting,
    Dataset,
    Diverged,
    GaussianMixture,
    Incompatible,
    Loss,
    Objective,
    OneStep,
    Particles,
    RectifiedFlow,
    Session,
    Term,
    Trained,
    distill,
)
from limbeck.catalogue import PACKAGE
from limbeck.evaluate.comparison import evaluate, student_of
from limbeck.loading import load_problem, load_recipe, sources_of
from limbeck.problems.networks import ResidualMLP
from limbeck.rng import Rng, seed_of


def teacher() -> GaussianMixture:
    return GaussianMixture(means=torch.tensor([[1.0, 2.0]]), std=0.5)


class Custom(Objective):
    """A loss given as a function of the tick."""

    def __init__(self, loss):
        self.loss = loss

    def terms(self, cast):
        return (Term("custom", "student", self.loss, of="custom"),)


def test_a_student_can_be_tried_again_after_a_refusal_and_after_a_run():
    student = Particles(torch.zeros(8, 2))
    with pytest.raises(Incompatible):
        distill(teacher(), student, KD(), steps=1, batch=8)
    for _ in range(2):
        before = student.x.detach().clone()
        distill(teacher(), student, SDS(), steps=3, batch=8).finish()
        assert not torch.equal(before, student.x)


def test_results_are_judged_in_evaluation_mode():
    class Noisy(ResidualMLP):
        def forward(self, x, level, cond=None, **rest):
            return super().forward(nn.functional.dropout(x, 0.5, self.training), level, cond, **rest)

    net = Trained(Noisy(shape=(2,), width=8, blocks=1))
    net.net.out.weight.data.normal_()
    student = OneStep(net, shape=(2,)).train()
    noise = torch.randn(4, 2)
    one, two = (student_of(student)(noise, None, Rng(0)).x for _ in range(2))
    assert torch.equal(one, two) and student.training


def test_every_particle_is_judged_once():
    problem = load_problem("mixture2d")
    exact = Particles(problem.teacher.sample(256, Rng(1), cond := problem.spread(256)), cond)
    assert evaluate(exact, problem, n=5000)["recall"] > 0.8


def test_a_run_that_is_not_finite_leaves_no_checkpoint_and_no_result(tmp_path: Path):
    problem = load_problem("mixture2d")
    recipe = load_recipe("sds", problem, {"steps": 8, "lr": "1e39"})
    with pytest.raises(Diverged):
        for _ in Session(recipe, problem, tmp_path, checkpoint_every=1):
            pass
    kept = [*(tmp_path / "checkpoint").glob("*/state.safetensors")]
    assert all(value.isfinite().all() for path in kept for value in limbeck.read_tensors(path).values())
    assert not (tmp_path / "stages").exists()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines and all(json.loads(line, parse_constant=pytest.fail) for line in lines)


def test_a_skipped_update_leaves_running_statistics_alone():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    data = Dataset(x=torch.full((8, 2), math.nan))
    run = distill(None, net, Custom(lambda tick: Loss(net(tick.batch["x"])[:, 0])), data, steps=1, batch=8, ema=EMA())
    assert run.tick().skipped == ("student",)
    assert net[0].running_mean.isfinite().all() and net[0].num_batches_tracked == 0


def test_an_optimiser_for_nobody_is_refused():
    optim = {"default": Adam(), "studnet": Adam(lr=9.0)}
    with pytest.raises(BadSetting, match="'studnet'"):
        distill(teacher(), Particles(torch.zeros(8, 2)), SDS(), steps=1, batch=8, optim=optim)


@pytest.mark.parametrize("shape", [(8, 2), ()])
def test_losses_are_one_for_each_example(shape: tuple[int, ...]):
    def loss(tick):
        x = tick.draw().x
        return Loss(x if shape else x.sum())

    run = distill(teacher(), Particles(torch.zeros(8, 2)), Custom(loss), steps=1, batch=8)
    with pytest.raises(Incompatible, match=r"custom needs a loss of shape \(8,\)"):
        run.tick()


def test_a_guided_teacher_makes_a_plain_critic():
    run = distill(CFG(scale=3.0)(teacher()), Particles(torch.zeros(8, 2)), DMD(), steps=1, batch=8)
    assert isinstance(run.cast.roles["critic"].module, GaussianMixture)


def test_a_network_is_finite_in_pure_noise():
    net = Trained(ResidualMLP(shape=(2,), width=8, blocks=1), process=RectifiedFlow())
    assert net.denoise(torch.randn(3, 2), torch.ones(3, dtype=torch.float64)).isfinite().all()


def test_random_numbers_refuse_a_name_that_is_an_address():
    with pytest.raises(BadSetting, match="frozen dataclass"):
        seed_of(0, object())


def test_evidence_covers_what_a_recipe_is_made_of():
    problem = load_problem("mixture2d")
    sources = sources_of("pairs-regression", load_recipe("pairs-regression", problem))
    wanted = {"objectives/trajectory/consistency.py", "recipes/claims.py::frechet_at_steps", "students/generator.py"}
    assert wanted <= set(sources) and all((PACKAGE / name.partition("::")[0]).exists() for name in sources)


def test_the_public_names_are_there_for_completion():
    space: dict[str, object] = {}
    exec("from limbeck import *", space)
    assert {"distill", "DMD", "OneStep", "Rng"} <= set(space) & set(dir(limbeck)) and "hashlib" not in space
