"""DisBack: the target of score distillation goes back along the path on which the teacher was degraded."""

from dataclasses import dataclass

from torch import Tensor

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.guidance import Guidance
from limbeck.engine.objective import Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Noised, Tick
from limbeck.errors import BadSetting, in_range
from limbeck.objectives.score.critic import Critic
from limbeck.objectives.score.parts import Part


@dataclass(frozen=True, kw_only=True)
class Backtrack(Part):
    """ε_k(x_t, t) of one teacher after another, k moving along a path with the run; the last is the teacher itself.

    Those before the last share the first part of the run evenly. Released code may stop at the first target where
    periods are long; this walks to the end, as the paper says.

    Args:
        path: names of teachers, from the one most like the student to the true one.
        until: the share of the run that those before the last take.
        guidance: in the place of the objective's.

    Raises:
        BadSetting: an empty path, a share outside [0, 1].
        Incompatible: a name that no teacher has.

    Source: Zhang et al. 2024, arXiv 2408.15991, algorithm 2.

    >>> walk = Backtrack(path=("path2", "path1", "teacher"), until=0.5)
    >>> [walk.target(progress) for progress in (0.0, 0.2, 0.25, 0.5, 0.9)]
    ['path2', 'path2', 'path1', 'teacher', 'teacher']
    """

    path: tuple[str, ...] = ("teacher",)
    until: float = 0.5
    guidance: Guidance | None = None

    def __post_init__(self) -> None:
        in_range("until", self.until, 0, 1)
        if not self.path:
            raise BadSetting("Backtrack needs a path of at least one teacher, got none.")

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        for name in self.path:
            cast.need(name, Denoiser, by=self)
        return ()

    def target(self, progress: float) -> str:
        """Who is the target at this progress of the run, in [0, 1)."""
        before = len(self.path) - 1
        return self.path[before if progress >= self.until else int(before * progress / self.until)]

    def eps(self, tick: Tick, seen: Noised, guidance: Guidance | None) -> Tensor:
        return seen.eps_of(tick.denoise(self.target(tick.progress), seen, self.guidance or guidance))


@dataclass(frozen=True, kw_only=True)
class CriticOf(Critic):
    """A critic that starts as a named teacher: as one that already knows the student's first samples.

    Args: those of `Critic`.
        who: which teacher.

    Source: DisBack, arXiv 2408.15991, sec. 4.3: the fake score starts as the end of the recorded path.
    """

    who: str = "teacher"

    def join(self, cast: Cast) -> Term:
        cast.role("critic", lambda: self.network(cast.need(self.who, Denoiser, by=self)), spec=self)
        return super().join(cast)
