"""Every scheduler that diffusers has: handed over it draws what one process draws, bit for bit, or it is refused."""

import inspect
import math
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, LCMScheduler
from torch import nn

from lab.hybridsd import sampling
from lab.hybridsd.consistency import Consistency, distil_consistency
from lab.hybridsd.handoff import Handoff, advance, begin
from lab.hybridsd.sampling import Conditioning, fresh, rehearsal, trajectory

from . import small

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS = [name for name in sorted(dir(diffusers)) if name.endswith("Scheduler") and not name.startswith("Flax")]
CARRIED = {
    "CMStochasticIterative", "CogVideoXDDIM", "DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel",
    "DEISMultistep", "DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSinglestep", "EDMDPMSolverMultistep",
    "EDMEuler", "EulerAncestralDiscrete", "EulerDiscrete", "IPNDM", "LCM", "LMSDiscrete", "SASolver", "TCD",
    "UniPCMultistep",
}  # fmt: skip
N = 8
COND = Conditioning(torch.zeros(1, 2, 2), guidance=1.0)


class Toy(nn.Module):
    """Its output depends on what it is given."""

    config = SimpleNamespace(time_cond_proj_dim=None)

    def __init__(self, scale):
        super().__init__()
        self.scale, self.calls = scale, 0

    def forward(self, x, t, **_):
        self.calls += 1
        return ((self.scale * x + float(t) / 1000).sin(),)


def made(name):
    """A scheduler with the schedule of Stable Diffusion; what it must be told is 4."""
    kind = getattr(diffusers, name)
    needed = [p.name for p in inspect.signature(kind.__init__).parameters.values() if p.default is p.empty][1:]
    try:
        return kind.from_config(SCHEDULE, **{name: 4 for name in needed if name not in ("args", "kwargs")})
    except (ImportError, ValueError, TypeError) as error:
        pytest.skip(f"cannot be made: {str(error).strip().splitlines()[0]}")


def start(scheduler):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 4, 6, 6, generator=generator)
    return x * fresh(scheduler, N).init_noise_sigma, generator


def handed_over(scheduler, units, cuts):
    """The final latent, handed over as bytes before each of the steps `cuts`."""
    x, generator = start(scheduler)
    state = begin(scheduler, x, N, 1.0, generator=generator)
    for at in cuts:
        state = advance(state, units[0], scheduler, COND, at)
        state = Handoff.from_bytes(state.to_bytes())
        torch.randn(3)  # the global generator stands elsewhere on another machine
    return advance(state, units[1], scheduler, COND, N).latent


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # constructors of diffusers meet numpy 2
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_hand_over_is_bit_for_bit_or_refused_before_the_first_step(name):
    scheduler, units = made(name), (Toy(0.5), Toy(0.7))
    if name.removesuffix("Scheduler") not in CARRIED:
        with pytest.raises(ValueError) as caught:
            handed_over(scheduler, units, [1])
        assert "\n" not in str(caught.value) and name in str(caught.value) and units[0].calls == 0
        return
    for cuts in ([1], [2], [3], [6], [7], [1, 2, 3, 4, 5]):
        x, generator = start(scheduler)
        *_, whole = trajectory(units, fresh(scheduler, N), x, COND, [cuts[-1], N - cuts[-1]], generator)
        assert torch.equal(handed_over(scheduler, units, cuts), whole), cuts


def test_what_was_listed_is_there():
    assert {f"{name}Scheduler" for name in CARRIED} <= set(SCHEDULERS)


class Secretive(DDIMScheduler):
    """Keeps what no hand-off carries."""

    def step(self, model_output, timestep, sample, return_dict=True):
        before = getattr(self, "kept", {"x": 0 * sample})["x"]
        self.kept = {"x": model_output}
        return (super().step(model_output + before, timestep, sample, return_dict=False)[0],)


class Careless(DDIMScheduler):
    """Draws from the global generator."""

    def step(self, model_output, timestep, sample, return_dict=True):
        return (super().step(model_output, timestep, sample, return_dict=False)[0] + torch.randn_like(sample),)


@pytest.mark.parametrize("kind", [Secretive, Careless])
def test_a_memory_that_does_not_travel_is_refused_and_draws_in_one_process(kind):
    scheduler, unit = kind(**SCHEDULE, clip_sample=False), Toy(0.5)
    x, generator = start(scheduler)
    with pytest.raises(ValueError, match=f"{kind.__name__} cannot be handed over before step"):
        begin(scheduler, x, N, 1.0, generator=generator)
    *_, whole = trajectory([unit], fresh(scheduler, N), x, COND, [N], generator)
    assert torch.isfinite(whole).all() and unit.calls == N


