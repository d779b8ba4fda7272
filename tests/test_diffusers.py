"""Networks and schedulers of diffusers: the same x0, the same noise levels, and pipelines that give the same images."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck import OneStep, SiD, Uniform, distill
from limbeck.bridges import Clock, Diffusers, clock_of, read_pipeline, steps_of, write_pipeline
from limbeck.cli import main
from limbeck.diffusion import RectifiedFlow, Tabulated, like
from limbeck.engine import Drawn
from limbeck.errors import BadFile, BadSetting, Incompatible
from limbeck.rng import Rng, seeded
from limbeck.students import FewStep

diffusers = pytest.importorskip("diffusers")

from diffusers.pipelines.flux.pipeline_flux import calculate_shift  # noqa: E402

from tests.tiny import flux_transformer  # noqa: E402, for what is optional has to be there

SMALL = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
FORMS = ("epsilon", "v_prediction", "sample")


def unet(**settings: Any) -> Any:
    """A random U-Net of images [B, 2, 8, 8]."""
    blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    with seeded("unet"):
        return diffusers.UNet2DModel(**{**SMALL, **blocks, "in_channels": 2, "out_channels": 2, **settings}).eval()


def noisy(channels: int = 2, size: int = 8) -> Tensor:
    return Rng(("diffusers",)).normal(3, channels, size, size, dtype=torch.float32)


# schedulers


@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler", "LCMScheduler", "PNDMScheduler"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_noise_is_added_as_diffusers_adds_it(kind: str, schedule: str) -> None:
    scheduler = getattr(diffusers, kind)(beta_schedule=schedule)
    clock, x, eps = clock_of(scheduler), noisy(), noisy().flip(0)
    k = torch.tensor([0, 499, 999])
    t = k.double() - clock.offset
    torch.testing.assert_close(clock.process.add_noise(x, eps, t), scheduler.add_noise(x, eps, k), rtol=0, atol=2e-6)
    assert torch.equal(clock.timestep(t), k.double())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("zero", [False, True])
def test_x0_is_that_of_the_scheduler(form: str, zero: bool) -> None:
    if zero and form == "epsilon":
        pytest.skip("ε tells nothing of x0 at pure noise")
    scheduler = diffusers.DDIMScheduler(prediction_type=form, rescale_betas_zero_snr=zero, clip_sample=False)
    scheduler.set_timesteps(1000)
    net, clock = unet(), clock_of(scheduler)
    for k in (0, 333, 999):
        x_t = noisy()
        theirs = scheduler.step(net(x_t, k).sample, k, x_t).pred_original_sample
        ours = Diffusers(net, clock).denoise(x_t, torch.full((3,), k + 1.0, dtype=torch.float64))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_flow_matching_is_a_straight_line() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    clock = clock_of(scheduler)
    assert clock == Clock(RectifiedFlow(), "flow", scale=1000.0, shift=3.0)
    net, x_t = unet(), noisy()
    scheduler.set_timesteps(1)  # one step of Euler from pure noise is to x0
    theirs = scheduler.step(net(x_t, scheduler.timesteps[0]).sample, scheduler.timesteps[0], x_t).prev_sample
    t = (scheduler.timesteps[:1].double() / 1000).expand(3)
    torch.testing.assert_close(Diffusers(net, clock).denoise(x_t, t), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_a_dynamic_shift_is_that_of_a_pipeline(kind: str) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    clock = replace(clock_of(scheduler, tokens=1024), even=True)
    mu = calculate_shift(1024)
    for steps in (1, 4):
        scheduler.set_timesteps(sigmas=[1 - k / steps for k in range(steps)], mu=mu)
        ratios = torch.tensor(steps_of(clock, steps), dtype=torch.float64)
        sigmas = scheduler.sigmas[:-1].double()
        torch.testing.assert_close(1 / (1 + 1 / ratios), sigmas, rtol=1e-6, atol=0)
    with pytest.raises(Incompatible, match="size of images"):
        clock_of(scheduler)


@pytest.mark.parametrize(("shift", "last"), [(1.0, 0.25), (3.0, 0.5)])
def test_the_last_of_few_steps_of_a_flow_is_no_clean_one(shift: float, last: float) -> None:
    clock = Clock(RectifiedFlow(), "flow", scale=1000.0, shift=shift)
    sigmas = 1 / (1 + 1 / torch.tensor(steps_of(clock, 4), dtype=torch.float64))
    assert sigmas[0] == 1 and sigmas[-1].item() == pytest.approx(last, rel=1e-6)
    if shift == 1:
        torch.testing.assert_close(sigmas, torch.tensor([1, 0.75, 0.5, 0.25]).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "from noise to data"),
        (lambda: diffusers.EDMEulerScheduler(), "table of noise levels"),
        (lambda: diffusers.DDIMScheduler(rescale_betas_zero_snr=True), "pure noise"),
        (lambda: diffusers.VQDiffusionScheduler(num_vec_classes=4), "predicts"),
    ],
)
def test_other_schedulers_are_refused(make: Any, said: str) -> None:
    with pytest.raises(Incompatible, match=said):
        clock_of(make())


def test_a_table_goes_there_and_back() -> None:
    process = clock_of(diffusers.DDPMScheduler()).process
    t = torch.linspace(0.5, 1000, 77, dtype=torch.float64)
    torch.testing.assert_close(process.at_ratio(process.ratio(t)), t, rtol=0, atol=1e-8)
    a, b = (process.alpha(t + h) for h in (1e-6, -1e-6))
    inside = (t - t.round()).abs() > 1e-3
    torch.testing.assert_close(process.rates(t)[0][inside], ((a - b) / 2e-6)[inside], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("table", [(), (0.5, 0.6), (1.0, 0.5), (0.5, -0.1)])
def test_a_table_that_does_not_fall_is_refused(table: tuple[float, ...]) -> None:
    with pytest.raises(BadSetting, match="must fall"):
        Tabulated(table)


# networks


def styles() -> dict[str, tuple[Any, dict[str, Any], int]]:
    """A random network of each style of conditions, some inputs, and its channels."""
    text = Rng(("text",)).normal(3, 5, 16, dtype=torch.float32)
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    cross = {
        **SMALL,
        "down_block_types": down,
        "up_block_types": up,
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
    }
    with seeded("styles"):
        return {
            "unconditional": (unet(), {}, 2),
            "labels": (unet(num_class_embeds=4), {"class_labels": torch.tensor([0, 1, 3])}, 2),
            "text": (
                diffusers.UNet2DConditionModel(in_channels=4, out_channels=4, **cross),
                {"encoder_hidden_states": text},
                4,
            ),
            "text and sizes": (
                diffusers.UNet2DConditionModel(
                    in_channels=4,
                    out_channels=4,
                    addition_embed_type="text_time",
                    addition_time_embed_dim=8,
                    projection_class_embeddings_input_dim=6 * 8 + 16,
                    **cross,
                ),
                {
                    "encoder_hidden_states": text,
                    "added_cond_kwargs": {"text_embeds": text[:, 0], "time_ids": torch.ones(3, 6)},
                },
                4,
            ),
            "DiT": (
                diffusers.DiTTransformer2DModel(
                    in_channels=4, out_channels=8, sample_size=8, patch_size=2, num_embeds_ada_norm=5, **heads
                ),
                {"class_labels": torch.tensor([0, 1, 4])},
                4,
            ),
            "PixArt": (
                diffusers.PixArtTransformer2DModel(
                    in_channels=4,
                    out_channels=8,
                    sample_size=8,
                    cross_attention_dim=16,
                    caption_channels=16,
                    use_additional_conditions=False,
                    **heads,
                ),
                {
                    "encoder_hidden_states": text,
                    "encoder_attention_mask": torch.ones(3, 5),
                    "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
                },
                4,
            ),
            "SD3": (
                diffusers.SD3Transformer2DModel(
                    sample_size=8,
                    in_channels=4,
                    out_channels=4,
                    patch_size=2,
                    joint_attention_dim=16,
                    caption_projection_dim=16,
                    pooled_projection_dim=16,
                    pos_embed_max_size=8,
                    **heads,
                ),
                {"encoder_hidden_states": text, "pooled_projections": text[:, 0]},
                4,
            ),
            "Sana": (
                diffusers.SanaTransformer2DModel(
                    sample_size=8,
                    in_channels=4,
                    out_channels=4,
                    num_cross_attention_heads=2,
                    cross_attention_head_dim=8,
                    cross_attention_dim=16,
                    caption_channels=16,
                    patch_size=1,
                    **heads,
                ),
                {"encoder_hidden_states": text, "encoder_attention_mask": torch.ones(3, 5)},
                4,
            ),
        }


@pytest.mark.parametrize("guided", [False, True])
def test_packed_latents_with_places(guided: bool) -> None:
    with seeded("flux"):
        net = flux_transformer(guidance_embeds=guided).eval()
    text, clock = Rng(("text",)).normal(3, 5, 16), Clock(RectifiedFlow(), "flow", scale=1000.0)
    cond = {"encoder_hidden_states": text, "pooled_projections": text[:, 0]}
    x_t, t = Rng(0).normal(3, 4, 6, 8), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    flux = diffusers.FluxPipeline
    more = {"guidance": torch.full((3,), 3.5)} if guided else {}
    raw = net(
        flux._pack_latents(x_t, 3, 4, 6, 8),
        timestep=t.float(),
        img_ids=flux._prepare_latent_image_ids(3, 3, 4, "cpu", torch.float32),
        txt_ids=torch.zeros(5, 3),
        **cond,
        **more,
    ).sample
    theirs = x_t - like(t, x_t) * flux._unpack_latents(raw, 12, 16, 2)
    teacher = Diffusers(net, clock)
    torch.testing.assert_close(teacher.denoise(x_t, t, cond), theirs, rtol=1e-5, atol=1e-5)
    if guided:
        other = teacher.denoise(x_t, t, {**cond, "guidance": torch.full((3,), 1.0)})
        assert not torch.allclose(other, theirs, atol=1e-4)


@pytest.mark.parametrize("style", ["unconditional", "labels", "text", "text and sizes", "DiT", "PixArt", "SD3", "Sana"])
def test_every_style_of_conditions(style: str) -> None:
    net, cond, channels = styles()[style]
    net.eval()
    x_t, clock = noisy(channels), Clock(RectifiedFlow(), "flow", scale=1000.0)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    with torch.no_grad():
        raw = net(x_t, timestep=(1000 * t).float(), **cond).sample[:, :channels]
        given = cond["class_labels"] if style == "labels" else cond
        ours = Diffusers(net, clock).denoise(x_t, t, given)
        none = Diffusers(net, clock, null={name: _first(value) for name, value in cond.items()}).denoise(x_t, t)
    torch.testing.assert_close(ours, x_t - like(t, x_t) * raw, rtol=1e-5, atol=1e-5)
    assert none.shape == ours.shape and torch.allclose(none[:1], ours[:1], atol=1e-5)


def _first(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _first(inner) for name, inner in value.items()}
    return None if value is None else value[:1]


def test_features_are_those_of_the_pass() -> None:
    teacher = Diffusers(unet(), clock_of(diffusers.DDPMScheduler()), taps={"mid_block": 16})
    t = torch.full((3,), 500.0, dtype=torch.float64)
    seen = teacher.look(noisy(), t, taps=("mid_block",))
    assert seen.features["mid_block"].shape == (3, 16, 4, 4)
    assert seen.out is not None and torch.equal(seen.out, teacher.denoise(noisy(), t))


@pytest.mark.parametrize("style", ["DiT", "PixArt", "SD3", "Sana"])
def test_features_of_a_transformer_are_its_tokens(style: str) -> None:
    net, cond, channels = styles()[style]
    tokens: list[Tensor] = []
    net.transformer_blocks[0].register_forward_pre_hook(
        lambda block, args, more: tokens.append(args[0] if args else more["hidden_states"]), with_kwargs=True
    )
    clock, name = Clock(RectifiedFlow(), "flow", scale=1000.0), "transformer_blocks-0-norm1"
    t = torch.full((3,), 0.5, dtype=torch.float64)
    seen = Diffusers(net.eval(), clock, taps={name: 16}).look(noisy(channels), t, cond, taps=(name,))
    assert seen.features[name].shape[:2] == (3, 16)
    torch.testing.assert_close(seen.features[name].mT, tokens[0])


def test_a_large_batch_without_gradients_goes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, label = Diffusers(unet(num_class_embeds=4), clock_of(diffusers.DDPMScheduler())), torch.tensor([0, 1, 3])
    x_t, t = noisy(), torch.tensor([100.0, 500.0, 900.0], dtype=torch.float64)
    whole, sizes = teacher.denoise(x_t, t, label).detach(), []
    teacher.net.register_forward_pre_hook(lambda net, args: sizes.append(len(args[0])))
    monkeypatch.setattr("limbeck.bridges.diffusers.AT_ONCE", 2 * 2 * 8 * 8)
    with torch.no_grad():
        torch.testing.assert_close(teacher.denoise(x_t, t, label), whole, rtol=1e-5, atol=1e-5)
    assert sizes == [2, 1] and teacher.denoise(x_t, t, label).requires_grad and sizes[-1] == 3


# pipelines


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pipeline that knows nothing."""
    folder = tmp_path_factory.mktemp("pipeline") / "ddpm"
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction", clip_sample=False)
    diffusers.DDPMPipeline(unet(), scheduler).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("steps", [1, 4])
