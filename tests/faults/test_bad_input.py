"""Bad input of every kind: exit code 2, one clear sentence, no traceback, and nothing written."""

import json
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from limbeck import catalogue
from limbeck.cli import main
from limbeck.engine.checkpoint import seal

pytestmark = pytest.mark.xdist_group("faults-input")  # one worker of pytest makes the folder of files, once

HERE = Path(__file__).parent
BARE = next(
    system.family
    for system in catalogue.systems()
    if not any(other.path.exists() for other in catalogue.in_family(system.family))
)
UNMADE = next(system.id for system in catalogue.systems() if not system.path.exists())

NAMES = {
    "": "Missing subcommand",
    "distil dmd2 --on mixture2d": "there is no command 'distil'; did you mean distill?",
    "frobnicate": "there is no command 'frobnicate'; there are systems, show, distill, compare, plan, verify, ",
    "--jsn": "Unrecognized options: --jsn",
    "show dmd3": "there is no system 'dmd3'; did you mean",
    "show": "Missing from limbeck show",
    f"show {UNMADE}": "is in the catalogue but has no recipe yet",
    "systems --family G-dst": "there is no family 'G-dst'; did you mean G-dist",
    "systems --jsn": "Unrecognized options: --jsn",
    "verify": "verify needs systems, --family F or --all, and at least one seed",
    "verify dmd2 --seed": "and at least one seed",
    "verify dmd2 --seed x": "Error parsing --seed",
    "verify dmd3": "there is no system 'dmd3'",
    "verify --family nothing": "there is no family 'nothing'",
    f"verify {UNMADE}": "is in the catalogue but has no recipe yet",
    "compare": "compare needs either systems or --family F, and not both",
    "compare dmd2 --family G-dist --on mixture2d": "compare needs either systems or --family F, and not both",
    "compare dmd2 sid": "compare needs a problem: --on breast-cancer or --on digits",
    "compare dmd2 --on mixture2": "there is no problem 'mixture2'; did you mean mixture2d or ",
    "compare dmd2 dmd3 --on mixture2d": "there is no system 'dmd3'",
    f"compare dmd2 {UNMADE} --on mixture2d": "is in the catalogue but has no recipe yet",
    "compare --family G-dst --on mixture2d": "there is no family 'G-dst'; did you mean G-dist",
    f"compare --family {BARE} --on mixture2d": f"no system of the family {BARE} has a recipe yet",
    "compare dmd2 --on mixture2d --steps many": "invalid literal for int()",
    "distill": "Missing from limbeck distill",
    "distill dmd2": "distill needs a problem: --on breast-cancer or --on digits",
    "distill dmd2 --on": "Missing value for argument '--on'",
    "distill dmd2 --on mixture2": "there is no problem 'mixture2'; did you mean mixture2d or ",
    "distill dmd2 --on nowhere": "there is no problem 'nowhere'; there are breast-cancer, digits",
    "distill dmd2 mixture2d --on mixture2d": "'mixture2d' was not expected; a setting is given as --NAME VALUE",
    "distill dmd3 --on mixture2d": "there is no system 'dmd3'",
    f"distill {UNMADE} --on mixture2d": "is in the catalogue but has no recipe yet",
}

