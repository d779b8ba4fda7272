"""Knowledge distillation between two networks beside torchdistill 1.1.5 (MIT).

Both sides have the same pair, batches, losses, weights and fused AdamW, and end with the same parameters, which is
checked first. Batches are made before, so that no side pays for data. A step of torchdistill is what its examples do:
hooks, ``forward_process``, ``post_forward_process`` and the loss as a number. A step of ours also looks at norms of
gradients, which is how it finds what is not finite. Four things are measured, on one thread, in turn:

- step: CPU time of whole steps, ours over theirs (medians of pairs);
- memory: the most bytes that tensors hold at one moment of a step, ours over theirs;
- rest: what a step takes beyond its passes and updates (the teacher forward, the student forward and backward, and
  AdamW), for losses, hooks and bookkeeping; medians of each, and ours over theirs; where networks are small, for beside
  large ones it is less than what their times vary by;
- taps: forward and backward with a tap, over a model edited by hand to return that feature;
- floor: the rest of a loop that somebody would write by hand for KD alone, with the loss as a number, and with norms of
  gradients too, as ours has them: what no library of such steps is below.

torchdistill wants torchvision, of which it needs nothing here: a stand-in takes its place. In an environment that has
Limbeck: ``pip install --no-deps torchdistill==1.1.5 pyyaml``.

    python benchmarks/networks.py
"""

import copy
import logging
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from _paired import interleaved
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck import KD, RKD, Adam, Drawn, FitNets, Objective, Run, distill, tap
from limbeck.evaluate.memory import peak
from limbeck.problems.networks import MLP, ConvNet
from limbeck.rng import Rng, seeded

LR, TEMPERATURE, ALPHA = 1e-3, 4.0, 0.9
TARGETS = {"step": 1.0, "memory": 1.0, "rest": 0.5, "taps": 1.02}


@dataclass(frozen=True)
class Pair:
    """Two networks and their batches.

    Args:
        teacher: makes it.
        student: makes it.
        shape: of an input.
        batch: rows of a step.
        tap: a submodule of both.
        widths: of that feature in student and teacher.
        rounds: of the comparison.
        inner: steps in one measurement.
    """

    teacher: Callable[[], nn.Module]
    student: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    tap: str
    widths: tuple[int, int]
    rounds: int
    inner: int

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """The same two at each call."""
        with seeded("networks"):
            return self.teacher().eval().requires_grad_(False), self.student().train()

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        rng = Rng("batches")
        return [(rng.normal(self.batch, *self.shape), rng.integers(self.batch, 10)) for _ in range(4)]


