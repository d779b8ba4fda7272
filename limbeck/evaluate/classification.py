"""A classifier before held-out labels and beside its teacher: accuracy, calibration, agreement, and what it costs."""

import statistics
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from limbeck.problems.problem import Classification, evaluating


def calibration_error(probabilities: Tensor, y: Tensor, *, bins: int = 15) -> float:
    """The expected calibration error Σ_b (n_b/n)·|accuracy_b − confidence_b|, by bins of equal width in confidence.

    Args:
        probabilities: [N, C].
        y: classes, [N] integers.
        bins: how many.

    Source: Guo et al. 2017, arXiv 1706.04599.

    >>> calibration_error(torch.tensor([[0.8, 0.2], [0.8, 0.2]]), torch.tensor([0, 1])) - 0.3 < 1e-6
    True
    """
    confidence, chosen = probabilities.double().max(1)
    into = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, into, (chosen == y).double() - confidence)
    return (gap.abs().sum() / len(y)).item()


def multiply_adds(model: nn.Module, x: Tensor) -> int:
    """Multiplications with an addition in the matrix products of one pass over x.

    >>> multiply_adds(nn.Linear(4, 3), torch.zeros(1, 4))
    12
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused kernels are not counted
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2


@torch.no_grad()
def judge_classifier(model: nn.Module, problem: Classification) -> dict[str, float]:
    """Figures of a model on held-out data.

    Returns:
        ``accuracy``, ``nll`` (mean −ln p of the label), ``ece`` (see `calibration_error`), ``agreement`` (the share on
        which it and the teacher choose the same class), ``parameters``, ``multiply_adds`` of one example, and
        ``seconds_per_1000`` examples at one time, the median of three.

    >>> from limbeck.problems.digits_classify import DigitsClassify
    >>> problem = DigitsClassify()
    >>> figures = judge_classifier(problem.teacher, problem)
    >>> figures["agreement"], figures["accuracy"] > 0.99, figures["ece"] < 0.02
    (1.0, True, True)
    """
    x, y = problem.heldout
    with evaluating(model), evaluating(problem.teacher):
        out, theirs = model(x), problem.teacher(x)
        seconds, batch = list[float](), x[torch.arange(1000) % len(x)]
        for _ in range(3):
            began = time.perf_counter()
            model(batch)
            seconds.append(time.perf_counter() - began)
    chosen = out.argmax(1)
    return {
        "accuracy": (chosen == y).double().mean().item(),
        "nll": F.cross_entropy(out, y).item(),
        "ece": calibration_error(out.softmax(1), y),
        "agreement": (chosen == theirs.argmax(1)).double().mean().item(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "multiply_adds": multiply_adds(model, x[:1]),
        "seconds_per_1000": statistics.median(seconds),
    }
