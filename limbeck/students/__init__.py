"""What learns: particles, images, generators."""

from limbeck.students.generator import FewStep, FromTeacher, OneStep
from limbeck.students.particles import GrowingParticles, Image, Particles

__all__ = ["FewStep", "FromTeacher", "GrowingParticles", "Image", "OneStep", "Particles"]
