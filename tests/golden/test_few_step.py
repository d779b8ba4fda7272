"""Few-step distillation against numbers that the authors' own code gave: few_step.toml, with their sources.

Inputs are waves and networks are exact denoisers of Gaussians, so both sides can be made from formulas. What exists
here as an objective is run for one tick with its noise and levels prescribed; the gradient by the samples is compared,
in which all weights and means take part. Where released code departs from what we follow, the test says how and
asserts that difference.

B = 3 examples of D = 8 numbers; T, ψ: x0 by teacher and critic; n: mean |x − T| of an example; r = σ/α.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck import (
    CFG,
    DMD,
    EDM,
    GAN,
    L2,
    SGD,
    TDM,
    VP,
    VSD,
    ApproximateR1,
    Backtrack,
    ByRatio,
    Critic,
    Denoiser,
    Divergence,
    Drawn,
    Fake,
    FDistill,
    Featured,
    FewStep,
    ForwardKL,
    Huber,
    Jeffreys,
    JensenShannon,
    Karras,
    LogNormal,
    Noised,
    Objective,
    Particles,
    PerSample,
    Process,
    RectifiedFlow,
    ReverseKL,
    Rng,
    Seen,
    SiD,
    Softened,
    SquaredHellinger,
    Times,
    UniInstruct,
    denoising,
    distill,
    expanded,
    identity_score,
    implicit_matching,
    importance,
    like,
    onward,
)
from limbeck.diffusion.samplers import euler
from limbeck.engine.tick import Tick
from limbeck.objectives import adversarial
from limbeck.teachers.trained import denoising_weight

F64 = torch.float64
GOLDEN: Mapping[str, Any] = tomllib.loads(Path(__file__).with_name("few_step.toml").read_text(encoding="utf-8"))
INPUTS = GOLDEN["inputs"]
B, D = INPUTS["shape"][0], math.prod(INPUTS["shape"][1:])


# Inputs


def wave(name: str) -> Tensor:
    """Samples of the file's formula."""
    w, k = INPUTS["waves"][name], torch.arange(B * D, dtype=F64)
    return (w["amplitude"] * torch.sin(w["frequency"] * k + w["phase"])).reshape(INPUTS["shape"])


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=F64)


class Network(Featured):
    """The exact denoiser of N(mean, std²), another one without condition; its trainable clone is a critic.

    A parameter is added to x0, so that a critic's gradient by it is the one by x0.
    """

    taps = {"pixels": 2}  # noqa: RUF012

    def __init__(self, name: str, process: Process, null: str = "none", critic: tuple[str, str] = ("fake", "none")):
        super().__init__()
        self.names, self.critic, self.process = (name, null), critic, process
        self.shift = nn.Parameter(torch.zeros(INPUTS["shape"], dtype=F64))

    def denoise(self, x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:
        network = INPUTS["networks"][self.names[cond is None]]
        alpha, sigma, variance = like(self.process.alpha(t), x_t), like(self.process.sigma(t), x_t), network["std"] ** 2
        return (variance * alpha * x_t + sigma**2 * network["mean"]) / (variance * alpha**2 + sigma**2) + self.shift

    def look(self, x_t: Tensor, t: Tensor, cond: object = None, *, taps: tuple[str, ...], x0: bool = True) -> Seen:
        return Seen(self.denoise(x_t, t, cond) if x0 else None, {"pixels": x_t})

    def clone(self, *, trainable: bool) -> Denoiser:
        return Network(self.critic[0], self.process, self.critic[1]) if trainable else super().clone(trainable=False)


def logit_of(x_t: Tensor) -> Tensor:
    return INPUTS["logit"]["slope"] * x_t.flatten(1).mean(1) + INPUTS["logit"]["offset"]


class Heads(nn.Module):
    """The file's logit instead of heads; a parameter is added to it."""

    def __init__(self, widths: Mapping[str, int], hidden: int, **more: object):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(B, dtype=F64))

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        return logit_of(features["pixels"]) + self.shift


class Fixed(Rng):
    """Prescribed levels and noise, one after the other."""

    def __init__(self, levels: Tensor, *noises: Tensor, step: int = 0):
        super().__init__(0)
        self.levels, self.noises, self.step = levels, list(noises), step

    def normal(self, n: int, *shape: int, dtype: torch.dtype = F64) -> Tensor:
        return self.noises.pop(0)

    def integer(self, high: int) -> int:
        return self.step


@dataclass(frozen=True, kw_only=True)
class Prescribed(Times):
    """The ratios σ/α that `Fixed` holds."""

    def at(self, u: Tensor, process: Process, progress: float = 0.0) -> Tensor:
        raise NotImplementedError

    def sample(self, n: int, process: Process, rng: Rng, progress: float = 0.0) -> Tensor:
        assert isinstance(rng, Fixed)
        return process.at_ratio(rng.levels)


TIMES = Prescribed()
CRITIC = Critic(times=TIMES)


@dataclass
class Ticked:
    """Losses by name and gradients by role of one tick."""

    losses: Mapping[str, float]
    by: Mapping[str, Tensor]


