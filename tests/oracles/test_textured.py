"""Digits under textures: what lies over them, what the labels say, and what the probe of the claim finds."""

import torch

from limbeck import Rng
from limbeck.problems.textured import TEXTURES, WhateverTexture, pictures, textured
from limbeck.recipes.k_feat.talking_models import found
from tests.oracles.exact import F64


def test_a_texture_is_one_pattern_of_signs_at_any_strength() -> None:
    x, which = Rng("x").normal(200, 1, 8, 8, dtype=F64), Rng("k").integers(200, TEXTURES)
    over = textured(x, which, Rng(0)) - x
    strength = over.abs().flatten(1).mean(1)
    torch.testing.assert_close(over.abs().flatten(1), strength[:, None].expand(-1, 64))
    assert 0.5 <= strength.min() < 0.55 and 1.45 < strength.max() < 1.5
    signs = over.sign().flatten(1)
    same = (signs[:, None] == signs).all(2)
    assert torch.equal(same, which[:, None] == which)


def test_labels_are_of_the_digit_or_of_both() -> None:
    x, y = torch.zeros(50, 1, 8, 8), torch.arange(50) % 10
    digit, named = (pictures(x, y, named=named).take(500, Rng(3)) for named in (False, True))
    assert torch.equal(digit["x"], named["x"]) and torch.equal(named["y"] // TEXTURES, digit["y"])
    assert (named["y"] % TEXTURES).unique().tolist() == list(range(TEXTURES))
    assert digit["y"].unique().tolist() == list(range(10))


def test_what_is_said_of_digits_is_a_sum_of_probabilities() -> None:
    both = torch.nn.Linear(3, 4 * TEXTURES).double()
    x = Rng("x").normal(6, 3, dtype=F64)
    p = both(x).softmax(1)
    expected = torch.stack([p[:, k * TEXTURES : (k + 1) * TEXTURES].sum(1) for k in range(4)], 1)
    torch.testing.assert_close(WhateverTexture(both)(x).softmax(1), expected)


def test_the_probe_finds_what_is_there_and_nothing_else() -> None:
    which = Rng("k").integers(2000, TEXTURES)
    noise = Rng("f").normal(2000, 16, dtype=F64)
    there = noise.clone()
    there[:, :TEXTURES] += 20 * torch.nn.functional.one_hot(which, TEXTURES)
    assert found(there, which) == 1.0 and found(noise, which) < 0.15
