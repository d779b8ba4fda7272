"""A run shown elsewhere: the same numbers as in its folder, each once, wherever the run was stopped and resumed."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from limbeck import cli, trackers
from limbeck.engine.loop import Run, Step
from tests.faults.processes import QUICK, STAGES

pytest.importorskip("tensorboard")


class Stop(Exception):
    """The process ends here, without a word."""


def distill(folder: Path, *args: str, on: str = QUICK) -> int:
    return cli.main(["distill", on, "--on", QUICK, "--out", str(folder), "--checkpoint-every", "10", *args])


def stopped(monkeypatch: pytest.MonkeyPatch, at: int, folder: Path, *args: str, on: str = QUICK) -> None:
    """A run that is killed in its tick of this number; nothing is closed or flushed."""
    count = iter(range(1, 10**6))
    real = Run.tick

    def tick(run: Run) -> Step:
        if next(count) == at:
            raise Stop
        return real(run)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Run, "tick", tick)
        patch.setattr(trackers.Tracking, "close", lambda self: None)
        distill(folder, *args, on=on)
    time.sleep(1)  # event files of one second are read in the order of names, and a tenth comes before a ninth


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def wanted(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What metrics.jsonl says, by the name that a tracker gives it."""
    points: dict[str, list[tuple[int, float]]] = {}
    for i, line in enumerate(lines(folder), 1):
        for kind in ("losses", "norms"):
            for name, value in line[kind].items():
                points.setdefault(f"{line['stage']}/{kind}/{name}", []).append((i, value))
    return points


def near(found: dict[str, list[tuple[int, float]]], folder: Path) -> None:
    """All that metrics.jsonl says and nothing else, each point once."""
    assert {k: v for k, v in found.items() if not k.startswith("figures/")}.keys() == wanted(folder).keys()
    for name, points in wanted(folder).items():
        assert [i for i, _ in found[name]] == [i for i, _ in points], name
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in points], rel=1e-6), name


# TensorBoard


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = events(folder)
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_shows_what_the_folder_says(tmp_path: Path) -> None:
    assert distill(tmp_path / "run") == 0
    near(scalars(tmp_path / "run"), tmp_path / "run")
    figures = json.loads((tmp_path / "run" / "result.json").read_text())
    shown = {name: points for name, points in scalars(tmp_path / "run").items() if name.startswith("figures/")}
    assert figures and shown == {f"figures/{k}": [(40, pytest.approx(v, rel=1e-6))] for k, v in figures.items()}


@pytest.mark.parametrize("at", [9, 25, 31])
def test_tensorboard_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    stopped(monkeypatch, at, tmp_path / "run")
    assert distill(tmp_path / "run", "--resume") == 0
    near(scalars(tmp_path / "run"), tmp_path / "run")


def test_tensorboard_counts_over_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert distill(tmp_path / "whole", on=STAGES) == 0
    near(scalars(tmp_path / "whole"), tmp_path / "whole")
    total = len(lines(tmp_path / "whole"))
    stopped(monkeypatch, total - 3, tmp_path / "run", on=STAGES)  # in the last stage
    assert distill(tmp_path / "run", "--resume", on=STAGES) == 0
    near(scalars(tmp_path / "run"), tmp_path / "run")
    assert len({line["stage"] for line in lines(tmp_path / "run")}) > 1


def test_tensorboard_has_the_pictures(tmp_path: Path) -> None:
    args = ["distill", "sds", "--on", "mixture2d", "--out", str(tmp_path / "run"), "--steps", "4"]
    assert cli.main(args) == 0
    steps = [image.step for image in events(tmp_path / "run").Images("samples")]
    assert steps == [
        0,
        1,
        2,
        4,
        4,
    ]  # at none, a quarter, a half and all of the ticks, and the last one beside the teacher


def test_none_leaves_nothing(tmp_path: Path) -> None:
    assert distill(tmp_path / "run", "--track", "none") == 0
    assert not (tmp_path / "run" / "tensorboard").exists()


# Weights & Biases and MLflow, as their documentation has them


