"""Tables, help and evidence: what other programs read, when evidence is stale, and that all this needs no torch."""

import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limbeck import catalogue, cli
from limbeck.cli import main

HERE = Path(__file__).parent
QUICK = (HERE.parent / "faults" / "quick.py").read_text()
ROW = {"id": str, "title": str, "family": str, "recipe": bool, "evidence": dict | None}
EVIDENCE = {
    "figure": float | int,
    "bound": float | int,
    "passed": bool,
    "spread": float | int,
    "problem": str,
    "when": str,
    "stale": bool,
}
LIMBECK = Path(sys.executable).with_name("limbeck")


def table(capsys: pytest.CaptureFixture[str], *args: str) -> list[dict[str, Any]]:
    """``systems --json``."""
    assert main(["systems", "--json", *args]) == 0
    return json.loads(capsys.readouterr().out)


def test_systems_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """A contract: exactly these keys, of these types."""
    rows = table(capsys)
    assert len(rows) >= 353 and len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert list(row) == list(ROW) and all(isinstance(row[key], kind) for key, kind in ROW.items())
        if row["evidence"] is not None:
            assert row["recipe"] and list(row["evidence"]) == list(EVIDENCE)
            assert all(isinstance(row["evidence"][key], kind) for key, kind in EVIDENCE.items())
    assert any(row["recipe"] for row in rows)


def test_one_family(capsys: pytest.CaptureFixture[str]) -> None:
    rows = table(capsys, "--family", "G-dist")
    assert {row["family"] for row in rows} == {"G-dist"} and "dmd2" in {row["id"] for row in rows}


