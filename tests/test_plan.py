"""What a plan says of memory, exchange and operations is what the run then needs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from limbeck import EMA, KD, Adam, Dataset, cli, distill, loading, low_rank
from limbeck.bridges import Pipeline
from limbeck.engine.loop import Run
from limbeck.engine.recipe import Prior, Stage
from limbeck.errors import Incompatible
from limbeck.evaluate.hollow import hollow
from limbeck.evaluate.memory import peak, size_of
from limbeck.evaluate.needs import cadence, needs
from limbeck.evaluate.operations import Operations, operations
from limbeck.plan import _one_of, plan
from limbeck.rng import Rng, seeded
from tests.faults.processes import QUICK, STAGES
from tests.planned import RUNS, WORLD, cycle, used
from tests.suite.worker import ROOT

SMALL = {"batch": "4"}


def start(system: str, on: str, **settings: str) -> Run:
    problem = loading.load_problem(on)
    stage = loading.load_recipe(system, problem, {**SMALL, **settings}).stages[0]
    assert isinstance(stage, Stage)
    return stage.start(problem, Prior(Path("none")), 0)


@pytest.mark.parametrize(
    ("system", "on"),
    [
        ("dmd2", "digits"),
        ("kd", "digits-classify"),
        ("sds", "mixture2d"),
        ("tdm", "mixture2d-network"),
    ],
)
def test_memory_is_what_a_run_then_uses(system: str, on: str) -> None:
    run = start(system, on)
    assert needs(run).total == pytest.approx(used(run, cycle(run)), rel=0.02)


def test_what_is_shared_counts_once() -> None:
    with seeded("plan"):
        teacher = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4)).requires_grad_(False)
        student = low_rank(teacher, 1)
    run = distill(
        teacher, student, KD(), Dataset(x=torch.zeros(9, 8), y=torch.zeros(9, dtype=torch.long)), steps=10, batch=3
    )
    found = needs(run)
    assert found.parameters["student"] == 4 * (8 + 64 + 64 + 4) == found.gradients
    assert found.total == pytest.approx(used(run, cycle(run)), rel=0.05)


def test_a_plan_leaves_the_run_as_it_was() -> None:
    run, other = start("dmd2", "digits"), start("dmd2", "digits")
    needs(run)
    run.i = 0
    for _ in range(2):
        assert run.tick().measured == other.tick().measured


def test_parts_are_counted_by_hand() -> None:
    with seeded("plan"):
        teacher, student = (nn.Sequential(nn.Linear(8, k), nn.ReLU(), nn.Linear(k, 4)) for k in (64, 16))
    sizes = [4 * sum(p.numel() for p in net.parameters()) for net in (teacher, student)]
    data = Dataset(x=torch.zeros(100, 8), y=torch.zeros(100, dtype=torch.long))
    run = distill(teacher, student, KD(), data, steps=10, batch=20, ema=EMA(), optim=Adam())
    found = needs(run)
    assert found.parameters == dict(zip(("teacher", "student"), sizes, strict=True))
    assert found.averages == found.gradients == sizes[1]
    assert found.moments == 2 * sizes[1] + 4 * len([*student.parameters()])
    assert found.data == 100 * (8 * 4 + 8)
    assert found.total == found.still + found.gradients + found.activations


def test_operations_are_those_of_the_ticks() -> None:
    run = start("dmd2", "digits")
    found, due = needs(run), cadence(run)
    total = 0.0
    for ticks in due:
        run.i = ticks[0]
        total += len(ticks) * operations(run.tick)
    assert found.operations == pytest.approx(total / sum(map(len, due)), rel=1e-6)
    assert len(due) == 2  # with and without the student


def test_operations_are_those_of_torch() -> None:
    run = start("dmd2", "digits")
    with FlopCounterMode(display=False) as theirs:
        run.tick()
    run.i = 0
    assert operations(run.tick) == theirs.get_total_flops() > 0


def test_operations_of_attention() -> None:
    q = torch.randn(2, 4, 32, 16, requires_grad=True)
    product = 2 * 2 * 4 * 32 * 32 * 16
    with Operations() as forward:
        y = nn.functional.scaled_dot_product_attention(q, q, q)
    with Operations() as backward:
        y.sum().backward()
    assert (forward.total, backward.total) == (2 * product, 5 * product)  # one of the five is made again


def test_memory_of_what_is_computed_again() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(
                nn.Sequential(nn.Linear(32, 256), nn.GELU(), nn.Linear(256, 32)) for _ in range(6)
            )

        def forward(self, x: Tensor) -> Tensor:
            for part in self.parts:
                x = checkpoint(part, x, use_reentrant=False)
            return x

    data = Dataset(x=torch.randn(300, 32), y=torch.zeros(300, dtype=torch.long))
    run = distill(nn.Linear(32, 32), Again(), KD(), data, steps=10, batch=300)
    assert needs(run).total == pytest.approx(used(run, cycle(run)), rel=0.01)


@pytest.mark.parametrize("processes", [2, 4])
def test_exchange_is_the_sum_of_gradients(processes: int) -> None:
    problem = loading.load_problem(QUICK)
    (found,), _ = plan(loading.load_recipe(QUICK, problem), problem, processes=processes, tflops=1.0)
    sent = 2 * (processes - 1) / processes * found.gradients
    assert sent <= found.exchanged <= sent + 200  # and the sums of losses
    assert found.rows == 16 // processes
    assert not dist.is_initialized()


# Several processes, in shards and not


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """What each of two processes has used and sent."""
    folder = tmp_path_factory.mktemp("planned")
    command = [sys.executable, "-m", "tests.planned", str(folder)]
    started = [subprocess.Popen([*command, str(rank)], cwd=ROOT) for rank in range(WORLD)]
    assert [worker.wait(timeout=300) for worker in started] == [0] * WORLD
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_use_and_send_what_was_planned(ranks: Any, name: str, shard: bool) -> None:
    with _one_of(WORLD):
        found = needs(RUNS[name](shard=shard))
    for told in (rank[f"{name} {shard}"] for rank in ranks):
        assert found.total == pytest.approx(told["peak"], rel=0.1)
        assert found.exchanged == pytest.approx(told["sent"], rel=1e-9)
        assert shard == (told["calls"]["all_gather_single"] > 0) == (told["calls"]["reduce_scatter_single"] > 0)


def test_what_is_emptied_holds_nothing() -> None:
    """FSDP empties and fills storages, by no operation."""
    before = torch.UntypedStorage.resize_

    def work() -> Tensor:
        x = torch.zeros(1000)
        x.untyped_storage().resize_(0)
        y = torch.zeros(500)
        x.untyped_storage().resize_(2000)
        return y

    assert peak(work, start=()) == 4000
    assert torch.UntypedStorage.resize_ is before


def test_memory_is_counted_within_what_is_counted() -> None:
    before = torch.UntypedStorage.resize_
    inner: list[int] = []
    outer = peak(lambda: inner.append(peak(lambda: torch.zeros(100), start=())), start=())
    assert inner == [400] and outer == 400 and torch.UntypedStorage.resize_ is before


def test_time_is_that_of_the_rates_given() -> None:
    problem = loading.load_problem(QUICK)
    recipe = loading.load_recipe(QUICK, problem)
    (found,), _ = plan(recipe, problem, processes=2, tflops=1e-6, gbps=1e-3)
    assert found.seconds == pytest.approx(found.operations / 1e6 + 8 * found.exchanged / 1e6)
    (measured,), _ = plan(recipe, problem)
    assert measured.seconds and measured.seconds > 0


def test_what_values_decide_is_measured() -> None:
    problem = loading.load_problem("mixture2d")
    recipe = loading.load_recipe("f-distill", problem, {"batch": "64", "steps": "20"})
    (found,), _ = plan(recipe, problem, tflops=1.0)
    assert found.measured
    stage = recipe.stages[0]
    assert isinstance(stage, Stage)
    run = stage.start(problem, Prior(Path("none")), 0)
    assert found.total == pytest.approx(used(run, cycle(run)), rel=0.1)


def test_stages_that_need_files_are_said_to() -> None:
    problem = loading.load_problem(QUICK)
    with pytest.raises(Incompatible, match=r"stage views makes files.*stage labels.*stage again"):
        plan(loading.load_recipe(STAGES, problem), problem, tflops=1.0)


# A pipeline that nobody has the weights of


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small random pipeline."""
    diffusers: Any = pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("plan") / "pipeline"
    with seeded("pipeline"):
        net = diffusers.UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
    diffusers.DDPMPipeline(unet=net, scheduler=diffusers.DDIMScheduler(clip_sample=False)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bare(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without its weights."""
    folder = tmp_path_factory.mktemp("plan") / "bare"
    shutil.copytree(pipeline, folder)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    return folder


def test_a_pipeline_without_weights(pipeline: Path, bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "sid", "--on", str(bare), "--batch", "16", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["stages"]
    run = start("sid", str(pipeline), batch="16")
    assert found["total"] == pytest.approx(used(run, cycle(run)), rel=0.1)
    assert found["parameters"]["teacher"] == size_of(run.cast.teacher.parameters())
    assert found["seconds"] is None  # nobody said how fast the device is


def test_a_pipeline_without_weights_on_the_host(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["plan", "sid", "--on", str(bare), "--batch", "4", "--rank", "2", "--json"]
    assert cli.main([*line, "--memory.default.offload", "true"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["stages"]
    assert found["host"] > 9 * found["parameters"]["teacher"] > 0


def test_a_pipeline_without_weights_draws_no_samples_of_its_own(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which a GAN wants as data."""
    problem = loading.load_problem(str(bare), weights=False)
    assert isinstance(problem, Pipeline)
    monkeypatch.setattr(Pipeline, "teacher_sample", lambda *args: pytest.fail("sampled"))
    assert problem.own("data", 3).shape == (3, *problem.shape)


def test_a_plan_is_printed(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["plan", "sid", "--on", str(bare), "--batch", "16", "--gpus", "2", "--tflops", "0.01", "--gbps", "10"]
    assert cli.main(args) == 0
    text = capsys.readouterr().out
    assert "8 rows, in each of 2 processes" in text and "sent in a tick" in text and "10 GFLOP/s" not in text


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--gpus", "0"], "gpus must be at least 1"),
        (["--gpus", "3"], "batch must be a multiple of 3"),
        (["--tflops", "0"], "tflops"),
        (["--no-such", "1"], "no-such"),
    ],
)
def test_wrong_input(args: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["plan", QUICK, "--on", QUICK, *args]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not dist.is_initialized()


def test_a_plan_needs_a_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "dmd2"]) == 2
    assert "--on" in capsys.readouterr().err


# The counter


def test_what_is_freed_does_not_count() -> None:
    def work() -> Tensor:
        first = torch.zeros(1000)
        second = first.exp()
        del first
        return second.exp()

    assert peak(work, start=()) == 8000


def test_views_count_once() -> None:
    x = torch.zeros(1000)
    assert size_of([x, x[:10], x.view(10, 100)]) == 4000
    assert peak(lambda: x.view(10, 100)[3], start=[x]) == 4000


def test_rows_are_drawn_alike_without_values() -> None:
    """One random number is a number of this run, so that a plan goes the run's way through a rollout."""
    run = start("dmd2", "digits")
    with hollow(run) as reads:
        drawn = [Rng((k,)).integer(10) for k in range(5)]
    assert drawn == [Rng((k,)).integer(10) for k in range(5)] and reads.drawn