QUICK = {
    "--steps many": "invalid literal for int()",
    "--steps 1.5": "invalid literal for int()",
    "--steps": "Missing value for argument '--steps'",
    "--steps 0": "steps must be at least 1, got 0",
    "--steps -3": "steps must be at least 1, got -3",
    "--stepz 3": "there is no setting 'stepz'; did you mean steps?",
    "--seed first": "invalid literal for int()",
    "--checkpoint-every -1": "checkpoint-every must be at least 0, got -1",
    "--rate fast": "rate must be float, got 'fast'",
    "--batch": "--batch needs a value",
    "--batch 0": "batch must be at least 1, got 0",
    "--batch 2.5": "batch must be int, got '2.5'",
    "--batch 16 --accumulate 3": "batch must be a multiple of 3, got 16",
    "--accumulate 0": "accumulate must be at least 1, got 0",
    "--ema.decay 2": "decay must be between 0 and 1, got 2",
    "--ema sometimes": "ema must be EMA or none, got 'sometimes'",
    "--ema.decay nan": "decay must be float, got 'nan'",
    "--temperature 0": "temperature must be above 0, got 0",
    "--objective.temprature 2": "there is no setting 'objective.temprature'; did you mean objective.temperature?",
    "--alpha 1.5": "alpha must be between 0 and 1, got 1.5",
    "--alpha true": "alpha must be float, got 'true'",
    "--alpha=": "alpha must be float, got ''",
    "--alpha 1" + 400 * "0": "alpha must be float, got",
    "--alpha '{[]: 1}'": "alpha must be float, got '{[]: 1}'",
    "--lr -1": "lr must be at least 0, got -1",
    "--betas '(2.0, 0.9)'": "stage learn cannot be set up: ValueError: Invalid beta parameter at index 0: 2.0",
    "--betas 0.9": "betas must be tuple[float, float], got '0.9'",
    "--schedule.warmup 2": "warmup must be between 0 and 0.99, got 2",
    "--optim.teacher.lr 1": "optim names the role 'teacher', but there are only student.",
    "-x 3": "'-x' was not expected",
    "--out file": "file is a file; choose another --out",
    "--out file/below/it": "file/below/it cannot be written: Not a directory",
    "--out /proc/limbeck": "/proc/limbeck cannot be written: ",
    "--out /sys/kernel/limbeck": "/sys/kernel/limbeck cannot be written: ",
    "--out done": "done already holds a run; add --resume to go on, or choose another --out",
    "--out begun": "begun already holds a run",
    "--out headless": "headless already holds a run",
    "--out headless --resume": "headless/recipe.json does not exist",
    "--out beheaded --resume": "beheaded/recipe.json is not a readable recipe",
    "--out begun --resume --seed 1": "begun was begun with seed 0, not 1; ask for the same or nothing",
    "--out begun --resume --steps 9": "begun was begun with steps 4, not 9",
    "--out begun --resume --steps 4 --alpha 0.1": "begun was begun with objective.alpha 0.5, not 0.1",
}

SCORE = {
    "--times.lo 0.99": "hi must be between 0.99 and 1, got 0.98",
    "--times 'Uniform(lo=0.5, hi=0.1)'": "hi must be between 0.5 and 1, got 0.1",
    "--times 'Uniform(low=0.5)'": "Uniform has no setting 'low', only hi, lo",
    "--times 'Unifrom()'": "there is no part Unifrom",
    "--times 'Cosine()'": "times must be Times, got 'Cosine()'",
    "--times 'Uniform(lo=many)'": "times must be Times, got 'Uniform(lo=many)'",
    "--times 3": "times must be Times, got '3'",
    "--times \"__import__('os').mkdir('gone')\"": "times must be Times, got",
    "--guidance 7": "guidance must be Guidance or none, got '7'",
    "--guidance 'CFG(scale=high)'": "guidance must be Guidance or none",
}

