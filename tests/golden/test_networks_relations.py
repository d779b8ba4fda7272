"""Contrast and relations of examples against numbers that released code gave: networks.toml, with sources."""

import math

import pytest

from tests.golden.waves import GOLDEN, B, exporting, gradient, same, wave

networks = exporting("RKD", "noise_contrast", "relational")


@pytest.mark.parametrize("key", ["batch", "more", "scaled"])
def test_crd(key: str) -> None:
    """Theirs divides e^(c/τ) by a constant Z, which is 1 in the paper, and has ε in both denominators.

    h = e^(c/τ)/(e^(c/τ) + Z·(N/M + ε)): as of fewer examples M; and 1 − h loses N/M over N/M + ε for each negative.
    """
    g, n = GOLDEN["crd"], B - 1
    data, z = g[f"{key}_data"], g[f"{key}_Z"]
    student, teacher = wave("one", B, 6).requires_grad_(), wave("two", B, 6)
    settings = {"temperature": g["temperature"], "examples": n / (z * (n / data + g["eps"]))}
    lost = n * math.log1p(g["eps"] * data / n)
    loss = networks.noise_contrast(student, teacher, **settings).mean()
    same(loss + lost, g[f"{key}_loss"])
    same(gradient(loss, student), g[f"{key}_grad"])
    same(networks.noise_contrast(teacher, student, **settings).mean() + lost, g[f"{key}_teacher_loss"])


def test_crds_constant_stays_what_the_first_batch_made_it() -> None:
    """What later batches would have set is far from it. There is none here: Z = 1."""
    g = GOLDEN["crd"]
    first, *later = g["constants"]
    same(first, g["fresh"][0], 1e-6)
    assert all(constants == first for constants in later)
    assert max(now / was for fresh in g["fresh"][1:] for now, was in zip(fresh, first, strict=True)) > 1.3


def test_rkd() -> None:
    """Their means are over all pairs and triples, with those of an example and itself, which lose nothing."""
    g = GOLDEN["rkd"]
    student, teacher = wave("student", *g["student"]).requires_grad_(), wave("teacher", *g["teacher"])
    pairs, triples = (B - 1) / B, (B - 1) * (B - 2) / B**2
    distance, angle = networks.relational(student, teacher)
    for loss, key in ((pairs * distance, "distance"), (triples * angle, "angle")):
        same(loss, g[f"{key}_loss"])
        same(gradient(loss, student), g[f"{key}_grad"])
    weights = {"distance": g["weights"][0] * pairs, "angle": g["weights"][1] * triples}
    loss = networks.RKD(pairs={"a": "a"}, **weights).value(student, teacher, None)
    same(loss, g["loss"])
    same(gradient(loss, student), g["grad"])


def test_rkd_of_twins() -> None:
    """Their distance is 1e-6 at least, ours 0; neither has a gradient there."""
    g = GOLDEN["rkd"]
    student, teacher = wave("student", *g["student"]), wave("teacher", *g["teacher"])
    student[1], teacher[1] = student[0], teacher[0]
    distance, _ = networks.relational(student.requires_grad_(), teacher)
    same((B - 1) / B * distance, g["twice_loss"], 1e-6)
    same((B - 1) / B * gradient(distance, student), g["twice_grad"], 1e-6)
