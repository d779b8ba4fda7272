"""What the shared suite runs: every exported part, found by introspection, in small runs that can be built again.

A new export needs nothing here if its constructor needs no arguments and it fits one of the teachers, students
and data below. Otherwise give it an entry in TEACHERS, STUDENTS or OBJECTIVES (how to make it) or in DATA (what
its batches are); further entries are variants of an export, and run through everything too.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

import limbeck.objectives
import limbeck.students
import limbeck.teachers
from limbeck.diffusion import CFG, Karras, Uniform
from limbeck.engine import EMA, Adam, Cosine, Dataset, Objective, Run, Source, Student, distill
from limbeck.engine.checkpoint import flatten
from limbeck.errors import Incompatible
from limbeck.objectives import (
    CKA,
    CRD,
    DMAE,
    G2SD,
    GAN,
    KD,
    L2,
    MGD,
    OFA,
    PSO,
    R1,
    RKD,
    SDS,
    SIM,
    TDM,
    UNIC,
    UNLABELLED,
    VSD,
    ApproximateR1,
    Attached,
    AttentionTransfer,
    BetterViews,
    ByRatio,
    ClassSimilarity,
    Consistency,
    Contrast,
    Correspondence,
    Critic,
    CrossEntropy,
    DiffRatio,
    Direction,
    DualView,
    ExitContrast,
    ExpertGates,
    ExpertSums,
    Fake,
    FDistill,
    FitNets,
    ForwardKL,
    Gated,
    Hinge,
    InPlaceKD,
    Inverted,
    Mapped,
    Matches,
    MiniLM,
    MultiScaleContrast,
    Nearness,
    NoisedViews,
    Onward,
    Orthogonal,
    PairGAN,
    PartialCrossAttention,
    PartitionedKD,
    PerSample,
    PerToken,
    PixelClip,
    ReinforcedSelection,
    Relations,
    Reward,
    Same,
    SampleSimilarity,
    ScoreDistillation,
    Segment,
    SiD,
    StableKD,
    StepGAN,
    Talk,
    Teacher,
    ThroughTeacher,
    VariationalDistributionMapping,
    VkD,
    WidthInvariance,
    Zero,
)
from limbeck.problems.networks import ResidualMLP
from limbeck.rng import Rng, seeded
from limbeck.students import (
    AdditiveExperts,
    FewStep,
    GrowingParticles,
    Image,
    OneStep,
    Particles,
    RandomEta,
    Slimmable,
    Trajectory,
    Views,
    WholePath,
)
from limbeck.teachers import Committee, Ensemble, ExactDataset, GaussianMixture, Subclasses, Trained

CLASSES, ROWS, BATCH = 3, 40, 16


@dataclass(frozen=True)
class Kind:
    """What the small networks of a run are made with; dropout by default, for it is what randomness goes wrong in."""

    dtype: torch.dtype = torch.float32
    layer: Literal["none", "dropout", "batchnorm"] = "dropout"

    def module(self, width: int) -> nn.Module:
        """The layer, over ``width`` numbers."""
        made = {"none": nn.Identity, "dropout": lambda: nn.Dropout(0.2), "batchnorm": lambda: nn.BatchNorm1d(width)}
        return made[self.layer]()


EXACT = Kind(torch.float64, "none")


class Behind(nn.Module):
    """A network behind one more layer."""

    def __init__(self, layer: nn.Module, net: ResidualMLP):
        super().__init__()
        self.layer, self.net, self.taps = layer, net, net.taps

    def forward(self, x: Tensor, *args: Any, **settings: Any) -> Any:
        return self.net(self.layer(x), *args, **settings)


def trained(kind: Kind) -> Trained:
    """A small denoiser whose every parameter gets a gradient."""
    net = ResidualMLP(shape=(2,), classes=CLASSES, width=8, blocks=1)
    nn.init.normal_(net.out.weight, std=0.1)
    return Trained(Behind(kind.module(2), net).to(kind.dtype))


def classifier(kind: Kind) -> nn.Module:
    """A small network from points to logits."""
    return nn.Sequential(nn.Linear(2, 16), kind.module(16), nn.ReLU(), nn.Linear(16, CLASSES)).to(kind.dtype)


@torch.no_grad()
def balanced(kind: Kind) -> nn.Module:
    """A classifier that puts points into every class."""
    net = classifier(kind).eval()
    net[3].bias -= net(points(kind, 999)).mean(0)
    return net.train()


def points(kind: Kind, rows: int = ROWS) -> Tensor:
    """Points in the plane, [rows, 2]."""
    return Rng(("suite", "points")).normal(rows, 2, dtype=torch.float64).to(kind.dtype)


def places(kind: Kind) -> Tensor:
    """Sixteen tokens each, [rows, 16, 2]."""
    return points(kind, 16 * ROWS).unflatten(0, (ROWS, 16))


def texts(kind: Kind) -> Source:
    """Sixteen tokens each, of which some have a label, and of one text none."""
    y = labels(16 * ROWS).view(ROWS, 16)
    return Dataset(x=places(kind), y=torch.where(torch.arange(16) < torch.arange(ROWS)[:, None] % 9, y, UNLABELLED))


def labels(rows: int = ROWS) -> Tensor:
    """Classes, [rows]."""
    return torch.arange(rows) % CLASSES


def batches(kind: Kind) -> Source:
    """Data with every field that some objective asks for."""
    return Dataset(x=points(kind), cond=labels(), y=labels(), noise=points(kind).flip(0), other=labels().flip(0))


def cameras(kind: Kind) -> Tensor:
    """Three views of a point in the plane, [3, 2, 2]."""
    return torch.stack([torch.eye(2), torch.eye(2).flip(0), torch.ones(2, 2).triu()]).to(kind.dtype)


TEACHERS: dict[str, Callable[[Kind], nn.Module | dict[str, nn.Module]]] = {
    "Trained": trained,
    "GaussianMixture": lambda kind: GaussianMixture(means=points(kind, 6), std=0.5, labels=labels(6)),
    "ExactDataset": lambda kind: ExactDataset(points(kind), labels=labels()),
    "Classifier": classifier,
    "Ensemble": lambda kind: Ensemble(classifier(kind), classifier(kind)),
    "Committee": lambda kind: Committee([classifier(kind), classifier(kind)], (0.7, 0.3)),
    "Subclasses": lambda kind: Subclasses(balanced(kind), "3", points(kind, 999), each=1),
    "Two classifiers": lambda kind: {"teacher": classifier(kind), "second": classifier(kind)},
    "With a source": lambda kind: {
        "teacher": GaussianMixture(means=points(kind, 6), std=0.5, labels=labels(6)),
        "source": Particles(points(kind, 24).flip(0), labels(24)),
    },
}

STUDENTS: dict[str, Callable[[Kind], nn.Module | dict[str, nn.Module]]] = {
    "FewStep": lambda kind: FewStep(trained(kind), ratios=(80.0, 5.0, 1.0), shape=(2,)),
    "OneStep": lambda kind: OneStep(trained(kind), shape=(2,)),
    "RandomEta": lambda kind: RandomEta(trained(kind), ratios=(80.0, 5.0, 1.0), shape=(2,)),
    "Trajectory": lambda kind: Trajectory(trained(kind), ratios=(80.0, 5.0, 1.0), shape=(2,)),
    "WholePath": lambda kind: WholePath(trained(kind), ratios=(80.0, 5.0, 1.0), shape=(2,)),
    "Particles": lambda kind: Particles(points(kind, 24)),
    "GrowingParticles": lambda kind: GrowingParticles(points(kind, BATCH), every=4, share=0.5, limit=64),
    "Image": lambda kind: Image(points(kind)[0]),
    "Views": lambda kind: Views(points(kind)[0], cameras(kind)),
    "Denoiser": trained,
    "Classifier": classifier,
    "Slimmable": lambda kind: Slimmable(
        nn.Linear(2, 16), nn.Dropout(0.2 if kind.layer == "dropout" else 0), nn.ReLU(), nn.Linear(16, CLASSES)
    ).to(kind.dtype),
    "Experts": lambda kind: nn.Sequential(
        nn.Linear(2, 16), kind.module(16), AdditiveExperts(16, experts=2, hidden=4), nn.Linear(16, CLASSES)
    ).to(kind.dtype),
    "Two classifiers": lambda kind: {"student": classifier(kind), "peer": classifier(kind)},
}

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "SDS, guided": lambda: SDS(guidance=CFG(scale=3.0)),
    "SDS, other times": lambda: SDS(times=Uniform(lo=0.1, hi=0.5)),
    "VSD, every other tick": lambda: VSD(critic_steps=2),
    "SiD, times of the GAN": lambda: SiD(times=Karras(), critic_steps=2),
    "SiD, Zero-CFG": lambda: SiD(critic=Critic(dropout=1.0), critic_guidance=CFG(scale=0.0)),
    "SIM, L2": lambda: SIM(distance=L2()),
    "FDistill, forward": lambda: FDistill(ratio=ByRatio(divergence=ForwardKL(), bins=2), critic_steps=2),
    "DiffRatio, Jensen-Shannon": lambda: DiffRatio(shape=(ByRatio(gan=GAN(on="own")),)),
    "VariationalDistributionMapping": lambda: VariationalDistributionMapping(fake=Mapped(shape=(2,))),
    "VSD, adapters": lambda: VSD(fake=Fake(critic=Critic(rank=2))),
    "VSD, without the condition at times": lambda: VSD(fake=Fake(critic=Critic(dropout=0.5))),
    "ScoreDistillation, attached noise": lambda: ScoreDistillation(noise=Attached(refresh=0.1)),
    "ScoreDistillation, inverted": lambda: ScoreDistillation(noise=Inverted()),
    "ScoreDistillation, gated and clipped": lambda: ScoreDistillation(
        real=Gated(above=Teacher(guidance=CFG(scale=2.0)), below=Teacher()),
        fake=Zero(),
        shape=(PixelClip(), PerSample()),
    ),
    "TDM, as released": lambda: TDM(
        fake=Fake(critic=Critic(times=Segment(), noise=Onward(critic="importance"), snr=5.0))
    ),
    "GAN, on its own": lambda: GAN(on="own"),
    "GAN, on the teacher": lambda: GAN(on="teacher"),
    "GAN, trains the critic": lambda: GAN(feature_weight=0.1),
    "Reward, with equal slopes": lambda: Reward(reward=Nearness(), normalise=True),
    "Reward, held": lambda: Reward(reward=Nearness(to=(1.0,)), hold=0.1),
    "PSO, online": lambda: PSO(preference=Direction()),
    "GAN, hinge and R1": lambda: GAN(on="teacher", loss=Hinge(), penalty=R1(), apart=True),
    "GAN, approximate R1 on features": lambda: GAN(penalty=ApproximateR1(at="features")),
    "PairGAN, mismatched and priced": lambda: PairGAN(mismatch=True, penalty=R1(), critic_steps=2),
    "StepGAN, relaxed": lambda: StepGAN(relaxed=True, on="teacher", between=1),
    "Consistency, without a teacher": lambda: Consistency(teacher=False),
    "Consistency, moving average": lambda: Consistency(target=EMA(decay=0.9)),
    "KD, without labels": lambda: KD(alpha=1.0),
    "KD, cold": lambda: KD(temperature=1.0),
    "FitNets": lambda: FitNets(pairs={"0": "0"}),
    "PartitionedKD": lambda: PartitionedKD(before="teacher"),
    "ReinforcedSelection": lambda: ReinforcedSelection(teachers=("teacher", "second")),
    "UNIC": lambda: UNIC(teachers={"teacher": "0"}, last="2", ladder=("0",)),
    "OFA": lambda: OFA(taps=("0", "3:in"), temperature=2.0),
    "Contrast": lambda: Contrast(pairs={"0": "0"}),
    "CRD": lambda: CRD(pairs={"0": "3:in"}, examples=ROWS),
    "RKD": lambda: RKD(pairs={"3:in": "0"}),
    "SampleSimilarity": lambda: SampleSimilarity(pairs={"3:in": "0"}),
    "ClassSimilarity": lambda: ClassSimilarity(pairs={"3:in": "3:in"}),
    "CKA": lambda: CKA(pairs={"3:in": "0"}),
    "MultiScaleContrast": lambda: MultiScaleContrast(pairs={"0": "0"}, windows=(0, 1)),
    "ExitContrast": lambda: ExitContrast(taps=("0", "3:in")),
    "NoisedViews": lambda: NoisedViews(tap="block0"),
    "BetterViews": lambda: BetterViews(tap="0", low=0.0),
    "Correspondence": lambda: Correspondence(teachers={"teacher": "0"}, tap="0"),
    "Matches": lambda: Matches(tap="0"),
    "FitNets, by rotation": lambda: FitNets(pairs={"0": "2", "3:in": "3:in"}, projector=Orthogonal()),
    "WidthInvariance": lambda: WidthInvariance(taps=("layers.1",)),
    "InPlaceKD, of a teacher": lambda: InPlaceKD(teacher="teacher", drawn=0),
    "AttentionTransfer": lambda: AttentionTransfer(pairs={"0": "0"}),
    "MGD": lambda: MGD(pairs={"0": "0"}, over="channels"),
    "DMAE": lambda: DMAE(pairs={"0": "0"}),
    "G2SD": lambda: G2SD(pairs={"0": "0"}),
    "Talk": lambda: Talk(lower=("0", "0"), upper=("2", "2"), width=3),
    "VkD": lambda: VkD(pairs={"0": "2"}),
    "VkD, whitened": lambda: VkD(pairs={"0": "2"}, whiten=True),
    "ExpertSums": lambda: ExpertSums(layers=("2",)),
    "ExpertGates": lambda: ExpertGates(layers=("2",)),
    "StableKD": lambda: StableKD(pairs={"0": "0", "2": "2"}, until=1.0),
    "FitNets, as they are": lambda: FitNets(pairs={"0": "0"}, projector=Same()),
    "DualView": lambda: DualView(pairs={"0": "0"}),
    "ThroughTeacher": lambda: ThroughTeacher(pairs={"0": "2:in"}),
    "PartialCrossAttention": lambda: PartialCrossAttention(tap="0", parts=("0", "1", "2"), heads=2),
    "Relations": lambda: Relations(pairs={"0": "3"}),
    "PerToken, with labels": lambda: PerToken(of=KD()),
    "PerToken, of labels": lambda: PerToken(of=CrossEntropy()),
    "MiniLM": lambda: MiniLM(pairs=(("0", "3"), ("2", "3"), ("0", "3"))),
}

MEET = {("GAN", "SiD, times of the GAN"), ("DMD", "GAN, trains the critic")}
"""Pairs of an export and another's variant that are added too; see `couples`."""

