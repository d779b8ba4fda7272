"""One page for each system that has a recipe, and their index; all of it read from the recipe itself."""

import ast
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from limbeck import catalogue, loading
from limbeck.catalogue import System
from limbeck.docs import docstrings
from limbeck.docs.arguments import arguments, brief, default, is_ours, is_part, same, settings_in
from limbeck.docs.family import Tree
from limbeck.docs.markdown import MADE, arxiv, code, escaped, link_to_test, linked, prose, table
from limbeck.docs.records import evidence, number, shown
from limbeck.engine.objective import Objective, Scaled, Sum
from limbeck.engine.recipe import Make, Recipe, Stage
from limbeck.errors import Incompatible
from limbeck.problems.problem import Problem

FAMILIES = {
    "A-comp": "Diffusion models made smaller",
    "A-fast": "Diffusion models made faster",
    "D": "Dataset distillation",
    "F-3d": "Feed-forward 3D",
    "G-adv": "Few-step generation: adversarial",
    "G-app": "Few-step generation: video and other media",
    "G-dist": "Few-step generation: distribution matching",
    "G-guid": "Few-step generation: guidance distilled",
    "G-other": "Few-step generation: other ways",
    "G-pref": "Few-step generation: preferences and rewards",
    "G-traj": "Few-step generation: trajectories",
    "K-arch": "Knowledge distillation: across architectures",
    "K-dense": "Knowledge distillation: dense prediction",
    "K-feat": "Knowledge distillation: features",
    "K-graph": "Knowledge distillation: graphs",
    "K-lm": "Knowledge distillation: language models",
    "K-logit": "Knowledge distillation: logits",
    "K-misc": "Knowledge distillation: other ways",
    "K-multi": "Knowledge distillation: several teachers",
    "K-rel": "Knowledge distillation: relations",
    "K-self": "Knowledge distillation: a network teaches itself",
    "K-theory": "Knowledge distillation: theory",
    "K-vlm": "Knowledge distillation: vision and language",
    "L": "Light and material",
    "N": "Neighbouring work",
    "R": "Radiance fields",
    "S-3d": "Score distillation: shapes",
    "S-4d": "Score distillation: motion",
    "S-edit": "Score distillation: editing",
    "S-obj": "Score distillation: objectives",
    "S-tex": "Score distillation: textures",
}
"""Families of the catalogue, in words."""


@dataclass(frozen=True)
class Entry:
    """A system with its recipe on the problem of its claim, and the text above that recipe."""

    system: System
    recipe: Recipe
    text: docstrings.Doc

    @cached_property
    def parts(self) -> list[Objective]:
        """The objectives of all its stages, summands one by one."""
        return [part for stage in self.recipe.stages if isinstance(stage, Stage) for part in _parts(stage.objective)]

    @cached_property
    def names(self) -> set[str]:
        """The classes of its objectives."""
        return {type(part).__name__ for part in self.parts}


def _parts(objective: Objective) -> Iterator[Objective]:
    """An objective without sums and weights, and those that it wraps."""
    if not isinstance(objective, Sum | Scaled):
        yield objective
    for inner in _inside(objective):
        yield from _parts(inner)


def _inside(objective: Objective) -> list[Objective]:
    """The objectives among an objective's settings."""
    values = vars(objective).values()
    return [one for value in values for one in (value if isinstance(value, tuple) else [value]) if is_part(one)]


def entries() -> list[Entry]:
    """Every system that has a recipe, in the catalogue's order. All share one of each problem, and so its teacher."""
    problems = {name: loading.load_problem(name) for name in catalogue.problems()}
    return [_entry(system, problems) for system in catalogue.systems() if system.path.exists()]


def _entry(system: System, problems: Mapping[str, Problem]) -> Entry:
    module = sys.modules[loading.function(system.path, "recipe").__module__]
    return Entry(system, _recipe(system.id, problems), docstrings.parse(module.__doc__ or ""))


def _recipe(name: str, problems: Mapping[str, Problem]) -> Recipe:
    """A recipe on the problem of its claim, which any problem that fits it tells."""
    for problem in problems.values():
        with suppress(Incompatible):
            on = loading.load_recipe(name, problem).claim.on
            return loading.load_recipe(name, problems[on])
    raise Incompatible(name, need="a problem that it fits", got="none that is built in")


def links(found: Sequence[Entry]) -> dict[str, str]:
    """The page of each system and objective; see `home`."""
    names = dict.fromkeys(name for one in found for name in sorted(one.names))
    pages = {name: f"{home(name, found).system.id}.md" for name in names}
    return pages | {one.system.id: f"{one.system.id}.md" for one in found}


def home(name: str, found: Sequence[Entry]) -> Entry:
    """Whose page tells most of an objective: a system of its name, or else that with it and the fewest others."""

    def rank(one: Entry) -> tuple[bool, int, int, str]:
        named = one.system.id.replace("-", "").startswith(name.lower())
        return not named, len(one.names), one.system.year, one.system.id

    return min((one for one in found if name in one.names), key=rank)


