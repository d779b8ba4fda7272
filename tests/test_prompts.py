"""Pipelines of texts: prompts embedded once as the pipelines embed them, distilled, and out again with equal images."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.bridges import Pipeline, read_prompts
from limbeck.bridges.problem import Pipeline as Problem
from limbeck.cli import main
from limbeck.errors import BadFile
from limbeck.loading import load_run

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests import tiny  # noqa: E402

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
        monkeypatch.setattr(Problem, name, value)


def distilled(on: Path, prompts: Path, out: Path, *more: str) -> int:
    settings = ("--prompts", str(prompts), "--out", str(out), "--steps", "2", "--batch", "4")
    return main(["distill", "dmd2", "--on", str(on), *settings, *more])


def test_a_text_pipeline_is_distilled_and_leaves_as_one(
    made: Callable[[str], Path], prompts: Path, tmp_path: Path
) -> None:
    on, run, out = made("stable_diffusion"), tmp_path / "run", tmp_path / "out"
    assert distilled(on, prompts, run) == 0
    assert json.loads((run / "recipe.json").read_text())["given"] == {"prompts": str(prompts)}
    assert main(["export", str(run), "--out", str(out), "--to", "diffusers"]) == 0
    assert_same_images(run, out)


def assert_same_images(run: Path, out: Path, steps: int = 1) -> None:
    """Images of diffusers, which asks its own text encoders, against those of our sampler, from the same noise."""
    session = load_run(run)
    problem, student = session.problem, session.student
    assert isinstance(problem, Pipeline)
    noise = torch.randn(3, *problem.shape, generator=torch.Generator().manual_seed(0))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(out)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt=list(TEXTS), latents=noise, num_inference_steps=steps, guidance_scale=1.0, output_type="pt"
    ).images
    x = student.generate(noise, problem.spread(3), None)
    ours = torch.cat([*problem.latents.decode(x)])
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, rtol=0, atol=1e-5)
    assert _apart(theirs) > 1e-4


def _apart(images: Tensor) -> float:
    """How different the images of different prompts are."""
    return float((images[0] - images[1]).abs().max())