CORE = {"SDS", "VSD", "DMD", "SiD", "GAN", "Consistency", "Regression", "Denoising", "KD", "CrossEntropy"}
STAND = {"SDS", "VSD", "DMD", "KD", "SinKD"}
ANY = {"DMD", "GAN"}
"""Objectives that meet others in `couples`."""

DATA: dict[str, Callable[[Kind], Source]] = {
    "ExitContrast": lambda kind: Dataset(x=points(kind), pair=points(kind).flip(0)),
    "Restoration": lambda kind: Dataset(x=points(kind), y=torch.eye(CLASSES)[labels()].to(kind.dtype)),
    "BetterViews": lambda kind: Dataset(x=points(kind), pair=points(kind).flip(0)),
    "Correspondence": lambda kind: Dataset(x=places(kind), pair=places(kind).flip(0)),
    "Matches": lambda kind: Dataset(x=places(kind), pair=places(kind).flip(0), match=labels()[:, None].expand(-1, 16)),
    "NoisedViews": lambda kind: Dataset(x=points(kind), pair=points(kind).flip(0)),
    "MultiMode": lambda kind: Dataset(x=points(kind), pair=points(kind).flip(0)),
    "Reconstruction": lambda kind: Dataset(
        x=points(kind), target=points(kind)[:, [0, 1, 0]], hidden=points(kind)[:, [1, 1, 0]].abs() + 0.1
    ),
    "MiniLM": lambda kind: Dataset(x=places(kind), y=labels()),
    "Relations": lambda kind: Dataset(x=places(kind), y=labels()),
    "PerToken": texts,
    "PerToken, with labels": texts,
    "PerToken, of labels": texts,
    "TrilateralKD": lambda kind: Dataset(
        x=points(kind), y=labels(), other_x=points(kind).flip(0), other_y=labels().flip(0)
    ),
}


