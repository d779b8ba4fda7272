"""Settings reach the run, are written beside it, and run again to the same bits; a user's files as built-in ones."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck import commands
from limbeck.cli import main
from limbeck.engine.settings import plain
from limbeck.loading import load_problem, read_description, rebuild

HERE = Path(__file__).parent
QUICK, STAGES = HERE.parent / "faults" / "quick.py", HERE.parent / "faults" / "stages.py"
TINY, SCORE, OWN = (HERE / f"{name}.py" for name in ("tiny", "score", "own"))
Run = Callable[..., Path]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, and without judging results, which takes seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands.comparison, "evaluate", lambda student, problem: {})


def distill(line: str, out: str) -> Path:
    """Runs a recipe to its end; returns the folder."""
    assert main(["distill", *shlex.split(line), "--out", out]) == 0
    return Path(out)


def recorded(run: Path) -> dict[str, Any]:
    """What ``recipe.json`` says."""
    return json.loads((run / "recipe.json").read_text())


SETTINGS = {
    # Short and long, dashes and underscores, with and without an equals sign.
    f"{SCORE} --on {TINY} --lr 0.5": {"optim.default": "Adam(lr=0.5, "},
    f"{SCORE} --on {TINY} --optim.default.lr=5e-1": {"optim.default": "Adam(lr=0.5, "},
    f"{SCORE} --on {TINY} --default.weight-decay 0.5": {"optim.default": "weight_decay=0.5"},
    f"{SCORE} --on {TINY} --weight_decay 1": {"optim.default": "weight_decay=1.0"},
    f"{SCORE} --on {TINY} --clip none --betas '(0, 0.5)'": {"optim.default": "clip=None, scale=(), betas=(0.0, 0.5)"},
    # Parts, by a setting of theirs or as text; in any order where two belong together.
    f"{SCORE} --on {TINY} --times.lo 0.1": {"objective.times": "Uniform(lo=0.1, hi=0.98)"},
    f"{SCORE} --on {TINY} --objective.times 'Uniform(lo=0.1)'": {"objective.times": "Uniform(lo=0.1, hi=0.98)"},
    f"{SCORE} --on {TINY} --lo 0.985 --hi 0.99": {"objective.times": "Uniform(lo=0.985, hi=0.99)"},
    f"{SCORE} --on {TINY} --times.std 2 --times 'LogNormal()'": {"objective.times": "LogNormal(mean=-1.2, std=2.0)"},
    f"{SCORE} --on {TINY} --guidance 'CFG(scale=2)'": {"objective.guidance": "CFG(scale=2.0)"},
    f"{SCORE} --on {TINY} --ema 'EMA(decay=0.5)'": {"ema": "EMA(decay=0.5, ramp=True)"},
    # A name that several parts have, and one of them alone.
    f"{TINY} --on {TINY} --critic-steps 3": {"objective.dmd.critic_steps": 3, "objective.gan.critic_steps": 3},
    f"{TINY} --on {TINY} --dmd.critic-steps 3": {"objective.dmd.critic_steps": 3, "objective.gan.critic_steps": 2},
    f"{TINY} --on {TINY} --objective.dmd.times 'Uniform(lo=0.1)'": {"objective.dmd.times": "Uniform(lo=0.1, hi=0.98)"},
    f"{TINY} --on {TINY} --gan.weight 'Linear(last=0.5)'": {"objective.gan.weight": "Linear(first=1.0, last=0.5"},
    f"{TINY} --on {TINY} --rate 0.5": {"optim.default": "Adam(lr=0.5, ", "optim.discriminator": "Adam(lr=0.002, "},
    # By role, for those that have no entry of their own yet, in any order.
    f"{TINY} --on {TINY} --memory.student.frozen bf16 --default.again '()'": {
        "memory.default": "Memory(frozen=None, again=(), ",
        "memory.student": "Memory(frozen='bf16', again=(), ",
    },
    f"{TINY} --on {TINY} --memory.critic.again none --optim.critic.lr 0.5 --optim.default.clip 1": {
        "memory.critic": "Memory(frozen=None, again=None, ",
        "optim.critic": "Adam(lr=0.5, schedule=1.0, clip=1.0, ",
    },
    f"{STAGES} --on {QUICK} --steps 2 --again.memory.teacher.frozen bf16": {
        "again.memory.teacher": "Memory(frozen='bf16'"
    },
    # Arguments of the recipe's function, which several stages may use in their own way.
    f"{STAGES} --on {QUICK} --steps 7": {"labels.steps": 7, "again.steps": 17},
    f"{STAGES} --on {QUICK} --steps 7 --again.steps 3": {"labels.steps": 7, "again.steps": 3},
    # A user's own parts.
    f"{OWN} --on mixture2d": {"objective.times": "Late(power=2.0)"},
    f"{OWN} --on mixture2d --power 3": {"objective.times": "Late(power=3.0)"},
    f"{OWN} --on mixture2d --times 'Late(power=0.5)'": {"objective.times": "Late(power=0.5)"},
    f"{OWN} --on mixture2d --steps 3": {"steps": 3, "optim.default": "Adam(lr=0.1, schedule=Steps(), "},
}


@pytest.mark.parametrize(("line", "expected"), SETTINGS.items(), ids=lambda x: x[-40:] if isinstance(x, str) else "")
def test_settings(line: str, expected: dict[str, object]) -> None:
    """They are in the record; the record makes the same recipe, and its run the same bits."""
    line += "" if "--steps" in line or "own.py" in line else " --steps 2"
    first = distill(line, "first")
    found = recorded(first)["settings"]
    for path, value in expected.items():
        assert value in found[path] if isinstance(value, str) else found[path] == value
    record = read_description(first / "recipe.json")
    recipe = rebuild(record, load_problem(record["problem"], record["given"]))
    assert json.loads(json.dumps(plain(recipe))) == found
    second = distill("first/recipe.json", "second")
    assert recorded(second) == recorded(first)
    assert bits(second) == bits(first)


def bits(run: Path) -> dict[str, bytes]:
    """Results and metrics."""
    files = [run / "metrics.jsonl", *sorted((run / "stages").rglob("*"))]
    return {str(path.relative_to(run)): path.read_bytes() for path in files if path.is_file()}


def test_a_record_with_other_settings() -> None:
    """What is given now counts; what was given then stays; an argument of the recipe means what it meant."""
    distill(f"{STAGES} --on {QUICK} --steps 7 --again.steps 3 --batch 8", "first")
    found = recorded(distill("first/recipe.json --seed 5 --steps 4 --temperature 2", "second"))
    assert (found["seed"], found["arguments"]) == (5, {"steps": 4})
    wanted = {
        "labels.steps": 4,
        "again.steps": 3,
        "labels.batch": 8,
        "again.batch": 8,
        "again.objective.temperature": 2,
    }
    assert {path: found["settings"][path] for path in wanted} == wanted


def test_a_run_and_its_seed() -> None:
    """Another seed makes other bits, and the folder has a name by default."""
    assert main(["distill", str(QUICK), "--on", str(QUICK), "--steps", "2"]) == 0
    other = distill(f"{QUICK} --on {QUICK} --steps 2 --seed 1", "other")
    assert recorded(Path("runs/quick-quick"))["seed"] == 0
    assert bits(Path("runs/quick-quick")) != bits(other)


def test_a_run_with_settings_of_a_role_goes_on_with_them(capsys: pytest.CaptureFixture[str]) -> None:
    line = f"distill {TINY} --on {TINY} --out run"
    assert (
        main([*shlex.split(line), "--steps", "2", "--memory.student.frozen", "bf16", "--optim.critic.lr", "0.5"]) == 0
    )
    for rest in ("--resume", "--resume --optim.critic.lr 0.5 --memory.student.frozen bf16 --steps 2"):
        assert main(shlex.split(f"{line} {rest}")) == 0
    capsys.readouterr()
    more = "--resume --steps 2 --memory.student.frozen bf16 --optim.critic.lr 0.5 --memory.teacher.frozen bf16"
    assert main(shlex.split(f"{line} {more}")) == 2
    assert "was begun with memory.teacher None, not Memory(frozen='bf16'" in capsys.readouterr().err


def test_a_role_that_nobody_plays_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for setting, said in {
        "--memory.critik.frozen bf16": "memory names the role 'critik', but there are only critic, discriminator,",
        "--optim.teacher.lr 1": "optim names the role 'teacher', but there are only critic, discriminator, student.",
        "--memory.student.frozn bf16": "there is no setting 'memory.student.frozn'; did you mean",
        "--memory.student.frozen fp8": "memory.student.frozen must be ",
        "--memory.teacher.again whole": "needs a student that draws samples, got the teacher",
    }.items():
        assert main(shlex.split(f"distill {TINY} --on {TINY} --out run {setting}")) == 2
        assert said in capsys.readouterr().err and not Path("run").exists()
        assert main(shlex.split(f"plan {TINY} --on {TINY} {setting}")) == 2
        assert said in capsys.readouterr().err


def test_metrics_say_what_happened() -> None:
    """A line for every tick, without times."""
    run = distill(f"{STAGES} --on {QUICK} --steps 3", "run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["i"]) for line in lines] == [
        *(("labels", i) for i in range(1, 4)),
        *(("again", i) for i in range(1, 14)),
    ]
    assert all(set(line) == {"stage", "i", "losses", "norms", "skipped"} for line in lines)
    assert list(lines[0]["losses"]) == ["cross_entropy"] and list(lines[-1]["losses"]) == ["kd"]


def test_resuming_where_there_is_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """It starts from the beginning and says so; what has finished stays as it is."""
    run = distill(f"{QUICK} --on {QUICK} --steps 2 --resume", "run")
    assert "run holds no run; starting from the beginning.\n" in capsys.readouterr().out
    before = bits(run)
    for rest in ("", " --steps 2", " --seed 0"):
        distill(f"{QUICK} --on {QUICK} --resume{rest}", "run")
        assert "this run has finished.\n" in capsys.readouterr().out
    distill("run/recipe.json --resume", "run")
    assert bits(run) == before


def test_a_folder_of_any_name(capsys: pytest.CaptureFixture[str]) -> None:
    """What it is called is not read as markup, and not broken into lines."""
    name = "[/bold] and " + "so on " * 20
    distill(f"{QUICK} --on {QUICK} --steps 2", name)
    assert f"run: {name}\n" in capsys.readouterr().out


def test_a_run_that_diverges(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, and the last good checkpoint is kept."""
    args = ["distill", str(QUICK), "--on", str(QUICK), "--out", "run", "--lr", "1e30", "--checkpoint-every", "1"]
    assert main([*args, "--optim.default.schedule", "Linear(first=0, last=1)"]) == 1
    found = capsys.readouterr().err
    assert found.startswith("limbeck: 10 updates in a row of 'student' were not finite, the last at tick ")
    assert found.count("\n") == 1 and len([*Path("run/checkpoint").iterdir()]) == 2
