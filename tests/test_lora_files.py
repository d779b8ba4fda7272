"""Adapters as files of diffusers: loaded or merged, it gives what our student gives, and we read them back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck import (
    DMD,
    GAN,
    SGD,
    Critic,
    Drawn,
    Fake,
    FewStep,
    OneStep,
    checkpointed,
    distill,
    low_rank,
    merged,
)
from limbeck.bridges import Diffusers, Pipeline, read_lora, read_pipeline, steps_of, write_lora, write_pipeline
from limbeck.cli import main
from limbeck.engine import Memory
from limbeck.errors import BadFile, Incompatible
from limbeck.rng import Rng, seeded
from limbeck.teachers.lora import LowRank
from tests.test_diffusers import SMALL, unet

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")

NONE = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder"))
"""Parts of a pipeline that no adapter is on."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of text to images, without the text."""
    folder = tmp_path_factory.mktemp("text") / "sd"
    with seeded("text"):
        net = diffusers.UNet2DConditionModel(
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            **SMALL,
        )
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    pipeline = diffusers.StableDiffusionPipeline(unet=net, scheduler=scheduler, requires_safety_checker=False, **NONE)
    pipeline.save_pretrained(folder)
    return folder


def loaded(folder: Path) -> Any:
    """The pipeline, as diffusers has it."""
    return diffusers.StableDiffusionPipeline.from_pretrained(folder, **NONE)


def learned(teacher: Diffusers, targets: tuple[str, ...] = ("*",), scale: float | None = None) -> FewStep:
    """A student whose adapters do something."""
    net = low_rank(teacher, 3, targets, scale=scale)
    with seeded("learned"):
        for part in net.modules():
            if isinstance(part, LowRank):
                nn.init.normal_(part.up, std=0.3)
    return FewStep(net, ratios=steps_of(teacher.clock, 1), shape=(4, 8, 8)).eval()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """x_t, a timestep, and some text."""
    rng = Rng(("lora", "files"))
    k, text = torch.tensor([3, 250, 999]), rng.normal(3, 5, 16, dtype=torch.float32)
    return rng.normal(3, 4, 8, 8, dtype=torch.float32), k, text


@torch.no_grad()
def theirs(net: Any) -> Tensor:
    x, k, text = inputs()
    return net(x, k, encoder_hidden_states=text, return_dict=False)[0]


@pytest.mark.parametrize("targets", [("*",), ("to_q", "to_v", "to_out.0"), ("conv1", "ff.net.*")])
@pytest.mark.parametrize("scale", [None, 7.5])
def test_diffusers_gives_what_the_student_gives(
    folder: Path, tmp_path: Path, targets: tuple[str, ...], scale: float | None
) -> None:
    student = learned(read_pipeline(folder), targets, scale)
    ours, plain = theirs(student.denoiser.net), theirs(loaded(folder).unet)
    assert (ours - plain).abs().max() > 0.01
    write_lora(student, tmp_path / "out", like=folder)
    pipeline = loaded(folder)
    pipeline.load_lora_weights(tmp_path / "out")
    torch.testing.assert_close(theirs(pipeline.unet), ours, rtol=1e-5, atol=1e-5)
    pipeline.fuse_lora()
    torch.testing.assert_close(theirs(merged(student.denoiser).net), theirs(pipeline.unet), rtol=1e-5, atol=1e-5)
    scheduler = diffusers.LCMScheduler.from_pretrained(tmp_path / "out", subfolder="scheduler")
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [999]


def test_a_student_with_adapters_leaves_as_a_plain_pipeline(folder: Path, tmp_path: Path) -> None:
    student = learned(read_pipeline(folder))
    write_pipeline(student, tmp_path / "out", like=folder)
    net = loaded(tmp_path / "out").unet
    assert net.state_dict().keys() == loaded(folder).unet.state_dict().keys()
    torch.testing.assert_close(theirs(net), theirs(student.denoiser.net), rtol=1e-5, atol=1e-5)


def test_small_adapters_on_a_base_in_half_leave_whole(folder: Path, tmp_path: Path) -> None:
    """They are added to the weights of the folder: in bf16 they would be lost, and the teacher would leave."""
    student = learned(read_pipeline(folder))
    layers = {name: part for name, part in student.denoiser.net.named_modules() if isinstance(part, LowRank)}
    for layer in layers.values():
        layer.up.data *= 1e-3
    Memory(frozen="bf16").put(student)
    write_pipeline(student, tmp_path / "out", like=folder)
    made, base = (loaded(path).unet for path in (tmp_path / "out", folder))
    assert {p.dtype for p in made.parameters()} == {torch.float32}
    for name, layer in layers.items():
        gap = made.get_submodule(name).weight - base.get_submodule(name).weight
        torch.testing.assert_close(gap, layer.delta(), rtol=1e-2, atol=1e-6)
        assert layer.delta().abs().max() > 1e-5


