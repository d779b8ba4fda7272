"""Objectives on maps and tokens against numbers that released code gave: networks.toml, with sources."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck import Projection, perceived
from tests.golden.waves import F64, GOLDEN, B, exporting, gradient, same, tensor, wave

networks = exporting("MGD", "VkD", "attention_map", "attention_transfer")
regeneration = pytest.importorskip("limbeck.objectives.networks.regeneration")

ANY = {"pairs": {"a": "a"}}


# Attention transfer


@pytest.mark.parametrize("case", ["same", "larger", "smaller"])
def test_attention_transfer(case: str) -> None:
    """Their mean is over places, too. A smaller student's teacher is pooled there; ours enlarges the student."""
    g = GOLDEN["attention"]
    student, teacher = wave("student", *g[f"{case}_student"]).requires_grad_(), wave("teacher", *g[f"{case}_teacher"])
    places = min(student[0, 0].numel(), teacher[0, 0].numel())
    if case == "smaller":
        enlarged = networks.attention_transfer(student, teacher).mean() / teacher[0, 0].numel()
        assert abs(enlarged / g["smaller_loss"] - 1) > 0.1
        teacher = F.adaptive_avg_pool2d(teacher, student.shape[2:])
    loss = networks.attention_transfer(student, teacher).mean() / places
    same(loss, g[f"{case}_loss"])
    same(gradient(loss, student), g[f"{case}_grad"])
    if case == "same":
        same(networks.attention_map(student), g["map"])
        same(networks.attention_transfer(student, teacher, power=4.0).mean() / places, g["fourth_power_loss"])


# MGD


@pytest.mark.parametrize("over", ["channels", "places"])
def test_mgd(over: str) -> None:
    """Their weight is in their loss. What is above 1 − ratio of the places, below it of the channels, is hidden."""
    g = GOLDEN[{"channels": "mgd_channels", "places": "mgd_places"}[over]]
    student, teacher = wave("student", 2, 3, 3, 3).requires_grad_(), wave("teacher", 2, 4, 3, 3)
    align, generator = Projection().build(student.shape, teacher.shape).double(), regeneration.Generator(4).double()
    named = {"1": ("one", "two"), "0": ("three", "four"), "2": ("two", "three")}
    with torch.no_grad():
        for part, (weight, bias) in zip(
            (align.inner[0], generator.net[0], generator.net[2]), named.values(), strict=True
        ):
            part.weight.copy_(wave(weight, *part.weight.shape))
            part.bias.copy_(wave(bias, *part.bias.shape))
    scores = (wave("two", *((2, 4, 1, 1) if over == "channels" else (2, 1, 3, 3))) + 1) / 2
    mask = regeneration.kept(scores if over == "channels" else 1 - scores, ratio=g["ratio"])
    same(mask, g["kept"])
    made = generator(align(student) * mask)
    loss = g["alpha"] * networks.MGD(**ANY, over=over).value(made, teacher, None).mean()
    same(loss, g["loss"])
    same(gradient(loss, student), g["grad"])
    same(gradient(loss, align.inner[0].weight), g["align_grad"])


# V_kD


def test_vkd_for_classification() -> None:
    """Theirs normalises each example over its channels, ours each channel over the batch; the rest is the same."""
    g = GOLDEN["vkd"]
    projected, known = tensor(g["projected"]).reshape(B, 5), wave("teacher", *g["teacher"]).mean((2, 3))
    by_batch = tensor(g["normalised"]).reshape(B, 5)
    same(perceived(known.T).T, by_batch)
    same(F.smooth_l1_loss(projected, by_batch), g["loss"])
    ours = networks.VkD(**ANY).value(projected, known, None)
    same(ours, F.smooth_l1_loss(projected, perceived(known)))
    assert abs(ours / g["loss"] - 1) > 0.1


def test_vkd_for_detection() -> None:
    """By rows, as ours; the student, too, and with the unbiased variance."""
    g = GOLDEN["vkd_detection"]
    names = (("student", "teacher"), ("one", "two"), ("three", "four"))
    shapes = (((12, 4), (2, 4, 2, 3)), ((6, 4), (2, 3, 4)), ((12, 4), (2, 2, 3, 4)))
    sides = [(wave(s, *a).requires_grad_(), wave(t, *b)) for (s, t), (a, b) in zip(names, shapes, strict=True)]
    total = torch.zeros((), dtype=F64)
    for student, teacher in sides:
        rows = (teacher.movedim(1, -1) if teacher is sides[0][1] else teacher).flatten(0, -2)
        total = total + F.smooth_l1_loss(standardised(student), standardised(rows))
    same(total, g["loss"])
    same(gradient(total, sides[0][0]), g["patch_grad"])
    same(gradient(total, sides[1][0]), g["body_grad"])


def standardised(x: Tensor) -> Tensor:
    """Ours without eps, over the unbiased deviation."""
    return perceived(x, eps=0.0) * (1 - 1 / len(x)) ** 0.5
