"""One-for-all distillation: exits from the student's own stages are taught by the teacher's logits alone."""

from dataclasses import dataclass

from torch import Size, Tensor, nn
from torch.nn import functional as F

from limbeck.engine.objective import Loss, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import BadSetting, above_zero
from limbeck.objectives.networks.features import one_each
from limbeck.objectives.networks.logits import Between, both_logits, hard_labels
from limbeck.objectives.networks.projectors import channels


def adaptive_target(
    student: Tensor, teacher: Tensor, y: Tensor, *, gamma: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """−Σ_c [(p_c + 1_{c = y})^γ − 1_{c = y}]·ln softmax(s/T)_c, p = softmax(t/T), [B].

    γ = 1 is the cross-entropy to the teacher; above it the label counts more and what the teacher is unsure of less,
    which suits students that see differently.

    Args:
        student: logits s, [B, C].
        teacher: logits t, [B, C]; no gradient flows to them.
        y: labels, [B].
        gamma: γ.
        temperature: T.

    Source: OFA-KD, Hao et al. 2023, arXiv 2310.19444, as in the released code: the other classes' probabilities
    are raised to γ too.

    >>> import torch
    >>> s, t = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    >>> soft = -(t.softmax(1) * s.log_softmax(1)).sum(1)
    >>> bool(torch.allclose(adaptive_target(s, t, torch.tensor([0])), soft))
    True
    """
    label = F.one_hot(y, student.shape[1]).to(student)
    p = (teacher.detach() / temperature).softmax(1)
    return -(((p + label) ** gamma - label) * (student / temperature).log_softmax(1)).sum(1)


class Exit(nn.Module):
    """Logits from features of any shape: mean over places, a hidden layer, a linear head.

    Args:
        shape: of the features, [B, …].
        classes: outputs.
    """

    def __init__(self, shape: Size, classes: int):
        super().__init__()
        width = channels(shape)
        self.places = len(shape) - 2
        self.net = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, classes))
        self.maps = len(shape) == 4

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C]."""
        if self.places:
            x = x.mean((2, 3)) if self.maps else x.mean(1)
        return self.net(x)


@dataclass(frozen=True, kw_only=True)
class OFA(Between):
    """`adaptive_target` at the student's logits and at an exit from each tapped stage, mean over exits.

    Exits learn along with the student and are dropped afterwards. Features of the teacher are not used, so that the
    two may be of any kind.

    Args:
        taps: stages of the student; names, see `tap`.
        gamma: γ of the exits, one for all or one for each.
        final: γ of the student's own logits.
        temperature: T.

    Raises:
        BadSetting: exponents that are not above 0 or not as many as taps.
        Incompatible: no teacher, no such taps, no inputs x or labels y.

    Source: Hao et al. 2023, arXiv 2310.19444; the authors add cross-entropy, and sum over exits
    in their code.

    >>> import torch
    >>> from limbeck import Dataset, distill
    >>> student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> data = Dataset(x=torch.randn(9, 4), y=torch.arange(9) % 3)
    >>> run = distill(nn.Linear(4, 3), student, OFA(taps=("1",)), data, steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['ofa']
    """

    taps: tuple[str, ...] = ()
    gamma: float | tuple[float, ...] = 1.4
    final: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for value in (self.final, self.temperature, *self._gammas):
            above_zero("an exponent or temperature of OFA", value)
        if not self.taps:
            raise BadSetting("OFA needs taps of the student, such as taps=('blocks.1',).")
        if len(self._gammas) != len(self.taps):
            raise BadSetting(f"OFA needs an exponent for each of {len(self.taps)} taps, got {len(self._gammas)}.")

    @property
    def _gammas(self) -> tuple[float, ...]:
        return self.gamma if isinstance(self.gamma, tuple) else (self.gamma,) * len(self.taps)

    @property
    def fields(self) -> tuple[str, ...]:
        return ("x", "y")

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        one_each(cast.tap(self.student, *self.taps, by=self), self.taps, by=self)
        whose = "" if self.student == "student" else f" of {self.student}"
        role = (f"exits{whose} at {', '.join(self.taps)}",)
        exits = cast.role(*role, lambda: self._exits(cast), spec=self).module
        assert isinstance(exits, nn.ModuleList)

        def loss(tick: Tick) -> Loss:
            s, t = both_logits(tick, self, self.student, self.teacher)
            y, seen = hard_labels(tick.batch, by=self), tick.answer(self.student)
            value = adaptive_target(s, t, y, gamma=self.final, temperature=self.temperature)
            for name, module, gamma in zip(self.taps, exits, self._gammas, strict=True):
                out = module(seen.features[name]).to(s)
                value = value + adaptive_target(out, t, y, gamma=gamma, temperature=self.temperature) / len(self.taps)
            return Loss(value)

        return (Term(self.name, (self.student, *role), loss, of=self),)

    def _exits(self, cast: Cast) -> nn.ModuleList:
        seen, known = cast.dry(self.student).features, cast.dry(self.teacher).out
        assert known is not None
        made = (Exit(seen[name].shape, known.shape[1]) for name in self.taps)
        return nn.ModuleList(made).to(next(cast.module(self.student).parameters()))


__all__ = ["OFA", "Exit", "adaptive_target"]
