"""A recipe under way in a folder: stages in order, checkpoints, and resuming to the same bits."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile
from math import isfinite
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors import SafetensorError
from torch import nn

from limbeck.engine.checkpoint import is_whole, new_folder, read_state, write_folder, writing
from limbeck.engine.loop import Run, Step
from limbeck.engine.ranks import any_of, leads, meet
from limbeck.engine.recipe import Make, Prior, Problem, Recipe, Stage, Trial
from limbeck.errors import BadFile, BadSetting, Diverged, Failed, LimbeckError

KEPT = 2
"""Checkpoints that stay on disk: the newest, and the one before in case the newest is damaged."""

MOMENTS = (0.0, 0.1, 0.25, 0.5, 1.0)
"""When a stage shows its student, as shares of its ticks."""

Watch = Callable[[int, int, nn.Module], None]
"""(stage, ticks done in it, student so far) → None; leaves the student and all random numbers as they are."""


class Session:
    """A recipe on a problem, in a folder: an iterable of (stage, step).

    Of several processes that run it together, all read the folder and the first one writes it.

    Args:
        recipe: what to run.
        problem: on what.
        folder: where ``metrics.jsonl``, ``checkpoint/`` and ``stages/`` go; it need not exist.
        seed: of everything random.
        device: where networks run; where they are by default.
        checkpoint_every: ticks between checkpoints; 0 writes one only when stopped.
        say: called with one sentence when something happened that a user should know.
        watch: called at the `MOMENTS` of every stage.
    """

    def __init__(
        self,
        recipe: Recipe,
        problem: Problem,
        folder: Path,
        *,
        seed: int = 0,
        device: torch.device | None = None,
        checkpoint_every: int = 0,
        say: Callable[[str], None] = lambda text: None,
        watch: Watch = lambda stage, i, student: None,
    ):
        self.recipe, self.problem, self.folder, self.seed = recipe, problem, folder, seed
        self.device, self.checkpoint_every, self.say, self.watch = device, checkpoint_every, say, watch
        self.prior = Prior(folder / "stages")
        self.stopping = False
        self._index, self._state = self._latest()
        self.run = self._open(self._index)  # the first stage is checked before anything is written

    def _latest(self) -> tuple[int, dict[str, Any] | None]:
        """The stage to go on with, and its state if there is a whole checkpoint of it."""
        index = next((i for i, s in enumerate(self.recipe.stages) if not self._done(s)), len(self.recipe.stages))
        for stage in self.recipe.stages[:index]:
            self._recall(stage)
        for path in sorted((self.folder / "checkpoint").glob("[0-9][0-9]-*"), reverse=True):
            if not is_whole(path):
                self.say(f"checkpoint {path.name} is damaged; the one before it is used, if there is one.")
            elif int(path.name.split("-")[0]) == index:
                return index, read_state(path)
        return index, None

    def _done(self, stage: Stage | Make) -> bool:
        folder = self.prior.folder(stage.name)
        whole = is_whole(folder)
        if folder.exists() and not whole:
            self.say(f"the result of stage {stage.name} is damaged; it is made again.")
        return whole

    def _recall(self, stage: Stage | Make) -> None:
        if isinstance(stage, Stage):
            memory = {name: replace(one, offload=False) for name, one in stage.memory.items()}
            run = self._start(replace(stage, shard=False, memory=memory))  # results are read, too
            self._load(run.load_result, read_state(self.prior.folder(stage.name)))
            self.prior.students[stage.name] = run.student.eval()

    def _open(self, index: int) -> Run | None:
        if index == len(self.recipe.stages) or isinstance(stage := self.recipe.stages[index], Make):
            return None
        run = self._start(stage)
        if self._state is not None:
            self._load(run.load_state_dict, self._state)
            self._state = None
        return run

    def _start(self, stage: Stage) -> Run:
        try:
            return stage.start(self.problem, self.prior, self.seed, self.device)
        except LimbeckError:
            raise
        except Exception as error:  # whatever a user's parts do wrong, and what torch says about a setting
            text = " ".join(str(error).split())
            raise BadSetting(f"stage {stage.name} cannot be set up: {type(error).__name__}: {text}.") from error

    def _load(self, load: Callable[[Mapping[str, Any]], object], state: Mapping[str, Any]) -> None:
        try:
            load(state)
        except (RuntimeError, KeyError) as error:
            raise BadFile(f"{self.folder} holds a state of other parts than its recipe and problem make.") from error

    @property
    def position(self) -> tuple[int, int]:
        """(stage, ticks done in it)."""
        return self._index, self.run.i if self.run else 0

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return self._index == len(self.recipe.stages)

    @property
    def trial(self) -> Trial:
        """The finished result."""
        return Trial(self.recipe, self.problem, self.student, self.prior, self.seed)

    @property
    def student(self) -> nn.Module:
        """The result of the last stage."""
        return self.prior.student(self.recipe.stages[-1].name)

    def __iter__(self) -> Iterator[tuple[Stage, Step]]:
        """Runs to the end, or until ``stopping`` is set; then a checkpoint is written."""
        meet()  # all have read the folder
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with self._metrics() as metrics:
            while not self.finished and not self.stopping:
                stage = self.recipe.stages[self._index]
                if isinstance(stage, Make):
                    self._make(stage)
                else:
                    yield from self._train(stage, metrics)

    def _make(self, stage: Make) -> None:
        if leads():
            with new_folder(self.prior.folder(stage.name)) as folder, _telling(f"stage {stage.name}"):
                stage.make(self.problem, self.prior, folder, self.seed)
        meet()
        self._index += 1

    def _train(self, stage: Stage, metrics: TextIO) -> Iterator[tuple[Stage, Step]]:
        self.run = run = self.run or self._open(self._index)
        assert run is not None
        moments = {round(share * run.steps) for share in MOMENTS}
        if run.i == 0:
            self.watch(self._index, 0, run.whole())
        while run.i < run.steps:
            with _telling(f"stage {stage.name}, tick {run.i},"):
                step = run.tick()
                self.stopping = any_of(self.stopping, run.device)
            if run.i in moments:  # before the checkpoint: a moment that was passed has been shown
                self.watch(self._index, run.i, run.whole())
            with writing(self.folder / "metrics.jsonl"):
                metrics.write(_line(stage, step))
            yield stage, step
            due = self.checkpoint_every and step.i % self.checkpoint_every == 0
            if (due or self.stopping) and step.i < run.steps and run.healthy:
                self._flush(metrics)
                self.checkpoint()
            if self.stopping and step.i < run.steps:
                return
        if not run.healthy:
            raise Diverged(f"stage {stage.name} ended with parameters or updates that are not finite.")
        self._flush(metrics)
        student = run.whole().eval()
        if leads():
            write_folder(self.prior.folder(stage.name), state=run.result_state(student))
        meet()
        self.prior.students[stage.name] = student
        self._index, self.run = self._index + 1, None

    def checkpoint(self) -> None:
        """Writes the state of the stage under way, and removes all checkpoints but the newest few."""
        assert self.run is not None
        state = self.run.state_dict()  # by all: shards are put together
        if not leads():
            return
        where = self.folder / "checkpoint"
        write_folder(where / f"{self._index:02d}-{self.run.i:08d}", state=state)
        for old in (*where.glob(".*.partial"), *sorted(where.glob("[0-9][0-9]-*"))[:-KEPT]):
            shutil.rmtree(old)

    @contextmanager
    def _metrics(self) -> Generator[TextIO]:
        """metrics.jsonl, cut back to what happened before the checkpoint that we go on from."""
        path = self.folder / "metrics.jsonl" if leads() else Path(os.devnull)
        with writing(path):
            if leads():
                path.touch()
                lines = path.read_bytes().splitlines(keepends=True)
                os.truncate(path, sum(map(len, takewhile(self._has_happened, lines))))
            file = path.open("a")
        try:
            yield file
        finally:
            with writing(path):  # on a full disk, what could not be flushed fails again
                file.close()

    def _flush(self, metrics: TextIO) -> None:
        with writing(self.folder / "metrics.jsonl"):
            metrics.flush()
            if leads():
                os.fsync(metrics.fileno())

    def _has_happened(self, line: bytes) -> bool:
        names = [stage.name for stage in self.recipe.stages]
        try:
            record = json.loads(line)
            place = names.index(record["stage"]), int(record["i"])
        except (ValueError, KeyError, TypeError):
            return False
        return line.endswith(b"\n") and place <= self.position


@contextmanager
def _telling(what: str) -> Generator[None]:
    """Turns what torch says about memory and shapes, and what goes wrong with a user's files, into one sentence."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError, SafetensorError) as error:
        text = " ".join(str(error).split())
        raise Failed(f"{what} failed with {type(error).__name__}: {text}.") from error


def _line(stage: Stage, step: Step) -> str:
    """A step as a line of JSON, in which a number that is not finite is null."""
    parts = {name: {k: v if isfinite(v) else None for k, v in part.items()} for name, part in step.measured.items()}
    return json.dumps({"stage": stage.name, "i": step.i, **parts, "skipped": step.skipped}) + "\n"


def run_recipe(recipe: Recipe, problem: Problem, *, seed: int = 0) -> Trial:
    """Runs a recipe to its end without keeping files; what claims are judged on."""
    with tempfile.TemporaryDirectory() as folder:
        session = Session(recipe, problem, Path(folder), seed=seed)
        for _ in session:
            pass
        return session.trial
