"""A language model's folder and lines of text as something to distil on."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from limbeck.bridges.taught import Taught
from limbeck.bridges.transformers import Kind, kind_of, read_tokenizer
from limbeck.engine.data import Batch, Source
from limbeck.errors import BadFile, Incompatible
from limbeck.objectives import UNLABELLED
from limbeck.problems.problem import Language
from limbeck.rng import Rng
from limbeck.tree import Tree

MASKED, KEPT, SWAPPED = 0.15, 0.1, 0.1
"""Share of the tokens that are to be guessed, and of these: left as they are, replaced by any other."""

HELDOUT = 512
"""At most so many different texts are held out, a tenth of them if they are fewer."""


class Texts(Taught, Language):
    """Lines of text under a causal or masked language model of transformers.

    Every line is an example. A tenth of the different lines is held out, and is in no batch. A causal model guesses
    each next token, the end of the line among them where the tokenizer has a mark for it. For a masked one 15 % of
    the tokens are to be guessed, at least one in a line, chosen afresh in every batch: 80 % of them are hidden and
    10 % swapped.

    Args:
        folder: of the model and its tokenizer.
        data: a text file, UTF-8, in which every line that is not blank is an example.

    Raises:
        BadFile: a folder that is no model or has no tokenizer, a file without two lines, one with a line that is longer
            than the model takes.
        Incompatible: transformers is missing, a tokenizer with tokens that the model does not know.

    Source of the shares of masked tokens: Devlin et al. 2018, arXiv 1810.04805, sec. 3.1.
    """

    def __init__(self, folder: str | Path, data: str | Path):
        lines, self.tokenizer = read_lines(Path(data)), read_tokenizer(folder)
        super().__init__(folder, data)
        self.kind: Kind = kind_of(type(self._teacher).__name__)
        self.classes = int(self.config.vocab_size)
        ids = self._ids(lines)
        held = _held_out(lines)
        parts = ([one for line, one in zip(lines, ids, strict=True) if (line in held) == side] for side in (0, 1))
        lines_of = _Masked if self.kind == "masked" else _Next
        self._source, judged = (lines_of(self._guessable(part), self) for part in parts)
        self.heldout = _pair(judged.all())

    @cached_property
    def train(self) -> tuple[Tree, Tensor]:
        """Inputs and labels of all texts that are not held out; they take more memory than texts do."""
        return _pair(self._source.all())

    @property
    def source(self) -> Source:
        return self._source

    @cached_property
    def longest(self) -> int:
        """Tokens that model and tokenizer take at once."""
        known = (getattr(self.config, "max_position_embeddings", None), self.tokenizer.model_max_length)
        return min(int(n) for n in known if n)

    def _ids(self, lines: list[str]) -> list[list[int]]:
        """Each line's tokens."""
        ids: list[list[int]] = self.tokenizer(lines, verbose=False)["input_ids"]
        end = self.tokenizer.eos_token_id
        if self.kind == "causal" and end is not None:
            ids = [one if one and one[-1] == end else [*one, end] for one in ids]
        if (most := max((max(one, default=0) for one in ids), default=0)) >= self.classes:
            need, got = f"a tokenizer for its vocabulary of {self.classes}", f"one with a token of number {most}"
            raise Incompatible(f"the model in {self.folder}", need=need, got=got)
        for i, one in enumerate(ids):
            if len(one) > self.longest:
                got = f"{len(one)} tokens, which start with {lines[i][:40]!r}"
                raise BadFile(f"{self.data} must have lines of at most {self.longest} tokens, got one of {got}.")
        return ids

    def _guessable(self, ids: list[list[int]]) -> list[list[int]]:
        """Lines without those in which nothing can be guessed."""
        special = {*self.tokenizer.all_special_ids} if self.kind == "masked" else set[int]()
        least = 1 if self.kind == "masked" else 2
        ids = [one for one in ids if len([token for token in one if token not in special]) >= least]
        if not ids:
            raise BadFile(f"{self.data} must have lines with something to guess, to train on and to judge by.")
        return ids


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank.

    Raises:
        BadFile: no such file, not of UTF-8, or fewer than two different lines.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(f"{path} is no text file that can be read: {error}.") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(set(lines)) < 2:
        raise BadFile(f"{path} must have two different lines of text or more, got {len(set(lines))}.")
    return lines


def _held_out(lines: list[str]) -> set[str]:
    known = [*dict.fromkeys(lines)]
    order = Rng(("texts", "heldout")).uniform(len(known)).argsort().tolist()
    return {known[i] for i in order[: max(1, min(len(known) // 10, HELDOUT))]}


def _pair(batch: Batch) -> tuple[Tree, Tensor]:
    return batch["x"], batch["y"]


class _Lines(Source, ABC):
    """Lines drawn with replacement, as long as the longest of a batch."""

    fields = frozenset({"x", "y"})

    def __init__(self, ids: list[list[int]], problem: Texts):
        self.tokens = torch.tensor([*chain.from_iterable(ids)], dtype=torch.int32)
        self.ends = torch.tensor([len(one) for one in ids]).cumsum(0).tolist()
        self.longest, self.problem = max(map(len, ids)), problem

    def take(self, n: int, rng: Rng) -> Batch:
        return self._batch(rng.integers(n, len(self.ends)).tolist(), rng)

    def all(self) -> Batch:
        """Every line once, in order."""
        return self._batch(range(len(self.ends)), Rng(("texts", "all")))

    def _batch(self, which: Iterable[int], rng: Rng) -> Batch:
        found = [self.tokens[self.ends[i - 1] if i else 0 : self.ends[i]] for i in which]
        ids = nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=-1).long().to(rng.device)  # [n, L]
        seen, y = self.asked(ids, rng)
        x = {"input_ids": seen.clamp_min(0), "attention_mask": (ids >= 0).long()}
        return {"x": x, "y": y}

    @abstractmethod
    def asked(self, ids: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """What is seen of tokens [n, L], and the labels; -1 where there is no token."""


class _Next(_Lines):
    """The label of a token is the next one."""

    def asked(self, ids: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        y = ids.roll(-1, 1)
        y[:, -1] = -1
        return ids, y.masked_fill(y < 0, UNLABELLED)


class _Masked(_Lines):
    """Some tokens are hidden or swapped; the label is what was there."""

    def __init__(self, ids: list[list[int]], problem: Texts):
        super().__init__(ids, problem)
        tokenizer = problem.tokenizer
        if tokenizer.mask_token_id is None:
            raise Incompatible(f"the model in {problem.folder}", need="a tokenizer with a mask token", got="none")
        self.mask, self.special = int(tokenizer.mask_token_id), torch.tensor([-1, *tokenizer.all_special_ids])

    def asked(self, ids: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        n, length = ids.shape
        order, kind, other = (rng.uniform(n, self.longest)[:, :length] for _ in range(3))  # whatever the batch's length
        order = order.masked_fill(torch.isin(ids, self.special.to(ids.device)), 2.0)
        chosen = (order < MASKED) | (order == order.amin(1, keepdim=True))  # at least one
        swapped = torch.where(kind < KEPT + SWAPPED, (other * self.problem.classes).long(), self.mask)
        seen = torch.where(chosen & (kind >= KEPT), swapped, ids)
        return seen, ids.masked_fill(~chosen, UNLABELLED)


__all__ = ["Texts", "read_lines"]
