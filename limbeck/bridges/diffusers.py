"""Pipelines of diffusers: networks as denoisers, schedulers as noise processes, and students as pipelines again."""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.diffusion.denoiser import Featured, Seen
from limbeck.diffusion.process import Form, Process, RectifiedFlow
from limbeck.diffusion.table import Tabulated
from limbeck.engine.checkpoint import new_folder
from limbeck.engine.taps import tap
from limbeck.errors import BadFile, Incompatible
from limbeck.students import FewStep, Trajectory
from limbeck.tree import Tree, tree_map

FORMS: dict[str, Form] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "flow"}
"""What a network predicts: diffusers' word for it, and ours."""

DENOISERS = ("unet", "transformer")
"""Where a pipeline keeps its denoiser."""


@dataclass(frozen=True)
class Clock:
    """How a published model tells noise levels.

    Args:
        process: of the noise.
        form: what the network predicts.
        scale: a of the timestep a·t + b that the network is told at noise level t.
        offset: b of it.
    """

    process: Process
    form: Form
    scale: float = 1.0
    offset: float = 0.0

    def timestep(self, t: Tensor) -> Tensor:
        """What the network is told at noise levels t, [B]."""
        return self.scale * t + self.offset


def clock_of(scheduler: Any) -> Clock:
    """The noise process of a scheduler of diffusers, and what its network predicts.

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
        return Clock(RectifiedFlow(), "flow", scale=float(config["num_train_timesteps"]))
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise Incompatible("a pipeline", need="a scheduler with a table of noise levels", got=name, fit="DDIMScheduler")
    levels = tuple(float(level) for level in table.double())
    if levels[-1] == 0 and said == "epsilon":
        need = "a network that predicts v or x0 where the last level is pure noise"
        raise Incompatible("a pipeline", need=need, got="one that predicts ε")
    return Clock(Tabulated(levels), FORMS[said], offset=-1.0)


class Diffusers(Featured):
    """x0 of what a network of diffusers predicts.

    Conditions are the network's own inputs by name, ``{"encoder_hidden_states": [B, L, D], ...}``; one tensor is its
    ``class_labels``. What it puts out beyond the channels of x_t, as learned variances are, is left.

    Args:
        net: called as ``net(x_t, timestep=..., **inputs)``.
        clock: of its noise.
        null: the inputs of no condition, for one example, [1, …]; none by default.
        taps: submodules that `look` reads, with their numbers of channels.

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
        inputs = self._inputs(cond, len(x_t))
        timestep = self.clock.timestep(t).to(x_t.device, torch.float32)  # half precision would round 999 to 1000
        out = self.net(x_t, timestep=timestep, **inputs, return_dict=False)[0]
        return self.process.convert(out[:, : x_t.shape[1]], x_t, t, self.clock.form, "x0")

    def look(self, x_t: Tensor, t: Tensor, cond: Tree = None, *, taps: tuple[str, ...], x0: bool = True) -> Seen:
        with tap(self.net, *taps) as seen:
            out = self.denoise(x_t, t, cond)
            return Seen(out if x0 else None, {name: seen[name] for name in taps})

    def _inputs(self, cond: Tree, n: int) -> dict[str, Any]:
        if cond is None:
            return {name: tree_map(lambda x: x.expand(n, *x.shape[1:]), tree) for name, tree in self.null.items()}
        return dict(cond) if isinstance(cond, Mapping) else {"class_labels": cond}


def read_pipeline(folder: str | Path) -> Diffusers:
    """The denoiser of a pipeline's folder; weights are read from safetensors alone.

    Raises:
        Incompatible: diffusers is missing, no denoiser that is known, a scheduler that is no noise process of ours.
        BadFile: a folder that is no pipeline.
    """
    library, index, place = _diffusers(), _index(folder), _place(folder)
    try:
        net = _kind(library, index[place][1]).from_pretrained(folder, subfolder=place, use_safetensors=True)
        scheduler = _kind(library, index["scheduler"][1]).from_pretrained(folder, subfolder="scheduler")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadFile(f"{folder} is not a whole pipeline: {' '.join(str(error).split())[:200]}.") from error
    middle = {"mid_block": net.config["block_out_channels"][-1]} if getattr(net, "mid_block", None) else {}
    return Diffusers(net.requires_grad_(False).eval(), clock_of(scheduler), taps=middle)