def page(entry: Entry, found: Sequence[Entry], tree: Tree, targets: Mapping[str, str]) -> str:
    """The page of a system.

    Args:
        entry: the system.
        found: all systems with a page.
        tree: the family tree.
        targets: `links` of all systems.
    """
    system, recipe = entry.system, entry.recipe
    paper = [recipe.paper.authors, *([arxiv(recipe.paper.arxiv)] if recipe.paper.arxiv else [])]
    family = FAMILIES[system.family]
    lines = [
        MADE,
        f"# {escaped(system.title)}",
        " · ".join([code(system.id), *paper, f"[{family}](README.md#{anchor(family)})"]),
        *map(_paragraph, [entry.text.line, *entry.text.body]),
        "## Objectives" if len(entry.names) > 1 else "## Objective",
        *_objectives(entry),
        "## Stages",
        _stages(recipe),
        "## Relation to others",
        *_relations(entry, found, tree, targets),
        "## Run it",
        *_run(entry),
        "## Evidence",
        *_evidence(entry),
    ]
    return "\n\n".join(lines) + "\n"


def _paragraph(text: str) -> str:
    """A paragraph of a docstring; a formula of its own stays as it is."""
    return f"```\n{textwrap.dedent(text)}\n```" if text.startswith("    ") else prose(text)


def anchor(title: str) -> str:
    """How a code host names a heading in links.

    >>> anchor("Score distillation: textures")
    'score-distillation-textures'
    """
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")


# Objectives


def _objectives(entry: Entry) -> Iterator[str]:
    for name in dict.fromkeys(type(part).__name__ for part in entry.parts):
        parts = [part for part in entry.parts if type(part).__name__ == name]
        doc = docstrings.of(kind := type(parts[0]))
        yield f"### {name}"
        yield from map(_paragraph, [doc.line, *doc.body])
        told = [*_functions(kind), *dict.fromkeys(type(part) for one in parts for part in settings_in(one))]
        if lines := [f"- {code(one.__name__)}: {prose(line)}" for one in told if (line := docstrings.of(one).line)]:
            yield "\n".join(lines)
        if rows := [*arguments(parts)] if dataclasses.is_dataclass(kind) else []:
            yield table(["argument", "here", "by default", "meaning"], rows)
        if doc.source:
            yield f"Source: {prose(doc.source)}"


@cache
def _functions(kind: type) -> tuple[Callable[..., Any], ...]:
    """The pure losses that an objective is made of: public functions of the objectives' room that its methods name."""
    found: dict[Callable[..., Any], None] = {}
    for cls in kind.__mro__:
        if not is_ours(cls):
            continue
        space = vars(sys.modules[cls.__module__])
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(cls)))):
            value = space.get(node.id) if isinstance(node, ast.Name) else None
            if inspect.isfunction(value) and _is_loss(value):
                found[value] = None
    return tuple(found)


def _is_loss(function: Callable[..., Any]) -> bool:
    public = not function.__name__.startswith("_") and bool(function.__doc__)
    return public and is_ours(function)


# Stages


def _stages(recipe: Recipe) -> str:
    """A row for each setting and a column for each stage; settings that every stage has by default are left out."""
    columns = [_made(stage) if isinstance(stage, Make) else _trained(stage) for stage in recipe.stages]
    rows = dict.fromkeys(name for column in columns for name in column)
    body = [[name, *(column.get(name, "") for column in columns)] for name in rows]
    return table(["", *(code(stage.name) for stage in recipe.stages)], body)


def _made(stage: Make) -> dict[str, str]:
    return {"makes": _told(stage.make)}


def _trained(stage: Stage) -> dict[str, str]:
    rows = {
        "steps": f"{stage.steps}",
        "batch": f"{stage.batch}",
        "student": _told(stage.student),
        "objective": names(stage.objective),
    }
    usual = {field.name: default(field) for field in dataclasses.fields(Stage)}
    rows |= {name: _told(value) for name in ("teacher", "data") if (value := getattr(stage, name)) is not usual[name]}
    learners: dict[str, list[str]] = {}
    for role, optim in stage.optim.items():
        learners.setdefault(brief(optim), []).append(role)
    rows["optimisers"] = "; ".join(
        (f"{', '.join(roles)}: " if roles != ["default"] else "") + code(optim) for optim, roles in learners.items()
    )
    rows["EMA of the student"] = code(brief(stage.ema)) if stage.ema else "none"
    others = {field.name for field in dataclasses.fields(Stage)} - {"name", "objective", "optim", "ema", *rows}
    for name in sorted(others - {"teacher", "data"}):
        if not same(getattr(stage, name), usual[name]):
            rows[name] = code(brief(getattr(stage, name)))
    return rows


