"""The command line. Help, tables and unknown names are answered without importing torch."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, OmitSubcommandPrefixes, Positional, arg, subcommand

import limbeck
from limbeck import catalogue, listing
from limbeck.errors import BadSetting, Failed, LimbeckError

Format = Literal["safetensors", "onnx", "diffusers", "lora", "transformers"]
Track = Literal["tensorboard", "wandb", "mlflow", "none"]


Prompts = Annotated[Path | None, arg(help="a text file, one prompt a line, for a pipeline that takes texts")]
Negative = Annotated[str | None, arg(help="what its guidance leads away from; the empty prompt by default")]
Data = Annotated[Path | None, arg(help="for a model of transformers: lines of text, or labelled images")]


def _given(prompts: Path | None, negative: str | None, data: Path | None) -> dict[str, str]:
    """What a folder needs beside it, as far as it was said."""
    said = {"prompts": prompts, "negative": negative, "data": data}
    return {key: str(value) for key, value in said.items() if value is not None}


@dataclass(frozen=True)
class Systems:
    """The table of systems: id, family, recipe or not, last evidence."""

    family: Annotated[str | None, arg(help="only this family")] = None
    json: Annotated[bool, arg(help="print a list of objects")] = False

    def run(self) -> int:
        chosen = catalogue.in_family(self.family) if self.family else catalogue.systems()
        table = [system.row() for system in chosen]
        if self.json:
            print(json.dumps(table, indent=1, ensure_ascii=False))
        else:
            listing.show(table)
        return 0


@dataclass(frozen=True)
class Show:
    """A system's formula, parts, paper, defaults and claim."""

    system: Annotated[Positional[str], arg(help="a system's id, or a Python file with a recipe")]

    def run(self) -> int:
        catalogue.find_recipe(self.system)
        from limbeck.commands import show

        return show(self.system)


@dataclass(frozen=True)
class Distill:
    """The main job: distil a system on a problem. Any setting may follow, as in --objective.critic-steps 3."""

    system: Annotated[Positional[str], arg(help="a system's id, a Python file with a recipe, or a run's recipe.json")]
    on: Annotated[str | None, arg(help="a problem's name, a Python file that makes one, or a model's folder")] = None
    prompts: Prompts = None
    negative: Negative = None
    data: Data = None
    steps: Annotated[int | None, arg(help="ticks; the recipe's own number by default")] = None
    device: Annotated[str | None, arg(help="cpu, cuda, ...; for models in folders a GPU, if there is one")] = None
    checkpoint_every: Annotated[int, arg(help="ticks between checkpoints; 0 writes one only when interrupted")] = 500
    seed: Annotated[int | None, arg(help="of everything random; 0 by default")] = None
    out: Annotated[Path | None, arg(help="the run's folder; runs/SYSTEM-PROBLEM by default")] = None
    resume: Annotated[bool, arg(help="go on with the run in the folder")] = False
    judge: Annotated[int | None, arg(help="samples that the result is judged by; 0 for no figures")] = None
    track: Annotated[Track | None, arg(help="where to show it; TensorBoard by default where that is installed")] = None

    def run(self, settings: dict[str, str]) -> int:
        if not self.system.endswith(".json"):
            catalogue.find_recipe(self.system)
            if self.on is None:
                raise BadSetting(f"distill needs a problem: --on {' or --on '.join(catalogue.problems())}.")
        if self.on is not None:
            catalogue.find_problem(self.on)
        from limbeck.commands import distill

        if self.steps is not None:
            settings = {"steps": str(self.steps), **settings}
        given = _given(self.prompts, self.negative, self.data)
        where = (self.checkpoint_every, self.seed, self.out, self.resume, self.track, self.device)
        return distill(self.system, self.on, settings, *where, given, self.judge)


