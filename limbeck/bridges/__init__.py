"""Models of other libraries as Limbeck's parts, and back."""

from limbeck.bridges.diffusers import Clock, Diffusers, clock_of, read_pipeline, steps_of, write_pipeline
from limbeck.bridges.lora import read_lora, write_lora
from limbeck.bridges.problem import Pipeline

__all__ = [
    "Clock",
    "Diffusers",
    "Pipeline",
    "clock_of",
    "read_lora",
    "read_pipeline",
    "steps_of",
    "write_lora",
    "write_pipeline",
]