PAIRS = {
    "large": Pair(
        lambda: ConvNet(classes=10, widths=(32, 64, 128)),
        lambda: ConvNet(classes=10, widths=(16, 32, 64)),
        (1, 32, 32), 128, "blocks.1", (32, 64), 15, 1,
    ),
    "small": Pair(
        lambda: MLP(size=64, classes=10, widths=(64, 64)),
        lambda: MLP(size=64, classes=10, widths=(32, 32)),
        (64,), 32, "blocks.1", (32, 64), 61, 10,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One loss on both sides; a row of the table.

    Args:
        ours: the objective, given the pair.
        theirs: terms of torchdistill's ``WeightedSumLoss``, given the pair.
        projects: whether the student's feature is projected to the teacher's width.
        reads: whether features are read as they are.
    """

    ours: Callable[[Pair], Objective]
    theirs: Callable[[Pair], dict[str, Any]]
    projects: bool = False
    reads: bool = False


def their_kd(pair: Pair) -> dict[str, Any]:
    """(1 − α)·CE + α·T²·KL, as `KD` has it; α is the other weight there."""
    paths = {side: "." for side in ("student_module_path", "teacher_module_path")}
    io = {side: "output" for side in ("student_module_io", "teacher_module_io")}
    settings = {**paths, **io, "temperature": TEMPERATURE, "alpha": 1 - ALPHA, "reduction": "batchmean"}
    return {"kd": {"criterion": {"key": "KDLoss", "kwargs": settings}, "weight": 1.0}}


def their_fitnets(pair: Pair) -> dict[str, Any]:
    """KD, and the mean square between the projected feature and the teacher's."""
    side = {"is_from_teacher": False, "module_path": "projector", "io": "output"}
    goal = {"is_from_teacher": True, "module_path": pair.tap, "io": "output"}
    wrapper = {"key": "SimpleLossWrapper", "kwargs": {"input": side, "target": goal}}
    return {
        **their_kd(pair),
        "hint": {"criterion": {"key": "MSELoss", "kwargs": {}}, "criterion_wrapper": wrapper, "weight": 1.0},
    }


def their_relations(pair: Pair) -> dict[str, Any]:
    """KD, and Huber's differences of relative distances in the batch."""
    paths = {f"{side}_output_path": pair.tap for side in ("student", "teacher")}
    settings = {**paths, "dist_factor": 1.0, "angle_factor": 0.0, "reduction": "mean"}
    return {**their_kd(pair), "relations": {"criterion": {"key": "RKDLoss", "kwargs": settings}, "weight": 1.0}}


def ours_relations(pair: Pair) -> Objective:
    """The same; they also count the pairs of an example with itself, which are 0."""
    return ours_kd(pair) + RKD(pairs={pair.tap: pair.tap}, distance=(pair.batch - 1) / pair.batch, angle=0.0)


def ours_kd(pair: Pair) -> Objective:
    return KD(temperature=TEMPERATURE, alpha=ALPHA)


CASES = {
    "KD": Case(ours_kd, their_kd),
    "KD + FitNets": Case(lambda pair: ours_kd(pair) + FitNets(pairs={pair.tap: pair.tap}), their_fitnets, True),
    "KD + RKD": Case(ours_relations, their_relations, reads=True),
}


def ours(pair: Pair, case: Case) -> Run:
    """Our run."""
    teacher, student = pair.networks()
    turn = iter(k % 4 for k in range(10**9))
    batches = [{"x": x, "y": y} for x, y in pair.batches()]
    data = Drawn(lambda n, rng: batches[0] if n < pair.batch else batches[next(turn)], fields=("x", "y"))
    objective, settings = case.ours(pair), {"steps": 10**9, "batch": pair.batch, "optim": Adam(lr=LR)}
    return distill(teacher, student, objective, data, **settings)


def theirs(pair: Pair, case: Case, start: Run) -> tuple[nn.Module, Callable[[], float]]:
    """torchdistill's student, and a step of it, from where our run starts."""
    from torchdistill.core.distillation import DistillationBox

    teacher, student = pair.networks()
    projectors = [role.module for name, role in start.cast.roles.items() if "projector" in name]
    extra = {}
    if case.projects:
        linear = next(part for part in projectors[0].modules() if isinstance(part, nn.Linear))
        kwargs = {"linear": copy.deepcopy(linear), "path": f"student_model.{pair.tap}"}
        extra = {"auxiliary_model_wrapper": {"key": "Projected", "kwargs": kwargs}}
    own = [f"student_model.{pair.tap}", "projector"] if case.projects else [pair.tap]
    hooked, mine = (
        {"forward_hook": {"input": [], "output": names}} if case.projects or case.reads else {}
        for names in ([pair.tap], own)
    )
    config = {
        "num_epochs": 1,
        "teacher": {"requires_grad": False, "forward_proc": "forward_batch_only", **hooked},
        "student": {"forward_proc": "forward_batch_only", **mine, **extra},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": case.theirs(pair)}},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": LR, "weight_decay": 0.0, "fused": True}},
    }
    box = DistillationBox(teacher, student, {}, config, torch.device("cpu"), None, False, 1.0)
    box.pre_epoch_process(epoch=0)
    turn, batches = iter(k % 4 for k in range(10**9)), pair.batches()

    def step() -> float:
        x, y = batches[next(turn)]
        box.pre_forward_process(sample_batch=x, targets=y, supp_dict=None)
        loss = box.forward_process(sample_batch=x, targets=y, supp_dict=None)
        box.post_forward_process(loss=loss)
        return loss.item()

    return student, step


