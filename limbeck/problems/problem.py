"""What to distil on: a teacher, data if there are any, conditions, a student network, and how to judge a result."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limbeck.diffusion import Denoiser, Karras, Times, heun, sample
from limbeck.engine.data import Dataset, Source
from limbeck.engine.roles import output_of
from limbeck.rng import Rng
from limbeck.tree import Tree, moved, rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Problem(ABC):
    """Something to distil on. Subclasses say what kind it is; a recipe's signature says which kind it needs."""

    name: str
    device: str = "cpu"
    """Where its networks run best, if there is such a device."""
    threads: int | None = None
    """Threads that suit its networks; small ones are fastest on one, and never wait for a busy core."""
    student: "Callable[[Any, Any], nn.Module] | None" = None
    """What makes its networks for students, where that has settings; ``(problem, prior)`` as in `Stage`."""

    @property
    @abstractmethod
    def teacher(self) -> nn.Module:
        """What knows."""

    @property
    @abstractmethod
    def source(self) -> Source | None:
        """Training batches."""

    @abstractmethod
    def network(self) -> nn.Module:
        """A trainable network for students."""

    def asked_by(self, recipe: Any) -> None:
        """Learns from a recipe how its teacher is asked, if that changes what the teacher's samples are.

        Raises:
            Incompatible: a recipe that asks for what the teacher does not know.
        """
        return

    def keep(self, folder: Path) -> None:
        """Writes into a run's folder what it needs to go on with the same problem; nothing, for most.

        Every process of a run calls it before the run is set up; the first one writes.
        """
        return


class Generative(Problem):
    """A diffusion teacher whose samples can be judged.

    Attributes:
        shape: of one sample.
        times: noise levels of the teacher's sampler.
        steps: of the teacher's sampler; Heun, so 2·steps − 1 passes.
        ratio: noise level σ/α at which a one-step generator suits it.
        particles: how many free samples suit it.
        judged: how many samples of a result are judged.
    """

    shape: tuple[int, ...]
    times: Times = Karras()
    steps: int = 18
    ratio: float = 1.0
    particles: int = 256
    judged: int = 5000

    @property
    @abstractmethod
    def teacher(self) -> Denoiser: ...

    def network(self) -> Denoiser:
        return self.teacher.clone(trainable=True)

    def levels(self, ratios: tuple[float, ...]) -> tuple[float, ...]:
        """Noise levels of a generator's steps that the problem can use, near the ones that a recipe asks for."""
        return ratios

    @abstractmethod
    def conditions(self, n: int, rng: Rng) -> Tree:
        """n conditions as they occur in the data."""

    @abstractmethod
    def reference(self) -> Tensor:
        """Real samples that results are compared with, [N, …]."""

    def unseen(self) -> Tensor | None:
        """Real samples that neither teacher nor student has seen, if there are any."""
        return None

    def features(self, x: Tensor) -> Tensor:
        """Where distances are measured, [B, F]; by default the samples themselves."""
        return x.flatten(1)

    @abstractmethod
    def agrees(self, x: Tensor, cond: Tree) -> Tensor:
        """Whether each sample is what its condition asks for, boolean [B]."""

    @torch.no_grad()
    def teacher_sample(self, noise: Tensor, cond: Tree) -> Tensor:
        """The teacher's own samples by its full sampler, [B, …], where the noise is."""
        teacher, there = self.asked, home_of(self.teacher)
        grid = self.times.grid(self.steps, teacher.process)
        return sample(heun(teacher, noise.to(there), grid, moved(cond, there))).to(noise.device)

    @property
    def asked(self) -> Denoiser:
        """The teacher as it is asked for samples of its own."""
        return self.teacher

    shown: int = 100
    """How many samples a picture has."""

    def spread(self, n: int) -> Tree:
        """n conditions, each as often as in the data; what results are judged on."""
        return self.conditions(n, Rng(("spread",)))

    @abstractmethod
    def show(self, axes: "Axes", x: Tensor, cond: Tree) -> None:
        """Draws samples into matplotlib axes."""

    @property
    def nfe(self) -> int:
        """Passes of the teacher's full sampler."""
        return 2 * self.steps - 1


class Classification(Problem):
    """A classifier as the teacher, labelled data, and held-out data to judge on.

    Attributes:
        train: inputs [N, …] and labels [N].
        heldout: the same of what nobody has seen.
        classes: how many there are.
    """

    train: tuple[Tensor, Tensor]
    heldout: tuple[Tensor, Tensor]
    classes: int = 10

    @property
    def source(self) -> Source:
        return Dataset(x=self.train[0], y=self.train[1])

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Share of held-out examples that the model gets right."""
        with evaluating(model):
            right = output_of(model, self.heldout[0]).argmax(1) == self.heldout[1]
        return right.double().mean().item()


PART = 8
"""Texts of one pass of those that are held out."""


class Language(Classification):
    """A language model as the teacher: of each token that has a label, the class is which of the vocabulary it is.

    Attributes:
        train: inputs by name, ``{"input_ids": [N, L], …}``, and labels [N, L], `UNLABELLED` where none counts.
        heldout: the same of what nobody has seen.
        classes: tokens of the vocabulary.
    """

    train: tuple[Tree, Tensor]
    heldout: tuple[Tree, Tensor]

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Share of held-out tokens that have a label which the model gets right."""
        x, y = self.heldout
        parts = [slice(i, i + PART) for i in range(0, len(y), PART)]  # logits of all would not fit into memory
        with evaluating(model):
            right = torch.cat([output_of(model, rows(x, part)).argmax(2) == y[part] for part in parts])
        return right[y >= 0].double().mean().item()


def home_of(module: nn.Module) -> torch.device:
    """The device that a module is on."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


@contextmanager
def evaluating(module: nn.Module) -> Generator[None]:
    """Inside, the module is in evaluation mode; after it, in the mode that it was in."""
    was = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was)
