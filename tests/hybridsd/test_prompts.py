"""The embedded models and their prompts: nothing held out was learned, the reader reads, and diffusers loads it all."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from lab.core import cost, store
from lab.hybridsd import prompts
from lab.hybridsd.pipeline import HybridPipeline
from lab.hybridsd.prompts import PromptTask, Reader, embedded, held_out, learned, rendered


def test_no_caption_held_out_was_learned_and_every_part_was():
    there, here = ({scene.caption for scene in made} for made in (learned(), held_out()))
    assert len(there) == 576 and len(here) == 144 and not there & here
    for name, values in prompts.READ.items():
        assert {getattr(scene, name) for scene in learned()} == set(values)


@pytest.mark.slow
def test_the_reader_reads_true_pictures():
    x, labels = rendered(held_out(288, 77))
    right = Reader.trained().read(x) == labels
    assert right.all(1).double().mean() > 0.99
    assert Reader.trained().features(x[:3]).shape == (3, 64)
    shuffled = Reader.trained().read(x) == labels.roll(1, 0)
    assert shuffled.all(1).double().mean() < 0.05


@pytest.mark.slow
def test_a_plain_pipeline_draws_the_cloud_alone_bit_for_bit():
    folder = store.artefact("hybridsd/model_index.json").parent
    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    text = "two red circles on the left, on stripes"
    theirs = pipe(
        text, num_inference_steps=5, guidance_scale=4.0, generator=torch.Generator().manual_seed(2), output_type="pt"
    ).images
    assert torch.equal(embedded().draw(text, steps=[5, 0], guidance=4.0, seed=2).pictures, theirs)


@pytest.mark.slow
def test_the_edge_has_at_most_27_percent_of_the_cloud():
    large, small = (cost.parameters(unet) for unet in embedded().unets)
    assert small <= 0.27 * large
    tiny, whole = (cost.parameters(embedded(tiny).vae.decoder) for tiny in (True, False))
    assert tiny < whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "least"), [([12, 0], 0.91), ([5, 7], 0.79), ([0, 12], 0.87)], ids=["cloud", "both", "edge"]
)
def test_what_is_told_is_drawn(steps, least):
    task = prompts.scenes(24, 5)
    assert isinstance(task.model, HybridPipeline)
    shown = task.model.draw(task.prompts, steps=steps, guidance=4.0, seed=1).pictures
    right = task.right(shown)
    assert right.all(1).double().mean() > least  # of 24: two prompts fewer than are measured pass, three do not
    assert right[:, [0, 1, 3, 4]].double().mean(0).min() > 0.95  # the edge loses shapes, never count, colour or place
    assert not task.right(shown.roll(1, 0)).all(1).any()  # other prompts' pictures


def test_a_task_that_is_not_one_is_told():
    parts = {"right": None, "features": None, "real": torch.zeros(1, 3, 8, 8)}
    with pytest.raises(ValueError, match=r"PromptTask.prompts is empty"):
        PromptTask(model=torch.nn.Identity(), prompts=(), **parts)
    with pytest.raises(TypeError, match=r"PromptTask\.model is a str"):
        PromptTask(model="a", prompts=("a",), **parts)
