"""Contrast of what a denoiser makes of two noised views of one example, between it and its own moving average."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from limbeck.diffusion.denoiser import Featured
from limbeck.diffusion.times import LogNormal, Times
from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.optim import EMA
from limbeck.engine.roles import Cast
from limbeck.engine.student import Draw
from limbeck.engine.tick import Tick
from limbeck.errors import Incompatible, above_zero, in_range
from limbeck.objectives.networks.contrast import info_nce, pairs_of

HEAD = "noised views' head"


@dataclass(frozen=True, kw_only=True)
class NoisedViews(Objective):
    """`info_nce` of p(h(x_t)) and the moving average's p(h(x'_s)), h a denoiser's feature, p a perceptron.

    x and x' are two views of an example, the fields x and ``pair``, noised to levels t and s of their own; neither pass
    sees a condition, and both end at the feature. The head p learns beside the denoiser and has an average, too.

    Args:
        tap: h.
        times: noise levels of the student's view, and of the other.
        temperature: τ.
        outputs: of p.
        ema: of the averages.

    Raises:
        BadSetting: a temperature that is not above 0, fewer than one output.
        Incompatible: a student that shows no features or none of that name, no inputs x and pair, a batch of one or
            that is cut.

    Source: DDAE++, Xiang et al. 2025, arXiv 2505.10999, for contrast between noised views beside denoising; Chen et al.
    2021, arXiv 2104.02057, for the moving average, without the latter's second head and its loss in both directions.

    >>> from limbeck import Dataset, Trained, distill
    >>> from limbeck.problems.networks import ResidualMLP
    >>> net = Trained(ResidualMLP(shape=(2,), width=16, blocks=2))
    >>> data = Dataset(x=torch.randn(9, 2), pair=torch.randn(9, 2))
    >>> sorted(next(iter(distill(None, net, NoisedViews(tap="block0"), data, steps=1, batch=8))).losses)
    ['noisedviews']
    """

    coupled: ClassVar[bool] = True
    tap: str
    times: Times = field(default_factory=LogNormal)
    temperature: float = 0.2
    outputs: int = 64
    ema: EMA = EMA(decay=0.99)

    def __post_init__(self) -> None:
        above_zero("temperature", self.temperature)
        in_range("outputs", self.outputs, 1)

    def check(self, cast: Cast) -> None:
        student = cast.need("student", Featured, by=self)
        if self.tap not in student.taps:
            fit = ", ".join(student.taps)
            raise Incompatible(type(self).__name__, need=f"a student with a feature {self.tap!r}", got="none", fit=fit)
        cast.need_fields("x", "pair", by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        student = cast.need("student", Featured, by=self)
        width = student.taps[self.tap]

        def make() -> nn.Module:
            return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.outputs))

        name = f"{HEAD} {self.tap}"
        head = cast.role(name, make, spec=self).module
        mean, mean_head = cast.target("student", self.ema), cast.target(name, self.ema)
        assert isinstance(mean, Featured)  # the average is of the student's kind

        def loss(tick: Tick) -> Loss:
            one = tick.noised(self.times, of="data")
            two = tick.at(Draw(tick.batch["pair"]), self.times, (self, "pair"))
            seen = student.look(one.x_t, one.t, taps=(self.tap,), x0=False).features[self.tap]
            with torch.no_grad():
                theirs = mean_head(mean.look(two.x_t, two.t, taps=(self.tap,), x0=False).features[self.tap].flatten(1))
            return Loss(info_nce(head(pairs_of(seen, by=self)), theirs, temperature=self.temperature).mean())

        return (Term("noisedviews", ("student", name), loss, coupled=True, of=self),)


__all__ = ["NoisedViews"]