def ticked(
    objective: Objective,
    ratio: Tensor,
    noise: str,
    *,
    process: Process | None = None,
    real: tuple[Tensor, str] | None = None,
    critic: tuple[str, str] = ("fake", "none"),
    ticks: int = 1,
) -> Ticked:
    """One tick of a run whose student is the sample x, noised like this; ``real``: how the data y are noised.

    Of several ticks the last, all from the same parameters.
    """
    teacher, student = Network("real", process or EDM(), critic=critic), Particles(wave("x"), torch.ones(B))

    def rng(self: Tick, name: object, *, shared: bool = False) -> Rng:
        level, eps = real if real is not None and "'data'" in repr(name) else (ratio, noise)
        return Fixed(level, wave(eps))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tick, "rng", rng)
        patch.setattr(adversarial, "Heads", Heads)
        data = Drawn(lambda n, rng: {"x": wave("y"), "cond": torch.ones(B)}, fields=("x", "cond"))
        run = distill(teacher, student, objective, data, steps=ticks, batch=B, optim=SGD(lr=1.0))
        before = {name: [p.clone() for p in role.params.values()] for name, role in run.cast.roles.items()}
        for _ in range(ticks):
            for name, role in run.cast.roles.items():
                for p, value in zip(role.params.values(), before[name], strict=True):
                    p.data.copy_(value)
            step = run.tick()
    assert not step.skipped
    after = {name: [*role.params.values()] for name, role in run.cast.roles.items()}
    by = {n: torch.cat([(p - q).detach().flatten() for p, q in zip(before[n], after[n], strict=True)]) for n in before}
    return Ticked({name: float(loss) for name, loss in step.losses.items()}, by)


def same(actual: Tensor | float, recorded: Any, tolerance: float = 1e-9) -> None:
    """Equal number by number up to a share of it, and 1e-12 of the largest for what rounding leaves of a zero."""
    wanted = torch.as_tensor(recorded, dtype=F64).flatten()
    actual = torch.as_tensor(actual, dtype=F64).detach().flatten()
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=1e-12 * wanted.abs().max().item())


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss, x)[0]


def leaf(name: str) -> Tensor:
    return wave(name).requires_grad_()


def stable_diffusion(g: Mapping[str, Any], key: str = "t") -> Tensor:
    """r at these steps of a schedule whose √β are evenly spaced."""
    beta = torch.linspace(g["beta_start"] ** 0.5, g["beta_end"] ** 0.5, 1000, dtype=F64) ** 2
    return _ratio(beta)[g[key]]


def linear_beta(g: Mapping[str, Any]) -> Tensor:
    """r at all steps of a schedule whose β are evenly spaced."""
    return _ratio(torch.linspace(g["beta_start"], g["beta_end"], 1000, dtype=F64))


def _ratio(beta: Tensor) -> Tensor:
    alpha2 = (1 - beta).cumprod(0)
    return ((1 - alpha2) / alpha2).sqrt()


def noised(process: Process, ratio: Tensor, noise: str, x: Tensor) -> tuple[Tensor, Tensor]:
    t = process.at_ratio(ratio)
    return process.add_noise(x, wave(noise), t), t


# Adapters: what has no function here yet is written out, once for each system, to be pointed at ours.


def backtracking(first: int, *, every: int, steps: int) -> list[tuple[int, int]]:
    """(step, checkpoint) wherever `Backtrack` turns to another target; the teacher is checkpoint 0."""
    path = tuple(map(str, range(first - 100, -1, -100)))
    walk = Backtrack(path=path, until=(len(path) - 1) * every / steps)
    targets = [int(walk.target(step / steps)) for step in range(steps)]
    turns = [step for step in range(steps) if step == 0 or targets[step] != targets[step - 1]]
    return [(step, targets[step]) for step in turns]


# DMD2


def test_dmd2_levels() -> None:
    """Their grid is ours. We draw from it without steps, between 0.02 and 0.98, they integers 20 to 980 of 0 to 999."""
    g = GOLDEN["dmd2"]
    same(Karras().at(tensor(g["grid_index"]) / 999, EDM()), g["grid_sigma"], 1e-12)
    ends = DMD().times.at(tensor([0.0, 1.0]), EDM())
    theirs = Karras().at(tensor([g["matching_index_lo"], g["matching_index_end"] - 1]) / 999, EDM())
    step = Karras().at(tensor([g["matching_index_lo"] - 1, g["matching_index_end"]]) / 999, EDM())
    assert ((ends - theirs).abs() < (step - theirs).abs()).all()
    assert (g["critic_index_lo"], g["critic_index_end"]) == (0, 1000)
    for which in ("", "critic_", "gan_", "disc_real_"):
        same(Karras().at(tensor(g[f"{which}index"]) / 999, EDM()), g[f"{which}sigma"], 1e-12)


def test_dmd2_matching() -> None:
    """Our loss is theirs over D; the gradients are equal."""
    g = GOLDEN["dmd2"]
    run = ticked(DMD(fake=Fake(critic=CRITIC), times=TIMES, critic_steps=1), tensor(g["sigma"]), "eps")
    same(run.by["student"], g["grad"])
    same(run.losses["dmd"] * D, g["loss"])


def test_dmd2_critic() -> None:
    """Weights 1/σ² + 1/s² are those of EDM, (σ² + s²)/(σs)²."""
    g = GOLDEN["dmd2"]
    run = ticked(DMD(fake=Fake(critic=CRITIC), times=TIMES), tensor(g["critic_sigma"]), "eps2")
    same(run.losses["critic"], g["critic_loss"])
    same(run.by["critic"], g["critic_grad"])


def test_dmd2_gan() -> None:
    g = GOLDEN["dmd2"]
    real = tensor(g["disc_real_sigma"]), "eps"
    run = ticked(GAN(on="teacher", times=TIMES), tensor(g["gan_sigma"]), "eps3", real=real)
    same(run.losses["gan"], g["gan_loss"])
    same(run.by["student"], g["gan_grad"])
    same(run.losses["discriminator"], g["disc_loss"])
    same(run.by["discriminator"], tensor(g["disc_grad_real"]) + tensor(g["disc_grad_fake"]))


