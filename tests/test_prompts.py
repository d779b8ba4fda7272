"""Pipelines of texts: prompts embedded once as the pipelines embed them, distilled, and out again with equal images."""

import gc
import inspect
import json
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.bridges import Pipeline, encode, read_prompts, steps_of, write_pipeline
from limbeck.bridges import prompts as prompts_of
from limbeck.bridges.conditions import pack, unpack
from limbeck.bridges.prompts import kept
from limbeck.cli import main
from limbeck.diffusion import CFG, few_step, sample
from limbeck.engine.checkpoint import checksum
from limbeck.errors import BadFile
from limbeck.evaluate.memory import peak
from limbeck.loading import describe, load_problem, load_recipe, load_run
from limbeck.rng import Rng, seeded
from limbeck.students import FewStep

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests import tiny  # noqa: E402, for what is optional has to be there

TEXTS = ("a red fox", "an owl at night", "the sea")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of pipelines by what they are, each made once."""
    root = tmp_path_factory.mktemp("pipelines")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            getattr(tiny, name)(root / name)
        return root / name

    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of prompts."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(TEXTS) + "\n\n")
    return path


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few samples to judge by: what is judged here is random."""
    for name, value in (("judged", 10), ("shown", 3), ("steps", 3)):
        monkeypatch.setattr(Pipeline, name, value)


def distilled(on: Path, prompts: Path, out: Path, *more: str) -> int:
    settings = ("--prompts", str(prompts), "--out", str(out), "--steps", "2", "--batch", "4")
    return main(["distill", "dmd2", "--on", str(on), *settings, *more])


