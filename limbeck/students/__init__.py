"""What learns: particles, images, generators."""

from limbeck.students.experts import AdditiveExperts, mixed
from limbeck.students.generator import FewStep, FromTeacher, OneStep
from limbeck.students.particles import FromNoise, GrowingParticles, Image, Particles
from limbeck.students.ranked import ranked, taylor_scores
from limbeck.students.recurrent import Recurrent, recurrence, unrolled
from limbeck.students.routed import Routed
from limbeck.students.slimmable import Elastic, Narrow, Slimmable, SlimmableTasks
from limbeck.students.stochastic import RandomEta, renoised
from limbeck.students.trajectory import Phased, Trajectory
from limbeck.students.views import FromCameras, Views
from limbeck.students.whole_path import WholePath

__all__ = [
    "AdditiveExperts",
    "Elastic",
    "FewStep",
    "FromCameras",
    "FromNoise",
    "FromTeacher",
    "GrowingParticles",
    "Image",
    "Narrow",
    "OneStep",
    "Particles",
    "Phased",
    "RandomEta",
    "Recurrent",
    "Routed",
    "Slimmable",
    "SlimmableTasks",
    "Trajectory",
    "Views",
    "WholePath",
    "mixed",
    "ranked",
    "recurrence",
    "renoised",
    "taylor_scores",
    "unrolled",
]
