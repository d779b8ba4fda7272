"""Weights of a pipeline: read once, in the precision that they are kept in, and before anything is written."""

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.bridges import Pipeline, read_pipeline
from limbeck.cli import main
from limbeck.engine import Memory, Recipe
from limbeck.evaluate.memory import peak, size_of
from limbeck.loading import load_recipe

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests import tiny  # noqa: E402, for what is optional has to be there

HALF = {"memory.default.frozen": "bf16"}


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of classes."""
    folder = tmp_path_factory.mktemp("dit") / "pipeline"
    tiny.dit(folder)
    return folder


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The precision of each reading of a denoiser's weights so far."""
    found: list[torch.dtype] = []
    for kind in (diffusers.DiTTransformer2DModel, diffusers.SD3Transformer2DModel):
        real = kind.from_pretrained

        def read(*given: Any, real: Any = real, **settings: Any) -> Any:
            found.append(settings["torch_dtype"])
            return real(*given, **settings)

        monkeypatch.setattr(kind, "from_pretrained", read)
    return found


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ((), [torch.float32]),
        (("--rank", "2", "--memory.default.frozen", "bf16"), [torch.bfloat16]),
        (("--memory.default.frozen", "bf16"), [torch.bfloat16, torch.float32]),  # and what learns
    ],
    ids=["whole", "adapters in half", "teacher in half"],
)
def test_a_run_reads_weights_once(
    more: tuple[str, ...],
    expected: list[torch.dtype],
    dit: Path,
    reads: list[torch.dtype],
    tmp_path: Path,
) -> None:
    settings = ("--steps", "1", "--batch", "2", "--judge", "0", "--out", str(tmp_path / "run"))
    assert main(["distill", "dmd2", "--on", str(dit), *settings, *more]) == 0
    assert reads == expected


def test_half_is_read_as_it_would_be_made(tmp_path: Path) -> None:
    tiny.stable_diffusion_3(tmp_path)
    plain, half = read_pipeline(tmp_path), read_pipeline(tmp_path, dtype=torch.bfloat16)
    Memory(frozen="bf16").put(plain)
    mine, theirs = half.state_dict(), plain.state_dict()
    assert mine.keys() == theirs.keys() and torch.float32 in {x.dtype for x in mine.values()}
    assert all(x.dtype == theirs[name].dtype and torch.equal(x, theirs[name]) for name, x in mine.items())


def test_a_base_in_half_never_lies_there_in_single_precision(dit: Path, tmp_path: Path) -> None:
    """A folder of fp16, so that what is read is converted either way."""
    diffusers.DiTPipeline.from_pretrained(dit).to(torch.float16).save_pretrained(tmp_path)
    most = {}
    for name, values in (("half", HALF), ("single", {})):
        problem = Pipeline(tmp_path)
        recipe = load_recipe("dmd2", problem, {**values, "rank": "2"})
        most[name] = peak(lambda problem=problem, recipe=recipe: _read(problem, recipe), start=())
        assert most[name] >= size_of(problem.teacher.parameters())
    assert most["half"] < 0.75 * most["single"]


def _read(problem: Pipeline, recipe: Recipe) -> None:
    problem.asked_by(recipe)
    assert problem.teacher


def test_a_student_of_its_own_begins_with_the_weights_as_they_are(dit: Path) -> None:
    problem = Pipeline(dit)
    problem.asked_by(load_recipe("dmd2", problem, HALF))
    assert {p.dtype for p in problem.teacher.parameters()} == {torch.bfloat16}
    student, plain = problem.network(), read_pipeline(dit).clone(trainable=True)
    assert student.training and all(p.requires_grad for p in student.parameters())
    assert all(torch.equal(p, q) for p, q in zip(student.parameters(), plain.parameters(), strict=True))
    assert student.null.keys() == plain.null.keys()
    problem.asked_by(load_recipe("dmd2", problem))
    assert {p.dtype for p in problem.teacher.parameters()} == {torch.float32}


def test_a_recipe_that_needs_the_weights_whole_has_them(dit: Path) -> None:
    """Pairs are made before anything is put into half."""
    problem = Pipeline(dit)
    problem.asked_by(load_recipe("pairs-regression", problem, HALF))
    assert {p.dtype for p in problem.teacher.parameters()} == {torch.float32}


@pytest.mark.parametrize("system", ["dmd2", "pairs-regression"])
def test_damaged_weights_are_said_before_anything_is_written(
    system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.dit(tmp_path / "in")
    (tmp_path / "in" / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"half")
    assert main(["distill", system, "--on", str(tmp_path / "in"), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("limbeck: ") and "not a whole pipeline" in said and not (tmp_path / "run").exists()
