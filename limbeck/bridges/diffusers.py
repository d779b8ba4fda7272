"""Pipelines of diffusers: networks as denoisers, schedulers as noise processes, and students as pipelines again."""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.bridges.conditions import is_packed, keep_labels, labels_of, null_label, predict, tokens_of
from limbeck.bridges.folder import class_of, denoiser_in, index_of, read_part
from limbeck.diffusion.denoiser import Featured, Seen
from limbeck.diffusion.process import Form, Process, RectifiedFlow
from limbeck.diffusion.table import Tabulated
from limbeck.engine.checkpoint import new_folder
from limbeck.engine.taps import tap
from limbeck.errors import Incompatible
from limbeck.students import FewStep, OneStep, Trajectory, WholePath
from limbeck.teachers.lora import LowRank, add_adapters
from limbeck.tree import Tree, rows, tree_map

AT_ONCE = 2**18
"""Numbers of x_t that a pass without gradients takes at once: whoever judges asks for hundreds of images."""

FORMS: dict[str, Form] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "flow"}
"""What a network predicts: diffusers' word for it, and ours."""


@dataclass(frozen=True)
class Clock:
    """How a published model tells noise levels.

    Args:
        process: of the noise.
        form: what the network predicts.
        scale: a of the timestep a·t + b that the network is told at noise level t.
        offset: b of it.
        shift: s of a flow's few steps s·u/(1 + (s − 1)·u), u even between 1 and 0.
        even: whether a pipeline asks for u = 1, …, 1/n itself; otherwise its scheduler ends where that would.
    """

    process: Process
    form: Form
    scale: float = 1.0
    offset: float = 0.0
    shift: float = 1.0
    even: bool = False

    def timestep(self, t: Tensor) -> Tensor:
        """What the network is told at noise levels t, [B]."""
        return self.scale * t + self.offset


def clock_of(scheduler: Any, tokens: int | None = None) -> Clock:
    """The noise process of a scheduler of diffusers, and what its network predicts.

    Args:
        scheduler: of diffusers.
        tokens: how many a transformer makes of an image, where the shift of a flow depends on it.

    Raises:
        Incompatible: a scheduler without a table of noise levels that is not one of flow matching either.

    >>> from types import SimpleNamespace
    >>> known = SimpleNamespace(config={"prediction_type": "epsilon"}, alphas_cumprod=torch.tensor([0.9, 0.5]))
    >>> clock = clock_of(known)  # a scheduler of diffusers has these two
    >>> clock.form, clock.timestep(torch.tensor([2.0]))
    ('eps', tensor([1.]))
    """
    config, name = scheduler.config, type(scheduler).__name__
    said = config.get("prediction_type", "flow_prediction" if name.startswith("FlowMatch") else None)
    if said not in FORMS:
        need = f"a scheduler whose network predicts {', '.join(FORMS)}"
        raise Incompatible("a pipeline", need=need, got=f"{name} with {said}")
    if said == "flow_prediction":
        if config.get("invert_sigmas"):
            raise Incompatible("a pipeline", need="a scheduler that goes from noise to data", got=f"{name}, inverted")
        return Clock(RectifiedFlow(), "flow", float(config["num_train_timesteps"]), shift=_shift(config, tokens))
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise Incompatible("a pipeline", need="a scheduler with a table of noise levels", got=name, fit="DDIMScheduler")
    levels = tuple(float(level) for level in table.double())
    if levels[-1] == 0 and said == "epsilon":
        need = "a network that predicts v or x0 where the last level is pure noise"
        raise Incompatible("a pipeline", need=need, got="one that predicts ε")
    return Clock(Tabulated(levels), FORMS[said], offset=-1.0)


def _shift(config: Mapping[str, Any], tokens: int | None) -> float:
    """s of a scheduler of flow matching; where it is dynamic, at this many tokens (arXiv 2403.03206, sec. 5.3.2)."""
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift", config.get("flow_shift", None)) or 1.0)
    if tokens is None:
        raise Incompatible("a shift that depends on the size of images", need="tokens", got="none")
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    mu = low + (high - low) * (tokens - few) / (many - few)
    return mu if config.get("time_shift_type") == "linear" else math.exp(mu)


