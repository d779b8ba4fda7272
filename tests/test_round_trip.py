"""A pipeline of diffusers, distilled by the command line and exported: diffusers alone then gives the same images."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from limbeck import GAN, Objective, SiD, distill
from limbeck.bridges import Pipeline, read_pipeline, steps_of, write_pipeline
from limbeck.cli import main
from limbeck.errors import Incompatible
from limbeck.evaluate.metrics import energy_distance
from limbeck.rng import Rng, seed_of, seeded
from limbeck.students import FewStep, FromTeacher, RandomEta, Trajectory

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.xdist_group("round-trip")

N = 128
RUNS: dict[str, tuple[int, tuple[str, ...]]] = {
    "dmd2": (1, ("--steps", "2")),
    "sid-fewstep": (1, ("--steps", "30")),
    "sid-fewstep again": (1, ("--steps", "30", "--seed", "1")),
    "sid-fewstep in two": (2, ("--steps", "2", "--student.ratios", "(2.0, 0.5)")),
    "tdm": (4, ("--steps", "2")),
    "consistency-distillation": (1, ("--steps", "2")),
}
"""Steps of a student, and settings of its run."""

SCRIPT = """
import sys
from diffusers import DiffusionPipeline
import torch

images = {}
for folder, steps in zip(sys.argv[3::2], sys.argv[4::2]):
    pipeline = DiffusionPipeline.from_pretrained(folder)
    noise = torch.Generator().manual_seed(int(sys.argv[2]))
    drawn = pipeline(batch_size=128, num_inference_steps=int(steps), generator=noise, output_type="np").images
    images[folder] = torch.tensor(drawn).movedim(3, 1)
