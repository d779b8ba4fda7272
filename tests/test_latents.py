"""Pipelines of classes and of latents: labels, the class for none, decoding, and out again with the same images."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.bridges import Pipeline, steps_of, write_pipeline
from limbeck.bridges.conditions import pack, unpack
from limbeck.bridges.latents import Latents
from limbeck.cli import main
from limbeck.diffusion import CFG, few_step, heun, sample
from limbeck.engine import Draw
from limbeck.errors import Incompatible
from limbeck.evaluate.picture import picture
from limbeck.loading import load_run
from limbeck.rng import Rng, seeded
from limbeck.students import FewStep

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests import tiny  # noqa: E402, for what is optional has to be there


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of five classes in latent space."""
    folder = tmp_path_factory.mktemp("dit") / "pipeline"
    tiny.dit(folder)
    return folder


def moved(problem: Pipeline, steps: int) -> FewStep:
    """A student that is not its teacher any more."""
    student = FewStep(problem.network(), ratios=steps_of(problem.teacher.clock, steps), shape=problem.shape)
    with seeded("moved"), torch.no_grad():
        for p in student.parameters():
            p += 0.02 * torch.randn_like(p)
    return student.eval()


@pytest.mark.parametrize("steps", [1, 3])
def test_classes_leave_as_a_pipeline_that_gives_the_same_images(dit: Path, tmp_path: Path, steps: int) -> None:
    problem = Pipeline(dit)
    assert problem.shape == (4, 8, 8) and problem.spread(7).tolist() == [0, 1, 2, 3, 4, 0, 1]
    student = moved(problem, steps)
    write_pipeline(student, tmp_path / "out", like=dit)
    pipeline = diffusers.DiTPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    with seeded("noise"):
        theirs = pipeline([0, 1, 4], guidance_scale=1.0, num_inference_steps=steps, output_type="pt").images
    with seeded("noise"):
        noise = torch.randn(3, *problem.shape)
        rng = Theirs(0)
        x = sample(few_step(student.denoiser, noise, student.times, torch.tensor([0, 1, 4]), rng=rng))
    ours = torch.cat([*problem.latents.decode(x)])
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, rtol=0, atol=1e-5)
    assert float((theirs[0] - theirs[1]).abs().max()) > 1e-4


class Theirs(Rng):
    """Random numbers in the order in which a pipeline draws them."""

    def normal(self, n: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(n, *shape, dtype=dtype)


def test_no_condition_is_the_class_beyond_the_last(dit: Path) -> None:
    teacher, t = Pipeline(dit).teacher, torch.full((3,), 700.0, dtype=torch.float64)
    x = Rng(1).normal(3, 4, 8, 8)
    none, beyond, first = (teacher.denoise(x, t, None if k is None else torch.full((3,), k)) for k in (None, 5, 0))
    assert torch.equal(none, beyond) and not torch.allclose(none, first, atol=1e-4)
    guided = CFG(scale=2.0)(teacher).denoise(x, t, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(guided, 2 * first - none, rtol=1e-5, atol=1e-5)


def test_a_student_in_training_hears_every_label(dit: Path) -> None:
    problem = Pipeline(dit)
    student, t = problem.network().train(), torch.full((64,), 700.0, dtype=torch.float64)
    x, label = Rng(1).normal(1, 4, 8, 8).expand(64, -1, -1, -1), torch.zeros(64, dtype=torch.long)
    with seeded("dropout"):
        out = student.denoise(x, t, label)
    torch.testing.assert_close(out, out[:1].expand_as(out), rtol=1e-5, atol=1e-5)


def test_a_net_of_classes_without_a_null_class_is_not_guided(tmp_path: Path) -> None:
    problem = Pipeline(_labelled(tmp_path))
    cond = problem.conditions(30, Rng(0))
    assert sorted(set(cond.tolist())) == [0, 1, 2]
    x, t = Rng(1).normal(30, 1, 8, 8), torch.full((30,), 700.0, dtype=torch.float64)
    assert problem.teacher.denoise(x, t, cond).shape == x.shape
    with pytest.raises(Incompatible, match="no condition needs a network with a class for it"):
        problem.teacher.denoise(x, t, None)


def test_a_net_without_a_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Incompatible, match="no sample_size"):
        Pipeline(_labelled(tmp_path, sample_size=None))


def _labelled(folder: Path, **settings: Any) -> Path:
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    more: dict[str, Any] = {
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "attention_head_dim": 4,
    }
    net = diffusers.UNet2DModel(**{"sample_size": 8, "num_class_embeds": 3, **blocks, **more, **settings})
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("scale", "mean"),
    [({"scaling_factor": 0.2}, 0.0), ({"scaling_factor": 0.3, "shift_factor": 0.1}, 0.1)],
)
def test_latents_decode_as_the_decoder_was_trained(tmp_path: Path, scale: dict[str, float], mean: float) -> None:
    vae = tiny.vae(**scale)
    vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "model_index.json").write_text('{"vae": ["diffusers", "AutoencoderKL"], "scheduler": [null, null]}')
    latents, images = Latents(tmp_path), Rng(0).normal(20, 3, 16, 16)
    with torch.no_grad():
        z = vae.encode(images).latent_dist.mean
        wanted = vae.decode(z).sample
    decoded = torch.cat([*latents.decode((z - mean) * scale["scaling_factor"])])
    torch.testing.assert_close(decoded, wanted, rtol=1e-4, atol=1e-5)
    assert latents.factor == 2 and latents.pixels((4, 8, 6)) == (16, 12)