def test_dmd2_on_stable_diffusion() -> None:
    """Guidance is uncond + s·(cond − uncond) in ε, which is the same in x0, and on the teacher only."""
    g = GOLDEN["dmd2_sd"]
    objective = DMD(fake=Fake(critic=CRITIC), times=TIMES, guidance=CFG(scale=g["guidance"]), critic_steps=1)
    run = ticked(objective, stable_diffusion(g), "eps", process=VP())
    same(1 / (1 + stable_diffusion(g) ** 2), g["alphas_cumprod"])
    same(run.by["student"], g["grad"])
    same(run.losses["dmd"] * D, g["loss"])


def test_dmd2_critic_on_stable_diffusion() -> None:
    """Their critic's error is one of ε, 1/r² of the error of x0; ours has EDM's weight at every level."""
    g, process = GOLDEN["dmd2_sd"], VP()
    ratio = stable_diffusion(g)
    x_t, t = noised(process, ratio, "eps2", wave("x"))
    x0 = Network("fake", process).denoise(x_t, t, 1)
    eps = process.convert(x0, x_t, t, "x0", "eps").detach().requires_grad_()
    ours = denoising(process.convert(eps, x_t, t, "eps", "x0"), wave("x"), t, process)
    theirs = (ours / denoising_weight(t, process) / ratio**2).mean()
    same(theirs, g["critic_loss"])
    same(gradient(theirs, eps), g["critic_grad_eps"])


