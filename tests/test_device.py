"""Networks elsewhere: a tick in which everything is on a device that is not the processor, and where nothing mixes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from limbeck import DMD, GAN, SGD, Adam, Critic, Fake, FromTeacher, OneStep, SiD, Stage, distill
from limbeck.bridges import Pipeline
from limbeck.cli import main
from limbeck.engine import EMA, Memory, Objective, Run
from limbeck.engine.host import Hosted, host_of
from limbeck.engine.recipe import Prior
from limbeck.evaluate.comparison import student_of
from limbeck.problems.digits import Digits
from limbeck.problems.problem import home_of
from limbeck.rng import Rng

THERE = torch.device("meta")
"""A device without values: torch refuses to mix its tensors with the processor's, as it does those of a GPU."""

FEW: dict[str, Any] = {"steps": 2, "batch": 4, "optim": SGD()}


class Read(TorchDispatchMode):
    """Numbers that are read from there are made up."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if "_local_scalar_dense" in str(func) and args[0].is_meta:
            return False if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 0
        if "_to_copy" in str(func) and args[0].is_meta and str(kwargs.get("device")) == "cpu":
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def unseeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no generators there, nor is there autocast."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    made = Rng.generator.func
    monkeypatch.setattr(Rng, "generator", property(lambda rng: None if rng.device == THERE else made(rng)))


@pytest.mark.parametrize("objective", [DMD() + GAN(), SiD()], ids=lambda one: type(one).__name__)
def test_a_tick_stays_on_the_device_of_its_networks(objective: Objective) -> None:
    problem = Digits()
    teacher, student = problem.teacher.clone(trainable=False), OneStep(problem.network(), shape=problem.shape)
    with Read():
        run = distill(teacher.to(THERE), student.to(THERE), objective, problem.source, **FEW, ema=EMA())
        for step in run:
            assert step.losses
    assert {x.device for x in run.cast.tensors()} == {THERE}


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta")
def test_moments_of_a_checkpoint_go_where_their_parameters_are() -> None:
    problem = Digits()

    def started(device: str | torch.device) -> Run:
        teacher, student = problem.teacher.clone(trainable=False), OneStep(problem.network(), shape=problem.shape)
        return distill(teacher.to(device), student.to(device), SiD(), problem.source, **FEW | {"optim": Adam()})

    here = started("cpu")
    here.tick()
    with Read():
        run = started(THERE)
        run.load_state_dict(here.state_dict())
        moments = [x for role in run.cast.roles.values() for one in role.optimizer.state.values() for x in one.values()]
        assert {x.device for x in moments} == {THERE} and run.tick().losses


def test_weights_on_the_host_compute_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage lays them before its networks move; every copy is made where the network computes."""
    problem, seen = Digits(), set[torch.device]()
    brought = Hosted.brought
    monkeypatch.setattr(Hosted, "brought", lambda x: seen.add((made := brought(x)).device) or made)
    stage = Stage(
        name="one",
        objective=DMD(fake=Fake(critic=Critic(rank=2))) + GAN(critic=Critic(rank=2)),
        student=FromTeacher(rank=2),
        memory={"default": Memory(offload=True)},
        **FEW | {"optim": {"default": SGD()}},
    )
    with Read():
        run = stage.start(problem, Prior(Path("none")), 0, THERE)
        for step in run:
            assert step.losses
    every = [*run.cast.tensors()]
    assert {x.device for x in every} == {THERE} == seen
    hosted = [x for x in every if isinstance(x, Hosted)]
    assert hosted and {host_of(x).device.type for x in hosted} == {"cpu"}


def test_what_is_left_behind_is_noticed() -> None:
    """So that the tests above can fail."""
    problem = Digits()
    student = OneStep(problem.network(), shape=problem.shape).to(THERE)
    with Read(), pytest.raises(RuntimeError, match="device"):
        distill(problem.teacher, student, SiD(), problem.source, **FEW).finish()


def test_samples_come_back_to_where_the_noise_is() -> None:
    problem = Digits()
    student = OneStep(problem.network(), shape=problem.shape).to(THERE)
    assert home_of(student) == THERE
    with Read():
        draw = student_of(student)(torch.zeros(2, *problem.shape), torch.zeros(2, dtype=torch.long), Rng(0))
    assert draw.x.shape == (2, *problem.shape) and draw.x.device.type == "cpu" and draw.cond.device.type == "cpu"


def test_a_pipeline_elsewhere_gives_samples_here(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    net = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4, **blocks
    )
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    problem = Pipeline(tmp_path)
    problem.teacher.to(THERE)
    with Read():
        x = problem.teacher_sample(torch.zeros(2, *problem.shape), None)
    assert x.shape == (2, *problem.shape) and x.device.type == "cpu"


def test_a_device_that_is_not_here_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    for name in ("cuda:7", "toaster", "meta"):
        assert main(["distill", "sid", "--on", "digits", "--device", name, "--out", str(out)]) == 2
        assert f"such as cpu, got {name}" in capsys.readouterr().err and not out.exists()