def names(objective: Objective) -> str:
    """An objective as a formula of names.

    >>> from limbeck import DMD, GAN, SDS
    >>> names(0.5 * (DMD() + 0.3 * GAN()) + SDS())
    '0.5 · (DMD + 0.3 · GAN) + SDS'
    """
    inside = " + ".join(map(names, _inside(objective)))
    if isinstance(objective, Sum):
        return inside
    if isinstance(objective, Scaled):
        return f"{brief(objective.weight)} · " + (f"({inside})" if isinstance(objective.objective, Sum) else inside)
    return type(objective).__name__ + (f"({inside})" if inside else "")


def _told(function: Callable[..., Any]) -> str:
    """A function of a stage, by name and by the first line of its docstring."""
    line = docstrings.of(function).line if inspect.isfunction(function) else ""
    return code(brief(function)) + (f": {prose(line)}" if line else "")


# Relations


def _relations(entry: Entry, found: Sequence[Entry], tree: Tree, targets: Mapping[str, str]) -> Iterator[str]:
    pages = {name: target for name, target in targets.items() if target != f"{entry.system.id}.md"}
    edges = tree.of(entry.names | {entry.system.id})
    lines = [
        f"- {linked(edge.start, pages)} becomes {linked(edge.end, pages)} ({escaped(edge.when)}), "
        f"as {link_to_test(edge.test, '../..')} shows."
        for edge in edges
    ]
    for name in sorted(entry.names):
        others = [linked(one.system.id, pages) for one in found if name in one.names and one.system != entry.system]
        lines += [f"- {name} is also in {', '.join(others)}."] if others else []
    if lines:
        yield "\n".join(lines)
    tell = "All identities that are tested" if edges else "No identity of its objectives is tested yet; those that are"
    yield f"{tell}: [the family tree](../family-tree.md)."


# Running and evidence


def _run(entry: Entry) -> Iterator[str]:
    name, on = entry.system.id, entry.recipe.claim.on
    yield f"```\nlimbeck distill {name} --on {on}\n```"
    yield (
        "```python\n"
        "from limbeck.engine import run_recipe\n"
        "from limbeck.loading import load_problem, load_recipe\n\n"
        f'problem = load_problem("{on}")\n'
        f'recipe = load_recipe("{name}", problem)\n'
        "student = run_recipe(recipe, problem, seed=0).student\n"
        "```"
    )


def _evidence(entry: Entry) -> Iterator[str]:
    name, claim, found = entry.system.id, entry.recipe.claim, evidence(entry.system)
    yield f"Claim, on `{claim.on}`: {prose(claim.text)}."
    if not found:
        yield f"Not measured yet; `limbeck verify {name} --record` does it."
        return
    seeds = found["seeds"]
    yield table(
        ["", "mean ± spread", *(f"seed {seed}" for seed in seeds), "bound"],
        [["figure", f"**{shown(found)}**", *map(number, seeds.values()), f"≤ {number(found['bound'])}"]],
    )
    verdict = "Passed" if found["passed"] else "**Failed**"
    machine = escaped(str(found["machine"]))
    yield f"{verdict} on {found['when'][:10]}, on `{found['problem']}`, in {found['seconds']:.0f} s ({machine})."
    if found["stale"]:
        yield f"**Stale**: the code has changed since; `limbeck verify {name} --record` measures it again."
    else:
        yield f"It speaks of the code as it stands; `limbeck verify {name}` measures it again."


# The index


def index(found: Sequence[Entry]) -> str:
    """The systems that have a page, by family."""
    total = len(catalogue.systems())
    lines = [
        MADE,
        "# Systems",
        f"{len(found)} of the {total} systems in the catalogue have a recipe. A figure is a ratio to an honest "
        "baseline, which the system's page names; smaller is better, and it has to stay below its bound. What the "
        "objectives have to do with each other is on [the family tree](../family-tree.md).",
    ]
    for family, title in sorted(FAMILIES.items(), key=lambda pair: pair[1]):
        if rows := sorted(_row(entry) for entry in found if entry.system.family == family):
            lines += [f"## {title}", table(["system", "", "paper", "evidence"], rows)]
    return "\n\n".join(lines) + "\n"


def _row(entry: Entry) -> list[str]:
    system, paper = entry.system, entry.recipe.paper
    line = entry.text.line.partition(" arXiv ")[0]
    link = f"[{paper.authors}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else paper.authors
    return [f"[{system.id}]({system.id}.md)", prose(line), link, _figure(evidence(system))]


def _figure(found: Mapping[str, Any] | None) -> str:
    if not found:
        return "not measured yet"
    verdict = "" if found["passed"] else ", **failed**"
    stale = ", stale" if found["stale"] else ""
    return f"{shown(found)} (≤ {number(found['bound'])}) on {found['problem']}{verdict}{stale}"