class Service:
    """A server that outlives processes: what each run was told, and what was refused."""

    def __init__(self) -> None:
        self.runs: dict[str, SimpleNamespace] = {}
        self.began: list[dict[str, Any]] = []

    def wandb(self) -> ModuleType:
        """https://docs.wandb.ai/ref/python/init: ``step`` must not go back; what is older is dropped."""
        service = self

        class WandBRun:
            def __init__(self, id: str, config: dict[str, Any]):
                self.id, self.kept = id, service.runs.setdefault(id, fresh())
                self.kept.config |= config
                self.step = max((i for i, _ in self.kept.points), default=-1) + 1
                self.summary = self.kept.summary

            def log(self, data: dict[str, Any], *, step: int) -> None:
                assert step >= self.kept.newest, "a point that this library drops"
                self.kept.newest = step
                self.kept.points += [(step, data)]

            def finish(self, exit_code: int = 0) -> None:
                self.kept.status = exit_code

        def init(*, project: str, dir: str, config: dict[str, Any], **names: Any) -> WandBRun:
            service.began.append({"project": project, **names})
            assert (names.get("id") in service.runs) == (names.get("resume") == "must")
            return WandBRun(names.get("id") or f"r{len(service.runs)}", config)

        return module("wandb", init=init, Image=lambda path: SimpleNamespace(path=path))

    def mlflow(self) -> ModuleType:
        """https://mlflow.org/docs/latest/python_api/mlflow.client.html: what is logged twice is there twice."""
        service = self

        class Client:
            def log_batch(self, run_id: str, metrics: list[Any]) -> None:
                assert len(metrics) <= 1000
                service.runs[run_id].points += [(m.step, {m.key: m.value}) for m in metrics]

            def get_metric_history(self, run_id: str, key: str) -> list[Any]:
                return [SimpleNamespace(step=i) for i, data in service.runs[run_id].points if key in data]

            def log_artifact(self, run_id: str, local_path: str, artifact_path: str) -> None:
                assert Path(local_path).exists()
                service.runs[run_id].files.append(f"{artifact_path}/{Path(local_path).name}")

        active: list[str] = []

        def start_run(run_id: str | None = None, run_name: str | None = None) -> Any:
            assert not active
            service.began.append({"run_id": run_id, "run_name": run_name})
            active.append(run_id or f"r{len(service.runs)}")
            kept = service.runs.setdefault(active[0], fresh())
            metrics = {key: value for _, data in kept.points for key, value in data.items()}
            return SimpleNamespace(info=SimpleNamespace(run_id=active[0]), data=SimpleNamespace(metrics=metrics))

        def log_params(params: dict[str, Any]) -> None:
            assert all(len(value) <= 6000 and set(name) <= ALLOWED for name, value in params.items())
            service.runs[active[0]].config |= params

        def end_run(status: str) -> None:
            service.runs[active.pop()].status = status

        def metric(key: str, value: float, timestamp: int, step: int) -> Any:
            assert set(key) <= ALLOWED and timestamp > 10**12
            return SimpleNamespace(key=key, value=value, step=step)

        calls = {"start_run": start_run, "log_params": log_params, "end_run": end_run, "MlflowClient": Client}
        entities = SimpleNamespace(Metric=metric)
        return module("mlflow", set_experiment=lambda name: None, entities=entities, **calls)


ALLOWED = {*map(chr, range(ord("a"), ord("z") + 1)), *map(chr, range(ord("A"), ord("Z") + 1)), *"0123456789_-. /"}


def fresh() -> SimpleNamespace:
    return SimpleNamespace(points=[], config={}, summary={}, files=[], newest=0, status=None)


def module(name: str, **content: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(content)
    return made


@pytest.fixture(params=["wandb", "mlflow"])
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Service]]:
    """A service, and its library, which every process loads anew."""
    made, real = Service(), trackers.import_module
    load: Callable[[str], Any] = lambda name: getattr(made, name)() if name == request.param else real(name)  # noqa: E731
    monkeypatch.setattr(trackers, "import_module", load)
    monkeypatch.setattr(trackers, "find_spec", lambda name: name == request.param or None)
    for variable in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(variable, raising=False)
    yield request.param, made