@dataclass(frozen=True)
class Compare:
    """Systems side by side on one problem: a table and a picture. Any setting may follow; who has it takes it."""

    systems: Annotated[Positional[tuple[str, ...]], arg(help="systems' ids, or Python files with recipes")] = ()
    family: Annotated[str | None, arg(help="all recipes of a family, instead")] = None
    on: Annotated[str | None, arg(help="a problem's name, a Python file that makes one, or a model's folder")] = None
    prompts: Prompts = None
    negative: Negative = None
    data: Data = None
    steps: Annotated[int | None, arg(help="ticks; each recipe's own number by default")] = None
    seed: Annotated[int, arg(help="of everything random")] = 0
    out: Annotated[Path | None, arg(help="where to; runs/compare-PROBLEM or -FAMILY-PROBLEM by default")] = None
    json: Annotated[bool, arg(help="print an object")] = False

    def run(self, settings: dict[str, str]) -> int:
        if bool(self.systems) == (self.family is not None):
            raise BadSetting("compare needs either systems or --family F, and not both.")
        if self.on is None:
            raise BadSetting(f"compare needs a problem: --on {' or --on '.join(catalogue.problems())}.")
        family = catalogue.in_family(self.family) if self.family else ()
        systems = [system.id for system in family if system.path.exists()] or [*dict.fromkeys(self.systems)]
        if not systems:
            raise BadSetting(f"no system of the family {self.family} has a recipe yet.")
        for system in systems:
            catalogue.find_recipe(system)
        catalogue.find_problem(self.on)
        from limbeck.compare import compare

        settings = settings if self.steps is None else {"steps": str(self.steps), **settings}
        name = "-".join(["compare", *([self.family] if self.family else []), Path(self.on).stem])
        given = _given(self.prompts, self.negative, self.data)
        unmade = [system.id for system in family if system.id not in systems]
        return compare(systems, unmade, self.on, settings, self.seed, self.out or Path("runs") / name, self.json, given)


@dataclass(frozen=True)
class Plan:
    """What a run would need: memory, exchange, operations and time of a device. Any setting may follow."""

    system: Annotated[Positional[str], arg(help="a system's id, or a Python file with a recipe")]
    on: Annotated[str | None, arg(help="a problem's name, a Python file that makes one, or a model's folder")] = None
    prompts: Prompts = None
    negative: Negative = None
    data: Data = None
    steps: Annotated[int | None, arg(help="ticks; the recipe's own number by default")] = None
    gpus: Annotated[int, arg(help="so many devices, one process each")] = 1
    tflops: Annotated[float | None, arg(help="10¹² operations a second of a device; else measured here")] = None
    gbps: Annotated[float | None, arg(help="10⁹ bits a second between devices")] = None
    json: Annotated[bool, arg(help="print an object")] = False

    def run(self, settings: dict[str, str]) -> int:
        catalogue.find_recipe(self.system)
        if self.on is None:
            raise BadSetting(f"plan needs a problem: --on {' or --on '.join(catalogue.problems())}.")
        catalogue.find_problem(self.on)
        from limbeck.plan import command

        settings = settings if self.steps is None else {"steps": str(self.steps), **settings}
        given = _given(self.prompts, self.negative, self.data)
        return command(self.system, self.on, settings, self.gpus, self.tflops, self.gbps, self.json, given)


@dataclass(frozen=True)
class Verify:
    """Runs claims, prints figure, bound, pass or fail; exit 1 if any fails."""

    systems: Annotated[Positional[tuple[str, ...]], arg(help="systems' ids")] = ()
    family: Annotated[str | None, arg(help="all recipes of a family")] = None
    all: Annotated[bool, arg(help="all recipes there are")] = False
    seed: Annotated[tuple[int, ...] | None, arg(help="seeds to measure on; from 101 on by default")] = None
    record: Annotated[bool, arg(help="write evidence/")] = False
    json: Annotated[bool, arg(help="print a list of objects")] = False

    def run(self) -> int:
        names = [catalogue.find(name).id for name in self.systems]
        if self.family or self.all:
            chosen = catalogue.in_family(self.family) if self.family else catalogue.systems()
            names += [system.id for system in chosen if system.path.exists()]
        if not names or self.seed == ():
            raise BadSetting("verify needs systems, --family F or --all, and at least one seed.")
        for name in names:
            catalogue.find_recipe(name)
        from limbeck.commands import verify

        return verify(list(dict.fromkeys(names)), self.seed, self.record, self.json)


