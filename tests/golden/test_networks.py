"""Objectives on logits, and what is projected, against numbers that released code gave: networks.toml, with sources.

Logits are parameters of a student that a run moves by one tick, so that the gradient is compared in which all weights,
factors and means take part. Where released code departs from what we follow, the test says how and asserts that
difference.

s, t: logits of student and teacher [B, C]; p, q their probabilities; y labels.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck import (
    DKD,
    KD,
    OFA,
    CrossEntropy,
    FitNets,
    Linear,
    LumiNet,
    Orthogonal,
    SinKD,
    adaptive_target,
    perceived,
    rest_kl,
    sinkhorn,
    sinkhorn_distance,
    soft_kl,
    target_kl,
)
from limbeck.objectives.networks import branches
from limbeck.objectives.networks.projectors import Same
from tests.golden.waves import F64, GOLDEN, B, Staged, Y, gradient, same, tensor, ticked, wave

S, T = wave("student"), wave("teacher")


def test_every_table_is_compared() -> None:
    text = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_networks*.py"))
    assert [name for name in GOLDEN if name != "inputs" and f'"{name}"' not in text] == []


# KD and DKD


@pytest.mark.parametrize("name", ["kd", "kd_of_repdistiller"])
def test_kd(name: str) -> None:
    g = GOLDEN[name]
    run = ticked(KD(alpha=1.0, temperature=g["temperature"]), S, T)
    same(run.losses["kd"], g["loss"])
    same(run.by[0], g["grad"])


def test_kd_beside_labels() -> None:
    """One α here, where there are two weights there; those of the authors are 1 − α and α."""
    g = GOLDEN["kd"]
    assert g["weights_ce"] + g["weights_kd"] == 1
    run = ticked(KD(alpha=g["weights_kd"], temperature=g["temperature"]), S, T)
    same(run.losses["kd"], g["weighted_ce"] + g["weighted_kd"])
    same(run.by[0], g["weighted_grad"])
    parts = ticked(g["weights_ce"] * CrossEntropy() + g["weights_kd"] * KD(alpha=1.0, temperature=4.0), S, T)
    same(parts.by[0], g["weighted_grad"])


def test_kd_as_cross_entropy() -> None:
    """CE(q, p) = KL(q ‖ p) + H(q), whose last part has no gradient. SinKD's code leaves out T²; ScaleKD's has α·T²."""
    for name in ("kd_of_sinkd", "kd_of_scalekd"):
        g = GOLDEN[name]
        q = (T / g["temperature"]).softmax(1)
        factor = 1.0 if name == "kd_of_sinkd" else g["alpha"] * g["temperature"] ** 2
        run = ticked(KD(alpha=1.0, temperature=g["temperature"]), S, T)
        entropy = -(q * q.log()).sum(1).mean()
        same(factor * (run.losses["kd"] / g["temperature"] ** 2 + entropy), g["loss"])
        same(run.by[0] * factor / g["temperature"] ** 2, g["grad"])
    assert GOLDEN["kd_of_scalekd"]["ce_weight"] == 1 - GOLDEN["kd_of_scalekd"]["alpha"]


def test_dkd() -> None:
    g = GOLDEN["dkd"]
    run = ticked(DKD(alpha=g["alpha"], beta=g["beta"], temperature=g["temperature"]), S, T)
    same(run.losses["dkd"], g["loss"])
    same(run.by[0], g["grad"])
    for key, part in (("target", target_kl), ("rest", rest_kl)):
        s = S.clone().requires_grad_()
        loss = part(s, T, Y, temperature=g["temperature"]).mean()
        same(loss, g[f"{key}_loss"])
        same(gradient(loss, s), g[f"{key}_grad"])


def test_dkd_warms_up() -> None:
    """Epochs count from 1; the weight is a schedule here, which grows within them too."""
    g = GOLDEN["dkd"]
    weight = Linear(first=0.0, last=1.0, until=g["warmup"] / 240)
    for epoch in (1, 5, 20, 30):
        same(weight(epoch / 240) * g["loss"], g[f"epoch_{epoch}_loss"])
    run = ticked(CrossEntropy() + 0.25 * DKD(temperature=g["temperature"]), S, T)
    same(run.by[0], g["epoch_5_grad"])
    same(run.losses["cross_entropy"], g["epoch_ce"])


def test_dkd_where_released_code_rounds() -> None:
    """Theirs takes the logarithm of summed probabilities, and hides the label by −1000; ours leaves it out."""
    g = GOLDEN["dkd"]
    assert g["sure_loss"] == "nan" and set(g["sure_grad"]) == {"nan"}
    s = torch.tensor(g["sure_student"]).requires_grad_()
    losses = [f(s, torch.tensor(g["sure_teacher"]), torch.zeros(2).long()) for f in (target_kl, rest_kl)]
    value = losses[0] + 8 * losses[1]
    value.sum().backward()
    assert value.isfinite().all() and s.grad is not None and s.grad.isfinite().all()
    far, s = tensor(g["far_teacher"])[None], wave("student", 1, 3)
    rest = rest_kl(s, far, torch.tensor([0]))
    same(rest, soft_kl(s[:, 1:], far[:, 1:]))
    assert g["far_rest_loss"] > 1000 > 10 * rest.item()
    assert g["two_classes_rest_loss"] == 0  # DKD refuses two classes, of which nothing is left


# OFA


@pytest.mark.parametrize("row", [0, 1])
def test_adaptive_target(row: int) -> None:
    """T divides logits alone: no T², there as here."""
    g = GOLDEN["ofa"]
    s, temperature = S.clone().requires_grad_(), g["temperature"][row]
    for gamma, expected in zip(g["eps"], g["loss"][row], strict=True):
        loss = adaptive_target(s, T, Y, gamma=gamma, temperature=temperature).mean()
        same(loss, expected)
        if gamma == 1.5:
            same(gradient(loss, s), g["grad"][row])


class Shifted(nn.Module):
    """x plus a parameter, which is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