def found(run: SimpleNamespace) -> dict[str, list[tuple[int, float]]]:
    points: dict[str, list[tuple[int, float]]] = {}
    for i, data in run.points:
        for name, value in data.items():
            if name != "samples":
                points.setdefault(name, []).append((i, value))
    return points


def test_a_service_is_told_all_of_a_run(service: tuple[str, Service], tmp_path: Path) -> None:
    name, server = service
    assert distill(tmp_path / "run", "--track", name) == 0
    (run,) = server.runs.values()
    near(found(run), tmp_path / "run")
    assert run.status == (0 if name == "wandb" else "FINISHED")
    assert str(run.config["learn.batch" if "learn.batch" in run.config else "batch"]) == "16"
    figures = json.loads((tmp_path / "run" / "result.json").read_text())
    told = run.summary if name == "wandb" else {k: v[0][1] for k, v in found(run).items()}
    assert {k: told[f"figures/{k}"] for k in figures} == figures


@pytest.mark.parametrize("at", [9, 25])
def test_a_service_goes_on_with_the_run_it_knows(
    service: tuple[str, Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    name, server = service
    monkeypatch.setattr(trackers.MLflow, "ROWS", 7)  # some are on their way when the process is killed
    stopped(monkeypatch, at, tmp_path / "run", "--track", name)
    assert distill(tmp_path / "run", "--resume") == 0  # the folder knows who tracks it
    (run,) = server.runs.values()
    near(found(run), tmp_path / "run")
    assert [began.get("id") or began.get("run_id") for began in server.began] == [None, "r0"]


def test_a_service_gets_the_pictures(service: tuple[str, Service], tmp_path: Path) -> None:
    name, server = service
    out = ["--out", str(tmp_path / "run"), "--steps", "4", "--track", name]
    assert cli.main(["distill", "sds", "--on", "mixture2d", *out]) == 0
    (run,) = server.runs.values()
    shown = [Path(data["samples"].path).name for _, data in run.points if "samples" in data] or run.files
    assert [Path(path).name for path in shown] == [*(f"00-0000000{i}.png" for i in (0, 1, 2, 4)), "final.png"]


def test_a_service_that_goes_away_does_not_end_the_run(
    service: tuple[str, Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, _ = service
    kind = trackers.WandB if name == "wandb" else trackers.MLflow

    def fail(self: object, values: object, i: int) -> None:
        raise ConnectionError("no answer")

    monkeypatch.setattr(kind, "step", fail)
    assert distill(tmp_path / "run", "--track", name) == 0
    assert capsys.readouterr().out.count("no answer") == 1
    assert len(lines(tmp_path / "run")) == 40


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    assert distill(tmp_path / "run", "--track", name) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"--track {name} needs the package {name}" in error
    assert not (tmp_path / "run").exists()
    assert distill(tmp_path / "run") == 0  # without any, a run needs none
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_service_that_cannot_be_begun(
    service: tuple[str, Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, _ = service

    def fail(*args: object) -> None:
        raise ConnectionError("no answer")

    monkeypatch.setattr(trackers, "_begin", fail)
    assert distill(tmp_path / "run", "--track", name) == 1
    assert f"--track {name} cannot begin: ConnectionError: no answer." in capsys.readouterr().err


def test_a_damaged_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill(tmp_path / "run", "--track", "none") == 0
    (tmp_path / "run" / "tracker.json").write_text("{")
    assert distill(tmp_path / "run", "--resume") == 2
    assert "tracker.json cannot be read" in capsys.readouterr().err


def test_no_tracker_is_imported_for_help() -> None:
    code = "import sys; from limbeck.cli import main\ntry: main(['distill', '--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'tensorboard', 'wandb', 'mlflow'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_finished_run_shows_nothing_new(tmp_path: Path) -> None:
    assert distill(tmp_path / "run", "--steps", "20") == 0
    before = scalars(tmp_path / "run")
    assert distill(tmp_path / "run", "--resume") == 0
    assert scalars(tmp_path / "run") == before