assert "limbeck" not in sys.modules
torch.save(images, sys.argv[1])
"""


def blobs(n: int, rng: Rng) -> Tensor:
    """A bright spot somewhere on a dark square, [n, 1, 8, 8] in [−1, 1]."""
    centre, at = 2 + 3 * rng.uniform(n, 2, 1, dtype=torch.float32), torch.arange(8.0)
    rows, columns = (torch.exp(-((at - c) ** 2) / 3) for c in centre.unbind(1))
    return (2 * rows[:, :, None] * columns[:, None, :] - 1)[:, None]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of blobs, trained for a moment by diffusers' plain loop."""
    settings = {"sample_size": 8, "block_out_channels": (16,), "layers_per_block": 1, "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "add_attention": False}
    scheduler, rng = diffusers.DDIMScheduler(prediction_type="v_prediction"), Rng(("round trip",))
    with seeded("round trip"):
        net = diffusers.UNet2DModel(in_channels=1, out_channels=1, **settings, **blocks)
    optim = torch.optim.Adam(net.parameters(), lr=4e-3)
    for _ in range(180):
        x, t = blobs(32, rng), rng.integers(32, 1000)
        eps = rng.normal(*x.shape)
        F.mse_loss(net(scheduler.add_noise(x, eps, t), t).sample, scheduler.get_velocity(x, eps, t)).backward()
        optim.step()
        optim.zero_grad()
    folder = tmp_path_factory.mktemp("round-trip") / "blobs"
    diffusers.DDIMPipeline(net, scheduler).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(pipeline: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """By run, what ``limbeck sample`` draws and what diffusers alone draws from the export, in [0, 1]."""
    root, asked = pipeline.parent, list[str]()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("judged", 48), ("shown", 10), ("steps", 9)):
            patch.setattr(Pipeline, name, value)
        for name, (steps, settings) in RUNS.items():
            run, out = str(root / name), str(root / f"{name} out")
            words = ("--on", str(pipeline), "--out", run, "--batch", "32", *settings)
            assert main(["distill", name.split()[0], *words]) == 0
            assert main(["export", run, "--to", "diffusers", "--out", out]) == 0
            assert main(["sample", run, "--n", str(N), "--out", f"{run}.safetensors"]) == 0
            asked += [out, str(steps)]
    seed = str(seed_of(0, "judge", "blobs"))  # that of the noise of ``limbeck sample``
    subprocess.run([sys.executable, "-c", SCRIPT, str(root / "x.pt"), seed, *asked], check=True)
    theirs = torch.load(root / "x.pt", weights_only=True)
    ours = {name: load_file(root / f"{name}.safetensors")["x"] for name in RUNS}
    return {name: ((x / 2 + 0.5).clamp(0, 1), theirs[str(root / f"{name} out")]) for name, x in ours.items()}


@pytest.mark.parametrize("name", RUNS)
def test_diffusers_alone_gives_the_same_images(images: dict[str, tuple[Tensor, Tensor]], name: str) -> None:
    ours, theirs = images[name]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert theirs.std() > 0.05


@pytest.mark.parametrize("name", ["sid-fewstep", "sid-fewstep again"])
def test_training_makes_one_step_better(images: dict[str, tuple[Tensor, Tensor]], pipeline: Path, name: str) -> None:
    start, real = FromTeacher()(Pipeline(pipeline)), blobs(1000, Rng(("real",)))
    untrained = start.sample(N, None, Rng(0)) / 2 + 0.5
    before, after = (energy_distance(x.flatten(1), real.flatten(1) / 2 + 0.5) for x in (untrained, images[name][1]))
    assert after < 0.4 * before, (before, after)


@pytest.mark.parametrize("kind", [FewStep, Trajectory])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", ["noisiest", "lower", "zero", "flow", "shifted"])
def test_steps_are_those_that_the_exported_scheduler_takes(
    pipeline: Path, tmp_path: Path, name: str, steps: int, kind: type[FewStep]
) -> None:
    scheduler = {
        "zero": lambda: diffusers.DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
        "flow": diffusers.FlowMatchEulerDiscreteScheduler,
        "shifted": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }.get(name, lambda: diffusers.PNDMScheduler(prediction_type="v_prediction", steps_offset=1))()
    net = diffusers.UNet2DModel.from_pretrained(pipeline, subfolder="unet")
    diffusers.DDPMPipeline(net, scheduler).save_pretrained(tmp_path / "in")
    teacher = read_pipeline(tmp_path / "in")
    ratios = steps_of(teacher.clock, steps, ratio=7.0) if name == "lower" else steps_of(teacher.clock, steps)
    student = kind(teacher, ratios=ratios, shape=(1, 8, 8))
    write_pipeline(student, tmp_path / "out", like=tmp_path / "in")
    images = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    first = images.scheduler.config.num_train_timesteps  # one more than the first step is told
    assert 618 <= first <= 622 if name == "lower" else first > 997, first
    seed = {"generator": torch.Generator().manual_seed(5)}
    theirs = images(batch_size=4, num_inference_steps=steps, output_type="np", **seed).images
    ours = student.sample(4, None, Rng(5)) / 2 + 0.5
    torch.testing.assert_close(ours.clamp(0, 1), torch.tensor(theirs).movedim(3, 1), rtol=0, atol=1e-5)


def test_steps_that_no_scheduler_takes_are_refused(pipeline: Path, tmp_path: Path) -> None:
    teacher, folder = read_pipeline(pipeline), tmp_path / "out"
    for student, said in (
        (RandomEta(teacher, ratios=steps_of(teacher.clock, 2), shape=(1, 8, 8)), "fresh noise or by none"),
        (Trajectory(teacher, ratios=(3.0, 0.8, 0.4), shape=(1, 8, 8)), r"ratios=steps_of\(clock, 3, ratio=3\)"),
    ):
        with pytest.raises(Incompatible, match=said):
            write_pipeline(student, folder, like=pipeline)
    assert not folder.exists()


@pytest.mark.parametrize(("objective", "names"), [(SiD(), []), (SiD() + GAN(), ["data"])])
def test_samples_are_drawn_for_those_that_ask(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch, objective: Objective, names: list[str]
) -> None:
    drawn: list[str] = []

    def own(self: Pipeline, name: str, n: int) -> Tensor:
        drawn.append(name)
        return torch.zeros(n, *self.shape)

    monkeypatch.setattr(Pipeline, "own", own)
    problem = Pipeline(pipeline)
    distill(problem.teacher, FromTeacher()(problem), objective, problem.source, steps=2, batch=4).finish()
    assert drawn == names