MORE = {
    "distill ../cli/tiny.py --on ../cli/tiny.py --lr 1": "'lr' could mean several settings: optim.default.lr = 0.001, ",
    "distill ../cli/tiny.py --on ../cli/tiny.py --objective.gan.weight -1": "weight must be at least 0, got -1",
    "distill dmd2 --on ./quick.py": "dmd2 needs a Generative problem, got quick (a Classification problem)",
    "distill quick.py --on mixture2d": "quick.py needs a Classification problem, got mixture2d (a Generative problem)",
    "distill misfit.py --on quick.py": "SDS needs a teacher that is a Denoiser, got a Linear; ",
    "distill begun/recipe.json --out begun --resume --on mixture2d": "needs a Classification problem, got mixture2d",
    "distill again.py --on quick.py --out begun --resume": "begun was begun with system ",
    "distill quick.py --on again.py --out begun --resume": "begun was begun with problem ",
    "compare quick.py --on mixture2d": "quick.py needs a Classification problem, got mixture2d (a Generative problem)",
    "compare quick.py again.py --on mixture2d": "none of 2 systems runs on mixture2d: quick.py needs a Classification",
    "compare misfit.py --on quick.py": "SDS needs a teacher that is a Denoiser, got a Linear; ",
    "compare quick.py --on quick.py --stepz 3": "there is no setting 'stepz'; did you mean steps?",
    "compare quick.py --on quick.py --steps 0": "steps must be at least 1, got 0",
    "compare quick.py ./quick.py --on quick.py": "systems need different names, got quick.py and ./quick.py",
    "compare quick.py --on quick.py --out done": "done holds something else than a comparison; choose another --out",
    "compare quick.py --on quick.py --out file": "file holds something else than a comparison; choose another --out",
    "compare quick.py --on quick.py --out file/below": "file/below cannot be written: Not a directory",
    "compare quick.py --on quick.py --out damaged": "damaged/compare.json is not a readable comparison: ",
    "compare quick.py --on quick.py --out other": "other is a comparison with seed 1, not 0; choose another --out",
    "compare ../cli/score.py --on mixture2d --out other": "other is a comparison with problem ",
    "compare quick.py --on quick.py --out mixed": "mixed/quick was begun with steps 4, not 40; choose another --out",
    "distill nowhere.py --on quick.py": "nowhere.py is not a Python file",
    "distill ./begun --on quick.py": "./begun is not a Python file",
    "distill quick.py --on nowhere.py": "nowhere.py is not a Python file",
    "distill nowhere.json": "nowhere.json does not exist",
    "evaluate nowhere": "nowhere is not a run's folder",
    "evaluate file": "file is not a run's folder",
    "evaluate begun": "begun has not finished; go on with `limbeck distill begun/recipe.json --out begun --resume`",
    "evaluate beheaded": "beheaded/recipe.json is not a readable recipe",
    "evaluate truncated": "truncated has not finished: the result of stage learn is damaged",
    "evaluate disguised": "disguised has not finished: the result of stage learn is damaged",
    "evaluate sealed": "stages/learn holds no state that can be read",
    "evaluate swapped": "swapped holds a state of other parts than its recipe and problem make",
    "evaluate done --n 3": "n must be at least 10, got 3",
    "evaluate done --n few": "invalid literal for int()",
    "sample nowhere": "nowhere is not a run's folder",
    "sample begun": "begun has not finished",
    "sample done": "quick has no samples to draw",
    "sample done --n 0": "n must be at least 1, got 0",
    "sample done --out samples.gif": "--out must end in .png or .safetensors, got samples.gif",
    "export begun --out new": "begun has not finished",
    "export done": "Missing from limbeck export",
    "export done --out begun": "begun exists; choose another --out",
    "export done --out file/below": "file/below cannot be written: Not a directory",
    "export done --out new --to pickle": "invalid choice 'pickle'",
}

HEAD = "from limbeck.problems.problem import Problem, Generative\nfrom limbeck import Recipe\n"

RECIPES = {
    "": "has no function recipe()",
    "recipe = 3": "has no function recipe()",
    "def recipe(problem:\n": "SyntaxError: '(' was never closed",
    "import nothing_like_it": ":1 failed with ModuleNotFoundError: No module named 'nothing_like_it'",
    "raise RuntimeError('at\\nonce')": ":1 failed with RuntimeError: at once",
    "import sys\nsys.exit(0)": ":2 failed with SystemExit: 0",
    "def recipe(problem):\n    return 1 / 0": ":2 failed with ZeroDivisionError: division by zero",
    "def recipe(problem):\n    return problem": "recipe() must return a Recipe, got a Quick",
    "def recipe(problem):\n    pass": "recipe() must return a Recipe, got a NoneType",
    "def recipe():\n    pass": "failed with TypeError: recipe() takes 0 positional arguments but 1 was given",
    "def recipe(problem: 'Unheard'):\n    pass": "failed with NameError: name 'Unheard' is not defined",
    "def recipe(problem):\n    return Recipe(stages=(), paper=None, claim=None)": "failed with IndexError",
    "from limbeck import KD\nKD(alpha=3.0)": "alpha must be between 0 and 1, got 3",
    "from quick import recipe": "failed with ModuleNotFoundError: No module named 'quick'",
    "BROKEN STUDENT": "stage learn cannot be set up: AttributeError: 'Quick' object has no attribute 'nothing'",
}