def test_transformers_of_diffusers(tmp_path: Path) -> None:
    """Another prefix, another mixin: SD3, a flow."""
    with seeded("sd3"):
        net = diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=4,
            num_attention_heads=2,
            joint_attention_dim=8,
            caption_projection_dim=8,
            pooled_projection_dim=6,
            pos_embed_max_size=8,
        )
    names = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3", "vae")
    none = dict.fromkeys((*names, "image_encoder", "feature_extractor"))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    diffusers.StableDiffusion3Pipeline(transformer=net, scheduler=scheduler, **none).save_pretrained(tmp_path / "sd3")
    teacher = read_pipeline(tmp_path / "sd3")
    denoiser = low_rank(teacher, 2, ("to_q", "to_v", "proj_out"))
    with seeded("learned"):
        for part in denoiser.modules():
            if isinstance(part, LowRank):
                nn.init.normal_(part.up)
    student = FewStep(denoiser, ratios=steps_of(teacher.clock, 3), shape=(4, 8, 8)).eval()
    write_lora(student, tmp_path / "out", like=tmp_path / "sd3")
    took = diffusers.FlowMatchLCMScheduler.from_pretrained(tmp_path / "out" / "scheduler")
    took.set_timesteps(3)
    torch.testing.assert_close(took.timesteps.double() / 1000, student.times[:-1], rtol=1e-5, atol=1e-6)
    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(tmp_path / "sd3", **none)
    rng = Rng("sd3")
    x, text, pooled = (rng.normal(2, *s, dtype=torch.float32) for s in ((4, 8, 8), (5, 8), (6,)))
    told = {"timestep": torch.tensor([3.0, 700.0]), "encoder_hidden_states": text, "pooled_projections": pooled}
    plain = pipeline.transformer(x, **told, return_dict=False)[0]
    pipeline.load_lora_weights(tmp_path / "out")
    ours = denoiser.net(x, **told, return_dict=False)[0]
    assert (ours - plain).abs().max() > 0.01
    torch.testing.assert_close(pipeline.transformer(x, **told, return_dict=False)[0], ours, rtol=1e-5, atol=1e-5)


# training


@pytest.mark.parametrize("half", [False, True])
def test_one_base_of_diffusers_is_distilled(folder: Path, half: bool) -> None:
    """DMD2 with its GAN, whose blocks are computed again as diffusers does: the same run, in half precision near it."""
    plain, again = trained(folder, half=half, again=False), trained(folder, half=half, again=True)
    assert plain.keys() == again.keys() and all(x.dtype == torch.float32 for x in plain.values())
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, rtol=1e-4, atol=1e-7)
    assert sum(value.abs().sum() for name, value in plain.items() if name.endswith(".up")) > 0


def trained(folder: Path, *, half: bool, again: bool) -> dict[str, Tensor]:
    """What student, critic and discriminator learned in a tick, beside the base in bf16 or not."""
    teacher = read_pipeline(folder)
    teacher.net.to(torch.bfloat16 if half else torch.float32)
    if again:
        checkpointed(teacher)
    with seeded("trained"):
        student = OneStep(low_rank(teacher, 2, ("to_q", "conv1")), shape=(4, 8, 8), ratio=steps_of(teacher.clock, 1)[0])
    critic = Critic(rank=2, targets=("to_q", "conv1"))
    objective = DMD(fake=Fake(critic=critic)) + 0.1 * GAN(critic=critic, feature_weight=0.1)
    run = distill(teacher, student, objective, Drawn(batch, fields=("x", "cond")), steps=2, batch=2, optim=SGD(lr=1e-2))
    draw = run.cast.student.draw(2, {"encoder_hidden_states": torch.zeros(2, 5, 16)}, Rng(0))
    assert draw.x.dtype == torch.float32
    run.finish()
    assert {p.dtype for p in run.cast.teacher.parameters()} == {torch.bfloat16 if half else torch.float32}
    return {f"{who}.{n}": p for who in run.cast.roles for n, p in run.cast.roles[who].params.items()}


