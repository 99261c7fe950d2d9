"""Latent consistency distillation: its equations, its parameters, and a student that needs fewer steps."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import nn

from lab.core import cost
from lab.core.training import seeded
from lab.hybridsd import consistency, references
from lab.hybridsd import equations as eq
from lab.hybridsd.consistency import Consistency, distil_consistency

from . import small

ALPHAS = DDIMScheduler(**small.SCHEDULE).alphas_cumprod


def test_boundary_scalings_are_the_lcm_schedulers():
    theirs = LCMScheduler(**small.SCHEDULE).get_scalings_for_boundary_condition_discrete(torch.tensor(259.0))
    assert torch.allclose(torch.stack(eq.boundary_scalings(torch.tensor(259.0))), torch.stack(theirs))
    skip, out = eq.boundary_scalings(torch.tensor(0.0))
    assert (float(skip), float(out)) == (1.0, 0.0)


def test_a_ddim_step_is_the_ddim_schedulers():
    scheduler = DDIMScheduler(**small.SCHEDULE, clip_sample=False)
    scheduler.set_timesteps(50)
    x, e, t = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3), 501
    x0 = (x - (1 - ALPHAS[t]).sqrt() * e) / ALPHAS[t].sqrt()
    theirs = scheduler.step(e, t, x).prev_sample
    assert torch.allclose(eq.ddim_step(x0, e, ALPHAS[t - 20]), theirs, atol=1e-5)


def test_pseudo_huber_is_absolute_for_large_and_square_for_small():
    x = torch.tensor([3.0, -5.0])
    assert eq.pseudo_huber(x, torch.zeros(2)) == pytest.approx(4.0 - 0.001, abs=1e-5)
    assert eq.pseudo_huber(x * 1e-3, torch.zeros(2), c=1.0) == pytest.approx(17e-6 / 2, rel=0.05)


def test_times_are_fifty_of_a_thousand():
    found = consistency.times(50, 1000)
    assert (int(found[0]), int(found[1]), int(found[-1]), len(found)) == (19, 39, 999, 50)
    with pytest.raises(ValueError, match="levels=50 is not allowed: give at most the schedule's 10 times"):
        consistency.times(50, 10)


def test_embedding_the_guidance_costs_81920_parameters_and_leaves_the_rest():
    large = references.unet("sd-1.4")
    assert cost.parameters(consistency.with_guidance_embedding(large)) - cost.parameters(large) == 81_920
    net = small.unet()
    made = consistency.with_guidance_embedding(net, 8)
    assert net.config["time_cond_proj_dim"] is None and made.config["time_cond_proj_dim"] == 8
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 16)
    with torch.no_grad():
        plain, zero = net(x, 3, text).sample, made(x, 3, text, timestep_cond=torch.zeros(1, 8)).sample
        guided = made(x, 3, text, timestep_cond=torch.ones(1, 8)).sample
    assert torch.equal(plain, zero) and not torch.allclose(plain, guided)


class Ideal(nn.Module):
    """The exact noise of clean latents that are -1 or 1 with equal odds; a student adds a small network to it."""

    def __init__(self, learns=False):
        super().__init__()
        self.config = {"time_cond_proj_dim": 4 if learns else None}
        self.extra = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
        nn.init.zeros_(self.extra[-1].weight)
        nn.init.zeros_(self.extra[-1].bias)
        self.learns = learns

    def forward(self, x, t, text, timestep_cond=None):
        a = ALPHAS[t].view(-1, 1, 1, 1)
        e = (x - a.sqrt() * torch.tanh(a.sqrt() * x / (1 - a))) / (1 - a).sqrt()
        if self.learns:
            inputs = torch.stack([x.flatten(), t.float() / 1000], 1)
            e = e + self.extra(inputs).view_as(x) * a.sqrt() / (1 - a).sqrt()  # in units of the clean latent
        return SimpleNamespace(sample=e)


def few(net, noise):
    """One step from pure noise to the end."""
    with torch.no_grad():
        last = torch.full((len(noise),), 999)
        return consistency.consistency_function(net, noise, last, noise, torch.ones(len(noise)), ALPHAS)


def learned(folder=None, steps=1500):
    with seeded(0):
        teacher, student = Ideal(), Ideal(learns=True)
        target = Ideal(learns=True)
        latents = (torch.randint(2, (256, 1, 1, 1)) * 2 - 1).float()
        how = Consistency(steps=steps, lr=2e-3, guidance=(0.0, 0.0))
        nothing, batches = torch.zeros(1, 1), [(latents, torch.zeros(256, 1))]
        options = {"checkpoint": folder, "progress": False, "target": target}
        trace = list(distil_consistency(teacher, student, ALPHAS, lambda i: i, nothing, batches, how, **options))
    return student, target, trace


@pytest.mark.slow
def test_one_step_of_the_student_lands_nearer_than_one_of_the_teacher():
    student, target, _ = learned()
    noise = torch.randn(400, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    before, after, mean = (float((few(net, noise).abs() - 1).abs().mean()) for net in (Ideal(True), student, target))
    assert before > 0.5  # one step of the undistilled one gives the average of both
    # measured 0.45 to 0.52 of `before`, by processor; without learning it is 1
    assert after < 2 / 3 * before and mean < 2 / 3 * before, (before, after, mean)


def test_it_resumes_where_it_was(tmp_path):
    whole, _, _ = learned(tmp_path / "a", 20)
    learned(tmp_path / "b", 10)
    again, _, trace = learned(tmp_path / "b", 20)
    assert len(trace) == 10 and all(map(torch.equal, whole.parameters(), again.parameters()))


@pytest.mark.slow
def test_a_pruned_unet_learns_too_and_the_teacher_stays():
    net = small.unet()
    with seeded(0):
        student = consistency.with_guidance_embedding(net, 8)
        before = [p.clone() for p in net.parameters()]
        data = [(torch.randn(4, 4, 8, 8), torch.randn(4, 5, 16))]
        nothing, how = torch.zeros(1, 5, 16), Consistency(steps=2, lr=1e-3)
        trace = list(distil_consistency(net, student, ALPHAS, lambda i: i, nothing, data, how, progress=False))
    assert len(trace) == 2 and all(map(torch.equal, before, net.parameters()))
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not torch.equal(student.time_embedding.cond_proj.weight, consistency.with_guidance_embedding(net, 8)
                           .time_embedding.cond_proj.weight)  # fmt: skip


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="the student does not embed the guidance: give with_guidance_embedding"):
        next(distil_consistency(small.unet(), small.unet(), ALPHAS, None, None, []))
    with pytest.raises(ValueError, match=r"guidance=\(5, 1\) is not allowed"):
        Consistency(guidance=(5, 1))