def test_ofa_with_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exits are added up there, and averaged here: with two, half of theirs."""
    monkeypatch.setattr(branches, "Exit", lambda shape, classes: Shifted())
    g = GOLDEN["ofa"]
    student = Staged(S, wave("one"), wave("three"))
    objective = OFA(taps=("stages.0", "stages.1"), gamma=tuple(g["stages_eps"]), final=g["stages_final_eps"])
    run = ticked(objective, student, T)
    same(run.losses["ofa"], g["stages_kd"] + g["stages_ofa"] / 2)
    for by, expected in zip(run.by, ("exit_grad_1", "exit_grad_2"), strict=False):
        same(2 * by, g[expected])
    same(run.by[2], g["stages_grad"])
    same(F.cross_entropy(S, Y), g["stages_ce"])


def test_ofa_where_released_code_rounds() -> None:
    """Theirs takes the logarithm of a softmax that is 0."""
    g = GOLDEN["ofa"]
    assert g["far_loss"] == "inf" and set(g["far_grad"]) == {"nan"}
    s = tensor([[0.0, -200.0, -900.0]]).requires_grad_()
    loss = adaptive_target(s, torch.zeros(1, 3, dtype=F64), torch.tensor([0])).sum()
    same(loss, 1100 / 3)
    same(gradient(loss, s), [[2 / 3, -1 / 3, -1 / 3]])


# Sinkhorn


def rounded(rounds: int, s: Tensor = S, t: Tensor = T) -> Tensor:
    """Their distance, of our plan: rows are the student's, and all of it sums to B."""
    cost = torch.cdist((s / 2).softmax(1), (t / 2).softmax(1), p=1)
    return B * (sinkhorn(cost, blur=0.1, rounds=rounds) * cost).sum()


def test_sinkhorn_of_sinkd() -> None:
    """Rows first and columns last, as here; rows are the student's there and the teacher's in ours."""
    g = GOLDEN["sinkd"]
    same(B * sinkhorn(tensor(g["cost"]).reshape(B, B), blur=g["epsilon"], rounds=g["rounds"]), g["plan"])
    for rounds in (1, 2, 5):
        same(rounded(rounds), g[f"rounds_{rounds}_loss"])
    s = S.clone().requires_grad_()
    same(g["weight"] * rounded(g["rounds"], s), g["loss"])
    same(g["weight"] * gradient(rounded(g["rounds"], s), s), g["grad"])
    swapped = sinkhorn_distance(T, S, temperature=g["temperature"], blur=g["epsilon"], rounds=g["rounds"])
    same(g["weight"] * B * swapped, g["loss"])


