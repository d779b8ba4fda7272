"""Systems side by side: who takes part, with which settings, what is written, and how it goes on."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck import OneStep, Particles, Rng, catalogue, compare
from limbeck.cli import main
from limbeck.evaluate import picture
from limbeck.evaluate.comparison import student_of, teacher_of
from limbeck.problems.problem import Generative
from limbeck.tree import Tree

HERE = Path(__file__).parent
QUICK = str(HERE.parent / "faults" / "quick.py")
TINY, SCORE, OWN = (str(HERE / f"{name}.py") for name in ("tiny", "score", "own"))
LINE = ["compare", TINY, SCORE, QUICK, "--on", TINY, "--steps", "4", "--rate", "0.002"]
FIGURES = {"frechet", "precision", "recall", "accuracy", "nfe", "seconds_per_1000"}

pytestmark = pytest.mark.xdist_group("cli-compare")  # one worker of pytest makes the comparison, once


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of a generator, of particles, and of a system for problems of another kind."""
    out = tmp_path_factory.mktemp("compare") / "new" / "out"
    assert main([*LINE, "--out", str(out)]) == 0
    return out


def read(out: Path) -> dict[str, Any]:
    """``compare.json``."""
    return json.loads((out / "compare.json").read_text())


def test_what_it_leaves(done: Path) -> None:
    """A run's folder for each system that ran, the figures, and a picture."""
    assert sorted(path.name for path in done.iterdir()) == ["compare.json", "compare.png", "score", "tiny"]
    assert (done / "compare.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    for name in ("score", "tiny"):
        record = json.loads((done / name / "recipe.json").read_text())
        assert (record["system"], record["problem"], record["seed"]) == (str(HERE / f"{name}.py"), TINY, 0)
        assert record["settings"]["steps"] == 4 and (done / name / "report.html").exists()
    assert json.loads((done / "tiny" / "recipe.json").read_text())["arguments"] == {"steps": 4, "rate": 0.002}


def test_as_json(done: Path) -> None:
    """A contract: figures by system as the run has them, what it cost, who did not run and why."""
    found = read(done)
    assert list(found) == ["problem", "seed", "settings", "systems", "teacher", "skipped"]
    assert found["settings"] == {"steps": "4", "rate": "0.002"} and found["problem"] == TINY
    tiny, score = found["systems"]
    assert (tiny["id"], score["id"]) == ("tiny", "score") and (tiny["size"], score["size"]) == (None, 32)
    for row in (tiny, score):
        result = json.loads((done / row["id"] / "result.json").read_text())
        assert set(row["figures"]) >= FIGURES
        assert row["figures"] == {name: result[name] for name in row["figures"]}
        assert row["teacher"] == {name: result[f"{name}_teacher"] for name in row["figures"]}
        assert row["training_seconds"] > 0 and 50e6 < row["peak_memory"] < 8e9
    assert found["teacher"] == tiny["teacher"] != score["teacher"]  # from where it was judged on more samples
    assert tiny["left_out"] == {} and list(score["left_out"]) == ["rate"]
    (skipped,) = found["skipped"]
    assert skipped["id"] == "quick" and "needs a Classification problem, got four" in skipped["why"]


def test_again(done: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What has finished is not run again; the table has a row for each system, and the teacher last."""
    monkeypatch.setattr(compare, "_run", lambda *args: pytest.fail("it ran again"))
    before = read(done)
    assert main([*LINE, "--out", str(done)]) == 0
    assert read(done) == before
    lines = capsys.readouterr().out.splitlines()
    head = next(k for k, line in enumerate(lines) if "Fréchet" in line)
    assert [line.split()[0] for line in lines[head + 1 : head + 4]] == ["tiny", "score", "teacher"]
    named = ["Fréchet", "precision", "recall", "accuracy", "s per 1000", "NFE", "training", "peak memory"]
    assert [name for name in named if name not in lines[head]] == []
    assert f"{before['systems'][0]['figures']['frechet']:.4g}" in lines[head + 1]
    assert "judged on the 32 samples that it has, which makes distances larger: score." in lines
    assert any(line.startswith("  without --rate: there is no setting") for line in lines)
    assert any(line.startswith("quick did not run: ") for line in lines)
    assert main([*LINE, "--out", str(done), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == before


@pytest.mark.parametrize("change", [["--seed", "1"], ["--steps", "5"], ["--rate", "2"]])
def test_a_folder_of_another_comparison(done: Path, capsys: pytest.CaptureFixture[str], change: list[str]) -> None:
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    assert main([*LINE, "--out", str(done), *change]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"limbeck: {done} is a comparison with ") and err.endswith("; choose another --out.\n")
    assert before == {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}


def test_one_that_is_not_finished(done: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It goes on where it is, the others stay, and another system may come."""
    (done / "score" / "result.json").unlink()
    before = (done / "tiny" / "attempts.jsonl").read_bytes()
    assert main([*LINE[:1], SCORE, *LINE[1:], "--out", str(done), "--json"]) == 0
    out, err = capfd.readouterr()
    assert [row["id"] for row in json.loads(out)["systems"]] == ["score", "tiny"]
    assert "this run has finished." in err  # what its process says
    assert (done / "score" / "result.json").exists()
    assert (done / "tiny" / "attempts.jsonl").read_bytes() == before


# Without running anything


def ends(why: str, code: int) -> Any:
    """Instead of a run: one that ends like this."""
    return lambda entry, on, seed, quiet: (code, why)


def test_one_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else ran: exit code 1, and it is in the file."""
    monkeypatch.setattr(compare, "_run", ends("it went wrong.", 1))
    assert main(["compare", QUICK, "--on", QUICK, "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "limbeck: no system came to its end; quick: it went wrong.\n"
    assert read(tmp_path / "out")["skipped"] == [{"id": "quick", "why": "it went wrong."}]


def test_what_a_process_says(tmp_path: Path) -> None:
    """The sentence of a refusal, without the program's name, and its exit code."""
    entry = compare.Entry(system=QUICK, folder=tmp_path / "run", values={"alpha": "7"}, left_out={}, record={})
    assert compare._run(entry, QUICK, 0, True) == (2, "alpha must be between 0 and 1, got 7.")


def test_a_family(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All of its recipes, and a list of those without one."""
    row = '[[system]]\nid = "{}"\ntitle = "A"\nyear = 2025\nfamily = "K-logit"\npaper = ""\n'
    (tmp_path / "k_logit").mkdir()
    (tmp_path / "k_logit" / "quick.py").write_text(Path(QUICK).read_text())
    (tmp_path / "catalogue.toml").write_text(row.format("later") + row.format("quick"))
    monkeypatch.setattr(catalogue, "RECIPES", tmp_path)
    catalogue.systems.cache_clear()
    monkeypatch.setattr(compare, "_run", ends("not now.", 1))
    monkeypatch.chdir(tmp_path)
    try:
        assert main(["compare", "--family", "K-logit", "--on", QUICK]) == 1
    finally:
        catalogue.systems.cache_clear()
    skipped = read(tmp_path / "runs" / "compare-K-logit-quick")["skipped"]
    assert skipped == [{"id": "later", "why": "has no recipe yet."}, {"id": "quick", "why": "not now."}]


def test_settings_go_to_who_takes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Together where they belong together; a setting that nobody takes is refused; each system says what it leaves."""
    problem = compare.loading.load_problem("mixture2d")
    entries = compare._entries([SCORE, OWN], problem, "mixture2d", {"lo": "0.985", "hi": "0.99"}, 0, tmp_path, {})
    assert [entry.values for entry in entries] == [{"lo": "0.985", "hi": "0.99"}, {}]
    assert list(entries[1].left_out) == ["lo", "hi"]
    assert entries[0].record["settings"]["objective.times"] == "Uniform(lo=0.985, hi=0.99)"
    assert main(["compare", SCORE, OWN, "--on", "mixture2d", "--powr", "3", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("limbeck: there is no setting 'powr'")
    assert not (tmp_path / "out").exists()


def test_what_a_number_of_teachers_means() -> None:
    """Its figures are from where it was judged on the most samples."""
    rows = [row(size=20, frechet=5.0), row(size=None, frechet=1.0), row(size=300, frechet=2.0)]
    assert compare._teacher(rows) == {"frechet": 1.0} and compare._teacher(rows[::2]) == {"frechet": 2.0}
    assert compare._teacher([]) == {}


def row(size: int | None, frechet: float) -> compare.Row:
    """A row whose teacher has this figure."""
    return compare.Row(
        id="a",
        settings={},
        left_out={},
        size=size,
        training_seconds=None,
        peak_memory=None,
        figures={},
        teacher={"frechet": frechet},
    )


def test_stopped_by_a_signal(tmp_path: Path) -> None:
    """The system under way ends with a checkpoint; the same command goes on from there."""
    line = ["compare", QUICK, "--on", QUICK, "--steps", "4000", "--out", "out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "limbeck", *line], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    metrics, deadline = tmp_path / "out" / "quick" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out = process.communicate()[0]
    assert process.returncode == 130 and out.endswith("interrupted; the same command goes on\n")
    assert len([*(tmp_path / "out" / "quick" / "checkpoint").iterdir()]) > 0
    assert read(tmp_path / "out")["systems"] == []
    assert len((tmp_path / "out" / "quick" / "attempts.jsonl").read_text().splitlines()) == 2


def test_rows_of_a_picture() -> None:
    """All have the conditions of the teacher; of particles the first are shown, by class where samples are points."""
    problem = compare.loading.load_problem(TINY)
    assert isinstance(problem, Generative)
    particles = Particles(Rng(0).normal(32, 2), problem.spread(32))
    teacher = picture._first(problem, teacher_of(problem), None)
    ours = picture._first(problem, student_of(particles), 32)
    assert torch.equal(ours.x, particles.x[:20]) and len(teacher.x) == 20
    assert torch.equal(picture._first(problem, student_of(Generator()), None).x, teacher.x)
    one, two = picture._by_class(ours, picture._classes(ours.cond))
    assert (one.cond == 0).all() and (two.cond == 1).all() and len(one.x) + len(two.x) == 20
    assert picture._classes(torch.arange(10)) == picture._classes(torch.rand(3)) == picture._classes(None) == 0


class Generator(OneStep):
    """What the teacher draws, from the same noise."""

    def __init__(self) -> None:
        self.problem = compare.loading.load_problem(TINY)
        super().__init__(self.problem.network(), shape=(2,))

    def generate(self, noise: Tensor, cond: Tree, rng: Rng) -> Tensor:
        assert isinstance(self.problem, Generative)
        return self.problem.teacher_sample(noise, cond)
