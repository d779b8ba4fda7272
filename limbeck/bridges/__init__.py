"""Models of other libraries as Limbeck's parts, and back."""

from limbeck.bridges.diffusers import Clock, Diffusers, clock_of, read_pipeline, steps_of, write_pipeline
from limbeck.bridges.lora import read_lora, write_lora
from limbeck.bridges.problem import Pipeline
from limbeck.bridges.prompts import Prompts, encode, read_prompts

__all__ = [
    "Clock",
    "Diffusers",
    "Pipeline",
    "Prompts",
    "clock_of",
    "encode",
    "read_lora",
    "read_pipeline",
    "read_prompts",
    "steps_of",
    "write_lora",
    "write_pipeline",
]