class Recorder(Network):
    """Keeps its last input."""

    def denoise(self, x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:
        self.seen, self.level = x_t, t
        return super().denoise(x_t, t, cond)


@pytest.mark.parametrize("k", [0, 2])
def test_dmd2_backward_simulation(k: int) -> None:
    """What the student is called with. They start from ε itself where we start from σ·ε: a factor of σ at most."""
    g, process = GOLDEN["dmd2_sd"], VP()
    assert g["backward_step_list"] == [999, 749, 499, 249]  # sec. 4.4
    ratios = stable_diffusion(g, "backward_step_list")
    student = Recorder("fake", process)
    sigma = process.sigma(process.at_ratio(ratios[:1]))
    first, last = (wave("y"), None) if k == 0 else (wave("eps"), wave("y"))
    rng = Fixed(ratios, first / sigma, wave("eps2"), *([] if last is None else [last]), step=k)
    FewStep(student, ratios=tuple(ratios.tolist()), shape=(2, 2, 2)).draw(B, torch.ones(B), rng)
    same(student.seen, g[f"backward_{k}_input"])
    same(process.ratio(student.level), ratios[k].expand(B))
    assert g[f"backward_{k}_t"] == [g["backward_step_list"][k]] * B


# SiD


def test_sid_levels() -> None:
    g = GOLDEN["sid"]
    assert SiD().times == Karras(lo=0, hi=g["tmax"] / 1000)
    same(SiD().times.at(tensor(g["u"]), EDM()), g["sigma"], 1e-12)
    same(LogNormal().at(torch.special.ndtr(tensor(g["critic_normal"])), EDM()), g["critic_sigma"], 1e-12)


@pytest.mark.parametrize("alpha", [1.2, 1.0, 0.5])
def test_sid(alpha: float) -> None:
    """Gradients flow through the inputs of both networks; a batch is averaged here and summed there."""
    g, name = GOLDEN["sid"], f"alpha_{str(alpha).replace('.', '_')}"
    run = ticked(SiD(alpha=alpha, critic=CRITIC, times=TIMES), tensor(g["sigma"]), "eps")
    same(run.by["student"] * B, g[f"{name}_grad"])
    same(run.losses["sid"] * B, sum(g[f"{name}_loss"]))


@pytest.mark.parametrize("name", ["sid", "diff_instruct"])
def test_critics_of_sid_and_diff_instruct(name: str) -> None:
    """EDM's loss, averaged over an example here and summed there."""
    g = GOLDEN[name]
    sigma = tensor(g["critic_sigma"] if name == "sid" else g["sigma"])
    run = ticked(SiD(critic=CRITIC, times=TIMES), sigma, "eps2")
    same(run.losses["critic"] * B * D, sum(g["critic_loss"]))
    same(run.by["critic"] * B * D, g["critic_grad"])


@pytest.mark.parametrize("name", ["plain", "lsg", "lsg_alpha"])
def test_sid_with_long_and_short_guidance(name: str) -> None:
    """Teacher and critic are guided, each by its own scale, and gradients flow through all four passes."""
    g = GOLDEN["sid_lsg"]
    real, fake = (CFG(scale=g[f"{name}_{who}_guidance"]) for who in ("real", "fake"))
    objective = SiD(alpha=g[f"{name}_alpha"], critic=CRITIC, times=TIMES, guidance=real, critic_guidance=fake)
    run = ticked(objective, stable_diffusion(g), "eps", process=VP())
    same(run.losses["sid"] * B, g[f"{name}_loss"])
    same(run.by["student"] * B, g[f"{name}_grad"])


def test_sida() -> None:
    """Theirs is (100·SiD + 0.01·D·GAN)/2 with each example's share of the GAN over its n, as in the SiD term.

    But the BCE is averaged over the batch before it is divided, so that an example gets the mean of all 1/n. We
    leave the GAN unnormalised and add it by a weight.
    """
    g, x = GOLDEN["sida"], leaf("x")
    x_t, t = noised(EDM(), Karras(hi=g["tmax"] / 1000).at(tensor(g["u"]), EDM()), "eps", x)
    logit = logit_of(x_t)
    real, fake = (Network(who, EDM()).denoise(x_t, t, 1) for who in ("real", "fake"))
    sid = g["loss_scaling_g"] * identity_score(x, real, fake, alpha=g["alpha"]).mean()
    n = (x - real).detach().abs().flatten(1).mean(1)
    gan = g["loss_scaling_g_gan"] * D * F.softplus(-logit).mean() * (1 / n).mean()
    same(sid, g["loss"])
    same(gan, g["gan_loss"])
    same(logit, g["logits"])
    same(torch.autograd.grad(gan / 2, logit, retain_graph=True)[0], g["logits_grad"])
    same(gradient((sid + gan) / 2, x), g["grad"])
    assert g["batch"] == B


def test_sida_discriminator() -> None:
    """EDM's weight times half of the batch's mean loss; ours is the example's own loss, unweighted."""
    g = GOLDEN["sida"]
    sigma = LogNormal().at(torch.special.ndtr(tensor(g["critic_normal"])), EDM())
    run = ticked(GAN(on="teacher", times=TIMES), sigma, "eps2", real=(sigma, "eps2"))
    weight = denoising_weight(sigma, EDM())
    same(weight * run.losses["discriminator"] / 2, g["disc_loss"])
    both = tensor(g["disc_grad_fake"]) + tensor(g["disc_grad_real"])
    same(run.by["discriminator"] * weight.sum() / 2, both)
    assert g["critic_loss"] == GOLDEN["sid"]["critic_loss"]


# Diff-Instruct, SwiftBrush


def test_diff_instruct() -> None:
    """g = ψ − T without weight or normaliser. Their loss ⟨g, x⟩ has another value than our ½‖g‖²."""
    g = GOLDEN["diff_instruct"]
    run = ticked(DMD(fake=Fake(critic=CRITIC), times=TIMES, shape=(), critic_steps=1), tensor(g["sigma"]), "eps")
    same(LogNormal().at(torch.special.ndtr(tensor(g["normal"])), EDM()), g["sigma"])
    same(run.by["student"] * B, g["grad"])
    same((tensor(g["grad"]).reshape(B, D) * wave("x").flatten(1)).sum(1), g["loss"])
    same(run.losses["dmd"] * B, (tensor(g["grad"]) ** 2).sum().item() / 2)


def test_swiftbrush() -> None:
    """VSD with w = σ². The code guides the critic as it does the teacher; the formula, and our default, do not."""
    g = GOLDEN["swiftbrush"]
    guidance, ratio = CFG(scale=g["guidance"]), stable_diffusion(g)
    plain = VSD(fake=Fake(critic=CRITIC), times=TIMES, guidance=guidance)
    released = replace(plain, fake=Fake(critic=CRITIC, guidance=guidance))
    assert g["t_range"] == [round(1000 * VSD().times.lo), round(1000 * VSD().times.hi) + 1]
    critic = ("fake", "fake_none")
    run = ticked(released, ratio, "eps", process=VP(), critic=critic)
    same(run.by["student"] / D, g["grad"])
    same(run.losses["vsd"] / D, g["loss"])
    other = ticked(plain, ratio, "eps", process=VP(), critic=critic).by["student"] / D
    x_t, t = noised(VP(), ratio, "eps", wave("x"))
    guided, unguided = (s(Network("fake", VP(), "fake_none")).denoise(x_t, t, 1) for s in (guidance, CFG(scale=1.0)))
    w = VP().sigma(t) * VP().alpha(t)  # σ²·(α/σ), for ψ is an x0
    same(tensor(g["grad"]) - other, (like(w, x_t) * (guided - unguided)).flatten() / (B * D))


def test_swiftbrush_critic() -> None:
    """Their error is one of α·ε, α⁴/σ² of the error of x0; ours has EDM's weight."""
    g, process = GOLDEN["swiftbrush"], VP()
    ratio = stable_diffusion(g, "critic_t")
    x_t, t = noised(process, ratio, "eps2", wave("x"))
    eps = process.convert(Network("fake", process).denoise(x_t, t, 1), x_t, t, "x0", "eps").detach().requires_grad_()
    ours = denoising(process.convert(eps, x_t, t, "eps", "x0"), wave("x"), t, process)
    theirs = (ours / denoising_weight(t, process) * process.alpha(t) ** 2 / ratio**2).mean()
    assert g["critic_t_range"] == [0, 1000]
    same(theirs, g["critic_loss"])
    same(gradient(theirs, eps), g["critic_grad_eps"])


# DisBack


def test_disback_walks_the_path_backwards() -> None:
    g = GOLDEN["disback"]
    walk = backtracking(g["start_target_num"], every=g["interval"], steps=g["train_iters"])
    assert walk == list(zip(g["load_step"], g["load_checkpoint"], strict=True))


def test_disback_stops_early_in_the_released_code() -> None:
    """It goes on only while the checkpoint's number is at least the step's, so long periods end after one target.

    We follow the paper: the path is walked to its end, which is the teacher.
    """
    g = GOLDEN["disback"]
    walk = backtracking(g["start_target_num"], every=g["slow_interval"], steps=g["slow_train_iters"])
    assert len(walk) > 1
    assert [step for step, checkpoint in walk if checkpoint + 100 >= step] == g["slow_load_step"]


# f-distill


@dataclass(frozen=True, kw_only=True)
class Neyman(Divergence):
    """½·∫(p − q)²/p: f'' = 1/r³. The one of their table that is not among ours."""

    def f(self, r: Tensor) -> Tensor:
        return (r + 1 / r - 2) / 2

    def h(self, r: Tensor) -> Tensor:
        return 1 / r


DIVERGENCES: Mapping[str, Divergence] = {
    "rkl": ReverseKL(),
    "kl": ForwardKL(),
    "js": JensenShannon(),
    "sf": Softened(),
    "neyman": Neyman(),
    "sh": SquaredHellinger(),
    "jf": Jeffreys(),
}
TELLS = GAN(on="teacher", times=TIMES)


@dataclass(frozen=True, kw_only=True)
class Told(GAN):
    """The logits are known."""

    def logits(self, tick: Any, seen: object) -> Tensor:
        return tick.logits


@dataclass(frozen=True)
class EvenClock(EDM):
    """Its bins are even in σ, as theirs are; ours are even in the process's clock."""

    def fraction(self, t: Tensor) -> Tensor:
        return (t - self.t_min) / (self.t_max - self.t_min)


def counts(name: str, t: Tensor, *logits: Tensor, bins: int = 10, keep: float = 0.0) -> list[Tensor]:
    """How much each example counts, in ticks with these logits."""
    ratio = ByRatio(divergence=DIVERGENCES[name], gan=Told(on="teacher"), bins=bins, keep=keep)
    kept: dict[str, Tensor] = {}
    cast = MagicMock(kept=kept, keep=lambda name, make: kept.setdefault(name, make()))
    cast.student.parameters.side_effect = lambda: iter([torch.zeros(1, dtype=F64)])
    ratio.terms(cast)
    seen = SimpleNamespace(t=t, process=EvenClock(), detached=lambda: None)
    ticks = (SimpleNamespace(i=i, cast=cast, logits=values.flatten()) for i, values in enumerate(logits))
    return [ratio.counts(seen, tick) for tick in ticks]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", DIVERGENCES)
def test_f_distill_table(name: str) -> None:
    g = GOLDEN["f_distill"]
    same(DIVERGENCES[name].h(tensor(g["ratio"])), [g["h_rkl"]] * 5 if name == "rkl" else g[f"h_{name}"])


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name != "rkl"])
@pytest.mark.parametrize("binned", [False, True])
def test_f_distill_weights(name: str, binned: bool) -> None:
    """They normalise by the means of the batch itself, we by running means that stood before it.

    With nothing kept and the same batch again, the means of r are its own from the second tick on, and that of h from
    the third. Their divisors are 1e-6 larger: for a bin of tiny ratios (0.1) that is 1e-5 of the result.
    """
    g = GOLDEN["f_distill"]
    h = counts(name, tensor(g["t"]), *[tensor(g["logits"])] * 3, bins=10 if binned else 0)[-1]
    if binned:
        same(h, g[f"weight_{name}_binned"], 2e-5)
    else:
        same(h / h.mean(), g[f"weight_{name}"], 2e-5)  # without bins ours leaves h as it is


