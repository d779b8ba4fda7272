"""Models of other libraries as Limbeck's parts, and back."""

from limbeck.bridges.diffusers import Clock, Diffusers, clock_of, read_pipeline, steps_of, write_pipeline
from limbeck.bridges.images import Images
from limbeck.bridges.lora import read_lora, write_lora
from limbeck.bridges.models import on_model
from limbeck.bridges.problem import Pipeline
from limbeck.bridges.prompts import Prompts, encode, read_prompts
from limbeck.bridges.smaller import Smaller
from limbeck.bridges.texts import Texts
from limbeck.bridges.transformers import read_model, write_model

__all__ = [
    "Clock",
    "Diffusers",
    "Images",
    "Pipeline",
    "Prompts",
    "Smaller",
    "Texts",
    "clock_of",
    "encode",
    "on_model",
    "read_lora",
    "read_model",
    "read_pipeline",
    "read_prompts",
    "steps_of",
    "write_lora",
    "write_model",
    "write_pipeline",
]
