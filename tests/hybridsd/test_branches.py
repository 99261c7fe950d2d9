"""What branches off one trajectory is what the pipeline draws, and its hand-offs are as long as those that are sent."""

from dataclasses import replace

import pytest
import torch

from lab.hybridsd import branches
from lab.hybridsd.pipeline import HybridPipeline
from lab.hybridsd.sampler import HybridSampler

from . import small


@pytest.fixture(scope="module")
def pipeline():
    return HybridPipeline.of(small.sd().components, [small.unet(1)])


@pytest.mark.parametrize("solver", ["own", "lcm"])  # which draws noise between its steps
def test_every_branch_is_what_the_pipeline_draws(pipeline, solver):
    pipeline, prompts = pipeline.with_solver(solver), ["a dog", "two cats"]
    for order, way in (((0, 1), "cloud first"), ((1, 0), "edge first")):
        stages = branches.stages(pipeline, prompts, 3, range(5), 4.0, 4, way, 3)
        for k, images in stages.items():
            steps = [k, 4 - k] if way == "cloud first" else [4 - k, k]
            drawn = pipeline.draw(prompts, steps=steps, order=order, guidance=4.0, seed=3, keep=True)
            assert torch.equal(images[:, -1], (255 * drawn.pictures).round().to(torch.uint8)), (way, k)
            middle = (255 * pipeline.decode(drawn.trail[2])).round().to(torch.uint8)
            assert torch.equal(images[:, 1], middle)


def test_a_withdrawn_prompt_is_no_longer_known(pipeline):
    way = "prompt withdrawn"
    one, other = (branches.stages(pipeline, [prompt], 3, range(5), 4.0, 4, way, 2) for prompt in ("a dog", "cats"))
    assert torch.equal(one[0], other[0])  # nobody ever heard of it
    assert not torch.equal(one[2], other[2])
    whole = pipeline.draw("a dog", steps=[4, 0], guidance=4.0, seed=3).pictures
    assert torch.equal(one[4][:, -1], (255 * whole).round().to(torch.uint8))
    sampler = HybridSampler(pipeline, ["a dog"], 4.0)
    with pytest.raises(ValueError, match="there is no text to stand in the prompt's place"):
        branches.without_prompt(replace(sampler.cond, negative=None))


def test_a_crossing_is_as_long_as_what_is_sent(pipeline):
    sizes = branches.handoff_bytes(pipeline, "a dog", 4.0, 4)
    sampler = HybridSampler(pipeline, ["two cats"], 4.0)  # of any prompt
    start = sampler.start(4)
    before, after = sampler.edge(start, 3), sampler.cloud(start, 1)

    def size(state):
        return len(state.to_bytes())

    assert branches.crossing(sizes, 0, "cloud first") == (0, 0) == branches.crossing(sizes, 0, "edge first")
    assert branches.crossing(sizes, 1, "cloud first") == (size(start), size(replace(after, asked="0" * 64)))
    last = size(replace(sampler.cloud(before, 4), asked="0" * 64))
    assert branches.crossing(sizes, 1, "edge first") == (size(before), last)