def test_noise_needs_its_generator():
    x, generator = start(LCMScheduler(**SCHEDULE))
    with pytest.raises(ValueError, match="LCMScheduler draws noise between its steps: give the generator"):
        begin(LCMScheduler(**SCHEDULE), x, N, 1.0)
    assert begin(LCMScheduler(**SCHEDULE), x, N, 1.0, generator=generator).noise is not None
    assert begin(DDIMScheduler(**SCHEDULE), x, N, 1.0, generator=generator).noise is None  # eta is 0


def test_a_rehearsal_touches_nothing_and_is_held_once():
    torch.manual_seed(5)
    before, scheduler = torch.random.get_rng_state(), DDPMScheduler(**SCHEDULE)
    assert rehearsal(scheduler, 30) is rehearsal(DDPMScheduler(**SCHEDULE), 30)
    assert torch.equal(torch.random.get_rng_state(), before) and len(rehearsal(scheduler, 30).memory) == 31
    listed = DDIMScheduler(trained_betas=np.linspace(0.001, 0.02, 1000).tolist())
    array = DDIMScheduler(trained_betas=np.linspace(0.001, 0.02, 1000))
    assert torch.equal(fresh(array, 4).alphas_cumprod, fresh(listed, 4).alphas_cumprod)


@pytest.mark.parametrize("steps", [0, -1, 2000])
def test_steps_that_a_scheduler_cannot_take_are_one_line(steps):
    with pytest.raises(ValueError, match=f"DDIMScheduler cannot take {steps} steps here") as caught:
        fresh(DDIMScheduler(**SCHEDULE), steps)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler])
def test_a_trajectory_of_one_step_can_be_handed_over_at_either_end(kind):
    scheduler, unit = kind(**SCHEDULE), Toy(0.5)
    assert len(rehearsal(scheduler, 1).memory) == 2 and not rehearsal(scheduler, 1).fault
    x = torch.randn(1, 4, 6, 6) * fresh(scheduler, 1).init_noise_sigma
    state = begin(scheduler, x, 1, 1.0, generator=torch.Generator().manual_seed(3))
    (last,) = trajectory([unit], fresh(scheduler, 1), x, COND, [1], torch.Generator().manual_seed(3))
    assert torch.equal(advance(state, unit, scheduler, COND, 1).latent, last)


# -- numbers that are not finite ---------------------------------------------------------------------------------------

ZERO = {**SCHEDULE, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}


@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler, diffusers.DDIMParallelScheduler, LCMScheduler])
def test_zero_terminal_snr_and_a_prediction_of_noise_are_named_before_the_first_step(kind):
    words = r"rescale_betas_zero_snr=True with prediction_type='epsilon'.*give a model of 'v_prediction'"
    with pytest.raises(ValueError, match=words) as caught:
        fresh(kind(**ZERO, prediction_type="epsilon"), 4)
    assert "\n" not in str(caught.value)
    unit, velocity = Toy(0.5), kind(**ZERO, prediction_type="v_prediction")
    x, generator = start(velocity)
    *_, last = trajectory([unit], fresh(velocity, N), x, COND, [N], generator)
    assert torch.isfinite(last).all()


def test_a_schedule_that_never_comes_to_its_end_draws():
    early = DDIMScheduler(**{**ZERO, "timestep_spacing": "leading"})
    assert float(early.alphas_cumprod[-1]) == 0 and fresh(early, 4).timesteps.max() < 999


def test_a_step_that_is_not_finite_is_told_at_once():
    class Broken(Toy):
        def forward(self, x, t, **_):
            self.calls += 1
            return (x * math.nan if self.calls == 3 else x.tanh(),)

    unit, scheduler = Broken(1.0), DPMSolverMultistepScheduler(**SCHEDULE)
    x, _ = start(scheduler)
    with pytest.raises(ValueError, match="made numbers that are not finite in step 3: take float32"):
        list(trajectory([unit], fresh(scheduler, N), x, COND, [N]))
    assert unit.calls == 3


def test_a_consistency_model_is_not_taught_where_noise_tells_nothing():
    student, alphas = small.unet(time_cond_proj_dim=8), torch.linspace(0.99, 0.0, 20)
    with pytest.raises(ValueError, match="alphas reach 0, where a prediction of the noise tells nothing"):
        next(distil_consistency(small.unet(), student, alphas, None, torch.zeros(1, 2, 16), [], Consistency(levels=2)))


def test_the_memory_must_be_that_of_its_step():
    scheduler = DPMSolverMultistepScheduler(**SCHEDULE)
    x, generator = start(scheduler)
    state = advance(begin(scheduler, x, N, 1.0, generator=generator), Toy(0.5), scheduler, COND, 3)
    for name, value in {
        "_step_index": 0, "lower_order_nums": 1, "sigmas": state.solver["sigmas"].flip(0),
        "model_outputs": [*state.solver["model_outputs"], x],
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=rf"memory \({name}\) is not what a DPMSolver"):
            sampling.restored(scheduler, N, {**state.solver, name: value}, 3, x)
