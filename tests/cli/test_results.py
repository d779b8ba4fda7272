"""What can be done with a finished run: judge it, sample from it, take it elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from limbeck import OneStep, Rng, Trained, commands
from limbeck.cli import main
from limbeck.engine.checkpoint import is_whole
from limbeck.loading import load_problem, load_run

TINY = str(Path(__file__).parent / "tiny.py")
KEYS = {"frechet", "recall", "nfe", "seconds_per_1000"}
CONTRACT = {*KEYS, *(f"{key}_teacher" for key in KEYS), "accuracy"}

pytestmark = pytest.mark.xdist_group("cli-results")  # one worker of pytest makes the run, once


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with everything that the main job leaves."""
    folder = tmp_path_factory.mktemp("results") / "run"
    judge = commands.comparison.evaluate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands.comparison, "evaluate", lambda student, problem: judge(student, problem, n=200))
        assert main(["distill", TINY, "--on", TINY, "--steps", "4", "--out", str(folder)]) == 0
    return folder


def strict(text: str) -> Any:
    """JSON by its standard, without NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def is_picture(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_what_a_run_leaves(run: Path) -> None:
    assert sorted(path.name for path in run.iterdir()) == [
        "attempts.jsonl",
        "metrics.jsonl",
        "recipe.json",
        "report.html",
        "result.json",
        "samples",
        "stages",
        "tensorboard",
        "tracker.json",
    ]
    assert set(strict((run / "result.json").read_text())) >= CONTRACT
    assert is_picture(run / "samples" / "final.png") and is_whole(run / "stages" / "tiny")
    moments = sorted(path.name for path in (run / "samples").glob("00-*"))
    assert moments == [f"00-{i:08d}.png" for i in (0, 1, 2, 4)]  # 10 and 25 % of 4 ticks are one moment or none
    assert all(is_picture(run / "samples" / name) for name in moments)


def test_evaluate(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON an object of numbers, the same under the same seed but for the times; else a table."""
    seen = []
    for seed in ("0", "0", "1"):
        assert main(["evaluate", str(run), "--n", "200", "--json", "--seed", seed]) == 0
        figures = strict(capsys.readouterr().out)
        assert set(figures) >= CONTRACT and all(isinstance(value, int | float) for value in figures.values())
        seen.append({key: value for key, value in figures.items() if "seconds" not in key})
    assert seen[0] == seen[1] != seen[2]
    assert (figures["nfe"], figures["nfe_teacher"]) == (1, 5)
    assert main(["evaluate", str(run), "--n", "200"]) == 0
    assert "frechet" in capsys.readouterr().out


def test_a_figure_that_is_not_finite(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON has no NaN and no infinity: null."""
    monkeypatch.setattr(commands.comparison, "evaluate", lambda *args, **settings: {"a": float("nan"), "b": 1.0})
    assert main(["evaluate", str(run), "--json"]) == 0
    assert strict(capsys.readouterr().out) == {"a": None, "b": 1.0}


def test_a_result_that_cannot_be_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The input was good and the run is there: exit code 1."""
    monkeypatch.setattr(OneStep, "generate", lambda self, noise, cond, rng: noise * float("nan"))
    assert main(["distill", TINY, "--on", TINY, "--steps", "1", "--out", str(tmp_path / "run")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("limbeck: ") and "has finished, but its result cannot be judged: " in err
    assert is_whole(tmp_path / "run" / "stages" / "tiny")


def test_samples(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a picture, and as tensors with their conditions; the seed decides."""
    assert main(["sample", str(run)]) == 0
    assert capsys.readouterr().out == f"100 samples: {run}/samples/samples.png\n"
    assert is_picture(run / "samples" / "samples.png")
    drawn = []
    for seed in ("0", "0", "1"):
        out = tmp_path / "new" / f"{len(drawn)}.safetensors"
        assert main(["sample", str(run), "--out", str(out), "--n", "7", "--seed", seed]) == 0
        drawn.append(load_file(out))
    assert drawn[0]["x"].shape == (7, 2) and drawn[0]["cond"].shape == (7,)
    assert torch.equal(drawn[0]["x"], drawn[1]["x"]) and not torch.equal(drawn[0]["x"], drawn[2]["x"])


@pytest.mark.parametrize("name", ["it.png", "it.safetensors"])
def test_samples_that_cannot_be_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / name, Path("/proc") / name):
        assert main(["sample", str(run), "--out", str(out)]) == 2
        assert capsys.readouterr().err.startswith(f"limbeck: {out} cannot be written: ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_samples_without_conditions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A problem may have none, and a student brings its own number of them."""
    problem = tmp_path / "bare.py"
    text = Path(TINY).read_text().replace("return rng.integers(n, 2)", "return None")
    problem.write_text(text.replace("argmin(1) % 2 == cond", "argmin(1) >= 0").replace("c=cond", "s=4"))
    monkeypatch.setattr(commands.comparison, "evaluate", lambda student, problem: {})
    run = str(tmp_path / "run")
    assert main(["distill", str(problem), "--on", str(problem), "--steps", "2", "--out", run]) == 0
    assert main(["sample", run, "--n", "5", "--out", f"{run}/it.safetensors"]) == 0
    assert {key: x.shape for key, x in load_file(f"{run}/it.safetensors").items()} == {"x": (5, 2)}


def test_export(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that stands alone: weights that fit a new student by name, and what they are."""
    out = tmp_path / "deep" / "exported"
    assert main(["export", str(run), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"exported: {out}\n" and is_whole(out)
    assert (out / "recipe.json").read_bytes() == (run / "recipe.json").read_bytes()
    network = load_problem(TINY).network()
    assert isinstance(network, Trained)
    student = OneStep(network, shape=(2,)).eval()
    student.load_state_dict(load_file(out / "state.safetensors"))
    ours = load_run(run).student
    noise = Rng("export").normal(9, 2)
    assert torch.equal(student.generate(noise, None, Rng(0)), ours.generate(noise, None, Rng(0)))