def bare(pair: Pair) -> Callable[[], None]:
    """The passes and updates that any step needs, and nothing else."""
    teacher, student = pair.networks()
    optim = torch.optim.AdamW(student.parameters(), LR, weight_decay=0.0, fused=True)
    turn, batches, ones = iter(k % 4 for k in range(10**9)), pair.batches(), torch.ones(pair.batch, 10)

    def step() -> None:
        x, _ = batches[next(turn)]
        with torch.no_grad():
            teacher(x)
        student(x).backward(ones)
        optim.step()
        optim.zero_grad()

    return step


def by_hand(pair: Pair, *, norms: bool) -> Callable[[], float]:
    """KD as a loop of its own, with or without a look at the gradient's norm."""
    teacher, student = pair.networks()
    params = [*student.parameters()]
    optim = torch.optim.AdamW(params, LR, weight_decay=0.0, fused=True)
    turn, batches = iter(k % 4 for k in range(10**9)), pair.batches()

    def step() -> float:
        x, y = batches[next(turn)]
        with torch.no_grad():
            known = F.log_softmax(teacher(x) / TEMPERATURE, 1)
        z = student(x)
        soft = F.kl_div(F.log_softmax(z / TEMPERATURE, 1), known, reduction="batchmean", log_target=True)
        loss = ALPHA * TEMPERATURE**2 * soft + (1 - ALPHA) * F.cross_entropy(z, y)
        loss.backward()
        if norms:
            nn.utils.get_total_norm([p.grad for p in params if p.grad is not None]).item()
        optim.step()
        optim.zero_grad()
        return loss.item()

    return step


class Edited(nn.Module):
    """A student that returns its feature with its logits, as somebody would change it by hand."""

    def __init__(self, net: nn.Module, cut: int):
        super().__init__()
        self.net, self.cut = net, cut

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, feature = x if x.dim() == 4 else x.flatten(1), None
        for k, block in enumerate(self.net.blocks):
            x = block(x)
            feature = x if k == self.cut else feature
        return self.net.head(x.mean((2, 3)) if x.dim() == 4 else x), feature


def tapped(pair: Pair) -> tuple[Callable[[], None], Callable[[], None]]:
    """Forward and backward from logits and one feature: by a tap, and by the edited model."""
    x, (_, net), (_, other) = pair.batches()[0][0], pair.networks(), pair.networks()
    edited, taps = Edited(other, int(pair.tap.rpartition(".")[2])), tap(net, pair.tap)

    def by_tap() -> None:
        with taps as seen:
            out = net(x)
        (out.sum() + seen[pair.tap].sum()).backward()
        net.zero_grad()

    def by_hand() -> None:
        out, feature = edited(x)
        (out.sum() + feature.sum()).backward()
        edited.zero_grad()

    return by_tap, by_hand


def same(pair: Pair, case: Case) -> None:
    """Fails unless both sides end with the same parameters after a few steps."""
    run = ours(pair, case)
    student, step = theirs(pair, case, run)
    losses = []
    for _ in range(3):
        losses.append((sum(run.tick().losses.values()), step()))
    assert all(abs(a - b) < 1e-4 * max(1, abs(b)) for a, b in losses), f"the losses are different: {losses}"
    both = zip(run.cast.student.parameters(), student.parameters(), strict=True)
    # Adam makes a whole step of a gradient that is rounding alone, so that means are compared
    assert all((a - b).abs().mean() < LR / 20 for a, b in both), "the steps do different things"


def times(work: Callable[[], object], n: int) -> Callable[[], None]:
    """The work so many times."""

    def repeated() -> None:
        for _ in range(n):
            work()

    return repeated