class Diffusers(Featured):
    """x0 of what a network of diffusers predicts.

    Conditions are the network's own inputs by name, ``{"encoder_hidden_states": [B, L, D], ...}``; one tensor is its
    ``class_labels``. What it puts out beyond the channels of x_t, as learned variances are, is left.

    Args:
        net: called as ``net(x_t, timestep=..., **inputs)``.
        clock: of its noise.
        null: the inputs of no condition, for one example, [1, …]; none by default.
        taps: submodules whose output `look` reads, with their numbers of channels; with ``-`` for the dots of a path,
            it is what goes in.

    >>> from torch import nn
    >>> class Net(nn.Module):
    ...     def forward(self, x, timestep, return_dict=True):
    ...         return (timestep.to(x)[:, None] * torch.ones_like(x),)
    >>> teacher = Diffusers(Net(), Clock(RectifiedFlow(), "flow", scale=1000.0))
    >>> teacher.denoise(torch.zeros(1, 2), torch.tensor([0.5], dtype=torch.float64))  # x_t − t·(ε − x0)
    tensor([[-250., -250.]])
    """

    def __init__(
        self,
        net: nn.Module,
        clock: Clock,
        *,
        null: Mapping[str, Tree] | None = None,
        taps: Mapping[str, int] | None = None,
    ):
        super().__init__()
        self.net, self.clock, self.process, self.sigma_data = net, clock, clock.process, 1.0
        self.null, self.taps = dict(null or {}), dict(taps or {})

    def denoise(self, x_t: Tensor, t: Tensor, cond: Tree = None) -> Tensor:
        size = max(1, AT_ONCE // x_t[0].numel())
        if torch.is_grad_enabled() or len(x_t) <= size:
            return self._denoise(x_t, t, cond)
        parts = [slice(k, k + size) for k in range(0, len(x_t), size)]
        return torch.cat([self._denoise(x_t[part], t[part], rows(cond, part)) for part in parts])

    def _denoise(self, x_t: Tensor, t: Tensor, cond: Tree) -> Tensor:
        own = next((p.dtype for p in self.net.parameters()), x_t.dtype)  # of the base, where adapters are finer
        inputs = tree_map(lambda x: x.to(own) if x.is_floating_point() else x, self._inputs(cond, x_t))
        timestep = self.clock.timestep(t).to(x_t.device, torch.float32)  # half precision would round 999 to 1000
        out = predict(self.net, x_t.to(own), timestep, inputs)
        return self.process.convert(out[:, : x_t.shape[1]].to(x_t.dtype), x_t, t, self.clock.form, "x0")

    def look(self, x_t: Tensor, t: Tensor, cond: Tree = None, *, taps: tuple[str, ...], x0: bool = True) -> Seen:
        places = {name: name.replace("-", ".") + ":in" * ("-" in name) for name in taps}
        with tap(self.net, *places.values()) as seen:
            out = self._denoise(x_t, t, cond)
            found = {name: seen[place] for name, place in places.items()}
            maps = {name: x.movedim(2, 1) if x.dim() == 3 else x for name, x in found.items()}  # tokens come last
            return Seen(out if x0 else None, maps)

    def _inputs(self, cond: Tree, x_t: Tensor) -> dict[str, Any]:
        if cond is not None:
            return dict(cond) if isinstance(cond, Mapping) else {"class_labels": cond}
        if not self.null and labels_of(self.net) is not None:
            raise Incompatible("no condition", need="a network with a class for it", got="one of classes alone")
        return tree_map(lambda x: x.to(x_t.device).expand(len(x_t), *x.shape[1:]), dict(self.null))


def read_pipeline(folder: str | Path, *, weights: bool = True, dtype: torch.dtype = torch.float32) -> Diffusers:
    """The denoiser of a pipeline's folder; weights are read from safetensors alone.

    Args:
        folder: of the pipeline.
        weights: whether they are read; else the network is made from its configuration, on the meta device.
        dtype: of the parameters, as they are read.

    Raises:
        Incompatible: diffusers is missing, no denoiser that is known, a scheduler that is no noise process of ours.
        BadFile: a folder that is no pipeline.
    """
    net = read_part(folder, denoiser_in(folder), weights=weights, dtype=dtype)
    keep_labels(net)
    clock = clock_of(read_part(folder, "scheduler"), tokens_of(net))
    clock = replace(clock, even=is_packed(net))
    return Diffusers(net.requires_grad_(False).eval(), clock, null=null_label(net), taps=_middle(net))


def _middle(net: Any) -> dict[str, int]:
    """Where features are read: in the middle of a U-Net, or before the middle block of a transformer."""
    if getattr(net, "mid_block", None) is not None:
        return {"mid_block": net.config["block_out_channels"][-1]}
    if not (blocks := getattr(net, "transformer_blocks", ())):
        return {}
    width = net.config["num_attention_heads"] * net.config["attention_head_dim"]
    return {f"transformer_blocks-{len(blocks) // 2}-norm1": width}


def steps_of(clock: Clock, steps: int, *, ratio: float = math.inf) -> tuple[float, ...]:
    """Noise levels σ/α of a student of so many steps that a pipeline then takes by itself, evenly spaced in time.

    They are those of timesteps n − 1, n − 1 − n/K, …, of K steps: n is a multiple of K, so that every scheduler agrees
    on them, at least 2·K if there are so many, and the one whose first level is nearest to ``ratio``. Those of a flow
    are its shift's.

    A generator starts from noise of unit variance whatever its first level is called, and learns most easily at one
    where the teacher does not answer with a blur: DMD2 tells its one step of SDXL timestep 399 of 1 000, where
    σ/α = 1.2 (arXiv 2405.14867, its released code).

    Args:
        clock: of the pipeline.
        steps: K.
        ratio: σ/α near which they begin; ∞, pure noise, by default, and of a flow always.

    Raises:
        Incompatible: a process that is neither a table nor a flow.

    >>> clock = Clock(Tabulated((0.9, 0.7, 0.5, 0.3, 0.1, 0.0)), "v")
    >>> [[round(ratio, 3) for ratio in steps_of(clock, steps, ratio=2.9)] for steps in (1, 2)]
    [[3.0], [1.528, 0.655]]
    """
    match clock.process:
        case Tabulated() as process:
            first = float(process.at_ratio(torch.tensor([ratio], dtype=torch.float64)))
            # not one timestep a step where there are more: LCM's scheduler has a timestep 0 for clean already
            n = steps * max(1, min(max(2, round(first / steps)), len(process.table) // steps))
            return tuple(process.ratio(n - n // steps * torch.arange(steps, dtype=torch.float64)).tolist())
        case RectifiedFlow() as process:
            scheduler = _flow(clock, steps, "FlowMatchLCMScheduler")
            given = [1 - k / steps for k in range(steps)] if clock.even else None
            scheduler.set_timesteps(**({"num_inference_steps": steps} if given is None else {"sigmas": given}))
            times = (scheduler.timesteps.double() / clock.scale).clamp(max=1)  # single precision may round beyond
            return tuple(process.ratio(times).tolist())
        case other:
            need = "a table of noise levels or a flow"
            raise Incompatible("a pipeline of few steps", need=need, got=type(other).__name__)


def write_pipeline(student: FewStep, folder: str | Path, like: str | Path) -> None:
    """A pipeline's folder with a student in the place of its denoiser, and the scheduler and steps that go with it.

    Args:
        student: of few steps, around a `Diffusers`.
        folder: to be written.
        like: the pipeline that its teacher came from.

    Raises:
        Incompatible: a student around something else, or steps that diffusers would not take; see `steps_of`.
        BadFile: ``like`` is no pipeline, or the folder cannot be written.
    """
    place, index = denoiser_in(like), index_of(like)
    scheduler = scheduler_of(student, read_part(like, "scheduler"))
    with new_folder(Path(folder)) as made:
        ignored = shutil.ignore_patterns("*.partial", "checksums.json")
        for name in (part for part in index if part not in (place, "scheduler") and (Path(like) / part).is_dir()):
            shutil.copytree(Path(like) / name, made / name, ignore=ignored)
        net = _leaving(student, like)
        net.save_pretrained(made / place, safe_serialization=True)
        scheduler.save_pretrained(made / "scheduler")
        index["scheduler"] = ["diffusers", type(scheduler).__name__]
        if index.get("_class_name") == "DDIMPipeline":  # it would make a DDIMScheduler of any scheduler
            index["_class_name"] = "DDPMPipeline"
        (made / "model_index.json").write_text(json.dumps(index, indent=2))


def _leaving(student: FewStep, like: str | Path) -> Any:
    """A student's network with plain weights; adapters are added to the weights of the folder, in its precision."""
    assert isinstance(student.denoiser, Diffusers)
    net: Any = student.denoiser.net
    if any(isinstance(part, LowRank) for part in net.modules()):
        made = read_part(like, denoiser_in(like))
        add_adapters(made.to(next(net.parameters()).device), net)
        return made
    return net


def scheduler_of(student: FewStep, known: Any) -> Any:
    """The scheduler that takes a student's steps: on to the next level by fresh noise, or by the noise that x0 implies.

    Of a table it has as many timesteps as there are below the first step, and so begins there.

    Args:
        student: of few steps, around a `Diffusers`.
        known: the scheduler of the pipeline that its teacher came from.

    Raises:
        Incompatible: a student around something else, or steps that diffusers would not take; see `steps_of`.
    """
    denoiser = student.denoiser
    if not isinstance(denoiser, Diffusers):
        raise Incompatible("a pipeline", need="a student around a network of diffusers", got=type(denoiser).__name__)
    if type(student) not in (FewStep, OneStep, Trajectory, WholePath):
        got = f"a {type(student).__name__}"
        raise Incompatible("a pipeline", need="a student whose steps go on by fresh noise or by none", got=got)
    asked = steps_of(denoiser.clock, len(student.ratios), ratio=student.ratios[0])
    given, fits = (torch.tensor(ratios, dtype=torch.float64) for ratios in (student.ratios, asked))
    if not torch.allclose(given, fits, rtol=1e-6):
        need = f"steps at σ/α of {', '.join(f'{ratio:.4g}' for ratio in asked)}"
        got = ", ".join(f"{ratio:.4g}" for ratio in student.ratios)
        fit = f"ratios=steps_of(clock, {len(asked)}, ratio={student.ratios[0]:.4g})"
        raise Incompatible("a pipeline", need=need, got=got, fit=fit)
    clock, walks = denoiser.clock, isinstance(student, Trajectory)
    if not isinstance(clock.process, Tabulated):
        kind = "FlowMatchEulerDiscreteScheduler" if walks else "FlowMatchLCMScheduler"
        return _flow(clock, len(student.ratios), kind)
    n = round(float(student.times[0]))
    # said outright: what a scheduler has by default, it does not hand on to one of another class
    table: dict[str, Any] = {name: known.config[name] for name in _LEVELS if name in known.config}
    table |= {"num_train_timesteps": n, "clip_sample": False, "thresholding": False}
    if n < len(known.betas):
        table |= {"trained_betas": known.betas[:n].tolist(), "rescale_betas_zero_snr": False}
    if walks:
        way = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "steps_offset": 0}
        return class_of("DDIMScheduler").from_config(known.config, **table, **way)
    if n == len(student.ratios):  # at timestep 0 it would give x_t for x0
        need, got = "two timesteps of the scheduler to a step, or more", f"{n} of both"
        raise Incompatible("a student whose steps go on by fresh noise", need=need, got=got, fit="fewer steps")
    way = {"original_inference_steps": n, "timestep_scaling": 1e4}  # x0 as it is, without a share of x_t
    return class_of("LCMScheduler").from_config(known.config, **table, **way)


_LEVELS = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr", "prediction_type")
"""What a scheduler's noise levels depend on, and what its network predicts."""


def _flow(clock: Clock, steps: int, kind: str) -> Any:
    """A scheduler of few steps of a flow."""
    last = clock.shift / (steps + clock.shift - 1) if steps > 1 else None  # where u = 1/n is
    return class_of(kind)(num_train_timesteps=int(clock.scale), shift=clock.shift, shift_terminal=last)


__all__ = ["Clock", "Diffusers", "clock_of", "read_pipeline", "steps_of", "write_pipeline"]
