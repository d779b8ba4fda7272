"""The mathematics of noise: processes, times, guidance, samplers."""

from limbeck.diffusion.denoiser import Denoiser, Featured, Seen, Wrapped
from limbeck.diffusion.guidance import CFG, Guidance, Guided, Instead, Negative, NegativeAttention, PerpNeg, RandomCFG
from limbeck.diffusion.process import EDM, VP, Form, Process, RectifiedFlow, TrigFlow, like
from limbeck.diffusion.samplers import State, ancestral, dpm_solver, euler, few_step, heun, heun_step, sample
from limbeck.diffusion.table import Tabulated
from limbeck.diffusion.times import Annealed, Karras, LogNormal, Times, Uniform

__all__ = [
    "CFG",
    "EDM",
    "VP",
    "Annealed",
    "Denoiser",
    "Featured",
    "Form",
    "Guidance",
    "Guided",
    "Instead",
    "Karras",
    "LogNormal",
    "Negative",
    "NegativeAttention",
    "PerpNeg",
    "Process",
    "RandomCFG",
    "RectifiedFlow",
    "Seen",
    "State",
    "Tabulated",
    "Times",
    "TrigFlow",
    "Uniform",
    "Wrapped",
    "ancestral",
    "dpm_solver",
    "euler",
    "few_step",
    "heun",
    "heun_step",
    "like",
    "sample",
]
