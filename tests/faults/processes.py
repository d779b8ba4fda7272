"""The command line in processes that can be killed; they are forked from a server that has imported torch once."""

import importlib
import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from limbeck.cli import main

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["limbeck.commands", "torch._dynamo", "torch.utils.tensorboard"]
)  # optimisers import the second, for seconds
HERE = Path(__file__).parent
QUICK, STAGES = str(HERE / "quick.py"), str(HERE / "stages.py")
SECONDS = 60


@dataclass(frozen=True)
class Strike:
    """SIGKILL to the process itself, at the n-th call of a function.

    ``amid`` is when ``save_file`` has left half a file behind.
    """

    function: str
    n: int
    when: Literal["before", "amid", "after"]

    def __str__(self) -> str:
        return f"{self.function.split('.')[-1]} {self.n} {self.when}"

    def arm(self) -> None:
        """Puts the trap around the function."""
        calls = itertools.count(1)
        _wrap(self.function, lambda real, *args, **settings: self._call(next(calls), real, *args, **settings))

    def _call(self, number: int, real: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        if number != self.n:
            return real(*args, **settings)
        if self.when != "before":
            real(*args, **settings)
        if self.when == "amid":
            halve(Path(args[1]))
        os.kill(os.getpid(), signal.SIGKILL)


def nothing() -> None:
    """Leaves everything as it is."""


def slow_make() -> None:
    """Makes a user's own call of ``save_file`` take long."""

    def save(real: Callable[..., Any], tensors: Any, path: Path) -> None:
        real(tensors, path)
        time.sleep(SECONDS)

    _wrap("safetensors.torch.save_file", save)


def slow_disk() -> None:
    """Makes every state take its time to be written."""

    def save(real: Callable[..., Any], tensors: Any, path: Path) -> None:
        time.sleep(0.05)
        real(tensors, path)

    _wrap("limbeck.engine.checkpoint.save_file", save)


def full_disk(n: int) -> None:
    """From the n-th state on, the disk is full; a little of it was written."""
    calls = itertools.count(1)

    def save(real: Callable[..., Any], tensors: Any, path: Path) -> None:
        if next(calls) < n:
            return real(tensors, path)
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    _wrap("limbeck.engine.checkpoint.save_file", save)


def full_disk_for_users() -> None:
    """The disk is full when a user's own code calls ``save_file``."""

    def save(real: Callable[..., Any], tensors: Any, path: Path) -> None:
        raise OSError(28, "No space left on device")

    _wrap("safetensors.torch.save_file", save)


def no_pickle() -> None:
    """Makes every way to load a pickle fail."""
    import pickle

    import torch

    def refuse(*args: object, **settings: object) -> None:
        raise AssertionError("a pickle was loaded")

    for name in ("load", "loads", "Unpickler", "_Unpickler", "_load", "_loads"):
        setattr(pickle, name, refuse)
    torch.load = refuse


def _wrap(function: str, wrapper: Callable[..., Any]) -> None:
    module, _, name = function.rpartition(".")
    owner = importlib.import_module(module)
    real = getattr(owner, name)
    setattr(owner, name, lambda *args, **settings: wrapper(real, *args, **settings))


def halve(path: Path) -> None:
    """Cuts the second half off a file."""
    os.truncate(path, path.stat().st_size // 2)


@dataclass(frozen=True)
class Ended:
    """What a process left: its exit code, negative for a signal, and all it printed."""

    code: int
    text: str


class Process:
    """``limbeck`` with these arguments in a folder, after ``prepare`` has been called there."""

    def __init__(self, folder: Path, *args: str, prepare: Callable[[], None] = nothing):
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "log.txt"
        self.log.write_text("")
        self.process: BaseProcess = FORKS.Process(target=_work, args=(folder, self.log, args, prepare))
        self.process.start()

    def kill(self, seconds: float) -> Ended:
        """SIGKILL after so many seconds, if it still runs then."""
        self.process.join(seconds)
        if self.process.pid and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGKILL)
        return self.end()

    def signal(self, number: int, once: Callable[[], bool], after: float = 0.0) -> Ended:
        """A signal so many seconds after something has happened."""
        assert self.process.pid
        deadline = time.monotonic() + SECONDS
        while not once() and self.process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        self.process.join(after)
        if self.process.is_alive():
            os.kill(self.process.pid, number)
        return self.end()

    def end(self) -> Ended:
        """Waits for its end."""
        self.process.join(SECONDS)
        self.process.kill()
        self.process.join()
        assert self.process.exitcode is not None
        return Ended(self.process.exitcode, self.log.read_text())


def limbeck(folder: Path, *args: str, prepare: Callable[[], None] = nothing) -> Ended:
    """Runs ``limbeck`` to its end."""
    return Process(folder, *args, prepare=prepare).end()


def _work(folder: Path, log: Path, args: tuple[str, ...], prepare: Callable[[], None]) -> None:
    os.chdir(folder)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    prepare()
    code = main(list(args))
    sys.stdout.flush()
    sys.exit(code)


def bits(run: Path) -> dict[str, bytes]:
    """What must be the same at the end, however a run got there: every stage's result, metrics, and pictures."""
    files = [run / "metrics.jsonl", *sorted((run / "stages").rglob("*")), *sorted((run / "samples").rglob("*"))]
    return {str(path.relative_to(run)): path.read_bytes() for path in files if path.is_file()}


def copied(run: Path, to: Path) -> Path:
    """A copy of a run to do harm to."""
    shutil.copytree(run, to / "run")
    return to / "run"
