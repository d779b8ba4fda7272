"""What learns: particles, images, generators."""

from limbeck.students.generator import FewStep, FromTeacher, OneStep
from limbeck.students.particles import FromNoise, GrowingParticles, Image, Particles

__all__ = ["FewStep", "FromNoise", "FromTeacher", "GrowingParticles", "Image", "OneStep", "Particles"]
