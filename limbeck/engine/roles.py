"""Who takes part: teachers that know, students and critics that learn, targets that follow."""

import copy
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor, nn

from limbeck.diffusion.denoiser import Denoiser, Seen
from limbeck.engine.data import Batch
from limbeck.engine.host import Hosted
from limbeck.engine.memory import HALF, WHOLE, Half, Memory, chooses
from limbeck.engine.optim import EMA, Adam, Optim
from limbeck.engine.shards import as_lies, is_shard, part_of
from limbeck.engine.states import fingerprint_of, lent_by, load_module, own_state
from limbeck.engine.student import Grows, Rows, Student
from limbeck.engine.taps import Pick, Taps, find, first_tensor
from limbeck.errors import BadSetting, Incompatible
from limbeck.rng import seeded
from limbeck.tree import Tree, tree_map

M = TypeVar("M", bound=nn.Module)
K = TypeVar("K", bound="Tensor | nn.Module")


class Role:
    """One learner: a module, those of its parameters that it trains, and their optimiser.

    State is keyed by parameter name. A base shared by several roles is made of the same parameters in each of their
    modules, frozen; those that are ``lent`` by a teacher are no part of the state.
    """

    def __init__(self, name: str, module: nn.Module, optim: Optim, spec: object = None, lent: Collection[str] = ()):
        self.name, self.module, self.optim, self.spec, self.lent = name, module, optim, spec, lent
        self.names = tuple(name for name, p in module.named_parameters() if p.requires_grad)
        self.base = fingerprint_of(module, lent)
        self.steps = 0
        self.learns = True
        self.again = False  # whether its samples are made again; see `Memory`
        self.params: dict[str, nn.Parameter] = {}
        self.bind()

    def bind(self) -> None:
        """A new optimiser over the module's parameters as they are now."""
        every = dict(self.module.named_parameters())
        self.params.update((name, every[name]) for name in self.names)  # whoever holds them sees the new ones
        self.buffers = [*self.module.buffers()]
        # parameters of one learning rate are updated by one fused call; shards by another than what is whole
        groups: dict[tuple[float, bool], dict[str, Any]] = {}
        for name, p in self.params.items():
            key = self.optim.factor(name), is_shard(p)
            groups.setdefault(key, {"params": [], "name": name})["params"].append(p)
        self.optimizer = self.optim.build(groups.values())

    def learn(self, wants: bool) -> None:
        """Whether its parameters want gradients, as they do between ticks."""
        self.learns = wants
        for p in self.params.values():
            p.requires_grad_(wants)

    def step(self, progress: float) -> None:
        """One update from the gradients that are there."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.optim.rate(group["name"], progress)
        self.optimizer.step()
        self.steps += 1

    def regrow(self, rows: Mapping[str, Rows]) -> None:
        """Parameters and moments take their new rows."""
        moments: dict[str, dict[str, Any]] = {name: dict(self.optimizer.state[p]) for name, p in self.params.items()}
        for name, change in rows.items():
            old = self.params[name]
            _put(self.module, name, change.value)
            for key, value in moments[name].items():
                if isinstance(value, Tensor) and value.shape == old.shape:
                    moments[name][key] = value[change.source]
                    moments[name][key][change.fresh] = 0
        self.bind()
        self._load_moments(moments)

    def _load_moments(self, moments: Mapping[str, Mapping[str, Any]]) -> None:
        fused = any(group.get("fused") for group in self.optimizer.param_groups)
        for name, p in self.params.items():
            for key, value in moments.get(name, {}).items():
                if isinstance(value, Tensor):
                    # torch counts steps on the processor unless its update is one call on the device
                    value = as_lies(value, p).to(value.device if key == "step" and not fused else p.device, copy=True)
                self.optimizer.state[p][key] = value

    def state_dict(self) -> dict[str, Any]:
        """Parameters, buffers, moments by parameter name, and the number of steps."""
        moments = {name: dict(self.optimizer.state.get(p, {})) for name, p in self.params.items()}
        state = {"module": own_state(self.module, self.lent), "moments": moments, "steps": self.steps}
        return {**state, "base": self.base} if self.lent else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave, into objects built anew; every name must match."""
        self.check_base(state.get("base"))
        load_module(self.module, state["module"], self.lent)
        self.bind()
        self._load_moments(state["moments"])
        self.steps = int(state["steps"])

    def check_base(self, base: object) -> None:
        """Raises KeyError unless a state was made on the weights that this role is lent."""
        if base != self.base:
            raise KeyError(f"adapters on other weights than those that {self.name!r} is lent")


