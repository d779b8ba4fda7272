"""ScaleKD's two views and its projector against numbers that released code gave: networks.toml, with sources."""

import torch
from torch.nn import functional as F

from tests.golden.waves import GOLDEN, exporting, gradient, same, wave

networks = exporting("CrossAttention", "DualView", "alternating", "direction_error")


def test_dual_view() -> None:
    """Theirs sums over places, with weights 0.08 and 0.06; removing DCT's first coefficient removes the mean."""
    g = GOLDEN["scalekd"]
    tokens, teacher = wave("student", 2, 9, 6).requires_grad_(), wave("teacher", 2, 6, 3, 3)
    same(networks.alternating(teacher), g["without_mean"])
    student = tokens.mT.unflatten(2, (3, 3))
    spatial = 9 * g["alpha"][0] * networks.direction_error(student, teacher).mean()
    other = (
        9
        * g["alpha"][1]
        * networks.direction_error(networks.alternating(student), networks.alternating(teacher)).mean()
    )
    for loss, key in ((spatial, "spatial"), (other, "frequency")):
        same(loss, g[f"{key}_loss"])
        same(gradient(loss, tokens), g[f"{key}_grad"])
    ours = networks.DualView(pairs={"a": "a"}).value(tokens, teacher, None).mean()
    same(9 * g["alpha"][0] * ours, g["spatial_loss"] + g["frequency_loss"])


def test_attention_of_scalekd() -> None:
    """softmax(5·qᵀk/√d)·v over heads: ours with queries that are five times as long."""
    g = GOLDEN["scalekd"]
    weights = [wave(w, 6, n) / n**0.5 for w, n in zip(g["attention_weights"], (6, 4, 4, 6), strict=True)]
    biases = [wave(w, 6) for w in g["attention_biases"]]
    made = networks.CrossAttention(heads=g["heads"]).build(torch.Size((2, 9, 4)), torch.Size((2, 9, 6))).double().attend
    wider = [weights[0] * g["softmax_scale"], *(F.pad(w, (0, 2)) for w in weights[1:3])]
    with torch.no_grad():
        made.in_proj_weight.copy_(torch.cat(wider))
        made.in_proj_bias.copy_(torch.cat([biases[0] * g["softmax_scale"], *biases[1:3]]))
        made.out_proj.weight.copy_(weights[3])
        made.out_proj.bias.copy_(biases[3])
    keys = F.pad(wave("student", 2, 9, 4), (0, 2))
    out, _ = made(wave("two", 2, 9, 6), keys, keys, need_weights=False)
    same(out, g["attention"])
