"""Every recipe file, by enumeration: it is in the catalogue, builds on every problem that fits, runs and resumes."""

import ast
import copy
import math
from itertools import islice
from pathlib import Path

import pytest
from torch import nn

from limbeck import catalogue
from limbeck.engine import Stage
from limbeck.loading import default_problem, load_recipe
from tests.suite.cases import unequal
from tests.suite.recipes import FILES, SYSTEMS, TICKS, fits, problem, session

FITS = list(fits())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_file_is_a_row_of_the_catalogue(path: Path) -> None:
    assert path in SYSTEMS.values(), f"{path} is no system's recipe: name it by its id, in the folder of its family"


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_recipe_names_paper_and_claim(system: str) -> None:
    """And is measured on a built-in problem that it runs on; its file says what the system is, and where from."""
    recipe = load_recipe(system, default_problem(system))
    said = ast.get_docstring(ast.parse(SYSTEMS[system].read_text())) or ""
    assert recipe.paper.arxiv in said and recipe.paper.authors
    assert recipe.claim.text and math.isfinite(recipe.claim.bound) and callable(recipe.claim.check)
    assert (system, recipe.claim.on) in FITS


def results(folder: Path, system: str, name: str) -> dict[str, nn.Module]:
    """The small recipe run to its end: students by stage."""
    run = session(system, name, folder)
    for _, step in run:
        assert all(map(math.isfinite, step.losses.values())) and not step.skipped
    return run.prior.students


@pytest.mark.parametrize(("system", "name"), FITS, ids=str)
def test_a_recipe_runs_and_resumes(system: str, name: str, tmp_path: Path) -> None:
    """Every stage trains its student and not the teacher; stopped in each of them, it ends with the same bits."""
    teacher = copy.deepcopy(problem(name).teacher.state_dict())
    whole = results(tmp_path / "whole", system, name)
    assert unequal(problem(name).teacher.state_dict(), teacher) == []
    stages = [stage for stage in session(system, name, tmp_path / "new").recipe.stages if isinstance(stage, Stage)]
    assert list(whole) == [stage.name for stage in stages]
    for i, _ in enumerate(stages):
        run = session(system, name, tmp_path / "cut")
        _, last = list(islice(run, 1 if i == 0 else TICKS))[-1]  # the end of one stage and the start of the next
        assert last.i == 1
        run.checkpoint()
    cut = results(tmp_path / "cut", system, name)
    assert {stage: unequal(cut[stage].state_dict(), whole[stage].state_dict()) for stage in whole} == {
        stage: [] for stage in whole
    }


def test_every_problem_has_a_recipe() -> None:
    assert {name for _, name in FITS} == set(catalogue.problems())