def test_f_distill_keeps_means() -> None:
    """Theirs move before they are used and ours after, so our tick is one behind; h stands in other units."""
    g = GOLDEN["f_distill"]
    logits = tensor(g["logits"])
    _, first = counts("kl", tensor(g["t"]), logits, logits, keep=g["ema_rate"])
    same(first / first.mean(), g["ema_first"], 1e-5)
    _, _, second = counts("kl", tensor(g["t"]), logits, -logits, -logits, keep=g["ema_rate"])
    same(second / second.mean(), g["ema_second"], 1e-5)
    bins = (EvenClock().fraction(tensor(g["t"])) * 10).long()
    for key, sign, call in (("ema_first", 1, ""), ("ema_second", -1, "_second")):  # the means that give these h
        ratio = (sign * logits.flatten()).exp().clamp(0.1, 20)
        seen = ratio / tensor(g[f"ema_bins{call}"])[bins]
        same(seen / seen.mean(), g[key], 1e-5)
        unseen = [b for b in range(10) if b not in bins.tolist()]
        same(tensor(g[f"ema_bins{call}"])[unseen], [1.0] * len(unseen))


def test_f_distill_reverse_kl() -> None:
    """The code takes the length of its constant h and fails. We follow the formula, h = 1, which is DMD."""
    g = GOLDEN["f_distill"]
    failed = [g[f"{what}_rkl{binned}_error"] for what in ("weight", "student") for binned in ("", "_binned")]
    assert set(failed) == {"TypeError"}
    ratio, levels = ByRatio(divergence=ReverseKL(), gan=TELLS), tensor(g["student_t"])
    ours = FDistill(fake=Fake(critic=CRITIC), times=TIMES, critic_steps=1, ratio=ratio)
    dmd = DMD(fake=Fake(critic=CRITIC), times=TIMES, critic_steps=1)
    same(ticked(ours, levels, "eps").by["student"], ticked(dmd, levels, "eps").by["student"])