def stand_in() -> None:
    """Puts empty modules where torchdistill looks for torchvision, unless it is there."""

    class Empty(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return nn.Module

    for name in ("", ".datasets", ".models", ".models.densenet", ".models.resnet"):
        module = Empty(f"torchvision{name}")
        module.__path__ = []
        sys.modules.setdefault(f"torchvision{name}", module)


def find_torchdistill() -> bool:
    """Whether it is there; it is then given a wrapper that projects one feature, as its users would write it."""
    logging.disable(logging.INFO)
    stand_in()
    try:
        from torchdistill.models.registry import register_auxiliary_model_wrapper
        from torchdistill.models.wrapper import AuxiliaryModelWrapper
    except ModuleNotFoundError as error:
        print(f"{error}: pip install --no-deps torchdistill==1.1.5 pyyaml")
        return False

    class Projected(AuxiliaryModelWrapper):
        def __init__(self, student_model: nn.Module, linear: nn.Linear, path: str, **more: object):
            super().__init__()
            self.student_model, self.path = student_model, path
            self.projector: nn.Module = linear
            if isinstance(student_model, ConvNet):
                self.projector = nn.Conv2d(linear.in_features, linear.out_features, 1)
                self.projector.weight.data.copy_(linear.weight.detach()[:, :, None, None])
                self.projector.bias.data.copy_(linear.bias.detach())

        def forward(self, x: Tensor) -> Tensor:
            return self.student_model(x)

        def secondary_forward(self, io_dict: dict[str, dict[str, Tensor]]) -> None:
            self.projector(io_dict[self.path]["output"])

    register_auxiliary_model_wrapper(Projected)
    return True


def held(step: Callable[[], object]) -> int:
    """Peak bytes of a third step."""
    step(), step()
    return peak(step)


def verdict(what: str, value: float) -> str:
    """A figure beside its target."""
    return f"{value:8.3f}{' ' if round(value, 3) <= TARGETS[what] else '!'}"


def compare(pair: Pair, case: Case) -> str:
    """One row."""
    same(pair, case)
    run = ours(pair, case)
    _, step = theirs(pair, case, run)
    works = [times(work, pair.inner) for work in (run.tick, step, bare(pair))]
    rows = [[1e3 * x / pair.inner for x in row] for row in interleaved(*works, rounds=pair.rounds)]
    a, b, _ = (statistics.median(column) for column in zip(*rows, strict=True))
    ratio = statistics.median(x / y for x, y, _ in rows)
    rest = [statistics.median(row[k] - row[2] for row in rows) for k in (0, 1)]
    del run, step, works
    run = ours(pair, case)
    mine = held(run.tick)
    other = theirs(pair, case, run)[1]
    del run
    memory = mine / held(other)
    figures = f"{a:8.2f}{b:8.2f}{verdict('step', ratio)}{verdict('memory', memory)}"
    return figures if pair.inner == 1 else f"{figures}{rest[0]:8.2f}{rest[1]:8.2f}{verdict('rest', rest[0] / rest[1])}"


def floor(pair: Pair) -> str:
    """Milliseconds beyond passes and updates of loops by hand."""
    works = [times(work, pair.inner) for work in (by_hand(pair, norms=False), by_hand(pair, norms=True), bare(pair))]
    rows = interleaved(*works, rounds=pair.rounds)
    plain, looked = (1e3 * statistics.median(row[k] - row[2] for row in rows) / pair.inner for k in (0, 1))
    return f"{plain:.2f} ms by hand, {looked:.2f} ms with norms of gradients"


def main() -> None:
    """Prints the comparison."""
    torch.set_num_threads(1)
    if find_torchdistill():
        print(f"{'milliseconds':22}    ours  theirs    step   memory    rest  theirs   ratio   (! misses its target)")
        for size, pair in PAIRS.items():
            for name, case in CASES.items():
                print(f"{size:6} {name:15} {compare(pair, case)}", flush=True)
    print(f"small  floor of the rest of KD: {floor(PAIRS['small'])}")
    for size, pair in PAIRS.items():
        rows = interleaved(*(times(work, pair.inner) for work in tapped(pair)), rounds=2 * pair.rounds)
        print(f"{size:6} tap over edited model: {verdict('taps', statistics.median(a / b for a, b in rows))}")


if __name__ == "__main__":
    main()