def test_sinkd_is_theirs_over_the_batch_and_their_weight() -> None:
    """Both ways round it converges to one plan; after 20 rounds they are within 0.5 % of each other."""
    g = GOLDEN["sinkd"]
    settings = {"temperature": g["temperature"], "blur": g["epsilon"]}
    same(B * ticked(SinKD(rounds=1000, **settings), S, T).losses["sinkd"], g["converged"], 1e-6)
    run = ticked(SinKD(rounds=g["rounds"], **settings), S, T)
    factor = g["weight"] * B
    assert abs(factor * run.losses["sinkd"] / g["loss"] - 1) < 5e-3
    assert g["other_temperature_loss"] == g["loss"]  # theirs is at 2 whatever it is built with


def test_sinkhorn_of_pot() -> None:
    """Columns first and rows last, which is ours the other way round: as many rounds of it, to the last digits."""
    g = GOLDEN["pot"]
    for rounds in (1, 2, 5, 20):
        ours = sinkhorn_distance(S, T, temperature=g["temperature"], blur=g["reg"], rounds=rounds)
        same(ours, g[f"rounds_{rounds}"])
    ours = sinkhorn_distance(S, T, temperature=g["temperature"], blur=g["reg"], rounds=3000)
    same(ours, g["converged"])
    same(B * ours, GOLDEN["sinkd"]["converged"], 1e-6)
    cost = torch.cdist((S / 2).softmax(1), (T / 2).softmax(1), p=1)
    same(sinkhorn(cost, blur=g["reg"], rounds=3000), g["plan"])
    exact = sinkhorn_distance(S, T, temperature=g["temperature"], blur=0.004, rounds=4000)
    same(exact, g["exact"], 1e-4)


def test_oblong_plans_of_pot() -> None:
    g, cost = GOLDEN["pot"], wave("one", 3, 5).abs()
    plan = sinkhorn(cost, blur=g["oblong_reg"], rounds=3000)
    same(plan, g["oblong_plan"])
    same((plan * cost).sum(), g["oblong"])
    sharp = sinkhorn(cost, blur=0.006, rounds=4000)
    same((sharp * cost).sum(), g["oblong_exact"], 1e-3)


# LumiNet


def test_luminet() -> None:
    """A factor α² stands where ours has T²."""
    g = GOLDEN["luminet"]
    same(perceived(S), g["perception"])
    run = ticked(LumiNet(temperature=g["temperature"]), S, T)
    factor = (g["alpha"] / g["temperature"]) ** 2
    same(factor * run.losses["luminet"], g["loss"])
    same(factor * run.by[0], g["grad"])


# Hints and projectors


def test_hints() -> None:
    g = GOLDEN["hint"]
    run = ticked(FitNets(pairs={"head": "head"}, projector=Same()), Staged(S), Staged(T))
    same(run.losses["fitnets"], g["loss"])
    same(run.by[0], g["grad"])


@pytest.mark.parametrize("name", ["vkd", "vkd_square"])
def test_orthogonal_projections(name: str) -> None:
    """Theirs come of Householder's reflections or of exp, ours of Cayley's map; each projection is one of ours too."""
    g = GOLDEN[name]
    matrix, few, many = tensor(g["matrix"]), g["student"][2], g["teacher"][1]
    same(matrix.T @ matrix, torch.eye(few))
    x = wave("student", *g["student"]).requires_grad_()
    shape = torch.Size((B, many))
    made = Orthogonal().build(torch.Size((B, few)), shape).double()
    with torch.no_grad():
        made.inner.weight.copy_(cayley_of(rotation(matrix.T)) / 2)
    projected = made(x.mean(1))
    same(projected, g["projected"])
    known = perceived(wave("teacher", *g["teacher"]).mean((2, 3)).T).T  # `F.layer_norm`: by example, over channels
    loss = F.smooth_l1_loss(projected, known)
    same(loss, g["loss"])
    same(gradient(loss, x), g["grad"])
    if name == "vkd":
        same(known, g["normalised"])
    else:
        w = wave("one", many, few).tril()
        same(torch.linalg.matrix_exp(w - w.T), matrix)


def rotation(rows: Tensor) -> Tensor:
    """A rotation whose first rows are these orthonormal ones."""
    few, many = rows.shape
    q = torch.linalg.qr(torch.cat([rows.T, torch.eye(many, dtype=F64)], 1))[0].T
    q[:few] = rows
    if torch.linalg.det(q) < 0:
        q[-1] *= -1
    return q


def cayley_of(q: Tensor) -> Tensor:
    """The skew A with (1 − A)⁻¹(1 + A) = Q."""
    one = torch.eye(len(q), dtype=F64)
    return torch.linalg.solve(q + one, q - one)