@pytest.mark.parametrize("name", ["kl", "kl_binned", "js", "js_binned"])
def test_f_distill_student(name: str) -> None:
    """DMD with h on each example. They divide by n + 1e-6, we by max(n, 1e-5)."""
    g = GOLDEN["f_distill"]
    ratio = ByRatio(divergence=DIVERGENCES[name[:2]], gan=TELLS, bins=10 if "binned" in name else 0, keep=0.0)
    objective = FDistill(fake=Fake(critic=CRITIC), times=TIMES, critic_steps=1, ratio=ratio)
    t = tensor(g["student_t"])
    run = ticked(objective, t, "eps", process=EvenClock(), ticks=3)
    x_t = EDM().add_noise(wave("x"), wave("eps"), t)
    mean = 1.0 if "binned" in name else ratio.divergence.h(logit_of(x_t).exp()).mean()
    same(run.by["student"] / mean, g[f"student_{name}_grad"], 2e-5)
    same(((run.by["student"] / mean) ** 2).sum() * B * D / 2, g[f"student_{name}_loss"], 4e-5)
    same(F.softplus(-logit_of(x_t)).mean(), g[f"student_{name}_gan_loss"])


# DMD2 and LADD of FastGen


@pytest.mark.parametrize("guided", [False, True])
def test_dmd2_of_fastgen(guided: bool) -> None:
    """The authors' DMD2, but for n + 1e-6; guidance T + (s − 1)(T − T_∅) is ours."""
    g, x = GOLDEN["fastgen_dmd2"], leaf("x")
    key, t = "guided_" if guided else "", tensor(g["t"])
    x_t = EDM().add_noise(x, wave("eps"), t)
    guidance = CFG(scale=g["guidance"]) if guided else None
    run = ticked(DMD(fake=Fake(critic=CRITIC), times=TIMES, guidance=guidance, critic_steps=1), t, "eps")
    real = (guidance or CFG(scale=1.0))(Network("real", EDM())).denoise(x_t, t, 1)
    n = (x - real).detach().abs().flatten(1).mean(1)
    dmd = run.by["student"].reshape(x.shape) * like(n / (n + 1e-6), x)
    gan = F.softplus(-logit_of(x_t)).mean()
    same(gan, g["gan_loss"])
    same(dmd + g["gan_weight"] * gradient(gan, x), g[f"{key}grad"])
    same((dmd**2).sum() * B * D / 2, g[f"{key}vsd_loss"])


def test_critic_of_fastgen() -> None:
    """x0 without a weight; EDM's weight, which the authors of DMD2 and we take, is divided out."""
    g, process = GOLDEN["fastgen_dmd2"], EDM()
    t = tensor(g["t"])
    x0 = Network("fake", process).denoise(process.add_noise(wave("x"), wave("eps"), t), t, 1).detach().requires_grad_()
    theirs = (denoising(x0, wave("x"), t, process) / denoising_weight(t, process)).mean()
    same(theirs, g["critic_loss"])
    same(gradient(theirs, x0), g["critic_grad"])


@pytest.mark.parametrize("form", ["x0", "eps", "v", "flow"])
def test_forms_of_fastgen(form: str) -> None:
    """What a network is asked to predict: a·x0 + b·ε in the same signs."""
    g, prediction = GOLDEN["fastgen_dmd2"], leaf("y")
    sigma = tensor(g["dsm_t"])
    process = RectifiedFlow() if form == "flow" else VP()
    t = sigma if form == "flow" else process.at_ratio(sigma / (1 - sigma**2).sqrt())
    a, b = (like(c, prediction) for c in process.coefficients(form, t))  # type: ignore[arg-type]
    loss = ((prediction - a * wave("x") - b * wave("eps")) ** 2).mean()
    same(loss, g[f"dsm_{form}"])
    same(gradient(loss, prediction), g[f"dsm_{form}_grad"])


def test_levels_of_fastgen() -> None:
    """Our grid between 0.002 and 0.998, and a log-normal that is cut off where ours is clamped."""
    g = GOLDEN["fastgen_dmd2"]
    same(Karras().at(tensor(g["polynomial_index"]) / 999, EDM()), g["polynomial_sigma"], 1e-12)
    assert g["polynomial_range"] == [2, 999]
    lo, hi = torch.special.ndtr((tensor([0.002, 80.0]).log() + 1.2) / 1.2)
    same(LogNormal().at(lo + (hi - lo) * tensor(g["lognormal_u"]), EDM()), g["lognormal_sigma"])


@pytest.mark.parametrize("name", ["ladd", "fastgen_dmd2"])
def test_gan_of_fastgen(name: str) -> None:
    g = GOLDEN[name]
    t = tensor(g["t"])
    run = ticked(GAN(on="teacher", times=TIMES), t, "eps", real=(t, "eps"))
    same(run.losses["gan"], g["loss" if name == "ladd" else "gan_loss"])
    same(run.losses["discriminator"], g["disc_loss"])
    if name == "ladd":
        same(run.by["student"], g["grad"])


@pytest.mark.parametrize("name", ["ladd", "fastgen_dmd2"])
def test_approximate_r1(name: str) -> None:
    """FastGen compares D at the noised sample with D at the clean one plus noise, both called at level t.

    The penalty (arXiv 2501.08316) is about the same point with and without noise; that is what we follow.
    """
    g = GOLDEN[name]
    t = tensor(g["t"])
    real, fake = (EDM().add_noise(wave(of), wave("eps"), t) for of in ("y", "x"))
    moved = wave("y") + g["r1_alpha"] * wave("eps2")
    logits = [logit_of(seen) for seen in (real, fake, moved)]
    same(torch.stack(logits), g["logits"] if "logits" in g else [g[f"logits_{of}"] for of in ("real", "fake", "moved")])
    same(((logits[0] - logits[2]) ** 2).mean(), g["r1"])
    penalty = ApproximateR1(weight=1.0, std=g["r1_alpha"])
    for point in (real, wave("y")):
        ours = penalty.value(logit_of, [point], Fixed(t, wave("eps2")))
        same(ours, (logits[2] - logit_of(wave("y"))) ** 2)  # the logit is linear: the same wherever it is taken
        assert ours.mean() < g["r1"] / 10
    if name == "ladd":
        same(g["disc_loss"] + g["r1_weight"] * g["r1"], g["total"])


