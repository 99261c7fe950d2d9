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

from lab.hybridsd import solvers
from lab.hybridsd.consistency import Consistency, distil_consistency
from lab.hybridsd.handoff import Handoff, advance, begin
from lab.hybridsd.sampling import Conditioning, trajectory
from lab.hybridsd.solvers import first_sigma, fresh, rehearsal

from . import small

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS = [name for name in sorted(dir(diffusers)) if name.endswith("Scheduler") and not name.startswith("Flax")]
CARRIED = {
    "CMStochasticIterative", "CogVideoXDDIM", "DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel",
    "DEISMultistep", "DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSinglestep", "EDMDPMSolverMultistep",
    "EDMEuler", "EulerAncestralDiscrete", "EulerDiscrete", "FlowMapEulerDiscrete", "FlowMatchEulerDiscrete",
    "FlowMatchHeunDiscrete", "FlowMatchLCM", "HeunDiscrete", "IPNDM", "KDPM2AncestralDiscrete", "KDPM2Discrete", "LCM",
    "LMSDiscrete", "LTXEulerAncestralRF", "PNDM", "SASolver", "TCD", "UniPCMultistep",
}  # fmt: skip
OPTIONS = {
    "PNDM of SD-1.4": ("PNDM", {"skip_prk_steps": True, "steps_offset": 1}),
    "DPM++ SDE": ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM++ 3M": ("DPMSolverMultistep", {"solver_order": 3, "use_karras_sigmas": True}),
    "UniPC 3": ("UniPCMultistep", {"solver_order": 3, "predict_x0": False, "final_sigmas_type": "sigma_min"}),
    "UniPC of flows": ("UniPCMultistep", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    "Heun, Karras": ("HeunDiscrete", {"use_karras_sigmas": True}),
    "LMS, Karras": ("LMSDiscrete", {"use_karras_sigmas": True}),
    "DDIM with thresholds": ("DDIM", {"thresholding": True}),
    "SD3": ("FlowMatchEulerDiscrete", {"shift": 3.0}),
    "flow with noise": ("FlowMatchEulerDiscrete", {"stochastic_sampling": True}),
    "flow that grows": ("FlowMatchLCM", {"scale_factors": [1.0] * 7, "upscale_mode": "nearest"}),
}
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


def made(name, **options):
    """A scheduler with the schedule of Stable Diffusion; what it must be told is 4."""
    kind = getattr(diffusers, name)
    needed = [p.name for p in inspect.signature(kind.__init__).parameters.values() if p.default is p.empty][1:]
    try:
        return kind.from_config(SCHEDULE, **{name: 4 for name in needed if name not in ("args", "kwargs")}, **options)
    except (ImportError, ValueError, TypeError) as error:
        pytest.skip(f"cannot be made: {str(error).strip().splitlines()[0]}")


def start(scheduler, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 4, 6, 6, generator=generator)
    return (x * first_sigma(fresh(scheduler, N))).to(dtype), generator


def handed_over(scheduler, units, cuts, dtype=torch.float32):
    """The final latent, handed over as bytes before each of the steps `cuts`."""
    x, generator = start(scheduler, dtype)
    state = begin(scheduler, x, N, 1.0, generator=generator)
    for at in cuts:
        state = advance(state, units[0], scheduler, COND, at)
        state = Handoff.from_bytes(state.to_bytes())
        torch.randn(3)  # the global generator stands elsewhere on another machine
    return advance(state, units[1], scheduler, COND, N).latent


def is_bit_for_bit(scheduler, units, dtype=torch.float32):
    for cuts in ([1], [2], [3], [6], [7], [1, 2, 3, 4, 5]):
        x, generator = start(scheduler, dtype)
        *_, whole = trajectory(units, fresh(scheduler, N), x, COND, [cuts[-1], N - cuts[-1]], generator)
        made = handed_over(scheduler, units, cuts, dtype)
        assert torch.equal(made, whole) and made.dtype == dtype and torch.isfinite(made).all(), cuts


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # constructors of diffusers meet numpy 2
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_hand_over_is_bit_for_bit_or_refused_before_the_first_step(name):
    scheduler, units = made(name), (Toy(0.5), Toy(0.7))
    if name.removesuffix("Scheduler") in CARRIED:
        is_bit_for_bit(scheduler, units)
        return
    with pytest.raises(ValueError) as caught:
        handed_over(scheduler, units, [1])
    assert "\n" not in str(caught.value) and name in str(caught.value) and units[0].calls == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_a_scheduler_are_handed_over_too(name):
    kind, options = OPTIONS[name]
    is_bit_for_bit(made(f"{kind}Scheduler", **options), (Toy(0.5), Toy(0.7)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(CARRIED))
def test_a_hand_over_in_half_precision_is_bit_for_bit(name, dtype):
    is_bit_for_bit(made(f"{name}Scheduler"), (Toy(0.5), Toy(0.7)), dtype)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
def test_calls_of_a_model_are_counted_as_they_happen():
    counted = {
        "DDIM": range(9), "PNDM of SD-1.4": [0, *range(2, 10)], "HeunDiscrete": [*range(0, 16, 2), 15],
        "KDPM2Discrete": [*range(0, 16, 2), 15], "FlowMatchHeunDiscrete": [*range(0, 16, 2), 15],
    }  # fmt: skip
    for name, expected in counted.items():
        kind, options = OPTIONS.get(name, (name, {}))
        scheduler, unit = made(f"{kind}Scheduler", **options), Toy(0.5)
        x, generator = start(scheduler)
        seen = [0] + [unit.calls for _ in trajectory([unit], fresh(scheduler, N), x, COND, [N], generator)]
        assert seen == list(expected) == list(solvers.calls(scheduler, N)), name


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


class Quiet(DDIMScheduler):
    """Keeps what no hand-off carries, and what no toy would show."""

    def step(self, model_output, timestep, sample, return_dict=True):
        self.kept = {**getattr(self, "kept", {}), int(timestep): bool(sample.abs().max() > 100)}
        return super().step(model_output, timestep, sample, return_dict=return_dict)


class Gathering(DDIMScheduler):
    """Keeps a tensor in place."""

    def step(self, model_output, timestep, sample, return_dict=True):
        self.total = getattr(self, "total", 0 * sample)
        self.total += model_output
        return (super().step(self.total, timestep, sample, return_dict=False)[0],)


def test_a_memory_that_is_changed_in_place_travels():
    is_bit_for_bit(Gathering(**SCHEDULE, clip_sample=False), (Toy(0.5), Toy(0.7)))
    scheduler = Gathering(**SCHEDULE, clip_sample=False)
    state = advance(begin(scheduler, start(scheduler)[0], N, 1.0), Toy(0.5), scheduler, COND, 3)
    ends = [advance(state, Toy(0.5), scheduler, COND, N).latent for _ in range(2)]
    assert torch.equal(*ends)


@pytest.mark.parametrize("kind", [Secretive, Careless, Quiet])
def test_a_memory_that_does_not_travel_is_refused_and_draws_in_one_process(kind):
    scheduler, unit = kind(**SCHEDULE, clip_sample=False), Toy(0.5)
    x, generator = start(scheduler)
    with pytest.raises(ValueError, match=f"{kind.__name__} cannot be handed over"):
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


# -- settings made after a scheduler was made --------------------------------------------------------------------------


def test_a_shift_that_was_set_travels_and_is_compared():
    plain, shifted = (diffusers.FlowMatchEulerDiscreteScheduler() for _ in range(2))
    shifted.set_shift(3.0)
    assert fresh(shifted, N).shift == 3.0 and not torch.equal(fresh(shifted, N).sigmas, fresh(plain, N).sigmas)
    is_bit_for_bit(shifted, (Toy(0.5), Toy(0.7)))
    by_hand = diffusers.FlowMatchEulerDiscreteScheduler()
    by_hand.set_shift(3.0)
    by_hand.set_timesteps(N)
    assert torch.equal(fresh(shifted, N).sigmas, by_hand.sigmas)
    assert torch.equal(fresh(by_hand, N).sigmas, by_hand.sigmas)  # one that has drawn already
    state = begin(shifted, start(shifted)[0], N, 1.0)
    with pytest.raises(ValueError, match=r"with: \{'set': \{'_shift': 3.0\}\} there, None here"):
        advance(Handoff.from_bytes(state.to_bytes()), Toy(0.5), plain, COND, 2)


@pytest.mark.parametrize("name", sorted(CARRIED))
@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
def test_a_scheduler_that_has_drawn_is_none_that_was_changed(name):
    scheduler = made(f"{name}Scheduler")
    used = fresh(scheduler, N)
    x, generator = start(scheduler)
    *_, _ = trajectory([Toy(0.5)], used, x, COND, [N], generator)
    assert "with" not in solvers.schedule_config(used) and "with" not in solvers.schedule_config(scheduler)


def test_a_setting_that_is_no_number_is_refused():
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod**2
    with pytest.raises(ValueError, match=r"its 'alphas_cumprod' was changed after it was made") as caught:
        fresh(scheduler, N)
    assert "\n" not in str(caught.value)


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
            solvers.restored(scheduler, N, {**state.solver, name: value}, 3, x)
