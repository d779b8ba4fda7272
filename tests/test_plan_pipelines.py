"""Plans of pipelines of every style from configurations alone: no weights, no encoders, no prompts."""

import json
import shutil
from pathlib import Path

import pytest

from limbeck import cli, loading
from limbeck.bridges import Pipeline
from limbeck.engine.loop import Run
from limbeck.engine.recipe import Prior, Stage
from limbeck.evaluate.memory import size_of
from limbeck.evaluate.needs import needs
from limbeck.rng import Rng
from limbeck.tree import Tree, tree_leaves
from tests.planned import cycle, used

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests import tiny

STYLES = ("stable_diffusion_xl", "stable_diffusion_3", "flux", "pixart", "sana", "dit")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flux has no size of its own."""
    monkeypatch.setattr("limbeck.bridges.conditions.PACKED", 16)


def start(on: Path, given: dict[str, str], *, weights: bool) -> Run:
    problem = loading.load_problem(str(on), given, weights=weights)
    assert isinstance(problem, Pipeline)
    guided = {"objective.guidance": "CFG(scale=3.0)"} if problem.guidable else {}
    recipe = loading.load_recipe("sid", problem, {"batch": "2", **guided})
    problem.asked_by(recipe)
    stage = recipe.stages[0]
    assert isinstance(stage, Stage)
    return stage.start(problem, Prior(Path("none")), 0)


def bare(folder: Path, to: Path) -> Path:
    """A pipeline's configurations: no weights, no tokenizers."""
    return Path(shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer*")))


@pytest.mark.parametrize("style", STYLES)
def test_memory_of_a_tick_by_configurations_alone(style: str, tmp_path: Path) -> None:
    getattr(tiny, style)(tmp_path / "whole")
    (tmp_path / "prompts.txt").write_text("a red fox\nan owl at night\n")
    given = {} if style == "dit" else {"prompts": str(tmp_path / "prompts.txt")}
    planned = start(bare(tmp_path / "whole", tmp_path / "bare"), {}, weights=False)
    found = needs(planned)
    run = start(tmp_path / "whole", given, weights=True)
    mine, theirs = (one.source.take(2, run_rng(one))["cond"] for one in (planned, run))
    assert shapes(mine) == shapes(theirs)
    assert found.total == pytest.approx(used(run, cycle(run)), rel=0.1)


def test_shards_by_configurations_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.dit(tmp_path / "whole")
    folder = bare(tmp_path / "whole", tmp_path / "bare")
    settings = ["--batch", "2", "--rank", "1", "--targets", "to_q", "--shard", "true", "--gpus", "2"]
    assert cli.main(["plan", "sid", "--on", str(folder), *settings, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["stages"]
    one, sizes = size_of(loading.load_problem(str(folder), weights=False).teacher.parameters()), found["parameters"]
    assert found["shards"] and sizes["teacher"] == pytest.approx(one / 2, rel=0.1)
    assert sizes["student"] + sizes["critic"] < 0.2 * sizes["teacher"]  # one base, counted once


def run_rng(run: Run) -> Rng:
    return Rng((*run.seed, "shapes"))


def shapes(cond: Tree) -> list[object]:
    return [(tuple(x.shape), x.dtype) for x in tree_leaves(cond)]


def test_the_command_needs_no_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.stable_diffusion(tmp_path / "whole")
    folder = bare(tmp_path / "whole", tmp_path / "bare")
    assert cli.main(["plan", "sid", "--on", str(folder), "--batch", "2"]) == 0
    assert "memory is planned, without values" in capsys.readouterr().out
    assert cli.main(["distill", "sid", "--on", str(folder), "--out", str(tmp_path / "run")]) == 2
    assert "--prompts" in capsys.readouterr().err
