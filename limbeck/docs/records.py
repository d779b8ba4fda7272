"""What was measured last of a system, as its page tells it."""

import json
from collections.abc import Mapping
from typing import Any

from limbeck import catalogue
from limbeck.catalogue import System
from limbeck.errors import BadFile


def evidence(system: System) -> dict[str, Any] | None:
    """The whole record of what was measured last, with ``stale``."""
    if (short := system.evidence) is None:
        return None
    path = catalogue.EVIDENCE / f"{system.id}.json"
    record = json.loads(path.read_text()) | short
    if missing := {"seeds", "machine", "seconds"} - set(record):
        raise BadFile(f"{path} is not a record of evidence: it lacks {min(missing)}.")
    return record


def shown(found: Mapping[str, Any]) -> str:
    """Figure ± spread."""
    return f"{number(found['figure'])} ± {found['spread']:.2g}"


def number(value: float | None) -> str:
    """A figure; what is not finite was recorded as null.

    >>> number(0.41284), number(None)
    ('0.413', '∞')
    """
    return "∞" if value is None else f"{value:.3g}"


__all__ = ["evidence", "number", "shown"]