@dataclass(frozen=True)
class Sample:
    """Samples of a finished run, as a picture or as tensors."""

    folder: Annotated[Positional[Path], arg(name="run", help="a run's folder")]
    out: Annotated[Path | None, arg(help="a .png or .safetensors; RUN/samples/samples.png by default")] = None
    n: Annotated[int, arg(help="how many")] = 100
    seed: Annotated[int, arg(help="of the noise")] = 0

    def run(self) -> int:
        from limbeck.commands import sample

        return sample(self.folder, self.out, self.n, self.seed)


@dataclass(frozen=True)
class Evaluate:
    """A finished run beside its teacher: the same noise, the same judge."""

    folder: Annotated[Positional[Path], arg(name="run", help="a run's folder")]
    n: Annotated[int, arg(help="samples")] = 5000
    seed: Annotated[int, arg(help="of the noise")] = 0
    json: Annotated[bool, arg(help="print an object")] = False

    def run(self) -> int:
        from limbeck.commands import evaluate

        return evaluate(self.folder, self.n, self.seed, self.json)


@dataclass(frozen=True)
class Export:
    """A finished run's student, for use elsewhere."""

    folder: Annotated[Positional[Path], arg(name="run", help="a run's folder")]
    out: Annotated[Path, arg(help="where to, a new folder")]
    to: Annotated[Format, arg(help="onnx; diffusers, lora and transformers for their models")] = "safetensors"

    def run(self) -> int:
        from limbeck.export.command import export

        return export(self.folder, self.out, self.to)


Command = (
    Annotated[Systems, subcommand("systems")]
    | Annotated[Show, subcommand("show")]
    | Annotated[Distill, subcommand("distill")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Plan, subcommand("plan")]
    | Annotated[Verify, subcommand("verify")]
    | Annotated[Sample, subcommand("sample")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Export, subcommand("export")]
)

COMMANDS = ("systems", "show", "distill", "compare", "plan", "verify", "sample", "evaluate", "export")


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _main(argv)
    except Failed as error:
        print(f"limbeck: {error}", file=sys.stderr)
        return 1
    except LimbeckError as error:  # what is wrong with the input, each of several processes finds
        if os.environ.get("RANK", "0") == "0":
            print(f"limbeck: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def _main(argv: list[str]) -> int:
    markers = (OmitSubcommandPrefixes, FlagCreatePairsOff)
    if argv in (["--version"], ["-V"]):
        print(f"limbeck {limbeck.__version__}")
        return 0
    about = "Distil a diffusion model, a network or a data set into a small one."
    if argv and argv[0] not in COMMANDS and not argv[0].startswith("-"):
        raise BadSetting(f"there is no command {argv[0]!r}{catalogue.hint(argv[0], COMMANDS)}")
    if argv and argv[0] in (
        "distill",
        "compare",
        "plan",
    ):  # what this parser does not know may be a setting of the recipe
        command, rest = tyro.cli(
            Command, prog="limbeck", description=about, args=argv, config=markers, return_unknown_args=True
        )  # type: ignore[call-overload]
        assert isinstance(command, Distill | Compare | Plan)
        return command.run(_settings(rest))
    command = tyro.cli(Command, prog="limbeck", description=about, args=argv, config=markers)  # type: ignore[call-overload]
    assert not isinstance(command, Distill | Compare | Plan)
    return command.run()


def _settings(rest: list[str]) -> dict[str, str]:
    """``--objective.critic-steps 3`` or ``--objective.critic-steps=3`` as pairs."""
    values: dict[str, str] = {}
    items = iter(rest)
    for item in items:
        if not item.startswith("--"):
            raise BadSetting(f"{item!r} was not expected; a setting is given as --NAME VALUE.")
        name, equals, value = item[2:].partition("=")
        value = value if equals else next(items, None)
        if value is None:
            raise BadSetting(f"--{name} needs a value.")
        values[name] = value
    return values
