"""Several teachers at once against numbers that released code gave: networks.toml, with sources."""

import torch
from torch import Tensor

from tests.golden.waves import F64, GOLDEN, B, exporting, gradient, same, tensor, wave

networks = exporting("cosine_and_smooth", "heard", "standardised")

G = GOLDEN["unic"]


def sides(k: int) -> list[tuple[Tensor, Tensor]]:
    """(student's, teacher's) class tokens [B, 1, D] and patches [B, 3, D] of the k-th teacher."""
    dim, scale = G["dims"][k], G["scales"][k]
    shapes = {"class": (B, 1, dim), "patches": (B, 3, dim)}
    return [
        (
            (scale * wave(G[f"student_{what}"][k], *shape)).requires_grad_(),
            scale / 2 * wave(G[f"teacher_{what}"][k], *shape),
        )
        for what, shape in shapes.items()
    ]


def test_cosine_and_smooth() -> None:
    """Halves as there, where patches and the class token count alike; ours is of one tap."""
    assert G["lam"] == [0.5, 0.5]
    for k in range(3):
        losses = [networks.cosine_and_smooth(*side) for side in sides(k)]
        same(losses[0], (tensor(G["cosine"][k]) + tensor(G["smooth"][k])) / 2)
        same((losses[0] + losses[1]) / 2, G["each"][k])


def test_dropped_teachers() -> None:
    """One normaliser for the batch: an example counts as often as it hears a teacher."""
    tokens = [sides(k) for k in range(3)]
    losses = torch.stack([sum(networks.cosine_and_smooth(*side) for side in of) / 2 for of in tokens], 1)
    worst, given = losses.argmax(1), iter(G["random"])
    chance = tensor([[0.0 if k == worst[i] else next(given) for k in range(3)] for i in range(B)])
    kept = networks.heard(losses.detach(), chance, drop=G["drop"])
    assert kept.T.int().tolist() == G["kept"] and len(set(kept.sum(1).tolist())) > 1
    loss = (kept * losses).sum() / kept.sum()
    same(loss, G["loss"])
    same(kept.sum(0) / kept.sum(), G["coefficients"])
    for k, of in enumerate(tokens):
        same(gradient(loss, of[0][0]), G[f"grad_{k + 1}"])
    same(losses.mean(), G["all_kept_loss"])
    same(losses.amax(1).mean(), G["worst_alone_loss"])
    for drop, key in ((0.0, "all_kept_loss"), (1.0, "worst_alone_loss")):
        kept = networks.heard(losses.detach(), chance, drop=drop)
        same((kept * losses).sum() / kept.sum(), G[key])


def test_statistics_of_teachers() -> None:
    """Theirs are running averages of mean and unbiased deviation, and a batch meets those before it: the first none.

    Ours are of the batch itself.
    """
    batches = [wave(name, B, 5) for name in ("student", "teacher", "one")]
    mean, std = torch.zeros(5, dtype=F64), torch.ones(5, dtype=F64)
    for x, momentum, expected in zip(batches, G["norm_momenta"], G["norm_out"], strict=True):
        same((x - mean) / (std + 1e-6), expected)
        mean, std = mean + momentum * (x.mean(0) - mean), std + momentum * (x.std(0) + 1e-6 - std)
    same(mean, G["norm_mean"])
    same(std, G["norm_std"])
    same(G["norm_out"][0], batches[0], 1e-5)
    ours = networks.standardised(batches[0][:, None], eps=0.0)[:, 0]
    same(ours * (1 - 1 / B) ** 0.5, (batches[0] - batches[0].mean(0)) / batches[0].std(0))