PROBLEMS = {
    "": "has no function problem()",
    "def problem()": "SyntaxError: expected ':'",
    "def problem():\n    raise ValueError": ":4 failed with ValueError: .",
    "def problem():\n    return 3": "problem() must return a Problem, got a int",
    "def problem():\n    return Generative": "problem() must return a Problem, got a ABCMeta",
    "def problem():\n    return Generative()": "failed with TypeError: Can't instantiate abstract class Generative",
    "class Bare(Problem):\n teacher = source = network = 0\ndef problem():\n return Bare()": "a Bare without name",
}

RECORDS = {
    "": "is not a readable recipe: Expecting value",
    '{"system": "quick.py", "prob': "is not a readable recipe: Unterminated string",
    "limbeck": "is not a readable recipe: Expecting value",
    "[" * 100_000: "is not a readable recipe: maximum recursion depth exceeded",
    "[]": "is not a recipe: it needs system, problem, seed, threads, arguments, settings",
    "{}": "is not a recipe: it needs system, problem, seed, threads, arguments, settings",
    "PICKLE": "is not a readable recipe: 'utf-8' codec can't decode",
    '{"seed": "first"}': "is not a recipe: it needs system",
    '{"threads": 0}': "threads must be at least 1, got 0",
    '{"system": "dmd3"}': "there is no system 'dmd3'",
    '{"problem": "mixture2d"}': "needs a Classification problem, got mixture2d",
    '{"settings": {"stepz": 3}}': "there is no setting 'stepz'; did you mean steps?",
    '{"arguments": {"steps": "many"}}': "steps must be int, got 'many'",
    '{"settings": {"steps": "many"}}': "steps must be int, got 'many'",
    '{"settings": {"steps": NaN}}': "steps must be int, got nan",
    '{"settings": {"optim.default": "Adam(lr=-1)"}}': "lr must be at least 0, got -1",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files and runs, good and bad."""
    folder = tmp_path_factory.mktemp("made") / "faults"
    folder.mkdir()
    shutil.copytree(HERE.parent / "cli", folder.parent / "cli", ignore=shutil.ignore_patterns("__pycache__"))
    quick = (HERE / "quick.py").read_text()
    for name in ("quick.py", "again.py"):
        (folder / name).write_text(quick)
    (folder / "misfit.py").write_text(quick.replace("KD(alpha=0.5)", "SDS()").replace("KD,", "SDS,"))
    (folder / "file").write_text("a file")
    args = ("distill", str(folder / "quick.py"), "--on", str(folder / "quick.py"), "--steps", "4")
    assert main([*args, "--checkpoint-every", "2", "--out", str(folder / "done")]) == 0
    comparisons(folder)
    for name, harm in RUNS.items():
        harm(shutil.copytree(folder / "done", folder / name))
    return folder


def comparisons(folder: Path) -> None:
    """Comparisons that cannot go on: damaged, of another seed, and with a run that was made by itself."""
    for name, text in {
        "damaged": "{",
        "other": json.dumps({"problem": str(folder / "quick.py"), "seed": 1, "settings": {}}),
        "mixed": json.dumps({"problem": str(folder / "quick.py"), "seed": 0, "settings": {}}),
    }.items():
        (folder / name).mkdir()
        (folder / name / "compare.json").write_text(text)
    shutil.copytree(folder / "done", folder / "mixed" / "quick")


def unfinish(run: Path) -> None:
    shutil.rmtree(run / "stages")


def behead(run: Path) -> None:
    (run / "recipe.json").write_bytes(b"")


def state(run: Path) -> Path:
    """The result of a run."""
    return run / "stages" / "learn" / "state.safetensors"


def truncate(run: Path) -> None:
    state(run).write_bytes(state(run).read_bytes()[:-100])


def disguise(run: Path) -> None:
    state(run).write_bytes(pickle.dumps({"weights": [1.0]}))


def disguise_well(run: Path) -> None:
    disguise(run)
    seal(state(run).parent)


def swap(run: Path) -> None:
    """A state of something else, with checksums of its own."""
    shutil.rmtree(run / "stages" / "learn")
    shutil.copytree(run / "checkpoint" / "00-00000002", run / "stages" / "learn")


RUNS: dict[str, Callable[[Path], object]] = {
    "begun": unfinish,
    "headless": lambda run: (run / "recipe.json").unlink(),
    "beheaded": behead,
    "truncated": truncate,
    "disguised": disguise,
    "sealed": disguise_well,
    "swapped": swap,
}


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, with contents."""
    paths = sorted(folder.parent.rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.fixture
def refused(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str, str], None]:
    """Checks one command line: how it is refused, and that nothing has changed on disk."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("COLUMNS", "200")

    def check(line: str, fragment: str) -> None:
        before = tree(made)
        try:
            code = main(shlex.split(line))
        except SystemExit as error:  # the parser of arguments
            code = error.code
        out, err = capsys.readouterr()
        assert code == 2 and "Traceback" not in out + err
        assert fragment in " ".join(re.sub(r"[│╭╮╰╯─]", " ", err).split()), err
        assert re.fullmatch(r"limbeck: \S[^\n]*[.?]\n", err) or "For full helptext" in err, err
        assert tree(made) == before

    return check


def lines() -> dict[str, str]:
    """Every command line, with part of what it is answered."""
    quick = {f"distill quick.py --on quick.py {rest}": text for rest, text in QUICK.items()}
    score = {f"distill ../cli/score.py --on mixture2d {rest}": text for rest, text in SCORE.items()}
    return {**NAMES, **quick, **score, **MORE}


@pytest.mark.parametrize(("line", "fragment"), lines().items(), ids=lambda x: x[-60:])
def test_command_line(refused: Callable[[str, str], None], line: str, fragment: str) -> None:
    refused(line, fragment)


@pytest.mark.parametrize(("text", "fragment"), RECIPES.items(), ids=range(len(RECIPES)))
def test_recipe_file(refused: Callable[[str, str], None], made: Path, text: str, fragment: str) -> None:
    if text == "BROKEN STUDENT":
        text = (made / "again.py").read_text().replace("problem.network()", "problem.nothing()")
    (made / "mine.py").write_text(HEAD * ("return Recipe(stages=()" in text) + text)
    refused("distill mine.py --on quick.py", fragment)


@pytest.mark.parametrize(("text", "fragment"), PROBLEMS.items(), ids=range(len(PROBLEMS)))
def test_problem_file(refused: Callable[[str, str], None], made: Path, text: str, fragment: str) -> None:
    (made / "mine.py").write_text(HEAD + text)
    refused("distill ../cli/score.py --on mine.py", fragment)


@pytest.mark.parametrize(("text", "fragment"), RECORDS.items(), ids=range(len(RECORDS)))
def test_recipe_json(refused: Callable[[str, str], None], made: Path, text: str, fragment: str) -> None:
    record = json.loads((made / "done" / "recipe.json").read_text())
    if text.startswith('{"') and text.endswith("}"):
        changes = json.loads(text)
        settings = {**record["settings"], **changes.pop("settings", {})}
        text = json.dumps({**record, **changes, "settings": settings})
    (made / "mine.json").write_bytes(pickle.dumps(record) if text == "PICKLE" else text.encode())
    refused("distill mine.json --out new", fragment)


@pytest.mark.parametrize("line", ["show dmd3", "distill quick.py --on quick.py --alpha 1.5", "evaluate truncated"])
def test_in_a_process_of_its_own(made: Path, line: str) -> None:
    before = tree(made)
    command = [str(Path(sys.executable).with_name("limbeck")), *shlex.split(line)]
    done = subprocess.run(command, cwd=made, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"limbeck: \S[^\n]*[.?]\n", done.stderr)
    assert tree(made) == before