@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_3"])
def test_a_text_pipeline_is_distilled_and_leaves_as_one(
    name: str, made: Callable[[str], Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on, run, out = made(name), tmp_path / "run", tmp_path / "out"
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        "limbeck.bridges.problem.encode", lambda *given, **into: asked.append(given[1]) or encode(*given, **into)
    )
    assert distilled(on, prompts, run, "--negative", "night", "--guidance", "CFG(scale=3.0)") == 0
    assert asked == [TEXTS]
    given = {"prompts": str(prompts), "negative": "night"}
    assert json.loads((run / "recipe.json").read_text())["given"] == given
    assert main(["export", str(run), "--out", str(out), "--to", "diffusers"]) == 0
    session = load_run(run)
    assert_same_images(session.problem, session.student, out)


@pytest.mark.parametrize(
    "name", ["stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "flux", "pixart", "sana"]
)
@pytest.mark.parametrize("steps", [1, 3])
def test_every_style_of_texts_leaves_with_its_images(
    name: str, steps: int, made: Callable[[str], Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limbeck.bridges.conditions.PACKED", 8)
    problem = Pipeline(made(name), prompts=prompts, negative="night")
    student = FewStep(problem.network(), ratios=steps_of(problem.teacher.clock, steps), shape=problem.shape)
    with seeded("learns"), torch.no_grad():
        for p in student.parameters():
            p += 0.02 * torch.randn_like(p)
    write_pipeline(student, tmp_path / "out", like=problem.folder)
    assert_same_images(problem, student, tmp_path / "out")


def assert_same_images(problem: Pipeline, student: FewStep, out: Path) -> None:
    """Images of diffusers, which asks its own text encoders, against those of our sampler, from the same noise."""
    noise = torch.randn(3, *problem.shape, generator=torch.Generator().manual_seed(0))
    high, wide = problem.latents.pixels(problem.shape)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(out)
    pipeline.set_progress_bar_config(disable=True)
    packed = isinstance(pipeline, diffusers.FluxPipeline)
    own = {"latents": pack(noise) if packed else noise}
    own |= (
        {"use_resolution_binning": False}
        if isinstance(pipeline, diffusers.PixArtAlphaPipeline | diffusers.SanaPipeline)
        else {}
    )
    guided = "negative_prompt" in inspect.signature(pipeline.encode_prompt).parameters
    for scale in (1.0, 3.0) if guided else (3.5,):
        own |= {"negative_prompt": [problem.negative] * 3} if problem.negative else {}
        said = {"num_inference_steps": len(student.ratios), "height": high, "width": wide, "output_type": "pt"}
        with seeded("between"):
            theirs = pipeline(prompt=list(TEXTS), guidance_scale=scale, **said, **own).images
        denoiser = CFG(scale=scale)(student.denoiser) if guided else student.denoiser
        with seeded("between"):
            x = sample(few_step(denoiser, noise, student.times, problem.spread(3), rng=Theirs(packed)))
        ours = torch.cat([*problem.latents.decode(x)])
        torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, rtol=0, atol=1e-5)
    assert float((theirs[0] - theirs[1]).abs().max()) > 1e-4  # the prompts make a difference


class Theirs(Rng):
    """Random numbers in the order in which a pipeline draws them."""

    def __init__(self, packed: bool):
        self.packed = packed

    def normal(self, n: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        noise = torch.randn(n, *shape, dtype=dtype)
        return unpack(noise.view(pack(noise).shape), shape[1] // 2, shape[2] // 2) if self.packed else noise


# the cache


def test_a_run_goes_on_with_the_prompts_that_it_began_with(
    made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, run, on = tmp_path / "prompts.txt", tmp_path / "run", made("stable_diffusion")
    prompts.write_text("\n".join(TEXTS))
    assert main(["distill", "sid", *_command(on, prompts, run), "--negative", "night"]) == 0
    own = Pipeline(on, prompts=prompts, negative="night").prompts
    assert main(["distill", str(run / "recipe.json"), "--out", str(tmp_path / "again")]) == 0
    assert _state(tmp_path / "again") == _state(run)
    prompts.unlink()

    def again(*_: object, **__: object) -> None:
        raise AssertionError("the encoders have run already")

    monkeypatch.setattr("limbeck.bridges.problem.encode", again)
    problem = load_run(run).problem
    assert isinstance(problem, Pipeline) and problem.prompts.texts == TEXTS and problem.prompts.negative == "night"
    mine, theirs = (known.rows(torch.arange(3)) for known in (problem.prompts, own))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert all(torch.equal(problem.prompts.null[name], own.null[name]) for name in own.null)
    assert main(["distill", "sid", "--on", str(on), "--out", str(run), "--resume"]) == 0
    assert main(["distill", "sid", *_command(on, prompts, run), "--negative", "fog", "--resume"]) == 2
    assert "was begun with given" in capsys.readouterr().err


def _state(run: Path) -> bytes:
    return (run / "stages" / "sid" / "state.safetensors").read_bytes()


def _command(on: Path, prompts: Path, out: Path) -> tuple[str, ...]:
    return ("--on", str(on), "--prompts", str(prompts), "--out", str(out), "--steps", "1", "--batch", "4")


def test_other_encoders_or_damage_make_a_cache_useless(
    made: Callable[[str], Path], prompts: Path, tmp_path: Path
) -> None:
    on, cache = made("stable_diffusion"), tmp_path / "cache"
    encode(on, TEXTS, into=cache)
    assert kept(cache, on) is not None
    other = tmp_path / "other"
    shutil.copytree(on, other)
    (other / "tokenizer" / "tokenizer_config.json").write_text("{}")
    assert kept(cache, other) is None
    (cache / "prompts.json").write_text((cache / "prompts.json").read_text().replace("fox", "cat"))
    assert kept(cache, on) is None


def test_encoders_are_told_apart_without_being_read(
    made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written to is noticed even where size and time are as before; a copy is compared file by file."""
    on, cache = tmp_path / "on", tmp_path / "cache"
    shutil.copytree(made("stable_diffusion"), on)
    encode(on, TEXTS, into=cache)
    shutil.copytree(on, tmp_path / "copy")
    assert kept(cache, tmp_path / "copy") is not None
    read: list[Path] = []
    monkeypatch.setattr(prompts_of, "checksum", lambda path: read.append(path) or checksum(path))
    assert kept(cache, on) is not None and not read
    weights = on / "text_encoder" / "model.safetensors"
    before, content = weights.stat(), bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.stat().st_size == before.st_size and weights.stat().st_mtime_ns == before.st_mtime_ns
    assert kept(cache, on) is None


def test_memory_does_not_grow_with_the_number_of_prompts(
    made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def embed(_: Any, texts: list[str]) -> dict[str, Tensor]:
        numbers = torch.tensor([float(text or 0) for text in texts])
        return {"embeds": numbers[:, None, None].expand(-1, 24, 64).contiguous(), "pooled": -numbers[:, None]}

    monkeypatch.setattr(prompts_of, "_embed", embed)
    monkeypatch.setattr(prompts_of, "_embed_null", lambda pipeline, negative: embed(pipeline, [""]))
    monkeypatch.setattr(prompts_of, "AT_ONCE", 2**17)
    on, most, index = made("stable_diffusion"), dict[int, int](), torch.tensor([150, 3, 3, 99, 20, 0, 21])
    for n in (200, 2000):
        texts, into = [str(k) for k in range(n)], tmp_path / f"{n}"

        def work(texts: list[str] = texts, into: Path = into) -> None:
            known = encode(on, texts, into=into)
            found = (kept(into, on) or known).rows(index)
            assert torch.equal(found["embeds"][:, 0, 0], index.float())
            assert torch.equal(found["pooled"][:, 0], -index.float())

        most[n] = peak(work, start=())
    files = [path.stat().st_size for path in (tmp_path / "2000").iterdir()]
    assert most[2000] < 1.05 * most[200] < sum(files) / 10 and max(files) < 2**18


def test_embedded_prompts_go_with_the_last_who_needs_them(made: Callable[[str], Path]) -> None:
    known = encode(made("stable_diffusion"), TEXTS)
    home = known.folder.parent
    assert home.is_dir()
    del known
    gc.collect()
    assert not home.exists()


def test_of_several_processes_one_asks_the_encoders(
    made: Callable[[str], Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = (Pipeline(made("stable_diffusion"), prompts=prompts) for _ in range(2))
    monkeypatch.setattr("limbeck.bridges.problem.leads", lambda: False)
    monkeypatch.setattr("limbeck.bridges.problem.meet", lambda: encode(first.folder, first.texts, into=where))
    asked, where = [], tmp_path / "prompts"
    monkeypatch.setattr("limbeck.bridges.problem.encode", lambda *given, **into: asked.append(given))
    other.keep(tmp_path)
    assert not asked and other.prompts.texts == TEXTS and other.prompts.folder == where


def test_a_plan_asks_no_encoder(
    made: Callable[[str], Path], prompts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(prompts_of, "_encoders", asked.append)
    on = ("--on", str(made("stable_diffusion")), "--prompts", str(prompts))
    assert main(["plan", "sid", *on, "--batch", "8", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["stages"]
    assert not asked and not found["measured"] and found["activations"] > 0


def test_what_is_refused_leaves_no_prompts(made: Callable[[str], Path], prompts: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["distill", "sid", *_command(made("stable_diffusion"), prompts, run), "--accumulate", "3"]) == 2
    assert not run.exists()


def test_the_encoders_are_let_go(made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    alive, read = [], prompts_of._encoders

    def watched(folder: Path) -> Any:
        alive.append(weakref.ref((pipeline := read(folder)).text_encoder))
        return pipeline

    monkeypatch.setattr(prompts_of, "_encoders", watched)
    known = encode(made("stable_diffusion"), TEXTS)
    gc.collect()
    assert len(alive) == 1 and alive[0]() is None and len(known.rows(torch.arange(3))["embeds"]) == 3


def test_batches_of_prompts_change_nothing(made: Callable[[str], Path]) -> None:
    known = [encode(made("stable_diffusion_xl"), TEXTS, batch=batch) for batch in (3, 2)]
    whole, cut = (one.rows(torch.arange(3)) for one in known)
    assert sorted(whole) == ["embeds", "pooled"]
    for name in whole:
        torch.testing.assert_close(whole[name], cut[name], rtol=1e-5, atol=1e-6)
    assert not known[0].null["embeds"].any()  # what this pipeline takes for the empty prompt


def test_prompts_are_drawn_as_rows(made: Callable[[str], Path], prompts: Path) -> None:
    problem = Pipeline(made("stable_diffusion_xl"), prompts=prompts)
    cond = problem.conditions(64, Rng(0))
    index, known = Rng(0).integers(64, 3), problem.prompts.rows(torch.arange(3))
    assert torch.equal(cond["encoder_hidden_states"], known["embeds"][index])
    assert torch.equal(cond["added_cond_kwargs"]["text_embeds"], known["pooled"][index])
    sizes = [16.0, 16.0, 0.0, 0.0, 16.0, 16.0]
    assert cond["added_cond_kwargs"]["time_ids"].tolist() == [sizes] * 64


# wrong input


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read as a file of prompts: No such file"),
        (b"", "has no prompts"),
        (b"\n  \n", "has no prompts"),
        (b"\x89PNG\r\n\xff", "not text in UTF-8"),
        (b"a\0b", "not text in UTF-8"),
    ],
)
def test_a_file_without_prompts_is_refused(
    content: bytes | None,
    said: str,
    made: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, run = tmp_path / "prompts.txt", tmp_path / "run"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BadFile, match=said):
        read_prompts(file)
    assert main(["distill", "sid", *_command(made("stable_diffusion"), file, run)]) == 2
    assert said in capsys.readouterr().err and not run.exists()


def test_prompts_go_with_texts(
    made: Callable[[str], Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    cases = (
        (["--on", str(made("stable_diffusion"))], "needs --prompts FILE"),
        (["--on", str(made("dit")), "--prompts", str(prompts)], "takes no texts"),
        (["--on", "digits", "--prompts", str(prompts)], "digits takes no --prompts"),
        (["--on", str(_without_encoders(made, tmp_path)), "--prompts", str(prompts)], "text encoders"),
    )
    for more, said in cases:
        assert main(["distill", "sid", "--out", str(run), *more]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("limbeck: ") and said in error and not run.exists()


def _without_encoders(made: Callable[[str], Path], tmp_path: Path) -> Path:
    folder = tmp_path / "without"
    shutil.copytree(made("stable_diffusion"), folder)
    shutil.rmtree(folder / "text_encoder")
    return folder


# ids


def test_an_id_goes_through_the_hub(
    made: Callable[[str], Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(name: str, **_: object) -> str:
        asked.append(name)
        return str(made("stable_diffusion"))

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    problem = load_problem("owner/some-model", {"prompts": str(prompts)})
    assert asked == ["owner/some-model"] and problem.name == "some-model"
    recipe = load_recipe("sid", problem)
    assert describe("sid", "owner/some-model", 0, {}, recipe, 1)["problem"] == "owner/some-model"


def test_an_id_without_a_hub_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def download(name: str, **_: object) -> str:
        raise OSError("Name or service not known.\nTry again.")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    assert main(["distill", "sid", "--on", "owner/some-model", "--out", str(tmp_path / "run")]) == 2
    said = "owner/some-model is no folder here, and no hub gave a pipeline of this id: Name or service not known. Try"
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()