def exports(room: ModuleType, base: type) -> dict[str, type]:
    """Every concrete subclass of ``base`` that a room defines, in the order of their names."""
    for info in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
        try:
            importlib.import_module(info.name)
        except ModuleNotFoundError as error:  # an extra that is not installed here
            if (error.name or "").startswith("limbeck"):
                raise
    inside = (c for c in subclasses(base) if c.__module__.startswith(f"{room.__name__}."))
    return {c.__name__: c for c in sorted(inside, key=lambda c: c.__name__) if not inspect.isabstract(c)}


def subclasses(base: type) -> Iterator[type]:
    """All of them, at any depth."""
    for sub in base.__subclasses__():
        yield sub
        yield from subclasses(sub)


def exported_teachers() -> dict[str, type]:
    """Modules that the room of teachers offers; they need no common base."""
    names = {name: getattr(limbeck.teachers, name) for name in limbeck.teachers.__all__}
    return {name: c for name, c in names.items() if inspect.isclass(c) and issubclass(c, nn.Module)}


FOUND: dict[str, dict[str, type]] = {
    "TEACHERS": exported_teachers(),
    "STUDENTS": exports(limbeck.students, Student),
    "OBJECTIVES": exports(limbeck.objectives, Objective),
}
NAMES = {table: list(dict.fromkeys([*globals()[table], *found])) for table, found in FOUND.items()}
NAMES["OBJECTIVES"] = list(dict.fromkeys([*FOUND["OBJECTIVES"], *OBJECTIVES]))


