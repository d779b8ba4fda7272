"""Where a run shows its figures beside its folder: TensorBoard files, Weights & Biases, MLflow, or nowhere.

All of them do the same five things, and which one it is changes nothing in the run. A tick is counted over all stages,
so that one axis holds a recipe of several.
"""

import json
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, get_args

from limbeck.engine.checkpoint import writing
from limbeck.engine.loop import Step
from limbeck.engine.ranks import leads
from limbeck.engine.recipe import Stage
from limbeck.engine.run import Session
from limbeck.errors import BadFile, BadSetting, Failed

Name = Literal["tensorboard", "wandb", "mlflow", "none"]

PROJECT = "limbeck"
"""Where W&B and MLflow file a run, unless their own environment variables say otherwise."""


class Tracker(ABC):
    """What shows a run; `Nowhere` shows none.

    Attributes:
        id: what the service calls the run, to go on with it; empty where the run's folder says it all.
        done: ticks that it knows from an earlier attempt. A resumed run makes these again to the same numbers, so they
            are not sent again.
    """

    id = ""
    done = 0

    @abstractmethod
    def step(self, values: Mapping[str, float], i: int) -> None:
        """What tick i measured, by name."""

    @abstractmethod
    def figures(self, figures: Mapping[str, float], i: int) -> None:
        """How good the result is."""

    @abstractmethod
    def picture(self, path: Path, i: int) -> None:
        """A PNG of the student's samples after tick i."""

    @abstractmethod
    def flush(self) -> None:
        """Keeps what was said so far even if the process is killed now."""

    @abstractmethod
    def close(self, *, finished: bool) -> None:
        """The last word of this process."""


class Nowhere(Tracker):
    """Shows nothing."""

    def step(self, values: Mapping[str, float], i: int) -> None: ...

    def figures(self, figures: Mapping[str, float], i: int) -> None: ...

    def picture(self, path: Path, i: int) -> None: ...

    def flush(self) -> None: ...

    def close(self, *, finished: bool) -> None: ...


