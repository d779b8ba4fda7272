"""The matrix of what fits and what is refused, sentence by sentence, is the committed one."""

import re

import pytest

from tests.suite.refusals import committed, matrix

NOW, THEN = matrix(), committed()


@pytest.mark.parametrize("table", sorted(NOW.keys() | THEN.keys()))
def test_the_matrix_is_the_committed_one(table: str) -> None:
    now, then = NOW.get(table, {}), THEN.get(table, {})
    changed = {row: now.get(row) for row in now.keys() | then.keys() if now.get(row) != then.get(row)}
    assert not changed, f"new or changed in {table}; if it is meant: python -m tests.suite.refusals"


SENTENCES = sorted({said for rows in NOW.values() for said in rows.values()} - {"fits"})


@pytest.mark.parametrize("said", SENTENCES)
def test_a_refusal_says_need_and_got_in_one_sentence(said: str) -> None:
    assert not said.startswith("crashed"), said
    assert re.fullmatch(r"[^\n]+ needs [^\n]+, got [^\n]+\.", said) and "0x" not in said