def test_latents_are_judged_and_shown_as_images(dit: Path, tmp_path: Path) -> None:
    problem = Pipeline(dit)
    x = Rng(0).normal(3, *problem.shape)
    images = torch.cat([*problem.latents.decode(x)])
    assert torch.equal(problem.features(x), images.flatten(1))  # 16 × 16 already
    assert picture(problem, {"student": Draw(x, problem.spread(3))}, tmp_path / "x.png").exists()


def test_a_pipeline_of_classes_is_distilled_under_guidance(
    dit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("judged", 10), ("shown", 3), ("steps", 2)):
        monkeypatch.setattr(Pipeline, name, value)
    run, settings = tmp_path / "run", ("--steps", "1", "--batch", "4", "--guidance", "CFG(scale=4.0)")
    assert main(["distill", "dmd2", "--on", str(dit), "--out", str(run), *settings]) == 0
    problem = load_run(run).problem
    assert isinstance(problem, Pipeline) and problem.guidance == CFG(scale=4.0)
    noise, cond = Rng(0).normal(3, 4, 8, 8), problem.spread(3)
    guided = sample(heun(CFG(scale=4.0)(problem.teacher), noise, problem.times.grid(2, problem.teacher.process), cond))
    assert torch.equal(problem.teacher_sample(noise, cond), guided)  # what is real to it, and what it is judged by
    assert json.loads((run / "result.json").read_text())["nfe_teacher"] == 6
    capsys.readouterr()
    more = ["--on", str(_labelled(tmp_path / "labelled")), "--out", str(tmp_path / "other"), *settings]
    assert main(["distill", "dmd2", *more]) == 2
    assert "guidance needs a network that knows what no condition is" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_what_stands_for_real_samples_is_the_teachers_own(dit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("judged", 4), ("steps", 2)):
        monkeypatch.setattr(Pipeline, name, value)
    problem = Pipeline(dit)
    reference, label = problem.reference(), problem.spread(8)
    batch, data = problem.source.take(20, Rng(0)), problem.own("data", 16)
    which = (batch["x"][:, None] - data).flatten(2).abs().amax(2).argmin(1)
    assert torch.equal(batch["x"], data[which]) and torch.equal(batch["cond"], problem.spread(16)[which])
    assert not torch.equal(data[:8], reference)
    noise = Rng((problem.name, "reference")).normal(8, *problem.shape)
    torch.testing.assert_close(problem.teacher_sample(noise[5:6], label[5:6]), reference[5:6], rtol=1e-4, atol=1e-4)


def test_pipelines_that_are_no_problem_are_refused(
    dit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = json.loads((dit / "model_index.json").read_text())
    edits: tuple[tuple[dict[str, Any], str | None], ...] = (
        ({"transformer": ["diffusers", "AuraFlowTransformer2DModel"]}, "one of UNet2DModel, "),
        ({"transformer": None}, "got a None"),
        ({"scheduler": []}, "is not a whole pipeline"),
        ({"scheduler": ["diffusers", "EDMEulerScheduler"]}, "a scheduler with a table of noise levels"),
        ({"vae": ["diffusers", "NoSuchThing"]}, None),
    )
    for k, (edit, said) in enumerate(edits):
        on = tmp_path / str(k)
        shutil.copytree(dit, on)
        (on / "model_index.json").write_text(json.dumps({**index, **edit}))
        if said is None:
            (on / "vae" / "config.json").unlink()
        assert main(["distill", "sid", "--on", str(on), "--out", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("limbeck: ") and (said or "its vae has no config.json") in error
        assert not (tmp_path / "run").exists()


def test_packed_latents_are_those_of_flux() -> None:
    x = Rng(0).normal(2, 4, 6, 8)
    theirs = diffusers.FluxPipeline._pack_latents(x, 2, 4, 6, 8)
    assert torch.equal(pack(x), theirs) and torch.equal(unpack(theirs, 3, 4), x)
