"""A language model before held-out texts and beside its teacher: likelihood, agreement, size and time."""

import math
import time

import torch
from torch import nn
from torch.nn import functional as F

from limbeck.engine.roles import output_of
from limbeck.problems.problem import PART, Language, evaluating, home_of
from limbeck.tree import moved, rows


@torch.no_grad()
def judge_language(model: nn.Module, problem: Language) -> dict[str, float]:
    """Figures of a model on held-out texts, over all tokens that have a label.

    Returns:
        ``nll`` (mean −ln p of the label), ``perplexity`` (its exponential), ``accuracy``, ``agreement`` (the share at
        which it and the teacher hold the same token for the likeliest), ``kl`` (mean KL of the teacher's probabilities
        to its own), ``parameters``, and ``seconds_per_1000`` texts.
    """
    x, y = problem.heldout
    sums, count, seconds = torch.zeros(4, dtype=torch.float64), 0, 0.0
    with evaluating(model), evaluating(problem.teacher):
        there = home_of(model)
        output_of(model, moved(rows(x, slice(PART)), there))  # a first pass takes longer
        for i in range(0, len(y), PART):
            part, labels = (moved(rows(tree, slice(i, i + PART)), there) for tree in (x, y))
            theirs, began = output_of(problem.teacher, part), time.perf_counter()
            ours = output_of(model, part)
            seconds += time.perf_counter() - began
            p, q = (z[labels >= 0].log_softmax(-1) for z in (theirs, ours))
            label = labels[labels >= 0]
            agree, right = q.argmax(-1) == p.argmax(-1), q.argmax(-1) == label
            kl = (p.exp() * (p - q)).sum()
            parts = (F.nll_loss(q, label, reduction="sum"), right.sum(), agree.sum(), kl)
            sums += torch.stack([part.double().cpu() for part in parts])
            count += len(label)
    nll, accuracy, agreement, kl = (sums / count).tolist()
    return {
        "nll": nll,
        "perplexity": math.exp(min(nll, 700)),
        "accuracy": accuracy,
        "agreement": agreement,
        "kl": kl,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds_per_1000": 1000 * seconds / len(y),
    }


__all__ = ["judge_language"]