def test_a_student_leaves_as_a_pipeline_that_gives_its_images(pipeline: Path, tmp_path: Path, steps: int) -> None:
    teacher = read_pipeline(pipeline)
    student = FewStep(teacher.clone(trainable=True), ratios=steps_of(teacher.clock, steps), shape=(2, 8, 8))
    nothing = Drawn(lambda n, rng: {}, fields=())
    distill(teacher, student, SiD(times=Uniform(lo=0.02, hi=0.98)), nothing, steps=2, batch=4).finish()
    write_pipeline(student, tmp_path / "out", like=pipeline)
    images = diffusers.DDPMPipeline.from_pretrained(tmp_path / "out")
    theirs = images(
        batch_size=3, generator=torch.Generator().manual_seed(0), num_inference_steps=steps, output_type="np"
    ).images
    ours = _sampled(student.eval(), torch.Generator().manual_seed(0))
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), torch.tensor(theirs).movedim(3, 1), rtol=0, atol=1e-5)


@torch.no_grad()
def _sampled(student: FewStep, generator: torch.Generator) -> Tensor:
    """Our sampler's own formula, with the noise in the order in which diffusers draws it."""
    x, times, process = torch.randn(3, 2, 8, 8, generator=generator), student.times, student.process
    for k in range(len(student.ratios)):
        x0 = student.denoiser.denoise(x, times[k].expand(3))
        if k + 1 < len(student.ratios):
            x = process.add_noise(x0, torch.randn(3, 2, 8, 8, generator=generator), times[k + 1].expand(3))
    return x0