def batch(n: int, rng: Rng) -> dict[str, Any]:
    """Latents and texts."""
    text = {"encoder_hidden_states": rng.normal(n, 5, 16, dtype=torch.float32)}
    return {"x": rng.normal(n, 4, 8, 8, dtype=torch.float32), "cond": text}


# reading


def test_adapters_come_back(folder: Path, tmp_path: Path) -> None:
    teacher = read_pipeline(folder)
    student = learned(teacher, ("to_q", "conv1"), scale=1.5)
    write_lora(student, tmp_path / "out", like=folder)
    again = read_lora(teacher, tmp_path / "out")
    assert torch.equal(theirs(again.net), theirs(student.denoiser.net))
    assert all(p.requires_grad == name.endswith((".down", ".up")) for name, p in again.named_parameters())


def test_adapters_of_diffusers_come_in(folder: Path, tmp_path: Path) -> None:
    """Of several ranks and scales, as PEFT made and diffusers wrote them."""
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = loaded(folder)
    pattern = {"rank_pattern": {"conv1": 4}, "alpha_pattern": {"to_k": 9}}
    with seeded("theirs"):
        config = LoraConfig(
            r=2, lora_alpha=3, target_modules=["to_q", "to_k", "conv1"], init_lora_weights=False, **pattern
        )
        pipeline.unet.add_adapter(config)
    about = _collate_lora_metadata({"unet": pipeline.unet})
    pipeline.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(pipeline.unet), **about)
    read = read_lora(read_pipeline(folder), tmp_path)
    torch.testing.assert_close(theirs(read.net), theirs(pipeline.unet), rtol=1e-5, atol=1e-5)


def test_files_of_other_kinds_are_refused(folder: Path, tmp_path: Path) -> None:
    teacher = read_pipeline(folder)
    write_lora(learned(teacher, ("to_q",)), tmp_path / "out", like=folder)
    tensors = load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    first = next(name for name in tensors if "lora_A" in name)
    cases = {
        "lora_B": {name: x for name, x in tensors.items() if name != first},
        "must be of shape": {**tensors, first: torch.zeros(3, 2)},
        "which is none": {name.replace("attn1", "attn9"): x for name, x in tensors.items()},
        "got lora_unet_x.lora_down": {"lora_unet_x.lora_down.weight": torch.zeros(2, 2)},
    }
    for said, other in cases.items():
        save_file(other, tmp_path / "other.safetensors")
        with pytest.raises(BadFile, match=said):
            read_lora(teacher, tmp_path / "other.safetensors")
    (tmp_path / "other.safetensors").write_bytes(b"no")
    for path, said in (("other.safetensors", "not a whole file"), ("nowhere", "does not exist")):
        with pytest.raises(BadFile, match=said):
            read_lora(teacher, tmp_path / path)


def test_students_that_have_no_adapters_to_give_are_refused(folder: Path, tmp_path: Path) -> None:
    teacher = read_pipeline(folder)
    student = learned(teacher)
    ratios = {"ratios": student.ratios, "shape": (4, 8, 8)}
    whole = FewStep(teacher.clone(trainable=True), **ratios)
    twice = FewStep(low_rank(student.denoiser.requires_grad_(False), 2), **ratios)
    for other, said in ((whole, "whole network"), (twice, "adapters on adapters")):
        with pytest.raises(Incompatible, match=said):
            write_lora(other, tmp_path / "out", like=folder)
    assert not (tmp_path / "out").exists()


# the command line


def test_a_run_with_adapters_leaves_merged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a pipeline that loads no adapters; the error says what to ask for, and that works."""
    monkeypatch.setattr(Pipeline, "judged", 10)
    ddpm, run = tmp_path / "ddpm", str(tmp_path / "run")
    diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler(prediction_type="v_prediction")).save_pretrained(ddpm)
    settings = ("--steps", "2", "--batch", "2", "--rank", "2", "--targets", "conv1,conv2")
    assert main(["distill", "sid", "--on", str(ddpm), "--out", run, *settings]) == 0
    assert main(["export", run, "--out", str(tmp_path / "lora"), "--to", "lora"]) == 2
    assert "--to diffusers, which merges them, would fit" in capsys.readouterr().err
    assert not (tmp_path / "lora").exists()
    assert main(["export", run, "--out", str(tmp_path / "out"), "--to", "diffusers"]) == 0
    images = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert images(num_inference_steps=1, output_type="np").images.shape == (1, 8, 8, 2)
