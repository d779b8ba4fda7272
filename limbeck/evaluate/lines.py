"""The lines of a run's metrics as curves."""

import json
from collections.abc import Mapping
from pathlib import Path

from limbeck.evaluate.svg import Series

HUGE = 1e300
"""What is further from 0 is drawn as if it were not finite, so that sums and distances are."""


def read_metrics(path: Path, first: Mapping[str, int]) -> tuple[dict[tuple[str, str], Series], dict[str, int]]:
    """Losses and norms of a ``metrics.jsonl`` by (kind, name), and how often each role's update was left out.

    Lines that are damaged or of other stages are passed over: the last one may be half written.

    Args:
        path: the file; it may be missing.
        first: each stage's first tick, counted from the run's start.
    """
    series: dict[tuple[str, str], Series] = {}
    skipped: dict[str, int] = {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return {}, {}
    for line in lines:
        try:
            record = json.loads(line)
            x = first[record["stage"]] + record["i"]
            pairs = [((kind, name), y) for kind in ("losses", "norms") for name, y in record[kind].items()]
            values = [(key, None if y is None or abs(y) > HUGE else y) for key, y in pairs]
            for name in record["skipped"]:
                skipped[name] = skipped.get(name, 0) + 1
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        for key, y in values:
            one = series.setdefault(key, Series([], []))
            one.x.append(x)
            one.y.append(y)
    return series, skipped


__all__ = ["HUGE", "read_metrics"]