class NoEntry(Exception):
    """An export that could not be built without help."""


def build(table: str, name: str, *args: Any) -> Any:
    """A part by the table's entry, or an export by its defaults; the same bits every time."""
    with seeded("suite", table, name):
        if name in globals()[table]:
            return globals()[table][name](*args)
        try:
            return FOUND[table][name]()
        except Exception as error:
            raise NoEntry(
                f"{name}() cannot be built without arguments ({error}): "
                f"add an entry {name!r} to {table} in tests/suite/cases.py that says how."
            ) from error


@dataclass(frozen=True)
class Case:
    """One objective on one student and teacher, by name: a run that another process can build again."""

    objective: str
    student: str
    teacher: str | None
    data: bool = True
    kind: Kind = Kind()

    def __str__(self) -> str:
        return f"{self.objective} on {self.student} by {self.teacher}"

    def run(self, objective: Objective | None = None, student: nn.Module | None = None, **settings: Any) -> Run:
        """A new run of it, of another objective if one is given."""
        defaults = {"steps": 10, "batch": BATCH, "optim": Adam(lr=1e-2, schedule=Cosine(warmup=0.25), clip=1.0)}
        teacher = build("TEACHERS", self.teacher, self.kind) if self.teacher else None
        return distill(
            teacher,
            student or build("STUDENTS", self.student, self.kind),
            objective or self.make(),
            DATA.get(self.objective, batches)(self.kind) if self.data else None,
            **{**defaults, "ema": EMA(decay=0.9), "seed": 3, **settings},
        )

    def make(self) -> Objective:
        """Its objective."""
        return build("OBJECTIVES", self.objective)

    def exact(self) -> "Case":
        """The same in float64 and without dropout."""
        return replace(self, kind=EXACT)


