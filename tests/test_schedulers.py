"""Exported schedulers: the timesteps that they visit, and what comes out, are those of our own sampler."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from limbeck.bridges import Diffusers, clock_of, steps_of
from limbeck.bridges.diffusers import Clock, scheduler_of
from limbeck.errors import Incompatible
from limbeck.rng import Rng
from limbeck.students import FewStep, Trajectory

diffusers = pytest.importorskip("diffusers")

STEPS = st.sampled_from([1, 2, 4, 8])
KINDS = st.sampled_from([FewStep, Trajectory])


class Net(nn.Module):
    """Some function of what a network of diffusers is given, which it writes down."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.3))
        self.told: list[float] = []

    def forward(self, x: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        self.told.append(float(timestep.flatten()[0]))
        return (self.slope * x + torch.sin(timestep.flatten()[0] / 100),)


def agrees(clock: Clock, known: Any, kind: type[FewStep], steps: int, ratio: float) -> None:
    """The same timesteps and the same samples, by the exported scheduler and by the student."""
    net, noise = Net(), [Rng(("noise", k)).normal(2, 1, 4, 4, dtype=torch.float32) for k in range(steps)]
    student = kind(Diffusers(net, clock), ratios=steps_of(clock, steps, ratio=ratio), shape=(1, 4, 4))
    scheduler = scheduler_of(student, known)
    if clock.even:
        scheduler.set_timesteps(sigmas=[1 - k / steps for k in range(steps)])
    else:
        scheduler.set_timesteps(steps)
    fresh, x = Theirs(noise[1:]), noise[0]
    with torch.no_grad():
        ours = student.generate(noise[0], None, Fixed(noise[1:]))
        told, net.told = net.told, []
        x = x * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else x
        for t in scheduler.timesteps:
            given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            with fresh:
                x = scheduler.step(net(given, t.expand(2))[0], t, x, return_dict=False)[0]
    assert net.told == pytest.approx(told, rel=1e-6) and len(told) == steps
    torch.testing.assert_close(x, ours, rtol=1e-5, atol=2e-5)


class Fixed(Rng):
    """Noise that is given."""

    def __init__(self, noise: list[Tensor]):
        super().__init__(0)
        object.__setattr__(self, "left", [*noise])

    def normal(self, n: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.left.pop(0)


class Theirs:
    """The same noise where diffusers draws it."""

    def __init__(self, noise: list[Tensor]):
        self.left = [*noise]

    def __enter__(self) -> None:
        self.patch = pytest.MonkeyPatch()
        for module in ("scheduling_lcm", "scheduling_flow_match_lcm"):
            where = f"diffusers.schedulers.{module}.randn_tensor"
            self.patch.setattr(where, self._next)

    def _next(self, shape: Any, **_: Any) -> Tensor:
        return self.left.pop(0) if self.left else torch.full(tuple(shape), 1e3)  # after the last step it is not heard

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    said=st.sampled_from(["epsilon", "v_prediction", "sample"]),
    schedule=st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
    n=st.integers(16, 1000),
    zero=st.booleans(),
    ratio=st.floats(-3, 3).map(lambda x: 10**x),
    steps=STEPS,
    kind=KINDS,
)
def test_a_table(said: str, schedule: str, n: int, zero: bool, ratio: float, steps: int, kind: type[FewStep]) -> None:
    zero = zero and said != "epsilon"
    more = {"beta_schedule": schedule, "prediction_type": said, "rescale_betas_zero_snr": zero}
    known = diffusers.DDIMScheduler(num_train_timesteps=n, **more)
    agrees(clock_of(known), known, kind, steps, ratio)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shift=st.floats(0.5, 8.0), even=st.booleans(), steps=STEPS, kind=KINDS)
def test_a_flow(shift: float, even: bool, steps: int, kind: type[FewStep]) -> None:
    for s in (1.0, shift):
        known = diffusers.FlowMatchEulerDiscreteScheduler(shift=s)
        clock = clock_of(known)
        agrees(Clock(clock.process, clock.form, clock.scale, shift=clock.shift, even=even), known, kind, steps, 1.0)


def test_a_step_at_timestep_0_is_refused() -> None:
    """There LCM's scheduler gives x_t for x0; one that goes on without fresh noise does not."""
    known = diffusers.DDIMScheduler(num_train_timesteps=4)
    clock = clock_of(known)
    agrees(clock, known, Trajectory, 4, 1.0)
    with pytest.raises(Incompatible, match="two timesteps of the scheduler to a step, or more, got 4 of both"):
        agrees(clock, known, FewStep, 4, 1.0)
    agrees(clock, known, FewStep, 2, 1e-3)