def steps_of(clock: Clock, steps: int, *, ratio: float = math.inf) -> tuple[float, ...]:
    """Noise levels σ/α of a student of so many steps that a pipeline then takes by itself, evenly spaced in time.

    They are those of timesteps n − 1, n − 1 − n/K, …, of K steps: n is a multiple of K, so that every scheduler agrees
    on them, and the one whose first level is nearest to ``ratio``. A generator starts from noise of unit variance
    whatever its first level is called, and learns most easily at one where the teacher does not answer with a blur:
    DMD2 tells its one step of SDXL timestep 399 of 1 000, where σ/α = 1.2 (arXiv 2405.14867, its released code).

    Raises:
        Incompatible: a process without a table.

    >>> clock = Clock(Tabulated((0.9, 0.5, 0.1, 0.0)), "v")
    >>> [[round(ratio, 3) for ratio in steps_of(clock, steps, ratio=2.9)] for steps in (1, 2)]
    [[3.0], [1.0, 0.333]]
    """
    if not isinstance(process := clock.process, Tabulated):
        raise Incompatible("a pipeline of few steps", need="a table of noise levels", got=type(process).__name__)
    first = float(process.at_ratio(torch.tensor([ratio], dtype=torch.float64)))
    n = steps * max(1, min(round(first / steps), len(process.table) // steps))
    return tuple(process.ratio(n - n // steps * torch.arange(steps, dtype=torch.float64)).tolist())


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
    place, index = _place(like), _index(like)
    denoiser = student.denoiser
    if not isinstance(denoiser, Diffusers):
        raise Incompatible("a pipeline", need="a student around a network of diffusers", got=type(denoiser).__name__)
    asked = steps_of(denoiser.clock, len(student.ratios), ratio=student.ratios[0])
    given, fits = (torch.tensor(ratios, dtype=torch.float64) for ratios in (student.ratios, asked))
    if not torch.allclose(given, fits, rtol=1e-6):
        need = f"steps at σ/α of {', '.join(f'{ratio:.4g}' for ratio in asked)}"
        got = ", ".join(f"{ratio:.4g}" for ratio in student.ratios)
        fit = f"ratios=steps_of(clock, {len(asked)}, ratio={student.ratios[0]:.4g})"
        raise Incompatible("a pipeline", need=need, got=got, fit=fit)
    known = _kind(_diffusers(), index["scheduler"][1]).from_pretrained(like, subfolder="scheduler")
    scheduler = _scheduler(known, student)
    with new_folder(Path(folder)) as made:
        ignored = shutil.ignore_patterns("*.partial", "checksums.json")
        for name in (part for part in index if part not in (place, "scheduler") and (Path(like) / part).is_dir()):
            shutil.copytree(Path(like) / name, made / name, ignore=ignored)
        net: Any = denoiser.net
        net.save_pretrained(made / place, safe_serialization=True)
        scheduler.save_pretrained(made / "scheduler")
        index["scheduler"] = ["diffusers", type(scheduler).__name__]
        if index.get("_class_name") == "DDIMPipeline":  # it would make a DDIMScheduler of any scheduler
            index["_class_name"] = "DDPMPipeline"
        (made / "model_index.json").write_text(json.dumps(index, indent=2))


def _scheduler(known: Any, student: FewStep) -> Any:
    """The scheduler that takes a student's steps, of as many timesteps as there are below the first of them."""
    n = round(float(student.times[0]))
    table: dict[str, Any] = {"num_train_timesteps": n, "clip_sample": False, "thresholding": False}
    if n < len(known.betas):
        table |= {"trained_betas": known.betas[:n].tolist(), "rescale_betas_zero_snr": False}
    if isinstance(student, Trajectory):
        walk = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "steps_offset": 0}
        return _diffusers().DDIMScheduler.from_config(known.config, **table, **walk)
    steps = {"original_inference_steps": n, "timestep_scaling": 1e4}  # x0 as it is, without a share of x_t
    return _diffusers().LCMScheduler.from_config(known.config, **table, **steps)


def _diffusers() -> Any:
    try:
        return import_module("diffusers")
    except ImportError:
        fit = "pip install 'limbeck[diffusers]'"
        raise Incompatible("a pipeline", need="diffusers", got="none installed", fit=fit) from None


def _index(folder: str | Path) -> dict[str, Any]:
    try:
        index = json.loads((Path(folder) / "model_index.json").read_text())
    except (OSError, ValueError) as error:
        raise BadFile(
            f"{folder} is not the folder of a pipeline: it has no model_index.json that can be read."
        ) from error
    if not isinstance(index, dict) or "scheduler" not in index:
        raise BadFile(f"{folder} is no pipeline of a diffusion model: it has no scheduler.")
    return index


def _place(folder: str | Path) -> str:
    index = _index(folder)
    if not (found := [name for name in DENOISERS if name in index]):
        parts = ", ".join(name for name in index if not name.startswith("_"))
        raise Incompatible("a pipeline", need=f"a {' or a '.join(DENOISERS)}", got=parts)
    return found[0]


def _kind(library: Any, name: str) -> Any:
    kind = getattr(library, str(name), None)
    if kind is None:
        raise Incompatible("a pipeline", need="classes that the installed diffusers knows", got=str(name))
    return kind


__all__ = ["Clock", "Diffusers", "clock_of", "read_pipeline", "steps_of", "write_pipeline"]
