"""What a run took: seconds and memory of every attempt at it, kept in its folder as ``attempts.jsonl``."""

import json
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run took in all of its attempts together.

    Args:
        seconds: in its stages, with what they make, their pictures and checkpoints; without set-up and judging.
        peak: the most memory that one of its processes held until training was over, in bytes; see `peak_memory`.
        attempts: how often it was begun or resumed.
    """

    seconds: float
    peak: int | None
    attempts: int


@contextmanager
def attempt(folder: Path) -> Generator[None]:
    """Notes that an attempt begins, and after the block what it took; a disk without room does not stop it."""
    _note(folder, {"began": datetime.now(UTC).isoformat(timespec="seconds")})
    began = time.monotonic()
    try:
        yield
    finally:
        _note(folder, {"seconds": round(time.monotonic() - began, 3), "peak": peak_memory()})


def _note(folder: Path, what: dict[str, Any]) -> None:
    with suppress(OSError), (folder / "attempts.jsonl").open("a") as file:
        file.write(json.dumps(what) + "\n")


def cost(folder: Path) -> Cost | None:
    """What the run in a folder took; None if that is not known, as after an attempt that was killed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with attempt(Path(folder)): pass
    ...     found = cost(Path(folder))
    >>> found.attempts, found.seconds < 1
    (1, True)
    """
    try:
        lines = [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]
        begun, ended = lines[::2], lines[1::2]
        if not begun or len(begun) != len(ended) or not all("began" in line for line in begun):
            return None
        peaks = [line["peak"] for line in ended]
        peak = None if None in peaks else max(peaks)
        return Cost(seconds=sum(line["seconds"] for line in ended), peak=peak, attempts=len(begun))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def peak_memory() -> int | None:
    """The most resident memory that this process has held so far, in bytes; None where it cannot be known.

    It counts all of the process, so Python, torch and the problem with what the student needs. On Linux it is VmHWM of
    ``/proc/self/status``: unlike ``ru_maxrss`` it starts anew with a program, not with what its parent held. Memory
    of an accelerator is not in it.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration, ValueError):
        return None