class TensorBoard(Tracker):
    """Event files in ``RUN/tensorboard``; what an earlier attempt wrote after its last checkpoint is hidden.

    Args:
        folder: of the run.
        settings: of the run, shown as text.
        since: ticks done when this attempt begins.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], since: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder / "tensorboard", purge_step=since + 1 if since else 0)
        if not since:
            self.writer.add_text("settings", "\n".join(f"    {name}: {value}" for name, value in settings.items()))

    def step(self, values: Mapping[str, float], i: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, i)

    def figures(self, figures: Mapping[str, float], i: int) -> None:
        self.step({f"figures/{name}": value for name, value in figures.items()}, i)

    def picture(self, path: Path, i: int) -> None:
        from matplotlib.image import imread

        self.writer.add_image("samples", imread(path)[..., :3], i, dataformats="HWC")

    def flush(self) -> None:
        self.writer.flush()

    def close(self, *, finished: bool) -> None:
        self.writer.close()


class WandB(Tracker):
    """A run of Weights & Biases: https://docs.wandb.ai/guides/runs/resuming."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], known: str):
        self.wandb: Any = import_module("wandb")
        again: dict[str, Any] = {"id": known, "resume": "must"} if known else {"name": folder.name}
        project = None if _told("WANDB_PROJECT") else PROJECT
        self.run = self.wandb.init(project=project, dir=str(folder), config=dict(settings), **again)
        self.id, self.done = str(self.run.id), max(0, int(self.run.step) - 1)  # its step is the one that comes next

    def step(self, values: Mapping[str, float], i: int) -> None:
        self.run.log(dict(values), step=i)

    def figures(self, figures: Mapping[str, float], i: int) -> None:
        self.run.summary.update({f"figures/{name}": value for name, value in figures.items()})

    def picture(self, path: Path, i: int) -> None:
        self.run.log({"samples": self.wandb.Image(str(path))}, step=i)

    def flush(self) -> None: ...  # its own process keeps what it was told

    def close(self, *, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


class MLflow(Tracker):
    """A run of MLflow, under the tracking server that its environment variables name; a call a tick would be slow."""

    ROWS, SECONDS = 500, 10.0
    """Metrics, and time between them, that one call sends at the most; the service takes 1,000."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], known: str):
        mlflow: Any = import_module("mlflow")
        self.client, self.metric = mlflow.MlflowClient(), mlflow.entities.Metric
        self.mlflow, self.waiting, self.sent = mlflow, list[Any](), time.monotonic()
        if not (known or _told("MLFLOW_EXPERIMENT_NAME") or _told("MLFLOW_EXPERIMENT_ID")):
            mlflow.set_experiment(PROJECT)
        run = mlflow.start_run(run_id=known) if known else mlflow.start_run(run_name=folder.name)
        self.id = str(run.info.run_id)
        if known:
            history = (self.client.get_metric_history(self.id, key) for key in run.data.metrics)
            self.done = max((metric.step for points in history for metric in points), default=0)
        else:
            mlflow.log_params({_plain(name): str(value)[:500] for name, value in settings.items()})

    def step(self, values: Mapping[str, float], i: int) -> None:
        now = int(1000 * time.time())
        self.waiting += [self.metric(_plain(name), value, now, i) for name, value in values.items()]
        if len(self.waiting) >= self.ROWS or time.monotonic() > self.sent + self.SECONDS:
            self.flush()

    def figures(self, figures: Mapping[str, float], i: int) -> None:
        self.step({f"figures/{name}": value for name, value in figures.items()}, i)

    def picture(self, path: Path, i: int) -> None:
        self.client.log_artifact(self.id, str(path), artifact_path="samples")

    def flush(self) -> None:
        waiting, self.waiting, self.sent = self.waiting, [], time.monotonic()
        for first in range(0, len(waiting), self.ROWS):
            self.client.log_batch(self.id, metrics=waiting[first : first + self.ROWS])

    def close(self, *, finished: bool) -> None:
        self.flush()
        self.mlflow.end_run("FINISHED" if finished else "KILLED")


def _plain(name: str) -> str:
    """A name as MLflow allows it."""
    return re.sub(r"[^\w./ -]", "-", name)


def _told(variable: str) -> bool:
    return bool(os.environ.get(variable))


# Around a run


def choose(name: Name | None, folder: Path) -> Name:
    """Which tracker shows the run in a folder: as asked, else as before, else TensorBoard where that is installed.

    Raises:
        BadSetting: its package is missing.
        BadFile: what the folder says of its tracker cannot be read.
    """
    chosen = name or _known(folder).get("track")
    if chosen is None:
        return "tensorboard" if find_spec("tensorboard") else "none"
    if chosen != "none" and not find_spec(chosen):
        raise BadSetting(
            f"--track {chosen} needs the package {chosen}, which is not installed; --track none goes without."
        )
    return chosen


def _known(folder: Path) -> dict[str, Any]:
    """Who tracked the run before, and what it calls the run."""
    path = folder / "tracker.json"
    try:
        known = json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise BadFile(f"{path} cannot be read: {error}.") from error
    if not isinstance(known, dict) or known.get("track") not in (None, *get_args(Name)):
        raise BadFile(f"{path} names no tracker of {', '.join(get_args(Name))}.")
    return known


class Tracking:
    """A tracker beside a session: it gets every tick and picture once, and its trouble is not the run's."""

    def __init__(self, tracker: Tracker, session: Session, say: Callable[[str], None]):
        self.tracker, self.session, self.say = tracker, session, say
        lengths = [stage.steps if isinstance(stage, Stage) else 0 for stage in session.recipe.stages]
        self.before = list(accumulate(lengths, initial=0))
        """Ticks of the stages before each, and of all."""

    @property
    def i(self) -> int:
        """Ticks done so far, over all stages."""
        index, i = self.session.position
        return self.before[index] + i

    def step(self, stage: Stage, step: Step) -> None:
        """A tick that was done, with the pictures that were made meanwhile."""
        i, index = self.i, self.session.position[0]
        if i <= self.tracker.done:
            return
        values = {f"{stage.name}/{kind}/{k}": v for kind, part in step.measured.items() for k, v in part.items()}
        if step.i == 1:
            self._picture(f"{index:02d}-{0:08d}", i - 1)
        self._try(lambda: self.tracker.step(values, i))
        self._picture(f"{index:02d}-{step.i:08d}", i)
        if step.i % (self.session.checkpoint_every or stage.steps) == 0:  # a checkpoint is written next
            self._try(lambda: self.tracker.flush())

    def _picture(self, name: str, i: int) -> None:
        path = self.session.folder / "samples" / f"{name}.png"
        if path.exists():
            self._try(lambda: self.tracker.picture(path, i))

    def figures(self, figures: Mapping[str, float]) -> None:
        """How good the finished result is, with its picture."""
        self._try(lambda: self.tracker.figures(figures, self.i))
        self._picture("final", self.i)

    def close(self) -> None:
        """Says whether the run has finished."""
        self._try(lambda: self.tracker.close(finished=self.session.finished))

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # a server or disk that is gone, in whatever words the other library has for it
            tracker, self.tracker = self.tracker, Nowhere()
            text = " ".join(str(error).split())
            self.say(f"{type(tracker).__name__} shows no more of this run: {type(error).__name__}: {text}.")


@contextmanager
def tracking(
    name: Name, session: Session, settings: Mapping[str, Any], say: Callable[[str], None]
) -> Generator[Tracking]:
    """Keeps a tracker inside the block; of several processes the first one has it, and a finished run needs none.

    Raises:
        Failed: it cannot be begun, as where its server does not answer.
    """
    tracked = Tracking(Nowhere(), session, say)
    if leads() and not session.finished:
        known = _known(session.folder)
        again = str(known.get("run", "")) if known.get("track") == name else ""
        try:
            tracked.tracker = _begin(name, session.folder, settings, again, tracked.i)
        except Exception as error:  # a server or disk, in whatever words the other library has for it
            text = f"--track {name} cannot begin: {type(error).__name__}: {' '.join(str(error).split())}."
            if name != "tensorboard":
                raise Failed(text) from error
            say(text)  # its files lie beside the run's own, which may still fit
        with writing(session.folder):
            (session.folder / "tracker.json").write_text(json.dumps({"track": name, "run": tracked.tracker.id}))
    try:
        yield tracked
    finally:
        tracked.close()


def _begin(name: Name, folder: Path, settings: Mapping[str, Any], known: str, since: int) -> Tracker:
    if name == "tensorboard":
        return TensorBoard(folder, settings, since)
    if name == "none":
        return Nowhere()
    return (WandB if name == "wandb" else MLflow)(folder, settings, known)


__all__ = ["MLflow", "Name", "Nowhere", "TensorBoard", "Tracker", "Tracking", "WandB", "choose", "tracking"]