@cache
def verdict(case: Case) -> str:
    """``fits``, or the sentence with which the parts are refused before step 0."""
    try:
        case.run()
    except Incompatible as refusal:
        return str(refusal)
    except Exception as error:
        return f"crashed: {type(error).__name__}: {error}"
    return "fits"


@cache
def home(objective: str) -> Case | None:
    """The first student and teacher that an objective fits, or None."""
    cases = (Case(objective, s, t) for s in NAMES["STUDENTS"] for t in NAMES["TEACHERS"])
    return next((case for case in cases if verdict(case) == "fits"), None)


@cache
def homes() -> tuple[Case, ...]:
    """Every objective, each at home."""
    return tuple(case for name in NAMES["OBJECTIVES"] if (case := home(name)))


def composed(name: str) -> bool:
    """Whether an export only fills in a form that it shares with others; those of `STAND` stand for all of these."""
    return name not in {*STAND, *OBJECTIVES} and "terms" not in vars(FOUND["OBJECTIVES"][name])


@cache
def coupled(case: Case) -> bool:
    """Whether some loss couples its batch, which then cannot be cut."""
    return any(term.coupled for term in case.run().terms)


@cache
def few() -> tuple[Case, ...]:
    """Every objective that brings losses of its own, and every variant, each at home."""
    return tuple(case for case in homes() if not composed(case.objective))


