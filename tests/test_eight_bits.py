"""Moments of 8 bits: where bitsandbytes is, it is asked as it wants to be, and its state goes on to the same bits."""

import shlex
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck import SDS, Adam, GrowingParticles, OneStep, SiD, distill
from limbeck.cli import main
from limbeck.engine import Run
from limbeck.engine.checkpoint import read_state, write_folder
from limbeck.engine.optim import Optim
from limbeck.errors import BadSetting, Incompatible
from limbeck.problems.digits import Digits
from limbeck.rng import Rng
from limbeck.teachers import GaussianMixture

TINY = Path(__file__).parent / "cli" / "tiny.py"
SMALLEST, BLOCK = 4096, 256


class AdamW8bit(torch.optim.Optimizer):
    """Stands for bitsandbytes': of the same signature, with a state of the same names and kinds, and 8 bits of its own.

    As there, a step is a number and no tensor, both tables are one for all parameters, and the learning rate is read
    from the group in every step.
    """

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: Any = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 1e-2
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.tables = {"qmap1": torch.linspace(-1, 1, 256), "qmap2": torch.linspace(0, 1, 256)}

    def begun(self, p: Tensor) -> dict[str, Any]:
        """The state before the first step."""
        if p.numel() < SMALLEST:
            return {"step": 0, "state1": torch.zeros_like(p), "state2": torch.zeros_like(p)}
        blocks = -(-p.numel() // BLOCK)
        state: dict[str, Any] = {f"state{k}": torch.zeros_like(p, dtype=torch.uint8) for k in (1, 2)}
        return {"step": 0, **state, **self.tables, **{f"absmax{k}": p.new_zeros(blocks) for k in (1, 2)}}

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override], as the library's own
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state.update({} if state else self.begun(p))
                    self.update(p, p.grad, state, group)

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Adam on what the codes say."""
        state["step"] += 1
        made = []
        for k, x in ((1, grad), (2, grad**2)):
            beta = group["betas"][k - 1]
            mean = read(state, k) * beta + x * (1 - beta)
            write(state, k, mean)
            made.append(mean / (1 - beta ** state["step"]))
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_(group["lr"] * made[0] / (made[1].sqrt() + group["eps"]))


def read(state: dict[str, Any], k: int) -> Tensor:
    """A moment."""
    codes = state[f"state{k}"]
    if codes.dtype != torch.uint8:
        return codes
    scale = state[f"absmax{k}"].repeat_interleave(BLOCK)[: codes.numel()].view_as(codes)
    return state[f"qmap{k}"][codes.int()] * scale


def write(state: dict[str, Any], k: int, value: Tensor) -> None:
    """A moment, as codes of blocks."""
    codes = state[f"state{k}"]
    if codes.dtype != torch.uint8:
        codes.copy_(value)
        return
    padded = torch.nn.functional.pad(value.flatten(), (0, -value.numel() % BLOCK)).view(-1, BLOCK)
    state[f"absmax{k}"].copy_(padded.abs().amax(1))
    scaled = value / state[f"absmax{k}"].clamp(min=1e-30).repeat_interleave(BLOCK)[: codes.numel()].view_as(codes)
    codes.copy_(torch.bucketize(scaled, state[f"qmap{k}"]).clamp(max=255))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes, or what stands for it."""
    optim = types.ModuleType("bitsandbytes.optim")
    optim.AdamW8bit = AdamW8bit  # type: ignore[attr-defined], a stand-in
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it is not installed, whether it is or not."""
    for name in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, None)


def run(optim: Optim) -> Run:
    """A few ticks on digits."""
    problem = Digits()
    teacher = problem.teacher.clone(trainable=False)
    student = OneStep(teacher.clone(trainable=True), shape=problem.shape, ratio=1.0)
    return distill(teacher, student, SiD(), problem.source, steps=6, batch=8, optim=optim)


def bits(run: Run) -> dict[str, Tensor]:
    """Every parameter of every role."""
    return {f"{name}.{key}": p.detach() for name, role in run.cast.roles.items() for key, p in role.params.items()}


@pytest.mark.usefixtures("installed")
def test_a_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, first, second = (run(Adam(lr=1e-3, bits=8, schedule=0.5)) for _ in range(3))
    whole.finish()
    for _ in range(3):
        first.tick()
    write_folder(tmp_path / "state", state=first.state_dict())
    second.load_state_dict(read_state(tmp_path / "state"))
    second.finish()
    for name, p in bits(whole).items():
        assert torch.equal(p, bits(second)[name])
    kinds = {x.dtype for x in whole.cast.roles["student"].optimizer.state.values() for x in [x["state1"]]}
    assert kinds == {torch.uint8, torch.float32}


@pytest.mark.usefixtures("installed")
def test_moments_take_about_a_quarter() -> None:
    def held(optim: Adam) -> int:
        made = run(optim)
        made.tick()
        role = made.cast.roles["student"]
        large = [p for p in role.params.values() if p.numel() >= SMALLEST]
        values = [x for p in large for x in role.optimizer.state[p].values() if isinstance(x, Tensor)]
        return sum(x.numel() * x.element_size() for x in values if x.numel() != 256)

    assert held(Adam(bits=8)) < 0.27 * held(Adam())


@pytest.mark.usefixtures("installed")
def test_rates_and_decay_are_ours() -> None:
    """Its own default decays weights; ours does not."""
    made = run(Adam(lr=0.0, bits=8))
    before = {name: p.clone() for name, p in bits(made).items()}
    made.tick()
    assert all(torch.equal(p, before[name]) for name, p in bits(made).items())
    groups = (
        run(Adam(bits=8, betas=(0.5, 0.9), eps=1e-6, weight_decay=0.1)).cast.roles["student"].optimizer.param_groups
    )
    assert all((g["betas"], g["eps"], g["weight_decay"]) == ((0.5, 0.9), 1e-6, 0.1) for g in groups)


@pytest.mark.usefixtures("installed")
def test_what_grows_is_refused() -> None:
    teacher = GaussianMixture(means=torch.zeros(1, 2))
    particles = GrowingParticles(Rng(0).normal(8, 2), limit=16)
    with pytest.raises(Incompatible, match="parameters of one shape, got a GrowingParticles, which grows"):
        distill(teacher, particles, SDS(), steps=2, batch=8, optim=Adam(bits=8))


@pytest.mark.usefixtures("missing")
def test_without_it_a_sentence_says_how_to_install_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    for command in (f"distill {TINY} --on {TINY} --out {out}", f"plan {TINY} --on {TINY}"):
        assert main(shlex.split(f"{command} --bits 8")) == 2
        said = capsys.readouterr().err
        assert "Adam(bits=8) needs bitsandbytes, got none installed; pip install 'limbeck[bitsandbytes]'" in said
        assert said.count("\n") == 1 and not out.exists()


def test_other_numbers_are_refused() -> None:
    with pytest.raises(BadSetting, match="bits must be 8 or 32, got 4"):
        Adam(bits=4)  # type: ignore[arg-type], which is the mistake
