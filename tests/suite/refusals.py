"""Which objective fits which student, teacher and data, and with which sentence the others are refused.

    python -m tests.suite.refusals

writes the matrix anew to ``refusals.toml``, which `test_refusals` compares with what the code says. Read the difference
before it is committed: a pair that used to fit and is refused now, or the other way round, is a change users will see.
"""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

from limbeck.catalogue import problems
from tests.suite.cases import NAMES, Case, couples, homes, quarrel, verdict
from tests.suite.recipes import SYSTEMS, fit

PATH = Path(__file__).with_name("refusals.toml")
Table = dict[str, dict[str, str]]


def matrix() -> Table:
    """Sentences by table and row.

    Each objective at home with one part changed; pairs that cannot be added; recipes by problem.
    """
    table: Table = {}
    for case in homes():
        table[f"{case.objective} · by {case.teacher}"] = {
            name: verdict(replace(case, student=name)) for name in NAMES["STUDENTS"]
        }
        table[f"{case.objective} · on {case.student}"] = without(case) | {
            name: verdict(replace(case, teacher=name)) for name in NAMES["TEACHERS"]
        }
    table["sums"] = {f"{case.objective} + {other}": said for case, other in couples() if (said := quarrel(case, other))}
    table["recipes"] = {f"{s} on {p}": fit(s, p) for s in SYSTEMS for p in problems()}
    return table


def without(case: Case) -> dict[str, str]:
    """Sentences where there is no teacher, or no data."""
    return {"no teacher": verdict(replace(case, teacher=None)), "no data": verdict(replace(case, data=False))}


def committed() -> Table:
    """The matrix as the file has it."""
    return tomllib.loads(PATH.read_text())


def write() -> None:
    """The matrix as the code has it now, to the file."""
    lines = ["# Written by `python -m tests.suite.refusals`; see there."]
    for name, rows in matrix().items():
        lines += ["", f"[{quote(name)}]", *(f"{quote(key)} = {quote(said)}" for key, said in rows.items())]
    PATH.write_text("\n".join(lines) + "\n")


def quote(text: str) -> str:
    """A TOML string."""
    return json.dumps(text, ensure_ascii=False)


if __name__ == "__main__":
    write()