class Target:
    """A module that follows a role: its moving average."""

    def __init__(self, role: Role, module: nn.Module, ema: EMA):
        self.role, self.module, self.ema, self.updates = role, module, ema, 0
        self.bind()

    def bind(self) -> None:
        """Looks its parameters up, as they are now."""
        self.params = dict(self.module.named_parameters())
        self.buffers = [*self.module.buffers()]

    @torch.no_grad()
    def follow(self) -> None:
        """One step towards the role's parameters; buffers are copied."""
        keep = self.ema.at(self.updates)
        for name, p in self.role.params.items():
            mine = self.params[name]
            part_of(mine).lerp_(part_of(as_lies(p, mine)), 1 - keep)
        for buffer, value in zip(self.buffers, self.role.buffers, strict=True):
            buffer.copy_(value)
        self.updates += 1

    @torch.no_grad()
    def regrow(self, rows: Mapping[str, Rows]) -> None:
        """The average takes its new rows; fresh ones start at their value."""
        for name, change in rows.items():
            value = self.params[name][change.source]
            value[change.fresh] = change.value[change.fresh]
            _put(self.module, name, value)
        self.bind()

    def state_dict(self) -> dict[str, Any]:
        """The average and the number of updates."""
        return {"module": own_state(self.module, self.role.lent), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        load_module(self.module, state["module"], self.role.lent)
        self.bind()
        self.updates = int(state["updates"])


class Cast:
    """All who take part in a run, by name, and all the state that an objective may have.

    Args:
        teachers: frozen modules by name; the first is the ``teacher``.
        students: trained modules by name, one of them ``student``.
        optim: how each role learns; ``"default"`` is for those not named.
        fields: what the data brings with each batch.
        seed: names that seed the initialisation of roles.
        example: makes a few rows of the data, to size by them what depends on shapes.
        memory: how networks lie in memory, by teacher or role; ``"default"`` is for those not named.

    Attributes:
        taps: features of networks that some loss asked for, by role or teacher; see `tap`.
        asked: fields of the data that some loss asked for; see `need_fields`.
        watched: (role, key of noised samples) pairs whose features some loss wants, so that x0 and features are one
            pass; see `Tick.look`.
    """

    def __init__(
        self,
        teachers: Mapping[str, nn.Module],
        students: Mapping[str, nn.Module],
        optim: Mapping[str, Optim],
        fields: frozenset[str] = frozenset(),
        seed: tuple[object, ...] = (0,),
        example: Callable[[], Batch] = dict,
        memory: Mapping[str, Memory] | None = None,
    ):
        self.teachers, self.fields, self._optim, self._seed = dict(teachers), fields, optim, seed
        self._memory = memory or {}
        for name, teacher in self.teachers.items():
            self._memory_of(name).put(teacher.requires_grad_(False).eval())
        if "student" not in students:
            got = " and ".join(map(repr, students)) or "none"
            raise Incompatible("a run", need="one of its students named 'student'", got=got)
        self.roles: dict[str, Role] = {}
        self.targets: dict[str, Target] = {}
        self.kept: dict[str, Tensor | nn.Module] = {}
        self.watched: set[tuple[str, object]] = set()
        self.taps: dict[str, Taps] = {}
        self.asked: set[str] = set()
        self._example = example
        self.students = {name: self.role(name, lambda m=module: m).module for name, module in students.items()}

    @property
    def teacher(self) -> nn.Module:
        """The first teacher."""
        if not self.teachers:
            raise Incompatible("this objective", need="a teacher", got="none", fit="teacher=...")
        return next(iter(self.teachers.values()))

    @property
    def student(self) -> nn.Module:
        """The student of that name."""
        return self.students["student"]

    def module(self, who: str) -> nn.Module:
        """The module behind a name: a role, a teacher, or the teacher that is first."""
        if who in self.roles:
            return self.roles[who].module
        return self.teachers[who] if who in self.teachers else getattr(self, who)

    def need(self, who: str, kind: type[M], by: object) -> M:
        """The module behind a name if it is of this kind; else raises `Incompatible`."""
        module = self._present(who, by)
        if not isinstance(module, kind):
            need = f"a {who} that is {_a(kind)}"
            raise Incompatible(type(by).__name__, need=need, got=_a(type(module)), fit=_EXAMPLES.get(kind.__name__))
        return module

    def need_network(self, who: str, by: object) -> nn.Module:
        """The module behind a name if it maps inputs to outputs by a call; else raises `Incompatible`."""
        module = self._present(who, by)
        inner = getattr(module, "_orig_mod", module)  # of what torch.compile made
        if type(inner).forward is nn.Module.forward:
            need = f"a {who} that maps inputs to outputs"
            raise Incompatible(type(by).__name__, need=need, got=_a(type(module)), fit="a classifier")
        return module

    def _present(self, who: str, by: object) -> nn.Module:
        if who == "teacher" and not self.teachers:
            raise Incompatible(type(by).__name__, need="a teacher", got="none", fit="teacher=...")
        if who not in self.roles and who not in self.teachers and who != "teacher":
            got, fit = ", ".join(map(repr, self.teachers)) or "none", f'teacher={{"teacher": ..., "{who}": ...}}'
            raise Incompatible(type(by).__name__, need=f"a teacher named {who!r}", got=got, fit=fit)
        return self.module(who)

    def tap(self, who: str, *picks: Pick, by: object) -> tuple[str, ...]:
        """Has features of a network read in every pass that `Tick.answer` makes; returns their names.

        Raises:
            Incompatible: no such submodule.
        """
        module = self.need_network(who, by)
        names, before = find(module, *picks), self.taps.pop(who, None)
        self.taps[who] = Taps(module, tuple(dict.fromkeys((*(before.names if before else ()), *names))))
        if before:
            before.remove()
        return names

    def ask(self, who: str, x: Tree) -> Seen:
        """One pass of a network: its output, and the features that are tapped."""
        module, taps = self.module(who), self.taps.get(who)
        if taps is None:
            return Seen(output_of(module, x), {})
        with taps:
            out = output_of(module, x)
            return Seen(out, taps.take())

    @torch.no_grad()
    def dry(self, who: str) -> Seen:
        """What a network puts out for a few rows of the data, which leaves no trace in it."""
        module = self.module(who)
        p = next(module.parameters(), None)
        x = tree_map(lambda x: x if p is None else x.to(p.device), self._example()["x"])
        was = module.training
        module.eval()
        try:
            return self.ask(who, x)
        finally:
            module.train(was)

    def need_fields(self, *names: str, by: object) -> None:
        """Asks for fields of the data; raises `Incompatible` unless every batch brings them."""
        self.asked |= {*names}
        if missing := [name for name in names if name not in self.fields]:
            got = f"only {', '.join(sorted(self.fields))}" if self.fields else "no data"
            need = f"data with {' and '.join(missing)}"
            raise Incompatible(type(by).__name__, need=need, got=got, fit=f"data=Dataset({missing[0]}=...)")

    def role(self, name: str, make: Callable[[], nn.Module], spec: object = None) -> Role:
        """The role of this name, made on first use under a generator of its own.

        Raises:
            Incompatible: if it exists under other settings, or shares parameters with another role.
        """
        if name in self.roles:
            if self.roles[name].spec != spec:
                got = f"both {self.roles[name].spec} and {spec}"
                raise Incompatible(f"the role {name!r}", need="one set of settings", got=got)
            return self.roles[name]
        with seeded(*self._seed, "init", name):
            module = make()
        if not any(p.requires_grad for p in module.parameters()):
            need, got = "parameters to train", f"{_a(type(module))} without any"
            raise Incompatible(f"the role {name!r}", need=need, got=got, fit="the clone(trainable=True) of a network")
        if any(isinstance(p, Hosted) and p.requires_grad for p in module.parameters()):
            need, got = "weights on its device to train", "some that an earlier run left with the host"
            raise Incompatible(f"the role {name!r}", need=need, got=got, fit="limbeck.engine.from_host(module)")
        lent = lent_by(self.teachers.values(), module)
        memory = self._memory_for(name, module, lent)
        if self._memory:
            memory.put(module)
        optim = self._optim.get(name) or self._optim.get("default") or Adam()
        if isinstance(module, Grows) and isinstance(optim, Adam) and optim.bits == 8:
            raise Incompatible("Adam(bits=8)", need="parameters of one shape", got=f"{_a(type(module))}, which grows")
        role = Role(name, module.train(), optim, spec, lent)
        role.again = WHOLE in (memory.again or ())
        for other in self.roles.values():
            if shared := {id(p) for p in role.params.values()} & {id(p) for p in other.params.values()}:
                raise Incompatible(
                    f"the role {name!r}",
                    need="parameters of its own",
                    got=f"{len(shared)} shared with {other.name!r}",
                    fit="module.clone(trainable=True)",
                )
        self.roles[name] = role
        return role

    def _memory_of(self, name: str) -> Memory:
        return self._memory.get(name) or self._memory.get("default") or Memory()

    def _memory_for(self, name: str, module: nn.Module, lent: Collection[str]) -> Memory:
        """That of a role: in the precision of what it is lent, and what nobody named does what it can."""
        memory, dtypes = self._memory_of(name), {x.dtype for key, x in module.named_parameters() if key in lent}
        can = {"auto": bool(chooses(module)), WHOLE: isinstance(module, Student)}
        if memory.again is None:
            memory = replace(memory, again=(WHOLE,) if lent and can[WHOLE] else ())
        elif name not in self._memory:
            memory = replace(memory, again=tuple(block for block in memory.again if can.get(block, True)))
        known: list[Half] = [half for half in get_args(Half) if HALF[half] in dtypes]
        return replace(memory, frozen=memory.frozen or known[0]) if known else memory

    def target(self, of: str, ema: EMA) -> nn.Module:
        """The moving average of a role; with decay 0 the role's own module, to be used without gradients."""
        role = self.roles[of]
        if ema.decay == 0:
            return role.module
        name = f"{of}~{ema}"
        if name not in self.targets:
            self.targets[name] = Target(role, _copy(role).eval(), ema)
        return self.targets[name].module

    def check_optim(self) -> None:
        """Raises `BadSetting` if an optimiser was given for a role that nobody plays, or memory for nobody."""
        for what, given, known in (
            ("optim", self._optim, [*self.roles]),
            ("memory", self._memory, [*self.roles, *self.teachers]),
        ):
            for name in given:
                if name != "default" and name not in known:
                    raise BadSetting(f"{what} names the role {name!r}, but there are only {', '.join(sorted(known))}.")
        for name, memory in self._memory.items():
            if WHOLE in (memory.again or ()) and name != "default" and not isinstance(self.module(name), Student):
                got = f"the {name}, {_a(type(self.module(name)))}"
                raise Incompatible(f"memory.again {WHOLE!r}", need="a student that draws samples", got=got, fit="auto")

    def keep(self, name: str, make: Callable[[], K]) -> K:
        """State of an objective that is neither role nor target, made on first use; it is saved with the rest."""
        if name not in self.kept:
            with seeded(*self._seed, "init", name):
                self.kept[name] = make()
        # what ``make`` made the first time, of its type
        return self.kept[name]  # type: ignore[return-value]

    def training(self, names: tuple[str, ...]) -> AbstractContextManager[None]:
        """Inside, the parameters of these roles want gradients and no others do."""
        changed = [role for name, role in self.roles.items() if role.learns != (name in names)]
        return _turned(changed) if changed else nullcontext()

    def tensors(self) -> Iterator[Tensor]:
        """All parameters, buffers and kept tensors of everyone, in one order, each once."""
        roles, targets = self.roles.values(), self.targets.values()
        kept = [value for value in self.kept.values() if isinstance(value, nn.Module)]
        modules = (*self.teachers.values(), *(one.module for one in (*roles, *targets)), *kept)
        every = [x for module in modules for x in (*module.parameters(), *module.buffers())]
        yield from {id(x): x for x in every}.values()
        yield from (value for value in self.kept.values() if isinstance(value, Tensor))

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning has changed: roles, targets, kept state."""
        kept = {k: v.state_dict() if isinstance(v, nn.Module) else v for k, v in self.kept.items()}
        return {
            "roles": {name: role.state_dict() for name, role in self.roles.items()},
            "targets": {name: target.state_dict() for name, target in self.targets.items()},
            "kept": kept,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave, into a cast built anew."""
        for mine, theirs in ((self.roles, state["roles"]), (self.targets, state["targets"])):
            if sorted(mine) != sorted(theirs):
                got = ", ".join(sorted(theirs)) or "none"
                raise Incompatible("this run", need=f"a state of {', '.join(sorted(mine))}", got=got)
            for name, item in mine.items():
                item.load_state_dict(theirs[name])
        for name, value in self.kept.items():
            if isinstance(value, nn.Module):
                value.load_state_dict(state["kept"][name])
            else:
                value.copy_(state["kept"][name])


_EXAMPLES = {
    "Denoiser": "a GaussianMixture or a Trained network",
    "Featured": "a Trained network",
    "Student": "Particles or OneStep",
    "FewStep": "OneStep or FewStep",
}


@contextmanager
def _turned(roles: list[Role]) -> Generator[None]:
    """Inside, those of the roles that learned do not, and the others do."""
    for role in roles:
        role.learn(not role.learns)
    try:
        yield
    finally:
        for role in roles:
            role.learn(not role.learns)


def _a(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    setattr(owner, leaf, nn.Parameter(value.detach().clone(), requires_grad=getattr(owner, leaf).requires_grad))


def output_of(module: nn.Module, x: Tree) -> Tensor:
    """What a network puts out, or the logits in it; inputs by name are keyword arguments, as transformers has them."""
    out = module(**x) if isinstance(x, Mapping) else module(x)
    return first_tensor(getattr(out, "logits", out))


def _copy(role: Role) -> nn.Module:
    """A copy of a role's module without gradients, which holds what is frozen there and copies what is trained."""
    module = role.module
    frozen = {id(p): p for name, p in module.named_parameters() if name not in role.params}
    if isinstance(module, Student | Denoiser) and not frozen:
        return module.clone(trainable=False)
    other = copy.deepcopy(module, frozen)
    for name, p in other.named_parameters():
        if name in role.params:
            p.requires_grad_(False)
    return other
