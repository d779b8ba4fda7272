"""What learns: particles, images, generators."""

from limbeck.students.generator import FewStep, OneStep
from limbeck.students.particles import GrowingParticles, Image, Particles

__all__ = ["FewStep", "GrowingParticles", "Image", "OneStep", "Particles"]