def test_systems_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    rows = table(capsys)
    assert main(["systems"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"{len(rows)} systems, {sum(row['recipe'] for row in rows)} with a recipe, ")


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_word_of_the_table_is_broken(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = table(capsys)
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["systems"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width and (lines[0].split()[:2] == ["system", "title"]) == (width == 200)
    shown = Counter(word for line in lines for word in re.split(r"[\s,]+", line))
    for row in rows:
        found = row["evidence"]
        words = [row["id"], row["family"], *re.split(r"[\s,]+", row["title"])]
        words += [found["problem"], found["when"][:10], f"{found['bound']:g}"] if found else []
        assert all(shown[word] for word in words), row["id"]


@pytest.mark.parametrize("system", [s.id for s in catalogue.systems() if s.path.exists()] + [str(HERE / "score.py")])
def test_show(capsys: pytest.CaptureFixture[str], system: str) -> None:
    """Its formula, parts, paper, claim and defaults."""
    assert main(["show", system]) == 0
    out = capsys.readouterr().out
    assert "\nPaper: " in out and "\nClaim, on " in out and "setting" in out
    assert re.search(r"\n (\S+\.)?optim\.", out)


# Without torch

QUICKLY = [
    (["--help"], 0),
    ([], 2),
    (["distill", "--help"], 0),
    (["systems"], 0),
    (["systems", "--json"], 0),
    (["systems", "--family", "nothing"], 2),
    (["show", "dmd3"], 2),
    (["distil", "dmd2"], 2),
    (["distill", "dmd2"], 2),
    (["distill", "dmd3", "--on", "digits"], 2),
    (["distill", "dmd2", "--on", "nowhere"], 2),
    (["compare"], 2),
    (["compare", "dmd2"], 2),
    (["compare", "dmd3", "--on", "digits"], 2),
    (["compare", "dmd2", "--on", "nowhere"], 2),
    (["compare", "dmd2", "--family", "G-dist", "--on", "digits"], 2),
    (["compare", "--family", "nothing", "--on", "digits"], 2),
    (["verify"], 2),
    (["verify", "dmd3"], 2),
    (["sample"], 2),
]


def test_no_torch_for_help_tables_and_unknown_names() -> None:
    """All of them in one new process, which must not have imported it at the end."""
    script = f"""
import sys
from limbeck.cli import main
for args, code in {QUICKLY!r}:
    try:
        found = main(args)
    except SystemExit as error:
        found = error.code or 0
    assert found == code, (args, found)
slow = {{"torch", "numpy", "sklearn", "matplotlib"}} & set(sys.modules)
assert not slow, slow
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command() -> None:
    done = subprocess.run([LIMBECK, "--help"], capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"})
    assert done.returncode == 0 and all(name in done.stdout for name in cli.COMMANDS)


def test_a_reader_that_leaves() -> None:
    """``limbeck systems | head -1``: nobody is told about it."""
    pipe = f"set -o pipefail; {LIMBECK} systems --json | head -1"
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[\n", "")


# Evidence


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A catalogue of one system, on one problem, without evidence."""
    (tmp_path / "recipes" / "k_logit").mkdir(parents=True)
    (tmp_path / "evidence").mkdir()
    row = '[[system]]\nid = "quick"\ntitle = "Quick"\nyear = 2025\nfamily = "K-logit"\npaper = ""\n'
    (tmp_path / "recipes" / "catalogue.toml").write_text(row)
    (tmp_path / "quick.py").write_text(QUICK)
    recipe(tmp_path)
    monkeypatch.setattr(catalogue, "RECIPES", tmp_path / "recipes")
    monkeypatch.setattr(catalogue, "EVIDENCE", tmp_path / "evidence")
    monkeypatch.setattr(catalogue, "problems", lambda: {"quick": tmp_path / "quick.py"})
    catalogue.systems.cache_clear()
    yield tmp_path
    catalogue.systems.cache_clear()


def recipe(small: Path, *changes: tuple[str, str]) -> None:
    """Writes the system's recipe."""
    text = QUICK
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (small / "recipes" / "k_logit" / "quick.py").write_text(text)


def verify(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, list[dict[str, Any]]]:
    """``verify --json``."""
    code = main(["verify", *args, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("chosen", [("quick",), ("--all",), ("--family", "K-logit"), ("quick", "--all")])
def test_verify(small: Path, capsys: pytest.CaptureFixture[str], chosen: tuple[str, ...]) -> None:
    """A contract as well; the figure is the mean over seeds, and nothing is recorded unasked."""
    code, (row,) = verify(capsys, *chosen, "--seed", "3", "4")
    assert code == 0 and list(row) == ["id", "figure", "bound", "passed", "seconds"]
    assert row["id"] == "quick" and row["passed"] is True and 0 <= row["figure"] <= row["bound"] == 0.9
    assert [*(small / "evidence").iterdir()] == []


def test_verify_fails_where_one_seed_fails(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A claim holds on every seed, not on average."""
    recipe(small, ("lambda trial: 1 - trial.problem.accuracy(trial.student)", "lambda trial: float(trial.seed == 4)"))
    code, (row,) = verify(capsys, "quick", "--seed", "3", "4")
    assert (code, row["figure"], row["passed"]) == (1, 0.5, False)
    assert main(["verify", "quick", "--seed", "3", "4"]) == 1
    assert "quick: 0.5 ± 0.71 (≤ 0.9), FAILED, " in capsys.readouterr().out


def test_verify_of_a_run_that_diverges(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It fails, is said so in JSON by its standard, and can be recorded and shown."""
    recipe(small, ("rate: float = 1e-2", "rate: float = 1e30"))
    code, (row,) = verify(capsys, "quick", "--seed", "0", "1", "--record")
    assert (code, row["figure"], row["passed"]) == (1, None, False)
    evidence = table(capsys)[0]["evidence"]
    assert (evidence["figure"], evidence["passed"]) == (None, False)
    assert main(["systems"]) == 0 and "inf failed" in capsys.readouterr().out


def test_recorded_evidence(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is in the table, says where it comes from, and goes stale with the sources it names."""
    assert verify(capsys, "quick", "--seed", "0", "1", "--record")[0] == 0
    path = small / "evidence" / "quick.json"
    record = json.loads(path.read_text())
    assert {"commit", "when", "machine", "digest", "sources", "seeds", "claim"} <= set(record)
    assert record["sources"] == ["objectives/networks/logits.py"]
    row = table(capsys)[0]
    assert list(row["evidence"]) == list(EVIDENCE) and row["evidence"]["stale"] is False
    assert main(["systems"]) == 0 and "(stale)" not in capsys.readouterr().out
    path.write_text(json.dumps({**record, "digest": "0" * 16}))
    assert table(capsys)[0]["evidence"]["stale"] is True
    assert main(["systems"]) == 0 and "1 systems, 1 with a recipe, 1 measured." in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", '{"figure": 1.0}', '{"figure": 1.0'])
def test_damaged_evidence(small: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (small / "evidence" / "quick.json").write_text(text)
    assert main(["systems"]) == 2
    err = capsys.readouterr().err
    assert (
        err.startswith(f"limbeck: {small}/evidence/quick.json is not a record of evidence: ") and err.count("\n") == 1
    )


CODE = '''"""A module."""

import math


class Objective:
    """What it is."""

    weight: float = 0.5

    def loss(self, x: float) -> float:
        """What it does."""
        return self.weight * math.sin(x)  # a sine
'''


@pytest.mark.parametrize(
    ("old", "new", "stale"),
    [
        ("A module.", "Another text.", False),
        ('        """What it does."""\n', "", False),
        ("  # a sine", "", False),
        ("self.weight * math.sin(x)", "(self.weight\n            * math.sin(x))", False),
        ("0.5", "0.50", False),
        ("0.5", "0.6", True),
        ("math.sin", "math.cos", True),
        ("weight: float = 0.5", "weight: float = 0.5\n    other: int = 1", True),
        ("x: float", "x: int", True),
        ("import math", "import cmath as math", True),
    ],
)
def test_what_makes_evidence_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, stale: bool
) -> None:
    """Code does; docstrings, comments and layout do not."""
    monkeypatch.setattr(catalogue, "PACKAGE", tmp_path)
    digests = []
    for text in (CODE, CODE.replace(old, new)):
        (tmp_path / "part.py").write_text(text)
        catalogue._shape.cache_clear()
        digests.append(catalogue.digest(["part.py"]))
    assert CODE.replace(old, new) != CODE and (digests[0] != digests[1]) == stale


@pytest.mark.parametrize(("old", "new", "stale"), [("return 1", "return 2", True), ("return 3", "return 4", False)])
def test_of_a_shared_file_the_definitions_in_use_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, stale: bool
) -> None:
    """Those that are asked for, and those that they need; others may come, change and go."""
    text = "def inner():\n    return 1\n\ndef used():\n    return inner()\n\ndef other():\n    return 3\n"
    assert catalogue.needed(ast.parse(text), {"used"}) == {"inner", "used"}
    monkeypatch.setattr(catalogue, "PACKAGE", tmp_path)
    digests = []
    for code in (text, text.replace(old, new)):
        (tmp_path / "part.py").write_text(code)
        catalogue._shape.cache_clear()
        digests.append(catalogue.digest(["part.py::inner,used"]))
    assert (digests[0] != digests[1]) == stale


def test_a_source_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or moved to another name."""
    monkeypatch.setattr(catalogue, "PACKAGE", tmp_path)
    catalogue._shape.cache_clear()
    (tmp_path / "part.py").write_text(CODE)
    (tmp_path / "moved.py").write_text(CODE)
    assert len({catalogue.digest([name]) for name in ("part.py", "moved.py", "gone.py")}) == 3