def test_what_is_no_pipeline_is_refused(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"no model_index\.json"):
        read_pipeline(tmp_path)
    for missing, error, said in (("scheduler", BadFile, "no scheduler"), ("unet", Incompatible, "a unet or a")):
        folder = tmp_path / missing
        folder.mkdir()
        index = json.loads((pipeline / "model_index.json").read_text())
        del index[missing]
        (folder / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(error, match=said):
            read_pipeline(folder)
    (tmp_path / "scheduler" / "model_index.json").write_text((pipeline / "model_index.json").read_text())
    with pytest.raises(BadFile, match="not a whole pipeline"):
        read_pipeline(tmp_path / "scheduler")


def test_steps_that_diffusers_would_not_take_are_refused(pipeline: Path, tmp_path: Path) -> None:
    teacher = read_pipeline(pipeline)
    student = OneStep(teacher.clone(trainable=True), shape=(2, 8, 8), ratio=1.0)
    with pytest.raises(Incompatible, match="steps_of"):
        write_pipeline(student, tmp_path / "out", like=pipeline)
    assert not (tmp_path / "out").exists()


# the command line


def test_a_pipeline_is_distilled_and_leaves_as_one(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limbeck.bridges.Pipeline.judged", 32)
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    settings = ("--steps", "2", "--batch", "4")
    assert main(["distill", "sid", "--on", str(pipeline), "--out", run, *settings]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["nfe"] == 1
    assert main(["export", run, "--out", out, "--to", "diffusers"]) == 0
    images = diffusers.DiffusionPipeline.from_pretrained(out)(num_inference_steps=1, output_type="np").images
    assert images.shape == (1, 8, 8, 2)


def test_what_is_no_pipeline_is_said_in_a_sentence(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    shutil.copytree(pipeline, text)
    net, *_ = styles()["text"]
    net.save_pretrained(text / "unet")
    index = json.loads((text / "model_index.json").read_text())
    (text / "model_index.json").write_text(json.dumps({**index, "unet": ["diffusers", "UNet2DConditionModel"]}))
    for on, said in ((tmp_path, "no folder of a pipeline or model"), (text, "needs --prompts FILE")):
        assert main(["distill", "sid", "--on", str(on), "--out", str(tmp_path / "run")]) == 2
        assert said in capsys.readouterr().err
    assert main(["distill", "kd", "--on", str(pipeline), "--out", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()


def test_other_runs_do_not_leave_as_pipelines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, quick = str(tmp_path / "run"), str(Path(__file__).parent / "faults" / "quick.py")
    assert main(["distill", quick, "--on", quick, "--out", run, "--steps", "2"]) == 0
    assert main(["export", run, "--out", str(tmp_path / "out"), "--to", "diffusers"]) == 2
    assert "a generator made on a pipeline's folder" in capsys.readouterr().err and not (tmp_path / "out").exists()