@cache
def matches() -> tuple[Case, ...]:
    """Every objective at home, and exports that bring losses of their own on every student that they fit."""
    own = [case for case in few() if case.objective not in OBJECTIVES]
    cases = (replace(case, student=student) for case in own for student in NAMES["STUDENTS"])
    return tuple(dict.fromkeys([*homes(), *(case for case in cases if verdict(case) == "fits")]))


@cache
def sample() -> tuple[Case, ...]:
    """Every objective at home, and every student and teacher once more, each under the first objective that it fits."""
    chosen = dict.fromkeys(few())
    for student in NAMES["STUDENTS"]:
        chosen |= dict.fromkeys([case for case in matches() if case.student == student][:1])
    for teacher in NAMES["TEACHERS"]:
        cases = (replace(case, teacher=teacher) for case in few())
        chosen |= dict.fromkeys([case for case in cases if verdict(case) == "fits"][:1])
    return tuple(chosen)


@cache
def common(a: str, b: str) -> Case | None:
    """The first objective on the first student and teacher that fit both, or None."""
    for student in NAMES["STUDENTS"]:
        for teacher in NAMES["TEACHERS"]:
            case = Case(a, student, teacher)
            if verdict(case) == verdict(replace(case, objective=b)) == "fits":
                return case
    return None


@cache
def couples() -> tuple[tuple[Case, str], ...]:
    """All pairs of objectives that fit a common student: the first with its parts, and the second's name.

    Those of `CORE` meet each other and their variants, for parts of one name are what a sum could confuse; every other
    that brings losses of its own meets those of `ANY`.
    """
    pairs = combinations(NAMES["OBJECTIVES"], 2)
    wanted = (
        (a, b)
        for a, b in pairs
        if {a, b} <= CORE or (stem(a) == stem(b) and {a, b} & CORE) or (a, b) in MEET or ({a, b} & ANY and meets(a, b))
    )
    found = ((common(a, b), b) for a, b in wanted)
    return tuple((case, other) for case, other in found if case)


def stem(name: str) -> str:
    """The class behind the name of an objective."""
    return name.partition(",")[0]


def meets(a: str, b: str) -> bool:
    """Whether both are exports with losses of their own."""
    return not {a, b} & set(OBJECTIVES) and not composed(a) and not composed(b)


@cache
def quarrel(case: Case, other: str) -> str | None:
    """The sentence with which the sum of two objectives is refused, or None."""
    try:
        case.run(case.make() + build("OBJECTIVES", other))
    except Incompatible as refusal:
        return str(refusal)
    return None


def unequal(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Paths at which two states differ in any bit."""
    (tensors, values), (others, plain) = flatten(a), flatten(b)
    same = {path for path in tensors.keys() & others.keys() if torch.equal(tensors[path], others[path])}
    same |= {path for path in values.keys() & plain.keys() if values[path] == plain[path]}
    return sorted((tensors.keys() | others.keys() | values.keys() | plain.keys()) - same)


def finished(run: Run) -> dict[str, Any]:
    """The state of a run at its end."""
    run.finish()
    return run.state_dict()
