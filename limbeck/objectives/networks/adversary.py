"""An adversary on outputs: what tells the student's predictions from the teacher's."""

from dataclasses import dataclass, field

from torch import Tensor, nn

from limbeck.engine.objective import Loss, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import in_range
from limbeck.objectives.adversary import AdversarialLoss, NonSaturating, summed
from limbeck.objectives.networks.logits import Between, both_logits


@dataclass(frozen=True, kw_only=True)
class OutputGAN(Between):
    """A discriminator of three layers sees log-probabilities: the teacher's are real, the student's are not.

    At its optimum under the default loss D(z) is ln of how much oftener the teacher says z than the student does, over
    the whole of the data: it does not know what was asked. The student follows it beside another loss.

    Args: those of `Between`.
        hidden: width of its two hidden layers.
        loss: of student and discriminator, by its logits.

    Raises:
        BadSetting: a width below 1.
        Incompatible: no teacher, no inputs x.

    Source: MEAL V2, Shen & Savvides 2020, arXiv 2009.08453. In the authors' code student and discriminator descend
    the same cross-entropy; here they are adversaries.

    >>> import torch
    >>> from limbeck import Dataset, distill
    >>> run = distill(nn.Linear(4, 3), nn.Linear(4, 3), OutputGAN(), Dataset(x=torch.randn(9, 4)), steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['outputgan', 'outputgan discriminator']
    """

    hidden: int = 16
    loss: AdversarialLoss = field(default_factory=NonSaturating)

    def __post_init__(self) -> None:
        in_range("hidden", self.hidden, 1)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        role = f"{self.name} discriminator"
        judge = cast.role(role, lambda: self._network(cast), spec=self).module

        def judged(tick: Tick) -> tuple[Tensor, Tensor]:
            fake, real = (judge(z.log_softmax(-1)) for z in both_logits(tick, self, self.student, self.teacher))
            return fake, real

        def student(tick: Tick) -> Loss:
            return Loss(summed(self.loss.student(judged(tick)[0])))

        def discriminator(tick: Tick) -> Loss:
            return Loss(summed(self.loss.discriminator(*judged(tick))))

        return Term(self.name, self.student, student, of=self), Term(role, role, discriminator, of=self)

    def _network(self, cast: Cast) -> nn.Module:
        out = cast.dry(self.student).out
        assert out is not None
        widths = out.shape[-1], self.hidden
        layers = (
            nn.Linear(*widths),
            nn.SiLU(),
            nn.Linear(self.hidden, self.hidden),
            nn.SiLU(),
            nn.Linear(self.hidden, 1),
        )
        return nn.Sequential(*layers).to(next(cast.module(self.student).parameters()))


__all__ = ["OutputGAN"]