# TDM


def test_tdm_rollout() -> None:
    """DDIM in four steps of 225. They start from ε itself, we from σ·ε."""
    g, process = GOLDEN["tdm"], VP()
    ratios = linear_beta(g)
    steps = [g["total_steps"] - 1 - k * (g["total_steps"] // 4) for k in range(4)]
    times = torch.cat([process.at_ratio(ratios[steps]), torch.zeros(1, dtype=F64)])
    states = euler(Network("student", process), wave("eps3") / process.sigma(times[0]), times, 1)
    same(wave("eps3"), g["rollout"][0])
    for state, recorded in zip(states, g["rollout"][1:], strict=True):
        same(state.x, recorded)


def test_tdm_segments() -> None:
    """A step from 225·k − 1 leads to 225·(k − 1), is compared 10 below its start at most, and never below 20."""
    g, size = GOLDEN["tdm"], GOLDEN["tdm"]["total_steps"] // 4
    for segment, span in ((g["segment"], g["t_range"]), (g["critic_segment"], g["critic_t_range"])):
        assert span == [[max(20, size * (k - 1)), size * k - 11] for k in segment]
    assert g["critic_t_from"] == [size * k - 1 for k in g["critic_segment"]]
    assert g["critic_t_mid"] == [size * (k - 1) for k in g["critic_segment"]]


def tdm_step(g: Mapping[str, Any], k: list[int], t: list[int], fresh: str) -> Noised:
    """x by the student at the chosen steps, taken on by `Onward`'s noise."""
    process, ratios, size = VP(), linear_beta(g), g["total_steps"] // 4
    before = torch.stack([tensor(g["rollout"][4 - segment]).reshape(B, -1)[i] for i, segment in enumerate(k)])
    start, end, at = (
        process.at_ratio(ratios[steps]) for steps in ([size * s - 1 for s in k], [size * (s - 1) for s in k], t)
    )
    x_t = before.reshape(INPUTS["shape"])
    x = Network("student", process).denoise(x_t, start, 1).detach()
    whole = onward(process, process.convert(x, x_t, start, "x0", "eps"), wave(fresh), end, at)
    return Noised(x, process.add_noise(x, whole, at), at, whole, 1, process)


@pytest.mark.parametrize("name", ["huber", "mse"])
def test_tdm_student(name: str) -> None:
    """What descends the pseudo-Huber (or squared) distance of x to x + (T − ψ) + (s − 1)(T − T_∅), over n of guided T.

    The square's slope is 2, where ours is 1.
    """
    g, process = GOLDEN["tdm"], VP()
    seen = tdm_step(g, g["segment"], g["t"], "eps")
    same(seen.x, g["x"])
    same(seen.x_t, g["noisy"])
    guided = CFG(scale=g["cfg"])(Network("real", process)).denoise(seen.x_t, seen.t, 1).detach()
    fake = Network("fake", process).denoise(seen.x_t, seen.t, 1).detach()
    normaliser = (seen.x - guided).abs().flatten(1).mean(1)
    same(normaliser, g["normaliser"])
    shape = (Huber(c=g["huber_c"]), PerSample()) if name == "huber" else (PerSample(),)
    ours = TDM(shape=shape).shaped(seen, seen.eps_of(guided), seen.eps_of(fake), MagicMock()) / B
    same(ours if name == "huber" else 2 * ours, g["grad" if name == "huber" else "mse_grad"])
    away = fake - guided
    distance = (away**2 + g["huber_c"] ** 2).sqrt() - g["huber_c"] if name == "huber" else away**2
    same((distance.flatten(1).mean(1) / normaliser).mean(), g["loss" if name == "huber" else "mse_loss"])


@pytest.mark.parametrize("key", ["", "shared_"])
def test_tdm_critic(key: str) -> None:
    """min(SNR, 5) and importance on the error of x0, where we by default learn the score of the path's marginals.

    The importance is a mean over the example where the ratio of densities has a sum: its D-th root.
    """
    g, process = GOLDEN["tdm"], VP()
    seen = tdm_step(g, g["critic_segment"], g[f"{key}critic_t"], "eps2")
    edm = denoising_weight(seen.t, process)
    snr, weight = Critic(snr=5.0).weight(seen.t, process), importance(seen.eps, wave("eps2"))
    same(snr * edm, g[f"{key}critic_snr_min5"])
    same(weight, g[f"{key}critic_importance"])
    normal = torch.distributions.Normal(0.0, 1.0)
    density = (normal.log_prob(seen.eps) - normal.log_prob(wave("eps2"))).flatten(1).sum(1)
    same(weight.log() * D, density)
    x0 = Network("fake", process).denoise(seen.x_t, seen.t, 1).detach().requires_grad_()
    loss = (snr * weight * denoising(x0, seen.x, seen.t, process)).mean()
    same(loss, g[f"{key}critic_loss"])
    if not key:
        same(seen.x, g["critic_x"])
        same(seen.x_t, g["critic_noisy"])
        same(gradient(loss, x0), g["critic_grad"])


# Uni-Instruct


def uni_terms() -> tuple[Tensor, Tensor, Tensor]:
    """(x, the SiD loss with α = 1, theirs of the GAN: D·BCE/n), the last two [B]."""
    g, x = GOLDEN["uni_instruct"], leaf("x")
    x_t, t = noised(EDM(), Karras(hi=g["tmax"] / 1000).at(tensor(g["u"]), EDM()), "eps", x)
    real, fake = (Network(who, EDM()).denoise(x_t, t, 1) for who in ("real", "fake"))
    n = (x - real).detach().abs().flatten(1).mean(1)
    same(logit_of(x_t), g["logits"])
    return x, identity_score(x, real, fake, alpha=1.0), D * F.softplus(-logit_of(x_t)).mean() / n


def test_uni_instruct_is_made_of_sid_and_gan() -> None:
    g = GOLDEN["uni_instruct"]
    x, sim, gan = uni_terms()
    same(sim, g["sim_loss"])
    same(gan, tensor(g["bce"]) * D)
    same(torch.autograd.grad(sim.sum(), x, retain_graph=True)[0], g["sim_grad"])
    same(g["loss_scaling_g"] * sim.mean(), g["none_loss"])
    same(gradient(g["loss_scaling_g_gan"] * gan.mean(), x), g["none_grad"])
    assert g["batch"] == B


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize(
    ("name", "forward", "reverse", "gan"),
    [("forward_kl", 1.0, 0.0, 1.0), ("forward_clean", 1.0, 0.0, 0.0), ("jeffrey_kl", 0.4, 0.6, 1.0)],
)
def test_uni_instruct_branches(name: str, forward: float, reverse: float, gan: float, reduced: bool) -> None:
    """100·(f·ratio + r)·SiD + 0.01·GAN, as released. There the ratio is L/(L − 1) of L = D·BCE/n, the batch's loss.

    The formula wants the density ratio p/q, which is e^logit of each example; that is what we follow.
    """
    g, (x, sim, loss) = GOLDEN["uni_instruct"], uni_terms()
    ratio = (loss / (loss - 1)).detach()
    ratio = ratio / (ratio.sum() + 1e-8) if reduced else ratio
    key = f"{name}_reduced" if reduced else name
    if name == "forward_kl":
        same(ratio, g[f"{key}_ratio"])
        assert ((ratio - tensor(g["logits"]).exp()).abs() > 0.1).all()
    student = g["loss_scaling_g"] * ((forward * ratio + reverse) * sim).mean()
    same(student, g[f"{key}_loss"])
    same(gradient(student + gan * g["loss_scaling_g_gan"] * loss.mean(), x), g[f"{key}_grad"])


def test_uni_instruct_and_sim_of_the_same_parts() -> None:
    """What theirs is in ours: the expanded divergence of a ratio that does not change, half of SIM over n.

    A ratio that changes with x_t adds r·h'·⟨T − ψ, ψ − x⟩/ρ²·(T − ψ) to the gradient, which they leave out.
    """
    g, x = GOLDEN["uni_instruct"], leaf("x")
    x_t, t = noised(EDM(), Karras(hi=g["tmax"] / 1000).at(tensor(g["u"]), EDM()), "eps", x)
    real, fake = (Network(who, EDM()).denoise(x_t, t, 1) for who in ("real", "fake"))
    n = (x - real).detach().abs().flatten(1).mean(1)
    ratio, none = tensor(g["forward_kl_ratio"]), torch.zeros(B, dtype=F64)
    theirs = expanded(x, real, fake, t, (ratio, none, none), alpha=1.0) / n
    same((theirs / ratio), g["sim_loss"])
    same(implicit_matching(x, real, fake, L2()) / 2 / n, g["sim_loss"])
    slope = torch.autograd.grad(g["loss_scaling_g"] * theirs.mean(), x, retain_graph=True)[0]
    same(slope, g["forward_clean_grad"])
    whole = expanded(x, real, fake, t, (ratio, ratio, none), alpha=1.0) / n
    extra = ratio * ((real - fake) * (fake - x)).flatten(1).sum(1) / t**2 / n / B
    added = gradient(whole.mean(), x) - slope / g["loss_scaling_g"]
    same(added, (like(extra, x) * (real - fake)).detach(), 1e-8)


def test_uni_instruct_of_reverse_kl() -> None:
    """The branch that fails would be SiD with α = 1, as ours is."""
    g = GOLDEN["uni_instruct"]
    sigma = Karras(hi=g["tmax"] / 1000).at(tensor(g["u"]), EDM())
    ratio = ByRatio(divergence=ReverseKL(), gan=TELLS)
    run = ticked(UniInstruct(critic=CRITIC, times=TIMES, ratio=ratio, alpha=1.0), sigma, "eps")
    same(run.by["student"] * B, g["sim_grad"])
    same(run.losses["uniinstruct"] * B, sum(g["sim_loss"]))


def test_uni_instruct_branches_that_fail() -> None:
    """Reverse KL reads a ratio that was never set; the others descend a loss that is no number. Nothing to compare."""
    g = GOLDEN["uni_instruct"]
    failed = {name.removesuffix("_error"): error for name, error in g.items() if name.endswith("_error")}
    assert failed.pop("reverse_kl") == "NameError"
    assert failed == dict.fromkeys(
        (
            "jensen_shannon",
            "chi_square",
            "f_distill_reverse_kl",
            "f_distill_forward_kl",
            "f_distill_jensen_shannon",
        ),
        "RuntimeError",
    )
